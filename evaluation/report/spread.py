"""How sure the figures are: the tables of spread and of differences."""

from collections.abc import Collection

from evaluation.columns import COUNT_MARK
from evaluation.measure.metrics import METRICS
from evaluation.report.format import MISSING, Cell, Column, Table, cells
from evaluation.report.tables import METHOD, NFE, SAMPLES, floor_row, metric_columns
from evaluation.results.intervals import LEAST, Interval, over_sampling_seeds, over_training_seeds
from evaluation.results.results import Results

_KEYS = ("frechet_distance", "kid", "mse_to_teacher")
NOT_SUPPORTED = "≈ not told apart"


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Lower and upper end, by the keys of their columns."""
    return {f"{name}_low": interval.low, f"{name}_high": interval.high} if interval else {}


def spread_table(results: Results) -> Table:
    """Mean, and interval over sampling seeds and over training seeds, of every row."""
    keys = [key for key in _KEYS if results.has(key)]
    columns = [METHOD, NFE, SAMPLES]
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
        mark = "" if count == results.full_count else COUNT_MARK
        told: dict[str, Cell | float | str | None] = {"method": results.label(row), "nfe": row.nfe}
        told["num_samples"] = Cell(count, mark=mark)
        for key in keys:
            values = results.values(key, row)
            if values is None:
                continue
            sampling, training = over_sampling_seeds(values), over_training_seeds(values)
            counts["sampling"].add(sampling.n)
            if training is not None and row.variant not in results.untrained:
                counts["training"].add(training.n)
            told[key] = Cell(sampling.mean, mark=results.rank_mark(key, results.count_of(key, row)))
            told |= _ends(f"{key}_sampling", sampling) | _ends(f"{key}_training", training)
        rows += cells(columns, told)
    floor = floor_row(results, columns)
    numbers = {
        name: " to ".join(str(n) for n in sorted({min(found), max(found)})) for name, found in counts.items() if found
    }
    return Table(
        "spread",
        "Two kinds of spread, kept apart",
        "95 % intervals of the mean (Student's t). Over sampling seeds: of these very students, other noise. Over "
        "training seeds: of another training run of the same method on the same teacher. "
        + "; ".join(f"{name} seeds: {count}" for name, count in numbers.items())
        + f". Of fewer than {LEAST} seeds there is no interval. ‡: another number of samples, not to be compared.",
        columns,
        [*rows, *floor],
        aside=frozenset({len(rows)} if floor else ()),
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
        *(Column("a", "Row"), Column("b", "minus row"), Column("metric", "Measure")),
        Column("difference", "Difference", "number"),
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
                found = results.difference(key, a, b)
                if found is None:
                    continue
                verdict = found.verdict(METRICS[key].better == "lower")
                row = {
                    **{"a": results.long_label(a), "b": results.long_label(b), "metric": titles[key]},
                    "difference": Cell(found.sampling.mean, mark=results.rank_mark(key, results.count_of(key, a))),
                    **_ends("sampling", found.sampling),
                    **_ends("training", found.training),
                    "verdict": {"level": NOT_SUPPORTED, "none": MISSING}.get(verdict, verdict),
                }
                rows += cells(columns, row)
    return Table(
        "differences",
        "BOOT against the others, with intervals",
        "Differences of the means, with 95 % intervals: over sampling seeds seed by seed, because both rows start from "
        "the same noise; over training seeds (Welch's, or Student's where one side was not trained). Both take "
        f"{LEAST} seeds. A difference is better or worse only if the interval over training seeds leaves out zero, and "
        f"that over sampling seeds too where there is one; '{NOT_SUPPORTED}' if not; '{MISSING}': too few training "
        "seeds for a verdict. Every row is a comparison of its own: of twenty level ones, one is expected to be marked "
        "better or worse by chance. Bold in the main table and the sentences about BOOT follow the same rule.",
        columns,
        rows,
    )
