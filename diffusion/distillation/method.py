"""What a method is: one way to draw pictures from a teacher's knowledge with few network evaluations.

A method is a subclass of :class:`Method`, or of another method, in a file of ``boot/`` or ``baselines/``; the registry
finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Discriminator, Field, Tag, create_model
from torch import nn

from diffusion.conditions import Condition, Conditions
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guidance
from diffusion.runtime.settings import GrownSettings, Settings
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import save_denoiser

# noise at t_max, shape (N, C, H, W), and a condition -> pictures, shape (N, C, H, W)
Sampler = Callable[[torch.Tensor, Condition], torch.Tensor]

_Scale = Annotated[float, Field(ge=0)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"found {list(value)}, expected [low, high] with low < high")
    return value


_Range = Annotated[tuple[_Scale, _Scale], AfterValidator(_ordered)]
ScaleOrRange = Annotated[
    Annotated[_Scale, Tag("[number]")] | Annotated[_Range, Tag("[range]")],
    Discriminator(lambda value: "[range]" if isinstance(value, list | tuple) else "[number]"),
]


class MethodSettings(GrownSettings):
    """What the block of every method can say.

    Attributes:
        guidance_scale: w of the teacher's guidance, where the method evaluates it or has learnt from it; null is the
            teacher's own. A range [low, high] draws it uniformly for every image, and the student is told it.
    """

    later: ClassVar[tuple[str, ...]] = ("guidance_scale",)

    guidance_scale: ScaleOrRange | None = None


class Method(ABC):
    """One method; the class attributes say what the workflow must know before anything runs.

    Attributes:
        name: the value of ``method:`` in the YAML.
        title: the method's name in the report.
        Settings: the method's block of YAML. Its key ``method`` takes the class's ``name``, whatever a base's took.
        trains: whether it has students of its own; samplers of the teacher have none.
        needs_data: whether training reads the data set. The workflow gives the data only to methods that say so.
        follows_teacher: whether the sample is meant to be the teacher's own sample from the same noise, so that the
            distance between the two measures the method. A property where the settings decide.
        embeds_guidance: whether its students can be told w, so that it may be drawn from a range.
        TINY: settings for the contract tests: seconds of training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    trains: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    follows_teacher: ClassVar[bool] = True
    embeds_guidance: ClassVar[bool] = False
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
        """Args: guidance: of the teacher, unless the settings have their own. Students have learnt it; samplers of the
        teacher must apply it. Students that have learnt a range are sampled at the teacher's, ``sampled_at``."""
        scale = getattr(settings, "guidance_scale", None)
        self.settings, self.guidance = settings, Guidance() if guidance is None else guidance
        self.sampled_at = 1.0 if isinstance(self.guidance.scale, tuple) else self.guidance.scale
        if scale is not None:
            self.guidance = self.guidance.at(scale)

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
        """Its students, in the order in which they are trained, by their fewest evaluations."""
        return tuple(dict.fromkeys(self.student_for(nfe) for nfe in self.evaluations()))

    def check(self, teacher: TeacherFacts) -> None:
        """Raises ValueError where these settings make no sense with that teacher."""
        return None

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        """How a stored network is sampled: arguments of :class:`diffusion.teachers.pipeline.StudentPipeline`; none for
        DDIM steps."""
        return {}

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        """Writes a student, or the teacher, as a folder that `diffusers` loads."""
        told: Any = self.guidance.scale if self.guidance.drawn else (teacher.embedded_scale,) * 2
        known = {} if told[0] is None else {"guidance_range": list(told)}
        save_denoiser(folder, teacher.with_network(network), **self.facts(teacher), **known)

    @abstractmethod
    def sampler(
        self, folder: Path, nfe: int, device: torch.device, conditions: Conditions | None = None
    ) -> tuple[Sampler, nn.Module]:
        """A sampler from a stored student (or teacher) with exactly ``nfe`` evaluations, and its network.

        Args:
            conditions: whose unconditional input guides the teacher; the folder's own, if not given. A student has
                learnt it.
        """
