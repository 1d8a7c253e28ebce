"""The BOOT student: from pure noise and a target time, in one evaluation, to the signal at that time."""

import torch

from diffusion.conditions import Condition
from diffusion.student import NoiseStudent


class BootStudent(NoiseStudent):
    """g_θ(ε, t) ≈ y_t (BOOT, sec. 3.2).

    The network is the teacher's, always fed the state of t_max from pure noise ε and told the target time t, and its
    output is read with the coefficients of t_max for every t. Started from the teacher's weights,
    g_θ(ε, t_max) = f_φ(x_M, t_max) then holds exactly, before clipping and guidance; ``epsilon`` cannot, so there the
    boundary loss must carry the initialisation.
    """

    def sample(self, noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The one-step sample g_θ(ε, t_min), shape (N, C, H, W)."""
        return self(noise, torch.tensor(self.schedule.t_min, dtype=torch.float64), condition)
