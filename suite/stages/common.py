"""What several stages need."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion.denoiser import Denoiser
from diffusion.files import atomic_path
from diffusion.guidance import Guidance, guided
from diffusion.pipelines import load_denoiser
from diffusion.processes import ALONE, Processes
from suite.registry import method_class


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


def number_in(name: str) -> int:
    """5 of ``seed-5`` or ``nfe-5``."""
    return int(name.rpartition("-")[2])
