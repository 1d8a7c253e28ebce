"""The report's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from evaluation.columns import COUNT_MARK, FURTHER_COSTS, LOWER_IS_BETTER, MARKS
from evaluation.report.format import MISSING, Cell, Column, Table, format_value
from evaluation.results.intervals import (
    LEAST,
)
from evaluation.results.results import Results
from evaluation.results.stored import Method

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
    columns = [c for c in columns if c.key not in FURTHER_COSTS or bool((results.cost[c.key] > 0).any())]
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
