"""Stored networks as jobs use them: checked, under the teacher's guidance, with the method that samples."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ValidationError

from diffusion.conditions import Conditions
from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance, Scale, guided
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import problems_of
from diffusion.teachers.folder import deciding_files, load_conditions, load_denoiser
from diffusion.teachers.prompts import Prompts, load_prompts
from suite.job import GuidanceScaleOrRange, Job, Key
from suite.provenance import Input, checked, checked_folder


class VariantJob(Job):
    """A job of one variant of a method.

    Attributes:
        variant: its name in the configuration.
        settings: its block, with the name of the ``method``.
        guidance_scale: of the teacher, where the method evaluates it; 1 is without. Where a student is sampled that is
            told it, the number that it is told.
        guidance_embedded: whether the teacher's network is told the scale, in place of being guided.
    """

    variant: str
    settings: Annotated[dict[str, Any], Key("methods.{variant}")]
    guidance_scale: GuidanceScaleOrRange = 1.0
    guidance_embedded: bool = False

    @cached_property
    def method(self) -> Any:
        """The method, ready to train or to sample."""
        return configured_method(self.variant, self.settings, Guidance(self.guidance_scale, self.guidance_embedded))


def configured_method(variant: str, settings: dict[str, Any], guidance: Guidance) -> Any:
    """The method that a variant's block describes, for a teacher under that guidance.

    Raises:
        UserError: the block does not fit the method; each problem is named by its key.
    """
    method_type = method_class(settings["method"])
    try:
        return method_type(method_type.Settings.model_validate(settings), guidance)
    except ValidationError as error:
        raise UserError("\n".join(problems_of(error, method_type.Settings, f"methods.{variant}"))) from error


def checked_network(role: str, folder: Path) -> dict[str, Input]:
    """The files that decide what a stored network computes, as :func:`suite.provenance.checked`."""
    return checked({f"{role}, {file.name}": file for file in deciding_files(folder)})


def network_folder(method: Any, source: Path, nfe: int) -> Path:
    """The `diffusers` folder that a method samples from with ``nfe`` evaluations: a student of its, or the teacher."""
    return source / f"nfe-{method.student_for(nfe)}" if method.trains else source


def conditions_of_samples(source: Path, prompts: Path | None) -> Conditions:
    """What the samples of a stored network are conditions of: of the texts to evaluate with, where there are some."""
    return load_prompts(prompts) if prompts else load_conditions(source)


def checked_prompts(prompts: Path | None) -> dict[str, Input]:
    """The texts to evaluate with, as inputs of a result; none where the teacher is told none."""
    return checked_folder("prompts", prompts) if prompts else {}


def load_teacher(
    folder: Path, guidance_scale: Scale, device: torch.device, prompts: Path | None = None, captions: bool = False
) -> Denoiser:
    """The experiment's teacher as its methods see it.

    Args:
        prompts: the texts that it is asked for, with the unconditional input of guidance; None has the folder's own.
        captions: whether those of its training stay, under the unconditional input of ``prompts``.
    """
    denoiser = load_denoiser(folder, device)
    if prompts is not None:
        given, own = load_prompts(prompts, folder), denoiser.conditions
        denoiser.conditions = own.with_empty(given.empty) if captions and isinstance(own, Prompts) else given
    embedded = denoiser.family.embeds_scale(denoiser.network.config)
    return guided(denoiser, Guidance(guidance_scale, embedded))
