"""TRACT (Berthelot et al. 2023, arXiv 2303.04248): jumps over whole groups of DDIM steps, learnt from the student's own
shorter jumps."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Distiller, Student, TrainedSettings, finished_student, student_network
from diffusion.distillation.method import Sampler
from diffusion.distillation.pairs import Pairs
from diffusion.schedule import EdmSchedule, Schedule, per_sample
from diffusion.solvers import ddim_sample, ddim_step, ddim_target, grid_noise_level, heun_step
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.training.average import MovingAverage
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun

Solver = Literal["ddim", "heun"]


class TractSettings(TrainedSettings):
    """Settings of TRACT.

    Attributes:
        start_steps: DDIM steps of the teacher that the first phase closes over (published: 1024, or 40 with EDM's).
        phases: step counts of the students, one a phase; each divides the one before (published: 32 and 1, or 1 alone).
        solver: of the teacher's steps in the first phase, "ddim", or "heun", which takes one more estimate of the
            teacher (published with EDM's). In later phases the teacher is a student, whose steps are DDIM's.
        self_teacher_decay: decay of the self-teacher, a moving average of the student's weights (published: 0.5). It
            is not the average that is kept as the result, which is ``training.ema_decay``.
        training: one phase's settings. Published: Adam at a constant 2e-4 with clip 1 (with EDM's teacher 1e-3 and
            none), and an average whose decay 0.001^(1/steps) leaves a thousandth of the weights that a phase began
            with.
    """

    later: ClassVar[tuple[str, ...]] = ("solver",)

    method: Literal["tract"] = "tract"
    start_steps: int = Field(40, ge=2)
    phases: tuple[int, ...] = Field((8, 1), min_length=1)
    solver: Solver = "ddim"
    self_teacher_decay: float = Field(0.5, ge=0, lt=1)
    training: TrainingSettings = TrainingSettings(steps=700, batch_size=128, learning_rate=5e-4, ema_decay=0.99)

    @model_validator(mode="after")
    def _each_divides_the_one_before(self) -> "TractSettings":
        before = self.start_steps
        for steps in self.phases:
            if not 1 <= steps < before or before % steps:
                raise ValueError(
                    f"phases: found {steps} after {before}, expected a smaller divisor of it: each of the student's "
                    f"steps is a group of the steps before"
                )
            before = steps
        return self


class Tract(Distiller):
    """In each phase the student learns to jump from every step of a group to the group's start."""

    name = "tract"
    title = "TRACT"
    Settings = TractSettings
    needs_data = True
    TINY = {  # noqa: RUF012
        "start_steps": 8,
        "phases": [4, 1],
        "training": {"steps": 4, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5},
    }

    settings: TractSettings

    def evaluations(self) -> tuple[int, ...]:
        return self.settings.phases

    def check(self, teacher: TeacherFacts) -> None:
        if teacher.num_timesteps % self.settings.start_steps:
            raise ValueError(
                f"start_steps: found {self.settings.start_steps}, expected a divisor of the teacher's num_timesteps "
                f"({teacher.num_timesteps}), so that every student's steps fall on the teacher's grid"
            )
        if self.settings.solver == "heun" and math.isinf(teacher.log_noise_to_signal[1]):
            raise ValueError("solver: found 'heun' with a teacher without signal at t_max, expected 'ddim'")

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Split), "TRACT trains on the data set"
        settings = self.settings.training.of_stage(1, len(self.settings.phases))
        pictures = RealPictures(data, run.device)
        students: list[Student] = []
        teacher_steps = self.settings.start_steps
        for num_steps in self.settings.phases:
            network = student_network(teacher)
            average = MovingAverage(network, self.settings.self_teacher_decay).eval()
            for evaluated in (teacher.network, network, average.module):
                run.count(evaluated)
            student = teacher.with_network(network)
            compute = run.compiled(
                functools.partial(
                    tract_loss,
                    student,
                    teacher,
                    student.with_network(average.module).eval(),
                    group=teacher_steps // num_steps,
                    num_steps=teacher_steps,
                    solver="ddim" if students else self.settings.solver,
                ),
                settings,
            )

            def loss(
                step: Step,
                compute: Callable[..., torch.Tensor] = compute,
                source: Denoiser = teacher,  # bound now: `teacher` moves on, and so does the number of its steps
                teacher_steps: int = teacher_steps,
            ) -> torch.Tensor:
                x, labels = pictures.draw(step.batch_size, step.generator)
                condition = source.conditions.of_labels(labels)
                noise = torch.randn(x.shape, generator=step.generator, device=x.device)
                point = torch.randint(1, teacher_steps + 1, (len(x),), generator=step.generator, device=x.device)
                return compute(x, noise, point, condition=condition)

            def follow(_step: Step, average: MovingAverage = average, network: nn.Module = network) -> None:
                average.update_parameters(network)

            trained = run.fit(
                f"{num_steps}-steps",
                network,
                loss,
                settings,
                real_images=True,
                after_step=follow,
                beside={"self_teacher": average},
            )
            students.append(finished_student(num_steps, trained))
            # Without guidance from here on: the first student has learnt the guided teacher (Meng et al. 2023, sec. 3).
            teacher = student.with_network(trained.network.requires_grad_(False)).eval()
            teacher_steps = num_steps
        return students

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        save_denoiser(folder, teacher.with_network(network))

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        denoiser = load_denoiser(folder, device)

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return ddim_sample(denoiser, noise, nfe, condition)

        return sample, denoiser.network


