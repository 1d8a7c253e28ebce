"""DDIM in closed form, on the same time grid as `diffusers`' trailing spacing."""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.level import Coefficient, Level
from diffusion.runtime.errors import UserError
from diffusion.schedule import Schedule

Solver = Literal["ddim", "heun"]


def ddim_step(x_t: torch.Tensor, x0: torch.Tensor, t: Level, s: Level) -> torch.Tensor:
    """x_s = (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) x̂ (Song et al. 2021, eq. 12 with η = 0); σ_s = 0 gives x̂ itself.

    Args:
        x_t, x0: noisy pictures and the estimate x̂ of the clean ones, shape (N, C, H, W).
    """
    ratio = s.sigma / t.sigma
    return ratio * x_t + (s.alpha - t.alpha * ratio) * x0


def heun_step(
    x_t: torch.Tensor, x0_t: torch.Tensor, x_s: torch.Tensor, x0_s: torch.Tensor, t: Level, s: Level
) -> torch.Tensor:
    """x_s by Heun's step of dz/dτ = ε̂ with z = x/α and τ = σ/α (Karras et al. 2022, alg. 1), ε̂ averaged over its ends.

    Args:
        x_t, x0_t: noisy images and the estimate of the clean ones, shape (N, C, H, W).
        x_s, x0_s: where Euler's step, :func:`ddim_step`, leads with that, and the estimate there.
        t, s: their levels; σ_s and α_t > 0.
    """
    noise_t, noise_s = (x_t - t.alpha * x0_t) / t.sigma, (x_s - s.alpha * x0_s) / s.sigma
    # Euler's step has taken ε̂_t all the way; half the difference, α_s (τ_s − τ_t) (ε̂_s − ε̂_t)/2, corrects it.
    return x_s + (s.sigma - s.alpha * t.sigma / t.alpha) / 2 * (noise_s - noise_t)


def solver_step(
    teacher: Denoiser, x_t: torch.Tensor, t: Level, s: Level, solver: Solver, condition: Condition = None
) -> torch.Tensor:
    """x_s on the teacher's trajectory through x_t, by one step of its ODE dz/dτ = (z − x̂)/τ = ε̂ with z = x/α, τ = σ/α.

    Args:
        x_t: shape (N, C, H, W).
        solver: "ddim", Euler's step; or "heun", which takes one more estimate. Steps to the clean picture are DDIM's.
    """
    estimate = teacher(x_t, t, condition)
    x_s = ddim_step(x_t, estimate, t, s)
    if solver == "ddim":
        return x_s
    corrected = heun_step(x_t, estimate, x_s, teacher(x_s, s, condition), t, s)
    return torch.where(s.sigma.like(x_t) > 0, corrected, x_s)


def ddim_target(x_t: torch.Tensor, x_s: torch.Tensor, t: Level, s: Level) -> torch.Tensor:
    """The estimate x̂ with which one DDIM step leads from x_t to x_s: x̂ = (x_s − (σ_s/σ_t) x_t) / (α_s − α_t σ_s/σ_t).

    The inverse of :func:`ddim_step`, which several distillers regress on; where σ_s = 0 (and α_s = 1) it is x_s itself.

    Args:
        x_t, x_s: shape (N, C, H, W), s before t.
    """
    ratio = s.sigma / t.sigma
    return (x_s - ratio * x_t) / (s.alpha - t.alpha * ratio)


def trailing_timesteps(num_timesteps: int, num_inference_steps: int) -> np.ndarray:
    """The timesteps at which a sampler with N steps evaluates the network, largest first; int64, shape (N,).

    `diffusers`' spacing "trailing": the first is num_timesteps − 1, i.e. t_max.

    Raises:
        UserError: more steps than timesteps, or fewer than one.
    """
    if not 1 <= num_inference_steps <= num_timesteps:
        raise UserError(f"num_inference_steps: found {num_inference_steps}, expected 1 to {num_timesteps}.")
    spacing = num_timesteps / num_inference_steps
    return np.round(np.arange(num_timesteps, 0, -spacing)).astype(np.int64)[:num_inference_steps] - 1


def sampling_times(schedule: Schedule, num_inference_steps: int) -> torch.Tensor:
    """The times of :func:`trailing_timesteps`, decreasing from t_max; float64, shape (N,)."""
    return schedule.time(torch.from_numpy(trailing_timesteps(schedule.num_timesteps, num_inference_steps)))


def karras_levels(
    first: float | torch.Tensor, last: float | torch.Tensor, share: torch.Tensor, rho: float
) -> torch.Tensor:
    """λ = log σ/α on the way from one level to another, even in (σ/α)^(1/ρ) (Karras et al. 2022, eq. 5).

    Args:
        first, last: λ of the two ends.
        share: 0 at the first, 1 at the last, any shape.

    Returns:
        float64, the shape of ``share``.
    """
    ends = torch.as_tensor([float(first), float(last)], dtype=torch.float64, device=share.device)
    start, end = torch.exp(ends / rho)
    return rho * torch.log(torch.lerp(start, end, share.double()))


def grid_level(schedule: Schedule, step: torch.Tensor, num_steps: int) -> Level:
    """The level at point ``step`` of the sampler's grid with ``num_steps`` steps.

    Point num_steps is t_max, point 0 the clean picture (α = 1, σ = 0, where no network is ever evaluated).

    Args:
        step: integers or halves in [0, num_steps], shape (N,).
    """
    timestep = step.double() * (schedule.num_timesteps / num_steps) - 1
    at, clean = schedule.at(schedule.time(timestep.clamp(min=0))), timestep < 0
    alpha, sigma = torch.where(clean, 1.0, at.alpha.value), torch.where(clean, 0.0, at.sigma.value)
    return Level(at.time, Coefficient(alpha), Coefficient(sigma))


def sampling_levels(schedule: Schedule, times: torch.Tensor) -> list[Level]:
    """The level of each of the ``times``, shape (N,), and the clean picture's: every sampler's last step goes there."""
    one, zero = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return [*map(schedule.at, times), Level(times[-1], Coefficient(one), Coefficient(zero))]


def ddim_trajectory(
    denoiser: Denoiser, noise: torch.Tensor, times: torch.Tensor, condition: Condition = None
) -> Iterator[torch.Tensor]:
    """The states x after each DDIM step from ``noise`` over all ``times`` to the clean picture.

    Args:
        noise: ε, shape (N, C, H, W); the trajectory starts in the schedule's state of t_max for it.
        times: decreasing from t_max, shape (number of steps,).

    Yields:
        tensors of shape (N, C, H, W), one a step, one estimate of the denoiser each.
    """
    x = denoiser.schedule.start(noise)
    for t, s in itertools.pairwise(sampling_levels(denoiser.schedule, times)):
        x = ddim_step(x, denoiser(x, t, condition), t, s)
        yield x


def ddim_sample(
    denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
) -> torch.Tensor:
    """Deterministic DDIM (η = 0) from ``noise``, shape (N, C, H, W), with ``num_inference_steps`` estimates."""
    x = noise
    times = sampling_times(denoiser.schedule, num_inference_steps)
    for x in ddim_trajectory(denoiser, noise, times, condition):  # noqa: B007 - the last state is the sample
        pass
    return x
