"""What several stages need."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion.conditions import ClassLabels, Conditions
from diffusion.denoiser import Denoiser
from diffusion.errors import UserError
from diffusion.files import atomic_path, canonical_json, sha256_file
from diffusion.guidance import Guidance, guided
from diffusion.pipelines import load_denoiser
from diffusion.processes import ALONE, Processes
from suite.registry import method_class

_CODE = ("diffusion", "boot", "baselines")


def state_key(identity: Any, code: Sequence[Path] = ()) -> str:
    """Names what an interrupted job has left: by all that decides its result, the code that makes networks and samples
    included, so that a change starts afresh instead of going on.

    Args:
        code: files that decide the result beside those packages.
    """
    modules = [file for name in _CODE for file in sorted((Path(__file__).parents[2] / name).glob("*.py"))]
    hashes = [sha256_file(file) for file in [*modules, *code]]
    return hashlib.sha256(canonical_json([identity, hashes]).encode()).hexdigest()[:16]


@contextmanager
def result_folder(output: Path, processes: Processes = ALONE) -> Iterator[Path]:
    """A fresh folder that becomes ``output`` when the block ends without an error.

    Of several processes the first alone has it; the others get a path at which nothing is."""
    if not processes.is_main:
        yield output
        return
    with atomic_path(output) as temporary:
        temporary.mkdir()
        yield temporary


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
