"""What jobs read: parts of the data set, names of results."""

from pathlib import Path
from typing import Literal

from diffusion.conditions import Conditions
from diffusion.data.store import LATENTS, stored_files
from diffusion.runtime.errors import UserError
from suite.provenance import Input, checked


def checked_data(folder: Path, *parts: Literal["train", "test"]) -> dict[str, Input]:
    """The files of parts of the prepared data set, as :func:`suite.provenance.checked`; the manifest lists them."""
    inputs = checked({"data, manifest.json": folder / "manifest.json"})
    return inputs | checked({f"data, {file.name}": file for file in stored_files(folder, *parts)})


def checked_latents(folder: Path | None) -> dict[str, Input]:
    """What an autoencoder made of the training images; nothing where states are images."""
    return checked({"latents": folder / LATENTS}) if folder else {}


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
