"""What losses compare with: pixels, or the features of a perceptual network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from diffusion.runtime.downloads import hub_checkpoints, read_or_download, tensors_of
from diffusion.runtime.settings import GrownSettings, Settings, UserPath
from diffusion.teachers.facts import TeacherFacts

# Two batches of pictures, shape (N, C, H, W), to one distance a picture, shape (N,), of second order in the difference.
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PixelDistance = Literal["l2", "l1", "pseudo_huber", "huber"]
_PSEUDO_HUBER = 0.00054  # c / √D, Song & Dhariwal 2023 (arXiv 2310.14189), sec. 3.3
_HUBER = 0.001  # c, Luo et al. 2023 (arXiv 2310.04378), their code
Backbone = Literal["vgg", "alex", "squeeze", "efficientnet-lite0"]

# torchvision's ImageNet weights: the file, and the first digits of its SHA-256, which its name ends in.
_FILES: dict[Backbone, tuple[str, str]] = {
    "vgg": ("vgg16-397923af.pth", "397923af"),
    "alex": ("alexnet-owt-7be5be79.pth", "7be5be79"),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", "b8a52dc0"),
}
_URL = "https://download.pytorch.org/models/"

# Below these sizes the last feature map of a backbone would have no pixel left.
SMALLEST: dict[Backbone, int] = {"vgg": 16, "alex": 32, "squeeze": 32, "efficientnet-lite0": 32}


def squared_l2(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the pixels, shape (N,)."""
    return (a - b).square().flatten(1).mean(dim=1)


class LpipsSettings(GrownSettings):
    """The LPIPS distance (Zhang et al. 2018, arXiv 1801.03924), version 0.1.

    Attributes:
        backbone: the network whose features are compared. The first three are the package's; "efficientnet-lite0" needs
            no download, but no layer weights were ever fitted for it: :class:`UncalibratedLpips`.
        weights: file with torchvision's ImageNet weights of the backbone; null looks in the usual cache and downloads
            where the network allows.
        resize: side in pixels to which images are resized first (bilinear); of those that are not square, the shorter
            one, so that nothing is distorted. null leaves them as they are.
        greyscale: how pictures of one channel get the three that the backbone wants: "repeat". There is no default.
        pooling: between the backbone's layers, "max" as it was trained, or, of "vgg", "average" as in the package piq
            (``replace_pooling=True``), which the PyTorch code of consistency models and of PID takes. The layer
            weights, which were fitted with "max", are the same.
    """

    later: ClassVar[tuple[str, ...]] = ("pooling",)

    backbone: Backbone = "vgg"
    weights: UserPath | None = None
    resize: int | None = Field(None, ge=1)
    greyscale: Literal["repeat"] | None = None
    pooling: Literal["max", "average"] = "max"

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError where images of that shape, (C, H, W), cannot be compared."""
        side = min(shape[1:])
        if shape[0] == 1 and self.greyscale is None:
            raise ValueError(
                "lpips.greyscale: found null with pictures of one channel, expected 'repeat': the backbone has three"
            )
        if (self.resize or side) < SMALLEST[self.backbone]:
            raise ValueError(
                f"lpips.resize: found {self.resize} with pictures of {side} pixels, expected at least "
                f"{SMALLEST[self.backbone]} for the backbone {self.backbone!r}"
            )
        if self.pooling != "max" and self.backbone != "vgg":
            raise ValueError(
                f"lpips.pooling: found {self.pooling!r} with the backbone {self.backbone!r}, expected 'max'"
            )
        if self.weights is not None and self.backbone not in _FILES:
            raise ValueError(f"lpips.weights: given, but those of the backbone {self.backbone!r} are installed")
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(f"lpips.weights: found {self.weights!r}, expected an existing file")


class ComparingSettings(Settings):
    """Settings of a method whose loss compares images; a method names the distances that it knows.

    Attributes:
        distance: of the loss; "lpips" as ``lpips`` says.
    """

    distance: str
    lpips: LpipsSettings = LpipsSettings()

    @model_validator(mode="after")
    def _lpips_is_used(self) -> Self:
        if self.distance != "lpips" and self.lpips != LpipsSettings():
            raise ValueError(f"lpips: given, but distance is {self.distance!r}; remove one")
        return self

    def check_distance(self, teacher: TeacherFacts) -> None:
        """Raises ValueError where the states of that teacher cannot be compared."""
        if self.distance != "lpips":
            return
        if teacher.is_latent:
            raise ValueError(
                "distance: found 'lpips', expected another: it compares images, and the teacher's states are latents. "
                "To decode them in the loss would cost more than the network"
            )
        self.lpips.check(teacher.shape)

    def perceptual(self, device: torch.device) -> "LpipsDistance | None":
        """The network of "lpips", None with any other distance; errors as :func:`load_lpips`."""
        return load_lpips(self.lpips, device) if self.distance == "lpips" else None


class LpipsDistance(nn.Module):
    """A perceptual distance.

    Args:
        network: two batches of RGB pictures in [−1, 1] to distances, N values in any shape; `lpips.LPIPS` is one.
        resize: as in :class:`LpipsSettings`.
    """

    def __init__(self, network: nn.Module, resize: int | None = None) -> None:
        super().__init__()
        self.network, self.resize = network.eval().requires_grad_(False), resize

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances of pictures of shape (N, C, H, W) with C = 1 or 3, shape (N,)."""
        return self.network(self._fitted(a), self._fitted(b)).reshape(len(a))

    def _fitted(self, images: torch.Tensor) -> torch.Tensor:
        images = images.expand(-1, 3, -1, -1)
        if self.resize is None:
            return images
        height, width = images.shape[2:]
        shorter = min(height, width)
        size = [round(self.resize * side / shorter) for side in (height, width)]
        return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class UncalibratedLpips(nn.Module):
    """LPIPS without fitted layer weights (the "baseline" of its paper, sec. 3) on EfficientNet-Lite0.

    Activations at the end of every resolution, of unit length over the channels; their squared difference, summed over
    channels and layers and averaged over space.
    """

    # The last block before each halving of the resolution.
    _TAPS = (0, 2, 4, 10, 15)

    def __init__(self) -> None:
        super().__init__()
        from diffusion.runtime.efficientnet import load_efficientnet

        self.backbone = load_efficientnet()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances of pictures in [−1, 1], shape (N, 3, H, W), shape (N,)."""
        pairs = zip(self._activations(a), self._activations(b), strict=True)
        return torch.stack([(one - other).square().sum(dim=1).mean(dim=(1, 2)) for one, other in pairs]).sum(dim=0)

    def _activations(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = (images * 127.5 + 0.5) / 128  # the network was trained on (uint8 − 127) / 128
        x = self.backbone._swish(self.backbone._bn0(self.backbone._conv_stem(x)))
        kept = []
        for index, block in enumerate(self.backbone._blocks):
            x = block(x)
            if index in self._TAPS:
                kept.append(nn.functional.normalize(x, dim=1, eps=1e-10))
        return kept


def build_lpips(settings: LpipsSettings) -> LpipsDistance:
    """The `lpips` package's network with its own linear layers and a random backbone, or the installed one."""
    if settings.backbone == "efficientnet-lite0":
        return LpipsDistance(UncalibratedLpips(), settings.resize)
    import lpips

    # Not the package's own: it would unpickle whatever lies in the cache.
    network = lpips.LPIPS(net=settings.backbone, pnet_rand=True, verbose=False)
    if settings.pooling == "average":
        _average_pooling(network.net)
    return LpipsDistance(network, settings.resize)


