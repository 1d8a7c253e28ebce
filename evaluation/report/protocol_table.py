"""The table that shows one and the same samples under every protocol, side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diffusion.runtime.files import read_json
from evaluation.columns import COUNT_MARK, RANK_MARK, rank_mark
from evaluation.measure.metrics import PLAIN_NAMES
from evaluation.measure.protocols import MAIN, Protocol, in_words, resize_in_words
from evaluation.report.format import Cell, Column, Table, cells
from evaluation.report.tables import SAMPLES
from evaluation.results.results import Results
from evaluation.results.stored import Method, load_metrics

_FLOOR = "floor"
# Before the name of samples that a user brought; no variant's has a colon.
_BROUGHT = "external:"


def protocol_table(results: Results, protocols: Mapping[str, Path]) -> Table:
    """One row a protocol, and for every set of samples its Fréchet distance and KID.

    Args:
        protocols: name to the figures that the protocol gives, its settings in the JSON beside it.
    """
    facts = {name: read_json(path.with_suffix(".json")) for name, path in protocols.items()}
    seeds = ", ".join(str(seed) for seed in sorted({fact["seed"] for fact in facts.values()}))
    values: dict[str, dict[tuple[Method | str, str], float]] = {}
    counts: dict[str, int] = {}
    floor_counts: dict[str, int] = {}
    sets: list[Method] = []
    for name, path in protocols.items():
        values[name] = {}
        for item in load_metrics([path]).itertuples():
            real = item.method == "real"
            of = Method(item.method, item.variant, None if pd.isna(item.nfe) else int(item.nfe))
            if not real and of not in sets:
                sets.append(of)
            (floor_counts if real else counts)[name] = int(item.num_samples)
            metric = PLAIN_NAMES.get(item.metric, item.metric)
            values[name][_FLOOR if real else of, metric] = float(item.value)
    texts = ("protocol", "library", "features", "resize", "quantiser", "reference")
    columns = [*(Column(key, key.capitalize()) for key in texts), SAMPLES]
    named: list[tuple[Method | str, str, str]] = []
    for one in sets:
        key = _BROUGHT + one.variant if one.method == "external" else f"{one.variant}_{one.nfe}"
        named.append((one, key, results.long_label(one)))
    named.append((_FLOOR, _FLOOR, "Real pictures outside the reference"))
    for _set, key, label in named:
        columns += [Column(key, f"{label}: Fréchet distance ↓", "number"), Column(f"{key}_kid", "KID ↓", "number")]
    columns.append(Column("floor_count", "of so many", "count"))
    rows = []
    for name, found in values.items():
        about, floor_count = facts[name], floor_counts.get(name)
        protocol = Protocol.model_validate(about["protocol"])
        row: dict[str, Cell | float | str | None] = {
            "protocol": name,
            "library": _library(about, protocol),
            "features": protocol.features,
            "resize": resize_in_words(protocol, about["extractor"]),
            "quantiser": protocol.quantiser,
            "reference": _reference(about, protocol),
            "num_samples": counts.get(name),
            "floor_count": Cell(floor_count, mark="" if floor_count == counts.get(name) else COUNT_MARK),
        }
        for measured, key, _label in named:
            count = floor_count if measured == _FLOOR else counts.get(name)
            mark = rank_mark(about["extractor"].get("dimensions"), count, about["reference"]["count"])
            row[key] = Cell(found.get((measured, "frechet_distance")), mark=mark)
            row[f"{key}_kid"] = found.get((measured, "kid"))
        rows += cells(columns, row)
    brought = [
        "Samples that a user brought are those of their lowest seed; they have no figure under a protocol that takes "
        "more samples, or quantises otherwise."
    ]
    table = Table(
        "protocols",
        "The same samples under every protocol",
        f"Every row measures the same samples, of sampling seed {seeds} and the first training seed, or the first of "
        "them where a protocol takes fewer; what differs is the protocol alone. Compare within a row only. The last "
        "columns are real pictures outside the reference; ‡: fewer than the samples, and a Fréchet distance grows as "
        "pictures get fewer. An empty cell: clean-fid finds no matrix square root for so few, or cannot look for one "
        "(it needs SciPy before 1.18), or the reference has no pictures.",
        columns,
        rows,
        [
            *(brought if any(one.method == "external" for one in sets) else []),
            *(f"{name}: {words(fact)}" for name, fact in facts.items()),
        ],
    )
    return table.without_empty_columns()


def words(facts: Mapping[str, Any]) -> str:
    """A protocol spelled out.

    Args:
        facts: the JSON beside its figures: ``protocol``, ``extractor`` and ``reference``.
    """
    return in_words(Protocol.model_validate(facts["protocol"]), facts["extractor"], facts["reference"])


def _library(facts: Mapping[str, Any], protocol: Protocol) -> str:
    mode = f", {protocol.mode}" if protocol.mode else ""
    return f"{protocol.library} {facts['extractor']['library_version']}{mode}"


def _reference(facts: Mapping[str, Any], protocol: Protocol) -> str:
    name = Path(protocol.reference).name if protocol.reference_is_file else protocol.reference
    count = facts["reference"]["count"]
    return f"{name} ({'count unknown' if count is None else f'{count:,}'})"


def protocol_summary(table: Table) -> str:
    """What the protocols change, in one or two sentences from the table.

    Of the protocols whose samples and reference are more than the features have dimensions.
    """
    end = ": Fréchet distance ↓"
    sets = {
        column.key: column.title.removesuffix(end)
        for column in table.columns
        if column.title.endswith(end) and column.key != _FLOOR and not column.key.startswith(_BROUGHT)
    }
    keys = [column.key for column in table.columns]
    rows = {str(row[keys.index("protocol")].value): dict(zip(keys, row, strict=True)) for row in table.rows}
    figures = {
        name: {label: row[key].value for key, label in sets.items()}
        for name, row in rows.items()
        if not any(RANK_MARK in row[key].mark for key in sets)
    }
    complete = {name: row for name, row in figures.items() if all(isinstance(v, float) for v in row.values())}
    if MAIN not in complete or not sets:
        return ""
    sentences = []
    # Other features, or another count, have another scale: only the rest is set in proportion.
    scale = {name: [row[key].value for key in ("features", "num_samples")] for name, row in rows.items()}
    alike = {name: row for name, row in complete.items() if scale[name] == scale[MAIN]}
    label = next(iter(sets.values()))
    of_label = {name: float(str(row[label])) for name, row in alike.items()}
    low, high = min(of_label, key=of_label.__getitem__), max(of_label, key=of_label.__getitem__)
    if low != high:
        sentences.append(
            f"On the same features and at the same count, the Fréchet distance of {label} is {of_label[low]:.3g} under "
            f"'{low}' and {of_label[high]:.3g} under '{high}': the same samples, {of_label[high] / of_label[low]:.3g} "
            f"times the figure."
        )
    orders = {name: tuple(sorted(row, key=lambda label: float(str(row[label])))) for name, row in complete.items()}
    others = [name for name, order in orders.items() if order != orders[MAIN]]
    if len(sets) > 1:
        best_first = ", ".join(orders[MAIN])
        sentences.append(
            f"The order of the rows ({best_first}) is the same under all of them."
            if not others
            else f"The order of the rows under '{MAIN}' ({best_first}) is another under {', '.join(others)}."
        )
    return " ".join(sentences)
