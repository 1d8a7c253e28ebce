"""The losses of BOOT (sec. 3.2 and 3.3)."""

from typing import Literal

import torch

from boot.signal_ode import Solver, signal_step
from boot.state_student import StateStudent
from diffusion.conditions import Condition, first_of, join
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import Distance, squared_l2
from diffusion.level import gain
from diffusion.student import NoiseStudent

Weight = Literal["inverse_square", "inverse", "uniform"]
_POWER = {"inverse_square": -2, "inverse": -1, "uniform": 0}


def boot_losses(
    student: NoiseStudent,
    teacher: Denoiser,
    noise: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
    boundary_count: int,
    solver: Solver = "heun",
    weight: Weight = "inverse_square",
    distance: Distance = squared_l2,
    source: NoiseStudent | None = None,
    condition: Condition = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bootstrap loss and the boundary loss on one batch of noise, scalars; no picture of any data set enters.

    Bootstrap: E w(1 − k) d(g_θ(ε, s), sg[target]), the target being one solver step of the teacher from sg[g_θ(ε, t)].
    Boundary: E d(g_θ(ε, t_max), f_φ(x_M, t_max)), the start of the trajectory. Both are means over batch and pixels.

    The evaluations at s and t_max share one batch, and so do the teacher's at t and t_max; a step has
    N + B student evaluations with gradient and N without, and N + B (Euler) or 2N + B (second order) estimates of the
    teacher, B being ``boundary_count``.

    Args:
        noise: ε, shape (N, C, H, W).
        s, t: times, s < t, shape (N,).
        boundary_count: how many of the N noises also enter the boundary loss.
        solver: of the teacher's Signal-ODE over one step.
        weight: w, a power of the step's gain: "inverse_square" 1/(1 − k)² makes the residual of the ODE itself the
            loss, so that it does not depend on the step; "inverse" 1/(1 − k); "uniform" 1.
        distance: d.
        source: what is bootstrapped from, a student with the averaged weights; the student itself if None.
        condition: of all N pictures, tensors of length N.
    """
    at_s, at_t = student.schedule.at(s), student.schedule.at(t)
    count, first = len(noise), noise[:boundary_count]
    t_max = torch.full((boundary_count,), student.schedule.t_max, dtype=torch.float64, device=t.device)
    both = join(condition, first_of(condition, boundary_count))
    with torch.no_grad():
        y_t = (source or student)(noise, t, condition)
        states = torch.cat([at_t.noised(y_t, noise), student.schedule.start(first)])
        f_t, start = teacher(states, torch.cat([t, t_max]), both).split([count, boundary_count])
        target = signal_step(teacher, y_t, noise, at_s, at_t, solver, condition, f_t)
    answers = student(torch.cat([noise, first]), torch.cat([s, t_max]), both)
    distances = distance(answers, torch.cat([target, start]))
    if isinstance(student, StateStudent):
        distances = student.schedule.at(torch.cat([s, t_max])).alpha ** 2 * distances
    bootstrap, boundary = distances.split([count, boundary_count])
    bootstrap = gain(at_s, at_t) ** _POWER[weight] * bootstrap
    # An empty mean is NaN; β = 0 then asks for no boundary sample at all.
    return bootstrap.mean(), boundary.mean() if boundary_count else bootstrap.new_zeros(())
