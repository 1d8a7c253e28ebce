"""What to say when a batch does not fit the device's memory."""

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch

from diffusion.runtime.errors import DeviceMemoryError, first_line
from diffusion.runtime.processes import portions_of

T = TypeVar("T")

# What errors that are no OutOfMemoryError say for want of memory: a processor's allocator; cuDNN, where no algorithm's
# workspace fits; cuDNN's and cuBLAS' own buffers; the driver.
_ALSO = (
    "DefaultCPUAllocator: can't allocate memory",
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


class Fitting(NamedTuple):
    """A batch that fits the device's memory.

    Attributes:
        size: pictures.
        peak: bytes in use at the highest, None where the device does not tell.
    """

    size: int
    peak: int | None

    def __str__(self) -> str:
        return str(self.size) if self.peak is None else f"{self.size} (tried: {self.peak / 2**30:.1f} GiB at the peak)"


def out_of_memory(error: BaseException) -> bool:
    """Whether torch raised it for want of memory, as far as it tells."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _ALSO)


def largest_fitting(
    error: BaseException, attempt: Callable[[int], object], sizes: Iterable[int], device: torch.device
) -> Fitting | None:
    """After running out of memory: the first of ``sizes`` with which ``attempt`` does not, None if it always does.

    Args:
        error: what was raised. What its frames hold, the batch that did not fit, is let go.
        sizes: decreasing.
    """
    traceback.clear_frames(error.__traceback__)
    for size in sizes:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            attempt(size)
        except RuntimeError as again:
            if not out_of_memory(again):
                raise
        else:
            return Fitting(size, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)
    return None


def halves(size: int) -> list[int]:
    """size/2, size/4, …, 1, rounded down."""
    return [size >> power for power in range(1, size.bit_length())]


def memory_of(device: torch.device) -> str:
    """The device's memory in words."""
    if device.type != "cuda":
        return f"the memory of {device}"
    facts = torch.cuda.get_device_properties(device)
    return f"the {facts.total_memory / 2**30:.1f} GiB of {facts.name}"


def within_memory(key: str, attempt: Callable[[int], T], size: int, device: torch.device) -> T:
    """``attempt(size)``, a batch of that many pictures.

    Args:
        key: the key of the configuration that says ``size``.

    Raises:
        DeviceMemoryError: the device's memory is too small; halves of the batch have been tried, to say which one fits.
    """
    try:
        return attempt(size)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        fitting = largest_fitting(error, attempt, halves(size), device)
        expected = (
            f"expected at most {fitting}."
            if fitting
            else "and not even one picture fits: another program may hold the memory (nvidia-smi), or the network is "
            f"too large for this device. torch says: {first_line(error)}"
        )
        raise DeviceMemoryError(f"{key}: found {size}, more than {memory_of(device)} can take; {expected}") from error


def in_portions(key: str, compute: Callable[[range], T], count: int, size: int, device: torch.device) -> Iterator[T]:
    """What ``compute`` gives for the images 0 … count - 1, at most ``size`` of them at a time.

    Args:
        key: the key of the configuration that says ``size``.

    Raises:
        DeviceMemoryError: as :func:`within_memory`.
    """

    def portion(indices: range) -> T:
        return within_memory(key, lambda most: compute(indices[:most]), len(indices), device)

    return map(portion, portions_of(count, size))
