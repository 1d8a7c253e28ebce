"""DDIM in closed form, on the same time grid as `diffusers`' trailing spacing."""

from collections.abc import Iterator

import numpy as np
import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.runtime.errors import UserError
from diffusion.schedule import Schedule, per_sample


def ddim_step(
    x_t: torch.Tensor,
    x0: torch.Tensor,
    alpha_t: torch.Tensor,
    sigma_t: torch.Tensor,
    alpha_s: torch.Tensor,
    sigma_s: torch.Tensor,
) -> torch.Tensor:
    """x_s = (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) x̂ (Song et al. 2021, eq. 12 with η = 0).

    Args:
        x_t, x0: noisy pictures and the estimate x̂ of the clean ones, shape (N, C, H, W).
        alpha_t … sigma_s: schedule values, shape (N,) or (); σ_s = 0 gives x̂ itself (with α_s = 1).
    """
    ratio = sigma_s / sigma_t
    return per_sample(ratio, x_t) * x_t + per_sample(alpha_s - alpha_t * ratio, x_t) * x0


def heun_step(
    x_t: torch.Tensor,
    x0_t: torch.Tensor,
    x_s: torch.Tensor,
    x0_s: torch.Tensor,
    alpha_t: torch.Tensor,
    sigma_t: torch.Tensor,
    alpha_s: torch.Tensor,
    sigma_s: torch.Tensor,
) -> torch.Tensor:
    """x_s by Heun's step of dz/dτ = ε̂ with z = x/α and τ = σ/α (Karras et al. 2022, alg. 1), ε̂ averaged over its ends.

    Args:
        x_t, x0_t: noisy images and the estimate of the clean ones, shape (N, C, H, W).
        x_s, x0_s: where Euler's step, :func:`ddim_step`, leads with that, and the estimate there.
        alpha_t … sigma_s: schedule values, shape (N,) or (); σ_s and α_t > 0.
    """
    noise_t = (x_t - per_sample(alpha_t, x_t) * x0_t) / per_sample(sigma_t, x_t)
    noise_s = (x_s - per_sample(alpha_s, x_s) * x0_s) / per_sample(sigma_s, x_s)
    # Euler's step has taken ε̂_t all the way; half the difference, α_s (τ_s − τ_t) (ε̂_s − ε̂_t)/2, corrects it.
    return x_s + per_sample((sigma_s - alpha_s * sigma_t / alpha_t) / 2, x_s) * (noise_s - noise_t)


def ddim_target(
    x_t: torch.Tensor,
    x_s: torch.Tensor,
    alpha_t: torch.Tensor,
    sigma_t: torch.Tensor,
    alpha_s: torch.Tensor,
    sigma_s: torch.Tensor,
) -> torch.Tensor:
    """The estimate x̂ with which one DDIM step leads from x_t to x_s: x̂ = (x_s − (σ_s/σ_t) x_t) / (α_s − α_t σ_s/σ_t).

    The inverse of :func:`ddim_step`, which several distillers regress on; where σ_s = 0 (and α_s = 1) it is x_s itself.

    Args:
        x_t, x_s: shape (N, C, H, W).
        alpha_t … sigma_s: schedule values, shape (N,) or (); s before t.
    """
    ratio = sigma_s / sigma_t
    return (x_s - per_sample(ratio, x_t) * x_t) / per_sample(alpha_s - alpha_t * ratio, x_t)


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


def grid_noise_level(
    schedule: Schedule, step: torch.Tensor, num_steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Time, α and σ at point ``step`` of the sampler's grid with ``num_steps`` steps.

    Point num_steps is t_max, point 0 the clean picture (α = 1, σ = 0, where no network is ever evaluated).

    Args:
        step: integers or halves in [0, num_steps], shape (N,).

    Returns:
        three float64 tensors of shape (N,).
    """
    timestep = step.double() * (schedule.num_timesteps / num_steps) - 1
    t = schedule.time(timestep.clamp(min=0))
    clean = timestep < 0
    return t, torch.where(clean, 1.0, schedule.alpha(t)), torch.where(clean, 0.0, schedule.sigma(t))


def noise_levels(schedule: Schedule, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(α, σ) at ``times`` followed by (1, 0): every sampler's last step goes to the clean picture.

    Returns:
        two float64 tensors of shape (N + 1,).
    """
    one, zero = times.new_ones(1), times.new_zeros(1)
    return torch.cat([schedule.alpha(times), one]), torch.cat([schedule.sigma(times), zero])


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
    alpha, sigma = noise_levels(denoiser.schedule, times)
    x = denoiser.schedule.start(noise)
    for i, t in enumerate(times):
        x = ddim_step(x, denoiser(x, t, condition), alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
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
