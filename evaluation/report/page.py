"""The report: one page that needs nothing but itself, its tables and its figures."""

import base64
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from diffusion.data.samples import load_labels, load_samples
from diffusion.runtime.errors import UserError, first_line
from diffusion.runtime.files import atomic_path, read_json
from evaluation.columns import (
    COST_COLUMNS,
    CURVE_COLUMNS,
    METRICS_COLUMNS,
    SPEED_COLUMNS,
    TRAJECTORY_TABLE_COLUMNS,
)
from evaluation.measure.metrics import RANKED
from evaluation.measure.protocols import MAIN
from evaluation.report import figures as plots
from evaluation.report import tables
from evaluation.report.ablation import Ablation, ablation_figure, ablation_summary, ablation_table
from evaluation.report.comparison import (
    Comparison,
    comparison_summary,
    comparison_table,
    learning_curves_figure,
    load_learning_curves,
    reach_table,
    steps_table,
)
from evaluation.report.format import MISSING, Table, cell_text, format_value, write_table
from evaluation.report.protocol_table import protocol_summary, protocol_table
from evaluation.report.published_texts import published_texts_table
from evaluation.report.spread import difference_table, spread_table
from evaluation.results import stored
from evaluation.results.intervals import Interval
from evaluation.results.results import Results
from evaluation.results.stored import CostFile, Method
from evaluation.results.verdicts import in_words, joined, measure_name, missing_seeds, verdicts

# Tables of the main protocol: those with a row for the floor, those without, and those with published figures beside.
_WITH_FLOOR = ("main", "floor", "measures", "spread", "comparison", "ablation")
_WITHOUT_FLOOR = ("differences", "comparison_steps", "comparison_reach")
_BESIDE_OTHERS = ("published", "ratios")
# Larger files stay beside the page; the page would get heavy.
_LARGEST_INLINE = 300_000
# A manifest may list every file of a data set.
_LONGEST_LIST = 20


@dataclass(frozen=True)
class ReportInputs:
    """What the report is made from; plain paths and dictionaries."""

    experiment: str
    dataset: str  # compared with the names in ``published.yaml`` (e.g. "digits", "cifar10")
    metrics: Sequence[Path]  # long tables of measures, one a variant
    speed: Path
    costs: Sequence[CostFile]  # the teacher's too, with method "teacher"
    samples: Mapping[str, Path]  # label to ``.npz``, all from the same sampling seed, in the order of the rows
    # BOOT variant to the ``.npz`` with ``times``, ``all_times``, ``trajectory``, ``interpolation``; of classes
    # ``classes`` and ``class_pairs`` too, of texts ``between``, ``by_text`` and ``texts``.
    pictures: Mapping[str, Path]
    neighbours: Path  # the ``.npz`` with ``samples-<i>`` and ``nearest-<i>`` of the row i of the JSON beside it
    trajectory: Mapping[str, Path]  # BOOT variant to the errors of its first training seed's student along it
    training: Mapping[str, Path]  # label to ``training.csv``
    benchmarks: Sequence[Path]  # Snakemake's; the folder below ``benchmarks`` names the rule
    # Nested, of strings and numbers: "protocols" maps a protocol to a sentence and has "main", "definitions" a measure.
    # The keys data, teacher, hardware, versions, commit, seeds and features come first on the page.
    provenance: Mapping[str, Any]
    labels: Mapping[str, str]  # variant to what it is called, in the order of the rows
    teacher: tuple[str, int]  # variant and evaluations of the teacher's reference run, e.g. ("ddim", 50)
    untrained: frozenset[str] = frozenset()  # variants that sample the teacher itself
    num_timesteps: int | None = None  # of the teacher
    uneven_steps: Mapping[str, Sequence[int]] = field(default_factory=dict)  # the counts that do not divide it
    ablation: Ablation | None = None
    comparison: Comparison | None = None
    learning_curves: Sequence[Path] = ()  # the measures of students at points of their training
    protocols: Mapping[str, Path] = field(default_factory=dict)  # to the figures, the settings in the JSON beside them
    dimensions: int | None = None  # of the features of the main protocol; None where they are not known
    reference_count: int | None = None  # images of its reference; None where they are not known
    captions: Sequence[str] = ()  # at the index that is stored with samples of each; none without texts

    def files(self) -> list[Path]:
        """All results that the report reads."""
        named = (self.samples, self.pictures, self.trajectory, self.training, self.protocols)
        return [
            *(self.speed, self.neighbours, *self.metrics, *self.learning_curves),
            *(cost.path for cost in self.costs),
            *(path for paths in named for path in paths.values()),
        ]


