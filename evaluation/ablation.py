"""One change at a time: the ablation's table, its sentences and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluation import plots
from evaluation.tables import (
    LOWER_IS_BETTER,
    MISSING,
    Cell,
    Column,
    Method,
    Results,
    Spread,
    Table,
    between_references,
    compare,
    format_value,
    metric_columns,
    spread_of,
    without_empty_columns,
)

# Training seeds that differ by more than that share of their mean decide nothing.
_UNDECIDED = 0.25

MEASURES = ("frechet_distance", "kid", "precision", "recall", "mse_to_teacher", "label_accuracy")


@dataclass(frozen=True)
class Ablation:
    """What was changed.

    Attributes:
        base: the variant that the others differ from.
        axes: name of a question to its variants, without the base.
        changes: variant to what it changes, in words ("delta 0.2").
    """

    base: str
    axes: Mapping[str, Sequence[str]]
    changes: Mapping[str, str]


def training_spread(results: Results, metric: str, row: Method) -> Spread | None:
    """Mean and deviation over training seeds, each taken at its mean over sampling seeds."""
    values = results.values(metric, row)
    return None if values is None else spread_of(values.groupby(level=0, dropna=False).mean())


def fewest_evaluations(results: Results, variant: str) -> Method | None:
    """A variant's row, the one with the fewest evaluations where it has several."""
    rows = [row for row in results.rows if row.variant == variant]
    return min(rows, key=lambda row: row.nfe or 0) if rows else None


def _measured(results: Results, metric: str, variant: str) -> Spread | None:
    row = fewest_evaluations(results, variant)
    return training_spread(results, metric, row) if row else None


def ablation_table(results: Results, ablation: Ablation | None) -> Table:
    """The base and every change, by question."""
    columns = [
        Column("axis", "Question"),
        Column("change", "Change"),
        *metric_columns(results, MEASURES),
        Column("network_evaluations", "Training: network evaluations", "count"),
        Column("wall_clock_s", "Training: wall-clock", "duration"),
    ]
    rows: list[list[Cell]] = []
    base = {metric: _measured(results, metric, ablation.base) for metric in MEASURES} if ablation else {}

    def add(axis: str, variant: str, change: str) -> None:
        row = fewest_evaluations(results, variant)
        if row is None:
            return
        cells = []
        for metric in MEASURES:
            spread, against = training_spread(results, metric, row), base[metric]
            best = (
                spread is not None
                and against is not None
                and min(spread.n, against.n) >= 3
                and compare(spread, against, LOWER_IS_BETTER[metric]) == "better"
            )
            cells.append(Cell(spread.mean, spread.sd, spread.n, best) if spread else Cell())
        cost = [Cell(results.cost_of(row, key)) for key in ("network_evaluations", "wall_clock_s")]
        rows.append([Cell(axis), Cell(change), *cells, *cost])

    if ablation is not None:
        add("base", ablation.base, MISSING)
        for axis, variants in ablation.axes.items():
            for variant in variants:
                add(axis, variant, ablation.changes[variant])
    rows, aside = between_references(results, columns, rows, first=1)
    table = Table(
        "ablation",
        "One change at a time",
        "The teacher's own samples first (spread over sampling seeds), then the base. Each row is the base but for one "
        "change. Mean ± standard deviation over training seeds, each at its mean over "
        "sampling seeds. Bold: better than the base by more than two standard deviations of the difference, with at "
        "least three training seeds on each side.",
        columns,
        rows,
        notes=ablation_sentences(results, ablation) if ablation else [],
        aside=aside,
    )
    return without_empty_columns(table, keep=("frechet_distance",))


def ablation_sentences(results: Results, ablation: Ablation) -> list[str]:
    """What each question's changes show, one sentence a question, from the data."""
    sentences = []
    for axis, variants in ablation.axes.items():
        parts = []
        for metric, name in (("frechet_distance", results.frechet_name), ("mse_to_teacher", "the MSE to the teacher")):
            reference = _measured(results, metric, ablation.base)
            found: dict[str, list[str]] = {"better": [], "level": [], "worse": [], "undecided": []}
            for variant in variants:
                spread = _measured(results, metric, variant)
                if spread is not None and reference is not None:
                    verdict = compare(spread, reference, LOWER_IS_BETTER[metric])
                    if verdict == "level" and (spread.sd or 0) > _UNDECIDED * spread.mean:
                        verdict = "undecided"
                    found[verdict].append(f"{ablation.changes[variant]} ({_text(spread)})")
            if reference is None or not any(found.values()):
                continue
            verdicts = [f"{verdict}: {', '.join(found[verdict])}" for verdict in found if found[verdict]]
            parts.append(f"by {name}, against the base's {_text(reference)}, {'; '.join(verdicts)}")
        if parts:
            sentences.append(f"{axis}: {'. '.join(part[0].upper() + part[1:] for part in parts)}.")
    if sentences:
        sentences.append(
            "Level means within two standard deviations of the difference, undecided the same where the training "
            f"seeds of the change differ by more than {_UNDECIDED:.0%} of their mean; with one training seed the means "
            "alone decide, and nothing is supported."
        )
    return sentences


