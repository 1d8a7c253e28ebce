"""Every method on one teacher at the same cost of training: the tables, the sentence and the learning curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluation.columns import CURVE_COLUMNS
from evaluation.measure.metrics import PLAIN_NAMES, RANKED
from evaluation.report import figures as plots
from evaluation.report.ablation import fewest_evaluations
from evaluation.report.format import MISSING, Cell, Column, Table, cells, format_value
from evaluation.report.tables import METHOD, NFE, TRAINING, between_references, known_of, measured_cell, metric_columns
from evaluation.results.intervals import LEAST
from evaluation.results.results import Results
from evaluation.results.stored import Method, read_table
from evaluation.results.verdicts import in_words, joined, verdicts

BUDGET = Column("budget", "Equal")
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        budgets: name of a budget to its variants, each with what to call it.
        train_size: real pictures of the training part.
    """

    budgets: Mapping[str, Mapping[str, str]]
    train_size: int

    def rows(self, results: Results) -> Iterator[tuple[str, str, Method]]:
        """Budget, name and measured row at the fewest evaluations, in each budget the nearest to the data first."""
        for budget, variants in self.budgets.items():
            found = [(name, row) for variant, name in variants.items() if (row := fewest_evaluations(results, variant))]
            for name, row in sorted(found, key=lambda item: _distance(results, item[1])):
                yield budget, name, row


def _distance(results: Results, row: Method) -> float:
    found = results.interval("frechet_distance", row)
    return float("inf") if found is None else found.mean


def load_learning_curves(files: Sequence[Path]) -> pd.DataFrame:
    """Joins the learning curves, columns ``CURVE_COLUMNS``.

    Raises:
        UserError: a file is missing, lacks a column or holds a value that is not finite.
    """
    frames = [read_table(path, CURVE_COLUMNS, finite=(*CURVE_COLUMNS[1:7], "value")) for path in files]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CURVE_COLUMNS))
    return frame.replace({"metric": PLAIN_NAMES})


def comparison_table(results: Results, comparison: Comparison | None) -> Table:
    """Quality at the fewest evaluations beside what it cost to get, one row a budget and method."""
    columns = [
        *(BUDGET, METHOD, NFE, *metric_columns(results, RANKED), *TRAINING),
        Column("train_size", "Real images needed", "count"),
        Column("offline_bytes", "Offline set (bytes)", "count"),
        Column("images_per_second", "Images/s ↑", "count"),
    ]
    rows: list[list[Cell]] = []
    compared = list(comparison.rows(results)) if comparison else []
    train_size = comparison.train_size if comparison else 0
    for budget, name, row in compared:
        rivals = [other for b, _, other in compared if b == budget and other != row]
        seen = results.cost_of(row, "real_images_seen")
        quality = {m: measured_cell(results, m, row, best=results.wins(m, row, rivals)) for m in RANKED}
        needed = None if seen is None else float(train_size if seen else 0)
        named = {"budget": budget, "method": name, "train_size": needed}
        rows += cells(columns, {**known_of(results, row), **named, **quality})
    rows, aside = between_references(results, columns, rows)
    table = Table(
        "comparison",
        "Every method at the same cost of training",
        "The teacher's own samples first (mean ± standard deviation over sampling seeds), then each method's student "
        "with the fewest evaluations, the nearest to the data first. Mean ± "
        "standard deviation over training seeds, each at its mean over sampling seeds; of one training over sampling "
        "seeds. Bold: better than every other "
        f"method of the same budget by the 95 % intervals of the differences, over {LEAST} training seeds or more.",
        columns,
        rows,
        notes=[
            "Costs are whole: an offline set counts in full for every student that reads it, though it is made once, "
            "and a chain of students counts all that came before. Wall-clock is of one job on one core, with another "
            "beside it. Real images needed: the size of the training part, for methods that train on it; the teacher "
            "was trained on it in any case.",
        ]
        if rows
        else [],
        aside=aside,
    )
    return table.without_empty_columns(keep=("frechet_distance",))


def steps_table(results: Results, comparison: Comparison | None) -> Table:
    """Fréchet distance against the evaluations of sampling: students that allow several, and samplers."""
    variants: list[tuple[str, str, str]] = []
    if comparison is not None:
        untrained = sorted(results.untrained & set(results.labels), key=[results.teacher[0], *results.labels].index)
        variants = [(MISSING, results.labels[v], v) for v in untrained]
        variants += [(b, name, v) for b, named in comparison.budgets.items() for v, name in named.items()]
    rows_of = {v: {row.nfe: row for row in results.rows if row.variant == v and row.nfe} for _, _, v in variants}
    counts = sorted({nfe for rows in rows_of.values() for nfe in rows})
    columns = [BUDGET, METHOD, *(Column(f"nfe_{nfe}", str(nfe), "number", spread=True) for nfe in counts)]
    rows = []
    for budget, name, variant in variants:
        if comparison is not None and variant not in results.untrained and len(rows_of[variant]) < 2:
            continue  # stands in the first table
        own = rows_of[variant]
        distances = {f"nfe_{nfe}": measured_cell(results, "frechet_distance", row) for nfe, row in own.items()}
        rows += cells(columns, {"budget": budget, "method": name, **distances})
    table = Table(
        "comparison_steps",
        f"{results.frechet_name} against the evaluations of sampling",
        "The teacher's samplers without training, and students that sample with several numbers of evaluations (those "
        "of a chain are a network each, those of consistency distillation one). Every evaluation counts: a "
        "second-order step of Heun is two.",
        columns,
        rows,
    )
    return table.without_empty_columns()


