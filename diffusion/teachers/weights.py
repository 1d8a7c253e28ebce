"""Weights as `diffusers` stores them: the files they lie in, what these are, and the names of the tensors."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.runtime.errors import CheckpointError, some_of
from diffusion.runtime.files import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_VARIANT = re.compile(r"diffusion_pytorch_model\.(?!.*-\d+-of-\d+).+\.safetensors")
_VARIANT_INDEX = re.compile(re.escape(WEIGHTS) + r"\.index\..+\.json")
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
# What wrappers put into the names of the tensors: torch.compile, (distributed) data parallel, FSDP, checkpointing.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_FLOATS = ("F16", "BF16", "F32", "F64")


def weights_files(folder: Path) -> list[Path]:
    """The files that a network's weights lie in: one, or the index of several and these.

    Those of a variant (`diffusers`' word for "fp16", "ema", …) are read where there are no others.

    Raises:
        CheckpointError: there are none, more than one set, or parts of one only.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    sets = [name for name in names if name in (WEIGHTS, _INDEX)]
    sets = sets or [name for name in names if _VARIANT.fullmatch(name) or _VARIANT_INDEX.fullmatch(name)]
    if not sets:
        raise CheckpointError(_not_found(folder, names))
    if len(sets) > 1:
        raise CheckpointError(f"{folder}: found {', '.join(sets)}, expected one set of weights; move the others away.")
    file = folder / sets[0]
    if file.suffix != ".json":
        return [file]
    try:
        parts = sorted(set(read_json(file)["weight_map"].values()))
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: is no index of weights; expected `weight_map`, tensors to files.") from error
    if lost := [name for name in parts if not (folder / name).is_file()]:
        raise CheckpointError(f"{file}: {some_of(lost)} not found beside it; fetch the folder whole.")
    return [file, *(folder / name for name in parts)]


def _not_found(folder: Path, names: Iterable[str]) -> str:
    missing = f"{folder / WEIGHTS}: not found"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"{missing}; {some_of(pickles)} is a pickle, which is never read. Convert it, where you trust it, by "
            f"`diffusers`: UNet2DModel.from_pretrained({str(folder)!r}, use_safetensors=False)"
            f".save_pretrained({str(folder)!r})."
        )
    others = [name for name in names if name.endswith(".safetensors")]
    only = f", only {some_of(others)}" if others else ""
    return f"{missing}{only}; expected the network's weights in safetensors, the only form that is read."


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a network's folder, on the CPU.

    Raises:
        CheckpointError: files are missing, or are not what their names say.
    """
    from safetensors.torch import load_file

    files = weights_files(folder)
    described_weights(folder)  # whose sentences are better
    return {name: tensor for file in files if file.suffix != ".json" for name, tensor in load_file(file).items()}


def described_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a network's folder without their values, on the meta device: the files' headers alone are read.

    Raises:
        CheckpointError: as :func:`load_weights`.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, torch.Tensor] = {}
    for file in weights_files(folder):
        if file.suffix == ".json":
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                kinds = {part.get_dtype() for part in parts.values()}
                found |= {name: torch.empty(part.get_shape(), device="meta") for name, part in parts.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {_what_it_is(file, error)}") from error
        if foreign := sorted(kinds - set(_FLOATS)):
            raise CheckpointError(
                f"{file}: found numbers of type {', '.join(foreign)}, expected {', '.join(_FLOATS)}: quantised weights "
                f"are not read."
            )
    return found


def _what_it_is(file: Path, error: Exception) -> str:
    """Why a file cannot be read as safetensors, and what to do."""
    try:
        with file.open("rb") as handle:
            start = handle.read(64)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror})."
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of git-LFS, not the weights; run `git lfs pull` in its repository."
    if start.startswith((b"PK", b"\x80")):
        return "is a pickle in spite of its name, and is not read; store it as safetensors."
    if start.lstrip()[:1] == b"<":
        return "is a web page, not the weights; download the file itself."
    reason = " ".join(str(error).split())[:100]
    return f"truncated, or no safetensors file ({reason}); copy or download it again."


def fill(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Loads weights into a network, strictly but for the names that wrappers and earlier versions gave them.

    Raises:
        RuntimeError: they are of another network.
    """
    own = network.state_dict()
    renamed = {_todays_name(name, own): tensor for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise RuntimeError("found tensors twice, under names with and without a prefix")
    network.load_state_dict(renamed, strict=True)


def _todays_name(name: str, own: Mapping[str, Any]) -> str:
    """The name in the network ``own`` of a tensor that was stored as ``name``; that itself where there is none."""
    # `diffusers` before 0.14, of which the Hub's first teachers are, had other names in its attention.
    attention = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    plain = ".".join(parts)
    earlier = ".".join([*parts[:-2], *(attention.get(part, part) for part in parts[-2:-1]), *parts[-1:]])
    return next((known for known in (name, plain, earlier) if known in own), name)


def check_fit(build: Callable[[], nn.Module], weights: Mapping[str, torch.Tensor], key: str) -> None:
    """Whether weights are of a network, by names and shapes; the network is built without memory for its numbers.

    Its classes take two seconds to import. What has been found to fit is remembered in the temporary folder, so that
    later starts of the workflow need not ask.

    Args:
        build: makes the network.
        weights: from :func:`described_weights`.
        key: stands for all that ``build`` depends on.

    Raises:
        RuntimeError: as :func:`fill`, or whatever ``build`` raises.
    """
    shapes = json.dumps([key, sorted((name, list(tensor.shape)) for name, tensor in weights.items())])
    digest = hashlib.sha256(shapes.encode()).hexdigest()[:32]
    remembered = Path(tempfile.gettempdir(), f"boot-{os.getuid()}-{digest}.fits")
    if remembered.exists():
        return
    with torch.device("meta"):
        network = build()
    fill(network, weights)
    with suppress(OSError):
        remembered.touch()