def ablation_summary(results: Results, ablation: Ablation | None) -> str:
    """What the figure of all changes shows, one sentence, from the data; empty where nothing was measured."""
    base = _measured(results, "frechet_distance", ablation.base) if ablation else None
    if ablation is None or base is None:
        return ""
    found = [
        (variant, spread, results.cost_of(row, "network_evaluations") or 0.0)
        for variants in ablation.axes.values()
        for variant in variants
        if (row := fewest_evaluations(results, variant))
        and (spread := training_spread(results, "frechet_distance", row))
    ]
    verdicts = {variant: compare(spread, base, True) for variant, spread, _ in found}
    if not found:
        return ""
    base_row = fewest_evaluations(results, ablation.base)
    base_cost = results.cost_of(base_row, "network_evaluations") if base_row else None
    best, best_spread, best_cost = min(found, key=lambda item: item[1].mean)
    counts = ", ".join(f"{list(verdicts.values()).count(v)} {v}" for v in ("better", "level", "worse"))
    sentence = (
        f"By {results.frechet_name}, of {len(found)} changes against the base ({_text(base)} at "
        f"{format_value(base_cost, 'count')} evaluations of training): {counts}; the lowest is "
        f"{ablation.changes[best]} ({_text(best_spread)} at {format_value(best_cost, 'count')})"
    )
    cheaper = [item for item in found if base_cost and item[2] < 0.99 * base_cost and verdicts[item[0]] != "worse"]
    if cheaper:
        names = ", ".join(f"{ablation.changes[v]} ({format_value(cost, 'count')})" for v, _, cost in cheaper)
        return f"{sentence}; cheaper than the base and not worse: {names}."
    return f"{sentence}; no change is both cheaper than the base and not worse."


def _text(spread: Spread) -> str:
    return format_value(spread.mean, "number", spread.sd)


def ablation_figure(results: Results, ablation: Ablation | None) -> Figure:
    """Every measure against the cost of training: one row a question, one column a measure, the base in each panel."""
    if ablation is None or not ablation.axes:
        return plots.empty_figure("No ablation in this experiment.")
    measures = [metric for metric in MEASURES if results.has(metric)]
    titles = {column.key: column.title.replace(" (", "\n(") for column in metric_columns(results, measures)}
    size = (2.3 * len(measures), 0.3 + 2.1 * len(ablation.axes))
    figure, axes = plots.new_figure(*size, len(ablation.axes), len(measures))
    with matplotlib.rc_context(plots.STYLE):
        for row, (axis, variants) in zip(axes, ablation.axes.items(), strict=True):
            shown = [(ablation.base, "base"), *((variant, ablation.changes[variant]) for variant in variants)]
            for panel, metric in zip(row, measures, strict=True):
                _measure_panel(panel, results, metric, shown)
                panel.set_title(titles[metric], fontsize=7)
            row[0].set_ylabel(axis, fontsize=9)
            row[0].legend(fontsize=5.5, frameon=False)
        for panel in axes[-1]:
            panel.set_xlabel("training evaluations", fontsize=7)
    return figure


def _measure_panel(panel: Axes, results: Results, metric: str, shown: Sequence[tuple[str, str]]) -> None:
    for number, (variant, change) in enumerate(shown):
        row = fewest_evaluations(results, variant)
        spread = training_spread(results, metric, row) if row else None
        cost = results.cost_of(row, "network_evaluations") if row else None
        if spread is None or not cost:
            continue
        style: dict[str, Any] = {"color": plots.COLOURS[(number - 1) % len(plots.COLOURS)]}
        style |= {"marker": plots.MARKERS[(number - 1) % len(plots.MARKERS)], "markersize": 4}
        if not number:
            style = {"color": "#000000", "marker": "*", "markersize": 8}
        label = change.replace(", ", "\n")
        panel.errorbar(cost, spread.mean, spread.sd or 0, label=label, linestyle="", capsize=2, **style)
    panel.set_xscale("log")
    panel.margins(0.2)
    low, high = panel.get_xlim()
    panel.set_xlim(low / 2, high * 2)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, "count")))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=6, which="both")
