"""State dictionaries of OpenAI's U-Net: guided-diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233), and the EDM
teachers of consistency_models (Song et al. 2023, arXiv 2303.01469).

They are read by ``torch.load(weights_only=True)``: tensors, and nothing that a file could execute.
"""

import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from diffusion.conditions import ClassLabels, Conditions, Unconditional
from diffusion.denoiser import Denoiser
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import DiscreteSchedule, EdmSchedule
from diffusion.teachers.conversion.weights import (
    AttentionOrder,
    BlockNames,
    as_state,
    filled,
    read_tensors,
    told_keys,
    unet_blocks,
    unet_configuration,
    unet_weights,
)
from diffusion.thresholding import Thresholding

# "heads-first": the rows of a joint projection are split into heads, then each into query, key and value
# (use_new_attention_order False); "qkv-first": the other way round. The weights do not tell.
Order = Literal["heads-first", "qkv-first"]
Betas = Literal["linear", "cosine"]
_ORDERS: dict[Order, AttentionOrder] = {"heads-first": "hqc", "qkv-first": "qhc"}
_NUM_TIMESTEPS = 1000
_NETWORK = "OpenAI's U-Net"
# What create_model (script_util.py) makes of a resolution.
_RESOLUTIONS: dict[tuple[float, ...], int] = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}
_TIMESTEP_SCALE = 1000.0  # KarrasDenoiser.denoise tells 1000 · ¼ log σ
_ALWAYS = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight")
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SINGLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def adm_schedule(betas: Betas, num_timesteps: int = _NUM_TIMESTEPS) -> DiscreteSchedule:
    """guided-diffusion's schedules (gaussian_diffusion.py, get_named_beta_schedule).

    "linear": β from 10⁻⁴ to 0.02 at 1,000 timesteps (Ho et al. 2020), scaled for other numbers; "cosine": ᾱ(t) = cos²
    of (t + 0.008) / 1.008 quarter turns, β at most 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672).
    """
    if betas == "linear":
        scale = 1000 / num_timesteps
        steps = np.linspace(scale * 1e-4, scale * 0.02, num_timesteps)
    else:
        signal = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * (math.pi / 2)) ** 2
        steps = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return DiscreteSchedule(np.cumprod(1 - steps))


def load_guided_diffusion(
    file: Path, order: Order, betas: Betas, thresholding: Thresholding, resolution: int | None = None
) -> Denoiser:
    """The denoiser of a checkpoint of guided-diffusion: it predicts ε; the variance that it learnt beside is left out.

    Args:
        order: of the attention's joint projections.
        betas: the schedule that it was trained on, of 1,000 timesteps.
        thresholding: how its estimate is bounded.
        resolution: of the pictures; None takes the one that the authors give these channel multiples.

    Raises:
        CheckpointError: another file, another architecture.
        UserError: the resolution has to be told, or does not fit.
    """
    from diffusers import UNet2DModel

    configuration, weights, conditions = _read(file, order, resolution)
    network = filled(UNet2DModel, configuration, weights, file)
    return Denoiser(network, adm_schedule(betas), "epsilon", thresholding, conditions)


def load_consistency_teacher(
    file: Path, order: Order, thresholding: Thresholding, resolution: int | None = None
) -> Denoiser:
    """The denoiser of an EDM teacher of consistency_models: EDM's preconditioning and noise levels, another clock.

    Arguments and errors as :func:`load_guided_diffusion`.
    """
    from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet

    configuration, weights, conditions = _read(file, order, resolution)
    network = filled(TimeScaledUNet, configuration | {"timestep_scale": _TIMESTEP_SCALE}, weights, file)
    return Denoiser(network, EdmSchedule(), "edm", thresholding, conditions)


def _read(
    file: Path, order: Order, resolution: int | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Conditions]:
    """The arguments of ``UNet2DModel``, its weights, and what it is told."""
    state = as_state(read_tensors(file, _NETWORK), file, _NETWORK)
    try:
        return _read_state(state, order, resolution)
    except UserError:
        raise
    except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:  # shapes that fit nothing
        reason = f"has no {error.args[0]}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{file}: {reason}. Expected one of the architectures in docs/teachers.md, whole."
        ) from error


