"""Training a diffusion teacher."""

import torch

from diffusion.conditions import ClassLabels, Condition, Conditions, Unconditional
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.runtime.errors import UserError
from diffusion.teachers.networks.unet import build_network
from diffusion.teachers.settings import TeacherSettings
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import Step


def train_teacher(settings: TeacherSettings, split: Split, run: TrainingRun) -> tuple[Denoiser, dict[str, float]]:
    """Trains a teacher on the real pictures of ``split``; returns it, without guidance, and its cost.

    Raises:
        UserError: labels are asked for, and the data set has one class.
    """
    if settings.labels and len(split.class_names) < 2:
        raise UserError(
            f"teacher.labels: found true, expected false: the data set has one class, {split.class_names[0]!r}; put "
            f"the pictures of each class into a folder of its own."
        )
    run.seed_initialisation("initialisation")
    has_null = settings.label_dropout > 0
    conditions: Conditions = ClassLabels(len(split.class_names), has_null) if settings.labels else Unconditional()
    embeddings = len(split.class_names) + has_null if settings.labels else None
    network = build_network(settings.network, split.shape, embeddings).to(run.device)
    schedule = settings.schedule.build()
    denoiser = Denoiser(network, schedule, settings.prediction_type, settings.thresholding, conditions)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def compute(x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return denoising_loss(denoiser, x, noise, t, condition)

    compute = run.compiled(compute, settings.training)

    def loss(step: Step) -> torch.Tensor:
        x, labels = pictures.draw(step.batch_size, step.generator)
        noise = torch.randn(x.shape, generator=step.generator, device=x.device)
        t = settings.draw_times(len(x), schedule, step.generator)
        condition = conditions.dropped(conditions.of_labels(labels), settings.label_dropout, step.generator)
        return compute(x, noise, t, condition)

    trained = run.fit("teacher", network, loss, settings.training, real_images=True, bf16=True)
    return denoiser.with_network(trained.network), trained.cost
