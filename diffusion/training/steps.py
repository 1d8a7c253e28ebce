"""What the loop and a method hand each other: a step, its loss, what is trained, what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

LOG_COLUMNS = ("stage", "step", "loss", "learning_rate", "gradient_norm", "wall_clock_s")


@dataclass(frozen=True)
class Step:
    """What the loss of one optimiser step, or of a slice of its batch, may depend on.

    Attributes:
        generator: the only source of randomness but dropout's, seeded by (seed, stage, step, micro-batch), on the run's
            device.
        progress: share of the stage's steps that are done, in [0, 1).
        batch_size: how many pictures or noises to compute the loss of: the size of the slice.
        average: the moving average of the weights as the last step left it, without gradient; None without an EMA.
    """

    generator: torch.Generator
    progress: float
    batch_size: int
    average: nn.Module | None = None


Loss = Callable[[Step], torch.Tensor]


class Stateful(Protocol):
    """What a method trains or averages beside its network: a module, or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Snapshot:
    """A result as it was before the end of its training.

    Attributes:
        step: optimiser steps of its stage that were done.
        cost: as :meth:`TrainingRun.cost`, of the whole run up to there.
        path: where the weights are, as long as the run's state exists.
    """

    step: int
    cost: dict[str, float]
    path: Path

    def weights(self) -> dict[str, torch.Tensor]:
        """The state dictionary of the network, on the CPU."""
        weights: dict[str, torch.Tensor] = torch.load(self.path, map_location="cpu", weights_only=True)["result"]
        return weights


class Trained(NamedTuple):
    """What :meth:`TrainingRun.fit` returns.

    Attributes:
        network: the network to keep: the average of the trained one's weights where there is one, or itself.
        cost: as :meth:`TrainingRun.cost`, of the whole run up to here.
        snapshots: the same network at earlier steps, the earliest first.
    """

    network: nn.Module
    cost: dict[str, float]
    snapshots: tuple[Snapshot, ...] = ()
