"""The report's data and tables: reading the measures, summarising them, and writing CSV, Markdown and LaTeX."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.results.intervals import (
    LEAST,
    Difference,
    Interval,
    Verdict,
    difference_of,
    interval_of,
    over_training_seeds,
)

METRICS_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "train_seed", "seed", "metric", "value"),
    *("num_samples", "protocol", "features", "reference", "library"),
)
SPEED_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "device", "dtype", "batch_size", "images_per_second"),
    *("latency_ms_median", "latency_ms_p95", "peak_memory_mb"),
    *("rounds", "median_precision", "network_share", "energy_j_per_image"),
)
_COSTS = ("steps", "network_evaluations", "real_images_seen", "wall_clock_s", "parameters")
# What not every cost file has, and what stands for it: only some methods have a set; older files have no such seconds.
_FURTHER_COSTS = {"offline_bytes": 0.0, "cpu_s": math.nan, "gpu_s": math.nan}
COST_COLUMNS = ("experiment", "method", "variant", *_COSTS, *_FURTHER_COSTS)
CURVE_COLUMNS = (
    *("variant", "nfe", "train_seed", "step", "network_evaluations", "real_images_seen", "wall_clock_s"),
    *("metric", "value"),
)
TRAJECTORY_COLUMNS = ("quantity", "nfe", "t", "value")
TRAJECTORY_TABLE_COLUMNS = ("variant", *TRAJECTORY_COLUMNS)
# What measures are called on the FID Inception, and there alone.
INCEPTION_NAMES = {
    "frechet_distance": "fid",
    "frechet_distance_extrapolated": "fid_extrapolated",
    "classifier_score": "inception_score",
}
# Back again: tables and figures call a measure the same on any features, and say which in its title.
PLAIN_NAMES = {theirs: ours for ours, theirs in INCEPTION_NAMES.items()}
TABLES = (
    *(
        "main",
        "floor",
        "measures",
        "spread",
        "differences",
        "comparison",
        "comparison_steps",
        "comparison_reach",
        "ablation",
    ),
    *("published", "ratios", "training_cost", "sampling_speed", "protocols", "wall_clock"),
)
CERTAINTIES = ("reported", "quoted", "unchecked")
MISSING = "–"

# Which way is better, for every measure that the report ranks.
LOWER_IS_BETTER = {
    "frechet_distance": True,
    "kid": True,
    "precision": False,
    "recall": False,
    "mse_to_teacher": True,
    "label_accuracy": False,
}
# The smallest difference that a measure of N images can show; where it knows none, any difference is one. Shares count
# images (recall the real ones, about as many). Rounding both images to 256 grey levels adds (2 / 255)² / 6 to an MSE.
RESOLUTION: dict[str, Callable[[int], float]] = {
    **dict.fromkeys(("precision", "recall", "label_accuracy"), lambda count: 1 / count),
    "mse_to_teacher": lambda _count: (2 / 255) ** 2 / 6,
}
# Measures that take a covariance of features.
_OF_COVARIANCES = ("frechet_distance", "frechet_distance_to_teacher")
COUNT_MARK, RANK_MARK = " ‡", " §"
MARKS = {
    COUNT_MARK: "‡ Another number of samples than the other rows. A Fréchet distance grows as samples get fewer, so "
    "compare such a row only in the floor table, at equal counts.",
    RANK_MARK: "§ The samples or the reference have no more images than the features have dimensions: the covariance "
    "has not full rank, and the distance is biased upwards. Compare it at the same count only.",
}


class Method(NamedTuple):
    """What one row of a table is about. ``nfe`` is None where the number of evaluations is not known."""

    method: str
    variant: str
    nfe: int | None


# --- reading -----------------------------------------------------------------------------------------------


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the rule that writes it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a CSV table ({error}). Delete it and run Snakemake again.") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path}: the columns {missing} are missing; found {list(frame.columns)}. Delete it and run Snakemake "
            f"again."
        )
    return frame[list(columns)]


def _refuse_non_finite(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    for name in columns:
        text = frame[name].dropna()
        numbers = pd.to_numeric(text, errors="coerce")
        bad = text[~np.isfinite(numbers.astype(float))]
        if len(bad):
            raise UserError(
                f"{path}: row {int(bad.index[0]) + 2}, column '{name}' holds {bad.iloc[0]!r}; expected a finite "
                f"number or an empty field. The samples or the measure are broken; run their rules again."
            )


def read_table(path: Path, columns: Sequence[str], finite: Sequence[str]) -> pd.DataFrame:
    """Reads ``columns`` of a CSV table; those in ``finite`` as numbers.

    Raises:
        UserError: the file is missing, lacks a column, or holds a value that is not finite.
    """
    frame = _read_csv(path, columns)
    _refuse_non_finite(frame, finite, path)
    for name in finite:
        frame[name] = pd.to_numeric(frame[name])
    return frame


def load_metrics(paths: Sequence[Path]) -> pd.DataFrame:
    """Joins the long tables of measures, in the given order.

    Returns:
        One row a measured value, columns ``METRICS_COLUMNS``.

    Raises:
        UserError: a file is missing, lacks a column, or holds a value that is not finite.
    """
    frames = []
    for path in paths:
        frame = _read_csv(path, METRICS_COLUMNS)
        _refuse_non_finite(frame, ("nfe", "value", "num_samples"), path)
        frames.append(frame)
    if not frames:
        raise UserError("The report was given no measures; run the rules that measure the samples first.")
    metrics = pd.concat(frames, ignore_index=True)
    for name in ("nfe", "value", "num_samples"):
        metrics[name] = pd.to_numeric(metrics[name])
    for name in ("nfe", "num_samples", "train_seed", "seed"):
        metrics[name] = metrics[name].astype("Int64")
    for name in ("protocol", "features", "reference", "library"):
        metrics[name] = metrics[name].astype(object).where(metrics[name].notna(), "")
    return metrics


def load_speed(path: Path) -> pd.DataFrame:
    """Reads the speed table, columns ``SPEED_COLUMNS``.

    Raises:
        UserError: as :func:`load_metrics`; or figures of several machines, which say nothing beside each other.
    """
    speed = _read_csv(path, SPEED_COLUMNS)
    machines = speed["device"].dropna().unique()
    if len(machines) > 1:
        raise UserError(
            f"{path}: speeds of several machines ({'; '.join(map(str, machines))}) cannot stand in one column. "
            f"Delete it and run Snakemake on one machine."
        )
    numbers = ("nfe", "batch_size", *SPEED_COLUMNS[7:])
    _refuse_non_finite(speed, numbers, path)
    for name in numbers:
        speed[name] = pd.to_numeric(speed[name])
    for name in ("nfe", "batch_size"):
        speed[name] = speed[name].astype("Int64")
    return speed


def load_trajectory(path: Path) -> pd.DataFrame:
    """Reads the errors of one student along the trajectory, columns ``TRAJECTORY_COLUMNS``.

    Raises:
        UserError: as :func:`load_metrics`.
    """
    return read_table(path, TRAJECTORY_COLUMNS, finite=("nfe", "t", "value"))


def trajectory_table(errors: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The errors of all variants in one long table, columns ``TRAJECTORY_TABLE_COLUMNS``."""
    frames = [frame.assign(variant=variant) for variant, frame in errors.items()]
    return pd.concat(frames) if frames else pd.DataFrame(columns=list(TRAJECTORY_TABLE_COLUMNS))


