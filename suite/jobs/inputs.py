"""What jobs read: parts of the data set, names of results."""

from pathlib import Path
from typing import Literal

import numpy as np

from diffusion.conditions import Conditions
from diffusion.data.store import Split, stored_files
from diffusion.runtime.errors import UserError
from diffusion.teachers.prompts import Prompts, normalised
from suite.provenance import Input, checked


def checked_data(folder: Path, *parts: Literal["train", "test"]) -> dict[str, Input]:
    """The files of parts of the prepared data set, as :func:`suite.provenance.checked`; the manifest lists them."""
    inputs = checked({"data, manifest.json": folder / "manifest.json"})
    return inputs | checked({f"data, {file.name}": file for file in stored_files(folder, *parts)})


def check_labels_of(conditions: Conditions, where: Path | str, split: Split) -> None:
    """Refuses a data set whose labels mean other classes, or other captions, than the teacher's.

    Raises:
        UserError: naming both numbers, or a caption.
    """
    if not isinstance(conditions, Prompts):
        check_classes(conditions, where, len(split.class_names))
        return
    known = dict(zip(conditions.indices.tolist(), conditions.texts, strict=True))
    for label in np.unique(split.labels).tolist():
        caption = normalised(split.class_names[label])
        if known.get(label) != caption:
            raise UserError(
                f"{where}: the caption {caption!r} is not the teacher's ({known.get(label)!r} of number {label}); "
                f"expected the data set that the teacher was trained on."
            )


def check_classes(conditions: Conditions, where: Path | str, found: int) -> None:
    """Refuses a data set whose labels mean other classes than the teacher's.

    Args:
        conditions: the teacher's.
        where: the data set.
        found: how many classes it has.

    Raises:
        UserError: naming both numbers.
    """
    if conditions.num_classes not in (None, found):
        raise UserError(
            f"{where}: {found} classes, but the teacher is told one of {conditions.num_classes}; expected the data set "
            f"that the teacher was trained on (or teacher.num_classes, where its last label stands for no class)."
        )


def number_in(name: str) -> int:
    """5 of ``seed-5`` or ``nfe-5``."""
    return int(name.rpartition("-")[2])


def snapshot_name(step: int) -> str:
    """The folder, below a variant's, of its last student as it was after ``step`` steps."""
    return f"snapshots/step-{step}"
