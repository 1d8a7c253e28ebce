"""What a method is: one way to draw pictures from a teacher's knowledge with few network evaluations.

A method is one file in ``boot/`` or ``baselines/`` with a subclass of :class:`Method` or of another method there; the
registry finds it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt, TypeAdapter, ValidationError, create_model, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.pairs import Pairs, PairsSettings
from diffusion.guidance import Guidance, guided
from diffusion.runtime.settings import GrownSettings, Settings, StepCounts
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.teachers.train import TeacherFacts
from diffusion.training.loop import Snapshot, Trained, TrainingRun
from diffusion.training.settings import TrainingSettings

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


def finished_student(nfe: int, trained: Trained) -> Student:
    """The student of a stage that others follow, as a copy on the CPU: it takes no memory of the device while they
    train, and ``trained.network`` is free to be their teacher."""
    return Student(nfe, copy.deepcopy(trained.network).cpu(), trained.cost, trained.snapshots)


class TrainedSettings(GrownSettings):
    """Settings of a method that trains: a ``training`` block that is given in part keeps the method's own defaults.

    Steps too few for a default warm-up or average shorten it, see
    :meth:`diffusion.training.loop.TrainingSettings.defaults_for`.
    """

    @model_validator(mode="before")
    @classmethod
    def _keep_the_methods_training_defaults(cls, given: Any) -> Any:
        default = cls.model_fields["training"].default
        if (
            isinstance(given, Mapping)
            and isinstance(given.get("training"), Mapping)
            and isinstance(default, TrainingSettings)
        ):
            try:
                kept = default.defaults_for(TypeAdapter(PositiveInt).validate_python(given["training"].get("steps")))
            except ValidationError:  # none, or what the block itself refuses
                kept = default.model_dump()
            if given["training"].get("minutes") is not None:
                del kept["steps"]  # the default is no second end beside a time budget
            return {**given, "training": {**kept, **given["training"]}}
        return given


def student_network(teacher: Denoiser, dropout: float = 0.0) -> Any:
    """A trainable copy of the teacher's network, without the teacher's dropout: a student regresses, it does not
    regularise.

    Args:
        dropout: of the residual blocks, for methods that were published with it.
    """
    network: Any = copy.deepcopy(teacher.network).requires_grad_(True)
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout if name.endswith(".dropout") else 0.0  # attention's have other names
    return network


class Method(ABC):
    """One method; the class attributes say what the workflow must know before anything runs.

    Attributes:
        name: the value of ``method:`` in the YAML.
        title: the method's name in the report.
        Settings: the method's block of YAML. Its key ``method`` takes the class's ``name``, whatever a base's took.
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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name, model = cls.__dict__.get("name"), getattr(cls, "Settings", None)
        if name is None or model is None:
            return
        known = model.model_fields.get("method")
        if known is None or known.default != name:
            kind: Any = Literal[name]
            cls.Settings = create_model(
                model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, method=(kind, name)
            )

    def __init__(self, settings: Any, guidance: Guidance | None = None) -> None:
        """Args: guidance: of the teacher. Students have learnt it; samplers of the teacher must apply it."""
        self.settings, self.guidance = settings, guidance or Guidance()

    @abstractmethod
    def evaluations(self) -> tuple[int, ...]:
        """The numbers of network evaluations at which the method samples."""

    def following(self) -> tuple[int, ...]:
        """The numbers of evaluations at which a sample is meant to be the teacher's own from the same noise."""
        return self.evaluations() if self.follows_teacher else ()

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


class TeacherSamplerSettings(Settings):
    """Settings of a sampler of the teacher.

    Attributes:
        num_inference_steps: step counts to sample with; the sampler says how many estimates of the teacher a number of
            steps takes. An estimate is one network evaluation, or two under guidance.
    """

    num_inference_steps: StepCounts = (1, 2, 4, 8, 16, 50)


class TeacherSampler(Method):
    """A sampler of the teacher itself: no training at all, the guidance applied at every step.

    A subclass says how it draws pictures, :meth:`draw`; and, where a step is not one estimate of the teacher, how the
    two numbers are related.
    """

    trains = False
    settings: TeacherSamplerSettings

    @abstractmethod
    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        """Pictures from ``noise`` at t_max, both of shape (N, C, H, W).

        Args:
            denoiser: the guided teacher, to be asked exactly ``estimates(num_inference_steps)`` times.
        """

    @property
    def spacing(self) -> str:
        """How the steps are spread, as :func:`diffusion.samplers.sampling_grid` names it."""
        return str(getattr(self.settings, "spacing", "trailing"))

    def uneven_steps(self, teacher: TeacherFacts) -> tuple[int, ...]:
        """The step counts that do not divide the teacher's timesteps, where the steps are spread over these.

        With those, `diffusers`' own schedulers draw other samples: they step by whole timesteps, and the next step
        begins elsewhere (docs/methods.md).
        """
        by_timesteps = self.spacing == "trailing" and teacher.prediction_type != "edm"  # whose scheduler has a clock
        counts = self.settings.num_inference_steps if by_timesteps else ()
        return tuple(count for count in counts if teacher.num_timesteps % count)

    def estimates(self, num_inference_steps: int) -> int:
        """Estimates of the teacher that so many steps take."""
        return num_inference_steps

    def steps(self, estimates: int) -> int:
        """The inverse of :meth:`estimates`."""
        return estimates

    def evaluations(self) -> tuple[int, ...]:
        return tuple(self.estimates(steps) * self.guidance.evaluations for steps in self.settings.num_inference_steps)

    def check(self, teacher: TeacherFacts) -> None:
        most = max(self.settings.num_inference_steps)
        if most > teacher.num_timesteps:
            raise ValueError(
                f"num_inference_steps: found {most}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        save_denoiser(folder, teacher.with_network(network))

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        denoiser = guided(load_denoiser(folder, device), self.guidance)
        steps = self.steps(nfe // self.guidance.evaluations)

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return self.draw(denoiser, noise, steps, condition)

        return sample, denoiser.network
