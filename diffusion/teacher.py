"""Training a diffusion teacher."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, PredictionType
from diffusion.images import from_uint8
from diffusion.networks import NetworkSettings, build_network
from diffusion.pipelines import load_schedule, stored_picture_shape
from diffusion.schedule import ScheduleSettings, per_sample, schedule_from_settings
from diffusion.settings import Settings
from diffusion.training import TrainingRun, TrainingSettings


@dataclass(frozen=True)
class TeacherFacts:
    """What a method's settings are checked against before anything runs."""

    prediction_type: PredictionType
    num_timesteps: int
    t_min: float
    t_max: float


class TeacherSettings(Settings):
    """A teacher that the workflow trains on the data set."""

    network: NetworkSettings = NetworkSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    prediction_type: PredictionType = "v_prediction"
    clip: bool = True
    seed: int = Field(0, ge=0)
    training: TrainingSettings

    def facts(self) -> TeacherFacts:
        """Prediction type and times."""
        schedule = self.schedule
        return TeacherFacts(self.prediction_type, schedule.num_timesteps, schedule.t_min, schedule.t_max)

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

    def facts(self) -> TeacherFacts:
        """Prediction type and times, from the folder.

        Raises:
            UserError: the folder is not such a pipeline.
        """
        schedule, prediction_type, _clip = load_schedule(Path(self.path))
        return TeacherFacts(prediction_type, schedule.num_timesteps, schedule.t_min, schedule.t_max)

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
    ``sample`` x. Mean over batch and pixels; a scalar.

    Args:
        x, noise: shape (N, C, H, W); t: shape (N,).
    """
    alpha, sigma = per_sample(denoiser.schedule.alpha(t), x), per_sample(denoiser.schedule.sigma(t), x)
    output = denoiser.raw(alpha * x + sigma * noise, t)
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[denoiser.prediction_type]
    return (output - target).square().mean()


def train_teacher(settings: TeacherSettings, split: Split, run: TrainingRun) -> tuple[Denoiser, dict[str, float]]:
    """Trains a teacher on the real pictures of ``split``; returns it and its cost."""
    run.generator("initialisation", 0)  # seeds the global generator, which the network's initialisation uses
    resolution, channels = split.images.shape[1], split.images.shape[3]
    network = build_network(settings.network, channels, resolution).to(run.device)
    schedule = schedule_from_settings(settings.schedule.model_dump())
    denoiser = Denoiser(network, schedule, settings.prediction_type, settings.clip)
    pictures = RealPictures(split, run.device)
    run.count(network)

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = pictures.draw(settings.training.batch_size, generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        t = uniform_times(len(x), schedule.t_min, schedule.t_max, generator)
        return denoising_loss(denoiser, x, noise, t)

    result, cost = run.fit("teacher", network, loss, settings.training, real_images=True, bf16=True)
    return Denoiser(result, schedule, settings.prediction_type, settings.clip), cost
