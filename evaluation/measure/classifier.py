"""A classifier, trained on the real images alone, that tells whether conditional samples show what was asked for.

It has one head, of the classes; where classes are captions, one head for each attribute
(:class:`~evaluation.measure.captions.Attributes`). The heads are parts of the network's last layer.
"""

from collections.abc import Sequence
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
from evaluation.measure.captions import Attributes, Captions

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


def build_classifier(num_outputs: int, channels: int) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016) with the stem for small pictures: 3×3 without stride, no pooling.

    Args:
        num_outputs: of all heads together.
    """
    from torchvision.models import resnet18

    network = resnet18(num_classes=num_outputs)
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def train_classifier(
    settings: ClassifierSettings, split: Split, run: "TrainingRun"
) -> tuple[nn.Module, dict[str, float]]:
    """Trains a classifier on ``split``; returns it in evaluation mode, and its cost.

    The loss is the cross-entropy, summed over heads.
    """
    attributes = Attributes.of(split)
    if attributes is None:
        heads, of_class = [len(split.class_names)], np.arange(len(split.class_names))[:, None]
    else:
        heads, of_class = list(attributes.num_values), attributes.of_class
    targets_of_class = torch.from_numpy(of_class).to(run.device)
    run.seed_initialisation("initialisation")
    network = build_classifier(sum(heads), split.images.shape[3]).to(run.device)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def compute(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs = network(x).split(heads, dim=1)
        losses = map(nn.functional.cross_entropy, outputs, targets.unbind(dim=1))
        return torch.stack([*losses]).sum()

    compute = run.compiled(compute, settings.training)

    def loss(step: Step) -> torch.Tensor:
        x, labels = pictures.draw(step.batch_size, step.generator)
        return compute(x, targets_of_class[labels])

    trained = run.fit("classifier", network, loss, settings.training, real_images=True)
    return trained.network, trained.cost


def classify(network: nn.Module, images: np.ndarray, batch_size: int = 256, heads: Sequence[int] = ()) -> np.ndarray:
    """The most likely class of each image, int64 (N,); of a network with heads, each head's most likely value, (N, A).

    Args:
        images: uint8, shape (N, H, W, C).
        batch_size: images at a time, ``evaluation.batch_size``.
        heads: how many values each attribute has, where classes are captions.

    Raises:
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    device = next(network.parameters()).device

    def portion(indices: range) -> np.ndarray:
        batch = from_uint8(images[indices.start : indices.stop]).to(device)
        outputs = network(batch)
        if not heads:
            return outputs.argmax(dim=1).cpu().numpy()
        return torch.stack([head.argmax(dim=1) for head in outputs.split([*heads], dim=1)], dim=1).cpu().numpy()

    with torch.inference_mode():
        return np.concatenate([*in_portions("evaluation.batch_size", portion, len(images), batch_size, device)])


def save_classifier(
    folder: Path,
    network: nn.Module,
    class_names: tuple[str, ...],
    test_accuracy: float,
    test_count: int,
    attributes: Attributes | None = None,
    test_captions: Captions | None = None,
) -> None:
    """Writes ``model.safetensors`` and ``classifier.json`` into an existing folder.

    Args:
        test_accuracy: share of the held-out real pictures that it labels rightly, in every attribute where classes
            are captions: no samples can be expected to do better.
        test_count: how many those are.
        attributes: of the captions, where classes are captions.
        test_captions: what it finds in these images, where classes are captions.
    """
    from safetensors.torch import save_file

    facts = {
        "architecture": "torchvision ResNet-18, 3x3 stem",
        "class_names": list(class_names),
        "channels": int(network.get_parameter("conv1.weight").shape[1]),
        "test_accuracy": test_accuracy,
        "test_count": test_count,
    }
    if attributes is not None and test_captions is not None:
        facts |= {
            "attributes": attributes.as_json(),
            "test_found": test_captions.found.tolist(),
        }
    save_file(network.state_dict(), folder / "model.safetensors")
    write_json(folder / "classifier.json", facts)


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Reads what :func:`save_classifier` wrote; in evaluation mode.

    Raises:
        CheckpointError: the weights are truncated, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_json(folder / "classifier.json")
    attributes = load_attributes(folder)
    num_outputs = len(facts["class_names"]) if attributes is None else sum(attributes.num_values)
    network = build_classifier(num_outputs, facts["channels"])
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'}: truncated, or weights of another network.") from error
    return network.to(device).eval()


def load_attributes(folder: Path) -> Attributes | None:
    """The attributes that a stored classifier finds; None where it finds classes."""
    facts = read_json(folder / "classifier.json")
    return Attributes.from_json(facts["attributes"]) if "attributes" in facts else None
