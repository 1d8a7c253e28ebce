"""The paper's ablation: a student of the noisy state in place of the signal."""

import torch

from diffusion.conditions import Condition
from diffusion.student import NoiseStudent


class StateStudent(NoiseStudent):
    """A network that predicts the noisy state x_t, noise included (the paper's ablation), read as its signal y_t.

    The division by α_t multiplies an error by 1/α_t, so that little can be read next to t_max; a loss of the state
    x_t − x̂_t = α_t (y_t − ŷ_t) takes that back. Its sample is the state at t_min: that of a :class:`NoiseStudent`.
    """

    def forward(self, noise: torch.Tensor, t: torch.Tensor | float, condition: Condition = None) -> torch.Tensor:
        return self.schedule.at(t).signal(super().forward(noise, t, condition), noise)
