"""The report's figures. Functions return a matplotlib figure, :func:`write_figure` stores it."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from evaluation.report.format import format_value, printed_precision
from evaluation.results.results import Results
from evaluation.results.stored import Method

# Okabe and Ito's palette, told apart by readers with any colour vision; markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
# One fewer than the colours, so that a pair of both repeats late.
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# Narrow figures: on a phone they are shown at about 330 pixels and the type must stay legible.
WIDTH = 4.9
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    # Outlines instead of text: the figure looks the same where the font is missing.
    "svg.fonttype": "path",
    # Otherwise identifiers are random and no two runs give the same file.
    "svg.hashsalt": "boot-reproduction",
}


def pareto_front(
    cost: Sequence[float],
    quality: Sequence[float],
    cost_precision: Sequence[float] | float = 0.0,
    quality_precision: Sequence[float] | float = 0.0,
) -> np.ndarray:
    """Marks the points that no other point beats; lower is better in both.

    A point is beaten by one that is no worse in both and better in at least one. Two values tie where each lies
    within the other's precision, so that an imprecise one is no match for all. Points with a coordinate that is not
    finite are never on the front.

    Args:
        cost: shape (N,).
        quality: shape (N,).
        cost_precision, quality_precision: of each value, shape (N,), or of all; the half of an interval.

    Returns:
        bool array, shape (N,).
    """
    points = np.array([cost, quality], dtype=float)
    precision = np.stack(
        [np.broadcast_to(p, points.shape[1]).astype(float) for p in (cost_precision, quality_precision)]
    )
    finite = np.isfinite(points).all(axis=0)
    with np.errstate(invalid="ignore"):
        # [coordinate, i, j]: how far i lies above j.
        above = points[:, :, None] - points[:, None, :]
        better = above > np.minimum(precision[:, :, None], precision[:, None, :])
        beaten = better.any(axis=0) & ~better.transpose(0, 2, 1).any(axis=0) & finite[None, :]
    front: np.ndarray = finite & ~beaten.any(axis=1)
    return front


def write_figure(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``<name>.svg`` and ``.png`` into an existing folder; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})


def colour_and_marker(number: int) -> dict[str, Any]:
    """How the ``number``-th line of a figure is drawn."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    # Figures are made without pyplot, which would keep every one of them alive.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def empty_figure(text: str) -> Figure:
    """Says in the figure's place why there is none, so that the list of files does not depend on the data."""
    figure, axes = new_figure(WIDTH, 1.2)
    axes[0, 0].axis("off")
    with matplotlib.rc_context(STYLE):
        axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", wrap=True, color="#555555")
    return figure


# --- quality -----------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A row in the plane of cost and quality, with the precision of both: half of a 95 % interval."""

    row: Method
    cost: float
    cost_precision: float
    quality: float
    quality_precision: float
    sd: float | None


def quality_points(results: Results, against: str) -> list[Point]:
    """The rows at the full count that have a Fréchet distance and a cost.

    Where a distance has no interval, its precision is that of the three digits it is printed with.

    Args:
        against: "evaluations" or "latency" (median at the smallest batch, in milliseconds).
    """
    points = []
    for row in results.rows:
        found = results.interval("frechet_distance", row)
        cost: float | None = row.nfe
        share = 0.0
        if against == "latency":
            cost = results.speed_of(row, "latency_ms_median", "smallest")
            share = results.speed_of(row, "median_precision", "smallest") or 0.0
        if found is None or cost is None or found.mean <= 0 or results.count(row) != results.full_count:
            continue
        precision = printed_precision(found.mean) if found.high is None else found.high - found.mean
        points.append(Point(row, float(cost), share * cost, found.mean, precision, found.sd))
    return points


def front_of(points: Sequence[Point]) -> np.ndarray:
    """Which points are on the Pareto front (:func:`pareto_front`); bool, shape (N,)."""
    if not points:
        return np.zeros(0, dtype=bool)
    _, cost, cost_precision, quality, quality_precision, _ = zip(*points, strict=True)
    return pareto_front(cost, quality, cost_precision, quality_precision)


