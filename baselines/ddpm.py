"""Ancestral sampling of the teacher (DDPM; Ho et al. 2020, arXiv 2006.11239): no training at all."""

from typing import Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.noise import noise_generators
from diffusion.runtime.settings import StepCounts
from diffusion.samplers import sample_with, sampling_grid, scheduler_on


class DdpmSettings(TeacherSamplerSettings):
    """Settings of DDPM.

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step, or two under guidance.
    """

    method: Literal["ddpm"] = "ddpm"
    num_inference_steps: StepCounts = (1, 2, 4, 8, 16, 50, 250)


class Ddpm(TeacherSampler):
    """Draws from the posterior q(x_s | x_t, x̂) of the chain that has only the steps taken, trailing time spacing.

    Its variance is the posterior's own, β̃ = (1 − ᾱ_s)/(1 − ᾱ_t) (1 − ᾱ_t/ᾱ_s) (eq. 7 of the paper; `diffusers`'
    "fixed_small"), not the larger β = 1 − ᾱ_t/ᾱ_s, which is too noisy for few steps. This is DDIM with η = 1.
    """

    name = "ddpm"
    title = "DDPM"
    Settings = DdpmSettings
    follows_teacher = False
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: DdpmSettings

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        from diffusers import DDPMScheduler

        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps)
        scheduler = scheduler_on(DDPMScheduler, ratios, variance_type="fixed_small", clip_sample=False)
        return sample_with(scheduler, denoiser, noise, times, condition, generator=noise_generators(noise))
