"""What the readers of all families share: names and shapes of weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.runtime.errors import CheckpointError, first_line
from diffusion.runtime.pickles import named_global

HEAD_CHANNELS = 64
# The rows of a joint projection: query, key or value (q), head (h), channel of the head (c), the outermost first.
AttentionOrder = Literal["qhc", "hqc", "hcq"]


@dataclass(frozen=True)
class BlockNames:
    """What a family calls the layers of a residual block and of an attention, and what `diffusers` does.

    The joint projection of an attention is "qkv" in all of them; ``order`` is that of its rows.
    """

    residual: Mapping[str, str]
    attention: Mapping[str, str]
    order: AttentionOrder


def read_tensors(file: Path, network: str, known: Iterable[type] = ()) -> Any:
    """What ``torch.load(weights_only=True)`` makes of a file: tensors, and nothing that a file could execute.

    Args:
        network: whose weights are expected, for messages.
        known: further classes that it may have objects of, whose making does nothing.

    Raises:
        CheckpointError: the file asks for code, or is truncated.
    """
    try:
        with torch.serialization.safe_globals(list(known)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # broken bytes can make of it whatever its opcodes raise
        asked = named_global(error)
        reason = f"refused (it asks for {asked})" if asked else f"truncated, or not of torch.save ({first_line(error)})"
        raise CheckpointError(
            f"{file}: {reason}; expected a state dictionary of {network}, whole. Nothing of it was executed."
        ) from error


def as_state(found: Any, file: Path, network: str) -> dict[str, torch.Tensor]:
    """A state dictionary of ``network``, found in ``file``.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{file}: holds {told_keys(found)}; expected names with a tensor each, of {network}.")
    return {str(name): value for name, value in found.items()}


def told_keys(found: Any) -> str:
    """What a file holds, for messages."""
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    names = [str(name) for name in found]
    return f"the keys {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"


def unet_blocks(levels: int, layers: int) -> list[tuple[str, str | None]]:
    """The residual blocks of a ``UNet2DModel`` in the order of computation, each with the attention after it.

    The resampling blocks between levels are residual blocks too, and have none.
    """
    blocks: list[tuple[str, str | None]] = []
    for level in range(levels):
        blocks += [(f"down_blocks.{level}.resnets.{i}", f"down_blocks.{level}.attentions.{i}") for i in range(layers)]
        if level < levels - 1:
            blocks.append((f"down_blocks.{level}.downsamplers.0", None))
    blocks += [("mid_block.resnets.0", "mid_block.attentions.0"), ("mid_block.resnets.1", None)]
    for level in range(levels):
        blocks += [(f"up_blocks.{level}.resnets.{i}", f"up_blocks.{level}.attentions.{i}") for i in range(layers + 1)]
        if level < levels - 1:
            blocks.append((f"up_blocks.{level}.upsamplers.0", None))
    return blocks


def unet_configuration(
    *,
    resolution: int,
    pictures: int,
    channels: Iterable[int],
    layers: int,
    attends: Iterable[bool],
    scale_shift: bool,
    labels: int | None,
) -> dict[str, Any]:
    """The arguments of ``UNet2DModel`` for a network of Dhariwal & Nichol 2021 (arXiv 2105.05233).

    Args:
        pictures: channels of the pictures.
        channels, attends: per level, from the finest.
        layers: residual blocks a level in the encoder.
        scale_shift: whether the embedding scales and shifts, or shifts alone.
        labels: of a class-conditional network.
    """
    attention = tuple(attends)
    return {
        "sample_size": resolution,
        "in_channels": pictures,
        "out_channels": pictures,
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": HEAD_CHANNELS,
        # Without it the attention in the middle would have no norm where the embedding scales.
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": labels,
    }


def unet_weights(
    weights: Mapping[str, torch.Tensor],
    layers: Mapping[str, str],
    blocks: Iterable[tuple[str, str]],
    attentions: Iterable[tuple[str, str]],
    names: BlockNames,
) -> dict[str, torch.Tensor]:
    """Weights under the names of ``UNet2DModel``; those that no name is known for keep their own.

    Args:
        layers, blocks, attentions: the family's name and `diffusers`' of single layers, of residual blocks and of
            attentions.
    """
    attentions = list(attentions)
    modules = dict(layers)
    for table, pairs in ((names.residual, blocks), (names.attention, attentions)):
        modules |= {f"{old}.{a}": f"{new}.{b}" for old, new in pairs for a, b in table.items()}
    joint = {f"{old}.qkv": new for old, new in attentions}
    found = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if module in joint:
            for part, rows in _split(value, names.order, name).items():
                found[f"{joint[module]}.{part}.{kind}"] = rows
        elif module in modules:
            # What projects in an attention is a convolution of one pixel there, and a linear map in `diffusers`.
            flat = modules[module].endswith("to_out.0") and kind == "weight"
            found[f"{modules[module]}.{kind}"] = value.flatten(1) if flat else value
        else:
            found[name] = value
    return found


def _split(joint: torch.Tensor, order: AttentionOrder, name: str) -> dict[str, torch.Tensor]:
    """A joint projection's weight or bias as the three of `diffusers`, whose rows are ordered by head."""
    if joint.shape[0] % (3 * HEAD_CHANNELS):
        raise ValueError(f"{name} has {joint.shape[0]} rows, expected three times a multiple of {HEAD_CHANNELS}")
    sizes = {"q": 3, "h": joint.shape[0] // (3 * HEAD_CHANNELS), "c": HEAD_CHANNELS}
    rows = joint.reshape(*(sizes[axis] for axis in order), -1).permute(*(order.index(axis) for axis in "qhc"), 3)
    parts = rows.flatten(1, 2)
    return dict(zip(("to_q", "to_k", "to_v"), parts.squeeze(-1) if joint.ndim == 1 else parts, strict=True))


def filled(
    network_class: Any, configuration: Mapping[str, Any], weights: Mapping[str, torch.Tensor], file: Path
) -> Any:
    """A network with exactly these weights, in float32.

    Raises:
        CheckpointError: the weights are not those of that network, or not finite.
    """
    with torch.device("meta"):
        network = network_class(**configuration)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]}
    for told, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("has, beside all that is known,", found.keys() - wanted.keys()),
        ("has in another shape", differing),
    ):
        if names:
            listed = [
                f"{n} {found.get(n, '')}" + (f" for {wanted[n]}" if n in differing else "") for n in sorted(names)
            ]
            raise CheckpointError(
                f"{file}: {told} {len(names)} of the weights of the {network_class.__name__} that the rest of it "
                f"describes: {', '.join(listed[:4])}{', …' if len(listed) > 4 else ''}. Expected one of the "
                f"architectures in docs/teachers.md, whole."
            )
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{file}: {len(broken)} tensors contain NaN or infinity, e.g. {broken[0]}.")
    network.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)