@dataclass(frozen=True)
class CostFile:
    """A ``cost.json`` with the identity of what it trained."""

    path: Path
    method: str
    variant: str


def load_costs(experiment: str, files: Sequence[CostFile]) -> pd.DataFrame:
    """Reads the costs of training.

    A file lists one or more students. Where a variant keeps several, each row's variant is written
    ``<variant>@nfe-<n>``. Several training seeds of one variant are averaged.

    Returns:
        Columns ``COST_COLUMNS`` and then ``nfe`` and ``base_variant``, which ``cost.csv`` does not carry.

    Raises:
        UserError: a file is missing, is not JSON or lacks a key.
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        content = read_json(file.path)
        try:
            students = content["students"]
            for student in students:
                name = file.variant if len(students) == 1 else f"{file.variant}@nfe-{int(student['nfe'])}"
                rows.append(
                    {
                        "experiment": experiment,
                        "method": file.method,
                        "variant": name,
                        **{key: float(student[key]) for key in _COSTS},
                        **{key: float(student.get(key, default)) for key, default in _FURTHER_COSTS.items()},
                        "nfe": int(student["nfe"]) if student.get("nfe") is not None else None,
                        "base_variant": file.variant,
                    }
                )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file.path}: expected 'students', a list with {list(_COSTS)} and 'nfe' in each; "
                f"{error!r}. Delete the folder and run Snakemake again."
            ) from error
    cost = pd.DataFrame(rows, columns=[*COST_COLUMNS, "nfe", "base_variant"])
    cost["nfe"] = cost["nfe"].astype("Int64")
    keys = ["experiment", "method", "variant", "nfe", "base_variant"]
    cost = cost.groupby(keys, sort=False, dropna=False, as_index=False).mean()
    for name in ("steps", "network_evaluations", "real_images_seen", "parameters", "offline_bytes"):
        cost[name] = cost[name].round().astype("int64")
    return cost[[*COST_COLUMNS, "nfe", "base_variant"]]


def load_benchmarks(paths: Sequence[Path]) -> pd.DataFrame:
    """Sums Snakemake's benchmark files by rule; the rule is the folder below ``benchmarks``.

    Returns:
        Columns rule, jobs, total_s, longest_s, cpu_s, peak_memory_mb; the longest rule first.
    """
    rows = []
    for path in paths:
        parts = path.parts
        rule = parts[len(parts) - parts[::-1].index("benchmarks")] if "benchmarks" in parts else path.parent.name
        rule = rule.removesuffix(".tsv")
        try:
            frame = pd.read_csv(path, sep="\t")
        except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise UserError(f"{path}: is not a Snakemake benchmark file ({error}).") from error
        # Snakemake writes NA or - where a job ended before its first reading.
        numbers = {
            name: pd.to_numeric(frame[name], errors="coerce") if name in frame else pd.Series(dtype=float)
            for name in ("s", "cpu_time", "max_rss")
        }
        rows.append((rule, numbers["s"].sum(), numbers["cpu_time"].sum(min_count=1), numbers["max_rss"].max()))
    frame = pd.DataFrame(rows, columns=["rule", "s", "cpu", "rss"])
    grouped = frame.groupby("rule", sort=False)
    table = pd.DataFrame(
        {
            "jobs": grouped["s"].count(),
            "total_s": grouped["s"].sum(),
            "longest_s": grouped["s"].max(),
            "cpu_s": grouped["cpu"].sum(min_count=1),
            "peak_memory_mb": grouped["rss"].max(),
        }
    ).reset_index()
    return table.sort_values("total_s", ascending=False, ignore_index=True)


def load_published(path: Path = Path(__file__).parent / "published.yaml") -> dict[str, Any]:
    """Reads the published figures.

    Raises:
        UserError: an entry lacks its source, its certainty or its data set, or names an unknown one.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = [(block, number, entry) for block in ("entries", "costs") for number, entry in enumerate(content[block])]
    for block, number, entry in rows:
        for key, allowed in (
            ("source", content["sources"]),
            ("dataset", content["datasets"]),
            ("certainty", CERTAINTIES),
        ):
            if entry.get(key) not in allowed:
                raise UserError(
                    f"{path}: {block}[{number}].{key} is {entry.get(key)!r}; expected one of {sorted(allowed)}."
                )
    return dict(content)


