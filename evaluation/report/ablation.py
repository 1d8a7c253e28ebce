"""One change at a time: the ablation's table, its sentences and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluation.measure.metrics import RANKED
from evaluation.report import figures as plots
from evaluation.report.format import MISSING, Cell, Column, Table, cells, format_value
from evaluation.report.tables import TRAINING, between_references, known_of, measured_cell, metric_columns
from evaluation.results.intervals import LEAST
from evaluation.results.results import Results
from evaluation.results.stored import Method
from evaluation.results.verdicts import in_words, joined, measure_name, verdicts


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


def fewest_evaluations(results: Results, variant: str) -> Method | None:
    """A variant's row, the one with the fewest evaluations where it has several."""
    rows = [row for row in results.rows if row.variant == variant]
    return min(rows, key=lambda row: row.nfe or 0) if rows else None


def ablation_table(results: Results, ablation: Ablation | None) -> Table:
    """The base and every change, by question."""
    columns = [
        *(Column("axis", "Question"), Column("change", "Change")),
        *(*metric_columns(results, RANKED), *TRAINING),
    ]
    rows: list[list[Cell]] = []
    if ablation is not None:
        base = fewest_evaluations(results, ablation.base)
        changes = [(axis, v, ablation.changes[v]) for axis, variants in ablation.axes.items() for v in variants]
        for axis, variant, change in [("base", ablation.base, MISSING), *changes]:
            row = fewest_evaluations(results, variant)
            if row is None:
                continue
            better = {
                metric: base is not None and row != base and results.verdict(metric, row, base) == "better"
                for metric in RANKED
            }
            quality = {metric: measured_cell(results, metric, row, best=better[metric]) for metric in RANKED}
            rows += cells(columns, known_of(results, row) | {"axis": axis, "change": change, **quality})
    rows, aside = between_references(results, columns, rows, first=1)
    table = Table(
        "ablation",
        "One change at a time",
        "The teacher's own samples first (spread over sampling seeds), then the base. Each row is the base but for one "
        "change. Mean ± standard deviation over training seeds, each at its mean over sampling seeds; of one training "
        f"over sampling seeds. Bold: better than the base by the 95 % interval of the difference (Welch), over {LEAST} "
        "training seeds or more on each side.",
        columns,
        rows,
        notes=ablation_sentences(results, ablation) if ablation else [],
        aside=aside,
    )
    return table.without_empty_columns(keep=("frechet_distance",))


def ablation_sentences(results: Results, ablation: Ablation) -> list[str]:
    """What each question's changes show beside the base by every measure, one sentence a question, from the data.

    None where the seeds are too few for a verdict.
    """
    sentences = []
    base = fewest_evaluations(results, ablation.base)
    for axis, variants in ablation.axes.items():
        # Changes that stand beside the base alike share a part.
        parts: dict[str, list[str]] = {}
        for variant in variants:
            row = fewest_evaluations(results, variant)
            if base is not None and row is not None and (found := verdicts(results, row, base)):
                parts.setdefault(in_words(results, found), []).append(ablation.changes[variant])
        if parts:
            sentences.append(
                f"{axis}: " + ". ".join(f"{joined(names)}: {words}" for words, names in parts.items()) + "."
            )
    if sentences:
        sentences.append(
            "Level: the 95 % interval of the difference from the base holds zero. Few training seeds make it wide, so "
            "that level does not mean equal."
        )
    return sentences


def ablation_summary(results: Results, ablation: Ablation | None) -> str:
    """What the figure of all changes shows by every measure, from the data; empty where there is no verdict."""
    base = fewest_evaluations(results, ablation.base) if ablation else None
    if ablation is None or base is None:
        return ""
    rows = {
        variant: row
        for variants in ablation.axes.values()
        for variant in variants
        if (row := fewest_evaluations(results, variant))
    }
    found = {variant: told for variant, row in rows.items() if (told := verdicts(results, row, base))}
    if not found:
        return ""
    counts = []
    for metric in RANKED:
        of = [verdict for told in found.values() for verdict, metrics in told.items() if metric in metrics]
        if of:
            numbers = ", ".join(f"{of.count(v)} {v}" for v in ("better", "level", "worse"))
            counts.append(f"by {measure_name(results, metric)} {numbers}")
    sentence = f"Of {len(found)} changes against the base: {'; '.join(counts)}."
    base_cost = results.cost_of(base, "network_evaluations")
    costs = {variant: results.cost_of(rows[variant], "network_evaluations") or 0.0 for variant in found}
    cheaper = [v for v, told in found.items() if base_cost and costs[v] < 0.99 * base_cost and "worse" not in told]
    if cheaper:
        names = ", ".join(f"{ablation.changes[v]} ({format_value(costs[v], 'count')})" for v in cheaper)
        base_text = format_value(base_cost, "count")
        return f"{sentence} Cheaper than the base ({base_text} evaluations) and worse by no measure: {names}."
    return f"{sentence} No change is both cheaper than the base and worse by no measure."


def ablation_figure(results: Results, ablation: Ablation | None) -> Figure:
    """Every measure against the cost of training: one row a question, one column a measure, the base in each panel."""
    if ablation is None or not ablation.axes:
        return plots.empty_figure("No ablation in this experiment.")
    measures = [metric for metric in RANKED if results.has(metric)]
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
        found = results.interval(metric, row) if row else None
        cost = results.cost_of(row, "network_evaluations") if row else None
        if found is None or not cost:
            continue
        style: dict[str, Any] = plots.colour_and_marker(number - 1) | {"markersize": 4}
        if not number:
            style = {"color": "#000000", "marker": "*", "markersize": 8}
        label = change.replace(", ", "\n")
        panel.errorbar(cost, found.mean, found.sd or 0, label=label, linestyle="", capsize=2, **style)
    panel.set_xscale("log")
    panel.margins(0.2)
    low, high = panel.get_xlim()
    panel.set_xlim(low / 2, high * 2)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, "count")))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=6, which="both")
