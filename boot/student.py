"""The BOOT student: from pure noise and a target time, in one evaluation, to the signal at that time."""

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.denoiser import PredictionType, network_input, signal_from_output
from diffusion.schedule import Schedule, network_timesteps, per_sample


class BootStudent(nn.Module):
    """g_θ(ε, t) ≈ y_t (BOOT, sec. 3.2).

    The network is the teacher's, always fed the state of t_max from pure noise ε and told the target time t. Its output
    is read with the coefficients of t_max for every t: ``v_prediction`` y = α_M ε − σ_M F, ``sample`` y = F, ``edm``
    y = c_skip(σ_M) σ_M ε + c_out(σ_M) F(c_in(σ_M) σ_M ε). Started from the teacher's weights,
    g_θ(ε, t_max) = f_φ(x_M, t_max) then holds exactly, before clipping and guidance. ``epsilon`` would divide by
    α_M ≈ 0, so there y = ε − σ_M F, and the boundary loss must carry the initialisation.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction_type: PredictionType) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction_type = network, schedule, prediction_type
        # Beside the network: a scalar of the host inside a step would keep it from becoming a CUDA graph.
        device = next((parameter.device for parameter in network.parameters()), None)
        self._t_max = torch.tensor(schedule.t_max, dtype=torch.float64, device=device)

    def forward(self, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """y_t, unclipped.

        Args:
            noise: ε, shape (N, C, H, W).
            t: target times, shape (N,) or ().

        Returns:
            shape (N, C, H, W).
        """
        start = self.schedule.start(noise)
        fed = network_input(self.schedule, self.prediction_type, start, self._t_max)
        told = network_timesteps(self.schedule, t, noise)
        output = self.network(fed, told, return_dict=False, **(condition or {}))[0].float()
        if self.prediction_type == "epsilon":
            return noise - per_sample(self.schedule.sigma(self._t_max), noise) * output
        return signal_from_output(self.schedule, self.prediction_type, output, start, self._t_max)

    def sample(self, noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The one-step sample g_θ(ε, t_min), shape (N, C, H, W)."""
        return self(noise, torch.tensor(self.schedule.t_min, dtype=torch.float64), condition)
