"""A teacher as the YAML describes it: one that the workflow trains, or one that exists."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn

from diffusion.guidance import Guidance
from diffusion.prediction import PredictionType
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import GrownSettings, Settings, UserPath
from diffusion.schedule import Schedule, ScheduleSettings
from diffusion.space import Space
from diffusion.teachers.autoencoder import AutoencoderSettings
from diffusion.teachers.facts import TeacherFacts, Told, facts_of
from diffusion.teachers.families import TeacherFamily, families
from diffusion.teachers.folder import (
    load_conditions,
    load_schedule,
    missing_files,
    pipeline_problems,
    sampling_facts,
)
from diffusion.teachers.hub import model_folder
from diffusion.teachers.latents import space_of
from diffusion.teachers.low_resolution import LowResolutionSettings, enlarging_of
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.stock import TextFamily
from diffusion.teachers.stored_network import StoredNetwork, stored_network
from diffusion.teachers.text import TextSettings
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding
from diffusion.times import lognormal_levels, uniform_times
from diffusion.training.settings import TrainingSettings


class _UsedTeacher(Settings):
    """How a teacher is used, whoever trained it.

    Attributes:
        seed: of its training; the number that its rows carry in the column ``train_seed``.
        guidance_scale: w of classifier-free guidance, wherever the teacher is evaluated; 1 is without.
    """

    seed: int = Field(0, ge=0, lt=2**53)  # as in diffusion.runtime.settings.Seeds
    guidance_scale: float = Field(1.0, ge=0)

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale)


class TeacherSettings(_UsedTeacher, GrownSettings):
    """A teacher that the workflow trains on the data set.

    Attributes:
        noise_levels: the noise levels that it is trained on: "uniform" in t, or "lognormal", for the edm schedule alone
            (log σ is normal with mean −1.2 and deviation 1.2, as EDM's networks are trained). Null is lognormal for the
            edm schedule and uniform for others.
        thresholding: how its estimate is bounded. Of latents, which have no bounds, it is not: kind "none".
        autoencoder: what is trained first and makes the latents that the teacher then is a diffusion of; null where its
            states are the images.
        labels: whether it is told the class of the picture.
        text: what reads the captions that it is told in place of a class; null where it is told none.
        label_dropout: share of the training images of which it is told no class, or the empty text, which guidance
            needs; 0 leaves that label out.
    """

    network: NetworkSettings = NetworkSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    prediction_type: PredictionType = "v_prediction"
    noise_levels: Literal["uniform", "lognormal"] | None = Field(None, validate_default=True)
    thresholding: Thresholding = STATIC
    autoencoder: AutoencoderSettings | None = None
    labels: bool = False
    text: TextSettings | None = None
    label_dropout: float = Field(0.1, ge=0, lt=1)
    training: TrainingSettings

    later: ClassVar[tuple[str, ...]] = ("noise_levels", "text", "autoencoder")

    @model_validator(mode="after")
    def _prediction_fits_the_schedule(self) -> "TeacherSettings":
        kind = self.schedule.kind
        own = ("edm", "flow")  # each has one prediction type, of its name, which no other schedule has
        if self.prediction_type != kind and (kind in own or self.prediction_type in own):
            raise ValueError(
                f"prediction_type: found {self.prediction_type!r} with the {kind} schedule, expected "
                f"'edm' with the edm schedule, 'flow' with the flow schedule, and another with others"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _latents_are_not_bounded(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("autoencoder") is not None:
            return {"thresholding": NO_THRESHOLD, **given}
        return given

    @model_validator(mode="after")
    def _bounds_are_of_pixels(self) -> "TeacherSettings":
        if self.autoencoder is not None and self.thresholding.kind != "none":
            raise ValueError(
                f"thresholding: found {self.thresholding.kind!r} with an autoencoder, expected kind 'none': latents "
                f"have no bounds"
            )
        return self

    @field_validator("noise_levels")
    @classmethod
    def _noise_levels_of_the_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data["schedule"].kind if "schedule" in info.data else None  # a wrong one is reported already
        if value == "lognormal" and kind not in ("edm", None):
            raise ValueError(
                f"found 'lognormal' with the {kind} schedule, expected 'uniform': those levels are of the edm schedule"
            )
        # Written out for edm, so that the results say it; nothing for others, of whose results this changes nothing.
        return "lognormal" if value is None and kind == "edm" else value

    @model_validator(mode="after")
    def _can_be_guided(self) -> "TeacherSettings":
        if self.guidance_scale != 1 and not self.can_be_guided:
            lacks = "labels false" if self.told == "nothing" else "label_dropout 0"
            raise ValueError(
                f"guidance_scale: found {self.guidance_scale} with {lacks}, expected 1: guidance needs labels or text "
                f"and, learnt by label_dropout, an unconditional input"
            )
        return self

    @model_validator(mode="after")
    def _is_told_one_thing(self) -> "TeacherSettings":
        if self.labels and self.text:
            raise ValueError("text: given with labels true, expected one of the two")
        try:
            self.network.check_condition(self.text is not None)
        except ValueError as error:
            raise ValueError(f"network.{error}") from error
        return self

    @property
    def can_be_guided(self) -> bool:
        """Whether it learns an unconditional input, too."""
        return self.told != "nothing" and self.label_dropout > 0

    @property
    def told(self) -> Told:
        """What it is told beside the time."""
        return "text" if self.text else "class" if self.labels else "nothing"

    @property
    def family(self) -> TeacherFamily:
        """How its network is called."""
        return families()["unet2d" if self.text is None else "unet2d_condition"]

    def described_network(self, shape: tuple[int, int, int]) -> nn.Module:
        """Its network for images of shape (C, H, W), without weights: on the meta device."""
        with torch.device("meta"):
            return build_network(self.network, self.state_shape(shape), text_width=8 if self.text else None)

    def draw_times(self, count: int, schedule: Schedule, generator: torch.Generator) -> torch.Tensor:
        """``count`` times of ``schedule`` to train on, float64, shape (count,), on the generator's device."""
        if self.noise_levels != "lognormal":
            return uniform_times(count, schedule.t_min, schedule.t_max, generator)
        # EDM draws without bounds. Of its levels 16 in a million lie outside 0.002 … 80: they are taken at the ends,
        # beyond which no sampler and no student asks the network.
        return schedule.time_of(lognormal_levels(count, generator))

    def state_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the states that images of shape (C, H, W) are diffused as."""
        return shape if self.autoencoder is None else self.autoencoder.latent_shape(shape)

    def facts(self, shape: tuple[int, int, int]) -> TeacherFacts:
        """What a teacher of images of shape (C, H, W) will be."""
        schedule, states, is_latent = self.schedule.build(), self.state_shape(shape), self.autoencoder is not None
        embeds = self.family.takes_scale({})
        return facts_of(schedule, self.prediction_type, states, self.told, self.can_be_guided, is_latent, embeds)

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError where the network does not fit images of shape (C, H, W)."""
        if self.autoencoder is not None:
            self.autoencoder.check_size(shape[1:])
        try:
            self.network.check_size(self.state_shape(shape)[1:])
        except ValueError as error:
            raise ValueError(f"network: {error}") from error


class StoredTeacher(_UsedTeacher, GrownSettings):
    """A teacher that exists: any `diffusers` pipeline of a known family, in safetensors.

    Attributes:
        path: the pipeline's folder, or a model of the Hugging Face Hub ("google/ddpm-cifar10-32").
        revision: commit of the Hub's model, so that it stays the same.
        num_classes: how many of a class-conditional network's labels are classes; where there is one label more, it
            stands for no class. Null asks the folder, and takes all labels for classes if that does not say.
        start_level: the largest σ/α of a schedule of betas that is used, by samplers and in distillation; null is what
            the scheduler's file says (``lambda_min_clipped``), and all of them where it says nothing.
        low_resolution: what a teacher of a later stage of a cascade enlarges.
    """

    path: UserPath = Field(min_length=1)
    revision: str | None = None
    num_classes: int | None = Field(None, ge=1)
    start_level: float | None = Field(None, gt=0)
    low_resolution: LowResolutionSettings | None = None

    later: ClassVar[tuple[str, ...]] = ("start_level", "low_resolution")

    @functools.cached_property
    def folder(self) -> Path:
        """Where it lies, its weights perhaps not yet: a model of the Hub is fetched by the workflow.

        Raises:
            UserError: there is none.
        """
        return model_folder(self.path, self.revision)

    def facts(self, shape: tuple[int, int, int]) -> TeacherFacts:
        """What the folder's teacher is; whether it makes images of that shape, :meth:`check_images` says.

        Raises:
            UserError: the folder is not such a pipeline, with every reason on a line of its own; or cannot be guided.
        """
        # Weights of the Hub are fetched by the job, which looks at them.
        found = pipeline_problems(self.folder, weights=Path(self.path).is_dir())
        problems = [f"teacher.path: {problem}" for problem in found]
        try:
            conditions = load_conditions(self.folder, self.num_classes)
        except UserError as error:
            if str(error) not in found and not missing_files(self.folder):
                problems.append(f"teacher.{'path' if self.num_classes is None else 'num_classes'}: {error}")
        if problems:
            raise UserError("\n".join(problems))
        try:
            schedule, prediction_type, _thresholding = self.schedule
        except UserError as error:
            raise UserError(f"teacher.{error}") from error
        if self.guidance.evaluations > 1 and not conditions.can_be_guided:
            raise UserError(
                f"teacher.guidance_scale: found {self.guidance_scale}, expected 1: {self.path} has no unconditional "
                f"input ({conditions}); if its last label stands for no class, say so by teacher.num_classes."
            )
        stored, told, guidable = stored_network(self.folder), conditions.told, conditions.can_be_guided
        self._check_low_resolution(stored)
        embeds = stored.family.takes_scale(stored.config)
        return facts_of(schedule, prediction_type, stored.shape, told, guidable, self.space.is_latent, embeds)

    def _check_low_resolution(self, stored: StoredNetwork) -> None:
        """Raises UserError where the network enlarges images and none are to be had, or takes none."""
        given = self.low_resolution
        if not stored.family.enlarges:
            if given is not None:
                raise UserError("teacher.low_resolution: given, but the teacher enlarges no images; remove it.")
            return
        if given is None:
            raise UserError(
                "teacher.low_resolution: missing; expected the folder of a one-step student of the stage before, "
                "of whose images the teacher makes larger ones."
            )
        folder = Path(given.path)
        if (missing := missing_files(folder)) or "told_timestep" not in sampling_facts(folder):
            found = missing[0] if missing else f"{folder}: not a one-step student"
            raise UserError(f"teacher.low_resolution.path: {found}; expected a one-step student of the stage before.")
        before, family = stored_network(folder), stored.family
        if before.shape[0] != stored.shape[0] or before.shape[1] >= stored.shape[1]:
            raise UserError(
                f"teacher.low_resolution.path: makes images of shape {before.shape}, the teacher of {stored.shape}; "
                f"expected smaller ones of as many channels."
            )
        assert isinstance(family, TextFamily)
        read = family.told_shapes(stored.config)["text"]
        told = before.family.told_shapes(before.config)["text"] if isinstance(before.family, TextFamily) else None
        if told != read:
            raise UserError(
                f"teacher.low_resolution.path: is told texts of shape {told}, the teacher of {read}; expected stages "
                f"with the same text encoder."
            )
        enlarging_of(self.folder, stored.shape, given.noise_level)

    @property
    def guidance(self) -> Guidance:
        stored = stored_network(self.folder)
        return Guidance(self.guidance_scale, stored.family.embeds_scale(stored.config))

    @property
    def family(self) -> TeacherFamily:
        """How its network is called and read."""
        return stored_network(self.folder).family

    @property
    def schedule(self) -> tuple[Schedule, PredictionType, Thresholding]:
        """As :func:`diffusion.teachers.folder.load_schedule`."""
        return load_schedule(self.folder, self.start_level)

    @property
    def space(self) -> Space:
        """What its states are."""
        return space_of(self.folder)

    def described_network(self, shape: tuple[int, int, int]) -> nn.Module:
        """Its network, without weights: on the meta device; it takes no other images."""
        with torch.device("meta"):
            return stored_network(self.folder).build()

    @property
    def num_known_classes(self) -> int | None:
        """How many classes the teacher can be told; None where it is told nothing."""
        return load_conditions(self.folder, self.num_classes).num_classes

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError where the network makes other images than the data set's."""
        found = self.space.image_shape(stored_network(self.folder).shape)
        if found != shape:
            raise ValueError(f"path: {self.path} makes images of shape {found}, but the data set's are {shape}")
