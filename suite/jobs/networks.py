"""Stored networks as stages use them: checked, under the teacher's guidance, with the method that samples."""

import json
from pathlib import Path
from typing import Any

import torch

from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance, guided
from diffusion.teachers.folder import deciding_files, load_denoiser
from suite.provenance import Input, checked


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
