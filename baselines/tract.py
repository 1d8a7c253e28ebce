"""TRACT (Berthelot et al. 2023, arXiv 2303.04248): jumps over whole groups of DDIM steps, learnt from the student's own
shorter jumps."""

import functools
import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import TrainedSettings
from diffusion.distillation.staged import Stage, Staged
from diffusion.level import Coefficient, Level
from diffusion.schedule import EdmSchedule, Schedule
from diffusion.solvers import Solver, ddim_step, ddim_target, grid_level, solver_step
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.average import MovingAverage
from diffusion.training.settings import TrainingSettings

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


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


class Tract(Staged):
    """In each phase the student learns to jump from every step of a group to the group's start."""

    name = "tract"
    title = "TRACT"
    Settings = TractSettings
    TINY = {  # noqa: RUF012
        "start_steps": 8,
        "phases": [4, 1],
        "training": {"steps": 4, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5},
    }

    settings: TractSettings

    def evaluations(self) -> tuple[int, ...]:
        return self.settings.phases

    def check(self, teacher: TeacherFacts) -> None:
        super().check(teacher)
        if self.settings.solver == "heun" and math.isinf(teacher.log_noise_to_signal[1]):
            raise ValueError("solver: found 'heun' with a teacher without signal at t_max, expected 'ddim'")

    def stage(self, number: int, student: Denoiser, teacher: Denoiser, run: "TrainingRun") -> Stage:
        settings = self.settings
        before, after = (settings.start_steps, *settings.phases)[number : number + 2]
        average = MovingAverage(student.network, settings.self_teacher_decay).eval()
        run.count(average.module)
        loss = functools.partial(
            tract_loss,
            student,
            teacher,
            student.with_network(average.module).eval(),
            group=before // after,
            num_steps=before,
            solver="ddim" if number else settings.solver,
        )
        options = {
            "after_step": lambda _step: average.update_parameters(student.network),
            "beside": {"self_teacher": average},
        }
        return Stage(loss, before, settings.training.of_stage(1, len(settings.phases)), options)


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

    Args:
        z_t: noisy pictures at grid point ``step``, shape (N, C, H, W).
        step: 1 … num_steps, shape (N,).
        group: how many of the teacher's steps a step of the student shall be.
        num_steps: the teacher's number of steps.
        solver: of the teacher's step.
    """
    first = torch.div(step - 1, group, rounding_mode="floor") * group
    t, middle, start = (grid_level(teacher.schedule, point, num_steps) for point in (step, step - 1, first))
    z_middle = solver_step(teacher, z_t, t, middle, solver, condition)
    # Not a number where it starts in the clean picture, at which no network is asked; the next line drops it there.
    jumped = ddim_step(z_middle, self_teacher(z_middle, middle, condition), middle, start)
    arrived = (step - 1 == first).reshape(-1, *[1] * (z_t.ndim - 1))
    return ddim_target(z_t, torch.where(arrived, z_middle, jumped), t, start)


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
    t = grid_level(student.schedule, step, num_steps)
    z_t = t.noised(x, noise)
    target = tract_target(teacher, self_teacher, z_t, step, group, num_steps, condition, solver)
    error = student.estimate(z_t, t, condition) - target
    return (loss_weight(student.schedule, t) * error.square()).mean()


def loss_weight(schedule: Schedule, t: Level) -> Coefficient:
    """w of the squared error of x̂, as published: max(α²/σ², 1); for EDM's schedule 1/σ² + 1/σ_d² = 1/c_out², which
    makes it the squared error of the network's own output."""
    return t.sigma**-2 + schedule.sigma_data**-2 if isinstance(schedule, EdmSchedule) else t.truncated_snr
