"""Noise schedules x_t = α_t x + σ_t ε in continuous time, and their discrete form for `diffusers`.

λ_t = log(σ_t / α_t) is the negative half of the log signal-to-noise ratio; it grows with t. Times are float64
tensors: near t_max the signal α is about 1e-3, and float32 times would cost it four digits.

Variance-preserving schedules have α² + σ² = 1 and start from x = ε at t_max. Variance-exploding ones (EDM) have α = 1
and start from x = σ_max ε; their t is a clock, not a noise level. Flow matching has α + σ = 1 and starts from x = ε,
with no signal at all.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from diffusion.level import Coefficient, Level, Times
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import GrownSettings

# Keys that a kind has for itself.
_OWN = {
    "cosine": {"t_min", "t_max"},
    "edm": {"sigma_min", "sigma_max", "sigma_data", "rho"},
    "flow": {"shift"},
    "scaled_linear": {"beta_start", "beta_end"},
}


class ScheduleSettings(GrownSettings):
    """The schedule of a teacher that is trained here.

    Attributes:
        kind: "cosine" (variance preserving), "edm" (α = 1; Karras et al. 2022, arXiv 2206.00364), "flow" (α + σ = 1;
            Lipman et al. 2023, arXiv 2210.02747), or "scaled_linear" (variance preserving, given at the timesteps and
            interpolated between them: √β rises linearly; Rombach et al. 2022, arXiv 2112.10752).
        t_min, t_max: the ends of the interval, of the cosine schedule.
        sigma_min, sigma_max, sigma_data, rho: EDM's noise levels, the data's deviation and the clock's exponent; its
            t runs from 0 (σ_min) to 1 (σ_max), and σ^(1/ρ) is linear in it.
        beta_start, beta_end: β of the first and the last timestep, of "scaled_linear"; Stable Diffusion's, which has
            1000 timesteps.
        shift: s of the flow schedule; more than 1 spends more of the clock on noise (Esser et al. 2024).
        num_timesteps: discretises the schedule for `diffusers`: timesteps 0 (t_min) to num_timesteps − 1 (t_max).
            2000 is a multiple of every usual number of sampling steps (16 and 50 included), so that `diffusers`'
            integer steps fall on the same times as the exact ones.
    """

    later: ClassVar[tuple[str, ...]] = ("shift", "beta_start", "beta_end")

    kind: Literal["cosine", "edm", "flow", "scaled_linear"] = "cosine"
    t_min: float = Field(0.001, gt=0, lt=1)
    t_max: float = Field(0.999, gt=0, lt=1)
    num_timesteps: int = Field(2000, ge=2)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    sigma_data: float = Field(0.5, gt=0)
    rho: float = Field(7.0, ge=1)
    shift: float = Field(1.0, gt=0)
    beta_start: float = Field(0.00085, gt=0, lt=1)
    beta_end: float = Field(0.012, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> "ScheduleSettings":
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min ({self.t_min}) must be smaller than t_max ({self.t_max})")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be smaller than sigma_max ({self.sigma_max})")
        if self.beta_start >= self.beta_end:
            raise ValueError(f"beta_start ({self.beta_start}) must be smaller than beta_end ({self.beta_end})")
        # By value, not by presence: settings that were written out in full are read again.
        foreign = sorted(k for k in self._of_others() if getattr(self, k) != type(self).model_fields[k].default)
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: not a key of the {self.kind} schedule")
        return self

    def _of_others(self) -> set[str]:
        return set().union(*(keys for kind, keys in _OWN.items() if kind != self.kind))

    def build(self) -> "Schedule":
        """The schedule."""
        if self.kind == "scaled_linear":
            roots = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.num_timesteps)
            return DiscreteSchedule(np.cumprod(1 - roots**2))
        return schedule_from_settings(self.model_dump(exclude=self._of_others()))


class Schedule(ABC):
    """α_t and σ_t for t in [t_min, t_max], and the timestep by which a network is told t."""

    t_min: float
    t_max: float
    num_timesteps: int

    @abstractmethod
    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """α_t, shape of ``t``, float64."""

    @abstractmethod
    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """σ_t, shape of ``t``, float64."""

    def at(self, t: Times, device: torch.device | str = "cpu") -> Level:
        """The noise level of times; of a number on ``device``."""
        if isinstance(t, Level):
            return t
        t = t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64, device=device)
        return Level(t, Coefficient(self.alpha(t)), Coefficient(self.sigma(t)))

    def log_noise_to_signal(self, t: torch.Tensor) -> torch.Tensor:
        """λ_t = log(σ_t / α_t), shape of ``t``, float64."""
        return torch.log(self.sigma(t)) - torch.log(self.alpha(t))

    @abstractmethod
    def time_of(self, log_noise_to_signal: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`log_noise_to_signal`, bounded to [t_min, t_max]; float64."""

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """The state x_M at t_max that a trajectory from ``noise`` starts in: pure noise, at the level of t_max.

        That is ε itself where the variance is preserved: the signal's share α_M there is left out, as every sampler
        does.
        """
        return noise

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        """What the network is told for time ``t``; shape of ``t``, float64. The timestep, unless it says otherwise."""
        return self.timestep(t)

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        """The (non-integer) timestep in [0, num_timesteps − 1] for time ``t``."""
        return (t.double() - self.t_min) * ((self.num_timesteps - 1) / (self.t_max - self.t_min))

    def time(self, timestep: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`timestep`."""
        return self.t_min + timestep.double() * ((self.t_max - self.t_min) / (self.num_timesteps - 1))

    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ = α² at timesteps 0 … num_timesteps − 1, the quantity `diffusers` calls ``alphas_cumprod``; float64."""
        t = self.time(torch.arange(self.num_timesteps))
        return self.alpha(t).square().numpy()

    def betas(self) -> np.ndarray:
        """β_i = 1 − ᾱ_i / ᾱ_{i−1} with ᾱ_{−1} = 1: ``trained_betas`` of a `diffusers` scheduler; float64."""
        alphas_cumprod = self.alphas_cumprod()
        return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What :func:`schedule_from_settings` needs to build this schedule again."""


class CosineSchedule(Schedule):
    """α_t = cos(πt/2), σ_t = sin(πt/2) (Nichol & Dhariwal 2021 without the offset; the schedule of BOOT and of
    progressive distillation)."""

    def __init__(self, t_min: float = 0.001, t_max: float = 0.999, num_timesteps: int = 2000) -> None:
        self.t_min, self.t_max, self.num_timesteps = t_min, t_max, num_timesteps

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.cos(t.double() * (math.pi / 2))

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(t.double() * (math.pi / 2))

    def time_of(self, log_noise_to_signal: torch.Tensor) -> torch.Tensor:
        t = torch.arctan(torch.exp(log_noise_to_signal.double())) * (2 / math.pi)
        return t.clamp(self.t_min, self.t_max)

    def settings(self) -> dict[str, Any]:
        return {"kind": "cosine", "t_min": self.t_min, "t_max": self.t_max, "num_timesteps": self.num_timesteps}


class DiscreteSchedule(Schedule):
    """A `diffusers` scheduler's ``alphas_cumprod`` made continuous by linear interpolation of λ in the timestep.

    The clock is t = (timestep + 1) / num_timesteps. Where the terminal signal-to-noise ratio is zero, λ is infinite
    and the angle atan2(σ, α) is interpolated instead.
    """

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        """Args: alphas_cumprod: ᾱ, shape (num_timesteps,), decreasing in [0, 1)."""
        alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)
        if (
            alphas_cumprod.ndim != 1
            or len(alphas_cumprod) < 2
            or not np.isfinite(alphas_cumprod).all()
            or (np.diff(alphas_cumprod) >= 0).any()
            or alphas_cumprod[0] >= 1
            or alphas_cumprod[-1] < 0
        ):
            raise UserError(
                "the scheduler's alphas_cumprod must be finite and strictly decreasing within [0, 1); "
                "use a teacher whose scheduler has a regular beta schedule."
            )
        self.num_timesteps = len(alphas_cumprod)
        self.t_min, self.t_max = 1 / self.num_timesteps, 1.0
        self._alphas_cumprod = alphas_cumprod
        alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
        self._by_angle = bool(alphas_cumprod[-1] == 0)
        # On every device that asked: a copy in every step would make the host wait.
        self._knots_on: dict[torch.device, torch.Tensor] = {}
        self._knots = torch.from_numpy(np.arctan2(sigma, alpha) if self._by_angle else np.log(sigma / alpha))

    def _knots_beside(self, t: torch.Tensor) -> torch.Tensor:
        if t.device not in self._knots_on:
            self._knots_on[t.device] = self._knots.to(t.device)
        return self._knots_on[t.device]

    def _interpolated(self, t: torch.Tensor) -> torch.Tensor:
        knots = self._knots_beside(t)
        position = self.timestep(t).clamp(0, self.num_timesteps - 1)
        below = position.floor().long().clamp(max=self.num_timesteps - 2)
        return torch.lerp(knots[below], knots[below + 1], position - below)

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        value = self._interpolated(t)
        if self._by_angle:  # the cosine, written so that it is exactly zero at the end
            return torch.sin(self._knots_beside(t)[-1] - value)
        # α = 1/√(1 + e^{2λ}), written so that neither end overflows.
        return torch.sigmoid(-2 * value).sqrt()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        value = self._interpolated(t)
        return torch.sin(value) if self._by_angle else torch.sigmoid(2 * value).sqrt()

    def time_of(self, log_noise_to_signal: torch.Tensor) -> torch.Tensor:
        knots = self._knots_beside(log_noise_to_signal)
        value = log_noise_to_signal.double()
        value = (torch.arctan(torch.exp(value)) if self._by_angle else value).clamp(knots[0], knots[-1])
        above = torch.searchsorted(knots, value.contiguous()).clamp(1, self.num_timesteps - 1)
        low, high = knots[above - 1], knots[above]
        return self.time(above - 1 + (value - low) / (high - low))

    def settings(self) -> dict[str, Any]:
        return {"kind": "discrete", "alphas_cumprod": self._alphas_cumprod.tolist()}


class EdmSchedule(Schedule):
    """α = 1 and σ(t) = (σ_min^(1/ρ) + t (σ_max^(1/ρ) − σ_min^(1/ρ)))^ρ for t in [0, 1] (Karras et al. 2022,
    arXiv 2206.00364, eq. 5 run backwards).

    A constant step of this clock has 1 − k bounded away from zero all along, which a constant step of σ has not.

    Attributes:
        sigma_data: the data's deviation, in the coefficients by which networks of this family are read.
    """

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        num_timesteps: int = 2000,
    ) -> None:
        self.t_min, self.t_max, self.num_timesteps = 0.0, 1.0, num_timesteps
        self.sigma_min, self.sigma_max, self.sigma_data, self.rho = sigma_min, sigma_max, sigma_data, rho
        self._low, self._high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return (self._low + t.double() * (self._high - self._low)) ** self.rho

    def time_of(self, log_noise_to_signal: torch.Tensor) -> torch.Tensor:
        root = torch.exp(log_noise_to_signal.double() / self.rho)
        return ((root - self._low) / (self._high - self._low)).clamp(0, 1)

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        return self.sigma_max * noise

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        """c_noise = ¼ log σ (table 1 of the paper)."""
        return torch.log(self.sigma(t)) / 4

    def settings(self) -> dict[str, Any]:
        names = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_timesteps")
        return {"kind": "edm", **{name: getattr(self, name) for name in names}}


class FlowSchedule(Schedule):
    """α_u = (1 − u) / n and σ_u = s u / n with n = 1 + (s − 1) u, so that α + σ = 1 and λ = log s + logit u.

    Rectified flow (Liu et al. 2023, arXiv 2209.03003) with the shift of Esser et al. 2024 (arXiv 2403.03206), sec.
    5.3.2, which moves λ by a constant: k = e^{λ_s − λ_t} knows nothing of it. The clock t = u ends at 1, where there is
    no signal, and begins where σ = 1 / num_timesteps; timestep i is u = (i + 1) / num_timesteps. The network is told
    num_timesteps · σ, as `diffusers`' ``FlowMatchEulerDiscreteScheduler`` does.
    """

    def __init__(self, shift: float = 1.0, num_timesteps: int = 1000) -> None:
        self.shift, self.num_timesteps = shift, num_timesteps
        self.t_min, self.t_max = 1 / (shift * (num_timesteps - 1) + 1), 1.0

    def _scale(self, t: torch.Tensor) -> torch.Tensor:
        return 1 + (self.shift - 1) * t.double()

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return (1 - t.double()) / self._scale(t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return self.shift * t.double() / self._scale(t)

    def time_of(self, log_noise_to_signal: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(log_noise_to_signal.double() - math.log(self.shift)).clamp(self.t_min, self.t_max)

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        return self.num_timesteps * self.sigma(t)

    def timestep(self, t: torch.Tensor) -> torch.Tensor:
        return t.double() * self.num_timesteps - 1

    def time(self, timestep: torch.Tensor) -> torch.Tensor:
        return (timestep.double() + 1) / self.num_timesteps

    def settings(self) -> dict[str, Any]:
        return {"kind": "flow", "shift": self.shift, "num_timesteps": self.num_timesteps}


def schedule_from_settings(settings: dict[str, Any]) -> Schedule:
    """Builds a schedule from :meth:`Schedule.settings`.

    Raises:
        UserError: an unknown kind.
    """
    arguments = dict(settings)
    kind = arguments.pop("kind", None)
    if kind == "cosine":
        return CosineSchedule(**arguments)
    if kind == "discrete":
        return DiscreteSchedule(np.asarray(arguments["alphas_cumprod"]))
    if kind == "edm":
        return EdmSchedule(**arguments)
    if kind == "flow":
        return FlowSchedule(**arguments)
    raise UserError(f"schedule: found kind {kind!r}, expected 'cosine', 'discrete', 'edm' or 'flow'.")


def network_timesteps(schedule: Schedule, t: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """What a network is told for times ``t``, shape (N,) or (), or a number: float32, shape (N,), beside ``like``.

    A tensor, because `diffusers` networks truncate Python floats to integers.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    timestep = schedule.network_time(t)
    if t.ndim == 0 and not t.is_cuda:
        return torch.full((len(like),), float(timestep), device=like.device)  # no copy, see Coefficient
    return timestep.to(like.device, torch.float32).expand(len(like))
