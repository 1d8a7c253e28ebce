"""Errors of a BOOT student along the teacher's trajectory."""

from typing import Annotated, Any, Literal

import pandas as pd
import torch
from tqdm import tqdm

from boot.trajectory import TrajectoryErrors, trajectory_errors
from diffusion.denoiser import Denoiser
from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.memory import in_portions
from diffusion.runtime.processes import portions_of
from diffusion.student import NoiseStudent
from evaluation.columns import TRAJECTORY_COLUMNS
from suite.job import Key
from suite.jobs.student import StudentJob

_TIMES = 11
# A student of x_t says nothing of y_t where less signal than that is left.
_LEAST_ALPHA = 0.1


class Measure(StudentJob):
    """A long table: the student's error, what one step adds, the vanishing increments, and DDIM's errors.

    Attributes:
        target: what the student predicts.
    """

    target: Literal["signal", "state"] = "signal"
    noises: Annotated[int, Key("evaluation.trajectory_noises")]

    def run(self) -> None:
        student, teacher, inputs = self.networks(self.target)
        errors = errors_of(student, teacher, self.seed, self.noises, self.shape, self.batch_size, default_device())
        times = errors.times
        every = torch.ones(_TIMES, dtype=torch.bool)
        readable = every if self.target == "signal" else teacher.schedule.alpha(times) >= _LEAST_ALPHA
        stepped = readable & torch.cat([~every[:1], readable[:-1]])  # a step starts in the time before
        series: list[tuple[str, int | None, torch.Tensor, torch.Tensor]] = [
            ("student", 1, errors.student, readable),
            ("one_step", 1, errors.one_step, stepped),
            ("near_zero", 1, errors.near_zero, readable),
            *(("ddim", count, values, every) for count, values in errors.ddim.items()),
        ]
        rows: list[dict[str, Any]] = [
            {"quantity": quantity, "nfe": nfe, "t": float(t), "value": float(value)}
            for quantity, nfe, values, where in series
            for t, value, shown in zip(errors.times, values, where, strict=True)
            if shown
        ]
        with self.result_file(inputs) as temporary:
            pd.DataFrame(rows, columns=list(TRAJECTORY_COLUMNS)).to_csv(temporary, index=False)


def errors_of(
    student: NoiseStudent,
    teacher: Denoiser,
    seed: int,
    count: int,
    shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
) -> TrajectoryErrors:
    """Means over ``count`` noises, at most ``batch_size`` of them at a time; what is held does not grow with the times.

    Args:
        shape: (C, H, W).
    """
    times = torch.linspace(teacher.schedule.t_max, teacher.schedule.t_min, _TIMES, dtype=torch.float64)
    portions = portions_of(count, batch_size)
    with tqdm(total=len(portions) * _TIMES, desc="trajectory", mininterval=5, unit="time") as bar:

        def of_portion(indices: range) -> TrajectoryErrors:
            noise = initial_noise(seed, indices, shape).to(device)
            told = teacher.conditions.of_samples(indices, device)
            with torch.inference_mode():
                return trajectory_errors(student, teacher, noise, times, condition=told, advance=bar.update)

        of_portions = [*in_portions("evaluation.batch_size", of_portion, count, batch_size, device)]
    return TrajectoryErrors.mean(of_portions, [len(portion) for portion in portions])
