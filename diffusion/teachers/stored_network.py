"""The network of a stored pipeline: its configuration, its class, its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.runtime.files import canonical_json, read_json_object, sha256_file
from diffusion.runtime.packages import version_of
from diffusion.teachers.weights import check_fit, described_weights, fill, load_weights, weights_files

# Networks of published teachers that `diffusers` has not (diffusion/teachers/networks).
OWN_NETWORKS = ("SongUNet", "TimeScaledUNet")
_CHANNELS = 3  # of `diffusers`' networks that do not say


def check_network(folder: Path) -> None:
    path, problems = part_of(folder, "unet") / "config.json", []
    config = network_configuration(folder)
    inputs, outputs = (config.get(key, _CHANNELS) for key in ("in_channels", "out_channels"))
    if inputs != outputs:
        found = f"found in_channels {inputs} and out_channels {outputs}, expected both alike"
        problems.append(
            f"{found}: the second half is a learnt variance, which is not read. Store the network with the first half "
            f"of conv_out alone (of its weight and bias) and out_channels {inputs}."
            if outputs == 2 * inputs
            else f"{found}: the network must estimate the image that it is given, and nothing be given beside it."
        )
    side = config.get("sample_size")
    if isinstance(side, (list, tuple)) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    levels = len(config["block_out_channels"]) if isinstance(config.get("block_out_channels"), (list, tuple)) else 1
    if type(side) is not int or side < 1:
        problems.append(
            f"found sample_size {config.get('sample_size')!r}, expected the side of the square images that the network "
            f"was trained on, such as 32; write it into the file."
        )
    elif side % 2 ** (levels - 1):
        problems.append(
            f"found sample_size {side} with {levels} block_out_channels, expected a multiple of {2 ** (levels - 1)}: "
            f"every level halves the image."
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        reasons = {
            "learned": ": it knows whole timesteps only, and methods ask between them",
            "fourier": ": it takes the logarithm of a noise level, and is given timesteps from 0 on here",
        }
        problems.append(f"found time_embedding_type {embedding!r}, expected 'positional'{reasons.get(embedding, '')}.")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def check_weights(folder: Path) -> None:
    network, configuration = part_of(folder, "unet"), network_configuration(folder)
    weights = described_weights(network)
    own = configuration.get("_class_name") in OWN_NETWORKS
    code = [sha256_file(file) for file in sorted(Path(__file__).with_name("networks").glob("*.py"))] if own else None
    key = canonical_json([version_of("diffusers"), code, configuration])
    with _of_this_network(network):
        check_fit(lambda: _build(network), weights, key)


def network_class(config: Mapping[str, Any]) -> Any:
    """The class of a stored network's configuration: ``UNet2DModel``, or one of this suite's own.

    The configuration comes from :func:`network_configuration`, which has refused all others.
    """
    import diffusers  # 3 seconds: not at import

    name = config.get("_class_name", "")
    if name not in OWN_NETWORKS:
        return diffusers.UNet2DModel
    from diffusion.teachers.networks.song_unet import SongUNet
    from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet

    return {"SongUNet": SongUNet, "TimeScaledUNet": TimeScaledUNet}[name]


def load_network(folder: Path) -> nn.Module:
    """Reads a network's folder from safetensors, strictly.

    Raises:
        CheckpointError: the weights are missing, truncated or belong to another network.
        UserError: it is a network that this suite does not read.
    """
    network = _build(folder)
    weights = load_weights(folder)
    with _of_this_network(folder):
        fill(network, weights)
    broken = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{weights_files(folder)[0]}: {len(broken)} tensors contain NaN or infinity, e.g. {broken[0]}."
        )
    return network


def _build(folder: Path) -> nn.Module:
    """The network of a folder's configuration, with random weights."""
    path = folder / "config.json"
    config = _read_network_configuration(path)
    try:
        network: nn.Module = network_class(config).from_config(config)
    except Exception as error:  # of a class that is not ours, at what a user's file says
        raise UserError(f"{path}: no network can be built from it ({brief(error)}).") from error
    return network


@contextmanager
def _of_this_network(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights_files(folder)[0]}: weights of another network than {folder / 'config.json'} ({brief(error)})."
        ) from error


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def picture_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that a network of this configuration makes."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config.get("out_channels", _CHANNELS), height, width


def network_configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a pipeline folder's network.

    Raises:
        UserError: it is a network that this suite does not read.
    """
    return _read_network_configuration(part_of(folder, "unet") / "config.json")


def _read_network_configuration(path: Path) -> dict[str, Any]:
    configuration = read_json_object(path)
    # The Hub's oldest folders do not say; whatever else does would be built as a UNet2DModel of default sizes.
    name = configuration.get("_class_name")
    known = ("UNet2DModel", *OWN_NETWORKS)
    if name is not None and name not in known:
        raise UserError(
            f"{path}: found the network {name!r} (_class_name), expected one of {', '.join(known)}. Name a folder with "
            f"one of these, or convert the checkpoint (docs/teachers.md)."
        )
    return configuration


def stored_picture_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of a pipeline folder's pictures, without loading its weights."""
    return picture_shape(network_configuration(folder))


def part_of(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is: its own folder, or the pipeline's, as in the Hub's oldest ones."""
    return folder / name if (folder / name).is_dir() else folder