@torch.no_grad()
def tract_target(
    teacher: Denoiser,
    self_teacher: Denoiser,
    z_t: torch.Tensor,
    step: torch.Tensor,
    group: int,
    num_steps: int,
    condition: Condition = None,
    solver: Solver = "ddim",
) -> torch.Tensor:
    """x̃, the picture with which one DDIM step leads from z_t to where teacher and self-teacher lead (eq. 6–9).

    The teacher takes one step from t to t', and the self-teacher jumps from t' to the group's start s:
    x̃ = (z_s − (σ_s/σ_t) z_t) / (α_s − α_t σ_s/σ_t). Where t' is the group's start, the teacher's step is all there is.
    Its last step, to the clean picture, is DDIM's with either solver.

    Args:
        z_t: noisy pictures at grid point ``step``, shape (N, C, H, W).
        step: 1 … num_steps, shape (N,).
        group: how many of the teacher's steps a step of the student shall be.
        num_steps: the teacher's number of steps.
        solver: of the teacher's step.
    """
    schedule = teacher.schedule
    start = torch.div(step - 1, group, rounding_mode="floor") * group
    t, alpha_t, sigma_t = grid_noise_level(schedule, step, num_steps)
    middle, alpha_middle, sigma_middle = grid_noise_level(schedule, step - 1, num_steps)
    _, alpha_start, sigma_start = grid_noise_level(schedule, start, num_steps)
    levels = alpha_t, sigma_t, alpha_middle, sigma_middle
    estimate = teacher(z_t, t, condition)
    z_middle = ddim_step(z_t, estimate, *levels)
    if solver == "heun":
        z_heun = heun_step(z_t, estimate, z_middle, teacher(z_middle, middle, condition), *levels)
        z_middle = torch.where(per_sample(sigma_middle, z_t) > 0, z_heun, z_middle)
    estimate = self_teacher(z_middle, middle, condition)
    # Not a number where it starts in the clean picture, at which no network is asked; the next line drops it there.
    jumped = ddim_step(z_middle, estimate, alpha_middle, sigma_middle, alpha_start, sigma_start)
    arrived = (step - 1 == start).reshape(-1, *[1] * (z_t.ndim - 1))
    z_start = torch.where(arrived, z_middle, jumped)
    return ddim_target(z_t, z_start, alpha_t, sigma_t, alpha_start, sigma_start)


def tract_loss(
    student: Denoiser,
    teacher: Denoiser,
    self_teacher: Denoiser,
    x: torch.Tensor,
    noise: torch.Tensor,
    step: torch.Tensor,
    group: int,
    num_steps: int,
    condition: Condition = None,
    solver: Solver = "ddim",
) -> torch.Tensor:
    """E w(t) ‖x̃ − x̂‖², w as in :func:`loss_weight`; mean over batch and pixels, a scalar.

    A picture takes one evaluation of the student with gradient, one of the teacher (two by "heun") and one of the
    self-teacher.

    Args:
        x, noise: real pictures and noise, shape (N, C, H, W).
        step: grid points 1 … num_steps of the teacher, shape (N,).
        group, num_steps, solver: as in :func:`tract_target`.
    """
    t, alpha, sigma = grid_noise_level(student.schedule, step, num_steps)
    z_t = per_sample(alpha, x) * x + per_sample(sigma, x) * noise
    target = tract_target(teacher, self_teacher, z_t, step, group, num_steps, condition, solver)
    weight = per_sample(loss_weight(student.schedule, alpha, sigma), x)
    return (weight * (student.estimate(z_t, t, condition) - target).square()).mean()


def loss_weight(schedule: Schedule, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """w of the squared error of x̂, as published: max(α²/σ², 1); for EDM's schedule 1/σ² + 1/σ_d² = 1/c_out², which
    makes it the squared error of the network's own output.

    Args:
        alpha, sigma: shape (N,).
    """
    if isinstance(schedule, EdmSchedule):
        return sigma**-2 + schedule.sigma_data**-2
    return (alpha / sigma).square().clamp(min=1)
