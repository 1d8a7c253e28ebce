"""Several processes that do one job together, one a GPU, as `accelerate launch` or `torchrun` start them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import nn

Answer = TypeVar("Answer", bool, float)


class Processes(NamedTuple):
    """This process among those that work together.

    Attributes:
        rank: 0 for the one that writes files.
        size: how many they are.
        device: where this one computes, and where tensors are that it exchanges with the others.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def as_main_says(self, answer: Answer) -> Answer:
        """What the first process says to a question whose answer may differ, as one about time."""
        if self.size == 1:
            return answer
        said = torch.tensor(float(answer), dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(said, 0)
        return type(answer)(said)

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

    def spread(self, portions: Sequence[range], compute: Callable[[range], torch.Tensor]) -> Iterator[torch.Tensor]:
        """What ``compute`` gives for every portion, in their order, on the CPU; each process computes its share.

        The portions are the same whatever the number of processes, and so is what comes out.

        Args:
            portions: indices, of equal numbers but for the last, which may have fewer.
            compute: indices to a tensor whose first dimension is theirs.
        """
        for first in range(0, len(portions), self.size):
            turn = portions[first : first + self.size]
            # Where nothing is left for a process it does another's work again: all must bring tensors of one shape.
            own = compute(turn[min(self.rank, len(turn) - 1)])
            if self.size == 1:
                yield own.cpu()
                continue
            padded = own.new_zeros(len(turn[0]), *own.shape[1:]).to(self.device)
            padded[: len(own)] = own.to(self.device)
            shared = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(shared, padded)
            for portion, tensor in zip(turn, shared, strict=False):
                yield tensor[: len(portion)].cpu()


ALONE = Processes()


def drain(parts: Iterable[object]) -> None:
    """Takes part in what the processes compute together, and keeps nothing of it."""
    for _ in parts:
        pass


def portions_of(count: int, size: int, first: int = 0) -> list[range]:
    """first … count - 1 in ranges of ``size``; the last may be shorter."""
    return [range(start, min(start + size, count)) for start in range(first, count, size)]


def join(device: torch.device) -> Processes:
    """The processes that this one was started with; alone where nobody says otherwise.

    Args:
        device: where this process computes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState  # a second, for those who want it

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes, device)