def without_rank(dimensions: int | None, count: int | None) -> bool:
    """Whether so many feature vectors span less than their dimensions about their mean; False where not known."""
    return dimensions is not None and count is not None and count <= dimensions


def rank_mark(dimensions: int | None, *counts: int | None) -> str:
    """What stands beside a distance between covariances of so many feature vectors of which one has not full rank."""
    return RANK_MARK if any(without_rank(dimensions, count) for count in counts) else ""


# --- what the tables are made from -------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Everything measured, with the look-ups that tables, figures and sentences share.

    Args:
        metrics: as :func:`load_metrics` returns it.
        speed: as :func:`load_speed` returns it.
        cost: as :func:`load_costs` returns it.
        benchmarks: as :func:`load_benchmarks` returns it.
        dataset: name of the data set, compared with the names in ``published.yaml``.
        labels: what to call each variant, in the order of the rows.
        teacher: variant and evaluations of the reference run of the teacher, e.g. ("ddim", 50).
        untrained: variants that run the teacher itself, so that nothing was trained for them.
        dimensions: of the features; None where they are not known.
        reference_count: images of the reference; None where they are not known.
    """

    metrics: pd.DataFrame
    speed: pd.DataFrame
    cost: pd.DataFrame
    benchmarks: pd.DataFrame
    dataset: str
    labels: Mapping[str, str]
    teacher: tuple[str, int]
    untrained: frozenset[str] = frozenset()
    dimensions: int | None = None
    reference_count: int | None = None
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
        return difference_of(first, second, trained, RESOLUTION.get(metric, lambda _count: 0.0)(count))

    def verdict(self, metric: str, a: Method, b: Method) -> Verdict | None:
        """Whether row a is better than row b by one measure; None where they cannot be compared."""
        found = self.difference(metric, a, b)
        return None if found is None else found.verdict(LOWER_IS_BETTER[metric])

    def without_rank(self, count: int | None) -> bool:
        """Whether the covariance of so many feature vectors has less than full rank."""
        return without_rank(self.dimensions, count)

    def rank_mark(self, metric: str, count: int | None) -> str:
        """What stands beside a figure of so many samples whose covariance, or the reference's, has not full rank."""
        return rank_mark(self.dimensions, count, self.reference_count) if metric in _OF_COVARIANCES else ""

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


# --- cells -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A value with, where it has one, its spread; ``best`` sets it bold and ``mark`` follows it (†, *)."""

    value: float | str | None = None
    sd: float | None = None
    n: int | None = None
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column; ``kind`` is text, number, count, duration or factor. ``spread`` columns carry sd and n in CSV."""

    key: str
    title: str
    kind: str = "text"
    spread: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any of the formats. ``aside`` holds the numbers of rows set apart."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    aside: frozenset[int] = frozenset()


def format_value(value: float | str | None, kind: str = "number", sd: float | None = None) -> str:
    """A value with sensible digits: the spread decides where there is one, otherwise three significant digits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, str):
        return value
    if kind == "duration":
        return _format_duration(value)
    if kind == "count":
        return _format_count(value)
    if kind == "factor":
        return f"{_significant(value)}×"
    if sd is not None and sd > 0 and math.isfinite(sd):
        digits = -math.floor(math.log10(sd))
        # Two digits where the first is a 1: 0.1 might stand for anything between 0.095 and 0.15.
        digits += round(sd * 10.0**digits, 6) < 2
        if digits > 6:
            return f"{value:.2e} ± {sd:.0e}"
        return f"{value:,.{max(digits, 0)}f} ± {sd:,.{max(digits, 0)}f}"
    text = _significant(value)
    return f"{text} ± 0" if sd == 0 else text


