"""The latents of a data set's training images: made once, stored, and drawn in their place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffusion.data.samples import from_uint8
from diffusion.data.store import LATENTS, Shards, Split
from diffusion.runtime.begun import BegunArray
from diffusion.runtime.errors import CheckpointError, NonFiniteError, first_line
from diffusion.runtime.memory import within_memory
from diffusion.runtime.processes import portions_of


def make_latents(
    split: Split,
    encode: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, int, int],
    begun: BegunArray,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """The latents of all images, float16, shape (N, H, W, C).

    Of a split that says ``flip`` those of the mirrored images follow, and N is twice as large: a mirrored image's
    latents are not the mirrored latents.

    Args:
        encode: images in [−1, 1], (N, C, H, W), to latents.
        shape: (C, H, W) of these.

    Raises:
        NonFiniteError: a latent is not finite, or too large for float16.
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    count, (channels, height, width) = len(split.images), shape
    portions = portions_of(count * (1 + split.flip), batch_size, begun.facts["count"])

    def portion(indices: range) -> np.ndarray:
        rows, mirrored = np.asarray(indices) % count, np.asarray(indices) >= count
        images = from_uint8(split.images[rows])
        images = torch.where(torch.from_numpy(mirrored)[:, None, None, None], images.flip(3), images)
        latents = encode(images.to(device)).half().permute(0, 2, 3, 1).cpu()
        if not torch.isfinite(latents).all():
            raise NonFiniteError(f"images {indices.start} to {indices.stop - 1}: their latents are not finite.")
        return latents.numpy()

    def fitting(indices: range) -> np.ndarray:
        return within_memory("evaluation.batch_size", lambda size: portion(indices[:size]), len(indices), device)

    parts = map(fitting, portions)
    return begun.fill((count * (1 + split.flip), height, width, channels), np.float16, portions, parts, every_s=60)


def with_latents(split: Split, folder: Path | None) -> Split:
    """``split`` with the stored latents in the place of its images; itself where there are none.

    Raises:
        CheckpointError: they are truncated, or not of these images.
    """
    if folder is None:
        return split
    try:
        latents = np.load(folder / LATENTS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / LATENTS}: cannot be read ({first_line(error)}).") from error
    times = len(latents) // len(split.labels)
    if latents.dtype != np.float16 or latents.ndim != 4 or len(latents) != times * len(split.labels) or not times:
        raise CheckpointError(
            f"{folder / LATENTS}: found {latents.dtype} {latents.shape}, expected the float16 latents of "
            f"{len(split.labels)} images; delete it and run Snakemake again."
        )
    return replace(split, images=Shards([latents]), labels=np.tile(split.labels, times), flip=False)
