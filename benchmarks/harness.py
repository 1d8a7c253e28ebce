"""What the benchmarks share: a clock, calls that take turns, networks without training."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.conditions import ClassLabels, Unconditional
from diffusion.denoiser import Denoiser
from diffusion.teachers.folder import load_denoiser
from diffusion.teachers.networks.unet import build_network
from diffusion.teachers.settings import StoredTeacher
from diffusion.training.settings import TrainingSettings
from suite.configuration.experiment import Experiment


def synchronised_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = synchronised_time(device)
            call()
            times[name].append(synchronised_time(device) - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def untrained(experiment: Experiment, device: torch.device, classes: int) -> Denoiser:
    """The experiment's teacher without its training, not guided yet."""
    teacher = experiment.teacher
    if isinstance(teacher, StoredTeacher):
        return load_denoiser(Path(teacher.path), device)
    conditions = ClassLabels(classes, teacher.label_dropout > 0) if teacher.labels else Unconditional()
    labels = classes + (teacher.label_dropout > 0) if teacher.labels else None
    network = build_network(teacher.network, experiment.data.shape, labels)
    schedule = teacher.schedule.build()
    denoiser = Denoiser(network, schedule, teacher.prediction_type, teacher.thresholding, conditions)
    return denoiser.to(device).eval().requires_grad_(False)


def of_one_stage(method: Any, settings: TrainingSettings) -> Any:
    """The method with other settings of training and one student only, so that a step is a step of that student."""
    update: dict[str, Any] = {"training": settings}
    if hasattr(method.settings, "start_steps"):
        update |= {"start_steps": 2, "end_steps": 1, "last_stages_factor": 1}
    if hasattr(method.settings, "phases"):
        update |= {"start_steps": 2, "phases": (1,)}
    return type(method)(method.settings.model_copy(update=update), method.guidance)