def _read_state(
    state: dict[str, torch.Tensor], order: Order, resolution: int | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Conditions]:
    if missing := [name for name in _ALWAYS if name not in state]:
        kind = ", like the classifiers of guided-diffusion" if any(n.startswith("input_blocks.") for n in state) else ""
        raise ValueError(f"holds {told_keys(state)}, without {', '.join(missing)}{kind}")
    if resampling := [name for name in state if re.fullmatch(r"(input_blocks\.\d+\.0\.op|.*\.conv)\.weight", name)]:
        raise ValueError(f"has {resampling[0]}: levels are halved or doubled by convolutions (resblock_updown False)")
    width, pictures = state["input_blocks.0.0.weight"].shape[:2]
    outputs = state["out.2.weight"].shape[0]
    if outputs not in (pictures, 2 * pictures):
        raise ValueError(
            f"takes pictures of {pictures} channels and gives {outputs}, as the upsamplers of guided-diffusion; "
            f"expected as many, or twice with the variance"
        )
    if (embedded := state["time_embed.0.weight"].shape[1]) != width:
        raise ValueError(
            f"embeds the time in {embedded} channels and has {width} at its finest level, as the 512×512 network of "
            f"guided-diffusion; expected as many, which is what `diffusers`' UNet2DModel can have"
        )
    levels, layers = _levels(state)
    blocks, attentions = _sources(state, levels, layers)
    first = [blocks[level * (layers + 1)] for level in range(levels)]
    channels = [state[f"{block}.out_layers.3.weight"].shape[0] for block in first]
    labels = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None
    # The second half of the output is the variance.
    state = state | {f"out.2.{kind}": state[f"out.2.{kind}"][:pictures] for kind in ("weight", "bias")}
    targets = unet_blocks(levels, layers)
    weights = unet_weights(
        state,
        _SINGLE,
        [(source, target) for source, (target, _) in zip(blocks, targets, strict=True)],
        [(attentions[s], target) for s, (_, target) in zip(blocks, targets, strict=True) if target and s in attentions],
        BlockNames(_RESIDUAL, {"norm": "group_norm", "proj_out": "to_out.0"}, _ORDERS[order]),
    )
    configuration = unet_configuration(
        resolution=_resolution([count / width for count in channels], resolution),
        pictures=pictures,
        channels=channels,
        layers=layers,
        attends=[block in attentions for block in first],
        scale_shift=state[f"{first[0]}.emb_layers.1.weight"].shape[0] == 2 * channels[0],
        labels=labels,
    )
    return configuration, weights, Unconditional() if labels is None else ClassLabels(labels, has_null=False)


def _levels(state: dict[str, torch.Tensor]) -> tuple[int, int]:
    """The number of levels, and of residual blocks each has in the encoder.

    A block that halves or doubles looks like any other; but the doubling ones stand behind the last block of a level.
    """
    numbers = {int(match[1]) for name in state if (match := re.match(r"output_blocks\.(\d+)\.", name))}
    doubling = {
        int(match[1])
        for name in state
        if (match := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight", name))
    }
    levels = len(doubling) + 1
    each = len(numbers) // levels
    if each < 2 or sorted(doubling) != [each * (level + 1) - 1 for level in range(levels - 1)]:
        raise ValueError(
            f"has {len(numbers)} output blocks and doubles after {sorted(doubling)}; expected equal levels"
        )
    return levels, each - 1


def _sources(state: dict[str, torch.Tensor], levels: int, layers: int) -> tuple[list[str], dict[str, str]]:
    """The residual blocks in the order of computation, and the attention behind each that has one."""
    blocks = [f"input_blocks.{number}.0" for number in range(1, levels * (layers + 1))]
    blocks += ["middle_block.0", "middle_block.2"]
    for number in range(levels * (layers + 1)):
        blocks.append(f"output_blocks.{number}.0")
        if number % (layers + 1) == layers and number < (levels - 1) * (layers + 1):
            blocks += [
                f"output_blocks.{number}.{i}"
                for i in (1, 2)
                if f"output_blocks.{number}.{i}.in_layers.2.weight" in state
            ]
    behind = {block: f"{block.rpartition('.')[0]}.1" for block in blocks if block.endswith(".0")}
    return blocks, {block: name for block, name in behind.items() if f"{name}.qkv.weight" in state}


def _resolution(multiples: list[float], told: int | None) -> int:
    if told is None:
        if tuple(multiples) not in _RESOLUTIONS:
            raise UserError(
                f"--resolution: not given, and the channels of the levels are {', '.join(f'{m:g}' for m in multiples)} "
                f"times the first's, for which the authors name no resolution; say which pictures it makes."
            )
        return _RESOLUTIONS[tuple(multiples)]
    if told < 1 or told % 2 ** (len(multiples) - 1):
        raise UserError(
            f"--resolution: found {told}, expected a multiple of {2 ** (len(multiples) - 1)}: the network has "
            f"{len(multiples)} levels."
        )
    return told
