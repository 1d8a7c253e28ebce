"""When a training's state can go: its result is stored, and whoever runs the jobs has noted it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import only_one, read_json, sha256_file, write_json

_DELIVERED = "delivered"


def mark_delivered(state: Path, result: Path) -> None:
    """Notes that the state's result is stored, and where. The state stays: whoever runs the job may be killed before it
    has taken note of the result, and would ask for it again; :func:`discard_delivered` removes it later."""
    write_json(state / _DELIVERED, {"result": os.path.relpath(result, state), "sha256": _of_record(result)})


def discard_delivered(states: Path) -> None:
    """Removes the states under ``states`` whose results are stored, so that a forced rerun really trains again.

    To be called when the results have been taken note of. States of unfinished jobs and those in use stay, and those
    whose result is not there: Snakemake removes the outputs of a job that fails, also what another has delivered there.
    """
    for marker in states.glob(f"*/{_DELIVERED}"):
        with suppress(UserError, KeyError, TypeError, OSError), only_one(marker.parent / "lock", str(marker.parent)):
            facts = read_json(marker)
            if _of_record(marker.parent / facts["result"]) == facts["sha256"]:
                shutil.rmtree(marker.parent, ignore_errors=True)


def _of_record(result: Path) -> str:
    """Tells one delivery from another: a folder's record has its time in it."""
    return sha256_file(result / "provenance.json")
