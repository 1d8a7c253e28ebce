"""Direct knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388): regress the teacher's samples on noise."""

from typing import TYPE_CHECKING, Any, Literal

import torch

from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import Student
from diffusion.distillation.one_step import OneStep, ReadingSettings
from diffusion.distillation.pairs import Pairs, PairsSettings
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


class KnowledgeDistillationSettings(ReadingSettings):
    """Settings of direct knowledge distillation.

    Attributes:
        pairs: the offline set, made once by a rule of its own and shared by all students with equal ``pairs``.
    """

    method: Literal["knowledge_distillation"] = "knowledge_distillation"
    pairs: PairsSettings = PairsSettings()
    training: TrainingSettings = TrainingSettings(
        steps=1000, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99
    )


class KnowledgeDistillation(OneStep):
    """The student sees noises and the samples that a many-step DDIM of the teacher made of them, and nothing else."""

    name = "knowledge_distillation"
    title = "Knowledge distillation"
    Settings = KnowledgeDistillationSettings
    TINY = {  # noqa: RUF012
        "pairs": {"count": 8, "num_inference_steps": 3},
        "training": {"steps": 8, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5},
    }

    settings: KnowledgeDistillationSettings

    def pairs(self) -> PairsSettings:
        return self.settings.pairs

    def check(self, teacher: TeacherFacts) -> None:
        self.settings.check_reading(teacher)
        steps = self.settings.pairs.num_inference_steps
        if steps > teacher.num_timesteps:
            raise ValueError(
                f"pairs.num_inference_steps: found {steps}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )

    def batch(self, step: Step, teacher: Denoiser, data: Split | Pairs | None) -> tuple[Any, ...]:
        assert isinstance(data, Pairs)
        return data.draw(step.batch_size, step.generator)

    def loss(self, student: NoiseStudent, teacher: Denoiser, *batch: Any) -> torch.Tensor:
        """E ‖x − g_θ(ε)‖²: the divergence of two Gaussians of one deviation, up to its constant factor (sec. 3); mean
        over batch and pixels. The network is told t_max."""
        noise, samples, condition = batch
        return (student(noise, student.schedule.t_max, condition) - samples).square().mean()

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Pairs)
        return [student.with_cost_of(data) for student in super().distil(teacher, run, data)]

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        return super().facts(teacher) | {"told_timestep": float(teacher.schedule.num_timesteps - 1)}
