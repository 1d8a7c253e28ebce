"""The Signal-ODE (BOOT, sec. 3.1) and its one-step solvers.

Along a DDIM trajectory that started from noise ε, the signal is y_t = (x_t − σ_t ε) / α_t. It relaxes towards the
teacher's estimate as t falls: dy/dλ = y − f_φ(x_t, t), with λ = log(σ/α) growing with t. Holding f over a step from
t down to s gives y_s = k y_t + (1 − k) f with k = e^{λ_s − λ_t}: this exponential form is DDIM itself, exact for
constant f, and finite where λ' blows up. The paper's Euler form (eq. 8) agrees with it to first order. The solvers of
second order replace the constant f by something better and keep k, which is exact:

- ``heun``: the mean of f at both ends, the lower one at the state that Euler predicts;
- ``etd2``: f linear in λ between the same two, integrated exactly (Cox & Matthews 2002, ETD2RK); as ``heun`` where the
  step starts without any signal, because λ is infinite there;
- ``midpoint``: f at the middle of the step in λ.
"""

from typing import Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.schedule import Schedule, per_sample

Solver = Literal["euler", "heun", "etd2", "midpoint"]


def signal_decay(schedule: Schedule, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """k = e^{λ_s − λ_t} ∈ (0, 1) for s < t; shape of ``t``, float64."""
    return torch.exp(schedule.log_noise_to_signal(s) - schedule.log_noise_to_signal(t))


def signal_gain(schedule: Schedule, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """1 − k, without the cancellation that small steps would have; shape of ``t``, float64."""
    return -torch.expm1(schedule.log_noise_to_signal(s) - schedule.log_noise_to_signal(t))


def noisy_state(schedule: Schedule, y: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = α_t y_t + σ_t ε, shape (N, C, H, W): the state of the trajectory that has the signal y_t."""
    return per_sample(schedule.alpha(t), y) * y + per_sample(schedule.sigma(t), y) * noise


def signal_of(schedule: Schedule, state: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """y_t = (x_t − σ_t ε) / α_t, shape (N, C, H, W): the inverse of :func:`noisy_state`."""
    return (state - per_sample(schedule.sigma(t), state) * noise) / per_sample(schedule.alpha(t), state)


def bootstrap_target(
    teacher: Denoiser,
    y_t: torch.Tensor,
    estimate_t: torch.Tensor,
    noise: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
    solver: Solver,
    condition: Condition = None,
) -> torch.Tensor:
    """y_s from y_t with one step of the teacher's Signal-ODE.

    Args:
        y_t: signal at t, shape (N, C, H, W).
        estimate_t: f_φ(α_t y_t + σ_t ε, t), shape (N, C, H, W).
        noise: ε, shape (N, C, H, W).
        s, t: times with s < t, shape (N,).
        solver: see the module; all but "euler" cost one more evaluation and are of second order.

    Returns:
        shape (N, C, H, W).
    """
    schedule = teacher.schedule
    k, gain = signal_decay(schedule, s, t), signal_gain(schedule, s, t)
    if solver == "midpoint":
        lambda_s, lambda_t = schedule.log_noise_to_signal(s), schedule.log_noise_to_signal(t)
        # Where the signal vanishes at t, λ is infinite and has no middle; the time has.
        middle = torch.where(torch.isfinite(lambda_t), schedule.time_of((lambda_s + lambda_t) / 2), (s + t) / 2)
        y_middle = _relaxed(schedule, y_t, estimate_t, middle, t)
        estimate = teacher(noisy_state(schedule, y_middle, noise, middle), middle, condition)
        return per_sample(k, y_t) * y_t + per_sample(gain, y_t) * estimate
    y_s = _relaxed(schedule, y_t, estimate_t, s, t)
    if solver == "euler":
        return y_s
    estimate_s = teacher(noisy_state(schedule, y_s, noise, s), s, condition)
    weight_s = gain / 2 if solver == "heun" else _etd2_weight(gain, k)
    return (
        per_sample(k, y_t) * y_t
        + per_sample(gain - weight_s, y_t) * estimate_t
        + per_sample(weight_s, y_t) * estimate_s
    )


def _relaxed(
    schedule: Schedule, y_t: torch.Tensor, estimate: torch.Tensor, s: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    k, gain = signal_decay(schedule, s, t), signal_gain(schedule, s, t)
    return per_sample(k, y_t) * y_t + per_sample(gain, y_t) * estimate


def _etd2_weight(gain: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """b = 1 − (1 − k)/h on f_s, with h = −log k; 1 − k − b is left for f_t."""
    h = -torch.log(k)
    # The difference cancels for short steps: h/2 − h²/6 + h³/24 there.
    weight = torch.where(h < 1e-3, h / 2 - h.square() / 6 + h**3 / 24, 1 - gain / h)
    # Nothing is linear in λ over an infinite step.
    return torch.where(torch.isinf(h), gain / 2, weight)
