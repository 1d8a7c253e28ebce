"""DPM-Solver++(2M) on the teacher (Lu et al. 2022, arXiv 2211.01095): no training at all."""

from typing import Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.samplers import Spacing, sample_with, sampling_grid, scheduler_on


class DpmSolverPpSettings(TeacherSamplerSettings):
    """Settings of DPM-Solver++(2M).

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step, or two under guidance.
        spacing: how the steps are spread, see :func:`diffusion.samplers.sampling_grid`.
    """

    method: Literal["dpm_solver_pp"] = "dpm_solver_pp"
    spacing: Spacing = "trailing"


class DpmSolverPp(TeacherSampler):
    """The multistep solver of second order in x̂ (algorithm 2 of the paper); a step uses the last step's estimate.

    The first step and the last, to the clean picture, are of first order, i.e. DDIM's.
    """

    name = "dpm_solver_pp"
    title = "DPM-Solver++(2M)"
    Settings = DpmSolverPpSettings
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: DpmSolverPpSettings

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        from diffusers import DPMSolverMultistepScheduler

        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps, self.settings.spacing)
        scheduler = scheduler_on(
            DPMSolverMultistepScheduler,
            ratios,
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
        return sample_with(scheduler, denoiser, noise, times, condition)
