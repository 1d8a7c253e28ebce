"""Images of a lower resolution as a part of what a network is told, which enlarges them: the later stages of cascades
(Ho et al. 2022, arXiv 2106.15282; Saharia et al. 2022, arXiv 2205.11487)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch.nn.functional import interpolate

from diffusion.conditions import Condition
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import Settings, UserPath
from diffusion.teachers.schedulers import alphas_cumprod_of, read_scheduler

IMAGES = "low_resolution"  # their name in a condition, and in a table of embeddings
_SCHEDULER = "image_noising_scheduler"  # what `diffusers` calls it among a pipeline's parts


class LowResolutionSettings(Settings):
    """The images that a teacher of a later stage enlarges.

    Attributes:
        path: a one-step student of the stage before, which draws one of each text, once; a folder.
        noise_level: the timestep up to which they are noised, for training and sampling alike. Published: 250 of 1,000
            at sampling.
    """

    path: UserPath
    noise_level: int = Field(250, ge=0)


@dataclass(frozen=True)
class Enlarging:
    """How the images are given: enlarged, with noise (Saharia et al. 2022, sec. 2.3: noise conditioning augmentation).

    Attributes:
        shape: (C, H, W) of the states.
        level: what the network is told of the noise.
        signal, noise: α and σ of that level.
    """

    shape: tuple[int, int, int]
    level: int
    signal: float
    noise: float

    def told(self, condition: Condition, noise: torch.Tensor) -> Condition:
        """``condition`` with its images, uint8 (N, C, h, w), as the network takes them: float (N, C, H, W), and
        ``noise_level``, int64 (N,).

        Args:
            noise: standard normal, shape (N, C, H, W). A trajectory has one, from its beginning to its end.
        """
        assert condition is not None
        images = condition[IMAGES].float() / 127.5 - 1
        large = interpolate(images, size=self.shape[1:], mode="bilinear", align_corners=True)
        level = torch.full((len(images),), self.level, device=images.device)
        return {**condition, IMAGES: self.signal * large + self.noise * noise, "noise_level": level}


def enlarging_of(folder: Path, shape: tuple[int, int, int], level: int) -> Enlarging:
    """How a pipeline enlarges images.

    Raises:
        UserError: it says not how they are noised, or has no such level.
    """
    file = folder / _SCHEDULER / "scheduler_config.json"
    if not file.exists():
        raise UserError(f"{file}: not found; expected the schedule by which images of the stage before are noised.")
    kept = alphas_cumprod_of(read_scheduler(file))
    if level >= len(kept):
        raise UserError(
            f"teacher.low_resolution.noise_level: found {level}, expected less than {len(kept)}, the teacher's own."
        )
    square = float(kept[level])
    return Enlarging(shape, level, square**0.5, (1 - square) ** 0.5)
