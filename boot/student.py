"""The BOOT student: from pure noise and a target time, in one evaluation, to the signal at that time."""

import torch
from torch import nn

from diffusion.denoiser import Condition, PredictionType
from diffusion.schedule import Schedule, network_timesteps, per_sample


class BootStudent(nn.Module):
    """g_θ(ε, t) ≈ y_t (BOOT, sec. 3.2).

    The network is the teacher's, always fed the pure noise x_M = ε and told the target time t. Its output F is read
    with the coefficients of t_max for every t: ``v_prediction`` y = α_M ε − σ_M F, ``sample`` y = F. Started from
    the teacher's weights, g_θ(ε, t_max) = f_φ(ε, t_max) then holds exactly, before clipping. ``epsilon`` would
    divide by α_M ≈ 0, so there y = ε − σ_M F, and the boundary loss must carry the initialisation.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction_type: PredictionType) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type
        t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
        self._alpha_max, self._sigma_max = schedule.alpha(t_max), schedule.sigma(t_max)

    def forward(self, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """y_t, unclipped.

        Args:
            noise: ε, shape (N, C, H, W).
            t: target times, shape (N,) or ().

        Returns:
            shape (N, C, H, W).
        """
        timestep = network_timesteps(self.schedule, t, noise)
        output = self.network(noise, timestep, return_dict=False, **(condition or {}))[0].float()
        alpha, sigma = per_sample(self._alpha_max, noise), per_sample(self._sigma_max, noise)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * output
        return noise - sigma * output

    def sample(self, noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The one-step sample g_θ(ε, t_min), shape (N, C, H, W)."""
        return self(noise, torch.tensor(self.schedule.t_min, dtype=torch.float64), condition)
