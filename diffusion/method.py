"""What a method is: one way to draw pictures from a teacher's knowledge with few network evaluations.

A method is one file in ``boot/`` or ``baselines/`` with a subclass of :class:`Method`; the registry finds it there.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guidance
from diffusion.pairs import Pairs, PairsSettings
from diffusion.settings import Settings
from diffusion.teacher import TeacherFacts
from diffusion.training import Snapshot, TrainingRun

# noise at t_max, shape (N, C, H, W), and a condition -> pictures, shape (N, C, H, W)
Sampler = Callable[[torch.Tensor, Condition], torch.Tensor]


@dataclass(frozen=True)
class Student:
    """A trained student: its network, the (fewest) evaluations it samples with, what it cost to get, and what it was
    earlier on."""

    nfe: int
    network: nn.Module
    cost: dict[str, float]
    snapshots: tuple[Snapshot, ...] = ()


class TrainedSettings(Settings):
    """Settings of a method that trains: a ``training`` block that is given in part keeps the method's own defaults."""

    @model_validator(mode="before")
    @classmethod
    def _keep_the_methods_training_defaults(cls, given: Any) -> Any:
        default = cls.model_fields["training"].default
        if isinstance(given, Mapping) and isinstance(given.get("training"), Mapping) and isinstance(default, Settings):
            return {**given, "training": {**default.model_dump(), **given["training"]}}
        return given


def student_network(teacher: Denoiser) -> Any:
    """A trainable copy of the teacher's network, without dropout: a student regresses, it does not regularise."""
    network: Any = copy.deepcopy(teacher.network).requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


class Method(ABC):
    """One method; the class attributes say what the workflow must know before anything runs.

    Attributes:
        name: the value of ``method:`` in the YAML.
        title: the method's name in the report.
        Settings: the method's block of YAML.
        trains: False for samplers of the teacher itself.
        needs_data: whether training reads the data set. The workflow gives the data only to methods that say so.
        follows_teacher: whether the sample is meant to be the teacher's own sample from the same noise, so that the
            distance between the two measures the method. A property where the settings decide.
        TINY: settings for the contract tests: seconds of training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    trains: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False
    follows_teacher: ClassVar[bool] = True
    TINY: ClassVar[dict[str, Any]]

    def __init__(self, settings: Any, guidance: Guidance | None = None) -> None:
        """Args: guidance: of the teacher. Students have learnt it; samplers of the teacher must apply it."""
        self.settings, self.guidance = settings, guidance or Guidance()

    @abstractmethod
    def evaluations(self) -> tuple[int, ...]:
        """The numbers of network evaluations at which the method samples."""

    def student_for(self, nfe: int) -> int:
        """Which student samples with ``nfe`` evaluations; one of its own each, unless the method says otherwise."""
        return nfe

    def students(self) -> tuple[int, ...]:
        """The students that :meth:`distil` trains, in order, by their fewest evaluations."""
        return tuple(dict.fromkeys(self.student_for(nfe) for nfe in self.evaluations()))

    def pairs(self) -> PairsSettings | None:
        """The offline set of noises and samples of the teacher that training reads; None if it reads none.

        A method reads the data set or such a set, not both.
        """
        return None

    def check(self, teacher: TeacherFacts) -> None:
        """Raises ValueError where these settings make no sense with that teacher."""
        return None

    def distil(self, teacher: Denoiser, run: TrainingRun, data: Split | Pairs | None) -> list[Student]:
        """Trains :meth:`students`.

        Args:
            teacher: frozen, guided, in evaluation mode, on the run's device.
            data: the training part of the data set, or the offline set; None for methods that need neither.
        """
        raise NotImplementedError(f"{self.name} samples the teacher itself")

    @abstractmethod
    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        """Writes a student as a folder that `diffusers` loads."""

    @abstractmethod
    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        """A sampler from a stored student (or teacher) with exactly ``nfe`` evaluations, and its network."""
