"""A denoiser: a network, the schedule it was trained on, and what its output means."""

from typing import Any

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions, Unconditional
from diffusion.family import UNET, Family
from diffusion.level import Level, Times
from diffusion.prediction import PredictionType, prediction_of
from diffusion.schedule import Schedule, network_timesteps
from diffusion.space import PIXELS, Space
from diffusion.thresholding import STATIC, Thresholding


class Denoiser(nn.Module):
    """f_φ(x_t, t): the estimate of the clean picture x by any network of any prediction type.

    Every loss, reference trajectory and sampler goes through this class, so all of them see the same bounded teacher.

    Args:
        thresholding: bounds the estimate.
        conditions: what it can be told beside the picture and the time.
        family: how the network is called.
        space: what its states are.
        embedded_scale: w that the network is told of all images, where it embeds it; None leaves that to the condition.
    """

    evaluations = 1  # of the network, for one estimate
    told_scale = False  # whether conditions must have a guidance scale of each image

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        thresholding: Thresholding = STATIC,
        conditions: Conditions | None = None,
        family: Family = UNET,
        space: Space = PIXELS,
        embedded_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.family, self.space, self.embedded_scale = family, space, embedded_scale
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type
        self.prediction = prediction_of(prediction_type, schedule)
        self.thresholding, self.conditions = thresholding, conditions or Unconditional()

    def with_network(self, network: nn.Module) -> "Denoiser":
        """A denoiser, without guidance, that reads ``network`` as this one reads its own."""
        return Denoiser(network, **self.reading)

    @property
    def reading(self) -> dict[str, Any]:
        """How it reads its network: the further arguments that it was made with."""
        names = ("schedule", "prediction_type", "thresholding", "conditions", "family", "space")
        return {name: getattr(self, name) for name in (*names, "embedded_scale")}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that the network is fed."""
        return self.family.shape(self.network.config)

    def raw(self, x_t: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        """The network's own output F in float32: ε, v = α ε − σ x, x, or EDM's, as ``prediction_type`` says.

        Args:
            x_t: noisy pictures, shape (N, C, H, W).
            t: times, one an image or one for all.
        """
        at = self.schedule.at(t)
        return self.call(self.prediction.fed(x_t, at), at, condition)

    def call(self, fed: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        """F, from what the network is fed, not from the state; nothing else calls the network.

        Args:
            fed: shape (N, C, H, W); t: the times that it is told.
        """
        told = network_timesteps(self.schedule, t.time if isinstance(t, Level) else t, fed)
        if self.embedded_scale is not None:
            scale = torch.full((len(fed),), self.embedded_scale, device=fed.device)
            condition = {**(condition or {}), "guidance": scale}
        return self.family.call(self.network, fed, told, condition)

    def estimate(self, x_t: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        """x̂ before it is bounded, shape (N, C, H, W): what a training loss compares, with gradients everywhere."""
        at = self.schedule.at(t)
        return self.prediction.read(self.raw(x_t, at, condition), x_t, at)

    def forward(self, x_t: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        """x̂ = f_φ(x_t, t), bounded as ``thresholding`` says; shape (N, C, H, W)."""
        return self.thresholding(self.estimate(x_t, t, condition))


def denoising_loss(
    denoiser: Denoiser, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """Mean squared error of the network's own output at x_t = α_t x + σ_t ε.

    For "edm" that is eq. 8 of Karras et al. 2022 with their weight λ(σ) = (σ² + σ_data²) / (σ σ_data)² of ‖x̂ − x‖²
    (table 1): it equals 1/c_out², so that the network's own output has weight 1 at every noise level. Mean over batch
    and pixels; a scalar.

    Args:
        x, noise: shape (N, C, H, W); t: shape (N,).
    """
    at = denoiser.schedule.at(t)
    output = denoiser.raw(at.noised(x, noise), at, condition)
    return (output - denoiser.prediction.target(x, noise, at)).square().mean()
