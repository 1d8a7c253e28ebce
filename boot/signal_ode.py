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
from diffusion.level import Coefficient, Level, decay, gain
from diffusion.schedule import Schedule

Solver = Literal["euler", "heun", "etd2", "midpoint"]


def signal_step(
    teacher: Denoiser,
    y: torch.Tensor,
    noise: torch.Tensor,
    s: Level,
    t: Level,
    solver: Solver,
    condition: Condition = None,
    f_t: torch.Tensor | None = None,
) -> torch.Tensor:
    """y_s from y_t with one step of the teacher's Signal-ODE.

    Args:
        y: the signal at t; noise: ε; shape (N, C, H, W).
        s, t: levels, s below t.
        solver: see the module; all but "euler" cost a further estimate of the teacher and are of second order.
        f_t: f_φ(α_t y_t + σ_t ε, t), where it is known already.

    Returns:
        shape (N, C, H, W).
    """
    k, rest = decay(s, t), gain(s, t)
    if f_t is None:
        f_t = teacher(t.noised(y, noise), t, condition)
    if solver == "midpoint":
        m = _middle(teacher.schedule, s, t)
        y_m = decay(m, t) * y + gain(m, t) * f_t
        return k * y + rest * teacher(m.noised(y_m, noise), m, condition)
    y_s = k * y + rest * f_t
    if solver == "euler":
        return y_s
    f_s = teacher(s.noised(y_s, noise), s, condition)
    b = rest / 2 if solver == "heun" else _etd2_weight(k, rest)
    return k * y + (rest - b) * f_t + b * f_s


def _middle(schedule: Schedule, s: Level, t: Level) -> Level:
    lambda_s, lambda_t = s.log_noise_to_signal, t.log_noise_to_signal
    # Where the signal vanishes at t, λ is infinite and has no middle; the time has.
    in_lambda, in_time = schedule.time_of((lambda_s + lambda_t) / 2), (s.time + t.time) / 2
    return schedule.at(torch.where(torch.isfinite(lambda_t), in_lambda, in_time))


def _etd2_weight(k: Coefficient, gain: Coefficient) -> Coefficient:
    """b = 1 − (1 − k)/h on f_s, with h = −log k; 1 − k − b is left for f_t."""
    h = -torch.log(k.value)
    # The difference cancels for short steps: h/2 − h²/6 + h³/24 there.
    weight = torch.where(h < 1e-3, h / 2 - h.square() / 6 + h**3 / 24, 1 - gain.value / h)
    # Nothing is linear in λ over an infinite step.
    return Coefficient(torch.where(torch.isinf(h), gain.value / 2, weight))
