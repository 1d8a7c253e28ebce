"""Reading what jobs have measured: strict tables of measures, speeds, costs and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.columns import (
    COST_COLUMNS,
    COSTS,
    FURTHER_COSTS,
    FURTHER_SPEED,
    METRICS_COLUMNS,
    SPEED_COLUMNS,
    TRAJECTORY_COLUMNS,
    TRAJECTORY_TABLE_COLUMNS,
)

CERTAINTIES = ("reported", "quoted", "unchecked")


class Method(NamedTuple):
    """What one row of a table is about. ``nfe`` is None where the number of evaluations is not known."""

    method: str
    variant: str
    nfe: int | None


def _read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run the rule that writes it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a CSV table ({error}). Delete it and run Snakemake again.") from error
    frame = frame.reindex(columns=[*frame.columns, *(name for name in optional if name not in frame.columns)])
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path}: the columns {missing} are missing; found {list(frame.columns)}. Delete it and run Snakemake "
            f"again."
        )
    return frame[list(columns)]


def read_table(path: Path, columns: Sequence[str], finite: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Reads ``columns`` of a CSV table; those in ``finite`` as numbers. Those in ``optional`` may lack, and are empty.

    Raises:
        UserError: the file is missing, lacks a column, or holds a value that is not finite.
    """
    frame = _read_csv(path, columns, optional)
    for name in finite:
        text = frame[name].dropna()
        bad = text[~np.isfinite(pd.to_numeric(text, errors="coerce").astype(float))]
        if len(bad):
            raise UserError(
                f"{path}: row {int(bad.index[0]) + 2}, column '{name}' holds {bad.iloc[0]!r}; expected a finite "
                f"number or an empty field. The samples or the measure are broken; run their rules again."
            )
        frame[name] = pd.to_numeric(frame[name])
    return frame


def load_metrics(paths: Sequence[Path]) -> pd.DataFrame:
    """Joins the long tables of measures, in the given order.

    Returns:
        One row a measured value, columns ``METRICS_COLUMNS``.

    Raises:
        UserError: a file is missing, lacks a column, or holds a value that is not finite.
    """
    if not paths:
        raise UserError("The report was given no measures; run the rules that measure the samples first.")
    frames = [read_table(path, METRICS_COLUMNS, finite=("nfe", "value", "num_samples")) for path in paths]
    metrics = pd.concat(frames, ignore_index=True)
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
    numbers = ("nfe", "batch_size", *SPEED_COLUMNS[7:])
    speed = read_table(path, SPEED_COLUMNS, finite=numbers, optional=FURTHER_SPEED)
    machines = speed["device"].dropna().unique()
    if len(machines) > 1:
        raise UserError(
            f"{path}: speeds of several machines ({'; '.join(map(str, machines))}) cannot stand in one column. "
            f"Delete it and run Snakemake on one machine."
        )
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
                        **{key: float(student[key]) for key in COSTS},
                        **{key: float(student.get(key, default)) for key, default in FURTHER_COSTS.items()},
                        "nfe": int(student["nfe"]) if student.get("nfe") is not None else None,
                        "base_variant": file.variant,
                    }
                )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file.path}: expected 'students', a list with {list(COSTS)} and 'nfe' in each; "
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
    grouped = pd.DataFrame(rows, columns=["rule", "s", "cpu", "rss"]).groupby("rule", sort=False)
    table = grouped["s"].agg(jobs="count", total_s="sum", longest_s="max")
    table = table.assign(cpu_s=grouped["cpu"].sum(min_count=1), peak_memory_mb=grouped["rss"].max()).reset_index()
    return table.sort_values("total_s", ascending=False, ignore_index=True)


def load_published(path: Path = Path(__file__).parent / "published.yaml") -> dict[str, Any]:
    """Reads the published figures.

    Raises:
        UserError: an entry lacks its source, its certainty or its data set, or names an unknown one.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    blocks = ("entries", "costs", "texts")
    rows = [(block, number, entry) for block in blocks for number, entry in enumerate(content[block])]
    for block, number, entry in rows:
        of_data = {"dataset": content["datasets"]} if block != "texts" else {}
        for key, allowed in {"source": content["sources"], **of_data, "certainty": CERTAINTIES}.items():
            if entry.get(key) not in allowed:
                raise UserError(
                    f"{path}: {block}[{number}].{key} is {entry.get(key)!r}; expected one of {sorted(allowed)}."
                )
    return dict(content)
