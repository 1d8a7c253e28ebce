"""Intervals of means and of differences, over sampling seeds and over training seeds apart, and the verdicts they give.

Two sources of chance are kept apart here: other noise for the same student (sampling seeds), and another training run
of it (training seeds). Methods that start from the same noise are compared seed by seed, which takes out what the noise
does to both. Intervals are Student's t at 95 %, of three seeds or more: of two they would be 18 deviations wide.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
# Seeds that an interval takes, and so a verdict.
LEAST = 3

Verdict = Literal["better", "level", "worse", "none"]


class Interval(NamedTuple):
    """A mean with its interval.

    Both ends are None for fewer than :data:`LEAST` values. ``sd`` is the deviation of the ``n`` values (n − 1 in the
    denominator), None for one value and for a difference of two means.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


def _ends(test: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Of equal values p is not defined; the interval is, and has no width.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = test(*arguments, **options).confidence_interval(LEVEL)
    return float(low), float(high)


def interval_of(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t interval of the mean of one or more independent values."""
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    sd = float(array.std(ddof=1)) if n > 1 else None
    low, high = _ends(stats.ttest_1samp, array, 0.0) if n >= LEAST else (None, None)
    return Interval(mean, low, high, sd, n)


def welch_interval(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Interval:
    """The interval of mean(a) − mean(b) of independent values with unequal variances (Welch 1947); n of the fewer."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = min(len(first), len(second))
    low, high = _ends(stats.ttest_ind, first, second, equal_var=False) if n >= LEAST else (None, None)
    return Interval(float(first.mean() - second.mean()), low, high, None, n)


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
        resolution: differences up to that are none, however narrow the intervals.
    """

    sampling: Interval
    training: Interval | None
    resolution: float = 0.0

    @property
    def known(self) -> bool:
        """Whether there are seeds enough for a verdict: training seeds, or between rows without training sampling
        seeds."""
        return (self.sampling if self.training is None else self.training).low is not None

    def verdict(self, lower_is_better: bool) -> Verdict:
        """Whether row a is "better" or "worse", "level" with b, or "none": too few seeds for any of these.

        Better and worse take every interval that there is to leave out zero, on the same side.
        """
        if not self.known:
            return "none"
        taken = [one for one in (self.sampling, self.training) if one is not None and one.low is not None]
        if min(abs(one.mean) for one in taken) <= self.resolution:
            return "level"
        below = all(one.high < 0 for one in taken)  # type: ignore[operator]  # both ends are set
        above = all(one.low > 0 for one in taken)  # type: ignore[operator]
        if not below and not above:
            return "level"
        return "better" if below == lower_is_better else "worse"


def difference_of(
    first: pd.Series, second: pd.Series, trained: tuple[bool, bool], resolution: float = 0.0
) -> Difference | None:
    """The difference of one measure between two rows, None where they share no sampling seed.

    Args:
        first, second: the values by (train_seed, seed).
        trained: whether training is a source of chance in the first and in the second. The mean of one that is not
            trained is then taken as known, since its sampling seeds are those of the paired interval.
        resolution: see :class:`Difference`.
    """
    paired = (first.groupby(level="seed").mean() - second.groupby(level="seed").mean()).dropna()
    if paired.empty:
        return None
    training = None
    if any(trained):
        shared = [values[values.index.get_level_values("seed").isin(paired.index)] for values in (first, second)]
        means = [values.groupby(level="train_seed").mean().to_numpy() for values in shared]
        if min(map(len, means)) == 0:  # samples that a user brought
            training = Interval(float(paired.mean()), None, None, None, 0)
        elif all(trained):
            training = welch_interval(*means)
        else:
            training = interval_of(means[0] - means[1].mean() if trained[0] else means[0].mean() - means[1])
    return Difference(interval_of(paired.to_numpy()), training, resolution)