def load_results(inputs: ReportInputs) -> Results:
    """Reads the tables among the inputs.

    Raises:
        UserError: a file is missing, incomplete or holds a value that is not finite.
    """
    return Results(
        metrics=stored.load_metrics(inputs.metrics),
        speed=stored.load_speed(inputs.speed),
        cost=stored.load_costs(inputs.experiment, inputs.costs),
        benchmarks=stored.load_benchmarks(inputs.benchmarks),
        dataset=inputs.dataset,
        labels=inputs.labels,
        teacher=inputs.teacher,
        untrained=inputs.untrained,
        dimensions=inputs.dimensions,
        reference_count=inputs.reference_count,
    )


def render(inputs: ReportInputs, output: Path) -> None:
    """Writes the report's folder: ``index.html``, the long tables, ``tables/`` and ``figures/``.

    The folder is built beside its place and then moved, so that it is whole or absent; one that exists is
    replaced.

    Args:
        inputs: see :class:`ReportInputs`.
        output: the folder.

    Raises:
        UserError: an input is missing or broken, or the folder cannot be written.
    """
    results = load_results(inputs)
    published = stored.load_published()
    pictures = {variant: _load_pictures(path) for variant, path in inputs.pictures.items()}
    curves = {name: stored.read_table(file, ("stage", "step", "loss"), ()) for name, file in inputs.training.items()}
    errors = {name: stored.load_trajectory(path) for name, path in inputs.trajectory.items()}
    learning = load_learning_curves(inputs.learning_curves)

    built = {
        table.name: tables.with_marks_explained(table)
        for table in (
            tables.main_table(results),
            tables.floor_table(results),
            tables.measures_table(results),
            spread_table(results),
            difference_table(results, inputs.ablation.changes if inputs.ablation else ()),
            comparison_table(results, inputs.comparison),
            steps_table(results, inputs.comparison),
            reach_table(results, inputs.comparison, learning),
            ablation_table(results, inputs.ablation),
            tables.published_table(results, published),
            tables.ratio_table(results, published),
            *([published_texts_table(published)] if inputs.captions else []),
            tables.cost_table(results),
            tables.speed_table(results),
            protocol_table(results, inputs.protocols),
            tables.wall_clock_table(results),
        )
    }
    built["main"] = replace(built["main"], notes=[*built["main"].notes, *_uneven_notes(inputs)])
    for name, notes in _common_notes(results, inputs.provenance["protocols"][MAIN]).items():
        built[name] = replace(built[name], notes=[*built[name].notes, *notes])
    # Rows of images: the page shows them as its own, and the folder has them as a figure too.
    groups = {
        "samples": [StripGroup("", sample_rows(inputs.samples))],
        "all_times": _all_times(pictures, results),
        "interpolation": _interpolation(pictures, results),
        "neighbours": _neighbours(inputs.neighbours),
    }
    figures = {
        "quality_vs_evaluations": plots.quality_figure(results, "evaluations"),
        "quality_vs_latency": plots.quality_figure(results, "latency"),
        "learning_curves": learning_curves_figure(inputs.comparison, learning, results.frechet_name),
        "trajectory": _trajectory(inputs, results, errors),
        "ablation": ablation_figure(results, inputs.ablation),
        "training": plots.training_figure(curves),
        "cost": plots.cost_figure(results),
        "wall_clock": plots.wall_clock_figure(results),
    }
    if inputs.captions:
        groups["captions"] = [captioned_samples(inputs.samples, inputs.captions)]
    for name, own in groups.items():
        strips = [(strip.label, strip.images) for group in own for strip in group.strips]
        figures[name] = plots.grid_figure(strips, own[0].columns if own else ())
    words: dict[str, Any] = {
        "findings": findings(results, inputs.ablation.changes if inputs.ablation else ()),
        "front": _front_text(results),
        "comparison_summary": comparison_summary(results, inputs.comparison),
        "ablation_summary": ablation_summary(results, inputs.ablation),
        "protocol_summary": protocol_summary(built["protocols"]),
        "trajectory_summary": _trajectory_summary(inputs, results, errors),
    }
    long = {
        "metrics": (results.metrics, METRICS_COLUMNS),
        "speed": (results.speed, SPEED_COLUMNS),
        "cost": (results.cost, COST_COLUMNS),
        "trajectory": (stored.trajectory_table(errors), TRAJECTORY_TABLE_COLUMNS),
        "learning_curves": (learning, CURVE_COLUMNS),
    }
    with atomic_path(output) as folder:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True)
        for name, (frame, columns) in long.items():
            frame.to_csv(folder / f"{name}.csv", columns=list(columns), index=False, na_rep="", lineterminator="\n")
        for table in built.values():
            write_table(table, folder / "tables")
        for name, figure in figures.items():
            plots.write_figure(figure, folder / "figures", name)
        words["long_tables"] = [_download(folder, f"{name}.csv") for name in long]
        page = _page(inputs, results, built, list(figures), groups, words, folder)
        (folder / "index.html").write_text(page, encoding="utf-8")


