"""The pictures of a BOOT student that the paper shows."""

import argparse

import numpy as np
import torch

from boot.distillation import load_student
from boot.trajectory import interpolate_noise, read_at_times, true_signal
from diffusion.device import default_device
from diffusion.files import atomic_path
from diffusion.images import to_uint8
from diffusion.noise import initial_noise
from diffusion.pipelines import load_denoiser, stored_picture_shape
from suite.provenance import write_provenance
from suite.stages.common import weights_file


def draw_pictures(arguments: argparse.Namespace) -> None:
    """The BOOT student read at every time beside the teacher's trajectory, and between two noises."""
    rows, columns, device = 6, 12, default_device()
    folder = arguments.student / "nfe-1"
    student, teacher = load_student(folder, device), load_denoiser(arguments.teacher, device)
    channels, height, width = stored_picture_shape(folder)
    noise = initial_noise(arguments.seed, range(2 * rows), (channels, height, width)).to(device)
    schedule = teacher.schedule
    times = torch.linspace(schedule.t_max, schedule.t_min, columns, dtype=torch.float64)
    with torch.inference_mode():
        between = interpolate_noise(noise[:rows], noise[rows:], columns)
        pictures = {
            "all_times": read_at_times(student, noise[:rows], times),
            "trajectory": true_signal(teacher, noise[:rows], times),
            "interpolation": student.sample(between.flatten(0, 1)).unflatten(0, (rows, columns)),
        }
    arrays = {
        name: to_uint8(value.flatten(0, 1)).reshape(rows, columns, height, width, channels)
        for name, value in pictures.items()
    }
    with atomic_path(arguments.output) as temporary, temporary.open("wb") as handle:
        np.savez(handle, times=times.numpy(), **arrays)  # type: ignore[arg-type]  # see _extract
    write_provenance(
        arguments.output.with_suffix(".json"),
        {"student": weights_file(folder), "teacher": weights_file(arguments.teacher)},
        seed=arguments.seed,
    )
