"""A picture data set of the Hugging Face Hub, or a folder in one of its formats, through the library `datasets`."""

import hashlib
import importlib.util
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import pydantic

from diffusion.data.decode import decoded_parts
from diffusion.data.listing import composed
from diffusion.data.settings import PictureSettings
from diffusion.data.store import Splits, holds, stratified_split
from diffusion.runtime.errors import UserError, some_of
from diffusion.runtime.settings import UserPath

if TYPE_CHECKING:
    import datasets


_log = logging.getLogger(__name__)


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
    # Names of its columns; without labels, all pictures are one class. Labels are class numbers, texts or truth values,
    # one a row; the classes of numbers without names are those that occur.
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
        raise UserError(_NEEDS) from error
    parts = {name: _part(settings, name, datasets) for name in (settings.train, settings.test) if name is not None}
    train = parts[settings.train]
    labels, names = _labels(settings, parts)
    settings.refuse_other_classes(settings.name, names)
    for name, found in labels.items():
        _refuse_missing_classes(settings, name, found, names)
    settings.refuse_other_number(settings.name, {name: len(part) for name, part in parts.items()})
    if settings.test is None:
        test, held_out = train, round(settings.test_fraction * len(train))
        try:
            rows, other_rows = stratified_split(labels[settings.train], held_out, settings.split_seed)
        except UserError as error:
            raise UserError(f"{settings.name}: {error}") from error
    else:
        test = parts[settings.test]
        rows, other_rows = np.arange(len(train)), np.arange(len(test))
    for name, chosen in ((settings.train, rows), (settings.test or "test", other_rows)):
        if len(chosen) < 2:
            raise UserError(f"{settings.name}: the part '{name}' has {len(chosen)} picture(s), expected at least 2.")
    facts = repr((train._fingerprint, test._fingerprint))
    train_images, test_images = decoded_parts(
        [_Row(train, settings, int(row)) for row in rows],
        [_Row(test, settings, int(row)) for row in other_rows],
        settings,
    )
    return Splits(
        train_images=train_images,
        train_labels=labels[settings.train][rows],
        test_images=test_images,
        test_labels=labels[settings.test or settings.train][other_rows],
        class_names=names,
        # A folder's own name: where it lies is nobody's business whom the manifest reaches.
        source=Path(settings.name).name if Path(settings.name).exists() else f"{settings.name} of the Hugging Face Hub",
        fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
    )


_NEEDS = "data.kind: 'hub' needs the library `datasets`: pip install datasets"


def problems(settings: Settings) -> list[str]:
    """Whether the library is there, and the folder where a folder is named; the network is not asked."""
    found = [] if importlib.util.find_spec("datasets") else [_NEEDS]
    path = Path(settings.name)
    if path.is_file():
        found.append(
            f"data.name: {path}: is a file, expected a folder that `datasets` reads. Name the folder it is in."
        )
    elif path.is_dir():
        if not holds(path, lambda name: not name.startswith(".")):
            found.append(
                f"data.name: {path}: holds no files. Name a folder that `datasets` reads, or a name of the Hub."
            )
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", settings.name):
        found.append(
            f"data.name: {path}: not found (looked for it in {Path.cwd()}), and no name of the Hub, which are as "
            f"uoft-cs/cifar10. Correct data.name."
        )
    return found


def _refuse_missing_classes(settings: Settings, part: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
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


def _labels(settings: Settings, parts: dict[str, "datasets.Dataset"]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Of each part, indices into the names of the classes of all parts together."""
    if settings.label is None:
        return {name: np.zeros(len(part), np.int64) for name, part in parts.items()}, ("all",)
    named = {name: _classes(settings, name, part) for name, part in parts.items()}
    column, train = parts[settings.train].features[settings.label], named[settings.train]
    occurring: list[Any] = sorted(set(train))
    for name, classes in named.items():
        if strange := sorted(set(classes) - set(occurring)):
            raise UserError(
                f"{settings.name}: the classes {some_of(strange)} of '{name}' do not occur in '{settings.train}', "
                f"which has {some_of(occurring)}. Choose another part (data.test)."
            )
    # Declared names keep their numbers, which a stored teacher may know, whether they occur or not.
    declared = [composed(name) for name in getattr(column, "names", None) or ()]
    if not declared and 2 * len(occurring) > len(train):
        raise UserError(
            f"{settings.name}: the column '{settings.label}' (data.label) holds {len(occurring):,} different values in "
            f"{len(train):,} rows, as {str(train[0])[:80]!r}: names or captions, not classes. {_ONE_CLASS}"
        )
    order = {label: index for index, label in enumerate(declared or occurring)}
    if absent := [label for label in order if label not in occurring]:
        _log.warning("%s: '%s' has no picture of %s", settings.name, settings.train, some_of(absent))
    labels = {name: np.array([order[label] for label in classes], np.int64) for name, classes in named.items()}
    return labels, tuple(map(str, order))


def _classes(settings: Settings, name: str, part: "datasets.Dataset") -> list[Any]:
    """Each row's class: its name, or its number where numbers have no names."""
    where = f"{settings.name}, part '{name}': the column '{settings.label}' (data.label)"
    feature, values = part.features[settings.label], part[settings.label][:]
    if any(isinstance(value, float) for value in values):  # whole numbers and NaN are what pandas makes of gaps
        if broken := [value for value in values if value is not None and value % 1 > 0]:
            raise UserError(f"{where} holds numbers with fractions, as {broken[0]}. {_ONE_CLASS}")
        values = [int(value) if value is not None and value % 1 == 0 else None for value in values]
    kinds = {type(value) for value in values} - {type(None)}
    if kinds & {list, dict}:
        raise UserError(f"{where} holds several values a row, as {str(values[0])[:80]}. {_ONE_CLASS}")
    if not kinds <= {int, bool, str}:
        raise UserError(f"{where} holds {getattr(feature, 'dtype', type(feature).__name__)}. {_ONE_CLASS}")
    if unlabelled := sum(value is None or value == "" or (isinstance(value, int) and value < 0) for value in values):
        everything = unlabelled == len(values)
        raise UserError(
            f"{where} has no label in {'all' if everything else f'{unlabelled:,} of'} {len(values):,} rows (null, "
            f"empty or below 0). {'Choose another part' if everything else 'Leave these rows out'}, or set data.label "
            f"to null, so that all pictures are one class."
        )
    if declared := getattr(feature, "names", None):
        return [composed(declared[value]) for value in values]
    return values if kinds == {int} else [composed(str(value)) for value in values]


_ONE_CLASS = (
    "Expected one class a row: a class number, a text or a truth value. Name another column, or set data.label to "
    "null, so that all pictures are one class."
)


@dataclass(frozen=True)
class _Row:
    """A picture of the data set, still encoded."""

    part: "datasets.Dataset"
    settings: Settings
    row: int

    @property
    def name(self) -> str:
        return f"{self.settings.name}, part '{self.part.split}', picture {self.row}"

    def open(self) -> BinaryIO:
        stored = self.part[self.row][self.settings.image]
        if stored is None:
            raise UserError(f"{self.name}: is missing.")
        return io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else Path(stored["path"]).open("rb")