# --- sentences ---------------------------------------------------------------------------------------------


def standing(results: Results, row: Method, metric: str) -> dict[str, list[int]] | None:
    """At which numbers of evaluations a row is "better" than the reference sampler, "level" with it and "worse"; None
    where there is no verdict."""
    found: dict[str, list[int]] = {"better": [], "level": [], "worse": []}
    for step in results.ladder:
        verdict = results.verdict(metric, row, step)
        if verdict in found and step.nfe is not None:
            found[verdict].append(step.nfe)
    return found if any(found.values()) else None


def findings(results: Results, without: Collection[str] = ()) -> list[str]:
    """Plain sentences on what the main table says about BOOT, made from the data alone.

    Args:
        without: variants to pass over; an ablation's changes have sentences of their own.
    """
    sampler = results.labels.get(results.teacher[0], results.teacher[0])
    sentences = []
    rows = [row for row in results.boot_rows if row.variant not in without]
    for row in rows:
        name = f"one evaluation of {results.label(row)}"
        if results.without_rank(results.count(row)):
            sentences.append(
                f"{results.count(row):,} samples in the features' {results.dimensions:,} dimensions are too few for a "
                f"sentence on the quality of {name}."
            )
        else:
            sentences += _standing_sentences(results, row, name, sampler)
        sentences += _against_progressive(results, row)
        speed, factor = results.speed_of(row, "images_per_second"), results.speedup(row)
        if speed is not None and factor is not None:
            sentences.append(
                f"{_capital(name)} makes {format_value(speed)} images a second, "
                f"{format_value(factor, 'factor')} the speed of {sampler} with {results.teacher[1]} evaluations."
            )
    missing = missing_seeds(results, without) if rows else ""
    return [*sentences, missing] if missing else sentences


