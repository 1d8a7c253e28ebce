"""The Signal-ODE (BOOT, sec. 3.1) and its exact one-step solutions.

Along a DDIM trajectory that started from noise ε, the signal is y_t = (x_t − σ_t ε) / α_t. It relaxes towards the
teacher's estimate as t falls: dy/dλ = y − f_φ(x_t, t), with λ = log(σ/α) growing with t. Holding f over a step from
t down to s gives y_s = k y_t + (1 − k) f with k = e^{λ_s − λ_t}: this exponential form is DDIM itself, exact for
constant f, and finite where λ' blows up. The paper's Euler form (eq. 8) agrees with it to first order.
"""

from typing import Literal

import torch

from diffusion.denoiser import Condition, Denoiser
from diffusion.schedule import Schedule, per_sample

Solver = Literal["euler", "heun"]


def signal_decay(schedule: Schedule, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """k = e^{λ_s − λ_t} ∈ (0, 1) for s < t; shape of ``t``, float64."""
    return torch.exp(schedule.log_noise_to_signal(s) - schedule.log_noise_to_signal(t))


def signal_gain(schedule: Schedule, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """1 − k, without the cancellation that small steps would have; shape of ``t``, float64."""
    return -torch.expm1(schedule.log_noise_to_signal(s) - schedule.log_noise_to_signal(t))


def noisy_state(schedule: Schedule, y: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = α_t y_t + σ_t ε, shape (N, C, H, W): the state of the trajectory that has the signal y_t."""
    return per_sample(schedule.alpha(t), y) * y + per_sample(schedule.sigma(t), y) * noise


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
        solver: "euler" holds f_t over the step (one DDIM step); "heun" averages f_t with f at the Euler-predicted
            state at s, which costs one more evaluation and is of second order.
    """
    k = per_sample(signal_decay(teacher.schedule, s, t), y_t)
    gain = per_sample(signal_gain(teacher.schedule, s, t), y_t)
    y_s = k * y_t + gain * estimate_t
    if solver == "heun":
        estimate_s = teacher(noisy_state(teacher.schedule, y_s, noise, s), s, condition)
        y_s = k * y_t + gain * 0.5 * (estimate_t + estimate_s)
    return y_s