def load_lpips(settings: LpipsSettings, device: torch.device) -> LpipsDistance:
    """:func:`build_lpips` with torchvision's weights of the backbone.

    Raises:
        UserError: the backbone's weights are missing, or not the published ones; says how to get them.
    """
    distance = build_lpips(settings)
    if settings.backbone in _FILES:
        file, digits = _FILES[settings.backbone]
        path = Path(settings.weights) if settings.weights else hub_checkpoints() / file
        content = read_or_download(
            path,
            _URL + file,
            digits,
            key="methods.<variant>.lpips.weights",
            download=settings.weights is None,
            otherwise="set distance to 'l2'",
        )
        _fill(distance.network.net, tensors_of(content, path, _URL + file))
    return distance.to(device)


def _fill(backbone: Any, state: dict[str, torch.Tensor]) -> None:
    # slice<k>.<i>.… of the package is features.<i>.… of torchvision.
    own = backbone.state_dict()
    backbone.load_state_dict({name: state["features." + name.partition(".")[2]] for name in own}, strict=True)


def _average_pooling(backbone: nn.Module) -> None:
    for part in backbone.children():
        for name, module in part.named_children():
            if isinstance(module, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(module.kernel_size, module.stride))


def picture_distance(one: torch.Tensor, other: torch.Tensor, distance: PixelDistance | LpipsDistance) -> torch.Tensor:
    """The distance of two batches of pictures, shape (N, C, H, W); mean over batch and pixels, a scalar.

    "pseudo_huber" is √(‖x − y‖² + c²) − c of a picture of D numbers with c = 0.00054 √D, divided by √D.
    "huber" is √(d² + c²) − c of each difference d of two numbers, with c = 0.001.
    """
    if isinstance(distance, LpipsDistance):
        return distance(one, other).mean()
    if distance == "l1":
        return (one - other).abs().mean()
    if distance == "l2":
        return (one - other).square().mean()
    if distance == "huber":
        return (((one - other).square() + _HUBER**2).sqrt() - _HUBER).mean()
    mean_square = (one - other).square().flatten(1).mean(dim=1)
    return ((mean_square + _PSEUDO_HUBER**2).sqrt() - _PSEUDO_HUBER).mean()