def quality_figure(results: Results, against: str) -> Figure:
    """Fréchet distance against evaluations or latency, both axes logarithmic, with the Pareto front marked.

    Args:
        results: the measures.
        against: as of :func:`quality_points`.
    """
    measured = quality_points(results, against)
    if not measured:
        return empty_figure(f"No method has both a Fréchet distance and {against}.")
    variants = list(dict.fromkeys(point.row.variant for point in measured))
    front = front_of(measured)
    points = _set_apart(measured, variants) if against == "evaluations" else measured
    figure, axes = new_figure(WIDTH, 4.3)
    axis = axes[0, 0]
    with matplotlib.rc_context(STYLE):
        for number, variant in enumerate(variants):
            own = sorted((p for p in points if p.row.variant == variant), key=lambda p: p.cost)
            axis.errorbar(
                [p.cost for p in own],
                [p.quality for p in own],
                # On a log axis a bar down to zero would run out of the picture.
                yerr=[[min(p.sd or 0.0, 0.95 * p.quality) for p in own], [p.sd or 0.0 for p in own]],
                label=results.label(own[0].row),
                **colour_and_marker(number),
                markersize=7,
                markeredgecolor="white",
                markeredgewidth=0.7,
                linewidth=1.2,
                capsize=3,
                zorder=3,
            )
        chosen = sorted((p.cost, p.quality) for p, on in zip(points, front, strict=True) if on)
        xs, ys = zip(*chosen, strict=True)
        axis.step(xs, ys, where="post", color="#666666", linestyle=(0, (4, 3)), linewidth=1.2, zorder=2)
        axis.plot(
            xs,
            ys,
            linestyle="none",
            marker="o",
            markersize=14,
            markerfacecolor="none",
            markeredgecolor="#666666",
            label="Pareto front (ringed)",
            zorder=2,
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        # Room around the points, so that rings and bars are not cut.
        axis.margins(x=0.08, y=0.1)
        axis.set_ylabel(f"{results.frechet_name}\n(lower is better)")
        if against == "evaluations":
            axis.set_xlabel("Network evaluations")
            axis.xaxis.set_major_locator(FixedLocator(sorted({point.cost for point in measured})))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            batch = int(results.speed["batch_size"].min())
            axis.set_xlabel(f"Latency at batch {batch} (ms, median)")
            _log_ticks(axis.xaxis)
        _log_ticks(axis.yaxis)
        legend = axis.get_legend_handles_labels()
        figure.legend(*legend, loc="outside lower center", ncols=2, fontsize=9, columnspacing=1.2)
    return figure


def _set_apart(points: Sequence[Point], variants: Sequence[str]) -> list[Point]:
    """Moves points of equal evaluations a little sideways, since students often lie on top of each other."""
    moved = []
    for point in points:
        sharing = [v for v in variants if any(p.row.variant == v and p.cost == point.cost for p in points)]
        place = sharing.index(point.row.variant) - (len(sharing) - 1) / 2
        moved.append(point._replace(cost=point.cost * 1.09**place))
    return moved


def _log_ticks(axis: Any) -> None:
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# --- pictures ----------------------------------------------------------------------------------------------


def picture_strip(images: np.ndarray, smallest: int = 32, gap: int = 2) -> np.ndarray:
    """Pictures side by side, small ones enlarged by a whole factor without smoothing.

    Args:
        images: uint8, shape (K, H, W, C) with C = 1 or 3.
        smallest: pictures get at least so many pixels of height.
        gap: transparent pixels between pictures.

    Returns:
        uint8 RGBA, shape (H', W', 4).
    """
    count, height, width, _ = images.shape
    factor = max(1, math.ceil(smallest / height))
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    if large.shape[-1] == 1:
        large = large.repeat(3, axis=3)
    height, width = height * factor, width * factor
    strip = np.zeros((height, count * width + (count - 1) * gap, 4), dtype=np.uint8)
    for number, picture in enumerate(large):
        left = number * (width + gap)
        strip[:, left : left + width, :3] = picture
        strip[:, left : left + width, 3] = 255
    return strip


def shown_in_row(height: int, width: int) -> int:
    """How many samples a row shows: 16 small ones, 8 large ones, and fewer of images that are wider than high.

    Large images make a heavy page, and more than eight of them no longer fit a phone.
    """
    return max(1, (16 if height <= 32 else 8) * min(height, width) // width)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels, shape (H, W, 3 or 4), without a date."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return out.getvalue()


# Letters of a row's label in a line; of a column's label that is not set upright; and a letter's width in inches.
_LABEL, _LONGEST_FLAT, _LETTER = 44, 8, 0.075


def grid_figure(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str] = ()) -> Figure:
    """Rows of pictures with a label each.

    Args:
        rows: label and uint8 pictures, shape (K, H, W, C), of one size.
        columns: labels over the columns, or none; those longer than a number stand upright.
    """
    if not rows:
        return empty_figure("There are no pictures to show.")
    gap = 2
    strips = [picture_strip(images, gap=gap) for _, images in rows]
    height = strips[0].shape[0]
    width = max(strip.shape[1] for strip in strips)
    canvas = np.zeros((len(strips) * (height + gap) - gap, width, 4), dtype=np.uint8)
    for number, strip in enumerate(strips):
        top = number * (height + gap)
        canvas[top : top + height, : strip.shape[1]] = strip
    inches, longest = 5.2, max(map(len, columns), default=0)
    upright = longest > _LONGEST_FLAT
    above = 0.15 + (_LETTER * longest if upright else 0.2 if columns else 0)
    figure, axes = new_figure(inches + 1.6, inches * canvas.shape[0] / width + above)
    axis = axes[0, 0]
    with matplotlib.rc_context(STYLE):
        axis.imshow(canvas, interpolation="none", aspect="equal")
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.tick_params(length=0)
        labels = ["\n".join(textwrap.fill(line, _LABEL) for line in label.splitlines()) for label, _ in rows]
        axis.set_yticks([n * (height + gap) + height / 2 for n in range(len(rows))], labels)
        axis.tick_params(axis="y", labelsize=8)
        if columns:
            step = (width + gap) / len(columns)
            axis.xaxis.tick_top()
            axis.set_xticks([n * step + (step - gap) / 2 for n in range(len(columns))], list(columns))
            axis.tick_params(axis="x", labelsize=8, labelrotation=90 if upright else 0)
        else:
            axis.set_xticks([])
    return figure


# --- along the trajectory ----------------------------------------------------------------------------------


def trajectory_figure(
    errors: Mapping[str, pd.DataFrame], questions: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    """Errors against time, late times on the left; below, the share of increments that vanish.

    Args:
        errors: label of a BOOT variant to what :func:`evaluation.results.stored.load_trajectory` returns.
        questions: of an ablation: question to the labels in its panel, the base first.
    """
    if not errors:
        return empty_figure("No BOOT student in this experiment.")
    panels = dict(questions or {"": tuple(errors)})
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil((len(panels) + 1) / columns)
    width = WIDTH if columns == 1 else 1.35 * WIDTH
    figure, axes = new_figure(width, 2.8 * rows, rows, columns)
    with matplotlib.rc_context(STYLE):
        places = list(axes.flat)
        for axis, (question, labels) in zip(places, panels.items(), strict=False):
            _errors_panel(axis, {label: errors[label] for label in labels if label in errors}, columns == 1)
            axis.set_title(question, fontsize=9)
            axis.set_ylabel("MSE of the signal", fontsize=9)
        below = places[len(panels)]
        for number, frame in enumerate(errors.values()):
            share = frame[frame["quantity"] == "near_zero"]
            style = colour_and_marker(number) | ({} if columns == 1 else {"color": "#888888"})
            below.plot(share["t"], 100 * share["value"], markersize=3, **style)
        below.set_title("" if columns == 1 else "all students", fontsize=9)
        below.set_ylabel("vanishing increments, %", fontsize=9)
        below.set_ylim(0, 100)
        for axis in places[: len(panels) + 1]:
            axis.set_xlabel("time t", fontsize=9)
            axis.invert_xaxis()
            axis.tick_params(labelsize=8)
        for axis in places[len(panels) + 1 :]:
            axis.set_axis_off()
    return figure


def _errors_panel(axis: Axes, errors: Mapping[str, pd.DataFrame], with_steps: bool) -> None:
    """The teacher's DDIM in grey, the students in colour; what each step adds, dashed, where there is room for it."""
    teacher = next(iter(errors.values()))
    teacher = teacher[teacher["quantity"] == "ddim"]
    for place, (count, curve) in enumerate(teacher.groupby("nfe")):
        shade = str(0.75 - 0.6 * place / max(1, teacher["nfe"].nunique() - 1))
        good = curve[curve["value"] > 0]
        name = f"DDIM, {int(count)}" if with_steps else None
        axis.plot(good["t"], good["value"], color=shade, linewidth=1, label=name)
        if not with_steps:  # written at its end, where a legend in every panel would hide the curves
            end = good.loc[good["t"].idxmin()]
            axis.annotate(
                f"DDIM, {int(count)}", (end["t"], end["value"]), fontsize=5, color="#555555", va="top", ha="right"
            )
    for number, (label, frame) in enumerate(errors.items()):
        style = colour_and_marker(number)
        shown = f"{label}, 1" if with_steps else label.replace(", ", "\n")
        student = frame[(frame["quantity"] == "student") & (frame["value"] > 0)]
        axis.plot(student["t"], student["value"], **style, markersize=3, label=shown)
        if with_steps and len(errors) <= 4:  # more lines than that hide each other
            step = frame[frame["quantity"] == "one_step"]
            axis.plot(
                step["t"], step["value"], color=style["color"], linestyle="--", linewidth=1, label=f"{label}, added"
            )
    axis.set_yscale("log")
    axis.legend(fontsize=7 if with_steps else 6, ncols=2 if with_steps else 1, frameon=False)


# --- training, cost, time ----------------------------------------------------------------------------------


def training_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Losses against steps, one panel a network, logarithmic; stages follow each other along the axis.

    Args:
        curves: label to a table with the columns stage, step, loss.
    """
    curves = {label: curve for label, curve in curves.items() if len(curve)}
    if not curves:
        return empty_figure("No training curves.")
    columns = 2 if len(curves) > 1 else 1
    rows = math.ceil(len(curves) / columns)
    figure, axes = new_figure(WIDTH * (1.35 if columns == 2 else 1), 0.3 + 2.1 * rows, rows, columns)
    with matplotlib.rc_context(STYLE):
        for number, (axis, (label, curve)) in enumerate(zip(axes.flat, curves.items(), strict=False)):
            steps, starts = running_steps(curve)
            loss = pd.to_numeric(curve["loss"], errors="coerce").to_numpy(dtype=float)
            good = np.isfinite(loss) & (loss > 0)
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(steps[good], loss[good], color=colour, alpha=0.3, linewidth=0.8)
            window = max(1, int(good.sum()) // 25)
            # A mean that reached over the border of two stages would show a loss that never was.
            stage_of = np.searchsorted(starts, steps, side="right")
            for stage in np.unique(stage_of[good]):
                own = good & (stage_of == stage)
                smooth = pd.Series(np.log(loss[own])).rolling(window, center=True, min_periods=1).mean()
                axis.plot(steps[own], np.exp(smooth), color=colour, linewidth=1.6)
            for start in starts[1:]:
                axis.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
            axis.set_yscale("log")
            _log_ticks(axis.yaxis)
            low, high = axis.get_ylim()
            if high / low > 1000:
                axis.yaxis.set_major_locator(LogLocator(base=10, numticks=6))
            axis.tick_params(labelsize=8)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.set_title(label, fontsize=9)
            axis.set_xlabel("step", fontsize=9)
            axis.set_ylabel("loss", fontsize=9)
        for axis in list(axes.flat)[len(curves) :]:
            axis.axis("off")
    return figure


def running_steps(curve: pd.DataFrame) -> tuple[np.ndarray, list[float]]:
    """Steps counted through all stages, and where each stage starts.

    Args:
        curve: columns stage and step; the step may start anew in each stage or run on.

    Returns:
        Steps, shape (N,), that never fall, and the first step of each stage.
    """
    raw = pd.to_numeric(curve["step"]).to_numpy(dtype=float)
    new = (curve["stage"] != curve["stage"].shift()).to_numpy()
    anew = new[1:] & (raw[1:] <= raw[:-1])  # where a stage counts from its own start
    steps = raw + np.concatenate([[0.0], np.cumsum(np.where(anew, raw[:-1], 0.0))])[: len(raw)]
    return steps, steps[new].tolist()


def _bars(axis: Any, labels: Sequence[str], values: Sequence[float], kind: str, colour: str) -> None:
    places = np.arange(len(labels))
    axis.barh(places, values, color=colour, height=0.65)
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.grid(False)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_xlim(0, (max(values) or 1.0) * 1.3)
    for place, value in zip(places, values, strict=True):
        text = format_value(float(value), kind)
        axis.annotate(text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def cost_figure(results: Results) -> Figure:
    """Network evaluations, real images and wall-clock of training, as bars."""
    cost = results.cost
    if cost.empty:
        return empty_figure("Nothing was trained.")
    labels = []
    for _, item in cost.iterrows():
        label = results.labels.get(item["base_variant"], item["base_variant"])
        labels.append(label if item["variant"] == item["base_variant"] else f"{label}, {item['nfe']}")
    figure, axes = new_figure(WIDTH, 3 * (0.45 + 0.24 * len(labels)), 3, 1)
    panels = (
        ("network_evaluations", "Network evaluations", "count"),
        ("real_images_seen", "Real images seen", "count"),
        ("wall_clock_s", "Wall-clock", "duration"),
    )
    with matplotlib.rc_context(STYLE):
        for number, (axis, (key, title, kind)) in enumerate(zip(axes.flat, panels, strict=True)):
            _bars(axis, labels, cost[key].astype(float).tolist(), kind, COLOURS[number])
            axis.set_title(title, fontsize=10, loc="left")
    return figure


def wall_clock_figure(results: Results) -> Figure:
    """Seconds by rule, as bars; the twelve longest."""
    table = results.benchmarks.head(12)
    if table.empty:
        return empty_figure("No benchmark files.")
    figure, axes = new_figure(WIDTH, 0.5 + 0.26 * len(table))
    with matplotlib.rc_context(STYLE):
        _bars(axes[0, 0], table["rule"].tolist(), table["total_s"].tolist(), "duration", COLOURS[0])
        axes[0, 0].set_title("Wall-clock, summed over jobs", fontsize=10, loc="left")
    return figure
