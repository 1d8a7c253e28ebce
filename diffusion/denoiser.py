"""A denoiser: a network, the schedule it was trained on, and what its output means."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from diffusion.schedule import Schedule, network_timesteps, per_sample

PredictionType = Literal["epsilon", "v_prediction", "sample"]

# What a network is told beside the noisy picture and the time: keyword arguments of the network's forward call,
# for instance {"class_labels": labels} or {"encoder_hidden_states": text}. None is an unconditional network.
Condition = Mapping[str, torch.Tensor] | None


class Denoiser(nn.Module):
    """f_φ(x_t, t): the estimate of the clean picture x by any network of any prediction type.

    ``clip`` bounds the estimate to [−1, 1]; every loss, reference trajectory and sampler goes through this class,
    so all of them see the same clipped teacher.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, prediction_type: PredictionType, clip: bool = True
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.prediction_type, self.clip = prediction_type, clip

    def raw(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The network's own output F in float32: ε, v = α ε − σ x, or x, as ``prediction_type`` says.

        Args:
            x_t: noisy pictures, shape (N, C, H, W).
            t: times, shape (N,) or ().
        """
        timestep = network_timesteps(self.schedule, t, x_t)
        return self.network(x_t, timestep, return_dict=False, **(condition or {}))[0].float()

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """x̂ before clipping, shape (N, C, H, W): what a training loss compares, with gradients everywhere."""
        output = self.raw(x_t, t, condition)
        alpha, sigma = per_sample(self.schedule.alpha(t), x_t), per_sample(self.schedule.sigma(t), x_t)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * output
        return (x_t - sigma * output) / alpha

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """x̂ = f_φ(x_t, t), clipped to [−1, 1] if the denoiser clips; shape (N, C, H, W)."""
        estimate = self.estimate(x_t, t, condition)
        return estimate.clamp(-1, 1) if self.clip else estimate
