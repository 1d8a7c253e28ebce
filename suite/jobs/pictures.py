"""The pictures of a BOOT student that the paper shows."""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from boot.trajectory import between_classes, interpolate_noise, true_signals
from diffusion.conditions import ClassLabels, Condition
from diffusion.data.samples import to_uint8
from diffusion.denoiser import Denoiser
from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.memory import in_portions
from diffusion.student import NoiseStudent
from suite.jobs.student import StudentJob

_ROWS, _COLUMNS = 6, 12


class Draw(StudentJob):
    """The images of :func:`images_of`, and ``times``, in one file."""

    def run(self) -> None:
        student, teacher, inputs = self.networks()
        arrays = images_of(student, teacher, self.seed, self.shape, self.batch_size, default_device())
        with self.result_file(inputs) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]  # see neighbours.py


def images_of(
    student: NoiseStudent,
    teacher: Denoiser,
    seed: int,
    shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The BOOT student read at every time beside the teacher's trajectory, between two noises, and between two classes.

    The rows of a class-conditional student are of different classes; between two noises the class stays.

    Args:
        shape: (C, H, W).
        batch_size: the most that are evaluated at a time.

    Returns:
        ``all_times``, ``trajectory``, ``interpolation`` and perhaps ``classes``, uint8, shape (rows, columns, H, W, C);
        ``times``, shape (columns,); with classes ``class_pairs``, the first and the last of a row, shape (rows, 2).
    """
    rows, columns = _ROWS, _COLUMNS
    conditions, schedule = teacher.conditions, teacher.schedule
    channels, height, width = shape
    noise, end = initial_noise(seed, range(2 * rows), shape).to(device).chunk(2)
    times = torch.linspace(schedule.t_max, schedule.t_min, columns, dtype=torch.float64)
    share = torch.linspace(0, 1, columns).to(device)

    def drawn(count: int, draw: Callable[[range], np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            portions = [*in_portions("evaluation.batch_size", draw, count, batch_size, device)]
        return np.concatenate(portions).reshape(rows, columns, height, width, channels)

    def by_image(draw: Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]) -> np.ndarray:
        """All images, of their rows, columns and conditions."""

        def portion(indices: range) -> np.ndarray:
            row, column = torch.tensor(indices) // columns, torch.tensor(indices) % columns
            return to_uint8(draw(row, column, conditions.of_samples(row.tolist(), device)))

        return drawn(rows * columns, portion)

    def along(indices: range) -> np.ndarray:
        """The teacher's trajectories of some rows."""
        told = conditions.of_samples(indices, device)
        signals = true_signals(teacher, noise[indices.start : indices.stop], times, condition=told)
        bar = tqdm(signals, "trajectory", total=columns, mininterval=5, unit="time")
        return np.stack([to_uint8(signal) for signal in bar], axis=1)

    arrays = {
        "all_times": by_image(lambda row, column, told: student(noise[row], times[column], told)),
        "trajectory": drawn(rows, along),
        "interpolation": by_image(
            lambda row, column, told: student.sample(interpolate_noise(noise[row], end[row], share[column]), told)
        ),
    }
    if isinstance(conditions, ClassLabels):
        first = (torch.arange(rows) % conditions.num_classes).to(device)
        arrays["classes"] = by_image(
            lambda row, column, _: between_classes(student, conditions, noise[row], first[row], share[column])
        )
        arrays["class_pairs"] = (np.arange(rows)[:, None] + [0, 1]) % conditions.num_classes
    return {"times": times.numpy(), **arrays}