def printed_precision(value: float) -> float:
    """Half a unit of the last of the three digits that a value without spread is printed with."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) - 2)


def _significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def _format_count(value: float) -> str:
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return _significant(value / (1e3 if suffix == " k" else size)) + suffix
    return f"{value:,.0f}"


def _format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{_significant(seconds)} s" if seconds < 9.995 else f"{seconds:.0f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def cell_text(cell: Cell, column: Column) -> str:
    """A cell as plain text."""
    text = format_value(cell.value, column.kind, cell.sd)
    return text + cell.mark if text != MISSING else text


# --- formats -----------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for plain, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, escaped)
    for character in "|*_`[]#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


_TEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$"},
    **{"†": r"$\dagger$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "−": "$-$", "²": "$^2$", "§": r"\S{}"},
    **{"√": r"$\sqrt{\ }$", "≤": r"$\leq$", "≥": r"$\geq$", "‡": r"$\ddagger$", "…": r"\dots{}"},
}


def escape_tex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_TEX.get(character, character) for character in text)


def to_csv(table: Table) -> str:
    """The table with unrounded numbers; a spread becomes three columns: mean, ``_sd`` and ``_n``."""
    header: list[str] = []
    for column in table.columns:
        header += [column.key, f"{column.key}_sd", f"{column.key}_n"] if column.spread else [column.key]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        fields: list[object] = []
        for cell, column in zip(row, table.columns, strict=True):
            fields += [cell.value, cell.sd, cell.n] if column.spread else [cell.value]
        writer.writerow(["" if value is None else _plain(value) for value in fields])
    return out.getvalue()


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def to_markdown(table: Table) -> str:
    """The table as GitHub shows it, under its title and over its caption."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines.append(line(escape_markdown(column.title) for column in table.columns))
    lines.append(line("---" if column.kind == "text" else "---:" for column in table.columns))
    for row in table.rows:
        texts = []
        for cell, column in zip(row, table.columns, strict=True):
            text = escape_markdown(cell_text(cell, column))
            texts.append(f"**{text}**" if cell.best else text)
        lines.append(line(texts))
    lines += ["", escape_markdown(table.caption)]
    lines += [f"\n{escape_markdown(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def to_tex(table: Table) -> str:
    """The table as a LaTeX float with booktabs rules."""
    spec = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    caption = " ".join([f"{table.title}.", table.caption, *table.notes])
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_tex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        " & ".join(escape_tex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.aside and number - 1 not in table.aside and number > 0:
            lines.append(r"\midrule")
        texts = []
        for cell, column in zip(row, table.columns, strict=True):
            text = escape_tex(cell_text(cell, column))
            texts.append(rf"\textbf{{{text}}}" if cell.best else text)
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def write_table(table: Table, folder: Path) -> None:
    """Writes ``<name>.csv``, ``.md`` and ``.tex`` into an existing folder."""
    for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_tex(table))):
        (folder / f"{table.name}.{suffix}").write_text(text, encoding="utf-8")


# --- the tables --------------------------------------------------------------------------------------------


def measured_cell(
    results: Results, metric: str, row: Method, count: int | None = None, best: bool = False, mark: str = ""
) -> Cell:
    """One measure of a row with its spread, marked where the covariance behind it has not full rank."""
    found = results.interval(metric, row, count)
    if found is None:
        return Cell()
    mark += results.rank_mark(metric, results.count_of(metric, row) if count is None else count)
    return Cell(found.mean, found.sd, found.n, best, mark)


def metric_columns(results: Results, keys: Sequence[str]) -> list[Column]:
    """Columns of measures with their spread, titled with the extractor's name and the better direction."""
    titles = {
        "frechet_distance": f"{results.frechet_name} ↓",
        "kid": "KID ↓",
        "precision": "Precision ↑",
        "recall": "Recall ↑",
        "mse_to_teacher": "MSE to teacher ↓",
        "label_accuracy": "Label accuracy ↑",
        "kid_subset_sd": "KID: deviation between subsets",
        "density": "Density ↑",
        "coverage": "Coverage ↑",
        "classifier_score": f"{results.score_name} ↑",
        "frechet_distance_extrapolated": f"{results.frechet_name}, all samples and N → ∞ ↓",
        "leak_share": "Nearer to training than 99 % of held-out",
        "frechet_distance_to_teacher": f"{results.frechet_name} to the teacher's samples ↓",
    }
    return [Column(key, titles[key], "number", spread=True) for key in keys]


def _seeds_sentence(results: Results, keys: Sequence[str]) -> str:
    parts: dict[str, list[str]] = {}
    titles = dict(zip(keys, (c.title.rstrip(" ↓↑") for c in metric_columns(results, keys)), strict=True))
    for key in keys:
        counts = {found.n for row in results.rows if (found := results.interval(key, row)) is not None}
        if counts:
            text = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
            parts.setdefault(text, []).append(titles[key])
    runs = "; ".join(f"n = {n}: {', '.join(names)}" for n, names in parts.items())
    # Counted within a variant: samplers of the teacher carry the teacher's seed, which says nothing of the others.
    several = results.metrics.groupby("variant")["train_seed"].nunique().max() > 1
    over = (
        "training seeds, each at its mean over sampling seeds, or of rows with one training over n sampling seeds"
        if several
        else "sampling seeds of one training run"
    )
    return (
        f"Mean ± standard deviation over n {over} ({runs}); a figure without ± was taken once. "
        + ("" if several else "The spread does not contain what another training run would change. ")
    ).strip()


def _supported_winners(results: Results, metric: str) -> set[Method]:
    """For every number of evaluations the row, if any, whose difference to every other the intervals support."""
    # What a user brought may come from another teacher: it is shown, but not ranked. Samples of another number cannot
    # be ranked either.
    ranked = [
        row
        for row in results.rows
        if row.method != "external"
        and row.nfe is not None
        and results.count(row) == results.full_count
        and results.values(metric, row) is not None
    ]

    def wins(row: Method, rivals: Sequence[Method]) -> bool:
        return bool(rivals) and all(results.verdict(metric, row, other) == "better" for other in rivals)

    return {row for row in ranked if wins(row, [r for r in ranked if r.nfe == row.nfe and r != row])}


