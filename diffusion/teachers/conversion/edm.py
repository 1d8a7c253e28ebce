"""Network pickles of NVlabs/edm (Karras et al. 2022): the source of their classes is in them, and is not executed.

Such a file holds objects by their class's name, the source text of its module, and their attributes; the authors' own
reader executes the text. Here an object stays a name with attributes (:class:`PickledObject`), and the network is built
by this suite's classes from what those say. The text is not looked at: a class of another meaning under a known name
would be read as the known one, so what it computes with (heads, scales, norms, filters) is checked.
"""

import io
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.conditions import ClassLabels, Conditions, Unconditional
from diffusion.denoiser import Denoiser
from diffusion.runtime.errors import CheckpointError
from diffusion.runtime.pickles import NUMPY, KnownOnly, named_global
from diffusion.schedule import EdmSchedule
from diffusion.teachers.conversion.weights import (
    HEAD_CHANNELS,
    BlockNames,
    filled,
    unet_blocks,
    unet_configuration,
    unet_weights,
)
from diffusion.thresholding import Thresholding

_MOST_NESTED = 16  # modules within modules; the published networks have 4
_REFUSED = {
    "VPPrecond": "the baseline with variance-preserving preconditioning",
    "VEPrecond": "the baseline with variance-exploding preconditioning",
    "iDDPMPrecond": "the baseline with the preconditioning of improved DDPM",
}
_PARTS = ("UNetBlock", "GroupNorm", "Conv2d", "Linear", "ModuleDict", "PositionalEmbedding", "FourierEmbedding")
_DHARIWAL = BlockNames(
    residual={
        "norm0": "norm1",
        "conv0": "conv1",
        "affine": "time_emb_proj",
        "norm1": "norm2",
        "conv1": "conv2",
        "skip": "conv_shortcut",
    },
    attention={"norm2": "group_norm", "proj": "to_out.0"},
    order="hcq",
)


