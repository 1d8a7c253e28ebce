"""UniPC on the teacher (Zhao et al. 2023, arXiv 2302.04867): no training at all."""

from typing import Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.samplers import Spacing, sample_with, sampling_grid, scheduler_on


class UniPcSettings(TeacherSamplerSettings):
    """Settings of UniPC.

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step, or two under guidance.
        solver_order: p of UniP-p and UniC-p; the corrector costs no evaluation.
        spacing: how the steps are spread, see :func:`diffusion.samplers.sampling_grid`.
    """

    method: Literal["unipc"] = "unipc"
    solver_order: Literal[1, 2, 3] = 2
    spacing: Spacing = "trailing"


class UniPc(TeacherSampler):
    """The multistep predictor-corrector for x̂; the estimate after a step corrects that step, and predicts the next.

    The order grows from 1 at the start and falls to 1 at the end, where the step to the clean picture is DDIM's. B(h)
    is the paper's B₂; with its B₁ = h `diffusers` multiplies infinity by zero in that last step.
    """

    name = "unipc"
    title = "UniPC"
    Settings = UniPcSettings
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: UniPcSettings

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        from diffusers import UniPCMultistepScheduler

        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps, self.settings.spacing)
        scheduler = scheduler_on(
            UniPCMultistepScheduler,
            ratios,
            solver_order=self.settings.solver_order,
            solver_type="bh2",
            final_sigmas_type="zero",
        )
        return sample_with(scheduler, denoiser, noise, times, condition)
