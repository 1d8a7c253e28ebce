"""Reading students and teachers along the trajectory: the signal, and errors, at every time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from boot.signal_ode import signal_step
from boot.state_student import StateStudent
from diffusion.conditions import Condition, Conditions
from diffusion.denoiser import Denoiser
from diffusion.student import NoiseStudent
from diffusion.teachers.folder import load_denoiser, sampling_facts


def true_signals(
    teacher: Denoiser, noise: torch.Tensor, times: torch.Tensor, substeps: int = 16, condition: Condition = None
) -> Iterator[torch.Tensor]:
    """The teacher's own y_t at each of the times: the Signal-ODE from y(t_max) = f_φ(x_M, t_max), by Heun steps.

    Args:
        noise: ε, shape (N, C, H, W).
        times: decreasing, times[0] = t_max, shape (T,).
        substeps: solver steps between two times.

    Yields:
        T times, shape (N, C, H, W).
    """
    signal = teacher(teacher.schedule.start(noise), times[0], condition)
    yield signal
    for upper, lower in itertools.pairwise(times):
        signal = carried(teacher, signal, noise, upper, lower, substeps, condition)
        yield signal


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
    for upper, lower in itertools.pairwise(map(teacher.schedule.at, grid)):
        signal = signal_step(teacher, signal, noise, lower, upper, "heun", condition)
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
    for upper, lower in itertools.pairwise(map(schedule.at, grid[1:])):
        if upper.time > lower.time:  # at t_max itself there is nowhere to go
            signal = signal_step(teacher, signal, noise, lower, upper, "euler", condition)
    return signal


# |f − ŷ| below one per cent of the pictures' half range counts as nothing left to add.
NEAR_ZERO = 0.01


@dataclass(frozen=True)
class TrajectoryErrors:
    """How far signals are from the teacher's own y_t, at every time; means over noises and pixels, float64, shape (T,).

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

    @classmethod
    def mean(cls, portions: Sequence["TrajectoryErrors"], counts: Sequence[int]) -> "TrajectoryErrors":
        """Over all noises, of the means over portions of so many."""
        share = torch.tensor(counts, dtype=torch.float64) / sum(counts)

        def over_all(means: Sequence[torch.Tensor]) -> torch.Tensor:
            return (share[:, None] * torch.stack([*means])).sum(dim=0)

        return cls(
            times=portions[0].times,
            student=over_all([one.student for one in portions]),
            one_step=over_all([one.one_step for one in portions]),
            near_zero=over_all([one.near_zero for one in portions]),
            ddim={count: over_all([one.ddim[count] for one in portions]) for count in portions[0].ddim},
        )


def trajectory_errors(
    student: NoiseStudent,
    teacher: Denoiser,
    noise: torch.Tensor,
    times: torch.Tensor,
    ddim_steps: Sequence[int] = (1, 2, 4, 8),
    substeps: int = 8,
    condition: Condition = None,
    advance: Callable[[], object] = lambda: None,
) -> TrajectoryErrors:
    """Compares a student with the teacher's true trajectory from the same noise, one time after the other.

    Args:
        student: of the signal, or a :class:`boot.state_student.StateStudent`.
        noise: ε, shape (N, C, H, W); no batch is larger, and a few tensors of that shape are held, for any T.
        times: decreasing, times[0] = t_max, shape (T,).
        ddim_steps: DDIM's numbers of steps.
        substeps: Heun steps between two times, of the true trajectory and of ``one_step``.
        advance: called after each of the times.
    """

    def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean(dtype=torch.float64).cpu()

    of_student, one_step, near_zero = [], [torch.tensor(float("nan"), dtype=torch.float64)], []
    ddim: dict[int, list[torch.Tensor]] = {count: [] for count in ddim_steps}
    read = student(noise, times[0], condition)
    for index, (t, truth) in enumerate(
        zip(times, true_signals(teacher, noise, times, substeps, condition), strict=True)
    ):
        of_student.append(error(read, truth))
        for count, errors in ddim.items():
            errors.append(error(ddim_signal(teacher, noise, t, count, condition), truth))
        at = teacher.schedule.at(t)
        increment = teacher(at.noised(read, noise), at, condition) - read
        near_zero.append((increment.abs() < NEAR_ZERO).mean(dtype=torch.float64).cpu())
        if index + 1 < len(times):
            s = times[index + 1]
            target = carried(teacher, read, noise, t, s, substeps, condition)
            read = student(noise, s, condition)
            one_step.append(error(read, target))
        advance()
    return TrajectoryErrors(
        times=times,
        student=torch.stack(of_student),
        one_step=torch.stack(one_step),
        near_zero=torch.stack(near_zero),
        ddim={count * teacher.evaluations: torch.stack(errors) for count, errors in ddim.items()},
    )


def interpolate_noise(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation between noises, which keeps their norm (Shoemake 1985).

    Args:
        start, end: shape (N, C, H, W).
        share: how far from start to end, in [0, 1], shape (N,).

    Returns:
        shape (N, C, H, W).
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(1), end.flatten(1), dim=1).clamp(-1, 1)
    angle, share = torch.arccos(cosine).reshape(-1, 1, 1, 1), share.reshape(-1, 1, 1, 1)
    from_start, from_end = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (from_start * start + from_end * end) / torch.sin(angle)


def sample_between(
    student: NoiseStudent,
    conditions: Conditions,
    noise: torch.Tensor,
    first: Condition,
    second: Condition,
    share: torch.Tensor,
) -> torch.Tensor:
    """Samples on the way from one condition to another, along the line between their embeddings.

    Args:
        conditions: of which both are.
        noise: shape (N, C, H, W).
        share: how far from the first to the second, in [0, 1], shape (N,).

    Returns:
        shape (N, C, H, W).
    """
    with conditions.between_read_by(student.network):
        return student.sample(noise, conditions.between(first, second, share))


def load_student(
    folder: Path, device: torch.device | str = "cpu", target: str = "signal", scale: float = 1.0
) -> NoiseStudent:
    """A stored BOOT student, to be read as y_t at every time; errors as
    :func:`diffusion.teachers.folder.load_denoiser`.

    Args:
        target: what it predicts, "signal", or "state" x_t.
        scale: w that it is told, where it embeds it.
    """
    stored, kind = load_denoiser(folder, device), StateStudent if target == "state" else NoiseStudent
    sampled = sampling_facts(folder)
    told = scale if "guidance_range" in sampled else None
    return kind.of(stored, stored.network, embedded_scale=told, epsilon_reading=sampled.get("epsilon_reading", "noise"))
