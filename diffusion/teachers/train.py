"""Training a diffusion teacher."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffusion.conditions import ClassLabels, Condition, Unconditional
from diffusion.data.samples import from_uint8
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, PredictionType
from diffusion.guidance import Guidance
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import GrownSettings, Settings, UserPath
from diffusion.schedule import EdmSchedule, Schedule, ScheduleSettings, per_sample
from diffusion.teachers.folder import (
    load_conditions,
    load_schedule,
    missing_files,
    pipeline_problems,
    stored_picture_shape,
)
from diffusion.teachers.hub import model_folder
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.thresholding import STATIC, Thresholding
from diffusion.training.loop import Step, TrainingRun
from diffusion.training.settings import TrainingSettings

# P_mean and P_std of Karras et al. 2022 (arXiv 2206.00364), table 1.
_LOG_SIGMA_MEAN, _LOG_SIGMA_DEVIATION = -1.2, 1.2


@dataclass(frozen=True)
class TeacherFacts:
    """What a method's settings are checked against before anything runs.

    Attributes:
        log_noise_to_signal: λ at t_min and at t_max; the latter is infinite where no signal is left.
    """

    prediction_type: PredictionType
    num_timesteps: int
    t_min: float
    t_max: float
    log_noise_to_signal: tuple[float, float]
    channels: int
    resolution: int
    conditional: bool


def _facts(
    schedule: Schedule, prediction_type: PredictionType, channels: int, resolution: int, conditional: bool
) -> TeacherFacts:
    t_min, t_max = schedule.t_min, schedule.t_max
    low, high = schedule.log_noise_to_signal(torch.tensor([t_min, t_max], dtype=torch.float64)).tolist()
    timesteps = schedule.num_timesteps
    return TeacherFacts(prediction_type, timesteps, t_min, t_max, (low, high), channels, resolution, conditional)


class _UsedTeacher(Settings):
    """How a teacher is used, whoever trained it.

    Attributes:
        seed: of its training; the number that its rows carry in the column ``train_seed``.
        guidance_scale: w of classifier-free guidance, wherever the teacher is evaluated; 1 is without.
    """

    seed: int = Field(0, ge=0, lt=2**53)  # as in diffusion.settings.Seeds
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
        thresholding: how its estimate is bounded.
        labels: whether it is told the class of the picture.
        label_dropout: share of the training pictures of which it is told no class, which guidance needs; 0 leaves that
            label out.
    """

    network: NetworkSettings = NetworkSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    prediction_type: PredictionType = "v_prediction"
    noise_levels: Literal["uniform", "lognormal"] | None = Field(None, validate_default=True)
    thresholding: Thresholding = STATIC
    labels: bool = False
    label_dropout: float = Field(0.1, ge=0, lt=1)
    training: TrainingSettings

    later: ClassVar[tuple[str, ...]] = ("noise_levels",)

    @model_validator(mode="after")
    def _prediction_fits_the_schedule(self) -> "TeacherSettings":
        if (self.prediction_type == "edm") != (self.schedule.kind == "edm"):
            raise ValueError(
                f"prediction_type: found {self.prediction_type!r} with the {self.schedule.kind} schedule, expected "
                f"'edm' with the edm schedule and another with others"
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
        if self.guidance_scale != 1 and not (self.labels and self.label_dropout):
            lacks = "label_dropout 0" if self.labels else "labels false"
            raise ValueError(
                f"guidance_scale: found {self.guidance_scale} with {lacks}, expected 1: guidance needs labels and, "
                f"learnt by label_dropout, an unconditional input"
            )
        return self

    def draw_times(self, count: int, schedule: Schedule, generator: torch.Generator) -> torch.Tensor:
        """``count`` times of ``schedule`` to train on, float64, shape (count,), on the generator's device."""
        if self.noise_levels != "lognormal":
            return uniform_times(count, schedule.t_min, schedule.t_max, generator)
        # EDM draws without bounds. Of its levels 16 in a million lie outside 0.002 … 80: they are taken at the ends,
        # beyond which no sampler and no student asks the network.
        return schedule.time_of(lognormal_levels(count, generator))

    def facts(self, channels: int, resolution: int) -> TeacherFacts:
        """What a teacher of the data set's pictures will be."""
        return _facts(self.schedule.build(), self.prediction_type, channels, resolution, self.labels)

    def check_pictures(self, channels: int, resolution: int) -> None:
        """Raises ValueError where the network does not fit the pictures."""
        try:
            self.network.check_resolution(resolution)
        except ValueError as error:
            raise ValueError(f"network: {error}") from error


class StoredTeacher(_UsedTeacher):
    """A teacher that exists: any `diffusers` pipeline of a ``UNet2DModel`` in pixel space, in safetensors.

    Attributes:
        path: the pipeline's folder, or a model of the Hugging Face Hub ("google/ddpm-cifar10-32").
        revision: commit of the Hub's model, so that it stays the same.
        num_classes: how many of a class-conditional network's labels are classes; where there is one label more, it
            stands for no class. Null asks the folder, and takes all labels for classes if that does not say.
    """

    path: UserPath = Field(min_length=1)
    revision: str | None = None
    num_classes: int | None = Field(None, ge=1)

    @functools.cached_property
    def folder(self) -> Path:
        """Where it lies, its weights perhaps not yet: a model of the Hub is fetched by the workflow.

        Raises:
            UserError: there is none.
        """
        return model_folder(self.path, self.revision)

    def facts(self, channels: int, resolution: int) -> TeacherFacts:
        """What the folder's teacher is; the pictures' shape is checked by :meth:`check_pictures`.

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
        schedule, prediction_type, _thresholding = load_schedule(self.folder)
        if self.guidance_scale != 1 and not conditions.can_be_guided:
            raise UserError(
                f"teacher.guidance_scale: found {self.guidance_scale}, expected 1: {self.path} has no unconditional "
                f"input ({conditions}); if its last label stands for no class, say so by teacher.num_classes."
            )
        conditional = not isinstance(conditions, Unconditional)
        return _facts(schedule, prediction_type, channels, resolution, conditional)

    @property
    def num_known_classes(self) -> int | None:
        """How many classes the teacher can be told; None where it is told nothing."""
        conditions = load_conditions(self.folder, self.num_classes)
        return conditions.num_classes if isinstance(conditions, ClassLabels) else None

    def check_pictures(self, channels: int, resolution: int) -> None:
        """Raises ValueError where the network makes other pictures than the data set's."""
        shape = stored_picture_shape(self.folder)
        if shape != (channels, resolution, resolution):
            raise ValueError(
                f"path: {self.path} makes pictures of shape {shape}, but the data set's are "
                f"{(channels, resolution, resolution)}"
            )


class RealPictures:
    """Batches of the data set, drawn with replacement.

    Args:
        split: the training part, as uint8 on disk. Up to a GiB is held on the training device; a larger one stays
            memory-mapped, and only the batch travels. Where it says ``flip``, each drawn image is mirrored left to
            right with probability 1/2.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._device = device
        self._flip = split.flip
        self._mapped = split.images
        self._held = torch.from_numpy(np.array(split.images)).to(device) if split.images.nbytes <= 2**30 else None
        self._labels = torch.from_numpy(np.array(split.labels))
        if self._held is not None:
            self._labels = self._labels.to(device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` pictures in [−1, 1], shape (count, C, H, W), and their labels, int64, shape (count,)."""
        place, drawing = generator.device, generator
        if self._held is None and place.type != "cpu":
            # Which of the host's images is drawn on the host, by its own generator, which every micro-batch seeds: a
            # draw on a GPU would have to be waited for, with all that the GPU still has to do. So the host goes on
            # ahead and has the next batch ready.
            place, drawing = torch.device("cpu"), torch.default_generator
        index = torch.randint(len(self._mapped), (count,), generator=drawing, device=place)
        # After the index: without flips the same images are drawn as ever.
        flipped = torch.rand(count, generator=drawing, device=place) < 0.5 if self._flip else None
        if self._held is not None:
            images, labels = self._held[index], self._labels[index]
        else:
            images = self._to_device(torch.from_numpy(self._mapped[index.numpy()]))
            labels = self._to_device(self._labels[index])
            flipped = None if flipped is None else self._to_device(flipped)
        if flipped is not None:  # both are made and one is chosen: to look which are flipped, the host would wait
            images = torch.where(flipped[:, None, None, None], images.flip(2), images)  # (N, H, W, C)
        return from_uint8(images), labels

    def _to_device(self, batch: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return batch.to(self._device)
        return batch.pin_memory().to(self._device, non_blocking=True)


def uniform_times(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """``count`` times, uniform on [low, high]; float64 on the generator's device."""
    unit = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def lognormal_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """λ = log σ/α of ``count`` noise levels, normal with mean −1.2 and deviation 1.2.

    Float64, shape (count,), on the generator's device. EDM's networks are trained on these (Karras et al. 2022,
    table 1: P_mean and P_std of ln σ).
    """
    unit = torch.randn(count, generator=generator, device=generator.device, dtype=torch.float64)
    return _LOG_SIGMA_MEAN + _LOG_SIGMA_DEVIATION * unit


def denoising_loss(
    denoiser: Denoiser, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """Mean squared error of the network's own output at x_t = α_t x + σ_t ε.

    For ``v_prediction`` the target is v = α ε − σ x (Salimans & Ho 2022, appendix D), for ``epsilon`` ε, for
    ``sample`` x, and for ``edm`` (x − c_skip x_t) / c_out. That is eq. 8 of Karras et al. 2022 with their weight
    λ(σ) = (σ² + σ_data²) / (σ σ_data)² of ‖x̂ − x‖² (table 1): it equals 1/c_out², so that the network's own output has
    weight 1 at every noise level. Mean over batch and pixels; a scalar.

    Args:
        x, noise: shape (N, C, H, W); t: shape (N,).
    """
    schedule = denoiser.schedule
    alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
    output = denoiser.raw(alpha * x + sigma * noise, t, condition)
    if denoiser.prediction_type == "edm":
        assert isinstance(schedule, EdmSchedule)
        data = schedule.sigma_data
        # (x − c_skip (x + σ ε)) / c_out, with the cancellation at small σ done by hand.
        target = (sigma * x - data**2 * noise) / (data * (sigma.square() + data**2).sqrt())
    else:
        target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[denoiser.prediction_type]
    return (output - target).square().mean()


def train_teacher(settings: TeacherSettings, split: Split, run: TrainingRun) -> tuple[Denoiser, dict[str, float]]:
    """Trains a teacher on the real pictures of ``split``; returns it, without guidance, and its cost.

    Raises:
        UserError: labels are asked for, and the data set has one class.
    """
    if settings.labels and len(split.class_names) < 2:
        raise UserError(
            f"teacher.labels: found true, expected false: the data set has one class, {split.class_names[0]!r}; put "
            f"the pictures of each class into a folder of its own."
        )
    run.seed_initialisation("initialisation")
    resolution, channels = split.images.shape[1], split.images.shape[3]
    has_null = settings.label_dropout > 0
    conditions = ClassLabels(len(split.class_names), has_null) if settings.labels else Unconditional()
    embeddings = len(split.class_names) + has_null if settings.labels else None
    network = build_network(settings.network, channels, resolution, embeddings).to(run.device)
    schedule = settings.schedule.build()
    denoiser = Denoiser(network, schedule, settings.prediction_type, settings.thresholding, conditions)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def compute(x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return denoising_loss(denoiser, x, noise, t, condition)

    compute = run.compiled(compute, settings.training)

    def loss(step: Step) -> torch.Tensor:
        x, labels = pictures.draw(step.batch_size, step.generator)
        noise = torch.randn(x.shape, generator=step.generator, device=x.device)
        t = settings.draw_times(len(x), schedule, step.generator)
        condition = None
        if isinstance(conditions, ClassLabels):
            condition = drop_labels(conditions, labels, settings.label_dropout, step.generator)
        return compute(x, noise, t, condition)

    trained = run.fit("teacher", network, loss, settings.training, real_images=True, bf16=True)
    return denoiser.with_network(trained.network), trained.cost


def drop_labels(
    conditions: ClassLabels, labels: torch.Tensor, share: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The labels as a condition, a random ``share`` of them replaced by no class (Ho & Salimans 2022, algorithm 1)."""
    if share == 0:
        return {"class_labels": labels}
    dropped = torch.rand(len(labels), generator=generator, device=generator.device) < share
    return {"class_labels": labels.masked_fill(dropped.to(labels.device), conditions.null)}
