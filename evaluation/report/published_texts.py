"""The table of published text-to-image models."""

from collections.abc import Mapping
from typing import Any

from evaluation.report.format import Cell, Column, Table, cells
from evaluation.report.tables import METHOD, NFE, certainty_notes

_FIGURES = {
    "fid": "FID-30k ↓",
    "clip": "CLIP score ↑",
    "anime": "HPSv2, anime ↑",
    "photo": "HPSv2, photo ↑",
    "concept_art": "HPSv2, concept art ↑",
    "paintings": "HPSv2, paintings ↑",
}


def published_texts_table(published: Mapping[str, Any]) -> Table:
    """Published figures of one-step text-to-image models, with source and certainty."""
    columns = [
        *(METHOD, Column("teacher", "Distilled from"), NFE),
        *(Column(key, title, "number") for key, title in _FIGURES.items()),
        *(Column("source", "Source"), Column("certainty", "Certainty")),
    ]
    rows = []
    for entry in published["texts"]:
        mark = " †" if entry["certainty"] == "unchecked" else ""
        row = {
            "method": entry["label"] + (f" ({entry['remark']})" if "remark" in entry else ""),
            "teacher": entry["teacher"],
            "nfe": entry["nfe"],
            "source": published["sources"][entry["source"]]["short"],
            "certainty": entry["certainty"],
        }
        rows += cells(columns, row | {key: Cell(entry.get(key), mark=mark) for key in _FIGURES})
    return Table(
        "published_texts",
        "Published figures of text-to-image models",
        "FID and CLIP score: 30,000 captions of COCO 2014, images at 256 pixels, CLIP score as a cosine of OpenCLIP's "
        "ViT-g-14 where GigaGAN's evaluation was taken. They belong to other protocols than this experiment's figures "
        "and cannot be compared with them.",
        columns,
        rows,
        certainty_notes(published, published["texts"]),
    )