def _standing_sentences(results: Results, row: Method, name: str, sampler: str) -> list[str]:
    """Where a row stands on the teacher's ladder by every measure; its values alone where there is no verdict."""
    # Measures that put the student in the same place share a sentence.
    places: dict[str, list[str]] = {}
    values = []
    for metric in RANKED:
        own = results.interval(metric, row)
        if own is None:
            continue
        measure, place = measure_name(results, metric), standing(results, row, metric)
        if place is not None:
            places.setdefault(_place_text(place, sampler), []).append(f"{measure} ({_interval_text(own)})")
            continue
        teacher = results.teacher_row
        theirs = results.interval(metric, teacher) if teacher and results.difference(metric, row, teacher) else None
        values.append(f"{measure} {_interval_text(own)}" + (f" against {_interval_text(theirs)}" if theirs else ""))
    sentences = [f"By {joined(measures)}, {name} {place}." for place, measures in places.items()]
    if values:
        sentences.append(
            f"{_capital(name)} beside {sampler} with {results.teacher[1]} evaluations: {'; '.join(values)}."
        )
    return sentences


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _place_text(place: Mapping[str, list[int]], sampler: str) -> str:
    better, level, worse = place["better"], place["level"], place["worse"]
    beside = f", level with {joined(level)} within the 95 % intervals" if level else ""
    if better and worse and max(better) < min(worse) and all(max(better) < n < min(worse) for n in level):
        return f"falls between {sampler} with {max(better)} and with {min(worse)} evaluations{beside}"
    if better and not worse and not level:
        return f"is better than {sampler} with every number of evaluations measured ({joined(better)})"
    if worse and not better and not level:
        return f"is worse than {sampler} with every number of evaluations measured ({joined(worse)})"
    standings = (("better than", better), ("level, within the 95 % intervals, with", level), ("worse than", worse))
    return "is " + "; ".join(f"{how} {sampler} with {joined(n)} evaluations" for how, n in standings if n)


def _against_progressive(results: Results, row: Method) -> list[str]:
    other = next((r for r in results.rows if r.method == "progressive_distillation" and r.nfe == 1), None)
    if other is None:
        return []
    own_name, name = results.label(row), f"{results.label(other)} with one evaluation"
    sentences = []
    if found := verdicts(results, row, other):
        sentences.append(f"Beside {name}, {own_name} is {in_words(results, found)}.")
    a, b = results.cost_of(row, "network_evaluations"), results.cost_of(other, "network_evaluations")
    seen, theirs_seen = results.cost_of(row, "real_images_seen"), results.cost_of(other, "real_images_seen")
    if a and b and seen is not None and theirs_seen is not None:
        sentences.append(
            f"Training {own_name} took {format_value(a, 'count')} network evaluations and {_images(seen)}, {name} "
            f"{format_value(b, 'count')} and {_images(theirs_seen)}."
        )
    return sentences


def _images(count: float) -> str:
    return "no real images" if count == 0 else f"{format_value(count, 'count')} real images"


def _interval_text(found: Interval) -> str:
    return format_value(found.mean, "number", found.sd)


# --- pictures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """A row of pictures, uint8 (K, H, W, C), with its label."""

    label: str
    images: np.ndarray

    @property
    def source(self) -> str:
        """The row as a data URI."""
        return _data_uri("image/png", plots.png_bytes(plots.picture_strip(self.images)))


@dataclass(frozen=True)
class StripGroup:
    """Rows of images under one heading.

    Attributes:
        columns: what stands over them, if anything does: times, or methods.
        sentences: whether labels are so long that they stand above their rows, not beside them.
    """

    title: str
    strips: list[Strip]
    columns: tuple[str, ...] = ()
    sentences: bool = False


def sample_rows(samples: Mapping[str, Path]) -> list[Strip]:
    """The first pictures of every file: column j is noise j, since all were drawn from one seed.

    Raises:
        UserError: a file is missing, broken, or has pictures of another size than the first.
    """
    strips: list[Strip] = []
    for label, path in samples.items():
        images = load_samples(path)
        size = height, width = images.shape[1:3]
        expected = strips[0].images.shape[1:3] if strips else size
        if size != expected:
            raise UserError(
                f"{path}: images of {height}×{width} pixels; the other methods have {expected[0]}×{expected[1]}. "
                f"Bring samples of the experiment's resolution."
            )
        strips.append(Strip(label, images[: plots.shown_in_row(height, width)]))
    return strips


