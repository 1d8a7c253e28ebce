"""Noise that depends on nothing but the seed and the sample's index."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch


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


def noise_generators(noise: torch.Tensor) -> list[torch.Generator]:
    """One generator a sample for the further noise of a stochastic sampler, on the CPU.

    Seeded by the sample's own initial noise, so that such a sample, too, is the same whatever the batch or the device.

    Args:
        noise: initial noise, shape (N, C, H, W).
    """
    seeds = (hashlib.sha256(one.tobytes()).digest()[:8] for one in noise.float().cpu().numpy())
    return [torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1) for seed in seeds]


def further_noise(generators: list[torch.Generator], like: torch.Tensor) -> torch.Tensor:
    """The next standard normal noise of each sample, shaped, typed and placed as ``like``, shape (N, C, H, W)."""
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like)