FLOOR = "Real pictures held out (floor)"


def teacher_row(results: Results, columns: Sequence[Column]) -> list[list[Cell]]:
    """The row of the teacher's reference run for a table of students with these columns; none where it is not measured.

    The column "method", or the first, gets the name. What training costs stays empty: the teacher's is no student's.
    """
    row = results.teacher_row
    if row is None:
        return []
    known: dict[str, Any] = {"nfe": row.nfe, "images_per_second": results.speed_of(row, "images_per_second")}
    known["method" if any(column.key == "method" for column in columns) else columns[0].key] = (
        f"Teacher ({results.label(row)})"
    )
    cells = []
    for column in columns:
        cell = measured_cell(results, column.key, row)
        cells.append(Cell(known.get(column.key)) if cell.value is None else cell)
    return [cells]


def floor_row(results: Results, columns: Sequence[Column]) -> list[list[Cell]]:
    """The row of the held-out real pictures for a table with these columns; none where they were not measured.

    The first column gets the name; ‡ says that their count is another than the methods'. What was taken of another
    number of them than the rest of the row, as a classifier's accuracy may be, says of how many.
    """
    if not results.real:
        return []
    count = results.floor_count
    mark = "" if count == results.full_count else COUNT_MARK
    counted = any(column.key == "num_samples" for column in columns)
    cells = [Cell(FLOOR)]
    for column in columns[1:]:
        if column.key == "num_samples":
            cells.append(Cell(count, mark=mark))
            continue
        at = count if results.values(column.key, results.real, count) is not None else None
        own = results.count_of(column.key, results.real) if at is None else at
        beside = "" if own == count or own is None else f" (of {own:,})"
        cells.append(measured_cell(results, column.key, results.real, at, mark=beside + ("" if counted else mark)))
    return [cells]


def between_references(
    results: Results, columns: Sequence[Column], rows: Sequence[list[Cell]], first: int = 0
) -> tuple[list[list[Cell]], frozenset[int]]:
    """Rows of students between the teacher's and the floor's; nothing of nothing.

    Args:
        first: how many of the rows, from the first, are set apart too.

    Returns:
        All rows, and the numbers of those set apart (``Table.aside``).
    """
    if not rows:
        return [], frozenset()
    teacher, floor = teacher_row(results, columns), floor_row(results, columns)
    last = len(teacher) + len(rows)
    return [*teacher, *rows, *floor], frozenset([*range(len(teacher) + first), *range(last, last + len(floor))])


def main_table(results: Results) -> Table:
    """The main table, in the form of Table 1 of the BOOT paper."""
    # Only class-conditional samples have labels.
    keys = [key for key in LOWER_IS_BETTER if key != "label_accuracy" or results.has("label_accuracy")]
    best = {key: _supported_winners(results, key) for key in keys}
    columns = [
        Column("method", "Method"),
        Column("nfe", "Evaluations", "count"),
        Column("num_samples", "Samples", "count"),
        *metric_columns(results, keys),
        Column("images_per_second", "Images/s ↑", "number"),
        Column("speedup_over_teacher", "Speed-up", "factor"),
        Column("network_evaluations", "Training: network evaluations", "count"),
        Column("wall_clock_s", "Training: wall-clock", "duration"),
        Column("real_images_seen", "Training: real images", "count"),
        Column("data_free", "Data-free"),
    ]
    rows = []
    for row in results.rows:
        cells = [Cell(results.label(row)), Cell(row.nfe)]
        count = results.count(row)
        cells.append(Cell(count, mark="" if count == results.full_count else COUNT_MARK))
        cells += [measured_cell(results, key, row, best=row in best[key]) for key in keys]
        cells += [Cell(results.speed_of(row, "images_per_second")), Cell(results.speedup(row))]
        cells += [Cell(results.cost_of(row, c)) for c in ("network_evaluations", "wall_clock_s", "real_images_seen")]
        seen = results.cost_of(row, "real_images_seen")
        if row.variant in results.untrained:
            free: str | None = "no training"
        else:
            free = None if seen is None else ("yes" if seen == 0 else "no")
        rows.append([*cells, Cell(free)])
    floor = floor_row(results, columns)
    teacher = f"{results.labels.get(results.teacher[0], results.teacher[0])} with {results.teacher[1]} evaluations"
    device = _devices(results.speed)
    notes = [
        f"Reference: the training pictures. Distances to the teacher: against {teacher}, from the same noise. {device} "
        f"Speed-up: these images per second over those of {teacher}. Training cost is what the student cost beyond the "
        "teacher's own training.",
        "Bold: better than every other method with the same number of evaluations by the 95 % intervals of the "
        f"differences, over {LEAST} training seeds or more of whatever was trained (and over sampling seeds, paired, "
        "where there are as many). No bold: they support no difference, or the seeds are too few. The teacher against "
        "itself is 0 by definition.",
    ]
    return Table(
        "main",
        "Quality, speed and training cost",
        f"{_seeds_sentence(results, keys)} Distances on the features '{results.features}'.",
        columns,
        [*rows, *floor],
        notes,
        frozenset({len(rows)} if floor else ()),
    )