# More captions than that are not compared.
_MOST_CAPTIONS = 8


def captioned_samples(samples: Mapping[str, Path], captions: Sequence[str]) -> StripGroup:
    """One row a caption, one column a file, of the first samples of different captions in the first file.

    A row has the same index in every file, and so started from one noise. Files whose samples have other captions, as
    those that a user brought may, are left out.

    Args:
        samples: label to ``.npz`` with the captions' indices.
        captions: at those indices.
    """
    labels = {name: own for name, path in samples.items() if (own := load_labels(path)) is not None}
    if not labels:
        return StripGroup("", [])
    first = next(iter(labels.values()))
    shown = np.sort(np.unique(first, return_index=True)[1])[:_MOST_CAPTIONS]
    columns = [
        name for name, own in labels.items() if len(own) > shown[-1] and np.array_equal(own[shown], first[shown])
    ]
    images = np.stack([load_samples(samples[name])[shown] for name in columns], axis=1)
    strips = [Strip(captions[first[index]], row) for index, row in zip(shown, images, strict=True)]
    return StripGroup("", strips, tuple(columns))


_PICTURES = ("times", "all_times", "trajectory", "interpolation")
_OF_CLASSES, _OF_TEXTS = ("classes", "class_pairs"), ("between", "by_text", "texts")


def _load_pictures(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            further = {*_OF_CLASSES, *_OF_TEXTS} & set(archive)
            content = {name: archive[name] for name in (*_PICTURES, *further)}
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the rule that draws the pictures.") from error
    except (KeyError, ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: expected an .npz with {list(_PICTURES)} ({first_line(error)}). Draw it again."
        ) from error
    return content


def _all_times(pictures: Mapping[str, Mapping[str, np.ndarray]], results: Results) -> list[StripGroup]:
    groups = []
    for variant, content in pictures.items():
        times = np.asarray(content["times"], dtype=float)
        # From noise to picture, left to right, and no more columns than a phone can show.
        order = np.argsort(-times, kind="stable")
        order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), 12)).round().astype(int))]
        label = results.labels.get(variant, variant)
        strips = []
        for number, (student, teacher) in enumerate(zip(content["all_times"], content["trajectory"], strict=True)):
            if number == 3:
                break
            strips.append(Strip(f"{label}, noise {number + 1}", student[order]))
            strips.append(Strip(f"Teacher, noise {number + 1}", teacher[order]))
        groups.append(StripGroup(label, strips, tuple(f"{t:.2g}" for t in times[order])))
    return groups


def _interpolation(pictures: Mapping[str, Mapping[str, np.ndarray]], results: Results) -> list[StripGroup]:
    groups = []
    for variant, content in pictures.items():
        label = results.labels.get(variant, variant)
        strips = [Strip(f"{label}, pair {n + 1}", row) for n, row in enumerate(content["interpolation"][:4])]
        groups.append(StripGroup(f"{label}, between two noises", strips))
        if "classes" in content:
            pairs = zip(content["class_pairs"][:4], content["classes"], strict=False)
            strips = [Strip(f"{label}, classes {first} to {last}", row) for (first, last), row in pairs]
            groups.append(StripGroup(f"{label}, between two classes at one noise", strips))
        if "between" in content:
            texts, by_text = content["texts"].tolist(), content["by_text"]
            ways = zip(texts[:4], texts[1:], content["between"], strict=False)
            strips = [Strip(f"from: {first}\nto: {last}", row) for first, last, row in ways]
            groups.append(StripGroup(f"{label}, between two texts at one noise", strips, sentences=True))
            most = plots.shown_in_row(*by_text.shape[2:4])
            strips = [Strip(text, row[:most]) for text, row in zip(texts, by_text, strict=False)]
            groups.append(StripGroup(f"{label}, one noise a column, one text a row", strips))
    return groups


