"""The losses of BOOT (sec. 3.2 and 3.3)."""

from dataclasses import dataclass

import torch

from boot.signal_ode import Solver, bootstrap_target, noisy_state, signal_gain
from boot.student import BootStudent
from diffusion.denoiser import Denoiser
from diffusion.schedule import per_sample


@dataclass(frozen=True)
class BootLosses:
    """The two terms, scalars; the training loss is ``bootstrap + β boundary``."""

    bootstrap: torch.Tensor
    boundary: torch.Tensor


def boot_losses(
    student: BootStudent,
    teacher: Denoiser,
    noise: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
    solver: Solver,
    boundary_count: int,
) -> BootLosses:
    """The bootstrap loss and the boundary loss on one batch of noise; no picture of any data set enters.

    Bootstrap: E ‖g_θ(ε, s) − sg[target]‖² / (1 − k)², the target being one solver step of the teacher from
    sg[g_θ(ε, t)]. The weight turns the error of y_s into the error of the ODE's right-hand side, so that the loss
    does not depend on the step size. Boundary: E ‖g_θ(ε, t_max) − f_φ(ε, t_max)‖², the start of the trajectory.
    Both are means over batch and pixels.

    The evaluations at s and t_max share one batch, and so do the teacher's at t and t_max; a step has
    N + B student evaluations with gradient and N without, and N + B (Euler) or 2N + B (Heun) of the teacher, B being
    ``boundary_count``.

    Args:
        noise: ε, shape (N, C, H, W).
        s, t: times, s < t, shape (N,).
        boundary_count: how many of the N noises also enter the boundary loss.
    """
    schedule = student.schedule
    at_start = torch.full((boundary_count,), schedule.t_max, dtype=torch.float64, device=t.device)
    start_noise = noise[:boundary_count]
    with torch.no_grad():
        y_t = student(noise, t)
        estimates = teacher(torch.cat([noisy_state(schedule, y_t, noise, t), start_noise]), torch.cat([t, at_start]))
        estimate_t, start_signal = estimates[: len(noise)], estimates[len(noise) :]
        target = bootstrap_target(teacher, y_t, estimate_t, noise, s, t, solver)
    output = student(torch.cat([noise, start_noise]), torch.cat([s, at_start]))
    y_s, y_start = output[: len(noise)], output[len(noise) :]
    weight = per_sample(1 / signal_gain(schedule, s, t), noise)
    return BootLosses(
        bootstrap=((y_s - target) * weight).square().mean(),
        # An empty mean is NaN; β = 0 then asks for no boundary sample at all.
        boundary=(y_start - start_signal).square().mean() if boundary_count else y_s.new_zeros(()),
    )
