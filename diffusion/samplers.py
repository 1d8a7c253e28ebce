"""Sampling a denoiser through any `diffusers` scheduler, at exact times and noise levels.

A `diffusers` scheduler knows a chain of discrete timesteps, and rounds the steps it takes to them. Here it is given the
N steps themselves as its whole chain (N training timesteps, N inference steps), so that nothing is rounded, whatever
the number of steps, the schedule or the spacing. It is fed the guided and bounded x̂ (``prediction_type="sample"``)
and does no clipping of its own.

Every scheduler works on the variance-preserving state z = x / √(α² + σ²), which depends on the noise-to-signal ratio
σ/α alone. That is x itself for variance-preserving schedules, and x / √(1 + σ²) for EDM's, where α = 1: the two obey
the same equations, so that one code serves both exactly.
"""

import math
from typing import Any, Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.level import Coefficient
from diffusion.schedule import Schedule
from diffusion.solvers import karras_levels, sampling_times

# How the steps are spread; the step after the last ends in the clean picture.
Spacing = Literal["trailing", "karras", "log_snr"]

_RHO = 7.0  # Karras et al. 2022
# What `diffusers` puts in the place of a terminal signal-to-noise ratio of zero: ᾱ = 2⁻²⁴, i.e. σ/α = 2¹².
_INSTEAD_OF_INFINITY = 2.0**12


def sampling_grid(
    schedule: Schedule, num_inference_steps: int, spacing: Spacing = "trailing", largest: float = math.inf
) -> tuple[torch.Tensor, torch.Tensor]:
    """The times at which a sampler evaluates the network, and the noise-to-signal ratios σ/α there.

    Args:
        num_inference_steps: N.
        spacing: "trailing" is uniform in the timestep, as everywhere in this suite; "karras" is uniform in
            (σ/α)^(1/7) (Karras et al. 2022, eq. 5), "log_snr" in log(σ/α) (Lu et al. 2022), both from t_max to t_min.
        largest: where the last two start, if their schedule has a larger σ/α.

    Returns:
        two float64 tensors, shape (N,), decreasing; the first time is t_max, unless ``largest`` is before it. A ratio
        that is infinite, as at a terminal signal-to-noise ratio of zero, is replaced by 2¹², or by twice the next one
        if that is more.

    Raises:
        UserError: more trailing steps than timesteps, or fewer than one.
    """
    if spacing == "trailing":
        times = sampling_times(schedule, num_inference_steps)
        return times, _noise_to_signal(schedule, times)
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    share = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
    first, last = _noise_to_signal(schedule, ends)
    capped = bool(first > largest)
    first = first.clamp(max=largest)
    if spacing == "karras":
        levels = karras_levels(first.log(), last.log(), share, _RHO)
    else:
        levels = torch.lerp(first.log(), last.log(), share)
    times = schedule.time_of(levels)
    if not capped:
        times[0] = schedule.t_max  # and not a rounding error, or a replaced infinity, below it
    return times, levels.exp()


def _noise_to_signal(schedule: Schedule, times: torch.Tensor) -> torch.Tensor:
    ratios = schedule.sigma(times) / schedule.alpha(times)
    finite = ratios[ratios.isfinite()]
    largest = max(_INSTEAD_OF_INFINITY, 2 * float(finite.max())) if len(finite) else _INSTEAD_OF_INFINITY
    return torch.where(ratios.isfinite(), ratios, largest)


def scheduler_on(kind: Any, noise_to_signal: torch.Tensor, **options: Any) -> Any:
    """A scheduler whose timesteps N − 1 … 0 are the steps of a grid; the state after the last is clean.

    Args:
        kind: a `diffusers` scheduler class with betas.
        noise_to_signal: σ/α at the steps, decreasing, shape (N,).
        options: further arguments of the class.
    """
    alphas_cumprod = 1 / (1 + noise_to_signal.double().square().flip(0))
    ones = torch.ones(1, dtype=torch.float64)
    scheduler = kind(
        num_train_timesteps=len(alphas_cumprod),
        trained_betas=(1 - alphas_cumprod / torch.cat([ones, alphas_cumprod[:-1]])).tolist(),
        prediction_type="sample",
        timestep_spacing="trailing",
        **options,
    )
    # `diffusers` keeps betas and their products in float32. With few steps a beta is so near to 1 that ᾱ would be wrong
    # by 1 % (one step of the cosine schedule); with many, 1 − ᾱ at the end of sampling by 0.04 % (250 steps).
    scheduler.alphas_cumprod = alphas_cumprod
    scheduler.set_timesteps(len(alphas_cumprod))
    return scheduler


def sample_with(
    scheduler: Any,
    denoiser: Denoiser,
    noise: torch.Tensor,
    times: torch.Tensor,
    condition: Condition = None,
    **step_options: Any,
) -> torch.Tensor:
    """Draws pictures: one estimate of the denoiser for every entry of ``scheduler.timesteps``.

    Args:
        scheduler: new, from :func:`scheduler_on`.
        noise: ε, shape (N, C, H, W); sampling starts in the schedule's state of t_max for it, or at another time in
            σ ε.
        times: of the grid that the scheduler was built on, float64, shape (number of steps,).
        step_options: further arguments of ``scheduler.step``.

    Returns:
        shape (N, C, H, W).
    """
    schedule = denoiser.schedule
    levels = [*map(schedule.at, times)]
    sizes = [(at.alpha**2 + at.sigma**2).sqrt() for at in levels]
    first = scheduler.timesteps[0]
    # Heun's scheduler keeps x/α rather than z; it says so by how it scales the network's input.
    unit = scheduler.scale_model_input(torch.ones((), dtype=torch.float64), first)
    at_end = schedule.t_max - float(times[0]) < 1e-9  # the first time may be a rounding error before t_max
    start = schedule.start(noise) if at_end else levels[0].sigma * noise
    x = start / (sizes[0] * Coefficient(unit))
    for timestep in scheduler.timesteps:
        step = len(times) - 1 - int(timestep)
        x_t = scheduler.scale_model_input(x, timestep) * sizes[step]
        estimate = denoiser(x_t, levels[step], condition)
        x = scheduler.step(estimate, timestep, x, return_dict=False, **step_options)[0]
    return x
