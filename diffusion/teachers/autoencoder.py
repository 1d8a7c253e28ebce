"""Training the autoencoder whose latents a teacher is a diffusion of (Rombach et al. 2022, arXiv 2112.10752)."""

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator

from diffusion.data.batches import RealPictures
from diffusion.data.samples import from_uint8
from diffusion.data.store import Split
from diffusion.runtime.processes import portions_of
from diffusion.runtime.settings import Settings
from diffusion.teachers.latents import posterior_mean
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:
    from diffusion.training.loop import TrainingRun


class AutoencoderSettings(Settings):
    """`diffusers`' ``AutoencoderKL``, without attention; the names are that class's.

    Attributes:
        block_out_channels: a level each; all but the first halve the image.
        kl_weight: of the divergence of the posterior from the standard normal distribution, a number of a latent,
            beside the squared error, a number of the image.
    """

    block_out_channels: tuple[int, ...] = Field((16, 32), min_length=2)
    layers_per_block: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    norm_num_groups: int = Field(16, ge=1)
    kl_weight: float = Field(1e-3, ge=0)
    training: TrainingSettings

    @model_validator(mode="after")
    def _divisible(self) -> "AutoencoderSettings":
        if wrong := [width for width in self.block_out_channels if width < 1 or width % self.norm_num_groups]:
            raise ValueError(
                f"block_out_channels: found {wrong[0]}, expected positive multiples of norm_num_groups "
                f"({self.norm_num_groups})"
            )
        return self

    @property
    def factor(self) -> int:
        """Pixels to a latent, along a side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of shape (C, H, W)."""
        return self.latent_channels, shape[1] // self.factor, shape[2] // self.factor

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError where images of ``size`` (H, W) do not fit the levels."""
        if wrong := [side for side in size if side % self.factor]:
            raise ValueError(
                f"autoencoder.block_out_channels: {len(self.block_out_channels)} levels need sides that are multiples "
                f"of {self.factor}; found {wrong[0]}"
            )


def build_autoencoder(settings: AutoencoderSettings, channels: int) -> Any:
    """A fresh ``AutoencoderKL`` of images of so many channels."""
    from diffusers import AutoencoderKL  # 3 seconds: not at import

    levels = len(settings.block_out_channels)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_num_groups,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def autoencoder_loss(autoencoder: Any, x: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """‖D(μ + σ ε) − x‖² + weight · KL(N(μ, σ²) ‖ N(0, 1)), each a mean over its numbers and the batch; a scalar.

    Args:
        x: images, shape (N, C, H, W).
        noise: ε, shape of the latents.
    """
    posterior = autoencoder.encode(x).latent_dist
    decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample
    divergence = posterior.kl().mean() / noise[0].numel()  # the class sums over a latent's numbers
    return (decoded - x).square().mean() + kl_weight * divergence


def train_autoencoder(settings: AutoencoderSettings, split: Split, run: "TrainingRun") -> tuple[Any, dict[str, float]]:
    """Trains an autoencoder on ``split``; returns it and its cost, an evaluation being one of an image.

    Each channel's mean and deviation over the split are part of its configuration, so that latents are of unit variance
    a channel, as schedules expect.
    """
    run.seed_initialisation("initialisation")
    autoencoder = build_autoencoder(settings, split.shape[0]).to(run.device)
    pictures, shape = RealPictures(split, run.device), settings.latent_shape(split.shape)
    run.count(autoencoder.encoder)

    def compute(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return autoencoder_loss(autoencoder, x, noise, settings.kl_weight)

    compute = run.compiled(compute, settings.training)

    def loss(step: Step) -> torch.Tensor:
        x, _ = pictures.draw(step.batch_size, step.generator)
        return compute(x, torch.randn((len(x), *shape), generator=step.generator, device=x.device))

    trained = run.fit("autoencoder", autoencoder, loss, settings.training, real_images=True)
    network: Any = trained.network
    mean, deviation = _moments(network, split, run.device)
    network.register_to_config(latents_mean=mean, latents_std=deviation)
    return network, trained.cost


def _moments(autoencoder: Any, split: Split, device: torch.device) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of the latents of all images."""
    sums: list[torch.Tensor] = []
    count = 0
    with torch.no_grad():
        for part in portions_of(len(split.images), 256):
            images = from_uint8(split.images[part.start : part.stop]).to(device)
            latents = posterior_mean(autoencoder, images).double()
            count += latents[:, 0].numel()
            sums.append(torch.stack([latents.sum(dim=(0, 2, 3)), latents.square().sum(dim=(0, 2, 3))]))
    mean, squares = torch.stack(sums).sum(dim=0) / count
    return mean.tolist(), (squares - mean.square()).sqrt().tolist()