def _devices(speed: pd.DataFrame, best: bool = True) -> str:
    if speed.empty:
        return ""
    sizes = ", ".join(str(size) for size in sorted(speed["batch_size"].unique()))
    devices = ", ".join(sorted({f"{d} ({t})" for d, t in zip(speed["device"], speed["dtype"], strict=True)}))
    return (
        f"Images per second at the row's best of the batch sizes {sizes}, on {devices}." if best else f"On {devices}."
    )


def floor_table(results: Results) -> Table:
    """Every method at the count of the held-out real pictures, beside those pictures themselves."""
    keys = ["frechet_distance", "kid", "precision", "recall"]
    count = results.floor_count
    floor = results.interval("frechet_distance", results.real, count) if results.real else None
    columns = [
        Column("method", "Method"),
        Column("nfe", "Evaluations", "count"),
        *metric_columns(results, keys),
        Column("over_floor", f"{results.frechet_name} ÷ floor", "factor"),
    ]
    rows = []
    if results.real and count is not None:
        cells = [measured_cell(results, key, results.real, count) for key in keys]
        rows.append([Cell(FLOOR), Cell(), *cells, Cell(1.0 if floor else None)])
    if count is not None:
        for row in results.rows:
            own = results.interval("frechet_distance", row, count)
            cells = [measured_cell(results, key, row, count) for key in keys]
            ratio = own.mean / floor.mean if own and floor and floor.mean > 0 else None
            rows.append([Cell(results.label(row)), Cell(row.nfe), *cells, Cell(ratio)])
    table = Table(
        "floor",
        f"At equal counts: {MISSING if count is None else count} samples each",
        "The first row measures real pictures that the teacher never saw against its training pictures. A good "
        "sampler comes near it; one that falls below it stays closer to the training pictures than new real "
        "pictures do, which is a sign of repeating them. Every method is measured at the same number of samples, "
        "because a Fréchet distance grows as samples get fewer. Mean ± standard deviation over the seeds.",
        columns,
        rows,
        aside=frozenset({0}) if results.real else frozenset(),
    )
    return without_empty_columns(table, keep=("frechet_distance",))


def measures_table(results: Results) -> Table:
    """The measures that the main table has no room for, at the count of the held-out real pictures."""
    keys = [
        *("frechet_distance", "kid", "kid_subset_sd", "density", "coverage", "classifier_score"),
        *("leak_share", "frechet_distance_extrapolated", "frechet_distance_to_teacher"),
    ]
    count = results.floor_count
    columns = [Column("method", "Method"), Column("nfe", "Evaluations", "count"), *metric_columns(results, keys)]
    first = [results.real] if results.real else []
    rows = []
    for row in [*first, *results.rows] if count is not None else []:
        name = FLOOR if row in first else results.label(row)
        at = {
            key: None if key in ("frechet_distance_extrapolated", "frechet_distance_to_teacher") else count
            for key in keys
        }
        rows.append([Cell(name), Cell(row.nfe), *(measured_cell(results, key, row, at[key]) for key in keys)])
    notes = [
        "KID is an average over random subsets of the pictures; the deviation between them stands beside it. Density "
        "is 1 for equal distributions, and may exceed 1. The last share is 0.01 for new pictures; much more says that "
        "the training pictures are repeated. The last column, if there is one, is taken from all samples, against the "
        "teacher's samples of the other sampling seeds, so that the teacher's own row is its floor.",
    ]
    if not results.has("frechet_distance_extrapolated"):
        notes.append(
            "No Fréchet distance is extrapolated to infinitely many samples: that needs five samples a dimension of "
            "the features, which are not there."
        )
    table = Table(
        "measures",
        f"Further measures: {MISSING if count is None else count} samples each",
        "Every row has as many pictures as the held-out real ones in the first, against the same training pictures. "
        "Mean ± standard deviation over the seeds.",
        columns,
        rows,
        notes,
        frozenset({0}) if first else frozenset(),
    )
    return without_empty_columns(table, keep=("frechet_distance",))


def without_empty_columns(table: Table, keep: Sequence[str] = ()) -> Table:
    """The table without columns in which no row has a value."""
    used = [
        number
        for number, column in enumerate(table.columns)
        if column.key in keep or column.kind == "text" or any(row[number].value is not None for row in table.rows)
    ]
    return Table(
        table.name,
        table.title,
        table.caption,
        [table.columns[number] for number in used],
        [[row[number] for number in used] for row in table.rows],
        table.notes,
        table.aside,
    )


def with_marks_explained(table: Table) -> Table:
    """The table with a note on every mark that its caption and notes leave unexplained."""
    texts = " ".join([table.caption, *table.notes])
    marks = "".join(cell.mark for row in table.rows for cell in row) + "".join(c.title for c in table.columns)
    notes = [note for mark, note in MARKS.items() if mark in marks and mark.strip() not in texts]
    return replace(table, notes=[*table.notes, *notes])


