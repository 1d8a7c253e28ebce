"""Small checkpoints in the names and layouts of their authors, made without their code.

The numbers in them follow a rule (:func:`fill`), so that the authors' own networks, filled by the same rule, could say
what these compute (tests/teachers/test_conversion.py).
"""

import sys
import types
from collections import OrderedDict

import numpy as np
import torch

SOURCE = "import pathlib\npathlib.Path({marker!r}).touch()\nraise RuntimeError('executed')\n"


def numbers(shape, seed):
    """Uniform of unit variance, float64."""
    return (np.random.default_rng(seed).random(shape) * 2 - 1) * 3**0.5


def fill(tensors):
    """Overwrites tensors by name, in the order of their names, with what keeps a signal's size; filters stay."""
    names = sorted(name for name in tensors if not name.endswith("resample_filter"))
    for seed, name in enumerate(names):
        values = numbers(tuple(tensors[name].shape), seed)
        if name.endswith("freqs"):
            values = 4 * values
        elif values.ndim == 1:
            values = (1 if name.endswith("weight") else 0) + 0.1 * values
        else:
            values = values / np.sqrt(values[0].size)
        tensors[name].copy_(torch.from_numpy(values))


class Persistent:
    """An object as torch_utils.persistence of NVlabs/edm pickles it: its class's name, source text, attributes."""

    marker = "executed"

    def __init__(self, class_name, parameters=(), buffers=(), modules=(), **attributes):
        self.class_name = class_name
        self.state = {
            "training": False,
            "_parameters": OrderedDict(parameters),
            "_buffers": OrderedDict(buffers),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict(modules),
            **attributes,
        }

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE.format(marker=str(self.marker)),
            "class_name": self.class_name,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def tensors_of(module, prefix=""):
    """The parameters and buffers of a tree by their dotted names."""
    state = module.state if isinstance(module, Persistent) else vars(module)
    found = {}
    for group in ("_parameters", "_buffers"):
        found |= {prefix + name: value.data for name, value in state[group].items() if value is not None}
    for name, part in state["_modules"].items():
        found |= tensors_of(part, f"{prefix}{name}.") if part is not None else {}
    return found


def parameter(*shape):
    return torch.nn.Parameter(torch.zeros(*shape), requires_grad=False)


def linear(inputs, outputs, bias=True):
    values = {"weight": parameter(outputs, inputs), "bias": parameter(outputs) if bias else None}
    return Persistent("Linear", values, in_features=inputs, out_features=outputs)


def convolution(inputs, outputs, kernel, taps=(1, 1), up=False, down=False, fused=False):
    row = torch.tensor(taps, dtype=torch.float32)
    filters = (torch.outer(row, row) / row.sum() ** 2)[None, None] if up or down else None
    values = {"weight": parameter(outputs, inputs, kernel, kernel), "bias": parameter(outputs)}
    if not kernel:
        values = {"weight": None, "bias": None}
    attributes = {"in_channels": inputs, "out_channels": outputs, "up": up, "down": down, "fused_resample": fused}
    return Persistent("Conv2d", values, {"resample_filter": filters}, **attributes)


