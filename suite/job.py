"""One writer a result, and a result whole or not at all: the frame around what a job computes."""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import atomic_path, only_one, remove_leftovers
from diffusion.runtime.processes import ALONE, Processes
from suite.provenance import Input, write_provenance
from suite.reruns import asked_in

# How long a job waits for one that makes the same result: a trainer whose Snakemake was killed stores its state first.
_WAIT_FOR_OTHERS_S = 60.0


@contextmanager
def sole_maker(arguments: argparse.Namespace) -> Iterator[None]:
    """Makes this process the only one that makes the result ``arguments.output``, and reads what is asked for.

    Of several processes that do one job together the first has the lock. What others left half-written is removed.

    Raises:
        UserError: another process makes the same result, and goes on for a minute.
    """
    job: Path | None = arguments.job
    arguments.asked = None if job is None else asked_in(job)
    output: Path | None = getattr(arguments, "output", None)
    if output is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    # A person's folder shall get no more than the result.
    name = hashlib.sha256(str(output.absolute()).encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir(), f"boot-{os.getuid()}-{name}.lock") if job is None else job.with_suffix(".lock")
    with only_one(lock, str(output), _WAIT_FOR_OTHERS_S):
        remove_leftovers(output.parent, output.name)
        yield


@contextmanager
def result_folder(arguments: argparse.Namespace, processes: Processes = ALONE) -> Iterator[Path]:
    """A fresh folder that becomes ``arguments.output`` when the block ends without an error.

    Of several processes the first alone has it; the others get a path at which nothing is.

    Raises:
        UserError: something else is asked for by now than when the job began.
    """
    if not processes.is_main:
        yield arguments.output
        return
    with atomic_path(arguments.output) as temporary:
        temporary.mkdir()
        yield temporary
        _refuse_if_changed(arguments)


@contextmanager
def result_file(arguments: argparse.Namespace, inputs: Mapping[str, Input], **facts: Any) -> Iterator[Path]:
    """A path that becomes the file ``arguments.output`` when the block ends without an error; its record follows.

    Args:
        inputs, facts: as of :func:`suite.provenance.write_provenance`.
    """
    record = arguments.output.with_suffix(".json")
    with atomic_path(arguments.output) as temporary:
        yield temporary
        _refuse_if_changed(arguments)
        record.unlink(missing_ok=True)  # never an old record beside a new file
    write_provenance(record, inputs, asked(arguments), [arguments.output], **facts)


def asked(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What the workflow asks for, as it stood when the job began; None where a person called the command."""
    return getattr(arguments, "asked", None)


def _refuse_if_changed(arguments: argparse.Namespace) -> None:
    """A job that outlived its Snakemake must not deliver over the result of other settings."""
    began_with = asked(arguments)
    if began_with is None:
        return
    now = asked_in(arguments.job)
    if any(now[part] != began_with[part] for part in ("settings", "files")):
        raise UserError(
            f"{arguments.output}: other settings are asked for than when this job began ({arguments.job}); what it has "
            f"made is not delivered."
        )