def published_table(results: Results, published: Mapping[str, Any]) -> Table:
    """Published figures with source and certainty, and the reproduced ones where the data set is the same."""
    same_data = results.dataset in published["datasets"]
    columns = [
        Column("dataset", "Data set"),
        Column("method", "Method"),
        Column("nfe", "Evaluations", "count"),
        Column("fid", "FID ↓", "number"),
        Column("precision", "Precision ↑", "number"),
        Column("recall", "Recall ↑", "number"),
        Column("images_per_second", "Images/s (A100) ↑", "number"),
        *([Column("reproduced", f"Reproduced: {results.frechet_name} ↓", "number", spread=True)] if same_data else []),
        Column("source", "Source"),
        Column("certainty", "Certainty"),
    ]
    used = {entry["source"] for entry in published["entries"]}
    cited = [source for name, source in published["sources"].items() if name in used]
    rows = []
    datasets = list(published["datasets"])
    # The data set of this experiment first.
    datasets.sort(key=lambda name: name != results.dataset)
    for dataset in datasets:
        for entry in (e for e in published["entries"] if e["dataset"] == dataset):
            mark = " †" if entry["certainty"] == "unchecked" else ""
            remark = f" ({entry['remark']})" if "remark" in entry else ""
            cells = [Cell(published["datasets"][dataset]), Cell(entry["label"] + remark), Cell(entry["nfe"])]
            cells += [Cell(entry.get(key), mark=mark) for key in ("fid", "precision", "recall", "images_per_second")]
            if same_data:
                row = next((r for r in results.rows if (r.method, r.nfe) == (entry["method"], entry["nfe"])), None)
                comparable = dataset == results.dataset and results.features == "inception" and row is not None
                cells.append(measured_cell(results, "frechet_distance", row) if comparable and row else Cell())
            cells += [Cell(published["sources"][entry["source"]]["short"]), Cell(entry["certainty"])]
            rows.append(cells)
    if same_data and results.features == "inception":
        reproduced = "The reproduced column is this experiment on the same data set; the networks may differ."
    elif same_data:
        reproduced = (
            f"This experiment has the same data set as some rows, but measures on the features "
            f"'{results.features}': the reproduced column stays empty, since the two cannot be compared."
        )
    else:
        reproduced = (
            f"This experiment runs on '{results.dataset}', for which nothing is listed here, and on the features "
            f"'{results.features}'; its figures cannot be compared with these columns and are not set beside "
            f"them. What can be compared are ratios, in the next table."
        )
    return Table(
        "published",
        "Published figures",
        reproduced,
        columns,
        rows,
        [
            "Certainty: 'reported' is a figure of the named paper; 'quoted' is what a later paper quotes; "
            "'unchecked' (†) has still to be checked against its source.",
            "Sources: " + "; ".join(f"{s['short']}: {s['full']}" for s in cited) + ".",
        ],
    )


def ratio_table(results: Results, published: Mapping[str, Any]) -> Table:
    """The paper's claims as ratios, which can be compared across data sets more safely than the figures."""
    entries = {(e["dataset"], e["method"], e["nfe"]): e for e in published["entries"]}
    boots = results.boot_rows
    columns = [
        Column("quantity", "Of"),
        Column("ratio", "Ratio"),
        *[Column(name, f"{title}, published", "number") for name, title in published["datasets"].items()],
        *[Column(f"here_{row.variant}", f"{results.label(row)}, here", "number") for row in boots],
    ]

    def of_published(dataset: str, key: str, method: str, nfe: int) -> Cell:
        top = entries.get((dataset, "boot", 1), {})
        bottom = entries.get((dataset, method, nfe), {})
        if key not in top or key not in bottom:
            return Cell()
        unchecked = "unchecked" in (top["certainty"], bottom["certainty"])
        return Cell(float(top[key]) / float(bottom[key]), mark=" †" if unchecked else "")

    def figure(key: str, row: Method) -> float | None:
        if key == "images_per_second":
            return results.speed_of(row, key)
        found = results.interval("frechet_distance", row)
        return found.mean if found else None

    def here(key: str, boot: Method, method: str, nfe: int) -> Cell:
        rows = results.ladder if method == "ddim" else [r for r in results.rows if r.method == method]
        value = figure(key, boot)
        known = {r.nfe: f for r in rows if r.nfe is not None and (f := figure(key, r)) is not None and f > 0}
        if value is None or not known:
            return Cell()
        if nfe in known:
            return Cell(value / known[nfe])
        near = [
            max((n for n in known if n < nfe), default=None),
            min((n for n in known if n > nfe), default=None),
        ]
        parts = [f"{format_value(value / known[n])} (against {n})" for n in near if n is not None]
        return Cell("; ".join(parts))

    rows = []
    comparisons = [
        ("fid", "Fréchet distance", "ddim", 50, "DDIM with 50"),
        ("fid", "Fréchet distance", "ddim", 10, "DDIM with 10"),
        ("fid", "Fréchet distance", "ddim", 1, "DDIM with 1"),
        ("fid", "Fréchet distance", "progressive_distillation", 1, "progressive distillation with 1"),
        ("images_per_second", "Images per second", "ddim", 50, "DDIM with 50"),
        ("images_per_second", "Images per second", "ddim", 10, "DDIM with 10"),
        ("images_per_second", "Images per second", "ddim", 1, "DDIM with 1"),
    ]
    for key, quantity, method, nfe, text in comparisons:
        cells = [of_published(dataset, key, method, nfe) for dataset in published["datasets"]]
        cells += [here(key, boot, method, nfe) for boot in boots]
        rows.append([Cell(quantity), Cell(f"BOOT with 1 ÷ {text}"), *cells])
    table = Table(
        "ratios",
        "The paper's claims as ratios",
        "One-evaluation BOOT divided by the other method. For the Fréchet distance a smaller ratio is better, for "
        "images per second a larger one. Even ratios of Fréchet distances depend on the features and the data: "
        "read them as orders of magnitude.",
        columns,
        rows,
        ["† At least one of the two figures has still to be checked against its source."],
    )
    return without_empty_columns(table, keep=[f"here_{row.variant}" for row in boots])


