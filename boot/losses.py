"""The losses of BOOT (sec. 3.2 and 3.3)."""

from dataclasses import dataclass
from typing import Literal

import torch

from boot.signal_ode import Solver, bootstrap_target, noisy_state, signal_gain, signal_of
from diffusion.conditions import Condition, first_of, join
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import Distance, squared_l2
from diffusion.student import NoiseStudent

Weight = Literal["inverse_square", "inverse", "uniform"]
Target = Literal["signal", "state"]


@dataclass(frozen=True)
class BootObjective:
    """What is compared, how, and with which weight.

    Attributes:
        solver: of the teacher's Signal-ODE over one step.
        weight: of the bootstrap loss, a power of the step's gain 1 − k. "inverse_square" 1/(1 − k)² makes the residual
            of the ODE itself the loss, so that it does not depend on the step; "inverse" 1/(1 − k); "uniform" 1.
        target: "signal": the student is y_t. "state" (the paper's ablation): it is x_t = α_t y_t + σ_t ε, noise
            included, and its sample at t_min is x itself but for σ(t_min).
        distance: between a batch of outputs and a batch of targets.
    """

    solver: Solver = "heun"
    weight: Weight = "inverse_square"
    target: Target = "signal"
    distance: Distance = squared_l2


@dataclass(frozen=True)
class BootLosses:
    """The two terms, scalars; the training loss is ``bootstrap + β boundary``."""

    bootstrap: torch.Tensor
    boundary: torch.Tensor


def boot_losses(
    student: NoiseStudent,
    teacher: Denoiser,
    noise: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
    objective: BootObjective,
    boundary_count: int,
    source: NoiseStudent | None = None,
    condition: Condition = None,
) -> BootLosses:
    """The bootstrap loss and the boundary loss on one batch of noise; no picture of any data set enters.

    Bootstrap: E w(1 − k) d(g_θ(ε, s), sg[target]), the target being one solver step of the teacher from sg[g_θ(ε, t)].
    Boundary: E d(g_θ(ε, t_max), f_φ(x_M, t_max)), the start of the trajectory. Both are means over batch and pixels.

    The evaluations at s and t_max share one batch, and so do the teacher's at t and t_max; a step has
    N + B student evaluations with gradient and N without, and N + B (Euler) or 2N + B (second order) estimates of the
    teacher, B being ``boundary_count``.

    Args:
        noise: ε, shape (N, C, H, W).
        s, t: times, s < t, shape (N,).
        boundary_count: how many of the N noises also enter the boundary loss.
        source: what is bootstrapped from, a student with the averaged weights; the student itself if None.
        condition: of all N pictures, tensors of length N.
    """
    schedule = student.schedule
    at_start = torch.full((boundary_count,), schedule.t_max, dtype=torch.float64, device=t.device)
    start_noise = noise[:boundary_count]
    at_both = join(condition, first_of(condition, boundary_count))
    with torch.no_grad():
        output_t = (source or student)(noise, t, condition)
        y_t = output_t if objective.target == "signal" else signal_of(schedule, output_t, noise, t)
        states = torch.cat([noisy_state(schedule, y_t, noise, t), schedule.start(start_noise)])
        estimates = teacher(states, torch.cat([t, at_start]), at_both)
        estimate_t, target_start = estimates[: len(noise)], estimates[len(noise) :]
        target = bootstrap_target(teacher, y_t, estimate_t, noise, s, t, objective.solver, condition)
        if objective.target == "state":
            target = noisy_state(schedule, target, noise, s)
            target_start = noisy_state(schedule, target_start, start_noise, at_start)
    output = student(torch.cat([noise, start_noise]), torch.cat([s, at_start]), at_both)
    distances = objective.distance(output, torch.cat([target, target_start]))
    bootstrap, boundary = distances[: len(noise)], distances[len(noise) :]
    power = {"inverse_square": 2, "inverse": 1, "uniform": 0}[objective.weight]
    weight = (signal_gain(schedule, s, t) ** -power).to(bootstrap.device, bootstrap.dtype)
    return BootLosses(
        bootstrap=(weight * bootstrap).mean(),
        # An empty mean is NaN; β = 0 then asks for no boundary sample at all.
        boundary=boundary.mean() if boundary_count else bootstrap.new_zeros(()),
    )
