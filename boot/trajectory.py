"""Reading students and teachers along the trajectory: pictures of all times at once, and errors at every time."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from boot.signal_ode import bootstrap_target, noisy_state, signal_of
from boot.student import BootStudent
from diffusion.conditions import ClassLabels, Condition, MixedClasses
from diffusion.denoiser import Denoiser


class SignalOfState(torch.nn.Module):
    """A student of the noisy state x_t, read as the signal that its state has.

    The division by α_t multiplies its error by 1/α_t, so that little can be read next to t_max.
    """

    def __init__(self, student: BootStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """y_t, shape (N, C, H, W)."""
        return signal_of(self.student.schedule, self.student(noise, t, condition), noise, t)


def read_at_times(
    student: BootStudent | SignalOfState, noise: torch.Tensor, times: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """g_θ(ε, t) for every noise and every time, in one batch.

    Args:
        noise: shape (N, C, H, W).
        times: shape (T,).

    Returns:
        shape (N, T, C, H, W).
    """
    repeated = noise.repeat_interleave(len(times), dim=0)
    if condition is not None:
        condition = {key: value.repeat_interleave(len(times), dim=0) for key, value in condition.items()}
    return student(repeated, times.repeat(len(noise)), condition).unflatten(0, (len(noise), len(times)))


def true_signal(
    teacher: Denoiser, noise: torch.Tensor, times: torch.Tensor, substeps: int = 16, condition: Condition = None
) -> torch.Tensor:
    """The teacher's own y_t: the Signal-ODE from y(t_max) = f_φ(x_M, t_max), by Heun steps.

    Args:
        noise: ε, shape (N, C, H, W).
        times: decreasing, times[0] = t_max, shape (T,).
        substeps: solver steps between two times.

    Returns:
        shape (N, T, C, H, W).
    """
    signal = teacher(teacher.schedule.start(noise), times[0], condition)
    signals = [signal]
    for upper, lower in itertools.pairwise(times):
        signal = carried(teacher, signal, noise, upper, lower, substeps, condition)
        signals.append(signal)
    return torch.stack(signals, dim=1)


def carried(
    teacher: Denoiser,
    signal: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    s: torch.Tensor,
    substeps: int,
    condition: Condition = None,
) -> torch.Tensor:
    """Where the teacher's Signal-ODE carries a signal from t down to s, by ``substeps`` Heun steps; (N, C, H, W).

    Args:
        signal, noise: shape (N, C, H, W); the signal need not lie on the teacher's own trajectory from that noise.
        t, s: times, s < t, shape ().
    """
    grid = torch.linspace(float(t), float(s), substeps + 1, dtype=torch.float64)
    for upper, lower in itertools.pairwise(grid):
        estimate = teacher(noisy_state(teacher.schedule, signal, noise, upper), upper, condition)
        signal = bootstrap_target(teacher, signal, estimate, noise, lower, upper, "heun", condition)
    return signal


def ddim_signal(
    teacher: Denoiser, noise: torch.Tensor, t: torch.Tensor, num_steps: int, condition: Condition = None
) -> torch.Tensor:
    """y_t by ``num_steps`` DDIM steps of the teacher from t_max down to ``t``, equal in time.

    The first evaluation, at t_max, gives the start y = f_φ(x_M, t_max), and holding that f leaves y where it is.

    Args:
        noise: ε, shape (N, C, H, W).
        t: a time, shape ().

    Returns:
        shape (N, C, H, W).
    """
    schedule = teacher.schedule
    grid = torch.linspace(schedule.t_max, float(t), num_steps + 1, dtype=torch.float64)
    signal = teacher(schedule.start(noise), grid[0], condition)
    for upper, lower in itertools.pairwise(grid[1:]):
        if upper > lower:  # at t_max itself there is nowhere to go
            estimate = teacher(noisy_state(schedule, signal, noise, upper), upper, condition)
            signal = bootstrap_target(teacher, signal, estimate, noise, lower, upper, "euler", condition)
    return signal


# |f − ŷ| below one per cent of the pictures' half range counts as nothing left to add.
NEAR_ZERO = 0.01


@dataclass(frozen=True)
class TrajectoryErrors:
    """How far signals are from the teacher's own y_t, at every time; means over noises and pixels, shape (T,).

    Attributes:
        times: decreasing from t_max, float64.
        student: ‖g_θ(ε, t) − y_t‖².
        one_step: ‖g_θ(ε, s) − Φ(g_θ(ε, t))‖², Φ being the teacher's Signal-ODE from t to the next time s: what the
            student adds to the error that it has inherited, for g_θ(ε, s) − y_s is that difference plus
            Φ(g_θ(ε, t)) − Φ(y_t). Φ takes the steps of the true trajectory, so that a student that reproduces this has
            0; one coarse step in its place would have its own error counted as the student's. NaN at the first time,
            which nothing precedes.
        near_zero: share of the pixels with |f_φ(x̂_t, t) − ŷ_t| < :data:`NEAR_ZERO`, where the increment vanishes.
        ddim: number of network evaluations to ‖·‖² of the teacher's own DDIM with as many.
    """

    times: torch.Tensor
    student: torch.Tensor
    one_step: torch.Tensor
    near_zero: torch.Tensor
    ddim: dict[int, torch.Tensor]


def trajectory_errors(
    student: BootStudent | SignalOfState,
    teacher: Denoiser,
    noise: torch.Tensor,
    times: torch.Tensor,
    ddim_steps: Sequence[int] = (1, 2, 4, 8),
    substeps: int = 8,
    condition: Condition = None,
) -> TrajectoryErrors:
    """Compares a student with the teacher's true trajectory from the same noise.

    Args:
        student: of the signal y_t, or read as one.
        noise: ε, shape (N, C, H, W).
        times: decreasing, times[0] = t_max, shape (T,).
        ddim_steps: DDIM's numbers of steps.
        substeps: Heun steps between two times, of the true trajectory and of ``one_step``.
    """
    schedule = teacher.schedule
    truth = true_signal(teacher, noise, times, substeps, condition)
    read = read_at_times(student, noise, times, condition)

    def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean().cpu()

    one_step, near_zero = [torch.tensor(float("nan"))], []
    for index, t in enumerate(times):
        y_t = read[:, index]
        increment = teacher(noisy_state(schedule, y_t, noise, t), t, condition) - y_t
        near_zero.append((increment.abs() < NEAR_ZERO).float().mean().cpu())
        if index + 1 < len(times):
            s = times[index + 1]
            one_step.append(error(read[:, index + 1], carried(teacher, y_t, noise, t, s, substeps, condition)))
    return TrajectoryErrors(
        times=times,
        student=torch.stack([error(read[:, i], truth[:, i]) for i in range(len(times))]),
        one_step=torch.stack(one_step),
        near_zero=torch.stack(near_zero),
        ddim={
            count * teacher.evaluations: torch.stack(
                [error(ddim_signal(teacher, noise, t, count, condition), truth[:, i]) for i, t in enumerate(times)]
            )
            for count in ddim_steps
        },
    )


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


def between_classes(student: BootStudent, conditions: ClassLabels, noise: torch.Tensor, count: int) -> torch.Tensor:
    """Samples of one noise on the way from one class to the next, along the line between their embeddings.

    Args:
        noise: shape (N, C, H, W); noise n goes from class n to class n + 1, modulo the number of classes.
        count: number of points, both ends included, ≥ 2.

    Returns:
        shape (N, count, C, H, W).
    """
    embedding = student.network.class_embedding
    assert isinstance(embedding, torch.nn.Embedding)
    labels = embedding.num_embeddings
    first = torch.arange(len(noise), device=noise.device) % conditions.num_classes
    one_hot = torch.nn.functional.one_hot
    start, end = one_hot(first, labels).float(), one_hot((first + 1) % conditions.num_classes, labels).float()
    share = torch.linspace(0, 1, count, device=noise.device).reshape(1, -1, 1)
    weights = torch.lerp(start[:, None], end[:, None], share).flatten(0, 1)
    student.network.class_embedding = MixedClasses(embedding)
    try:
        pictures = student.sample(noise.repeat_interleave(count, dim=0), {"class_labels": weights})
    finally:
        student.network.class_embedding = embedding
    return pictures.unflatten(0, (len(noise), count))