def group_norm(channels, eps):
    values = {"weight": parameter(channels), "bias": parameter(channels)}
    return Persistent("GroupNorm", values, num_groups=min(32, channels // 4), eps=eps)


def module_dict(modules):
    container = torch.nn.ModuleDict()
    container._modules.update(modules)
    return container


class _Architecture:
    """What SongUNet and DhariwalUNet share."""

    def __init__(self, told, taps, adaptive):
        self.told, self.taps, self.adaptive = told, taps, adaptive
        self.eps, self.scale = (1e-5, 1) if adaptive else (1e-6, np.sqrt(0.5))

    def block(self, inputs, outputs, attends=False, **resample):
        kernel = 1 if inputs != outputs or not self.adaptive else 0
        skip = convolution(inputs, outputs, kernel, self.taps, **resample) if inputs != outputs or resample else None
        parts = {
            "norm0": group_norm(inputs, self.eps),
            "conv0": convolution(inputs, outputs, 3, self.taps, **resample),
            "affine": linear(self.told, outputs * (2 if self.adaptive else 1)),
            "norm1": group_norm(outputs, self.eps),
            "conv1": convolution(outputs, outputs, 3),
            "skip": skip,
        }
        if attends:
            parts["norm2"] = group_norm(outputs, self.eps)
            parts |= {"qkv": convolution(outputs, 3 * outputs, 1), "proj": convolution(outputs, outputs, 1)}
        heads = (outputs // 64 if self.adaptive else 1) if attends else 0
        attributes = {"dropout": 0.1, "skip_scale": self.scale, "adaptive_scale": self.adaptive, "num_heads": heads}
        return Persistent("UNetBlock", modules=parts, **attributes)


def song_unet(size, channels, multiples, layers, attends, labels=0, label_dropout=0, augment=0, ncsn=False):
    """SongUNet: DDPM++, or NCSN++."""
    told, width, taps = 4 * channels, (2 if ncsn else 1) * channels, (1, 3, 3, 1) if ncsn else (1, 1)
    make = _Architecture(told, taps, adaptive=False)
    noise = Persistent("PositionalEmbedding", num_channels=width, max_positions=10000, endpoint=True)
    if ncsn:
        noise = Persistent("FourierEmbedding", buffers={"freqs": torch.zeros(width // 2)})
    parts = {
        "map_noise": noise,
        "map_label": linear(labels, width) if labels else None,
        "map_augment": linear(augment, width, bias=False) if augment else None,
        "map_layer0": linear(width, told),
        "map_layer1": linear(told, told),
    }
    encoder = {f"{size}x{size}_conv": convolution(3, channels, 3)}
    current, beside, skips = channels, 3, [channels]
    for level, multiple in enumerate(multiples):
        name = f"{size >> level}x{size >> level}"
        if level:
            encoder[f"{name}_down"] = make.block(current, current, down=True)
            skips.append(current)
            if ncsn:
                encoder[f"{name}_aux_residual"] = convolution(beside, current, 3, taps, down=True, fused=True)
                beside = current
        for index in range(layers):
            encoder[f"{name}_block{index}"] = make.block(current, channels * multiple, size >> level in attends)
            current = channels * multiple
            skips.append(current)
    decoder = _decoder(make, size, channels, multiples, layers, attends, current, skips, last_only=True)
    decoder[f"{size}x{size}_aux_norm"] = group_norm(channels * multiples[0], 1e-6)
    decoder[f"{size}x{size}_aux_conv"] = convolution(channels * multiples[0], 3, 3)
    parts |= {"enc": module_dict(encoder), "dec": module_dict(decoder)}
    return Persistent("SongUNet", modules=parts, label_dropout=label_dropout)


def dhariwal_unet(size, channels, multiples, layers, attends, labels=0, label_dropout=0, augment=0):
    """DhariwalUNet: ADM."""
    told = 4 * channels
    make = _Architecture(told, (1, 1), adaptive=True)
    parts = {
        "map_noise": Persistent("PositionalEmbedding", num_channels=channels, max_positions=10000, endpoint=False),
        "map_augment": linear(augment, channels, bias=False) if augment else None,
        "map_layer0": linear(channels, told),
        "map_layer1": linear(told, told),
        "map_label": linear(labels, told, bias=False) if labels else None,
    }
    current = channels * multiples[0]
    encoder, skips = {f"{size}x{size}_conv": convolution(3, current, 3)}, [current]
    for level, multiple in enumerate(multiples):
        name = f"{size >> level}x{size >> level}"
        if level:
            encoder[f"{name}_down"] = make.block(current, current, down=True)
            skips.append(current)
        for index in range(layers):
            encoder[f"{name}_block{index}"] = make.block(current, channels * multiple, size >> level in attends)
            current = channels * multiple
            skips.append(current)
    decoder = _decoder(make, size, channels, multiples, layers, attends, current, skips, last_only=False)
    parts |= {"enc": module_dict(encoder), "dec": module_dict(decoder)}
    parts |= {
        "out_norm": group_norm(channels * multiples[0], 1e-5),
        "out_conv": convolution(channels * multiples[0], 3, 3),
    }
    return Persistent("DhariwalUNet", modules=parts, label_dropout=label_dropout)


def _decoder(make, size, channels, multiples, layers, attends, current, skips, last_only):
    decoder = {}
    for level, multiple in reversed(list(enumerate(multiples))):
        name = f"{size >> level}x{size >> level}"
        if level == len(multiples) - 1:
            decoder[f"{name}_in0"] = make.block(current, current, attends=True)
            decoder[f"{name}_in1"] = make.block(current, current)
        else:
            decoder[f"{name}_up"] = make.block(current, current, up=True)
        for index in range(layers + 1):
            here = size >> level in attends and (index == layers or not last_only)
            decoder[f"{name}_block{index}"] = make.block(current + skips.pop(), channels * multiple, here)
            current = channels * multiple
    return decoder


def preconditioned(model, size, labels=0, class_name="EDMPrecond"):
    """The content of a network pickle with that model; the data are np.float64 where the authors' are."""
    fill(tensors_of(model))
    network = Persistent(
        class_name,
        modules={"model": model},
        img_resolution=size,
        img_channels=3,
        label_dim=labels,
        use_fp16=False,
        sigma_min=0,
        sigma_max=float("inf"),
        sigma_data=0.5,
    )
    easy = sys.modules["dnnlib.util"].EasyDict(path="images.zip")
    return {"ema": network, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "dataset_kwargs": easy}


def install_stand_ins(monkeypatch):
    """Modules by whose names the authors' classes are pickled."""
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def reconstruct(meta):
        raise AssertionError("the file was unpickled by what it names")

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    sys.modules["dnnlib.util"].EasyDict = easy


def openai_unet(channels, multiples, layers, attends, outputs=3, classes=None, scale_shift=True, flat=True):
    """The state dictionary of UNetModel: guided-diffusion's, and with ``flat`` false consistency_models'.

    Args:
        attends: the levels that do.
    """
    state, told = {}, 4 * channels

    def layer(name, *shape):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.zeros(*shape), torch.zeros(shape[0])

    def block(name, inputs, width):
        layer(f"{name}.in_layers.0", inputs)
        layer(f"{name}.in_layers.2", width, inputs, 3, 3)
        layer(f"{name}.emb_layers.1", (2 if scale_shift else 1) * width, told)
        layer(f"{name}.out_layers.0", width)
        layer(f"{name}.out_layers.3", width, width, 3, 3)
        if inputs != width:
            layer(f"{name}.skip_connection", width, inputs, 1, 1)

    def attention(name, width):
        pixel = (1,) if flat else (1, 1)
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, *pixel)
        layer(f"{name}.proj_out", width, width, *pixel)

    layer("time_embed.0", told, channels)
    layer("time_embed.2", told, told)
    if classes:
        state["label_emb.weight"] = torch.zeros(classes, told)
    current = channels * multiples[0]
    layer("input_blocks.0.0", current, 3, 3, 3)
    skips, number = [current], 1
    for level, multiple in enumerate(multiples):
        for _ in range(layers):
            block(f"input_blocks.{number}.0", current, channels * multiple)
            current = channels * multiple
            if level in attends:
                attention(f"input_blocks.{number}.1", current)
            skips.append(current)
            number += 1
        if level < len(multiples) - 1:
            block(f"input_blocks.{number}.0", current, current)
            skips.append(current)
            number += 1
    block("middle_block.0", current, current)
    attention("middle_block.1", current)
    block("middle_block.2", current, current)
    number = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for index in range(layers + 1):
            block(f"output_blocks.{number}.0", current + skips.pop(), channels * multiple)
            current = channels * multiple
            if level in attends:
                attention(f"output_blocks.{number}.1", current)
            if level and index == layers:
                block(f"output_blocks.{number}.{2 if level in attends else 1}", current, current)
            number += 1
    layer("out.0", current)
    layer("out.2", outputs, channels * multiples[0], 3, 3)
    fill(state)
    return state


def sit(width=48, depth=2, side=2, size=8, classes=3, channels=4, outputs=8):
    """The state dictionary of SiT, for latents of ``size``, in patches of ``side``."""
    state, count, pixels = {}, (size // side) ** 2, side**2

    def layer(name, *shape):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.zeros(*shape), torch.zeros(shape[0])

    layer("x_embedder.proj", width, channels, side, side)
    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    state["y_embedder.embedding_table.weight"] = torch.zeros(classes + 1, width)
    for number in range(depth):
        layer(f"blocks.{number}.attn.qkv", 3 * width, width)
        layer(f"blocks.{number}.attn.proj", width, width)
        layer(f"blocks.{number}.mlp.fc1", 4 * width, width)
        layer(f"blocks.{number}.mlp.fc2", width, 4 * width)
        layer(f"blocks.{number}.adaLN_modulation.1", 6 * width, width)
    layer("final_layer.linear", pixels * outputs, width)
    layer("final_layer.adaLN_modulation.1", 2 * width, width)
    fill(state)
    # The column's number in the first half, the row's in the second; sines of falling frequency, then cosines.
    row, column = np.divmod(np.arange(count), size // side)
    angles = [place[:, None] / 10_000 ** (np.arange(width // 4) / (width // 4)) for place in (column, row)]
    positions = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return state | {"pos_embed": torch.from_numpy(positions).float()[None]}
