"""How networks and moments lie in memory while they train."""

from typing import Any

import torch

from diffusion.runtime.errors import UserError
from diffusion.training.settings import TrainingSettings


def lay_out(networks: list[Any], settings: TrainingSettings, on: bool) -> None:
    """Makes networks as the settings want them for training, or takes it back.

    Raises:
        UserError: a network cannot compute its activations again.
    """
    for network in networks:
        if settings.activation_checkpointing:
            name = ("enable" if on else "disable") + "_gradient_checkpointing"
            if not hasattr(network, name):
                raise UserError(
                    f"training.activation_checkpointing: found true, expected false: a {type(network).__name__} cannot "
                    f"compute its activations again."
                )
            getattr(network, name)()
        if settings.channels_last:
            network.to(memory_format=torch.channels_last if on else torch.contiguous_format)


def match_layout(optimiser: torch.optim.Optimizer) -> None:
    """Lays the optimiser's moments out in memory as its weights are: fused optimisers take that for granted, and a
    stored state may come from a device where "auto" meant another layout."""
    for weight, state in optimiser.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
