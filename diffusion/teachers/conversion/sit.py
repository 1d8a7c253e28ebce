"""State dictionaries of SiT (Ma et al. 2024, arXiv 2401.08740; willisma/SiT): transformers of flows of latents.

Read as those of guided-diffusion are. What the authors' training stores holds its average, and its options beside it.
"""

import math
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.conditions import ClassLabels
from diffusion.denoiser import Denoiser
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import FlowSchedule
from diffusion.teachers.conversion.weights import as_state, filled, read_tensors, told_keys
from diffusion.teachers.latents import Latents
from diffusion.thresholding import NO_THRESHOLD

_NETWORK = "SiT"
# Of a width, blocks and heads: S, B, L and XL. The weights do not tell the heads.
SIZES = {384: (12, 6), 768: (12, 12), 1024: (24, 16), 1152: (28, 16)}
_TRAINED = {"path_type": "Linear", "prediction": "velocity"}  # of the options of train.py
_ALWAYS = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
_SINGLE = {
    "x_embedder.proj": "transformer.pos_embed.proj",
    "t_embedder.mlp.0": "time_embedding.linear_1",
    "t_embedder.mlp.2": "time_embedding.linear_2",
    "y_embedder.embedding_table": "class_embedding",
    "final_layer.adaLN_modulation.1": "transformer.proj_out_1",
}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}


def load_sit(file: Path, autoencoder: Path) -> Denoiser:
    """The denoiser of a checkpoint: F = ε − x of a flow of latents; what it learnt beside is left out.

    Args:
        autoencoder: the folder of the autoencoder that made the latents.

    Raises:
        CheckpointError: another file, another architecture, another training.
        UserError: the folder is not such an autoencoder.
    """
    from diffusion.teachers.networks.sit_transformer import SiTTransformer

    try:
        state = _state(file)
        configuration = _configuration(state)
        weights = _weights(state, configuration["patch_size"] ** 2, configuration["in_channels"])
    except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:  # shapes that fit nothing
        raise CheckpointError(
            f"{file}: {error}. Expected one of the architectures in docs/teachers.md, whole."
        ) from error
    if not (autoencoder / "config.json").is_file():
        raise UserError(f"--autoencoder: {autoencoder} is no folder of an autoencoder of `diffusers` (config.json).")
    space = Latents(autoencoder)
    if (found := space.config.get("latent_channels")) != configuration["in_channels"]:
        raise UserError(
            f"--autoencoder: {autoencoder} makes latents of {found} channels, expected {configuration['in_channels']}, "
            f"as {file} is a flow of."
        )
    space.autoencoder(torch.device("cpu"))  # whose weights are looked at
    network = filled(SiTTransformer, configuration, weights, file)
    conditions = ClassLabels(configuration["num_class_embeds"] - 1, has_null=True)
    return Denoiser(network, FlowSchedule(), "flow", NO_THRESHOLD, conditions, space=space)


def _state(file: Path) -> dict[str, torch.Tensor]:
    """The weights: of what training stores, their average.

    Raises:
        CheckpointError, ValueError: the file holds something else.
    """
    found = read_tensors(file, _NETWORK, [Namespace])
    if isinstance(found, dict) and "ema" in found:
        for option, expected in _TRAINED.items():
            if (given := getattr(found.get("args"), option, expected)) != expected:
                raise ValueError(f"was trained with {option} {given!r}, expected {expected!r}")
        found = found["ema"]
    state = as_state(found, file, _NETWORK)
    if missing := [name for name in _ALWAYS if name not in state]:
        raise ValueError(f"holds {told_keys(state)}, without {', '.join(missing)}")
    if foreign := [name for name in state if re.search(r"\.(mlp\.w\d+|[qk]_norm)\.|^feat_rope\.", name)]:
        raise ValueError(f"has {foreign[0]}, as LightningDiT, which is another transformer")
    return state


def _configuration(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of ``SiTTransformer``."""
    width, channels, side, _ = state["x_embedder.proj.weight"].shape
    depth = 1 + max((int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    if width not in SIZES or depth != SIZES[width][0]:
        known = ", ".join(f"{blocks} of width {size}" for size, (blocks, _) in SIZES.items())
        raise ValueError(f"has {depth} blocks of width {width}, expected one of: {known}")
    count, heads = state["pos_embed"].shape[1], SIZES[width][1]
    if math.isqrt(count) ** 2 != count:
        raise ValueError(f"has {count} patches, expected a square's")
    return {
        "sample_size": math.isqrt(count) * side,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": side,
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_class_embeds": state["y_embedder.embedding_table.weight"].shape[0],
    }


def _weights(state: Mapping[str, torch.Tensor], pixels: int, channels: int) -> dict[str, torch.Tensor]:
    """Weights under the names of ``SiTTransformer``; those that no name is known for keep their own.

    Args:
        pixels: of a patch.
        channels: of the states; as many more of the outputs are unused.
    """
    found = {"transformer.pos_embed.pos_embed": state["pos_embed"]}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
        within = f"transformer.transformer_blocks.{block[1]}" if block else ""
        if module == "final_layer.linear":
            outputs = value.unflatten(0, (pixels, -1))  # of each pixel all channels
            if outputs.shape[1] not in (channels, 2 * channels):
                raise ValueError(f"gives {outputs.shape[1]} channels, expected {channels}, or twice as many")
            found[f"transformer.proj_out_2.{kind}"] = outputs[:, :channels].flatten(0, 1)
        elif block and block[2] == "attn.qkv":
            rows = zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True)
            found |= {f"{within}.attn1.{part}.{kind}": part_rows for part, part_rows in rows}
        elif block and block[2] in _BLOCK:
            found[f"{within}.{_BLOCK[block[2]]}.{kind}"] = value
        elif name != "pos_embed":
            found[f"{_SINGLE.get(module, module)}.{kind}"] = value
    return found
