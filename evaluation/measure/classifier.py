"""Label accuracy of class-conditional samples, by a classifier that is trained on the real pictures alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from diffusion.data.batches import RealPictures
from diffusion.data.samples import from_uint8
from diffusion.data.store import Split
from diffusion.runtime.errors import CheckpointError
from diffusion.runtime.files import read_json, write_json
from diffusion.runtime.memory import in_portions
from diffusion.runtime.settings import Settings
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:
    from diffusion.training.loop import TrainingRun


class ClassifierSettings(Settings):
    """How the classifier is trained.

    Attributes:
        training: as for every other network.
    """

    training: TrainingSettings = TrainingSettings(
        steps=200, batch_size=64, learning_rate=1e-3, warmup_steps=20, decay="cosine", weight_decay=0.01
    )


def build_classifier(num_classes: int, channels: int) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016) with the stem for small pictures: 3×3 without stride, no pooling."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def train_classifier(
    settings: ClassifierSettings, split: Split, run: "TrainingRun"
) -> tuple[nn.Module, dict[str, float]]:
    """Trains a classifier on ``split``; returns it in evaluation mode, and its cost."""
    run.seed_initialisation("initialisation")
    network = build_classifier(len(split.class_names), split.images.shape[3]).to(run.device)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def compute(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(network(x), labels)

    compute = run.compiled(compute, settings.training)

    def loss(step: Step) -> torch.Tensor:
        return compute(*pictures.draw(step.batch_size, step.generator))

    trained = run.fit("classifier", network, loss, settings.training, real_images=True)
    return trained.network, trained.cost


def classify(network: nn.Module, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """The most likely label of each picture, int64, shape (N,).

    Args:
        images: uint8, shape (N, H, W, C).
        batch_size: images at a time, ``evaluation.batch_size``.

    Raises:
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    device = next(network.parameters()).device

    def portion(indices: range) -> np.ndarray:
        batch = from_uint8(images[indices.start : indices.stop]).to(device)
        return network(batch).argmax(dim=1).cpu().numpy()

    with torch.inference_mode():
        return np.concatenate([*in_portions("evaluation.batch_size", portion, len(images), batch_size, device)])


def save_classifier(
    folder: Path, network: nn.Module, class_names: tuple[str, ...], test_accuracy: float, test_count: int
) -> None:
    """Writes ``model.safetensors`` and ``classifier.json`` into an existing folder.

    Args:
        test_accuracy: share of the held-out real pictures that it labels rightly: no samples can be expected to do
            better.
        test_count: how many those are.
    """
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "model.safetensors")
    write_json(
        folder / "classifier.json",
        {
            "architecture": "torchvision ResNet-18, 3x3 stem",
            "class_names": list(class_names),
            "channels": int(network.get_parameter("conv1.weight").shape[1]),
            "test_accuracy": test_accuracy,
            "test_count": test_count,
        },
    )


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Reads what :func:`save_classifier` wrote; in evaluation mode.

    Raises:
        CheckpointError: the weights are truncated, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_json(folder / "classifier.json")
    network = build_classifier(len(facts["class_names"]), facts["channels"])
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'}: truncated, or weights of another network.") from error
    return network.to(device).eval()
