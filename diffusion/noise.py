"""Noise that depends on nothing but the seed and the sample's index."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

# Where a stochastic sampler's further noise comes from: a generator a sample, or one for the whole batch.
FurtherNoise = list[torch.Generator] | torch.Generator

_WHOLE_BATCH: ContextVar[torch.Generator | None] = ContextVar("whole batch", default=None)


def initial_noise(seed: int, indices: Iterable[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """Standard normal noise, one independent stream a sample.

    Sample i of a seed is the same whatever the batch size, the number of samples, the device or the method, so that
    all methods can be compared from the same noise.

    Args:
        seed: the sampling seed, ≥ 0.
        indices: the samples' indices.
        shape: (C, H, W).

    Returns:
        float32 tensor on the CPU, shape (number of indices, C, H, W).
    """
    streams = (np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices)
    noise = [stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    return torch.from_numpy(np.stack(noise)) if noise else torch.empty(0, *shape)


@contextmanager
def drawn_by_batch(device: torch.device) -> Iterator[None]:
    """Within it, further noise is drawn on ``device``, for a whole batch at once: as a deployed sampler draws it.

    For timing. A generator a sample runs on the host, and takes many times as long as a GPU takes for a step.
    """
    token = _WHOLE_BATCH.set(torch.Generator(device).manual_seed(0))
    try:
        yield
    finally:
        _WHOLE_BATCH.reset(token)


def noise_generators(noise: torch.Tensor) -> FurtherNoise:
    """One generator a sample for the further noise of a stochastic sampler, on the CPU.

    Seeded by the sample's own initial noise, so that such a sample, too, is the same whatever the batch or the device;
    within :func:`drawn_by_batch` one generator on its device.

    Args:
        noise: initial noise, shape (N, C, H, W).
    """
    if (whole_batch := _WHOLE_BATCH.get()) is not None:
        return whole_batch
    seeds = (hashlib.sha256(one.tobytes()).digest()[:8] for one in noise.float().cpu().numpy())
    return [torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1) for seed in seeds]


def further_noise(generators: FurtherNoise, like: torch.Tensor) -> torch.Tensor:
    """The next standard normal noise of each sample, shaped, typed and placed as ``like``, shape (N, C, H, W)."""
    if isinstance(generators, torch.Generator):
        return torch.randn(like.shape, generator=generators, device=like.device, dtype=like.dtype)
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like)
