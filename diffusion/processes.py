"""Several processes that train one network together, one a GPU, as `accelerate launch` or `torchrun` start them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Processes(NamedTuple):
    """This process among those that train together.

    Attributes:
        rank: 0 for the one that writes files.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces every tensor by its sum over the processes, the same bits in each; all call it with like tensors."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()

    def sum_gradients(self, network: nn.Module, *others: torch.Tensor) -> None:
        """The same for the gradients of a network, and for ``others`` in the same message."""
        if self.size > 1:
            self.sum([*(p.grad for p in network.parameters() if p.grad is not None), *others])


def join(device: torch.device) -> Processes:
    """The processes that this one was started with; alone where nobody says otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState  # a second, for those who want it

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes)
