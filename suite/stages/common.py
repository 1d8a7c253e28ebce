"""What several stages need."""

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.conditions import ClassLabels, Conditions
from diffusion.data.store import stored_files
from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance, guided
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import atomic_path, canonical_json, only_one, remove_leftovers, sha256_file
from diffusion.runtime.processes import ALONE, Processes
from diffusion.teachers.folder import deciding_files, load_denoiser
from suite.provenance import Input, checked, write_provenance
from suite.reruns import asked_in

_CODE = ("diffusion", "boot", "baselines")


def state_key(identity: Any, code: Sequence[Path] = ()) -> str:
    """Names what an interrupted job has left: by all that decides its result, the code that makes networks and samples
    included, so that a change starts afresh instead of going on.

    Args:
        code: files that decide the result beside those packages.
    """
    modules = [file for name in _CODE for file in sorted((Path(__file__).parents[2] / name).rglob("*.py"))]
    hashes = [sha256_file(file) for file in [*modules, *code]]
    return hashlib.sha256(canonical_json([identity, hashes]).encode()).hexdigest()[:16]


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


def checked_data(folder: Path, *parts: Literal["train", "test"]) -> dict[str, Input]:
    """The files of parts of the prepared data set, as :func:`suite.provenance.checked`; the manifest lists them."""
    inputs = checked({"data, manifest.json": folder / "manifest.json"})
    return inputs | checked({f"data, {file.name}": file for file in stored_files(folder, *parts)})


def checked_network(role: str, folder: Path) -> dict[str, Input]:
    """The files that decide what a stored network computes, as :func:`suite.provenance.checked`."""
    return checked({f"{role}, {file.name}": file for file in deciding_files(folder)})


def network_folder(method: Any, source: Path, nfe: int) -> Path:
    """The `diffusers` folder that a method samples from with ``nfe`` evaluations: a student of its, or the teacher."""
    return source / f"nfe-{method.student_for(nfe)}" if method.trains else source


def configured_method(settings: str, guidance_scale: float = 1.0) -> Any:
    """The method that a block of settings, as JSON, describes, for a teacher under that guidance."""
    raw = json.loads(settings)
    method_type = method_class(raw["method"])
    return method_type(method_type.Settings.model_validate(raw), Guidance(guidance_scale))


def load_teacher(folder: Path, guidance_scale: float, device: torch.device) -> Denoiser:
    """The experiment's teacher as its methods see it."""
    return guided(load_denoiser(folder, device), Guidance(guidance_scale))


def check_classes(conditions: Conditions, where: Path | str, found: int) -> None:
    """Refuses a data set whose labels mean other classes than the teacher's.

    Args:
        conditions: the teacher's.
        where: the data set.
        found: how many classes it has.

    Raises:
        UserError: naming both numbers.
    """
    if isinstance(conditions, ClassLabels) and conditions.num_classes != found:
        raise UserError(
            f"{where}: {found} classes, but the teacher is told one of {conditions.num_classes}; expected the data set "
            f"that the teacher was trained on (or teacher.num_classes, where its last label stands for no class)."
        )


def number_in(name: str) -> int:
    """5 of ``seed-5`` or ``nfe-5``."""
    return int(name.rpartition("-")[2])