def _trajectory(inputs: ReportInputs, results: Results, errors: Mapping[str, pd.DataFrame]) -> Figure:
    """One panel, or of an ablation one a question, each with the base."""
    if inputs.ablation is None:
        return plots.trajectory_figure({results.labels.get(v, v): frame for v, frame in errors.items()})
    names = {v: inputs.ablation.changes.get(v, results.labels.get(v, v)) for v in errors}
    names[inputs.ablation.base] = "base"
    questions = {
        axis: [names[v] for v in (inputs.ablation.base, *variants) if v in errors]
        for axis, variants in inputs.ablation.axes.items()
        if any(v in errors for v in variants)
    }
    return plots.trajectory_figure({names[v]: frame for v, frame in errors.items()}, questions)


def _trajectory_summary(inputs: ReportInputs, results: Results, errors: Mapping[str, pd.DataFrame]) -> str:
    """What the errors along the trajectory show, one sentence a student (of an ablation: the base), from the data."""
    sentences = []
    for variant in [inputs.ablation.base] if inputs.ablation else errors:
        frame = errors.get(variant)
        if frame is None:
            continue
        curves = {name: part.set_index("t")["value"] for name, part in frame.groupby("quantity") if name != "ddim"}
        student, vanishing = curves["student"], 100 * curves["near_zero"]
        last = student.index.min()
        ddim = frame[(frame["quantity"] == "ddim") & (frame["t"] == last)].set_index("nfe")["value"].sort_index()
        # Of one training: values, and no verdict.
        beside = ", ".join(f"{value:.2g} with {int(count)}" for count, value in ddim.items())
        there = f", where DDIM has {beside} evaluations" if beside else ""
        sentences.append(
            f"{results.labels.get(variant, variant)}: the error is {student[student.index.max()]:.2g} at t_max and "
            f"{student[last]:.2g} at t_min{there}; the largest share that one step of the grid "
            f"adds is {curves['one_step'].max():.2g}; increments vanish in {vanishing.min():.0f} to "
            f"{vanishing.max():.0f} % of the pixels."
        )
    return " ".join(sentences)


def _neighbours(path: Path) -> list[StripGroup]:
    """Samples above their nearest training pictures, with how near all samples of the row come."""
    rows = read_json(path.with_suffix(".json"))["rows"]
    groups = []
    with np.load(path, allow_pickle=False) as archive:
        for number, facts in enumerate(rows):
            label = facts["label"]
            title = (
                f"{label}: median distance {facts['relative']:.3g} times that of held-out real pictures; "
                f"{facts['suspicious']:.2%} of the samples nearer than 99 of 100 of those"
            )
            samples, nearest = archive[f"samples-{number}"], archive[f"nearest-{number}"]
            shown = plots.shown_in_row(*samples.shape[1:3])
            strips = [Strip(label, samples[:shown]), Strip("nearest training picture", nearest[:shown])]
            groups.append(StripGroup(title, strips))
    return groups


# --- page --------------------------------------------------------------------------------------------------


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


_KINDS = {
    **{".csv": "text/csv", ".md": "text/markdown", ".tex": "application/x-tex"},
    **{".svg": "image/svg+xml", ".png": "image/png"},
}


@dataclass(frozen=True)
class Download:
    """A link that also works when the page travels alone: small files are inside it."""

    name: str
    text: str
    href: str


def _download(folder: Path, path: str) -> Download:
    file = folder / path
    content = file.read_bytes()
    href = path if len(content) > _LARGEST_INLINE else _data_uri(_KINDS[file.suffix], content)
    return Download(file.name, file.suffix[1:].upper(), href)


