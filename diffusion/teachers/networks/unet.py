"""Networks that are trained here."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from diffusion.runtime.settings import GrownSettings

_DOWN_BLOCKS = {"conv": "DownBlock2D", "resnet": "ResnetDownsampleBlock2D"}
_UP_BLOCKS = {"conv": "UpBlock2D", "resnet": "ResnetUpsampleBlock2D"}


class NetworkSettings(GrownSettings):
    """A `diffusers` ``UNet2DModel``, or ``UNet2DConditionModel`` where it is told texts; the names are those classes'.

    ``attention_resolutions`` names the feature-map sizes (in pixels; of images that are not
    square, their height) that have self-attention, as the papers do.

    The networks of Dhariwal & Nichol 2021 (arXiv 2105.05233) have ``resnet_time_scale_shift: scale_shift``, where the
    embedding of time and class scales and shifts what is normalised and is not only added, and ``resnet`` for
    ``downsample_type`` and ``upsample_type``, residual blocks in place of single convolutions.

    A network that is told texts attends to their tokens, and to itself, at the sizes that
    ``cross_attention_resolutions`` names, and in its middle.
    """

    later: ClassVar[tuple[str, ...]] = (
        "resnet_time_scale_shift",
        "downsample_type",
        "upsample_type",
        "cross_attention_resolutions",
    )

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
    cross_attention_resolutions: tuple[int, ...] = ()

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
        for key in ("attention_resolutions", "cross_attention_resolutions"):
            for height in getattr(self, key):
                if height not in heights:
                    raise ValueError(f"{key}: {height} is not one of the feature-map sizes {heights}")

    def check_condition(self, text: bool) -> None:
        """Raises ValueError where these settings do not fit a network that is told texts, or that is not."""
        if not text and self.cross_attention_resolutions:
            raise ValueError("cross_attention_resolutions: given, but the teacher is told no text (teacher.text)")
        if text and (self.attention_resolutions or "resnet" in (self.downsample_type, self.upsample_type)):
            raise ValueError(
                "attention_resolutions, downsample_type, upsample_type: expected their defaults in a network that is "
                "told texts; it attends where cross_attention_resolutions says, and changes sizes by convolutions"
            )


def build_network(
    settings: NetworkSettings,
    shape: tuple[int, int, int],
    num_class_embeds: int | None = None,
    text_width: int | None = None,
) -> nn.Module:
    """A fresh network.

    Args:
        shape: (C, H, W) of the images.
        num_class_embeds: labels of a class-conditional network, the one for no class included.
        text_width: numbers in a token's embedding, of a network that is told texts.

    Raises:
        ValueError: the images do not fit the network's levels.
    """
    import diffusers  # 3 seconds: not at import

    channels, *size = shape
    settings.check_size(shape[1:])
    common: dict[str, Any] = {
        "sample_size": size[0] if size[0] == size[1] else tuple(size),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": settings.block_out_channels,
        "layers_per_block": settings.layers_per_block,
        "norm_num_groups": settings.norm_num_groups,
        "resnet_time_scale_shift": settings.resnet_time_scale_shift,
        "dropout": settings.dropout,
    }
    heights = [size[0] >> level for level in range(len(settings.block_out_channels))]
    if text_width is not None:
        attends = [height in settings.cross_attention_resolutions for height in heights]
        return diffusers.UNet2DConditionModel(
            **common,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            # Tokens are projected to the lowest level's width. What the class calls heads' width is their number.
            encoder_hid_dim=text_width,
            encoder_hid_dim_type="text_proj",
            cross_attention_dim=settings.block_out_channels[-1],
            attention_head_dim=tuple(width // settings.attention_head_dim for width in settings.block_out_channels),
        )
    attends = [height in settings.attention_resolutions for height in heights]
    down, up = _DOWN_BLOCKS[settings.downsample_type], _UP_BLOCKS[settings.upsample_type]
    # Without it the attention in the middle has no norm where the embedding scales.
    groups = settings.norm_num_groups if settings.resnet_time_scale_shift == "scale_shift" else None
    return diffusers.UNet2DModel(
        **common,
        down_block_types=tuple("AttnDownBlock2D" if a else down for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else up for a in reversed(attends)),
        downsample_type=settings.downsample_type,
        upsample_type=settings.upsample_type,
        attention_head_dim=settings.attention_head_dim,
        attn_norm_num_groups=groups,
        num_class_embeds=num_class_embeds,
    )
