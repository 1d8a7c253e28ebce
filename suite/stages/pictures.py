"""The pictures of a BOOT student that the paper shows."""

import argparse

import numpy as np
import torch

from boot.distillation import load_student
from boot.trajectory import between_classes, interpolate_noise, read_at_times, true_signal
from diffusion.conditions import ClassLabels
from diffusion.device import default_device
from diffusion.images import to_uint8
from diffusion.noise import initial_noise
from diffusion.pipelines import deciding_files, stored_picture_shape
from suite.provenance import checked
from suite.stages.common import load_teacher, result_file


def draw_pictures(arguments: argparse.Namespace) -> None:
    """The BOOT student read at every time beside the teacher's trajectory, between two noises, and between two classes.

    The rows of a class-conditional student are of different classes; between two noises the class stays.
    """
    rows, columns, device = 6, 12, default_device()
    folder = arguments.student / "nfe-1"
    inputs = checked(
        {f"student, {file.name}": file for file in deciding_files(folder)}
        | {f"teacher, {file.name}": file for file in deciding_files(arguments.teacher)}
    )
    student = load_student(folder, device)
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, device)
    conditions = teacher.conditions
    told = conditions.of_samples(range(rows), device)
    channels, height, width = stored_picture_shape(folder)
    noise = initial_noise(arguments.seed, range(2 * rows), (channels, height, width)).to(device)
    schedule = teacher.schedule
    times = torch.linspace(schedule.t_max, schedule.t_min, columns, dtype=torch.float64)
    with torch.inference_mode():
        between = interpolate_noise(noise[:rows], noise[rows:], columns)
        repeated = told and {key: value.repeat_interleave(columns, dim=0) for key, value in told.items()}
        pictures = {
            "all_times": read_at_times(student, noise[:rows], times, told),
            "trajectory": true_signal(teacher, noise[:rows], times, condition=told),
            "interpolation": student.sample(between.flatten(0, 1), repeated).unflatten(0, (rows, columns)),
        }
        if isinstance(conditions, ClassLabels):
            pictures["classes"] = between_classes(student, conditions, noise[:rows], columns)
    pairs = {}
    if isinstance(conditions, ClassLabels):
        pairs = {"class_pairs": (np.arange(rows)[:, None] + [0, 1]) % conditions.num_classes}
    arrays = {
        name: to_uint8(value.flatten(0, 1)).reshape(rows, columns, height, width, channels)
        for name, value in pictures.items()
    }
    with result_file(arguments, inputs, seed=arguments.seed) as temporary, temporary.open("wb") as handle:
        np.savez(handle, times=times.numpy(), **arrays, **pairs)  # type: ignore[arg-type]  # see _extract
