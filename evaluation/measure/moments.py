"""Mean and covariance of features: what a Fréchet distance is taken from."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.runtime.errors import NonFiniteError, UserError

_PORTION = 4096  # feature vectors
# So many feature vectors are averaged by the libraries' own function, so that figures are theirs to the last digit.
_LARGEST_IN_MEMORY = 100_000


class RankWarning(UserWarning):
    """A covariance was estimated from too few samples to have full rank."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, as torch-fidelity computes them. Made by :func:`moments`."""

    statistics: dict[str, np.ndarray]

    @classmethod
    def given(cls, mu: np.ndarray, sigma: np.ndarray) -> "Moments":
        """Moments from elsewhere, mean (D,) and covariance (D, D)."""
        return cls({"mu": mu, "sigma": sigma})


def moments(features: np.ndarray, *, what: str = "features", warn: bool = True) -> Moments:
    """Mean and covariance of features (N, D), by torch-fidelity, or beyond 100,000 by :func:`streamed_moments`.

    Warns (:class:`RankWarning`) when N ≤ D: the covariance then has rank N - 1 < D, and the Fréchet distance
    is finite and real but strongly biased upwards, so that it can be compared at the same N only.

    Args:
        features: may be memory-mapped.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
        UserError: not a matrix, or fewer than two samples.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics  # seconds, for those who measure

    features = checked(features, what)
    count, dimensions = features.shape
    if warn and count <= dimensions:
        warnings.warn(
            f"{what}: {count} samples in {dimensions} dimensions give a covariance of rank {count - 1}; full "
            f"rank needs at least {dimensions + 1} samples. Compare this Fréchet distance at the same number "
            f"of samples only.",
            RankWarning,
            stacklevel=2,
        )
    if count > _LARGEST_IN_MEMORY:
        return streamed_moments(features)
    return Moments(fid_features_to_statistics(as_tensor(features)))


def streamed_moments(features: np.ndarray, portion: int = _PORTION) -> Moments:
    """Mean and unbiased covariance, summed in float64 over portions of features (N, D).

    Portions are joined as by Chan, Golub & LeVeque 1979: sums of squares about the mean so far, which lose no digits to
    a large mean. Memory does not grow with N where features are memory-mapped.
    """
    count, mean = 0, np.zeros(features.shape[1])
    scatter = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), portion):
        part = np.asarray(features[start : start + portion], dtype=np.float64)
        part_mean = part.mean(axis=0)
        centred, shift = part - part_mean, part_mean - mean
        scatter += centred.T @ centred + np.outer(shift, shift) * (count * len(part) / (count + len(part)))
        mean += shift * (len(part) / (count + len(part)))
        count += len(part)
    return Moments.given(mean, scatter / (count - 1))


def checked(features: np.ndarray, what: str) -> np.ndarray:
    """The same features (N, D), after a look at every one of them.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
        UserError: not a matrix, or fewer than two samples.
    """
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"{what}: shape {features.shape}; expected (N, D) with at least two samples.")
    portions = (features[start : start + _PORTION] for start in range(0, len(features), _PORTION))
    bad = sum(int((~np.isfinite(portion)).any(axis=1).sum()) for portion in portions)
    if bad:
        raise NonFiniteError(
            f"{what}: {bad} of {len(features)} feature vectors contain NaN or infinity. "
            f"The samples that they came from may be broken."
        )
    return features


def finite(value: float, metric: str) -> float:
    """The same value.

    Raises:
        NonFiniteError: it is NaN or infinite.
    """
    if not np.isfinite(value):
        raise NonFiniteError(f"{metric} is {value}. Check the number of samples and the features it came from.")
    return float(value)


def as_tensor(features: np.ndarray) -> torch.Tensor:
    """Features as a tensor on the same memory, a memory map included; torch refuses what it must not write to."""
    return torch.from_numpy(features if features.flags.writeable else np.array(features))
