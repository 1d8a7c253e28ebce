"""DDIM sampling of the teacher with fewer steps (Song et al. 2021, arXiv 2010.02502): no training at all."""

from typing import Literal

import torch
from pydantic import Field

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.noise import noise_generators
from diffusion.samplers import sample_with, sampling_grid, scheduler_on
from diffusion.solvers import ddim_sample


class DdimSettings(TeacherSamplerSettings):
    """Settings of DDIM.

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step, or two under guidance.
        eta: η of the paper's eq. 16, the share of the posterior's deviation that is drawn anew in every step: 0 is
            deterministic, 1 is DDPM's ancestral sampling.
    """

    method: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)


class Ddim(TeacherSampler):
    """DDIM on the teacher, trailing time spacing; in closed form for η = 0, else through `diffusers`."""

    name = "ddim"
    title = "DDIM"
    Settings = DdimSettings
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: DdimSettings

    @property
    def follows_teacher(self) -> bool:  # type: ignore[override]
        return self.settings.eta == 0

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        if self.settings.eta == 0:
            return ddim_sample(denoiser, noise, num_inference_steps, condition)
        from diffusers import DDIMScheduler

        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps)
        scheduler = scheduler_on(DDIMScheduler, ratios, clip_sample=False, set_alpha_to_one=True)
        return sample_with(
            scheduler,
            denoiser,
            noise,
            times,
            condition,
            eta=self.settings.eta,
            generator=noise_generators(noise),
        )
