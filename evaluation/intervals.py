"""Intervals of means and of differences, over sampling seeds and over training seeds apart.

Two sources of chance are kept apart here: other noise for the same student (sampling seeds), and another training run
of it (training seeds). Methods that start from the same noise are compared seed by seed, which takes out what the noise
does to both. Intervals are Student's t at 95 %; with two or three seeds they are wide, and rightly so.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its interval; both ends are None for a single value. ``n`` values, deviation ``sd``."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


def interval_of(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t interval of the mean of independent values."""
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return Interval(mean, None, None, None, n)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def welch_interval(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Interval:
    """The interval of mean(a) − mean(b) of independent values with unequal variances (Welch 1947).

    A side with one value is taken as known exactly, as the teacher is: one teacher is distilled.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean = float(first.mean() - second.mean())
    errors = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (first, second) if len(x) > 1]
    if not errors:
        return Interval(mean, None, None, None, 1)
    variance = sum(error for error, _ in errors)
    n = min(freedom for _, freedom in errors) + 1
    if variance == 0:
        return Interval(mean, mean, mean, 0.0, n)
    freedom = variance**2 / sum(error**2 / freedom for error, freedom in errors)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, math.sqrt(variance), n)


def over_sampling_seeds(values: pd.Series) -> Interval:
    """Of the figure of these very students: one value a sampling seed, averaged over the training seeds."""
    return interval_of(values.groupby(level="seed").mean().to_numpy())


def over_training_seeds(values: pd.Series) -> Interval | None:
    """Of the figure of any student trained like these: one value a training seed, averaged over the sampling seeds.

    None where nothing is known of the training, as of samples that a user brought.
    """
    means = values.groupby(level="train_seed").mean()
    return interval_of(means.to_numpy()) if len(means) else None


class Difference(NamedTuple):
    """Row a minus row b.

    Attributes:
        sampling: paired by sampling seed, for both started from the same noise; these very students.
        training: over training seeds; None where neither row was trained.
    """

    sampling: Interval
    training: Interval | None

    @property
    def supported(self) -> bool:
        """Whether every interval that could be taken leaves out zero, and at least one could."""
        taken = [one for one in (self.sampling, self.training) if one is not None and one.low is not None]
        return bool(taken) and all(one.low > 0 or one.high < 0 for one in taken)  # type: ignore[operator]  # both are set

    @property
    def known(self) -> bool:
        """Whether any interval could be taken: with one seed on each side nothing can be said."""
        return any(one is not None and one.low is not None for one in (self.sampling, self.training))

    def verdict(self, lower_is_better: bool) -> str:
        """Whether row a is "better", "worse", or "level": not told apart by the intervals."""
        if not self.supported:
            return "level"
        return "better" if (self.sampling.mean < 0) == lower_is_better else "worse"


def difference_of(first: pd.Series, second: pd.Series, trained: bool) -> Difference | None:
    """The difference of one measure between two rows, None where they share no sampling seed.

    Args:
        first, second: the values by (train_seed, seed).
        trained: whether training is a source of chance in either row.
    """
    paired = (first.groupby(level="seed").mean() - second.groupby(level="seed").mean()).dropna()
    if paired.empty:
        return None
    means = [values.groupby(level="train_seed").mean().to_numpy() for values in (first, second)]
    return Difference(interval_of(paired.to_numpy()), welch_interval(*means) if trained else None)
