"""The pictures of a BOOT student that the paper shows."""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from boot.trajectory import interpolate_noise, sample_between, true_signals
from diffusion.conditions import ClassLabels, Condition
from diffusion.data.samples import to_uint8
from diffusion.denoiser import Denoiser
from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.memory import in_portions
from diffusion.student import NoiseStudent
from diffusion.teachers.prompts import Prompts
from suite.jobs.student import StudentJob

# Two noises a row, and in a grid of conditions and noises one a column.
_ROWS, _COLUMNS = 6, 12


class Draw(StudentJob):
    """The images of :func:`images_of` in one file."""

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
    """The BOOT student read at every time beside the teacher's trajectory, between noises, and between conditions.

    Each row is of one condition, which stays from one noise to another. Between two conditions, each row starts in its
    own and ends in the next one, at one noise.

    Args:
        shape: (C, H, W).
        batch_size: the most that are evaluated at a time.

    Returns:
        ``times``, shape (columns,), and images, uint8, shape (rows, columns, H, W, C): ``all_times``, ``trajectory``
        and ``interpolation``.

        Of classes ``classes``, between two of them, and ``class_pairs``, the first and the last of a row, int64, shape
        (rows, 2).

        Of texts ``between``, between two of them; ``by_text``, one text a row and one noise a column; and ``texts``:
        those of the rows and the one that the last way ends in, unicode, shape (rows + 1,).
    """
    rows, columns = _ROWS, _COLUMNS
    conditions, schedule = teacher.conditions, teacher.schedule
    channels, height, width = teacher.space.image_shape(shape)
    noises = initial_noise(seed, range(2 * rows), shape).to(device)
    noise, end = noises.chunk(2)
    times = torch.linspace(schedule.t_max, schedule.t_min, columns, dtype=torch.float64)
    share = torch.linspace(0, 1, columns).to(device)

    def shown(states: torch.Tensor) -> np.ndarray:
        return to_uint8(teacher.space.decode(states))

    def drawn(count: int, draw: Callable[[range], np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            portions = [*in_portions("evaluation.batch_size", draw, count, batch_size, device)]
        return np.concatenate(portions).reshape(rows, columns, height, width, channels)

    def by_image(draw: Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]) -> np.ndarray:
        """All images, of their rows, columns and conditions."""

        def portion(indices: range) -> np.ndarray:
            row, column = torch.tensor(indices) // columns, torch.tensor(indices) % columns
            return shown(draw(row, column, conditions.of_samples(row.tolist(), device)))

        return drawn(rows * columns, portion)

    def along(indices: range) -> np.ndarray:
        """The teacher's trajectories of some rows."""
        told = conditions.of_samples(indices, device)
        signals = true_signals(teacher, noise[indices.start : indices.stop], times, condition=told)
        bar = tqdm(signals, "trajectory", total=columns, mininterval=5, unit="time")
        return np.stack([shown(signal) for signal in bar], axis=1)

    arrays = {
        "all_times": by_image(lambda row, column, told: student(noise[row], times[column], told)),
        "trajectory": drawn(rows, along),
        "interpolation": by_image(
            lambda row, column, told: student.sample(interpolate_noise(noise[row], end[row], share[column]), told)
        ),
    }

    def to_the_next(row: torch.Tensor, column: torch.Tensor, told: Condition) -> torch.Tensor:
        following = conditions.of_samples((row + 1).tolist(), device)
        return sample_between(student, conditions, noise[row], told, following, share[column])

    if isinstance(conditions, ClassLabels):
        arrays["classes"] = by_image(to_the_next)
        arrays["class_pairs"] = (np.arange(rows)[:, None] + [0, 1]) % conditions.num_classes
    if isinstance(conditions, Prompts):
        arrays["between"] = by_image(to_the_next)
        arrays["by_text"] = by_image(lambda _, column, told: student.sample(noises[column], told))
        arrays["texts"] = np.array([conditions.texts[row % len(conditions.texts)] for row in range(rows + 1)])
    return {"times": times.numpy(), **arrays}
