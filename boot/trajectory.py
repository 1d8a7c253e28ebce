"""Reading students and teachers along the trajectory: the paper's picture of all time steps at once."""

import itertools

import torch

from boot.signal_ode import bootstrap_target, noisy_state
from boot.student import BootStudent
from diffusion.denoiser import Denoiser


def read_at_times(student: BootStudent, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """g_θ(ε, t) for every noise and every time, in one batch.

    Args:
        noise: shape (N, C, H, W).
        times: shape (T,).

    Returns:
        shape (N, T, C, H, W).
    """
    repeated = noise.repeat_interleave(len(times), dim=0)
    return student(repeated, times.repeat(len(noise))).unflatten(0, (len(noise), len(times)))


def true_signal(teacher: Denoiser, noise: torch.Tensor, times: torch.Tensor, substeps: int = 16) -> torch.Tensor:
    """The teacher's own y_t: the Signal-ODE from y(t_max) = f_φ(x_M, t_max), by Heun steps.

    Args:
        noise: ε, shape (N, C, H, W).
        times: decreasing, times[0] = t_max, shape (T,).
        substeps: solver steps between two times.

    Returns:
        shape (N, T, C, H, W).
    """
    signal = teacher(teacher.schedule.start(noise), times[0])
    signals = [signal]
    for upper, lower in itertools.pairwise(times):
        grid = torch.linspace(float(upper), float(lower), substeps + 1, dtype=torch.float64)
        for t, s in itertools.pairwise(grid):
            estimate = teacher(noisy_state(teacher.schedule, signal, noise, t), t)
            signal = bootstrap_target(teacher, signal, estimate, noise, s, t, "heun")
        signals.append(signal)
    return torch.stack(signals, dim=1)


def interpolate_noise(start: torch.Tensor, end: torch.Tensor, count: int) -> torch.Tensor:
    """Spherical interpolation between noises, which keeps their norm (Shoemake 1985).

    Args:
        start, end: shape (N, C, H, W).
        count: number of points, both ends included, ≥ 2.

    Returns:
        shape (N, count, C, H, W).
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(1), end.flatten(1), dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine).reshape(-1, 1, 1, 1)
    points = []
    for weight in torch.linspace(0, 1, count):
        from_start, from_end = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
        points.append((from_start * start + from_end * end) / torch.sin(angle))
    return torch.stack(points, dim=1)
