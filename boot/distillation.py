"""BOOT as a method of the suite (Gu et al., arXiv 2306.05544): data-free distillation to one evaluation."""

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from boot.losses import boot_losses
from boot.signal_ode import Solver
from boot.student import BootStudent
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.method import Method, Sampler, Student, TrainedSettings, student_network
from diffusion.pipelines import load_denoiser, picture_shape, save_denoiser
from diffusion.teacher import TeacherFacts, uniform_times
from diffusion.training import TrainingRun, TrainingSettings


class BootSettings(TrainedSettings):
    """Settings of BOOT.

    Attributes:
        solver: how the teacher's Signal-ODE is stepped from t to s = t − δ.
        delta: δ, the step in t. (The paper does not need it small: the target is one exact step for constant f.)
        boundary_weight: β, weight of the boundary loss.
        boundary_fraction: share of the batch that also enters the boundary loss. The expectation is the same for
            every share; the loss starts at zero, so a few samples hold it there at a fraction of the evaluations.
    """

    method: Literal["boot"] = "boot"
    solver: Solver = "heun"
    delta: float = Field(0.04, gt=0)
    boundary_weight: float = Field(1.0, ge=0)
    boundary_fraction: float = Field(0.25, gt=0, le=1)
    training: TrainingSettings = TrainingSettings(
        steps=1000, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99
    )


class Boot(Method):
    """Bootstraps the student along its own trajectory: the only inputs are noise and the teacher."""

    name = "boot"
    title = "BOOT"
    Settings = BootSettings
    needs_data = False
    TINY = {"training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5}}  # noqa: RUF012

    settings: BootSettings

    def evaluations(self) -> tuple[int, ...]:
        return (1,)

    def check(self, teacher: TeacherFacts) -> None:
        span = teacher.t_max - teacher.t_min
        if self.settings.delta >= span:
            raise ValueError(
                f"delta: found {self.settings.delta}, expected less than t_max − t_min of the teacher ({span:.6g})"
            )
        if self.settings.boundary_weight == 0 and teacher.prediction_type == "epsilon":
            raise ValueError(
                "boundary_weight: found 0 with an epsilon teacher; expected > 0, because the student of such a "
                "teacher does not start on the trajectory and only the boundary loss puts it there"
            )

    def distil(self, teacher: Denoiser, run: TrainingRun, data: Split | None) -> list[Student]:
        settings, schedule = self.settings, teacher.schedule
        network = student_network(teacher)
        student = BootStudent(network, schedule, teacher.prediction_type)
        run.count(teacher.network)
        run.count(network)
        batch = settings.training.batch_size
        boundary_count = math.ceil(batch * settings.boundary_fraction) if settings.boundary_weight else 0
        shape = (batch, *picture_shape(network.config))

        def loss(generator: torch.Generator) -> torch.Tensor:
            noise = torch.randn(shape, generator=generator, device=generator.device)
            # s uniform and t = s + δ covers the whole interval; up to t_max the last steps are shorter than δ.
            s = uniform_times(batch, schedule.t_min, schedule.t_max, generator)
            t = (s + settings.delta).clamp(max=schedule.t_max)
            terms = boot_losses(student, teacher, noise, s, t, settings.solver, boundary_count)
            return terms.bootstrap + settings.boundary_weight * terms.boundary

        return [Student(1, *run.fit("boot", network, loss, settings.training))]

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        from boot.pipeline import BootPipeline

        denoiser = Denoiser(network, teacher.schedule, teacher.prediction_type, teacher.clip)
        save_denoiser(folder, denoiser, BootPipeline)

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        student = load_student(folder, device)
        return student.sample, student.network


def load_student(folder: Path, device: torch.device | str = "cpu") -> BootStudent:
    """Reads a stored BOOT student; errors as :func:`diffusion.pipelines.load_denoiser`."""
    stored = load_denoiser(folder, device)
    return BootStudent(stored.network, stored.schedule, stored.prediction_type)
