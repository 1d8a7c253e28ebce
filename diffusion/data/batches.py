"""Batches of a stored data set, on the training device."""

import numpy as np
import torch

from diffusion.data.samples import from_uint8
from diffusion.data.store import Split


class RealPictures:
    """Batches of the data set, drawn with replacement.

    Args:
        split: the training part, as uint8 on disk, or its latents. Up to a GiB is held on the training device; a larger
            one stays memory-mapped, and only the batch travels. Where it says ``flip``, each drawn image is mirrored
            left to right with probability 1/2.
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
        """``count`` pictures in [−1, 1], or latents, shape (count, C, H, W), and their labels, int64, (count,)."""
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
        return states_of(images), labels

    def _to_device(self, batch: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return batch.to(self._device)
        return batch.pin_memory().to(self._device, non_blocking=True)


def states_of(images: torch.Tensor) -> torch.Tensor:
    """Stored images, uint8, in [−1, 1]; stored latents as they are. From (N, H, W, C) to float32 (N, C, H, W)."""
    if images.dtype == torch.uint8:
        return from_uint8(images)
    return images.permute(0, 3, 1, 2).float().contiguous()
