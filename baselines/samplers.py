"""Samplers of the teacher without any training: DDIM in closed form, the others by `diffusers`' schedulers."""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.sampler import TeacherSampler, TeacherSamplerSettings
from diffusion.noise import noise_generators
from diffusion.runtime.settings import StepCounts
from diffusion.samplers import Spacing, sample_with, sampling_grid, scheduler_on
from diffusion.solvers import ddim_sample


class SchedulerSampler(TeacherSampler):
    """A scheduler of `diffusers` on the exact grid of :func:`diffusion.samplers.sampling_grid`.

    Attributes:
        scheduler: the name of its class; options: arguments of that.
    """

    scheduler: ClassVar[str]
    options: ClassVar[dict[str, Any]]
    TINY = {"num_inference_steps": [1, 3]}  # noqa: RUF012

    settings: Any

    def step_options(self, noise: torch.Tensor) -> dict[str, Any]:
        """What a step is given beside estimate and state."""
        return {} if self.follows_teacher else {"generator": noise_generators(noise)}

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        import diffusers

        largest = getattr(self.settings, "sigma_max", math.inf)
        times, ratios = sampling_grid(denoiser.schedule, num_inference_steps, self.spacing, largest)
        scheduler = scheduler_on(getattr(diffusers, self.scheduler), ratios, **self.options)
        return sample_with(scheduler, denoiser, noise, times, condition, **self.step_options(noise))


class DdimSettings(TeacherSamplerSettings):
    """Settings of DDIM.

    Attributes:
        eta: η of the paper's eq. 16, the share of the posterior's deviation that is drawn anew in every step: 0 is
            deterministic, 1 is DDPM's ancestral sampling.
    """

    method: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)


class Ddim(SchedulerSampler):
    """DDIM (Song et al. 2021, arXiv 2010.02502), trailing time spacing; in closed form for η = 0."""

    name = "ddim"
    title = "DDIM"
    Settings = DdimSettings
    scheduler, options = "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}

    @property
    def follows_teacher(self) -> bool:  # type: ignore[override]
        return self.settings.eta == 0

    def step_options(self, noise: torch.Tensor) -> dict[str, Any]:
        return {**super().step_options(noise), "eta": self.settings.eta}

    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        if self.settings.eta == 0:
            return ddim_sample(denoiser, noise, num_inference_steps, condition)
        return super().draw(denoiser, noise, num_inference_steps, condition)


class DdpmSettings(TeacherSamplerSettings):
    """Settings of DDPM."""

    method: Literal["ddpm"] = "ddpm"
    num_inference_steps: StepCounts = (1, 2, 4, 8, 16, 50, 250)


class Ddpm(SchedulerSampler):
    """DDPM (Ho et al. 2020, arXiv 2006.11239): draws from the posterior q(x_s | x_t, x̂) of the chain that has only the
    steps taken, trailing time spacing.

    Its variance is the posterior's own, β̃ = (1 − ᾱ_s)/(1 − ᾱ_t) (1 − ᾱ_t/ᾱ_s) (eq. 7 of the paper; `diffusers`'
    "fixed_small"), not the larger β = 1 − ᾱ_t/ᾱ_s, which is too noisy for few steps. This is DDIM with η = 1.
    """

    name = "ddpm"
    title = "DDPM"
    Settings = DdpmSettings
    follows_teacher = False
    scheduler, options = "DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}


class DpmSolverPpSettings(TeacherSamplerSettings):
    """Settings of DPM-Solver++(2M).

    Attributes:
        spacing: how the steps are spread, see :func:`diffusion.samplers.sampling_grid`.
    """

    method: Literal["dpm_solver_pp"] = "dpm_solver_pp"
    spacing: Spacing = "trailing"


class DpmSolverPp(SchedulerSampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): the multistep solver of second order in x̂; a
    step uses the last step's estimate. The first step and the last, to the clean picture, are DDIM's."""

    name = "dpm_solver_pp"
    title = "DPM-Solver++(2M)"
    Settings = DpmSolverPpSettings
    scheduler = "DPMSolverMultistepScheduler"
    options = {  # noqa: RUF012
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
    }


class UniPcSettings(TeacherSamplerSettings):
    """Settings of UniPC.

    Attributes:
        solver_order: p of UniP-p and UniC-p; the corrector costs no evaluation.
        spacing: how the steps are spread, see :func:`diffusion.samplers.sampling_grid`.
    """

    method: Literal["unipc"] = "unipc"
    solver_order: Literal[1, 2, 3] = 2
    spacing: Spacing = "trailing"


class UniPc(SchedulerSampler):
    """UniPC (Zhao et al. 2023, arXiv 2302.04867), the multistep predictor-corrector for x̂: the estimate after a step
    corrects that step, and predicts the next.

    The order grows from 1 at the start and falls to 1 at the end, where the step to the clean picture is DDIM's. B(h)
    is the paper's B₂; with its B₁ = h `diffusers` multiplies infinity by zero in that last step.
    """

    name = "unipc"
    title = "UniPC"
    Settings = UniPcSettings
    scheduler = "UniPCMultistepScheduler"

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        return {"solver_order": self.settings.solver_order, "solver_type": "bh2", "final_sigmas_type": "zero"}


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


class Heun(SchedulerSampler):
    """Heun steps (Karras et al. 2022, arXiv 2206.00364, algorithm 1) of d(x/α)/d(σ/α) = (x/α − x̂) / (σ/α), uniform in
    (σ/α)^(1/7) down to t_min.

    A step takes two estimates, except the last one, from t_min to the clean picture, which is Euler's. The network is
    told the exact time of each σ/α, between its timesteps.
    """

    name = "heun"
    title = "Heun (EDM)"
    Settings = HeunSettings
    spacing = "karras"
    scheduler, options = "HeunDiscreteScheduler", {"clip_sample": False}

    def estimates(self, num_inference_steps: int) -> int:
        return 2 * num_inference_steps - 1

    def steps(self, estimates: int) -> int:
        return (estimates + 1) // 2