def cost_table(results: Results) -> Table:
    """What each network cost to train."""
    columns = [
        Column("network", "Network"),
        Column("steps", "Optimiser steps", "count"),
        Column("network_evaluations", "Network evaluations", "count"),
        Column("real_images_seen", "Real images seen", "count"),
        Column("wall_clock_s", "Wall-clock", "duration"),
        Column("cpu_s", "CPU time", "duration"),
        Column("gpu_s", "GPU time", "duration"),
        Column("parameters", "Parameters", "count"),
        Column("offline_bytes", "Offline set (bytes)", "count"),
    ]
    # A column of zeros alone says nothing: no GPU, or no set.
    columns = [c for c in columns if c.key not in _FURTHER_COSTS or bool((results.cost[c.key] > 0).any())]
    rows = []
    for _, item in results.cost.iterrows():
        label = results.labels.get(item["base_variant"], item["base_variant"])
        several = item["variant"] != item["base_variant"]
        name = Cell(label + (f", student with {item['nfe']}" if several else ""))
        rows.append([name, *(Cell(None if pd.isna(item[c.key]) else float(item[c.key])) for c in columns[1:])])
    return Table(
        "training_cost",
        "What training cost",
        "Network evaluations and real images are counted in images (a batch of 128 counts 128 times). All numbers "
        "accumulate over everything that had to be trained before a student, and over interruptions. Training jobs may "
        "have shared the machine: read wall-clock as an upper bound. CPU time: seconds of all threads of the training "
        "process (of several, the first). GPU time: wall-clock times the GPUs that the training held, busy or idle. "
        "The teacher's own training is not part of a student's figures.",
        columns,
        rows,
    )


def speed_table(results: Results) -> Table:
    """Latency and throughput of every row at every batch size."""
    columns = [
        Column("method", "Method"),
        Column("nfe", "Evaluations", "count"),
        Column("batch_size", "Batch", "count"),
        Column("latency_ms_median", "Latency, ms ↓", "number"),
        Column("median_precision", "Its precision, ± %", "number"),
        Column("latency_ms_p95", "95th percentile, ms", "number"),
        Column("images_per_second", "Images/s ↑", "number"),
        Column("speedup", "Speed-up", "factor"),
        Column("network_share", "In the network, %", "number"),
        Column("peak_memory_mb", "Peak memory, MB", "number"),
        Column("energy_j_per_image", "Energy, J a picture ↓", "number"),
        Column("rounds", "Rounds", "count"),
    ]
    percent = ("median_precision", "network_share")
    speed = results.speed
    teacher = speed[(speed["variant"].astype(str) == results.teacher[0]) & (speed["nfe"] == results.teacher[1])]
    speed = speed.assign(
        speedup=speed["images_per_second"]
        / speed["batch_size"].map(teacher.drop_duplicates("batch_size").set_index("batch_size")["images_per_second"])
    )
    rows = []
    for row in results.rows:
        frame = speed[(speed["variant"].astype(str) == row.variant) & (speed["nfe"] == row.nfe)]
        for _, item in frame.sort_values("batch_size").iterrows() if row.nfe is not None else ():
            cells = [Cell(results.label(row)), Cell(row.nfe)]
            for column in columns[2:]:
                value = None if pd.isna(item[column.key]) else float(item[column.key])
                cells.append(Cell(100 * value if value is not None and column.key in percent else value))
            rows.append(cells)
    table = Table(
        "sampling_speed",
        "Speed of sampling",
        f"{_devices(results.speed, best=False)} Median of calls that took turns in a random order, with half of its "
        "95 % interval; rounds went on until every median was precise enough, or the time was up. Speed-up: images "
        "per second over those of the teacher's reference run at the same batch size. The network's share, memory and "
        "energy are of calls of their own.",
        columns,
        rows,
    )
    return without_empty_columns(table)


def wall_clock_table(results: Results) -> Table:
    """Where the time went, by rule of the workflow."""
    rows = []
    for _, item in results.benchmarks.iterrows():
        cells = [Cell(float(value)) if pd.notna(value) else Cell() for value in item.iloc[1:]]
        rows.append([Cell(str(item["rule"])), *cells])
    aside: frozenset[int] = frozenset()
    if rows:
        aside = frozenset({len(rows)})
        total = results.benchmarks[["jobs", "total_s"]].sum()
        rows.append([Cell("all"), Cell(float(total["jobs"])), Cell(float(total["total_s"])), *[Cell()] * 3])
    return Table(
        "wall_clock",
        "Where the time goes",
        "Seconds of each rule's jobs, added up, from Snakemake's benchmark files. Jobs run side by side where cores "
        "allow, so the sum may exceed the time of the run. The report itself is not in it.",
        [
            Column("rule", "Rule"),
            Column("jobs", "Jobs", "count"),
            Column("total_s", "Wall-clock", "duration"),
            Column("longest_s", "Longest job", "duration"),
            Column("cpu_s", "CPU time", "duration"),
            Column("peak_memory_mb", "Peak memory (MB)", "count"),
        ],
        rows,
        aside=aside,
    )
