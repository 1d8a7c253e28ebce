"""The report's tables."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from evaluation.columns import COUNT_MARK, FURTHER_COSTS, MARKS
from evaluation.measure.metrics import METRICS, RANKED
from evaluation.report.format import MISSING, Cell, Column, Table, cells, format_value
from evaluation.results.intervals import LEAST
from evaluation.results.results import Results
from evaluation.results.stored import Method

METHOD, NFE = Column("method", "Method"), Column("nfe", "Evaluations", "count")
SAMPLES = Column("num_samples", "Samples", "count")
TRAINING = (
    Column("network_evaluations", "Training: network evaluations", "count"),
    Column("wall_clock_s", "Training: wall-clock", "duration"),
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


def measured(results: Results, keys: Sequence[str], row: Method, count: int | None = None) -> dict[str, Cell]:
    """Some measures of a row, as :func:`measured_cell` shows them."""
    return {key: measured_cell(results, key, row, count) for key in keys}


def metric_columns(results: Results, keys: Sequence[str]) -> list[Column]:
    """Columns of measures with their spread, titled with the extractor's name and the better direction."""
    names = {"frechet": results.frechet_name, "score": results.score_name}
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}
    titles = {key: METRICS[key].title.format(**names) + arrow[METRICS[key].better] for key in keys}
    return [Column(key, title, "number", spread=True) for key, title in titles.items()]


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

    return {row for row in ranked if results.wins(metric, row, [r for r in ranked if r.nfe == row.nfe and r != row])}


FLOOR = "Real pictures held out (floor)"


def known_of(results: Results, row: Method) -> dict[str, float | str | None]:
    """Name, evaluations, throughput and the cost of training of a row, by the keys of their columns."""
    costs = ("network_evaluations", "wall_clock_s", "real_images_seen", "offline_bytes")
    known: dict[str, float | str | None] = {"method": results.label(row), "nfe": row.nfe}
    known["images_per_second"] = results.speed_of(row, "images_per_second")
    return known | {key: results.cost_of(row, key) for key in costs}


def teacher_row(results: Results, columns: Sequence[Column]) -> list[list[Cell]]:
    """The row of the teacher's reference run for a table of students with these columns; none where it is not measured.

    The column "method", or the first, gets the name. What training costs stays empty: the teacher's is no student's.
    """
    row = results.teacher_row
    if row is None:
        return []
    known: dict[str, Any] = {"nfe": row.nfe, "images_per_second": results.speed_of(row, "images_per_second")}
    known[METHOD.key if METHOD in columns else columns[0].key] = f"Teacher ({results.label(row)})"
    return cells(columns, measured(results, [c.key for c in columns if c.spread], row) | known)


def floor_row(results: Results, columns: Sequence[Column]) -> list[list[Cell]]:
    """The row of the held-out real pictures for a table with these columns; none where they were not measured.

    The first column gets the name; ‡ says that their count is another than the methods'. What was taken of another
    number of them than the rest of the row, as a classifier's accuracy may be, says of how many.
    """
    if not results.real:
        return []
    count = results.floor_count
    mark = "" if count == results.full_count else COUNT_MARK
    counted = SAMPLES in columns
    row: dict[str, Cell] = {columns[0].key: Cell(FLOOR), SAMPLES.key: Cell(count, mark=mark)}
    for key in (column.key for column in columns[1:] if column.key in METRICS):
        at = count if results.values(key, results.real, count) is not None else None
        own = results.count_of(key, results.real) if at is None else at
        beside = "" if own == count or own is None else f" (of {own:,})"
        row[key] = measured_cell(results, key, results.real, at, mark=beside + ("" if counted else mark))
    return cells(columns, row)


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
    keys = [key for key in RANKED if results.has(key)]
    best = {key: _supported_winners(results, key) for key in keys}
    columns = [
        *(METHOD, NFE, SAMPLES),
        *metric_columns(results, keys),
        Column("images_per_second", "Images/s ↑", "number"),
        Column("speedup_over_teacher", "Speed-up", "factor"),
        *TRAINING,
        Column("real_images_seen", "Training: real images", "count"),
        Column("data_free", "Data-free"),
    ]
    rows = []
    for row in results.rows:
        count, seen = results.count(row), results.cost_of(row, "real_images_seen")
        free = None if seen is None else "yes" if seen == 0 else "no"
        rows += cells(
            columns,
            {
                **known_of(results, row),
                "num_samples": Cell(count, mark="" if count == results.full_count else COUNT_MARK),
                **{key: measured_cell(results, key, row, best=row in best[key]) for key in keys},
                "speedup_over_teacher": results.speedup(row),
                "data_free": "no training" if row.variant in results.untrained else free,
            },
        )
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


def at_floor(results: Results) -> list[Method]:
    """The rows of a table at the count of the held-out real pictures, these first; none where that is not known."""
    return [*([results.real] if results.real else []), *results.rows] if results.floor_count is not None else []