class PickledObject:
    """What a pickled object was: the name of its class and its attributes. It has no behaviour of its own."""

    class_name = "an object"
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def attribute(self, name: str, *kinds: type) -> Any:
        """An attribute of one of the expected kinds.

        Raises:
            ValueError: there is none.
        """
        value = self.state.get(name) if isinstance(self.state, dict) else None
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self.class_name}.{name} is {value!r:.60}, expected {expected}")
        return value

    def parts(self, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
        """The objects and tensors within, in their order, by their dotted names.

        Raises:
            ValueError: something else is in their place.
        """
        if depth > _MOST_NESTED:
            raise ValueError(f"{prefix} is more than {_MOST_NESTED} modules deep")
        for group, kind in (("_parameters", torch.Tensor), ("_buffers", torch.Tensor), ("_modules", PickledObject)):
            for name, value in self.attribute(group, dict).items():
                if value is None:
                    continue
                if not isinstance(name, str) or not isinstance(value, kind):
                    raise ValueError(f"{prefix}{name} is a {type(value).__name__}, expected a {kind.__name__}")
                yield f"{prefix}{name}", value
                if isinstance(value, PickledObject):
                    yield from value.parts(f"{prefix}{name}.", depth + 1)


class _Storage(NamedTuple):
    content: torch.UntypedStorage
    dtype: torch.dtype


def _persistent(meta: Any) -> PickledObject:
    """In the place of what executes the source text."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("it has a persistent object without the name of its class")
    made = PickledObject()
    made.class_name, made.state = meta["class_name"], meta.get("state")
    return made


def _storage(content: Any) -> _Storage:
    """In the place of what unpickles the bytes of a tensor, which are a pickle again."""
    try:
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever broken bytes make of it; its own message advises to allow everything
        asked = named_global(error)
        told = f"it asks for {asked} in a tensor" if asked else f"a tensor's bytes are broken ({type(error).__name__})"
        raise pickle.UnpicklingError(told) from error
    if not isinstance(stored, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"it has a {type(stored).__name__} in a tensor's place")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # typed storages are on their way out of torch, not of old files
        return _Storage(stored.untyped(), stored.dtype)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> torch.Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("it has a tensor of no storage, size or stride")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if all(size) and (last + 1) * storage.dtype.itemsize > storage.content.nbytes():
        raise pickle.UnpicklingError("it has a tensor beyond the end of its storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, size, stride)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _known() -> dict[tuple[str, str], Any]:
    """What these files name. Classes are made anew for each, because a file can write into them."""
    containers = ("ModuleDict", "ModuleList", "Sequential")
    return {
        **NUMPY,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("dnnlib.util", "EasyDict"): type("EasyDict", (dict,), {}),
        **{
            ("torch.nn.modules.container", name): type(name, (PickledObject,), {"class_name": name})
            for name in containers
        },
    }


def read_pickle(file: Path) -> Any:
    """The content of a network pickle, with :class:`PickledObject` for every object.

    Raises:
        CheckpointError: it asks for something that a network has no need of, is truncated, or no pickle.
    """
    with file.open("rb") as handle:
        if handle.read(4) == b"PK\x03\x04":
            raise CheckpointError(
                f"{file}: is an archive of torch.save, as the training states of NVlabs/edm are "
                f"(training-state-*.pt), and OpenAI's checkpoints, which are of another --kind; expected a network "
                f"pickle (network-snapshot-*.pkl, or a published one)."
            )
        handle.seek(0)
        try:
            return KnownOnly(handle, _known()).load()
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{file}: refused ({error}); expected a network pickle of NVlabs/edm. Nothing of it was executed."
            ) from error
        except Exception as error:  # broken bytes can make of it whatever its opcodes raise
            raise CheckpointError(
                f"{file}: truncated, or no pickle ({type(error).__name__}: {error}). Fetch it again."
            ) from error


def load_edm(file: Path, thresholding: Thresholding) -> Denoiser:
    """The denoiser of a network pickle: ``EDMPrecond`` over ``SongUNet`` (DDPM++, NCSN++) or ``DhariwalUNet`` (ADM).

    What it was told of augmentation is left out, as it is where pictures are drawn: the labels of none are zeros. A
    class-conditional network has an unconditional input where it was trained with one (``label_dropout``).

    Args:
        thresholding: how its estimate is bounded.

    Raises:
        CheckpointError: another file, another preconditioning, another architecture.
    """
    content = read_pickle(file)
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, PickledObject):
        found = f"the keys {sorted(map(str, content))[:8]}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: holds {found}; expected a dictionary with the network 'ema'.")
    if network.class_name != "EDMPrecond":
        known = f", {_REFUSED[network.class_name]}" if network.class_name in _REFUSED else ""
        raise CheckpointError(
            f"{file}: holds a {network.class_name}{known}; expected EDMPrecond, which is what this suite's prediction "
            f"type 'edm' reads. Take the checkpoint of the same data set that EDM's authors trained (docs/teachers.md)."
        )
    try:
        model = network.attribute("_modules", dict).get("model")
        resolution, labels = (int(network.attribute(name, int, np.integer)) for name in ("img_resolution", "label_dim"))
        kind = model.class_name if isinstance(model, PickledObject) else type(model).__name__
        if kind not in ("SongUNet", "DhariwalUNet"):
            raise ValueError(f"its model is a {kind}, expected SongUNet or DhariwalUNet")
        read = _read_song if kind == "SongUNet" else _read_dhariwal
        network_class, configuration, weights = read(_Parts(model), resolution)
        schedule = EdmSchedule(sigma_data=float(network.attribute("sigma_data", float, int)))
    except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:  # shapes that fit nothing
        raise CheckpointError(
            f"{file}: {error}. Expected one of the architectures of NVlabs/edm (docs/teachers.md)."
        ) from error
    embeddings = configuration["num_class_embeds"]
    conditions: Conditions = Unconditional() if embeddings is None else ClassLabels(labels, embeddings == labels + 1)
    made = filled(network_class, configuration, weights, file)
    return Denoiser(made, schedule, "edm", thresholding, conditions)


class _Parts:
    """A network's objects and tensors by name, and what they say about it."""

    def __init__(self, model: PickledObject) -> None:
        parts = dict(model.parts())
        self.model = model
        self.objects = {name: part for name, part in parts.items() if isinstance(part, PickledObject)}
        self.tensors = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.tensors:
            raise ValueError(f"it has no {name}")
        return tuple(self.tensors[name].shape)

    def sizes(self) -> list[int]:
        """The heights of the encoder's levels, from the finest.

        Raises:
            ValueError: there are none.
        """
        found = (re.fullmatch(r"enc\.(\d+)x\1_block0", name) for name in self.objects)
        sizes = [int(match[1]) for match in found if match]
        if not sizes:
            raise ValueError(f"it has no residual blocks in an encoder, but {', '.join(list(self.objects)[:8])}")
        return sizes

    def layers(self, size: int) -> int:
        """Residual blocks of an encoder's level."""
        return sum(re.fullmatch(rf"enc\.{size}x{size}_block\d+", name) is not None for name in self.objects)

    def channels(self, size: int) -> int:
        """Channels of an encoder's level."""
        return self.shape(f"enc.{size}x{size}_block0.conv1.weight")[0]

    def attends(self, size: int) -> bool:
        """Whether an encoder's level does."""
        return f"enc.{size}x{size}_block0.qkv" in self.objects

    def blocks(self) -> list[str]:
        """The names of the residual blocks in the order of computation."""
        return [name for name, part in self.objects.items() if part.class_name == "UNetBlock"]

    def class_embedding(self, scaled: bool) -> torch.Tensor | None:
        """What the map of one-hot labels makes of each class, and of no class where it was trained with that.

        Args:
            scaled: whether the map is of √labels times the one-hot label.
        """
        if "map_label.weight" not in self.tensors:
            return None
        weight = self.tensors["map_label.weight"].float()
        bias = self.tensors.get("map_label.bias", torch.zeros(len(weight))).float()
        rows = weight.t() * (math.sqrt(weight.shape[1]) if scaled else 1) + bias
        dropout = self.model.attribute("label_dropout", float, int)
        return torch.cat([rows, bias[None]]) if dropout else rows

    def check(self, *, skip_scale: float, adaptive: bool, eps: float, heads: bool, endpoint: bool) -> None:
        """Raises ValueError where a part computes in another way than the network that it will become.

        Args:
            heads: whether an attention has one head for every 64 channels, or one in all.
        """
        for name, part in self.objects.items():
            expected: dict[str, float] = {}
            if part.class_name == "UNetBlock":
                expected = {"skip_scale": skip_scale, "adaptive_scale": adaptive, "num_heads": 0}
                if f"{name}.qkv" in self.objects:
                    expected["num_heads"] = self.shape(f"{name}.proj.weight")[0] // HEAD_CHANNELS if heads else 1
            elif part.class_name == "GroupNorm":
                groups = 32 if heads else min(32, self.shape(f"{name}.weight")[0] // 4)
                expected = {"eps": eps, "num_groups": groups}
            elif part.class_name == "Conv2d":
                beside, resamples = name.endswith("_aux_residual"), re.search(r"_(up|down)\.(conv0|skip)$", name)
                expected = {
                    "up": resamples is not None and resamples[1] == "up",
                    "down": beside or (resamples is not None and resamples[1] == "down"),
                    "fused_resample": beside,
                }
            elif part.class_name == "PositionalEmbedding":
                expected = {"endpoint": endpoint, "max_positions": 10_000}
            elif part.class_name not in _PARTS:
                raise ValueError(f"{name} is a {part.class_name}, expected one of {', '.join(_PARTS)}")
            for attribute, value in expected.items():
                found = part.attribute(attribute, float, int)
                if not math.isclose(found, value, rel_tol=1e-6):
                    raise ValueError(f"{name}.{attribute} is {found}, expected {value:g}")

    def taps(self) -> tuple[int, ...]:
        """The filter by which levels are halved and doubled, as the authors write it: (1, 1), (1, 3, 3, 1).

        Raises:
            ValueError: there are several, or one that is no outer product.
        """
        filters = {name: value.float() for name, value in self.tensors.items() if name.endswith("resample_filter")}
        if not filters:
            return (1, 1)
        row = next(iter(filters.values())).sum(dim=(0, 1, 2))
        taps = tuple((row / row[0]).round().int().tolist())
        exact = torch.outer(torch.tensor(taps), torch.tensor(taps)) / sum(taps) ** 2
        for name, value in filters.items():
            if value.shape != (1, 1, *exact.shape) or not torch.allclose(value[0, 0], exact, atol=1e-6):
                raise ValueError(f"{name} is {value.flatten().tolist()}, expected the one filter {taps} in all places")
        return taps


def _read_song(parts: _Parts, resolution: int) -> tuple[type, dict[str, Any], dict[str, torch.Tensor]]:
    from diffusion.teachers.networks.song_unet import SongUNet

    parts.check(skip_scale=math.sqrt(0.5), adaptive=False, eps=1e-6, heads=False, endpoint=True)
    for part, option in (("_aux_skip", "encoder_type"), ("_aux_up", "decoder_type")):
        if any(name.endswith(part) for name in parts.objects):
            raise ValueError(f"its {option} is 'skip', expected that of DDPM++ or NCSN++")
    sizes = parts.sizes()
    channels, pictures = parts.shape(f"enc.{resolution}x{resolution}_conv.weight")[:2]
    told, width = parts.shape("map_layer0.weight")
    embedding, taps = parts.class_embedding(scaled=True), parts.taps()
    configuration = {
        "sample_size": resolution,
        "in_channels": pictures,
        "out_channels": pictures,
        "model_channels": channels,
        "channel_mult": tuple(_multiple(parts.channels(size), channels) for size in sizes),
        "channel_mult_emb": _multiple(told, channels),
        "channel_mult_noise": _multiple(width, channels),
        "num_blocks": parts.layers(resolution),
        "attention_resolutions": tuple(size for size in sizes if parts.attends(size)),
        "dropout": float(parts.objects[parts.blocks()[0]].attribute("dropout", float, int)),
        "embedding_type": "fourier" if "map_noise.freqs" in parts.tensors else "positional",
        "encoder_type": "residual" if any("_aux_residual" in name for name in parts.objects) else "standard",
        "resample_filter": taps,
        "num_class_embeds": None if embedding is None else len(embedding),
    }
    filter_taps = torch.tensor(taps, dtype=torch.float32)
    weights = {name: value for name, value in parts.tensors.items() if not _left_out(name)}
    weights["kernel"] = torch.outer(filter_taps, filter_taps) / filter_taps.sum().square()
    if "map_noise.freqs" in weights:
        weights["freqs"] = weights.pop("map_noise.freqs")
    if embedding is not None:
        weights["class_embedding.weight"] = embedding
    return SongUNet, configuration, weights


def _read_dhariwal(parts: _Parts, resolution: int) -> tuple[type, dict[str, Any], dict[str, torch.Tensor]]:
    from diffusers import UNet2DModel

    parts.check(skip_scale=1, adaptive=True, eps=1e-5, heads=True, endpoint=False)
    sizes, sources = parts.sizes(), parts.blocks()
    layers, embedding = parts.layers(resolution), parts.class_embedding(scaled=False)
    targets = unet_blocks(len(sizes), layers)
    if len(sources) != len(targets):
        raise ValueError(f"it has {len(sources)} residual blocks, expected {len(targets)} for {len(sizes)} levels")
    conv = f"enc.{resolution}x{resolution}_conv"
    single = {
        "map_layer0": "time_embedding.linear_1",
        "map_layer1": "time_embedding.linear_2",
        conv: "conv_in",
        "out_norm": "conv_norm_out",
        "out_conv": "conv_out",
    }
    attending = [(source, target) for source, (_, target) in zip(sources, targets, strict=True) if target]
    weights = unet_weights(
        {name: value for name, value in parts.tensors.items() if not _left_out(name)},
        single,
        [(source, target) for source, (target, _) in zip(sources, targets, strict=True)],
        [(source, target) for source, target in attending if f"{source}.qkv" in parts.objects],
        _DHARIWAL,
    )
    if embedding is not None:
        weights["class_embedding.weight"] = embedding
    configuration = unet_configuration(
        resolution=resolution,
        pictures=parts.shape(f"{conv}.weight")[1],
        channels=[parts.channels(size) for size in sizes],
        layers=layers,
        attends=[parts.attends(size) for size in sizes],
        scale_shift=True,
        labels=None if embedding is None else len(embedding),
    )
    dropout = float(parts.objects[sources[0]].attribute("dropout", float, int))
    return UNet2DModel, configuration | {"dropout": dropout}, weights


def _left_out(name: str) -> bool:
    """Filters are a setting, labels an embedding, and augmentation is for the authors' training."""
    return name.endswith("resample_filter") or name.startswith(("map_label.", "map_augment."))


def _multiple(channels: int, unit: int) -> int:
    if channels % unit:
        raise ValueError(f"it has a level or an embedding of {channels} channels, expected a multiple of {unit}")
    return channels // unit
