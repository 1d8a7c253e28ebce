"""Heun's method on the teacher (Karras et al. 2022, arXiv 2206.00364, algorithm 1): no training at all."""

from typing import Literal

import torch
from pydantic import Field

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.runtime.settings import StepCounts
from diffusion.samplers import sample_with, sampling_grid, scheduler_on


class HeunSettings(TeacherSamplerSettings):
    """Settings of Heun's method.

    Attributes:
        num_inference_steps: step counts n to sample with; n steps are 2n − 1 network evaluations, or twice as many
            under guidance.
        sigma_max: the σ/α that sampling starts at (published: 80), or the teacher's largest where that is smaller. A
            cosine schedule goes on to several hundred, where Heun's slopes are of no use to a step as long as that.
    """

    method: Literal["heun"] = "heun"
    num_inference_steps: StepCounts = (1, 2, 4, 8, 25)
    sigma_max: float = Field(80.0, ge=1)


class Heun(TeacherSampler):
    """Deterministic Heun steps of d(x/α)/d(σ/α) = (x/α − x̂) / (σ/α), uniform in (σ/α)^(1/7) down to t_min.

    A step takes two estimates, except the last one, from t_min to the clean picture, which is Euler's. The network is
    told the exact time of each σ/α, between its timesteps.
    """

    name = "heun"
    title = "Heun (EDM)"
    Settings = HeunSettings
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: HeunSettings

    @property
    def spacing(self) -> str:
        return "karras"

    def estimates(self, num_inference_steps: int) -> int:
        return 2 * num_inference_steps - 1

    def steps(self, estimates: int) -> int:
        return (estimates + 1) // 2

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        from diffusers import HeunDiscreteScheduler

        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps, "karras", self.settings.sigma_max)
        scheduler = scheduler_on(HeunDiscreteScheduler, ratios, clip_sample=False)
        return sample_with(scheduler, denoiser, noise, times, condition)
