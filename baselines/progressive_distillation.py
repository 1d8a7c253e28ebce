"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): halve the number of DDIM steps again and again."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Distiller, Student, TrainedSettings, finished_student, student_network
from diffusion.distillation.method import Sampler
from diffusion.distillation.pairs import Pairs
from diffusion.schedule import per_sample
from diffusion.solvers import ddim_sample, ddim_step, ddim_target, grid_noise_level
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

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


class ProgressiveDistillation(Distiller):
    """Each student learns to do two DDIM steps of its teacher, the last student, in one."""

    name = "progressive_distillation"
    title = "Progressive distillation"
    Settings = ProgressiveSettings
    needs_data = True
    TINY = {"start_steps": 4, "training": {"steps": 3, "batch_size": 8, "learning_rate": 1e-4}}  # noqa: RUF012

    settings: ProgressiveSettings

    def evaluations(self) -> tuple[int, ...]:
        counts, steps = [], self.settings.start_steps
        while steps > self.settings.end_steps:
            steps //= 2
            counts.append(steps)
        return tuple(counts)

    def check(self, teacher: TeacherFacts) -> None:
        timesteps = teacher.num_timesteps
        if timesteps % self.settings.start_steps:
            raise ValueError(
                f"start_steps: found {self.settings.start_steps}, expected a divisor of the teacher's num_timesteps "
                f"({timesteps}), so that every student's steps fall on the teacher's grid"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Split), "progressive distillation trains on the data set"
        pictures = RealPictures(data, run.device)
        students: list[Student] = []
        counts = self.evaluations()
        weights = [self.settings.last_stages_factor if stage >= len(counts) - 2 else 1 for stage in range(len(counts))]
        for stage, nfe in enumerate(counts):
            settings = self.settings.training.of_stage(weights[stage], sum(weights))
            network = student_network(teacher)
            run.count(teacher.network)
            run.count(network)
            student = teacher.with_network(network)
            source = teacher  # bound now: `teacher` moves on

            compute = run.compiled(functools.partial(progressive_loss, student, source, num_steps=nfe), settings)

            def loss(
                step: Step,
                compute: Callable[..., torch.Tensor] = compute,
                source: Denoiser = source,
                nfe: int = nfe,
            ) -> torch.Tensor:
                x, labels = pictures.draw(step.batch_size, step.generator)
                condition = source.conditions.of_labels(labels)
                noise = torch.randn(x.shape, generator=step.generator, device=x.device)
                point = torch.randint(1, nfe + 1, (len(x),), generator=step.generator, device=x.device)
                return compute(x, noise, point, condition=condition)

            trained = run.fit(f"{nfe}-steps", network, loss, settings, real_images=True)
            students.append(finished_student(nfe, trained))
            # Without guidance from here on: the first student has learnt the guided teacher (Meng et al. 2023, sec. 3).
            teacher = student.with_network(trained.network.requires_grad_(False)).eval()
        return students

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        save_denoiser(folder, teacher.with_network(network))

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        denoiser = load_denoiser(folder, device)

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return ddim_sample(denoiser, noise, nfe, condition)

        return sample, denoiser.network


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
    schedule = teacher.schedule
    t, alpha_t, sigma_t = grid_noise_level(schedule, step, num_steps)
    middle, alpha_middle, sigma_middle = grid_noise_level(schedule, step - 0.5, num_steps)
    _, alpha_end, sigma_end = grid_noise_level(schedule, step - 1, num_steps)
    z_middle = ddim_step(z_t, teacher(z_t, t, condition), alpha_t, sigma_t, alpha_middle, sigma_middle)
    z_end = ddim_step(z_middle, teacher(z_middle, middle, condition), alpha_middle, sigma_middle, alpha_end, sigma_end)
    return ddim_target(z_t, z_end, alpha_t, sigma_t, alpha_end, sigma_end)


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
    t, alpha, sigma = grid_noise_level(student.schedule, step, num_steps)
    z_t = per_sample(alpha, x) * x + per_sample(sigma, x) * noise
    target = progressive_target(teacher, z_t, step, num_steps, condition)
    weight = per_sample((alpha / sigma).square().clamp(min=1), x)
    return (weight * (student.estimate(z_t, t, condition) - target).square()).mean()
