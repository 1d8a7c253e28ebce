"""Consistency functions of Song et al. 2023 (arXiv 2303.01469), for networks and schedules of every kind."""

from typing import Literal

import torch

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.level import Coefficient, Level, Times
from diffusion.schedule import EdmSchedule, Schedule

Boundary = Literal["edm", "lcm"]


def boundary_coefficients(
    schedule: Schedule, t: Level, deviation: float = 0.5, boundary: Boundary = "edm"
) -> tuple[Coefficient, Coefficient]:
    """(a, r) of f = a x_t + r x̂, the consistency function in terms of an estimate x̂.

    "edm": published for EDM's networks F (appendix C): f = c_skip z + c_out F with c_skip = σ_d²/((τ − τ_1)² + σ_d²),
    c_out = σ_d (τ − τ_1)/√(τ² + σ_d²), which makes f(z, τ_1) = z. Their estimate is x̂ = σ_d²/(τ² + σ_d²) z +
    σ_d τ/√(τ² + σ_d²) F, and F put into f gives r = (τ − τ_1)/τ and, with u = τ − τ_1,

        α a = σ_d² τ_1 (τ² + τ u + u² + σ_d²) / (τ (u² + σ_d²) (τ² + σ_d²)).

    The difference of the two skip coefficients is taken out in this form, so it loses no digits at large τ. At first f
    thus is almost the teacher's x̂, whatever the network predicts.

    "lcm" (Luo et al. 2023, arXiv 2310.04378, appendix C; the scaling of their code): with n what the network is told,
    counted from t_min, and u = 10 n, a = σ_d²/(u² + σ_d²) and r = u/√(u² + σ_d²), σ_d = 0.5. So f = x_t at t_min, and
    but for 1e-3 x̂ from the next timestep on.

    Args:
        deviation: σ_d of the states, where neither the schedule nor the boundary comes with its own.
    """
    if boundary == "lcm":
        first = schedule.network_time(schedule.at(schedule.t_min, t.time.device).time)
        scaled = 10 * (schedule.network_time(t.time) - first)
        total = scaled.square() + 0.5**2
        return Coefficient(0.5**2 / total), Coefficient(scaled / total.sqrt())
    end = schedule.at(schedule.t_min, t.time.device)
    tau, least = t.sigma / t.alpha, end.sigma / end.alpha
    variance = (schedule.sigma_data if isinstance(schedule, EdmSchedule) else deviation) ** 2
    rest = tau - least
    both = (rest**2 + variance) * (tau**2 + variance)
    skip = variance * least * (tau**2 + tau * rest + rest**2 + variance) / (tau * both)
    return skip / t.alpha, rest / tau


def consistency_function(
    student: Denoiser, x_t: torch.Tensor, t: Times, condition: Condition = None, boundary: Boundary = "edm"
) -> torch.Tensor:
    """f_θ: the student's answer to where the trajectory through x_t ends, unclipped.

    At t_min it is x_t/α_t ("edm") or x_t ("lcm").

    Args:
        x_t: noisy pictures, shape (N, C, H, W).
        t: their times, with a signal left (α_t > 0), shape (N,) or ().
    """
    at = student.schedule.at(t)
    a, r = boundary_coefficients(student.schedule, at, student.space.deviation, boundary)
    return a * x_t + r * student.estimate(x_t, at, condition)