def flatten(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as (path, text) pairs; lists of plain values become one text."""
    if isinstance(content, Mapping):
        pairs: list[tuple[str, str]] = []
        for key, value in content.items():
            name = str(key).replace("_", " ")
            pairs += flatten(value, f"{prefix} · {name}" if prefix else name)
        return pairs
    if isinstance(content, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in content):
        pairs = []
        for number, item in enumerate(content):
            pairs += flatten(item, f"{prefix} {number + 1}")
        return pairs
    if isinstance(content, list | tuple):
        text = ", ".join(_plain_text(item) for item in content[:_LONGEST_LIST])
        more = f", … ({len(content)} in all)" if len(content) > _LONGEST_LIST else ""
        return [(prefix, text + more or MISSING)]
    return [(prefix, _plain_text(content))]


def _plain_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) or MISSING


def _page(
    inputs: ReportInputs,
    results: Results,
    built: Mapping[str, Table],
    figures: Collection[str],
    groups: Mapping[str, Sequence[StripGroup]],
    words: Mapping[str, Any],
    folder: Path,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = ("not selected", "data", "teacher", "hardware", "versions", "commit", "seeds", "features")
    provenance = dict(inputs.provenance)
    protocols, definitions = provenance.pop("protocols", {}), provenance.pop("definitions", {})
    run = [(key.capitalize(), flatten(provenance.pop(key))) for key in first if key in provenance]
    shown = {
        name: {
            "source": None
            if name in groups
            else _data_uri("image/svg+xml", (folder / "figures" / f"{name}.svg").read_bytes()),
            "downloads": [_download(folder, f"figures/{name}.{suffix}") for suffix in ("svg", "png")],
        }
        for name in figures
    }
    return environment.get_template("report.html.j2").render(
        experiment=inputs.experiment,
        results=results,
        run=run,
        rest=[(key, flatten(value)) for key, value in provenance.items()],
        protocols=protocols,
        definitions=definitions,
        tables=built,
        downloads={
            name: [_download(folder, f"tables/{name}.{suffix}") for suffix in ("csv", "md", "tex")] for name in built
        },
        figures=shown,
        groups=groups,
        cell_text=cell_text,
        ablation=inputs.ablation,
        comparison=inputs.comparison,
        told_texts=bool(inputs.captions),
        **words,
    )


def _uneven_notes(inputs: ReportInputs) -> list[str]:
    """Where `diffusers`' own scheduler would draw other samples than the table's."""
    which = [
        f"{inputs.labels[variant]} with {' and '.join(', '.join(map(str, counts)).rsplit(', ', 1))} steps"
        for variant, counts in inputs.uneven_steps.items()
    ]
    if not which:
        return []
    return [
        f"{'; '.join(which)}: no divisor of the teacher's {inputs.num_timesteps} timesteps. Each step ends where the "
        f"next begins; the schedulers of diffusers step by whole timesteps and give other samples."
    ]


def _common_notes(results: Results, main_protocol: str) -> dict[str, list[str]]:
    """What every table of quality figures says at its end: its protocol, and what perfect would look like."""
    under_main = f"Protocol '{MAIN}': {main_protocol}"
    if any(row.method == "external" for row in results.rows):
        under_main += " Samples that a user brought are as they came."
    notes = {name: [under_main] for name in (*_WITH_FLOOR, *_WITHOUT_FLOOR)}
    notes |= {name: [f"This experiment's own figures: p{under_main[1:]}"] for name in _BESIDE_OTHERS}
    count = results.floor_count
    floor = results.interval("frechet_distance", results.real, count) if results.real else None
    if floor is not None and count is not None:
        kid = results.interval("kid", results.real, count) if results.real else None
        beside = f", KID {format_value(kid.mean)}" if kid else ""
        mark = results.rank_mark("frechet_distance", count)
        sentence = (
            f"Floor: {count} held-out real pictures have {measure_name(results, 'frechet_distance')} "
            f"{format_value(floor.mean)}{mark}{beside}; the floor table has every row at that count."
        )
        for name in _WITHOUT_FLOOR:
            notes[name].append(sentence)
    return notes


def _front_text(results: Results) -> str:
    points = plots.quality_points(results, "evaluations")
    names = [results.long_label(point.row) for point, on in zip(points, plots.front_of(points), strict=True) if on]
    return "; ".join(names) or MISSING
