"""Direct knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388): regress the teacher's samples on noise."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.method import Method, Sampler, Student, TrainedSettings, student_network
from diffusion.distillation.pairs import Pairs, PairsSettings
from diffusion.student import NoiseStudent, one_step_sampler
from diffusion.teachers.folder import save_denoiser
from diffusion.teachers.train import TeacherFacts
from diffusion.training.loop import Step, TrainingRun
from diffusion.training.settings import TrainingSettings


class KnowledgeDistillationSettings(TrainedSettings):
    """Settings of direct knowledge distillation.

    Attributes:
        pairs: the offline set, made once by a rule of its own and shared by all students with equal ``pairs``.
    """

    method: Literal["knowledge_distillation"] = "knowledge_distillation"
    pairs: PairsSettings = PairsSettings()
    training: TrainingSettings = TrainingSettings(
        steps=1000, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99
    )


class KnowledgeDistillation(Method):
    """The student sees noises and the samples that a many-step DDIM of the teacher made of them, and nothing else."""

    name = "knowledge_distillation"
    title = "Knowledge distillation"
    Settings = KnowledgeDistillationSettings
    TINY = {  # noqa: RUF012
        "pairs": {"count": 8, "num_inference_steps": 3},
        "training": {"steps": 8, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5},
    }

    settings: KnowledgeDistillationSettings

    def evaluations(self) -> tuple[int, ...]:
        return (1,)

    def pairs(self) -> PairsSettings:
        return self.settings.pairs

    def check(self, teacher: TeacherFacts) -> None:
        steps = self.settings.pairs.num_inference_steps
        if steps > teacher.num_timesteps:
            raise ValueError(
                f"pairs.num_inference_steps: found {steps}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )

    def distil(self, teacher: Denoiser, run: TrainingRun, data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Pairs)
        settings = self.settings.training
        network = student_network(teacher)
        student = NoiseStudent(network, teacher.schedule, teacher.prediction_type)
        run.count(network)
        told = torch.tensor(teacher.schedule.t_max, dtype=torch.float64)

        def compute(noise: torch.Tensor, samples: torch.Tensor, condition: Condition) -> torch.Tensor:
            return knowledge_distillation_loss(student, noise, samples, told, condition)

        compute = run.compiled(compute, settings)

        def loss(step: Step) -> torch.Tensor:
            noise, samples, condition = data.draw(step.batch_size, step.generator)
            return compute(noise, samples, condition)

        return [Student(1, *data.with_cost(run.fit("knowledge-distillation", network, loss, settings)))]

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        last = float(teacher.schedule.num_timesteps - 1)
        save_denoiser(folder, teacher.with_network(network), told_timestep=last)

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        return one_step_sampler(folder, device)


def knowledge_distillation_loss(
    student: NoiseStudent, noise: torch.Tensor, samples: torch.Tensor, told: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """E ‖x − g_θ(ε)‖²: the divergence of two Gaussians of one deviation, up to its constant factor (sec. 3).

    Mean over batch and pixels, a scalar. One evaluation of the student a picture.

    Args:
        noise: ε; samples: the teacher's pictures from it; shape (N, C, H, W).
        told: the one time that the network is told, shape ().
    """
    return (student(noise, told, condition) - samples).square().mean()
