"""Low-rank adapters of a frozen network (LoRA; Hu et al. 2021, arXiv 2106.09685), by the package `peft`.

The network that is adapted keeps its weights where they are: teacher and student are two modules of the same frozen
tensors, and only the student's have adapters. Nothing needs to be switched between their evaluations.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import nn

from diffusion.runtime.packages import require
from diffusion.runtime.settings import Settings

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

Targets = Annotated[
    Annotated[Literal["attention", "all"], Tag("[name]")] | Annotated[tuple[str, ...], Tag("[list]")],
    Discriminator(lambda value: "[list]" if isinstance(value, list | tuple) else "[name]"),
]


class LoraSettings(Settings):
    """Adapters: W + alpha/rank · B A in the place of a weight W, with A of ``rank`` rows, and B zero at the start.

    Attributes:
        rank: of the adapters; one of a weight with fewer rows or columns is no smaller.
        alpha: their scale times their rank; null is the rank.
        targets: "attention" adapts the projections of all attention layers, "all" every linear layer and convolution,
            a list those modules whose names end so.
    """

    rank: int = Field(64, ge=1)
    alpha: float | None = Field(None, gt=0)
    targets: Targets = "attention"


def adapted(network: nn.Module, settings: LoraSettings) -> nn.Module:
    """A trainable copy of a frozen network that has its weights in common with it, and adapters of its own.

    Where the network has adapters already, the copy has copies of those.

    Raises:
        UserError: `peft` is not installed.
        ValueError: there is nothing to adapt.
    """
    require("peft", "lora")
    from peft import LoraConfig, inject_adapter_in_model

    copied = copy.deepcopy(network, {id(weight): weight for _, weight in _weights(network, adapters=False)})
    if not is_adapted(network):
        inject_adapter_in_model(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
                target_modules=target_modules(network, settings),
            ),
            copied,
        )
    for _, weight in _weights(copied, adapters=True):
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    return copied


def target_modules(network: nn.Module, settings: LoraSettings) -> list[str]:
    """The names of the modules that the settings adapt.

    Raises:
        ValueError: a wanted name is none of the network's.
    """
    able = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if settings.targets == "all":
        return able
    wanted = _ATTENTION if settings.targets == "attention" else settings.targets
    found = {end: [name for name in able if name == end or name.endswith("." + end)] for end in wanted}
    if missing := [end for end, names in found.items() if not names]:
        kinds = sorted({name.rpartition(".")[2] for name in able if not name.rpartition(".")[2].isdigit()})
        raise ValueError(
            f"lora.targets: found {', '.join(missing)}, expected ends of names of linear layers and convolutions; a "
            f"{type(network).__name__} has {', '.join(kinds)}"
        )
    return [name for names in found.values() for name in names]


def num_adapter_weights(network: nn.Module, settings: LoraSettings) -> int:
    """How many weights the adapters have, without `peft`; the network may be without values, on the meta device."""
    count = 0
    for name in dict.fromkeys(target_modules(network, settings)):
        weight = network.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        # Of a convolution A has the kernel, and B is 1×1.
        count += settings.rank * (weight[0].numel() + len(weight))
    return count


def is_adapted(network: nn.Module) -> bool:
    return any(True for _ in _weights(network, adapters=True))


def num_weights(network: nn.Module) -> int:
    """Of the network as it is stored, whose adapters are within its weights."""
    return sum(weight.numel() for _, weight in _weights(network, adapters=False))


def _weights(network: nn.Module, adapters: bool) -> Iterator[tuple[str, nn.Parameter]]:
    for name, weight in network.named_parameters():
        if (".lora_" in name) == adapters:
            yield name, weight


def load_trained(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Takes over what a training has stored: all weights, or of a network with adapters these alone.

    Raises:
        RuntimeError: they are others than the network's.
    """
    frozen = dict(_weights(network, adapters=False)) if is_adapted(network) else {}
    network.load_state_dict({**frozen, **weights})


def merged(network: nn.Module) -> nn.Module:
    """A copy in float32 of a network with adapters, which are within its weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain: Any = copy.deepcopy(network).float()
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, layer.get_base_layer())
    del plain.peft_config
    return plain


def save_lora(folder: Path, pipeline: str, part: str, network: Any) -> None:
    """Writes the adapters alone, as a file that ``load_lora_weights`` of the teacher's pipeline reads.

    Nothing is written where `diffusers` loads no adapters into pipelines of that class.

    Args:
        pipeline: the class.
        part: the network's name in it.
    """
    import diffusers
    from peft import get_peft_model_state_dict

    save = getattr(getattr(diffusers, pipeline), "save_lora_weights", None)
    if save is None:
        return
    adapters = {
        f"{part}_lora_layers": get_peft_model_state_dict(network),
        f"{part}_lora_adapter_metadata": network.peft_config["default"].to_dict(),
    }
    save(folder, **adapters)
