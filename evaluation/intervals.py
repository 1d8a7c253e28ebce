"""How sure a figure is: spread over sampling seeds and over training seeds, kept apart, and differences with intervals.

Two sources of chance are kept apart here: other noise for the same student (sampling seeds), and another training run
of it (training seeds). Methods that start from the same noise are compared seed by seed, which takes out what the noise
does to both. Intervals are Student's t at 95 %; with two or three seeds they are wide, and rightly so.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.tables import LOWER_IS_BETTER, Cell, Column, Method, Results, Table, metric_columns

LEVEL = 0.95
_KEYS = ("frechet_distance", "kid", "mse_to_teacher")
NOT_SUPPORTED = "≈ not told apart"


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


def difference(results: Results, metric: str, a: Method, b: Method) -> Difference | None:
    """The difference of one measure between two rows, None where they share no sampling seed."""
    first, second = results.values(metric, a), results.values(metric, b)
    if first is None or second is None:
        return None
    paired = (first.groupby(level="seed").mean() - second.groupby(level="seed").mean()).dropna()
    if paired.empty:
        return None
    trained = [row for row in (a, b) if row.variant not in results.untrained]
    means = [values.groupby(level="train_seed").mean().to_numpy() for values in (first, second)]
    return Difference(interval_of(paired.to_numpy()), welch_interval(*means) if trained else None)


def _ends(interval: Interval | None) -> list[Cell]:
    """Lower and upper end."""
    return [Cell(interval.low), Cell(interval.high)] if interval else [Cell(), Cell()]


def spread_table(results: Results) -> Table:
    """Mean, and interval over sampling seeds and over training seeds, of every row."""
    keys = [key for key in _KEYS if results.has(key)]
    columns = [Column("method", "Method"), Column("nfe", "Evaluations", "count")]
    columns.append(Column("num_samples", "Samples", "count"))
    for column in metric_columns(results, keys):
        columns += [
            Column(column.key, column.title, "number"),
            Column(f"{column.key}_sampling_low", "over sampling seeds: from", "number"),
            Column(f"{column.key}_sampling_high", "to", "number"),
            Column(f"{column.key}_training_low", "over training seeds: from", "number"),
            Column(f"{column.key}_training_high", "to", "number"),
        ]
    rows = []
    counts: dict[str, set[int]] = {"sampling": set(), "training": set()}
    for row in results.rows:
        count = results.count(row)
        cells = [Cell(results.label(row)), Cell(row.nfe), Cell(count, mark="" if count == results.full_count else " ‡")]
        for key in keys:
            values = results.values(key, row)
            if values is None:
                cells += [Cell()] * 5
                continue
            sampling, training = over_sampling_seeds(values), over_training_seeds(values)
            counts["sampling"].add(sampling.n)
            if training is not None and row.variant not in results.untrained:
                counts["training"].add(training.n)
            cells += [Cell(sampling.mean), *_ends(sampling), *_ends(training)]
        rows.append(cells)
    numbers = {
        name: " to ".join(str(n) for n in sorted({min(found), max(found)})) for name, found in counts.items() if found
    }
    return Table(
        "spread",
        "Two kinds of spread, kept apart",
        "95 % intervals of the mean (Student's t). Over sampling seeds: of these very students, other noise. Over "
        "training seeds: of another training run of the same method on the same teacher. "
        + "; ".join(f"{name} seeds: {count}" for name, count in numbers.items())
        + ". With one seed there is no interval. ‡: another number of samples, not to be compared.",
        columns,
        rows,
    )


def difference_table(results: Results, without: Collection[str] = ()) -> Table:
    """Every one-evaluation student of BOOT against the other students with one evaluation, and against the teacher.

    Args:
        without: variants to leave out: an ablation's changes, which have a table of their own.
    """
    without = frozenset(without)
    keys = [key for key in _KEYS if results.has(key)]
    titles = dict(zip(keys, (c.title.rstrip(" ↓↑") for c in metric_columns(results, keys)), strict=True))
    columns = [
        *(
            Column("a", "Row"),
            Column("b", "minus row"),
            Column("metric", "Measure"),
            Column("difference", "Difference", "number"),
        ),
        *(Column("sampling_low", "Sampling seeds, paired: from", "number"), Column("sampling_high", "to", "number")),
        *(Column("training_low", "Training seeds: from", "number"), Column("training_high", "to", "number")),
        Column("verdict", "The intervals say"),
    ]
    rows = []
    students = [
        row
        for row in results.rows
        if row.nfe == 1 and row.method != "external" and row.variant not in results.untrained | without
    ]
    boots = [row for row in students if row in results.boot_rows]
    for number, a in enumerate(boots):
        rivals = [row for row in students if row not in boots[: number + 1]]
        for b in [*rivals, *results.ladder]:
            for key in keys:
                found = difference(results, key, a, b)
                # The teacher's distance to itself is 0 by definition, and no measurement.
                if found is None or (key == "mse_to_teacher" and b == results.teacher_row):
                    continue
                better = (found.sampling.mean < 0) == LOWER_IS_BETTER[key]
                verdict = ("better" if better else "worse") if found.supported else NOT_SUPPORTED
                if found.sampling.low is None and (found.training is None or found.training.low is None):
                    verdict = "one seed: nothing can be said"
                cells = [Cell(results.long_label(a)), Cell(results.long_label(b)), Cell(titles[key])]
                cells += [Cell(found.sampling.mean), *_ends(found.sampling), *_ends(found.training)]
                rows.append([*cells, Cell(verdict)])
    return Table(
        "differences",
        "BOOT against the others, with intervals",
        "Differences of the means, with 95 % intervals: over sampling seeds seed by seed, because both rows start from "
        "the same noise; over training seeds (Welch) where there are several. A difference counts as better or worse "
        "only if every interval that could be taken leaves out zero; with one training run the verdict is about these "
        f"very students and not about the method. '{NOT_SUPPORTED}' marks what the intervals do not support. Every row "
        "is a comparison of its own: of twenty level ones, one is expected to be marked better or worse by chance. "
        "Bold in the other tables, and 'better' in the sentences, follow another rule (two standard deviations of the "
        "difference, all seeds together); where the two disagree, believe this one.",
        columns,
        rows,
    )
