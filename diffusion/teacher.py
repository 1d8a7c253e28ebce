"""Training a diffusion teacher."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator

from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, PredictionType
from diffusion.images import from_uint8
from diffusion.networks import NetworkSettings, build_network
from diffusion.pipelines import load_schedule, stored_picture_shape
from diffusion.schedule import EdmSchedule, Schedule, ScheduleSettings, per_sample
from diffusion.settings import Settings
from diffusion.training import Step, TrainingRun, TrainingSettings


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


def _facts(schedule: Schedule, prediction_type: PredictionType, channels: int, resolution: int) -> TeacherFacts:
    ends = schedule.log_noise_to_signal(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    low, high = ends.tolist()
    return TeacherFacts(
        prediction_type, schedule.num_timesteps, schedule.t_min, schedule.t_max, (low, high), channels, resolution
    )


class TeacherSettings(Settings):
    """A teacher that the workflow trains on the data set."""

    network: NetworkSettings = NetworkSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    prediction_type: PredictionType = "v_prediction"
    clip: bool = True
    seed: int = Field(0, ge=0)
    training: TrainingSettings

    @model_validator(mode="after")
    def _prediction_fits_the_schedule(self) -> "TeacherSettings":
        if (self.prediction_type == "edm") != (self.schedule.kind == "edm"):
            raise ValueError(
                f"prediction_type: found {self.prediction_type!r} with the {self.schedule.kind} schedule, expected "
                f"'edm' with the edm schedule and another with others"
            )
        return self

    def facts(self, channels: int, resolution: int) -> TeacherFacts:
        """What a teacher of the data set's pictures will be."""
        return _facts(self.schedule.build(), self.prediction_type, channels, resolution)

    def check_pictures(self, channels: int, resolution: int) -> None:
        """Raises ValueError where the network does not fit the pictures."""
        try:
            self.network.check_resolution(resolution)
        except ValueError as error:
            raise ValueError(f"network: {error}") from error


class StoredTeacher(Settings):
    """A teacher that exists: any `diffusers` folder with a ``UNet2DModel`` in safetensors.

    Attributes:
        path: the pipeline's folder.
        seed: the number that its rows carry in the column ``train_seed``.
    """

    path: str = Field(min_length=1)
    seed: int = Field(0, ge=0)

    def facts(self, channels: int, resolution: int) -> TeacherFacts:
        """What the folder's teacher is; the pictures' shape is checked by :meth:`check_pictures`.

        Raises:
            UserError: the folder is not such a pipeline.
        """
        schedule, prediction_type, _clip = load_schedule(Path(self.path))
        return _facts(schedule, prediction_type, channels, resolution)

    def check_pictures(self, channels: int, resolution: int) -> None:
        """Raises ValueError where the network makes other pictures than the data set's."""
        shape = stored_picture_shape(Path(self.path))
        if shape != (channels, resolution, resolution):
            raise ValueError(
                f"path: {self.path} makes pictures of shape {shape}, but the data set's are "
                f"{(channels, resolution, resolution)}"
            )


class RealPictures:
    """Batches of the data set, drawn with replacement.

    Args:
        split: the training part, as uint8 on disk. Up to a GiB is held on the training device; a larger one stays
            memory-mapped, and only the batch travels.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._device = device
        self._mapped = split.images
        self._held = torch.from_numpy(np.array(split.images)).to(device) if split.images.nbytes <= 2**30 else None

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """``count`` pictures in [−1, 1], shape (count, C, H, W)."""
        index = torch.randint(len(self._mapped), (count,), generator=generator, device=generator.device)
        if self._held is not None:
            return from_uint8(self._held[index])
        return from_uint8(torch.from_numpy(self._mapped[index.cpu().numpy()]).to(self._device))


def uniform_times(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """``count`` times, uniform on [low, high]; float64 on the generator's device."""
    unit = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def denoising_loss(denoiser: Denoiser, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the network's own output at x_t = α_t x + σ_t ε.

    For ``v_prediction`` the target is v = α ε − σ x (Salimans & Ho 2022, appendix D), for ``epsilon`` ε, for
    ``sample`` x, and for ``edm`` (x − c_skip x_t) / c_out, which is the weight 1/c_out² of Karras et al. 2022 (eq. 8).
    Mean over batch and pixels; a scalar.

    Args:
        x, noise: shape (N, C, H, W); t: shape (N,).
    """
    schedule = denoiser.schedule
    alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
    output = denoiser.raw(alpha * x + sigma * noise, t)
    if denoiser.prediction_type == "edm":
        assert isinstance(schedule, EdmSchedule)
        data = schedule.sigma_data
        # (x − c_skip (x + σ ε)) / c_out, with the cancellation at small σ done by hand.
        target = (sigma * x - data**2 * noise) / (data * (sigma.square() + data**2).sqrt())
    else:
        target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[denoiser.prediction_type]
    return (output - target).square().mean()


def train_teacher(settings: TeacherSettings, split: Split, run: TrainingRun) -> tuple[Denoiser, dict[str, float]]:
    """Trains a teacher on the real pictures of ``split``; returns it and its cost."""
    run.generator("initialisation", 0)  # seeds the global generator, which the network's initialisation uses
    resolution, channels = split.images.shape[1], split.images.shape[3]
    network = build_network(settings.network, channels, resolution).to(run.device)
    schedule = settings.schedule.build()
    denoiser = Denoiser(network, schedule, settings.prediction_type, settings.clip)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def loss(step: Step) -> torch.Tensor:
        x = pictures.draw(settings.training.batch_size, step.generator)
        noise = torch.randn(x.shape, generator=step.generator, device=x.device)
        t = uniform_times(len(x), schedule.t_min, schedule.t_max, step.generator)
        return denoising_loss(denoiser, x, noise, t)

    result, cost = run.fit("teacher", network, loss, settings.training, real_images=True, bf16=True)
    return Denoiser(result, schedule, settings.prediction_type, settings.clip), cost