def reach_table(results: Results, comparison: Comparison | None, curves: pd.DataFrame) -> Table:
    """What training costs until one evaluation is as good as the teacher's sampler with a few: the paper's claim 3."""
    aims = [
        (row, found.mean)
        for row in results.ladder
        if (row.nfe or 0) > 1 and (found := results.interval("frechet_distance", row)) is not None
    ]
    columns = [METHOD]
    for row, aim in aims:
        mark = results.rank_mark("frechet_distance", results.count(row))
        title = f"As good as {results.label(row)} with {row.nfe} ({format_value(aim)}{mark})"
        columns += [
            Column(f"evaluations_{row.nfe}", f"{title}: network evaluations", "count"),
            Column(f"wall_clock_{row.nfe}", f"{title}: wall-clock", "duration"),
        ]
    points = mean_curves(curves)
    named: dict[str, list[str]] = {}
    for variants in comparison.budgets.values() if comparison else ():
        for variant, name in variants.items():
            named.setdefault(name, []).append(variant)
    rows = []
    for name, own_variants in named.items():
        own = points[points["variant"].isin(own_variants)]
        reached: dict[str, float | str] = {"method": name}
        for row, aim in aims:
            good = own[own["value"] <= aim]
            if len(good):
                cheapest = good.loc[good["network_evaluations"].idxmin()]
                reached[f"evaluations_{row.nfe}"] = float(cheapest["network_evaluations"])
                reached[f"wall_clock_{row.nfe}"] = float(cheapest["wall_clock_s"])
        rows += cells(columns, reached) if len(own) else []
    table = Table(
        "comparison_reach",
        "What training costs until one evaluation is as good as several of the teacher",
        f"The cheapest measured point of any learning curve, mean over training seeds, whose {results.frechet_name} is "
        "no larger than the teacher's sampler's. Coarse: few points were measured. Empty: not reached.",
        columns,
        rows,
    )
    return table.without_empty_columns()


def mean_curves(curves: pd.DataFrame, metric: str = "frechet_distance") -> pd.DataFrame:
    """One measure of every variant and step over training seeds: costs, ``value``, and its deviation ``sd``."""
    chosen = curves[curves["metric"] == metric]
    grouped = chosen.groupby(["variant", "step"], sort=False)
    frame = grouped[["network_evaluations", "wall_clock_s", "value"]].mean()
    return frame.assign(sd=grouped["value"].std()).reset_index()


def comparison_summary(results: Results, comparison: Comparison | None) -> str:
    """How BOOT stands among the others by every measure, one sentence a budget, from the data; empty without such rows
    and where the seeds are too few for a verdict."""
    sentences = []
    rows = list(comparison.rows(results)) if comparison else []
    for budget in comparison.budgets if comparison else ():
        own = next((row for b, _, row in rows if b == budget and row.method == "boot"), None)
        if own is None:
            continue
        # Methods that BOOT stands beside alike share a part.
        parts: dict[str, list[str]] = {}
        for b, name, row in rows:
            if b == budget and row != own and (found := verdicts(results, own, row)):
                parts.setdefault(in_words(results, found), []).append(name)
        if parts:
            told = ". Beside ".join(f"{joined(names)}: {words}" for words, names in parts.items())
            sentences.append(f"At equal {budget.replace('-', ' ')}, BOOT beside {told}.")
    return " ".join(sentences)


def learning_curves_figure(comparison: Comparison | None, curves: pd.DataFrame, measure: str) -> Figure:
    """Quality at the fewest evaluations against what training had cost by then, in evaluations and in seconds.

    Args:
        curves: as :func:`load_learning_curves` returns it.
        measure: name of the Fréchet distance.
    """
    points = mean_curves(curves)
    if comparison is None or points.empty:
        return plots.empty_figure("No learning curves in this experiment.")
    names = list(dict.fromkeys(name for variants in comparison.budgets.values() for name in variants.values()))
    figure, axes = plots.new_figure(plots.WIDTH, 6.4, 2, 1)
    axes_of = [
        ("network_evaluations", "network evaluations of training"),
        ("wall_clock_s", "wall-clock of training, s"),
    ]
    with matplotlib.rc_context(plots.STYLE):
        for axis, (cost, title) in zip(axes.flat, axes_of, strict=True):
            for number, variants in enumerate(comparison.budgets.values()):
                for variant, name in variants.items():
                    own = points[points["variant"] == variant].sort_values("network_evaluations")
                    axis.errorbar(
                        own[cost],
                        own["value"],
                        own["sd"].fillna(0),
                        label=name if not number else None,
                        **plots.colour_and_marker(names.index(name)),
                        linestyle=_LINES[number % len(_LINES)],
                        linewidth=1.1,
                        markersize=4,
                        capsize=2,
                    )
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel(title, fontsize=9)
            axis.set_ylabel(measure, fontsize=9)
            axis.tick_params(labelsize=8, which="both")
            kind = "count" if cost == "network_evaluations" else "number"
            for side, text in ((axis.xaxis, kind), (axis.yaxis, "number")):
                side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                side.set_major_formatter(FuncFormatter(lambda value, _, text=text: format_value(float(value), text)))
                side.set_minor_formatter(NullFormatter())
        figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside upper center")
    return figure
