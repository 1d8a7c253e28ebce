"""A network that answers to pure noise with a picture, in one evaluation: what one-step students share."""

from typing import Any, Self

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.denoiser import Denoiser
from diffusion.family import UNET, Family
from diffusion.prediction import EpsilonReading, PredictionType, Sample
from diffusion.schedule import Schedule


class NoiseStudent(nn.Module):
    """g_θ(ε, t): the network is fed pure noise at one noise level M and told any time t.

    Its output F is read with the coefficients of M for every t: ``v_prediction`` y = α_M ε − σ_M F, ``sample`` y = F,
    ``edm`` y = c_skip(σ_M) σ_M ε + c_out(σ_M) F(c_in(σ_M) σ_M ε). Started from a teacher's weights and told M, it then
    is the teacher's estimate there, before clipping and guidance. At t_max, ``epsilon`` would divide by α_M ≈ 0; there
    y = ε − σ_M F instead, and the start is inexact, unless ``epsilon_reading`` is "exact".

    BOOT's student (sec. 3.2) is told every t ∈ [t_min, t_max] and predicts the signal y_t of its trajectory; others are
    told one time.

    Args:
        read_at: the time M; None is t_max, where x = ε is fed to variance-preserving networks, as every sampler does.
        raw: whether F is y itself, whatever the prediction type, which then says only how the network is fed.
        family, embedded_scale: how the network is called, as of a :class:`diffusion.denoiser.Denoiser`.
        epsilon_reading: at t_max, of ``epsilon``: "noise", y = ε − σ_M F, or "exact", y = (ε − σ_M F) / α_M.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        read_at: float | None = None,
        raw: bool = False,
        family: Family = UNET,
        epsilon_reading: EpsilonReading = "noise",
        embedded_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = Denoiser(network, schedule, prediction_type, family=family, embedded_scale=embedded_scale)
        self.schedule = schedule
        self._reading = Sample() if raw else self.denoiser.prediction
        self._at_end, self._exact = read_at is None, epsilon_reading == "exact"
        # Beside the network: a scalar of the host inside a step would keep it from becoming a CUDA graph.
        device = next((parameter.device for parameter in network.parameters()), None)
        level = schedule.t_max if read_at is None else read_at
        self._read_at = torch.tensor(level, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, teacher: Denoiser, network: nn.Module, **reading: Any) -> Self:
        """The student whose network is called as the teacher's is; ``reading``: further arguments."""
        how = {"family": teacher.family, "embedded_scale": teacher.embedded_scale, **reading}
        return cls(network, teacher.schedule, teacher.prediction_type, **how)

    def forward(self, noise: torch.Tensor, t: torch.Tensor | float, condition: Condition = None) -> torch.Tensor:
        """The picture y, unclipped.

        Args:
            noise: ε, shape (N, C, H, W).
            t: the times that the network is told, shape (N,) or (), or a number.

        Returns:
            shape (N, C, H, W).
        """
        at = self.schedule.at(self._read_at)
        start = self.schedule.start(noise) if self._at_end else at.sigma * noise
        output = self.denoiser.call(self.denoiser.prediction.fed(start, at), t, condition)
        if self._at_end and not self._exact:
            return self._reading.read_from_noise(output, start, noise, at)
        return self._reading.read(output, start, at)

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    def sample(self, noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        """The image of a student that is told the end of its trajectory, g_θ(ε, t_min); shape (N, C, H, W)."""
        return self(noise, self.schedule.t_min, condition)
