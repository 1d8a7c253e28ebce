"""Networks that are trained here."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from diffusion.runtime.settings import GrownSettings

_DOWN_BLOCKS = {"conv": "DownBlock2D", "resnet": "ResnetDownsampleBlock2D"}
_UP_BLOCKS = {"conv": "UpBlock2D", "resnet": "ResnetUpsampleBlock2D"}


class NetworkSettings(GrownSettings):
    """A `diffusers` ``UNet2DModel``; the names are that class's own.

    ``attention_resolutions`` names the feature-map sizes (in pixels; of images that are not
    square, their height) that have self-attention, as the papers do.

    The networks of Dhariwal & Nichol 2021 (arXiv 2105.05233) have ``resnet_time_scale_shift: scale_shift``, where the
    embedding of time and class scales and shifts what is normalised and is not only added, and ``resnet`` for
    ``downsample_type`` and ``upsample_type``, residual blocks in place of single convolutions.
    """

    later: ClassVar[tuple[str, ...]] = ("resnet_time_scale_shift", "downsample_type", "upsample_type")

    kind: Literal["unet"] = "unet"
    block_out_channels: tuple[int, ...] = Field((32, 64, 64), min_length=1)
    layers_per_block: int = Field(1, ge=1)
    attention_resolutions: tuple[int, ...] = ()
    attention_head_dim: int = Field(8, ge=1)
    norm_num_groups: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"

    @model_validator(mode="after")
    def _divisible(self) -> "NetworkSettings":
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {channels} is not a positive multiple of norm_num_groups "
                    f"({self.norm_num_groups})"
                )
            if channels % self.attention_head_dim:
                raise ValueError(
                    f"block_out_channels: {channels} is not a multiple of attention_head_dim "
                    f"({self.attention_head_dim})"
                )
        return self

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError where images of ``size`` (H, W) do not fit the network's levels."""
        levels = len(self.block_out_channels)
        for side in size:
            if side % 2 ** (levels - 1):
                raise ValueError(
                    f"block_out_channels has {levels} levels, so the resolution must be a multiple of "
                    f"{2 ** (levels - 1)}; found {side}"
                )
        heights = [size[0] >> level for level in range(levels)]
        for height in self.attention_resolutions:
            if height not in heights:
                raise ValueError(f"attention_resolutions: {height} is not one of the feature-map sizes {heights}")


def build_network(
    settings: NetworkSettings, shape: tuple[int, int, int], num_class_embeds: int | None = None
) -> nn.Module:
    """A fresh network.

    Args:
        shape: (C, H, W) of the images.
        num_class_embeds: labels of a class-conditional network, the one for no class included.

    Raises:
        ValueError: the images do not fit the network's levels.
    """
    from diffusers import UNet2DModel  # 3 seconds: not at import

    channels, *size = shape
    settings.check_size(shape[1:])
    attends = [size[0] >> level in settings.attention_resolutions for level in range(len(settings.block_out_channels))]
    down, up = _DOWN_BLOCKS[settings.downsample_type], _UP_BLOCKS[settings.upsample_type]
    # Without it the attention in the middle has no norm where the embedding scales.
    groups = settings.norm_num_groups if settings.resnet_time_scale_shift == "scale_shift" else None
    return UNet2DModel(
        sample_size=size[0] if size[0] == size[1] else tuple(size),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else down for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else up for a in reversed(attends)),
        downsample_type=settings.downsample_type,
        upsample_type=settings.upsample_type,
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=settings.norm_num_groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift=settings.resnet_time_scale_shift,
        dropout=settings.dropout,
        num_class_embeds=num_class_embeds,
    )
