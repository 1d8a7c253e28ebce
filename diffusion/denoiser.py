"""A denoiser: a network, the schedule it was trained on, and what its output means."""

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions, Unconditional
from diffusion.family import UNET, Family
from diffusion.prediction import PredictionType, prediction_of
from diffusion.schedule import Level, Schedule, network_timesteps, per_sample
from diffusion.thresholding import STATIC, Thresholding


class Denoiser(nn.Module):
    """f_φ(x_t, t): the estimate of the clean picture x by any network of any prediction type.

    Every loss, reference trajectory and sampler goes through this class, so all of them see the same bounded teacher.

    Args:
        thresholding: bounds the estimate.
        conditions: what it can be told beside the picture and the time.
        family: how the network is called.
    """

    evaluations = 1  # of the network, for one estimate

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        thresholding: Thresholding = STATIC,
        conditions: Conditions | None = None,
        family: Family = UNET,
    ) -> None:
        super().__init__()
        self.family = family
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type
        self.prediction = prediction_of(prediction_type, schedule)
        self.thresholding, self.conditions = thresholding, conditions or Unconditional()

    def with_network(self, network: nn.Module) -> "Denoiser":
        """A denoiser, without guidance, that reads ``network`` as this one reads its own."""
        return Denoiser(network, self.schedule, self.prediction_type, self.thresholding, self.conditions, self.family)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that the network is fed."""
        return self.family.shape(self.network.config)

    def raw(
        self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None, at: Level | None = None
    ) -> torch.Tensor:
        """The network's own output F in float32: ε, v = α ε − σ x, x, or EDM's, as ``prediction_type`` says.

        Args:
            x_t: noisy pictures, shape (N, C, H, W).
            t: times, shape (N,) or ().
            at: their level, where it is known already.
        """
        timestep = network_timesteps(self.schedule, t, x_t)
        fed = self.prediction.fed(x_t, at or self.schedule.at(t))
        return self.family.call(self.network, fed, timestep, condition)

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """x̂ before it is bounded, shape (N, C, H, W): what a training loss compares, with gradients everywhere."""
        at = self.schedule.at(t)
        return self.prediction.read(self.raw(x_t, t, condition, at), x_t, at)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
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
    x_t = per_sample(at.alpha, x) * x + per_sample(at.sigma, x) * noise
    output = denoiser.raw(x_t, t, condition, at)
    return (output - denoiser.prediction.target(x, noise, at)).square().mean()
