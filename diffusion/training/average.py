"""The exponential moving average of weights."""

import torch
from torch import nn

from diffusion.training.trained import own_weights, with_frozen_shared


class MovingAverage(nn.Module):
    """The exponential moving average of a network's weights; after its first update it is the weights themselves.

    Frozen weights are the network's own. torch's ``AveragedModel`` copies them, and its counter to the device in every
    update, which makes the host wait for the device.
    """

    n_averaged: torch.Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = with_frozen_shared(network).requires_grad_(False)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        kept, current = own_weights(self.module, model)
        if self.n_averaged == 0:  # it lies on the host
            for own, weight in zip(kept, current, strict=True):  # once; the spread weights of FSDP have no foreach copy
                own.copy_(weight)
        else:
            torch._foreach_lerp_(kept, current, 1 - self.decay)
        for buffer, other in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)
        self.n_averaged += 1
