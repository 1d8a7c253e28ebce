"""DDIM sampling of the teacher with fewer steps (Song et al. 2021, arXiv 2010.02502): no training at all."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.guidance import guided
from diffusion.method import Method, Sampler
from diffusion.pipelines import load_denoiser, save_denoiser
from diffusion.settings import Settings
from diffusion.solvers import ddim_sample
from diffusion.teacher import TeacherFacts


class DdimSettings(Settings):
    """Settings of DDIM.

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step, or two under guidance.
    """

    method: Literal["ddim"] = "ddim"
    num_inference_steps: tuple[int, ...] = Field((1, 2, 4, 8, 16, 50), min_length=1)

    @field_validator("num_inference_steps")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) != len(value):
            raise ValueError(f"expected different numbers ≥ 1, found {list(value)}")
        return value


class Ddim(Method):
    """Deterministic DDIM (η = 0) on the teacher, trailing time spacing."""

    name = "ddim"
    title = "DDIM"
    Settings = DdimSettings
    trains = False
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: DdimSettings

    def evaluations(self) -> tuple[int, ...]:
        return tuple(steps * self.guidance.evaluations for steps in self.settings.num_inference_steps)

    def check(self, teacher: TeacherFacts) -> None:
        most = max(self.settings.num_inference_steps)
        if most > teacher.num_timesteps:
            raise ValueError(
                f"num_inference_steps: found {most}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        save_denoiser(folder, teacher.with_network(network))

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        denoiser = guided(load_denoiser(folder, device), self.guidance)
        steps = nfe // self.guidance.evaluations

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return ddim_sample(denoiser, noise, steps, condition)

        return sample, denoiser.network
