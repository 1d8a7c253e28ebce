"""A denoiser: a network, the schedule it was trained on, and what its output means."""

from typing import Literal

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions, Unconditional
from diffusion.schedule import EdmSchedule, Schedule, network_timesteps, per_sample
from diffusion.thresholding import STATIC, Thresholding

# "edm" is the preconditioned output of Karras et al. 2022, which belongs to their schedule.
PredictionType = Literal["epsilon", "v_prediction", "sample", "edm"]


def network_input(
    schedule: Schedule, prediction_type: PredictionType, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """What the network is fed for the state x_t: the state itself, or c_in x_t of unit variance for "edm".

    Args:
        x_t: shape (N, C, H, W); t: shape (N,) or ().
    """
    if prediction_type != "edm":
        return x_t
    assert isinstance(schedule, EdmSchedule)
    return x_t / per_sample((schedule.sigma(t).square() + schedule.sigma_data**2).sqrt(), x_t)


def signal_from_output(
    schedule: Schedule, prediction_type: PredictionType, output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """x̂ from a network's output F at the state x_t: the meaning of each prediction type.

    ``sample`` F; ``v_prediction`` α x_t − σ F (Salimans & Ho 2022, appendix D); ``epsilon`` (x_t − σ F) / α; ``edm``
    c_skip x_t + c_out F with c_skip = σ_d² / (σ² + σ_d²) and c_out = σ σ_d / √(σ² + σ_d²) (Karras et al. 2022,
    table 1).

    Args:
        output, x_t: shape (N, C, H, W); t: shape (N,) or ().
    """
    if prediction_type == "sample":
        return output
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction_type == "v_prediction":
        return per_sample(alpha, x_t) * x_t - per_sample(sigma, x_t) * output
    if prediction_type == "epsilon":
        return (x_t - per_sample(sigma, x_t) * output) / per_sample(alpha, x_t)
    assert isinstance(schedule, EdmSchedule)
    data = schedule.sigma_data
    total = sigma.square() + data**2
    return per_sample(data**2 / total, x_t) * x_t + per_sample(sigma * data / total.sqrt(), x_t) * output


class Denoiser(nn.Module):
    """f_φ(x_t, t): the estimate of the clean picture x by any network of any prediction type.

    Every loss, reference trajectory and sampler goes through this class, so all of them see the same bounded teacher.

    Args:
        thresholding: bounds the estimate.
        conditions: what it can be told beside the picture and the time.
    """

    evaluations = 1  # of the network, for one estimate

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        thresholding: Thresholding = STATIC,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type
        self.thresholding, self.conditions = thresholding, conditions or Unconditional()

    def with_network(self, network: nn.Module) -> "Denoiser":
        """A denoiser, without guidance, that reads ``network`` as this one reads its own."""
        return Denoiser(network, self.schedule, self.prediction_type, self.thresholding, self.conditions)

    def raw(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The network's own output F in float32: ε, v = α ε − σ x, x, or EDM's, as ``prediction_type`` says.

        Args:
            x_t: noisy pictures, shape (N, C, H, W).
            t: times, shape (N,) or ().
        """
        timestep = network_timesteps(self.schedule, t, x_t)
        fed = network_input(self.schedule, self.prediction_type, x_t, t)
        return self.network(fed, timestep, return_dict=False, **(condition or {}))[0].float()

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """x̂ before it is bounded, shape (N, C, H, W): what a training loss compares, with gradients everywhere."""
        output = self.raw(x_t, t, condition)
        return signal_from_output(self.schedule, self.prediction_type, output, x_t, t)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """x̂ = f_φ(x_t, t), bounded as ``thresholding`` says; shape (N, C, H, W)."""
        return self.thresholding(self.estimate(x_t, t, condition))


def denoising_loss(
    denoiser: Denoiser, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """Mean squared error of the network's own output at x_t = α_t x + σ_t ε.

    For ``v_prediction`` the target is v = α ε − σ x (Salimans & Ho 2022, appendix D), for ``epsilon`` ε, for
    ``sample`` x, and for ``edm`` (x − c_skip x_t) / c_out. That is eq. 8 of Karras et al. 2022 with their weight
    λ(σ) = (σ² + σ_data²) / (σ σ_data)² of ‖x̂ − x‖² (table 1): it equals 1/c_out², so that the network's own output has
    weight 1 at every noise level. Mean over batch and pixels; a scalar.

    Args:
        x, noise: shape (N, C, H, W); t: shape (N,).
    """
    schedule = denoiser.schedule
    alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
    output = denoiser.raw(alpha * x + sigma * noise, t, condition)
    if denoiser.prediction_type == "edm":
        assert isinstance(schedule, EdmSchedule)
        data = schedule.sigma_data
        # (x − c_skip (x + σ ε)) / c_out, with the cancellation at small σ done by hand.
        target = (sigma * x - data**2 * noise) / (data * (sigma.square() + data**2).sqrt())
    else:
        target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[denoiser.prediction_type]
    return (output - target).square().mean()
