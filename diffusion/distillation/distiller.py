"""Methods that train students: what they have in common."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import PositiveInt, TypeAdapter, ValidationError, model_validator
from torch import nn

from diffusion.conditions import Condition, Conditions
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.method import Method, MethodSettings, Sampler
from diffusion.distillation.pairs import Pairs, PairsSettings
from diffusion.guidance import Guidance
from diffusion.teachers.lora import LoraSettings, adapted
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Snapshot, Step, Trained

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


@dataclass(frozen=True)
class Student:
    """A trained student: its network, the (fewest) evaluations it samples with, what it cost to get, and what it was
    earlier on."""

    nfe: int
    network: nn.Module
    cost: dict[str, float]
    snapshots: tuple[Snapshot, ...] = ()

    def with_cost_of(self, pairs: Pairs) -> "Student":
        """The same student, which was trained on an offline set, with the cost of the set in its own."""

        def whole(cost: dict[str, float]) -> dict[str, float]:
            # Of a set from before CPU and GPU were timed, the sum of those is not known.
            known = {key: value for key, value in cost.items() if key in pairs.cost or key not in ("cpu_s", "gpu_s")}
            return {**known, **{key: cost.get(key, 0) + value for key, value in pairs.cost.items()}}

        snapshots = tuple(replace(snapshot, cost=whole(snapshot.cost)) for snapshot in self.snapshots)
        return replace(self, cost=whole(self.cost), snapshots=snapshots)


def finished_student(nfe: int, trained: Trained) -> Student:
    """The student of a stage that others follow, as a copy on the CPU: it takes no memory of the device while they
    train, and ``trained.network`` is free to be their teacher."""
    return Student(nfe, copy.deepcopy(trained.network).cpu(), trained.cost, trained.snapshots)


class TrainedSettings(MethodSettings):
    """Settings of a method that trains: a ``training`` block that is given in part keeps the method's own defaults.

    Steps too few for a default warm-up or average shorten it, see
    :meth:`diffusion.training.settings.TrainingSettings.defaults_for`.

    Attributes:
        lora: trains adapters of the teacher's weights in place of a copy of these; null trains a copy.
        frozen_precision: of the teacher's weights in memory, and of those of a student that is adapted; what is trained
            is float32. "bf16" halves them.
    """

    later: ClassVar[tuple[str, ...]] = ("lora", "frozen_precision")

    lora: LoraSettings | None = None
    frozen_precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> "TrainedSettings":
        training = getattr(self, "training", None)
        if self.lora is not None and isinstance(training, TrainingSettings) and training.shard:
            raise ValueError("lora: given with training.shard true, expected one of the two")
        return self

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


def student_network(teacher: Denoiser, dropout: float = 0.0, lora: LoraSettings | None = None) -> Any:
    """A trainable copy of the teacher's network in float32, without the teacher's dropout: a student regresses, it does
    not regularise. Where the teacher is guided at scales of a range, the copy has an input for them.

    Args:
        dropout: of the residual blocks, for methods that were published with it.
        lora: trains adapters alone; all else is the teacher's.

    Raises:
        ValueError: the network cannot be adapted so, or be told a scale.
    """
    network: Any
    if lora is not None:
        network = adapted(teacher.network, lora)
    else:
        told = teacher.told_scale
        network = teacher.family.embedding_guidance(teacher.network) if told else copy.deepcopy(teacher.network)
        if next(network.parameters()).dtype == torch.bfloat16:
            network = network.float()
        network.requires_grad_(True)
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout if name.endswith(".dropout") else 0.0  # attention's have other names
        elif hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # DiT's embedding drops classes by itself
    return network


def real_batch(
    pictures: RealPictures, conditions: Conditions, step: Step, guidance: Guidance
) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    """Real images and noise, shape (N, C, H, W), and the images' conditions, with scales where those are drawn."""
    x, labels = pictures.draw(step.batch_size, step.generator)
    noise = torch.randn(x.shape, generator=step.generator, device=x.device)
    return x, noise, guidance.told(conditions.of_labels(labels), step.generator)


class Distiller(Method):
    """A method that trains students: a subclass says how, and in :meth:`facts` how they are sampled."""

    trains = True

    def pairs(self) -> PairsSettings | None:
        """The offline set of noises and samples of the teacher that training reads; None if it reads none.

        A method reads the data set or such a set, not both.
        """
        return None

    @abstractmethod
    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        """Trains :meth:`students`.

        Args:
            teacher: frozen, guided, in evaluation mode, on the run's device.
            data: the training part of the data set, or the offline set; None for methods that need neither.
        """

    def sampler(
        self, folder: Path, nfe: int, device: torch.device, conditions: Conditions | None = None
    ) -> tuple[Sampler, nn.Module]:
        """The folder's own pipeline, which samples where this project is not."""
        # Here: a configuration is read without `diffusers`' pipelines.
        from diffusion.teachers.local_pipeline import LocalPipeline

        pipeline = LocalPipeline.read(folder, device)
        learnt = pipeline.config.guidance_range or (1.0, 1.0)
        scale = self.sampled_at if self.guidance.drawn else learnt[0]

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return pipeline.drawn(noise, nfe, condition, scale)

        return sample, pipeline.unet
