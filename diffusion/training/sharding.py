"""Networks whose weights are spread over processes, for those that do not fit one card with all that training adds.

PyTorch's FSDP (`fully_shard`): every process keeps a share of each weight, its gradient, the optimiser's moments and
the average, and gathers a block's weights only while it computes with them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from diffusion.runtime.processes import Processes


def shard(network: nn.Module, processes: Processes) -> None:
    """Spreads the weights of a network over the processes, in place, block by block.

    Gradients come out as sums over the processes.
    """
    # More than a second, for those who want it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.size,))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # what every backend can


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    # What a network calls one after the other: its parts, and the elements of its lists of parts.
    for part in network.children():
        for block in part.children() if isinstance(part, nn.ModuleList | nn.ModuleDict) else [part]:
            if any(True for _ in block.parameters()):
                yield block


def whole(state: Any) -> Any:
    """A state with its spread tensors gathered; all processes call it together, and all get it."""
    return tree_map(lambda value: value.full_tensor() if hasattr(value, "full_tensor") else value, state)


def load_whole(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads the state dictionary of a whole network into one whose weights may be spread."""
    own = network.state_dict()
    network.load_state_dict({name: _like(own.get(name), value) for name, value in state.items()})


def load_whole_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the state dictionary of an optimiser of whole weights into one of weights that may be spread."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    moments = {
        index: {
            name: _like(weights[index], value) if getattr(value, "shape", None) == weights[index].shape else value
            for name, value in own.items()
        }
        for index, own in state["state"].items()
    }
    optimiser.load_state_dict(state | {"state": moments})


def _like(own: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    """``value`` spread as ``own`` is; every process has all of it, so that nothing is sent."""
    if own is None or not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
