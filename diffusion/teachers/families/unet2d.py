"""U-Nets in pixel space, with classes or without: `diffusers`' ``UNet2DModel``, and two of published teachers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusion.conditions import ClassLabels, Conditions, Unconditional
from diffusion.teachers.families import TeacherFamily


class UNet2D(TeacherFamily):
    networks: ClassVar[tuple[str, ...]] = ("UNet2DModel", "SongUNet", "TimeScaledUNet")
    own_networks: ClassVar[tuple[str, ...]] = ("SongUNet", "TimeScaledUNet")

    def network_class(self, name: str) -> Any:
        import diffusers  # 3 seconds: not at import

        if name == "UNet2DModel":
            return diffusers.UNet2DModel
        from diffusion.teachers.networks.song_unet import SongUNet
        from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet

        return {"SongUNet": SongUNet, "TimeScaledUNet": TimeScaledUNet}[name]

    def conditions(self, config: Mapping[str, Any], num_classes: int | None = None) -> Conditions:
        labels = config.get("num_class_embeds")
        if config.get("class_embed_type") is not None:
            raise ValueError(f"found class_embed_type {config['class_embed_type']!r}, expected none")
        if labels is None:
            if num_classes is not None:
                raise ValueError(f"the network is not told any class, but num_classes is {num_classes}")
            return Unconditional()
        classes = labels if num_classes is None else num_classes
        if labels - classes not in (0, 1):
            raise ValueError(
                f"the network has {labels} labels; expected num_classes {labels}, or {labels - 1} and no class"
            )
        return ClassLabels(classes, has_null=labels == classes + 1)

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        return [*channel_problems(config), *size_problems(config), *time_problems(config)]


def channel_problems(config: Mapping[str, Any], default: int = 3) -> list[str]:
    """What is wrong with the channels of a U-Net's configuration, a line each; ``default`` is its class's own."""
    inputs, outputs = (config.get(key, default) for key in ("in_channels", "out_channels"))
    if inputs == outputs:
        return []
    found = f"found in_channels {inputs} and out_channels {outputs}, expected both alike"
    if outputs == 2 * inputs:
        return [
            f"{found}: the second half is a learnt variance, which is not read. Store the network with the first "
            f"half of conv_out alone (of its weight and bias) and out_channels {inputs}."
        ]
    return [f"{found}: the network must estimate the image that it is given, and nothing be given beside it."]


def size_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the size of a U-Net's images, a line each."""
    found, blocks = config.get("sample_size"), config.get("block_out_channels")
    sides = found if isinstance(found, (list, tuple)) and len(found) == 2 else (found,)
    levels = len(blocks) if isinstance(blocks, (list, tuple)) else 1
    if any(type(side) is not int or side < 1 for side in sides):
        return [
            f"found sample_size {found!r}, expected the side of the images that the network was trained on, such "
            f"as 32, or their height and width; write it into the file."
        ]
    return [
        f"found sample_size {side} with {levels} block_out_channels, expected a multiple of {2 ** (levels - 1)}: "
        f"every level halves the image."
        for side in dict.fromkeys(sides)
        if side % 2 ** (levels - 1)
    ]


def time_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the way a U-Net is told the time, a line each."""
    embedding = config.get("time_embedding_type", "positional")
    if embedding == "positional":
        return []
    reasons = {
        "learned": ": it knows whole timesteps only, and methods ask between them",
        "fourier": ": it takes the logarithm of a noise level, and is given timesteps from 0 on here",
    }
    return [f"found time_embedding_type {embedding!r}, expected 'positional'{reasons.get(embedding, '')}."]


FAMILY = UNet2D()
