"""Errors of a BOOT student along the teacher's trajectory."""

import argparse
from typing import Any

import pandas as pd
import torch

from boot.distillation import load_student
from boot.trajectory import trajectory_errors
from diffusion.device import default_device
from diffusion.files import atomic_path
from diffusion.noise import initial_noise
from diffusion.pipelines import stored_picture_shape
from evaluation.tables import TRAJECTORY_COLUMNS
from suite.provenance import write_provenance
from suite.stages.common import load_teacher, weights_file

_TIMES = 11
_NOISES = 128


def measure_trajectory(arguments: argparse.Namespace) -> None:
    """A long table: the student's error, what one step adds, the vanishing increments, and DDIM's errors."""
    device = default_device()
    folder = arguments.student / "nfe-1"
    student = load_student(folder, device)
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, device)
    condition = teacher.conditions.of_samples(range(_NOISES), device)
    noise = initial_noise(arguments.seed, range(_NOISES), stored_picture_shape(folder)).to(device)
    times = torch.linspace(teacher.schedule.t_max, teacher.schedule.t_min, _TIMES, dtype=torch.float64)
    with torch.inference_mode():
        errors = trajectory_errors(student, teacher, noise, times, condition=condition)
    series: list[tuple[str, int | None, torch.Tensor]] = [
        ("student", 1, errors.student),
        ("one_step", 1, errors.one_step),
        ("near_zero", 1, errors.near_zero),
        *(("ddim", count, values) for count, values in errors.ddim.items()),
    ]
    rows: list[dict[str, Any]] = [
        {"quantity": quantity, "nfe": nfe, "t": float(t), "value": float(value)}
        for quantity, nfe, values in series
        for t, value in zip(errors.times, values, strict=True)
        if torch.isfinite(value) or quantity != "one_step"
    ]
    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(rows, columns=list(TRAJECTORY_COLUMNS)).to_csv(temporary, index=False)
    write_provenance(
        arguments.output.with_suffix(".json"),
        {"student": weights_file(folder), "teacher": weights_file(arguments.teacher)},
        seed=arguments.seed,
        noises=_NOISES,
    )
