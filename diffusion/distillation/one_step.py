"""Distillers whose student answers to pure noise with an image, in one evaluation."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Distiller, Student, student_network
from diffusion.distillation.pairs import Pairs
from diffusion.student import NoiseStudent
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


class OneStep(Distiller):
    """A subclass gives :meth:`loss`, the loss of one batch of noise; where it needs more, it overrides the rest."""

    def evaluations(self) -> tuple[int, ...]:
        return (1,)

    def loss(self, student: NoiseStudent, teacher: Denoiser, *batch: Any) -> torch.Tensor:
        """The loss of one batch, a scalar.

        Args:
            batch: what :meth:`batch` draws: noise ε, shape (N, C, H, W), and a condition, unless a method has its own.
        """
        raise NotImplementedError

    def batch(self, step: Step, teacher: Denoiser, data: Split | Pairs | None) -> tuple[Any, ...]:
        """Draws one batch, from the step's generator alone.

        Args:
            data: as of :meth:`distil`.
        """
        noise = torch.randn(step.batch_size, *teacher.shape, generator=step.generator, device=step.generator.device)
        return noise, teacher.conditions.draw(step.batch_size, step.generator)

    def student(self, network: nn.Module, teacher: Denoiser) -> NoiseStudent:
        """How the student feeds and reads its network."""
        return NoiseStudent(network, teacher.schedule, teacher.prediction_type, family=teacher.family)

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        schedule = teacher.schedule
        return {"told_timestep": float(schedule.timestep(torch.tensor(schedule.t_min, dtype=torch.float64)))}

    def network(self, teacher: Denoiser, run: "TrainingRun") -> Any:
        """The network that training starts from."""
        return student_network(teacher)

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        network = self.network(teacher, run)
        student = self.student(network, teacher)
        run.count(teacher.network)
        run.count(network)

        def compute(*batch: Any) -> torch.Tensor:
            return self.loss(student, teacher, *batch)

        compute = run.compiled(compute, self.settings.training)

        def loss(step: Step) -> torch.Tensor:
            return compute(*self.batch(step, teacher, data))

        return [Student(1, *run.fit(self.name.replace("_", "-"), network, loss, self.settings.training))]
