"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): halve the number of DDIM steps again and again."""

import functools
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator, model_validator

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import TrainedSettings
from diffusion.distillation.staged import Stage, Staged
from diffusion.solvers import ddim_step, ddim_target, grid_level
from diffusion.training.settings import TrainingSettings

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


class ProgressiveSettings(TrainedSettings):
    """Settings of progressive distillation.

    Attributes:
        start_steps: DDIM steps of the teacher that the first student halves; a power of two times ``end_steps``.
        end_steps: steps of the last student.
        training: one halving's settings. Published: 50k steps, rate linear to zero, no EMA, clip 1.
        last_stages_factor: the last two halvings train this many times longer (published: 2).
    """

    method: Literal["progressive_distillation"] = "progressive_distillation"
    start_steps: int = Field(16, ge=2)
    end_steps: int = Field(1, ge=1)
    last_stages_factor: int = Field(2, ge=1)
    training: TrainingSettings = TrainingSettings(
        steps=300, batch_size=128, learning_rate=3e-4, decay="linear", ema_decay=None
    )

    @field_validator("training")
    @classmethod
    def _no_ema(cls, value: TrainingSettings) -> TrainingSettings:
        if value.ema_decay is not None:
            raise ValueError("ema_decay: found a value, expected null: the method as published keeps no EMA")
        return value

    @model_validator(mode="after")
    def _can_be_halved(self) -> "ProgressiveSettings":
        steps = self.start_steps
        while steps > self.end_steps and steps % 2 == 0:
            steps //= 2
        if steps != self.end_steps or self.start_steps == self.end_steps:
            raise ValueError(
                f"start_steps: found {self.start_steps}, expected end_steps ({self.end_steps}) times a power of two, "
                f"because each student takes half its teacher's steps"
            )
        return self


class ProgressiveDistillation(Staged):
    """Each student learns to do two DDIM steps of its teacher, the last student, in one."""

    name = "progressive_distillation"
    title = "Progressive distillation"
    Settings = ProgressiveSettings
    embeds_guidance = True
    TINY = {"start_steps": 4, "training": {"steps": 3, "batch_size": 8, "learning_rate": 1e-4}}  # noqa: RUF012

    settings: ProgressiveSettings

    def evaluations(self) -> tuple[int, ...]:
        counts, steps = [], self.settings.start_steps
        while steps > self.settings.end_steps:
            steps //= 2
            counts.append(steps)
        return tuple(counts)

    def stage(self, number: int, student: Denoiser, teacher: Denoiser, run: "TrainingRun") -> Stage:
        counts, factor = self.evaluations(), self.settings.last_stages_factor
        weights = [factor if stage >= len(counts) - 2 else 1 for stage in range(len(counts))]
        loss = functools.partial(progressive_loss, student, teacher, num_steps=counts[number])
        return Stage(loss, counts[number], self.settings.training.of_stage(weights[number], sum(weights)))


@torch.no_grad()
def progressive_target(
    teacher: Denoiser, z_t: torch.Tensor, step: torch.Tensor, num_steps: int, condition: Condition = None
) -> torch.Tensor:
    """x̃, the picture that takes one DDIM step of the student where two of the teacher lead (algorithm 2).

    With t' = t − 1/(2N) and t'' = t − 1/N: x̃ = (z_{t''} − (σ_{t''}/σ_t) z_t) / (α_{t''} − (σ_{t''}/σ_t) α_t). At
    the last step σ_{t''} = 0, and x̃ is the teacher's estimate at t'.

    Args:
        z_t: noisy pictures at grid point ``step``, shape (N, C, H, W).
        step: 1 … num_steps, shape (N,).
        num_steps: the student's number of steps.
    """
    t, middle, end = (grid_level(teacher.schedule, step - back, num_steps) for back in (0, 0.5, 1))
    z_middle = ddim_step(z_t, teacher(z_t, t, condition), t, middle)
    z_end = ddim_step(z_middle, teacher(z_middle, middle, condition), middle, end)
    return ddim_target(z_t, z_end, t, end)


def progressive_loss(
    student: Denoiser,
    teacher: Denoiser,
    x: torch.Tensor,
    noise: torch.Tensor,
    step: torch.Tensor,
    num_steps: int,
    condition: Condition = None,
) -> torch.Tensor:
    """E max(α²/σ², 1) ‖x̃ − x̂‖², the truncated-SNR weight (eq. 9); mean over batch and pixels, a scalar.

    One evaluation of the student with gradient and two of the teacher a picture.

    Args:
        x, noise: real pictures and noise, shape (N, C, H, W).
        step: grid points 1 … num_steps, shape (N,).
    """
    t = grid_level(student.schedule, step, num_steps)
    z_t = t.noised(x, noise)
    target = progressive_target(teacher, z_t, step, num_steps, condition)
    return (t.truncated_snr * (student.estimate(z_t, t, condition) - target).square()).mean()
