"""Times and noise levels that trainings draw."""

import torch

# P_mean and P_std of Karras et al. 2022 (arXiv 2206.00364), table 1.
_LOG_SIGMA_MEAN, _LOG_SIGMA_DEVIATION = -1.2, 1.2


def uniform_times(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """``count`` times, uniform on [low, high]; float64 on the generator's device."""
    unit = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def lognormal_levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """λ = log σ/α of ``count`` noise levels, normal with mean −1.2 and deviation 1.2.

    Float64, shape (count,), on the generator's device. EDM's networks are trained on these (Karras et al. 2022,
    table 1: P_mean and P_std of ln σ).
    """
    unit = torch.randn(count, generator=generator, device=generator.device, dtype=torch.float64)
    return _LOG_SIGMA_MEAN + _LOG_SIGMA_DEVIATION * unit
