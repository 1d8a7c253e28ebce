"""Initial noise that depends on nothing but the seed and the sample's index."""

import numpy as np
import torch


def initial_noise(seed: int, indices: range, shape: tuple[int, int, int]) -> torch.Tensor:
    """Standard normal noise, one independent stream a sample.

    Sample i of a seed is the same whatever the batch size, the number of samples, the device or the method, so that
    all methods can be compared from the same noise.

    Args:
        seed: the sampling seed, ≥ 0.
        indices: the samples' indices.
        shape: (C, H, W).

    Returns:
        float32 tensor on the CPU, shape (len(indices), C, H, W).
    """
    streams = (np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices)
    noise = [stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    return torch.from_numpy(np.stack(noise)) if noise else torch.empty(0, *shape)
