"""What a training changes of a network, which is all that is stored of it."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from diffusion.training import sharding


def frozen_weights(network: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in network.parameters() if not weight.requires_grad]


def with_frozen_shared(network: nn.Module) -> Any:
    """A copy of a network whose frozen weights are the same tensors."""
    return copy.deepcopy(network, {id(weight): weight for weight in frozen_weights(network)})


def own_weights(copied: nn.Module, network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights of a copy that it has not in common with its network, and the network's in their places."""
    pairs = zip(copied.parameters(), network.parameters(), strict=True)
    own = [(kept, current) for kept, current in pairs if kept is not current]
    return [kept for kept, _ in own], [current for _, current in own]


class TrainedWeights:
    """The state of a module without the weights that it has in common with a frozen network.

    Args:
        frozen: those weights.
    """

    def __init__(self, module: nn.Module, frozen: Iterable[nn.Parameter]) -> None:
        shared = set(map(id, frozen))
        self.module = module
        self._left_out = {name for name, weight in module.named_parameters() if id(weight) in shared}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.module.state_dict().items() if name not in self._left_out}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over whole tensors, also where the module's are spread over processes.

        Raises:
            RuntimeError: the state is of other weights.
        """
        own = self.module.state_dict()
        sharding.load_whole(self.module, {name: own[name] for name in self._left_out} | state)
