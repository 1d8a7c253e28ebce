"""A picture data set of the Hugging Face Hub, or a folder in one of its formats, through the library `datasets`."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import pydantic

from diffusion.data.images import DecodedPictures, PictureSettings
from diffusion.data.store import Splits, stratified_split
from diffusion.errors import UserError, some_of
from diffusion.settings import UserPath

if TYPE_CHECKING:
    import datasets


class Settings(PictureSettings):
    """Which data set."""

    kind: Literal["hub"]
    # A name of the Hub ("uoft-cs/cifar10"), or a folder that `datasets.load_dataset` reads.
    name: UserPath = pydantic.Field(min_length=1)
    # The data set's own subset ("configuration"), where it has several.
    subset: str | None = None
    # A commit of the Hub, so that the data set stays the same.
    revision: str | None = None
    # Names of its parts; without a test part, a share of the training part is held out.
    train: str = "train"
    test: str | None = None
    # Names of its columns; without labels, all pictures are one class.
    image: str = "image"
    label: str | None = None


def prepare(settings: Settings) -> Splits:
    """Loads the labels; pictures are decoded when they are asked for.

    Raises:
        UserError: the library is not installed, there is no such data set, part or column, no network; or, when it is
            read, a picture cannot be used.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind: 'hub' needs the library `datasets`: pip install datasets") from error
    train = _part(settings, settings.train, datasets)
    test = _part(settings, settings.test, datasets) if settings.test else None
    labels, names = _labels(settings, train)
    _refuse_missing_classes(settings, settings.train, labels, names)
    counts = {settings.train: len(train)} | ({settings.test: len(test)} if settings.test and test else {})
    settings.refuse_other_number(settings.name, counts)
    rows = np.arange(len(train))
    if test is None:
        held_out = round(settings.test_fraction * len(train))
        try:
            rows, other_rows = stratified_split(labels, held_out, settings.split_seed)
        except UserError as error:
            raise UserError(f"{settings.name}: {error}") from error
        test, test_labels = train, labels[other_rows]
        labels = labels[rows]
    else:
        (test_labels, test_names), other_rows = _labels(settings, test), np.arange(len(test))
        if test_names != names:
            raise UserError(f"{settings.name}: '{settings.test}' has other classes than '{settings.train}'.")
        _refuse_missing_classes(settings, str(settings.test), test_labels, names)
    for name, chosen in ((settings.train, rows), (settings.test or "test", other_rows)):
        if len(chosen) < 2:
            raise UserError(f"{settings.name}: the part '{name}' has {len(chosen)} picture(s), expected at least 2.")
    facts = repr((train._fingerprint, test._fingerprint))
    return Splits(
        train_images=DecodedPictures([_Row(train, settings, int(row)) for row in rows], settings),
        train_labels=labels,
        test_images=DecodedPictures([_Row(test, settings, int(row)) for row in other_rows], settings),
        test_labels=test_labels,
        class_names=names,
        source=f"{settings.name} of the Hugging Face Hub" if not Path(settings.name).exists() else settings.name,
        fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
    )


def _refuse_missing_classes(settings: Settings, part: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
    settings.refuse_other_classes(settings.name, names)
    absent = [names[label] for label in np.setdiff1d(np.arange(len(names)), labels)]
    if settings.num_classes is not None and absent:
        raise UserError(
            f"{settings.name}: the part '{part}' has no pictures of {some_of(absent)}, expected all "
            f"{settings.num_classes:,} classes (data.num_classes). Fetch it again, or set data.num_classes to null."
        )


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: a folder of pictures with classes, as `datasets` reads it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return {"kind": "hub", "name": str(folder), "test": "test", "label": "label", "resolution": 8}


def _part(settings: Settings, name: str, library: Any) -> "datasets.Dataset":
    where = f"{settings.name} (data.name), part '{name}'"
    try:
        part = library.load_dataset(settings.name, settings.subset, split=name, revision=settings.revision)
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}). Check the name, the part and the network; "
            f"or fetch it elsewhere (hf download --repo-type dataset {settings.name}) and name its folder."
        ) from error
    for key, column in (("image", settings.image), ("label", settings.label)):
        if column is not None and column not in part.column_names:
            raise UserError(f"{where}: data.{key}: no column '{column}'; it has {some_of(part.column_names)}.")
    if not isinstance(part.features[settings.image], library.Image):
        raise UserError(f"{where}: the column '{settings.image}' (data.image) does not hold pictures.")
    decoded: datasets.Dataset = part.cast_column(settings.image, library.Image(decode=False))
    return decoded


def _labels(settings: Settings, part: "datasets.Dataset") -> tuple[np.ndarray, tuple[str, ...]]:
    if settings.label is None:
        return np.zeros(len(part), np.int64), ("all",)
    names = getattr(part.features[settings.label], "names", None)
    values = part[settings.label]
    labels = np.asarray(list(values))
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(f"{settings.name}: the column '{settings.label}' (data.label) does not hold class numbers.")
    return labels.astype(np.int64), tuple(names or map(str, range(1 + int(labels.max()))))


@dataclass(frozen=True)
class _Row:
    """A picture of the data set, still encoded."""

    part: "datasets.Dataset"
    settings: Settings
    row: int

    @property
    def name(self) -> str:
        return f"{self.settings.name}, picture {self.row}"

    def open(self) -> BinaryIO:
        stored = self.part[self.row][self.settings.image]
        if stored is None:
            raise UserError(f"{self.name}: is missing.")
        return io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else Path(stored["path"]).open("rb")