def floor_table(results: Results) -> Table:
    """Every method at the count of the held-out real pictures, beside those pictures themselves."""
    keys = ["frechet_distance", "kid", "precision", "recall"]
    count = results.floor_count
    floor = results.interval("frechet_distance", results.real, count) if results.real else None
    columns = [
        *(METHOD, NFE, *metric_columns(results, keys)),
        Column("over_floor", f"{results.frechet_name} ÷ floor", "factor"),
    ]
    rows = []
    for row in at_floor(results):
        own = results.interval("frechet_distance", row, count)
        ratio = own.mean / floor.mean if own and floor and floor.mean > 0 else None
        named = {"method": FLOOR if row == results.real else results.label(row), "nfe": row.nfe, "over_floor": ratio}
        rows += cells(columns, {**named, **measured(results, keys, row, count)})
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
    return table.without_empty_columns(keep=("frechet_distance",))


def measures_table(results: Results) -> Table:
    """The measures that the main table has no room for, at the count of the held-out real pictures."""
    keys = ["frechet_distance", "kid", *(key for key in METRICS if key not in RANKED)]
    count = results.floor_count
    columns = [METHOD, NFE, *metric_columns(results, keys)]
    rows = []
    for row in at_floor(results):
        named = {"method": FLOOR if row == results.real else results.label(row), "nfe": row.nfe}
        at = {key: None if METRICS[key].whole else count for key in keys}
        rows += cells(columns, named | {key: measured_cell(results, key, row, at[key]) for key in keys})
    notes = [
        "KID is an average over random subsets of the pictures; the deviation between them stands beside it. Density "
        "is 1 for equal distributions, and may exceed 1. The share nearer to training is 0.01 for new images; much "
        "more says that the training images are repeated. The distance to the teacher's samples, if there is one, "
        "is taken of all samples, against those of the other sampling seeds, so that the teacher's own row is its "
        "floor.",
    ]
    if results.has("caption_variance") or results.has("caption_diversity"):
        notes.append(
            "What concerns captions is taken of all samples. A method that answers a caption with one image has no "
            "variance and no diversity within it; read the teacher's beside it."
        )
    if results.has("caption_accuracy"):
        notes.append(
            "Of captions, the first row shows what the classifier itself gets wrong of real images, among new "
            "combinations too."
        )
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
        frozenset({0}) if results.real else frozenset(),
    )
    return table.without_empty_columns(keep=("frechet_distance",))


def with_marks_explained(table: Table) -> Table:
    """The table with a note on every mark that its caption and notes leave unexplained."""
    texts = " ".join([table.caption, *table.notes])
    marks = "".join(cell.mark for row in table.rows for cell in row) + "".join(c.title for c in table.columns)
    notes = [note for mark, note in MARKS.items() if mark in marks and mark.strip() not in texts]
    return replace(table, notes=[*table.notes, *notes])


def published_table(results: Results, published: Mapping[str, Any]) -> Table:
    """Published figures with source and certainty, and the reproduced ones where the data set is the same."""
    same_data = results.dataset in published["datasets"]
    figures = ("fid", "precision", "recall", "images_per_second")
    columns = [
        *(Column("dataset", "Data set"), METHOD, NFE, Column("fid", "FID ↓", "number")),
        *(Column("precision", "Precision ↑", "number"), Column("recall", "Recall ↑", "number")),
        Column("images_per_second", "Images/s (A100) ↑", "number"),
        *([Column("reproduced", f"Reproduced: {results.frechet_name} ↓", "number", spread=True)] if same_data else []),
        *(Column("source", "Source"), Column("certainty", "Certainty")),
    ]
    order = sorted(published["datasets"], key=lambda name: name != results.dataset)  # that of this experiment first
    rows = []
    for entry in sorted(published["entries"], key=lambda entry: order.index(entry["dataset"])):
        mark = " †" if entry["certainty"] == "unchecked" else ""
        reproduced_by = next((r for r in results.rows if (r.method, r.nfe) == (entry["method"], entry["nfe"])), None)
        comparable = entry["dataset"] == results.dataset and results.features == "inception"
        rows += cells(
            columns,
            {
                **{key: Cell(entry.get(key), mark=mark) for key in figures},
                "dataset": published["datasets"][entry["dataset"]],
                "method": entry["label"] + (f" ({entry['remark']})" if "remark" in entry else ""),
                "nfe": entry["nfe"],
                "reproduced": measured_cell(results, "frechet_distance", reproduced_by)
                if comparable and reproduced_by
                else None,
                "source": published["sources"][entry["source"]]["short"],
                "certainty": entry["certainty"],
            },
        )
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
        certainty_notes(published, published["entries"]),
    )


