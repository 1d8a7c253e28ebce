"""Training a diffusion teacher."""

from pathlib import Path

import numpy as np
import torch

from diffusion.conditions import ClassLabels, Condition, Conditions, Unconditional
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.runtime.errors import UserError
from diffusion.space import PIXELS, Space
from diffusion.teachers.networks.unet import build_network
from diffusion.teachers.prompts import Prompts, TextEncoder, encode
from diffusion.teachers.settings import TeacherSettings
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import Step


def train_teacher(
    settings: TeacherSettings,
    split: Split,
    run: TrainingRun,
    captions: Prompts | None = None,
    space: Space = PIXELS,
) -> tuple[Denoiser, dict[str, float]]:
    """Trains a teacher on the real pictures of ``split``; returns it, without guidance, and its cost.

    Args:
        split: its images, or their latents.
        captions: of the images, where it is told texts (:func:`captions_of`).
        space: what the states are.

    Raises:
        UserError: labels are asked for, and the data set has one class.
    """
    if settings.labels and len(split.class_names) < 2:
        raise UserError(
            f"teacher.labels: found true, expected false: the data set has one class, {split.class_names[0]!r}; put "
            f"the pictures of each class into a folder of its own."
        )
    has_null = settings.label_dropout > 0
    labels, text_width = None, None
    conditions: Conditions = Unconditional()
    if settings.labels:
        labels, conditions = len(split.class_names) + has_null, ClassLabels(len(split.class_names), has_null)
    if settings.text is not None:
        assert captions is not None
        text_width, conditions = captions.width, captions
    run.seed_initialisation("initialisation")
    network = build_network(settings.network, split.shape, labels, text_width).to(run.device)
    schedule, means = settings.schedule.build(), settings.prediction_type
    denoiser = Denoiser(network, schedule, means, settings.thresholding, conditions, settings.family, space)
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


def captions_of(settings: TeacherSettings, split: Split, place: Path, device: torch.device) -> Prompts:
    """The captions that occur in ``split``, read by the teacher's encoder.

    Args:
        place: an empty folder, in which the encoder and its tokenizer lie afterwards as in a pipeline's.

    Raises:
        UserError: the encoder is not there, or a caption has more tokens than ``teacher.text.max_tokens``.
    """
    assert settings.text is not None
    source = settings.text.checked_folder()
    encoder = TextEncoder(source, source, settings.text.max_tokens, device)
    encoder.save(place)
    indices = np.unique(split.labels).tolist()
    return encode(encoder, [split.class_names[i] for i in indices], indices, settings.label_dropout > 0, place)
