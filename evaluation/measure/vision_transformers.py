"""Features of vision transformers, through `transformers`: further eyes than those of ImageNet's classes.

- ``clip-vit-l-14``: CLIP's image embedding (Radford et al. 2021, arXiv 2103.00020), ViT-L/14, projected to the space it
  shares with text, 768 numbers, not normalised.
- ``dinov2-vit-l-14``: DINOv2 (Oquab et al. 2023, arXiv 2304.07193), ViT-L/14, the class token after the last layer
  norm, 1,024 numbers. Stein et al. 2023 (arXiv 2306.04675) find its Fréchet distance nearer to human judgement than
  FID.

Imported only where one of them is asked for: `transformers` takes seconds to import.
"""

from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
import transformers
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file
from evaluation.measure.extractor import Extractor
from evaluation.measure.pretrained import WEIGHTS, read_model
from evaluation.measure.protocols import VisionTransformerName


class _Kind(NamedTuple):
    hub: str
    model: type[transformers.PreTrainedModel]
    output: str
    dimensions: str  # key of the model's configuration
    mean: list[float]
    std: list[float]
    words: str


_KINDS: dict[VisionTransformerName, _Kind] = {
    "clip-vit-l-14": _Kind(
        "openai/clip-vit-large-patch14",
        transformers.CLIPVisionModelWithProjection,
        "image_embeds",
        "projection_dim",
        OPENAI_CLIP_MEAN,
        OPENAI_CLIP_STD,
        "CLIP's image embedding, projected, not normalised",
    ),
    "dinov2-vit-l-14": _Kind(
        "facebook/dinov2-large",
        transformers.Dinov2Model,
        "pooler_output",
        "hidden_size",
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        "DINOv2's class token after the last layer norm",
    ),
}


class VisionTransformer(FeatureExtractorBase):
    """One of the networks above, by torch-fidelity's contract for extractors.

    Pictures are uint8 or float in 0..255, shape (N, 3, H, W); they are resized to the network's own size (bicubic,
    antialiased, clamped to 0..255) and normalised with the mean and deviation the network was trained with.
    """

    def __init__(self, name: VisionTransformerName, model: transformers.PreTrainedModel) -> None:
        kind = _KINDS[name]
        self.dimensions = int(getattr(model.config, kind.dimensions))
        super().__init__(name, [str(self.dimensions)])
        self.model, self.output = model, kind.output
        self.input_size = int(model.config.image_size if name == "clip-vit-l-14" else 224)
        self.register_buffer("mean", 255 * torch.tensor(kind.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(kind.std).reshape(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def get_provided_features_list(self) -> tuple[str, ...]:  # which differ
        return (str(self.dimensions),)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Pictures (N, 3, H, W), uint8 or float in 0..255, to features ((N, dimensions),)."""
        resized = torch.nn.functional.interpolate(
            images.float(), size=(self.input_size,) * 2, mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 255)
        return (getattr(self.model((resized - self.mean) / self.std), self.output),)


class VisionTransformerExtractor(Extractor):
    """A vision transformer on a device, from a folder of `transformers` or from the Hub."""

    def __init__(self, name: VisionTransformerName, device: torch.device, weights: Path | None) -> None:
        folder = weights or _from_the_hub(name)
        network = VisionTransformer(name, self._read(name, folder)).to(device)
        super().__init__(name, network, str(network.dimensions), device)
        self._folder = folder
        self._sha256 = sha256_file(folder / WEIGHTS)

    @staticmethod
    def _read(name: VisionTransformerName, folder: Path) -> transformers.PreTrainedModel:
        kind = _KINDS[name]
        return read_model(kind.model, folder, f"evaluation.weights.{name}", f"as {kind.hub} has them")

    def classifier(self) -> None:
        """None: these networks know no classes."""

    def _cleanfid_model(self, mode: Any) -> Any:
        return lambda images: self._network(images)[0]

    def describe(self, mode: Any = None) -> dict[str, Any]:
        kind, size = _KINDS[self.name], self._network.input_size  # type: ignore[index]
        return self._common_description(mode) | {
            "network": kind.words,
            "network_library": f"transformers {transformers.__version__}",
            "weights": str(self._folder),
            "weights_sha256": self._sha256,
            "resize": f"{size}x{size}, bicubic, antialiased, as float",
            "normalisation": f"(x - 255 m) / (255 s) with x in 0..255, m = {kind.mean}, s = {kind.std}",
        }


def _from_the_hub(name: VisionTransformerName) -> Path:
    """The folder of the usual cache, filled where the network allows."""
    repository = _KINDS[name].hub
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=["config.json", WEIGHTS]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{repository}: not in the cache, and the download failed ({type(error).__name__}). Download config.json "
            f"and {WEIGHTS} of https://huggingface.co/{repository} and name their folder in the YAML under "
            f"evaluation.weights.{name}; or take other features."
        ) from error
