"""The exponential moving average of weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """The exponential moving average of a network's weights; after its first update it is the weights themselves.

    torch's own copies its counter to the device in every update, which makes the host wait for the device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        kept, current = tuple(self.module.parameters()), tuple(model.parameters())
        if self.n_averaged == 0:  # it lies on the host
            for own, weight in zip(kept, current, strict=True):  # once; the spread weights of FSDP have no foreach copy
                own.copy_(weight)
        else:
            torch._foreach_lerp_(kept, current, 1 - self.decay)
        for buffer, other in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)
        self.n_averaged += 1
