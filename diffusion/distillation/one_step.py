"""Distillers whose student answers to pure noise with an image, in one evaluation."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Distiller, Student, TrainedSettings, student_network
from diffusion.distillation.pairs import Pairs
from diffusion.prediction import EpsilonReading
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun

_LARGEST_RATIO = 20.0  # of σ to α at t_max, by which the exact reading multiplies the network's error


class ReadingSettings(TrainedSettings):
    """Settings of a method whose student is fed pure noise at t_max and read there.

    Attributes:
        epsilon_reading: of an epsilon teacher's student, "noise", y = ε − σ_M F, which does not start as the teacher,
            or "exact", that divided by α_M, which does; refused where σ/α is more than 20 at t_max.
    """

    later: ClassVar[tuple[str, ...]] = ("epsilon_reading",)

    epsilon_reading: EpsilonReading = "noise"

    def check_reading(self, teacher: TeacherFacts) -> None:
        """Raises ValueError where that teacher's student cannot be read so."""
        if self.epsilon_reading == "noise":
            return
        if teacher.prediction_type != "epsilon":
            raise ValueError(
                f"epsilon_reading: found 'exact' with a teacher of {teacher.prediction_type}, expected 'noise': its "
                f"student is read exactly as it is"
            )
        ratio = math.exp(min(teacher.log_noise_to_signal[1], 700))
        if ratio > _LARGEST_RATIO:
            raise ValueError(
                f"epsilon_reading: found 'exact' with σ/α = {ratio:.4g} at t_max, expected 'noise', or a teacher with "
                f"{_LARGEST_RATIO:g} at most: the network's error is multiplied by it"
            )


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
        return NoiseStudent.of(teacher, network, **self._reading)

    @property
    def _reading(self) -> dict[str, Any]:
        """How the student is read, where it is not the rule."""
        reading = getattr(self.settings, "epsilon_reading", "noise")
        return {} if reading == "noise" else {"epsilon_reading": reading}

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        schedule = teacher.schedule
        told = float(schedule.timestep(torch.tensor(schedule.t_min, dtype=torch.float64)))
        return {"told_timestep": told, **self._reading}

    def network(self, teacher: Denoiser, run: "TrainingRun") -> Any:
        """The network that training starts from."""
        return student_network(teacher, lora=self.settings.lora)

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