def certainty_notes(published: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands below a table of published figures: how sure they are, and their sources in full."""
    used = {entry["source"] for entry in entries}
    cited = [source for name, source in published["sources"].items() if name in used]
    return [
        "Certainty: 'reported' is a figure of the named paper; 'quoted' is what a later paper quotes; "
        "'unchecked' (†) has still to be checked against its source.",
        "Sources: " + "; ".join(f"{s['short']}: {s['full']}" for s in cited) + ".",
    ]


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
        near = [*sorted(n for n in known if n < nfe)[-1:], *sorted(n for n in known if n > nfe)[:1]]
        parts = [f"{format_value(value / known[n])} (against {n})" for n in near]
        return Cell("; ".join(parts))

    rows = []
    fid, speed = ("fid", "Fréchet distance"), ("images_per_second", "Images per second")
    comparisons = [
        *((*fid, "ddim", nfe, f"DDIM with {nfe}") for nfe in (50, 10, 1)),
        (*fid, "progressive_distillation", 1, "progressive distillation with 1"),
        *((*speed, "ddim", nfe, f"DDIM with {nfe}") for nfe in (50, 10, 1)),
    ]
    for key, quantity, method, nfe, text in comparisons:
        ratios = [of_published(dataset, key, method, nfe) for dataset in published["datasets"]]
        ratios += [here(key, boot, method, nfe) for boot in boots]
        rows.append([Cell(quantity), Cell(f"BOOT with 1 ÷ {text}"), *ratios])
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
    return table.without_empty_columns(keep=[f"here_{row.variant}" for row in boots])


def numbers_of(item: Mapping[Hashable, Any]) -> dict[str, float | None]:
    """The numbers among the fields of a row of a data frame; None where one is missing."""
    numbers = {str(key): value for key, value in item.items() if not isinstance(value, str)}
    return {key: None if pd.isna(value) else float(value) for key, value in numbers.items()}


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
    for item in results.cost.to_dict("records"):
        label = results.labels.get(item["base_variant"], item["base_variant"])
        several = item["variant"] != item["base_variant"]
        network = label + (f", student with {item['nfe']}" if several else "")
        rows += cells(columns, numbers_of(item) | {"network": network})
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
        *(METHOD, NFE, Column("batch_size", "Batch", "count")),
        Column("latency_ms_median", "Latency, ms ↓", "number"),
        Column("median_precision", "Its precision, ± %", "number"),
        Column("latency_ms_p95", "95th percentile, ms", "number"),
        Column("images_per_second", "Images/s ↑", "number"),
        Column("speedup", "Speed-up", "factor"),
        Column("network_share", "In the network, %", "number"),
        Column("decoder_ms", "Of the latency in the decoder, ms", "number"),
        Column("text_encoder_ms", "Text encoder besides, ms", "number"),
        Column("peak_memory_mb", "Peak memory, MB", "number"),
        Column("energy_j_per_image", "Energy, J a picture ↓", "number"),
        Column("rounds", "Rounds", "count"),
    ]
    speed = results.speed
    teacher = speed[(speed["variant"].astype(str) == results.teacher[0]) & (speed["nfe"] == results.teacher[1])]
    of_teacher = teacher.drop_duplicates("batch_size").set_index("batch_size")["images_per_second"]
    speed = speed.assign(
        speedup=speed["images_per_second"] / speed["batch_size"].map(of_teacher),
        median_precision=100 * speed["median_precision"],
        network_share=100 * speed["network_share"],
    )
    rows = []
    for row in (row for row in results.rows if row.nfe is not None):
        frame = speed[(speed["variant"].astype(str) == row.variant) & (speed["nfe"] == row.nfe)]
        for item in frame.sort_values("batch_size").to_dict("records"):
            rows += cells(columns, numbers_of(item) | {"method": results.label(row), "nfe": row.nfe})
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
    return table.without_empty_columns()


def wall_clock_table(results: Results) -> Table:
    """Where the time went, by rule of the workflow."""
    columns = [
        *(Column("rule", "Rule"), Column("jobs", "Jobs", "count"), Column("total_s", "Wall-clock", "duration")),
        *(Column("longest_s", "Longest job", "duration"), Column("cpu_s", "CPU time", "duration")),
        Column("peak_memory_mb", "Peak memory (MB)", "count"),
    ]
    items = results.benchmarks.to_dict("records")
    rows = cells(columns, *(numbers_of(item) | {"rule": str(item["rule"])} for item in items))
    if rows:
        rows += cells(columns, {"rule": "all", **results.benchmarks[["jobs", "total_s"]].sum().astype(float)})
    return Table(
        "wall_clock",
        "Where the time goes",
        "Seconds of each rule's jobs, added up, from Snakemake's benchmark files. Jobs run side by side where cores "
        "allow, so the sum may exceed the time of the run. The report itself is not in it.",
        columns,
        rows,
        aside=frozenset({len(items)} if items else ()),
    )
