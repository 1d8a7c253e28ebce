"""What a network's output F means: one class a prediction type.

Everywhere x_t = α_t x + σ_t ε, and x̂ is the estimate of the clean image x.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch

from diffusion.level import Level
from diffusion.schedule import EdmSchedule, FlowSchedule, Schedule

# "edm" is the preconditioned output of Karras et al. 2022, "flow" the velocity of flow matching; each belongs to the
# schedule of its name.
PredictionType = Literal["epsilon", "v_prediction", "sample", "edm", "flow"]
# How a one-step student of an epsilon network reads it at t_max: ε − σ F, or that divided by α, the teacher's x̂.
EpsilonReading = Literal["noise", "exact"]


class Prediction(ABC):
    """How a network is fed, read and trained.

    Shapes: images, noises and outputs (N, C, H, W).
    """

    def fed(self, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        """What the network is fed for the state x_t: the state itself."""
        return x_t

    @abstractmethod
    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        """x̂ from F at the state x_t, unbounded."""

    @abstractmethod
    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        """What F should be at α x + σ ε."""

    def read_from_noise(self, output: torch.Tensor, x_t: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        """x̂ from F at the state x_t of t_max, which is pure noise ε up to its scale: what a one-step student reads."""
        return self.read(output, x_t, at)


class Sample(Prediction):
    """F = x̂."""

    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        return output

    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        return x


class Velocity(Prediction):
    """F = v = α ε − σ x, so x̂ = α x_t − σ F (Salimans & Ho 2022, appendix D)."""

    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        return at.alpha * x_t - at.sigma * output

    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        return at.alpha * noise - at.sigma * x


class Epsilon(Prediction):
    """F = ε, so x̂ = (x_t − σ F) / α."""

    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        return at.signal(x_t, output)

    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        return noise

    def read_from_noise(self, output: torch.Tensor, x_t: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        # "noise": α is next to nothing there, and not divided by.
        return noise - at.sigma * output


class Edm(Prediction):
    """x̂ = c_skip x_t + c_out F(c_in x_t) with c_skip = σ_d² / (σ² + σ_d²), c_out = σ σ_d / √(σ² + σ_d²) and
    c_in = 1 / √(σ² + σ_d²) (Karras et al. 2022, table 1).

    Args:
        sigma_data: σ_d, the data's deviation.
    """

    def __init__(self, sigma_data: float) -> None:
        self._data = sigma_data

    def fed(self, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        return x_t / (at.sigma**2 + self._data**2).sqrt()

    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        total = at.sigma**2 + self._data**2
        return self._data**2 / total * x_t + at.sigma * self._data / total.sqrt() * output

    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        # (x − c_skip (x + σ ε)) / c_out, with the cancellation at small σ done by hand.
        sigma = at.sigma.like(x)
        return (sigma * x - self._data**2 * noise) / (self._data * (sigma.square() + self._data**2).sqrt())


class Flow(Prediction):
    """F = dx_t/dσ = ε − x where α + σ = 1, so x̂ = x_t − σ F (Lipman et al. 2023); DDIM is Euler's step of that flow.

    At t_max, where σ = 1, a student reads y = ε − F: exact, and nothing is divided by.
    """

    def read(self, output: torch.Tensor, x_t: torch.Tensor, at: Level) -> torch.Tensor:
        return x_t - at.sigma * output

    def target(self, x: torch.Tensor, noise: torch.Tensor, at: Level) -> torch.Tensor:
        return noise - x


def prediction_of(kind: PredictionType, schedule: Schedule) -> Prediction:
    """The prediction of a name.

    Raises:
        ValueError: an unknown name, or one that belongs to another schedule.
    """
    owners = {"edm": EdmSchedule, "flow": FlowSchedule}
    if kind in owners and not isinstance(schedule, owners[kind]):
        raise ValueError(f"prediction_type: found {kind!r}, expected another: it belongs to the {kind} schedule")
    if kind == "edm":
        assert isinstance(schedule, EdmSchedule)
        return Edm(schedule.sigma_data)
    known: dict[str, type[Prediction]] = {
        "epsilon": Epsilon,
        "v_prediction": Velocity,
        "sample": Sample,
        "flow": Flow,
    }
    if kind not in known:
        raise ValueError(f"prediction_type: found {kind!r}, expected one of: {', '.join(get_args(PredictionType))}")
    return known[kind]()
