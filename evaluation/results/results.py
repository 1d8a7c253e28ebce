"""Everything measured, with the look-ups that tables, figures and sentences share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from evaluation.columns import rank_mark, without_rank
from evaluation.measure.metrics import METRICS, PLAIN_NAMES
from evaluation.results.intervals import (
    Difference,
    Interval,
    Verdict,
    difference_of,
    interval_of,
    over_training_seeds,
)
from evaluation.results.stored import Method


@dataclass(frozen=True)
class Results:
    """Everything measured, with the look-ups that tables, figures and sentences share."""

    metrics: pd.DataFrame  # as :func:`load_metrics` returns it; the next three likewise
    speed: pd.DataFrame
    cost: pd.DataFrame
    benchmarks: pd.DataFrame
    dataset: str  # compared with the names in ``published.yaml``
    labels: Mapping[str, str]  # what to call each variant, in the order of the rows
    teacher: tuple[str, int]  # variant and evaluations of the reference run of the teacher, e.g. ("ddim", 50)
    untrained: frozenset[str] = frozenset()  # variants that run the teacher itself
    dimensions: int | None = None  # of the features; None where they are not known
    reference_count: int | None = None  # images of the reference; None where they are not known
    _index: dict[tuple[str, Method], dict[int, list[pd.DataFrame]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        frame = self.metrics.dropna(subset=["value"]).copy()
        frame["metric"] = frame["metric"].replace(PLAIN_NAMES)
        frame["row"] = [
            Method(str(m), str(v), None if n is pd.NA else int(n))
            for m, v, n in zip(frame["method"], frame["variant"], frame["nfe"], strict=True)
        ]
        # A measure may have been taken under several protocols; rows that are compared must share one. The
        # reference run of the teacher says which, and what it lacks is decided by the first row in the file.
        frame["is_teacher"] = [(row.variant, row.nfe) == self.teacher for row in frame["row"]]
        for (metric, count), group in frame.groupby(["metric", "num_samples"], sort=False):
            first = (group[group["is_teacher"]] if group["is_teacher"].any() else group).iloc[0]
            same = group[(group["features"] == first["features"]) & (group["protocol"] == first["protocol"])]
            for row, values in same.groupby("row", sort=False):
                key = (str(metric), Method(*row))
                self._index.setdefault(key, {}).setdefault(int(count), []).append(values)

    @property
    def rows(self) -> list[Method]:
        """Measured methods: the teacher's reference run, then variants in the order of the labels, most evaluations
        first, then what users brought."""
        found = {row for _, row in self._index if row.method != "real"}
        order = {variant: place for place, variant in enumerate(self.labels)}
        return sorted(
            found,
            key=lambda row: (
                (row.variant, row.nfe) != self.teacher,
                row.method == "external",
                order.get(row.variant, len(order)),
                row.variant,
                -(row.nfe or 0),
            ),
        )

    @property
    def real(self) -> Method | None:
        """The row that measures held-out real pictures against the training pictures."""
        return next((row for _, row in self._index if row.method == "real"), None)

    @property
    def teacher_row(self) -> Method | None:
        """The reference run of the teacher, if it was measured."""
        return next((row for row in self.rows if (row.variant, row.nfe) == self.teacher), None)

    @property
    def boot_rows(self) -> list[Method]:
        """BOOT students read with one evaluation."""
        return [row for row in self.rows if row.method == "boot" and row.nfe == 1]

    @property
    def ladder(self) -> list[Method]:
        """The reference sampler of the teacher at every measured number of evaluations, fewest first."""
        rows = [row for row in self.rows if row.variant == self.teacher[0] and row.nfe is not None]
        return sorted(rows, key=lambda row: row.nfe or 0)

    @property
    def full_count(self) -> int | None:
        """Samples behind the main figures: the most that the teacher's reference run has."""
        candidates = [self.teacher_row] if self.teacher_row else self.rows
        counts = [n for row in candidates if row for n in self._index.get(("frechet_distance", row), {})]
        return max(counts, default=None)

    @property
    def floor_count(self) -> int | None:
        """Pictures in the held-out real part, the count of the floor."""
        counts = self._index.get(("frechet_distance", self.real), {}) if self.real else {}
        return max(counts, default=None)

    @property
    def features(self) -> str:
        """Name of the feature extractor behind the Fréchet distances."""
        row = self.teacher_row or next(iter(self.rows), None)
        groups = self._index.get(("frechet_distance", row), {}) if row else {}
        return str(groups[max(groups)][0]["features"].iloc[0]) if groups else ""

    @property
    def frechet_name(self) -> str:
        """'FID' only on Inception features, otherwise named after the extractor."""
        if self.features == "inception":
            return "FID"
        return f"Fréchet distance ({self.features})" if self.features else "Fréchet distance"

    @property
    def score_name(self) -> str:
        """'Inception Score' only on Inception, otherwise named after the extractor."""
        if self.features == "inception":
            return "Inception Score"
        return f"Classifier score ({self.features})" if self.features else "Classifier score"

    def label(self, row: Method) -> str:
        """What to call a row, without its number of evaluations."""
        return self.labels.get(row.variant, row.variant)

    def long_label(self, row: Method) -> str:
        """What to call a row, with its number of evaluations."""
        return self.label(row) if row.nfe is None else f"{self.label(row)}, {row.nfe}"

    def values(self, metric: str, row: Method, count: int | None = None) -> pd.Series | None:
        """The values of one measure by (train_seed, seed).

        Args:
            metric: name of the measure; 'fid' was renamed 'frechet_distance'.
            row: the method.
            count: number of samples; None takes the full count, or the row's own largest one where it has not
                been measured at the full count.
        """
        groups = self._index.get((metric, row), {})
        count = self.count_of(metric, row) if count is None else count
        if count not in groups:
            return None
        frame = pd.concat(groups[count])
        return frame.set_index(["train_seed", "seed"])["value"].astype(float)

    def count_of(self, metric: str, row: Method) -> int | None:
        """Number of samples behind a row's main figure of a measure: the full count, or its own largest."""
        groups = self._index.get((metric, row), {})
        return self.full_count if self.full_count in groups else max(groups, default=None)

    def interval(self, metric: str, row: Method, count: int | None = None) -> Interval | None:
        """Mean and interval of one measure; see :meth:`values`.

        Over training seeds where the row has several, each at its mean over sampling seeds; else over sampling seeds.
        """
        values = self.values(metric, row, count)
        if values is None:
            return None
        training = over_training_seeds(values)
        return training if training is not None and training.n > 1 else interval_of(values.to_numpy())

    def difference(self, metric: str, a: Method, b: Method) -> Difference | None:
        """Row a minus row b with its intervals.

        None where one was not measured, at another number of samples than the other, or where they share no sampling
        seed; and of the teacher's distance to itself, which is 0 by definition.
        """
        first, second = self.values(metric, a), self.values(metric, b)
        count = self.count_of(metric, a)
        if first is None or second is None or count is None or count != self.count_of(metric, b):
            return None
        if metric == "mse_to_teacher" and self.teacher_row in (a, b):
            return None
        trained = (a.variant not in self.untrained, b.variant not in self.untrained)
        resolution = METRICS[metric].resolution
        return difference_of(first, second, trained, resolution(count) if resolution else 0.0)

    def verdict(self, metric: str, a: Method, b: Method) -> Verdict | None:
        """Whether row a is better than row b by one measure; None where they cannot be compared."""
        found = self.difference(metric, a, b)
        return None if found is None else found.verdict(METRICS[metric].better == "lower")

    def wins(self, metric: str, row: Method, rivals: Sequence[Method]) -> bool:
        """Whether a row is better than every rival that has the measure, and there is one."""
        others = [other for other in rivals if self.values(metric, other) is not None]
        return bool(others) and all(self.verdict(metric, row, other) == "better" for other in others)

    def without_rank(self, count: int | None) -> bool:
        """Whether the covariance of so many feature vectors has less than full rank."""
        return without_rank(self.dimensions, count)

    def rank_mark(self, metric: str, count: int | None) -> str:
        """What stands beside a figure of so many samples whose covariance, or the reference's, has not full rank."""
        return rank_mark(self.dimensions, count, self.reference_count) if METRICS[metric].of_covariances else ""

    def has(self, metric: str) -> bool:
        """Whether any row has this measure."""
        return any(measured == metric for measured, _ in self._index)

    def count(self, row: Method) -> int | None:
        """Number of samples behind a row's main figures."""
        return self.count_of("frechet_distance", row)

    def speed_of(self, row: Method, column: str, batch: str = "best") -> float | None:
        """One figure of the speed table, at the batch with the best throughput of the row or at the smallest batch."""
        frame = self.speed[(self.speed["variant"].astype(str) == row.variant) & (self.speed["nfe"] == row.nfe)]
        frame = frame.dropna(subset=[column])
        if row.nfe is None or frame.empty:
            return None
        place = frame["images_per_second"].argmax() if batch == "best" else frame["batch_size"].argmin()
        return float(frame.iloc[int(place)][column])

    def speedup(self, row: Method) -> float | None:
        """Images per second over those of the teacher's reference run, each at its own best batch size."""
        own, teacher = (
            self.speed_of(one, "images_per_second") if one is not None else None for one in (row, self.teacher_row)
        )
        return None if own is None or teacher is None else own / teacher

    def cost_of(self, row: Method, column: str) -> float | None:
        """One figure of the cost of training; 0 for runs of the teacher itself, None where it is not known."""
        if row.variant in self.untrained:
            return 0.0
        frame = self.cost[self.cost["base_variant"] == row.variant]
        if len(frame) > 1:
            frame = frame[(frame["nfe"] == row.nfe).fillna(False)]
        return float(frame.iloc[0][column]) if len(frame) == 1 else None
