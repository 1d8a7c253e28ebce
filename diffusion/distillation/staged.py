"""Distillers in stages on real images: the student of each is the teacher of the next, and takes fewer DDIM steps."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Distiller, Student, finished_student, real_batch, student_network
from diffusion.distillation.pairs import Pairs
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


@dataclass(frozen=True)
class Stage:
    """How one student is trained.

    Attributes:
        loss: of images and noise, shape (N, C, H, W), points of the grid, shape (N,), and ``condition=``; a scalar.
        points: the points are drawn from 1 to that.
        settings: of its training.
        options: further ones of :meth:`diffusion.training.loop.TrainingRun.fit`.
    """

    loss: Callable[..., torch.Tensor]
    points: int
    settings: TrainingSettings
    options: dict[str, Any] = field(default_factory=dict)


class Staged(Distiller):
    """A subclass says what a stage is; its students are sampled by DDIM steps, with as many as its
    :meth:`evaluations` say."""

    needs_data = True

    @abstractmethod
    def stage(self, number: int, student: Denoiser, teacher: Denoiser, run: "TrainingRun") -> Stage:
        """How stage ``number``, from 0 on, trains its student, which starts as a copy of its teacher."""

    def check(self, teacher: TeacherFacts) -> None:
        if teacher.num_timesteps % self.settings.start_steps:
            raise ValueError(
                f"start_steps: found {self.settings.start_steps}, expected a divisor of the teacher's num_timesteps "
                f"({teacher.num_timesteps}), so that every student's steps fall on the teacher's grid"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Split), f"{self.title} trains on the data set"
        pictures, conditions, students = RealPictures(data, run.device), teacher.conditions, []
        for number, nfe in enumerate(self.evaluations()):
            network = student_network(teacher, lora=self.settings.lora)
            run.count(teacher.network)
            run.count(network)
            student = teacher.with_network(network)
            stage = self.stage(number, student, teacher, run)
            compute = run.compiled(stage.loss, stage.settings)

            def loss(
                step: Step,
                compute: Callable[..., torch.Tensor] = compute,  # bound now: the stages go on
                points: int = stage.points,
            ) -> torch.Tensor:
                x, noise, condition = real_batch(pictures, conditions, step, self.guidance)
                point = torch.randint(1, points + 1, (len(x),), generator=step.generator, device=x.device)
                return compute(x, noise, point, condition=condition)

            trained = run.fit(f"{nfe}-steps", network, loss, stage.settings, real_images=True, **stage.options)
            students.append(finished_student(nfe, trained))
            # Without guidance from here on: the first student has learnt the guided teacher (Meng et al. 2023, sec. 3).
            teacher = student.with_network(trained.network.requires_grad_(False)).eval()
        return students
