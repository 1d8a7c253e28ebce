"""The rows of the benchmark of training, and its aims, in words."""

from collections.abc import Iterator
from typing import Any

# On a GPU: of what trains, which ratio, in words, and what it should come to.
AIMS = (
    ("BOOT", "over_bare", "step over its bare passes", "≤ 1.10", ".2f"),
    ("teacher", "over_plain", "images a second over the plain loop's", "≥ 2", ".2f"),
    ("teacher", "share_of_product", "operations over the product's", "≥ 40 %", ".1%"),
)
# The columns of a row that trains: its key, what stands above it, its form.
COLUMNS = (
    *(("batch", "batch", "d"), ("pictures_per_second", "images/s", ".4g"), ("over_bare", "step/bare", ".3f")),
    *(("share_of_product", "of product", ".1%"), ("plain_pictures_per_second", "plain loop", ".4g")),
    *(("over_plain", "over plain", ".2f"), ("host_ahead_ms", "ahead ms", ".1f"), ("peak_memory_gib", "GiB", ".2f")),
)
HEAD = f"{'network':12s} {'trains':12s} {'changed':30s} " + " ".join(f"{head:>10s}" for _, head, _ in COLUMNS)


def changed(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in row["changed"].items())


def line(row: dict[str, Any]) -> str:
    begin = f"{row['network']:12s} {row['trains']:12s} {changed(row):30s} "
    if "not_run" in row:
        return f"{begin}not run: {row['not_run']}"

    if row["trains"] == "sampling":
        rates, over = row["images_per_second"], row["over_pipeline"]
        return (
            f"{begin}{row['batch']:10d} {rates['student']:10.4g} of a student; DDIMPipeline with 50 steps "
            f"{rates['pipeline_50']:.4g}, {over['pipeline_50']:.1f} times as slow, with one {rates['pipeline_1']:.4g}, "
            f"{over['pipeline_1']:.2f} times"
        )
    return begin + " ".join(f"{'' if row[key] is None else format(row[key], form):>10s}" for key, _, form in COLUMNS)


def foot(rows: list[dict[str, Any]], on_gpu: bool) -> Iterator[str]:
    """The aims, each with the median and the range of what was measured, in words."""
    yield "Aims" if on_gpu else "Aims, which are for a GPU (this is a processor)"
    for name, ratio, words, aim, form in AIMS:
        for row in (row for row in rows if row["trains"] == name and row["changed"].keys() <= {"compile"}):
            begin = f"  {row['network']}, {name}, {changed(row) or 'eager'}: {words}, aim {aim}: "
            if ratio in row.get("ratios", {}):
                values = row["ratios"][ratio]
                least, most = format(min(values), form), format(max(values), form)
                yield f"{begin}{row[ratio]:{form}} ({least} to {most} in {len(values)} rounds)"
            elif not row["changed"]:
                yield f"{begin}not measured ({row['not_run']})"
