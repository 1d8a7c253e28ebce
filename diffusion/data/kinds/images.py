"""A folder or a zip of pictures, with classes as subfolders.

Layout
    A folder for training (``train``, ``Training``, ``train_images``, ``train2017``, …) and one for testing at the
    top are the two parts, and the classes are the folders below them. For testing serves the first that exists of
    test, validation, hold-out, evaluation and development, each in the forms that people write. Names that share
    what else they say (``seg_train`` and ``seg_test``) are parts, too. A folder of one kind beside folders that may
    be classes is refused, and so are two folders of one kind, and parts below the classes.
    Without parts the classes are the folders at the top, and a part of every class is split off for testing.
    Pictures in no subfolder are one class, named ``all``, and so are all pictures with ``classes: false``. Pictures
    deeper down belong to the class folder above them. If everything lies in one folder that holds only folders, as
    in many zips, or in one part alone, that folder is entered first.
    Where ``dataset.json`` of EDM and StyleGAN lies at the top or in a part, the labels are read from it, and folders
    are no classes: ``{"labels": [["00000/img.png", 3], …]}``, with names from its own folder on; without labels
    (``{"labels": null}``) all pictures are one class. The classes are the numbers that occur, in their order.
    Classes and pictures are in the order of their names (by code point, in Unicode's form NFC). Hidden files and what
    systems and file servers leave (``__MACOSX``, ``@eaDir``, ``Thumbs.db``, …) are skipped; files that are not
    pictures by their extension are skipped and counted in the log. A zip is read in place.

Conversion of a picture, in this order
    1. The first frame of an animation is taken, whole: no reduced JPEG decoding.
    2. The EXIF orientation is applied; one that cannot be read is none. Colour profiles are ignored.
    3. Eight bits a channel: 16-bit grey (and 32-bit integers within 0…65535) is divided by 257 and rounded;
       of 16-bit colour Pillow reads the upper byte. Floating-point pictures are refused.
    4. Transparency is composited over white.
    5. Colour: palette, CMYK and YCbCr become RGB; grey becomes RGB by repetition; with ``channels: 1`` colour
       becomes luma (ITU-R 601, Pillow's ``L``).
    6. Size, in the way that ``crop`` names:
       ``adm``: the centre crop of ADM (Dhariwal and Nichol 2021, ``center_crop_arr`` of guided-diffusion; EDM's
       ``center-crop-dhariwal``): halve with a box filter while the shorter side is at least twice the resolution,
       resize with a bicubic filter until the shorter side is the resolution, cut out the middle;
       ``box``: resize with a box filter until the shorter side is the resolution, cut out the middle, as
       guided-diffusion prepares LSUN (``datasets/lsun_bedroom.py``);
       ``lanczos``: cut out the middle square, resize with Lanczos' filter, as EDM's ``dataset_tool.py`` does with
       ``center-crop``, and without a crop for pictures that are square, as FFHQ's.
       Smaller pictures are enlarged by the same filter.

Pictures that cannot be used are refused together, each with its reason, when all of them have been looked at.
"""

import hashlib
import io
import json
import logging
import os
import re
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, Protocol

import numpy as np
import pydantic

from diffusion.data.store import MOST_LOOKED_AT, Splits, holds, stratified_split
from diffusion.runtime.errors import UserError, first_line, some_of
from diffusion.runtime.files import is_left_over
from diffusion.runtime.settings import DataSettings, UserPath

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Only these decoders are tried, whatever the extension says: Pillow's others include EPS, which runs
# Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's own threshold against decompression bombs: a quarter of a GiB as RGB.
MAX_PIXELS = 89_478_485
# A compressed picture above this is not one; an entry of a zip may claim any size.
MAX_BYTES = 512 * 2**20
# A longer strip would be enlarged into gigabytes before its middle is cut out.
MAX_ASPECT = 50
# Pictures a worker thread takes at a time.
CHUNK = 32

# Bad pictures that an error names with their reasons.
MOST_NAMED = 20

# How people write the parts' names; those for testing are in the order in which they are taken.
_PART_WORDS = {
    "train": r"train(?:ing)?s?|trn",
    "test": r"test(?:ing)?s?|tst",
    "validation": r"val(?:id|idation)?s?",
    "hold-out": r"h[eo]ldouts?",
    "evaluation": r"eval(?:uation)?s?",
    "development": r"dev(?:elopment)?s?",
}
# What names of parts hold besides, and what says nothing.
_FILLERS = r"(?:data|sets?|datasets?|images?|imgs?|pictures?|photos?|splits?|parts?|folders?)"
# The labels' file of EDM and StyleGAN.
TABLE = "dataset.json"

# How files begin that are often called pictures: at which byte, with what, what they are.
_READABLE = (
    *((0, b"BM", "BMP"), (0, b"GIF8", "GIF"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG", "PNG")),
    *((0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (8, b"WEBP", "WEBP"), (0, b"P5", "PPM"), (0, b"P6", "PPM")),
)
_FOREIGN = (
    *((4, b"ftypavi", "AVIF"), (4, b"ftyphe", "HEIC"), (4, b"ftypmif1", "HEIC or AVIF"), (4, b"ftyp", "MP4 or MOV")),
    *((0, b"\xff\x0a", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"), (0, b"8BPS", "Photoshop's PSD")),
    *((0, b"\0\0\1\0", "ICO"), (0, b"%PDF", "PDF"), (0, b"%!PS", "PostScript"), (0, b"RIFF", "a file of RIFF")),
    *((0, b"<svg", "SVG"), (0, b"<?xml", "XML or SVG"), (0, b"<!doctype html", "HTML"), (0, b"<html", "HTML")),
    *((0, b"PK\3\4", "a zip"), (0, b"\x1f\x8b", "gzip"), (0, b"\x93NUMPY", "an array of NumPy")),
    (0, b"version https://git-lfs", "a pointer of Git LFS, for which `git lfs pull` fetches the file"),
)

Crop = Literal["adm", "box", "lanczos"]

_log = logging.getLogger(__name__)


class CountedSettings(DataSettings):
    """How many pictures there must be."""

    # In all parts together; null takes what is there. Seen before a picture is read.
    num_pictures: int | None = pydantic.Field(default=None, ge=1)

    later: ClassVar[tuple[str, ...]] = (*DataSettings.later, "num_pictures", "num_classes", "classes")

    def refuse_other_number(self, where: str, parts: Mapping[str, int]) -> None:
        """Raises UserError where the pictures of all parts are not as many as there must be."""
        found = sum(parts.values())
        if self.num_pictures is not None and found != self.num_pictures:
            each = ", ".join(f"{part} {count:,}" for part, count in parts.items())
            raise UserError(
                f"{where}: found {found:,} pictures ({each}), expected {self.num_pictures:,} (data.num_pictures). "
                f"Unpack or fetch it again; or set data.num_pictures to null to take what is there."
            )


class PictureSettings(CountedSettings):
    """What becomes of pictures that come encoded, and what is held out of them."""

    # Side of the square pictures that come out, in pixels.
    resolution: int = pydantic.Field(ge=2, le=4096)
    # 3 for RGB, 1 for grey.
    channels: Literal[1, 3] = 3
    # How a picture gets its size; see the head of this file.
    crop: Crop = "adm"
    # Share of the pictures for the test part; used where the source itself has no split.
    test_fraction: float = pydantic.Field(default=0.2, gt=0, le=0.5)
    split_seed: int = pydantic.Field(default=0, ge=0)
    # Classes there must be, each of them in both parts where the source itself has a split; null takes what is there.
    num_classes: int | None = pydantic.Field(default=None, ge=1)

    def refuse_other_classes(self, where: str, names: Collection[str]) -> None:
        """Raises UserError where the classes are not as many as there must be."""
        if self.num_classes is not None and len(names) != self.num_classes:
            raise UserError(
                f"{where}: found {len(names):,} classes ({some_of(names)}), expected {self.num_classes:,} "
                f"(data.num_classes). Unpack or fetch it again; or set data.num_classes to null to take what is there."
            )


class Settings(PictureSettings):
    """Where the pictures are."""

    kind: Literal["images"]
    # A folder or a zip; relative to the folder the workflow is started in, ~ is the home folder.
    path: UserPath = pydantic.Field(min_length=1)
    # Whether subfolders are classes; false where they only keep folders small, as FFHQ's 00000, 01000, … do.
    classes: bool = True


def prepare(settings: Settings) -> Splits:
    """Lists the pictures; they are read when they are asked for. The module's docstring has layout and conversion.

    Raises:
        UserError: the path or the layout cannot be used; and, when it is read, a picture. The message names the file.
    """
    path = Path(settings.path)
    with ExitStack() as stack:
        files, folders = _list_folder(path) if path.is_dir() else _list_zip(path, stack)
        tables = _tables(files) if settings.classes else {}
        _warn_of_skipped(path, files, tables)
        pictures = sorted((file for file in files if _is_picture(file.parts[-1])), key=lambda f: (f.parts, f.name))
        if not pictures:
            raise UserError(f"{path}: holds no pictures ({len(files)} other files). {_EXPECTED}")
        train, test, class_names = _arrange(path, pictures, folders, tables, settings)
        settings.refuse_other_number(str(path), {"train": len(train), "test": len(test)})
        for name, part in (("train", train), ("test", test)):
            if len(part) < 2:
                raise UserError(
                    f"{path}: the {name} part has {len(part)} picture(s), expected at least 2 (there are "
                    f"{len(pictures)} in all). Add pictures or change test_fraction."
                )
        opened = stack.pop_all()  # a zip stays open for as long as its pictures may be read
    train_images, test_images = decoded_parts([file for file, _ in train], [file for file, _ in test], settings, opened)
    return Splits(
        train_images=train_images,
        train_labels=np.array([label for _, label in train], dtype=np.int64),
        test_images=test_images,
        test_labels=np.array([label for _, label in test], dtype=np.int64),
        class_names=class_names,
        source=f"pictures in {path.name}",
        # Folders of classes are in the pictures' paths; a table is not.
        fingerprint=_fingerprint([*train, *test], class_names if tables else ()),
    )


def problems(settings: Settings) -> list[str]:
    """What is wrong with ``data.path`` as far as a moment shows; an answer of [] does not mean that all is right."""
    path = Path(settings.path)
    if path.is_dir():
        found = holds(path, _is_picture, is_left_over)
    elif not path.exists():
        return [f"data.path: {path}: not found (looked for it in {Path.cwd()}). {_FOLDER_OR_ZIP}"]
    elif not zipfile.is_zipfile(path):
        return [f"data.path: {path}: is neither a folder nor a whole zip. {_FOLDER_OR_ZIP}"]
    else:
        found = _zip_holds_a_picture(path)
    return [] if found else [f"data.path: {path}: holds no pictures. {_EXPECTED}"]


def _zip_holds_a_picture(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 2**16 - 22))
        end = handle.read()
    # The number of entries, which ends the zip: to read the list of a million takes seconds.
    (count,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if count > MOST_LOOKED_AT:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = [_parts_of_entry(entry.filename) for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return True  # the job says what it is
    return any(parts and _is_picture(parts[-1]) and not any(map(is_left_over, parts)) for parts in names)


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: three classes of five 6×5 pictures each, written to ``folder``."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return {"kind": "images", "path": str(folder), "resolution": 4}


_FOLDER_OR_ZIP = "Expected a folder or a zip of pictures; correct data.path."
_EXPECTED = f"Expected files that end in one of {' '.join(EXTENSIONS)}, with classes as subfolders."


# Listing and layout


@dataclass(frozen=True)
class PictureFile:
    """A file of the folder or zip: its path inside in parts (NFC), its name for messages, where its bytes are."""

    parts: tuple[str, ...]
    name: str
    place: Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]

    def open(self) -> BinaryIO:
        """The bytes as a seekable file."""
        if isinstance(self.place, Path):
            if not self.place.is_file():  # a dangling link, or a pipe that would block for ever
                raise UserError(f"{self.name}: is not a file. {_MEND}")
            self._refuse_size(self.place.stat().st_size)
            return self.place.open("rb")
        archive, entry = self.place
        if entry.flag_bits & 0x1:
            raise UserError(f"{self.name}: is encrypted. Pack the zip again without a password.")
        self._refuse_size(entry.file_size)
        return io.BytesIO(archive.read(entry))

    def _refuse_size(self, size: int) -> None:
        if size > MAX_BYTES:
            raise UserError(
                f"{self.name}: is {size / 2**20:.0f} MiB large, expected a picture of at most "
                f"{MAX_BYTES / 2**20:.0f} MiB. Make it smaller, or take it out."
            )


_MEND = "Put the picture in its place, or take it out."


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _parts_of_entry(name: str) -> tuple[str, ...]:
    # Windows programs write backslashes. The names are never used as paths, so nothing can point outside.
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _composed(name: str) -> str:
    """A name as macOS stores it (é as e and an accent) and as others do is one name."""
    return unicodedata.normalize("NFC", name)


def _list_folder(root: Path) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """All files and all folders below ``root``, without hidden ones. Links are followed, loops are not."""
    files: list[PictureFile] = []
    folders: set[tuple[str, ...]] = set()

    def walk(folder: Path, parts: tuple[str, ...], above: frozenset[str]) -> None:
        here = os.path.realpath(folder)
        if here in above:
            raise UserError(f"{folder}: is a link to a folder above it. Take the link out of {root}.")
        for entry in os.scandir(folder):
            if is_left_over(entry.name):
                continue
            inside = (*parts, _composed(entry.name))
            if entry.is_dir():
                folders.add(inside)
                walk(Path(entry.path), inside, above | {here})
            else:
                files.append(PictureFile(inside, entry.path, Path(entry.path)))

    try:
        walk(root, (), frozenset())
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be listed ({error.strerror}).") from error
    return files, folders


def _list_zip(path: Path, stack: ExitStack) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """The same for the entries of a zip, which stays open until ``stack`` closes it."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found (looked for it in {Path.cwd()}). {_FOLDER_OR_ZIP}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is neither a folder nor a whole zip ({error}). {_FOLDER_OR_ZIP}") from error
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read ({error}). {_FOLDER_OR_ZIP}") from error
    # By name, because a zip may hold a name twice: the later entry is the valid one.
    files: dict[tuple[str, ...], PictureFile] = {}
    folders: set[tuple[str, ...]] = set()
    for entry in archive.infolist():
        name, own_parts = entry.filename.replace("\\", "/"), _parts_of_entry(entry.filename)
        if not own_parts or any(map(is_left_over, own_parts)):
            continue
        parts = tuple(map(_composed, own_parts))
        above = parts if name.endswith("/") else parts[:-1]
        folders.update(above[:depth] for depth in range(1, len(above) + 1))
        if not name.endswith("/"):
            files[own_parts] = PictureFile(parts, f"{path}/{name}", (archive, entry))
    return list(files.values()), folders


def _warn_of_skipped(path: Path, files: Sequence[PictureFile], tables: "_Tables") -> None:
    skipped = Counter(
        os.path.splitext(file.parts[-1])[1].lower() or "no extension"
        for file in files
        if not _is_picture(file.parts[-1]) and not (file.parts[-1] == TABLE and file.parts[:-1] in tables)
    )
    if skipped:
        detail = some_of([f"{count} × {extension}" for extension, count in sorted(skipped.items())])
        _log.warning("%s: skipped %d files that are not pictures (%s)", path, skipped.total(), detail)


@dataclass(frozen=True)
class _Table:
    """A ``dataset.json``: the classes' numbers by the pictures' parts, None where it says that there are no labels."""

    name: str
    labels: dict[tuple[str, ...], int] | None


# By the folder in which they lie.
_Tables = dict[tuple[str, ...], _Table]


def _tables(files: Sequence[PictureFile]) -> _Tables:
    found = {}
    for file in files:
        if file.parts[-1] != TABLE:
            continue
        try:
            with file.open() as handle:
                content = json.load(handle)
        except (OSError, ValueError, RuntimeError, RecursionError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{file.name}: cannot be read as JSON ({first_line(error)}); expected the labels of EDM and StyleGAN. "
                f"Write it anew, or rename it if it has nothing to do with labels."
            ) from error
        if isinstance(content, dict) and "labels" in content:
            folder = file.parts[:-1]
            found[folder] = _Table(file.name, _table_labels(file.name, folder, content["labels"]))
    return found


def _table_labels(name: str, folder: tuple[str, ...], pairs: Any) -> dict[tuple[str, ...], int] | None:
    """Checked as far as they can be without the pictures."""
    if pairs is None:
        return None
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    form = 'Expected {"labels": [["00000/img.png", 3], …]} with one class number a picture, or {"labels": null}'
    if not isinstance(pairs, list):
        raise UserError(f"{name}: 'labels' is {type(pairs).__name__}. {form}.")
    labels: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"{name}: 'labels' holds {some_of([json.dumps(pair)])[:80]}. {form}.")
        parts = (*folder, *map(_composed, _parts_of_entry(pair[0])))
        if parts in labels:
            raise UserError(f"{name}: has two labels of {pair[0]}. {form}.")
        # A label that is null is none, as -1 is.
        labels[parts] = -1 if pair[1] is None else pair[1]
        if type(labels[parts]) is not int:
            raise UserError(f"{name}: the label of {pair[0]} is {json.dumps(pair[1])[:80]}. {form}.")
    if unlabelled := sum(number < 0 for number in labels.values()):
        raise UserError(
            f"{name}: {unlabelled:,} of {len(labels):,} pictures have no label (null, or a number below 0). Label them "
            f"or leave them out; or set data.classes to false, so that all pictures are one class."
        )
    return labels


def _table_of(folder: tuple[str, ...], tables: _Tables) -> _Table | None:
    """The table that labels what is in a folder: its own, or that of the nearest folder above."""
    return next((tables[folder[:depth]] for depth in range(len(folder), -1, -1) if folder[:depth] in tables), None)


_Part = list[tuple[PictureFile, int]]


def _arrange(
    path: Path,
    pictures: Sequence[PictureFile],
    folders: set[tuple[str, ...]],
    tables: _Tables,
    settings: Settings,
) -> tuple[_Part, _Part, tuple[str, ...]]:
    """Train part, test part (pictures with labels, in the order of names) and the names of the classes."""

    def classes_below(folder: tuple[str, ...]) -> dict[str, list[PictureFile]]:
        if (table := _table_of(folder, tables)) is not None:
            return _classes_of_table(table, folder, pictures)
        return _classes_below(path, folder, pictures, folders, settings.classes)

    root = _enter_wrappers(path, pictures, folders, tables)
    parts = _find_parts(path, root, pictures, folders)
    if parts:
        unused = sum(not any(_is_below(p, part) for part in parts.values()) for p in pictures)
        where, own = "/".join((str(path), *root)), {part: folder[-1] for part, folder in parts.items()}
        if unused:
            _log.warning(
                "%s: uses %s and %s; %d pictures elsewhere are left out", path, own["train"], own["test"], unused
            )
        inner = {part: _enter_repeated(folder, pictures, folders) for part, folder in parts.items()}
        if settings.classes and not any(_table_of(folder, tables) for folder in inner.values()):
            _refuse_flat_part(where, {own[part]: folder for part, folder in inner.items()}, pictures, folders)
        train, test = (classes_below(inner[part]) for part in ("train", "test"))
        names = tuple(train)
        if strange := [name for name in test if name not in train]:
            raise UserError(
                f"{where}: the classes {some_of(strange)} of '{own['test']}' do not occur in '{own['train']}', which "
                f"has {some_of(names)}. Both need the same classes."
            )
        settings.refuse_other_classes(f"{where}/{own['train']}", names)
        if settings.num_classes is not None and (absent := [name for name in train if name not in test]):
            raise UserError(
                f"{where}/{own['test']}: found {len(test):,} folders of classes, expected {settings.num_classes:,} "
                f"(data.num_classes), those of '{own['train']}'; it lacks {some_of(absent)}. Unpack it again."
            )
        return _labelled(train, names), _labelled(test, names), names
    classes = classes_below(root)
    names = tuple(classes)
    settings.refuse_other_classes(str(path), names)
    everything = _labelled(classes, names)
    try:
        indices = stratified_split(
            np.array([label for _, label in everything]),
            round(settings.test_fraction * len(everything)),
            settings.split_seed,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    train_part, test_part = ([everything[index] for index in part] for part in indices)
    return train_part, test_part, names


def _part_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Which part a folder of this name is, and what else the name says; None where it names no part, or several.

    ``Train``, ``training_set`` and ``trainImages2017`` are ("train", ()), ``seg_test`` is ("test", ("seg",)).
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = re.findall(r"[^\W\d_]+", re.sub(r"\b(h[eo]ld)[ _-]*(outs?)", r"\1\2", apart))
    found: list[str] = []
    others: list[str] = []
    for word in words:
        part = next((p for p, form in _PART_WORDS.items() if re.fullmatch(f"(?:{form}){_FILLERS}?", word)), None)
        if part is not None:
            found.append(part)
        elif not re.fullmatch(_FILLERS, word):
            others.append(word)
    return (found[0], tuple(others)) if len(found) == 1 else None


def _parts_among(names: Collection[str]) -> dict[str, list[str]]:
    """The folders that are parts, by the part, in the order of :data:`_PART_WORDS`."""
    grouped: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in sorted(names):
        if known := _part_of(name):
            grouped.setdefault(known[1], {}).setdefault(known[0], []).append(name)
    # A name that says more, as "train_station" does, is a part only beside one for testing that says the same.
    sure = [parts for others, parts in grouped.items() if not others or ("train" in parts and len(parts) > 1)]
    found = {part: [name for parts in sure for name in parts.get(part, [])] for part in _PART_WORDS}
    return {part: folders for part, folders in found.items() if folders}


def _find_parts(
    path: Path, root: tuple[str, ...], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]]
) -> dict[str, tuple[str, ...]] | None:
    """The folders of the train and the test part; None where the pictures are in no parts.

    Raises:
        UserError: what are parts and what are classes is unclear.
    """
    where, names = "/".join((str(path), *root)), _children(root, folders)
    parts = _parts_among(names)
    for part, several in parts.items():
        if len(several) > 1:
            raise UserError(
                f"{where}: the folders {some_of(several)} may each be the {part} part. Rename what is not, so that "
                f"no name says '{part}', or keep it elsewhere."
            )
    training, testing = parts.pop("train", None), [name for several in parts.values() for name in several]
    if training and testing:
        return {"train": (*root, training[0]), "test": (*root, testing[0])}
    others = sorted(names - {*(training or []), *testing})
    if any(file.parts[:-1] == root for file in pictures):
        others.append("pictures in no folder")
    if (training or testing) and (others or len(testing) > 1):
        found = some_of([*(training or []), *testing])
        raise UserError(
            f"{where}: {found} {'are parts' if len(testing) > 1 else 'may be a part or a class'}, and there is no "
            f"{'test' if training else 'train'} part{f' beside {some_of(others)}' if others else ''}. Name the two "
            f"parts train and test, with the classes below them; or rename a class that is called so."
        )
    inner: dict[str, set[str]] = {}
    for folder in folders:
        if len(folder) == len(root) + 2 and folder[:-2] == root:
            inner.setdefault(folder[-2], set()).add(folder[-1])
    for name, children in sorted(inner.items()):
        below = _parts_among(children)
        if "train" in below and len(below) > 1:
            inside = [f"{name}/{folder}" for several in below.values() for folder in several]
            raise UserError(
                f"{where}: the parts {some_of(inside)} lie below '{name}', so that pictures for testing would be "
                f"trained on. Move the parts to the top, with the classes below them; or name {where}/{name} as "
                f"data.path."
            )
    return None


def _refuse_flat_part(
    where: str, parts: dict[str, tuple[str, ...]], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]]
) -> None:
    """One part has folders of classes and the other has none, as ImageNet's `val` comes out of its archive."""
    classes = {name: sorted(_children(folder, folders)) for name, folder in parts.items()}
    for flat, other in (tuple(parts), tuple(parts)[::-1]):
        inside = sum(_is_below(file, parts[flat]) for file in pictures)
        if inside and not classes[flat] and classes[other]:
            raise UserError(
                f"{where}/{flat}: has {inside:,} pictures but no folders of classes, and '{other}' has "
                f"{len(classes[other]):,} ({some_of(classes[other])}). Sort the pictures into the same folders of "
                f"classes as those of '{other}', as torchvision wants them; or set data.classes to false."
            )


def _is_below(file: PictureFile, folder: tuple[str, ...]) -> bool:
    return len(file.parts) > len(folder) and file.parts[: len(folder)] == folder


def _children(folder: tuple[str, ...], folders: set[tuple[str, ...]]) -> set[str]:
    return {other[-1] for other in folders if other[:-1] == folder}


def _enter_wrappers(
    path: Path, pictures: Sequence[PictureFile], folders: set[tuple[str, ...]], tables: _Tables
) -> tuple[str, ...]:
    """The folder where classes or parts begin: below single folders that hold only folders, and below a part alone."""
    root: tuple[str, ...] = ()
    while root not in tables and len(children := _children(root, folders)) == 1:
        below = (*root, *children)
        # With pictures beside the folder it is a class; so it is with pictures in it, unless it is known otherwise.
        is_class = not _parts_among(children) and below not in tables
        if min(len(file.parts) for file in pictures) <= len(below) + is_class:
            break
        root = below
    if root:
        _log.info("%s: everything lies in %s", path, "/".join(root))
    return root


def _enter_repeated(
    part: tuple[str, ...], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]]
) -> tuple[str, ...]:
    """A part's folder, or the one of the same name in it, as archives that are unpacked into themselves have."""
    again = (*part, part[-1])
    beside = any(_is_below(file, part) and not _is_below(file, again) for file in pictures)
    return again if _children(part, folders) == {part[-1]} and not beside else part


def _classes_of_table(
    table: _Table, folder: tuple[str, ...], pictures: Sequence[PictureFile]
) -> dict[str, list[PictureFile]]:
    """The pictures in ``folder`` by the numbers that a table gives them, in the order of the numbers."""
    inside = [file for file in pictures if _is_below(file, folder)]
    if table.labels is None:
        _log.info("%s: has no labels, so that all pictures are one class", table.name)
        return {"all": inside}
    _log.info("%s: the labels are read from it", table.name)
    known = {file.parts for file in inside}
    for names, what in (
        ([file.name for file in inside if file.parts not in table.labels], "has no label of {} pictures"),
        (
            ["/".join(name) for name in table.labels if name[: len(folder)] == folder and name not in known],
            "labels {} files that are no pictures in its folder",
        ),
    ):
        if names:
            raise UserError(
                f"{table.name}: {what.format(f'{len(names):,}')} ({some_of(names)}), of {len(inside):,} there are. "
                f"Expected each picture's name from the folder of {TABLE} on, with its label. Write it anew."
            )
    classes: dict[str, list[PictureFile]] = {str(n): [] for n in sorted({table.labels[parts] for parts in known})}
    for file in inside:
        classes[str(table.labels[file.parts])].append(file)
    return classes


def _classes_below(
    path: Path, root: tuple[str, ...], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]], has_classes: bool
) -> dict[str, list[PictureFile]]:
    """The pictures of every class folder in ``root`` in the order of the names, or all as one class."""
    where = "/".join((str(path), *root))
    inside = [file for file in pictures if _is_below(file, root)]
    if not has_classes:
        return {"all": inside}
    names = sorted(_children(root, folders))
    loose = [file for file in inside if len(file.parts) == len(root) + 1]
    if not names and inside:
        return {"all": inside}
    if loose:
        raise UserError(
            f"{loose[0].name}: lies beside folders of classes ({some_of(names)}), so its "
            f"class is unclear. Move it into one of them, or put all pictures into one folder for a "
            f"single class."
        )
    classes: dict[str, list[PictureFile]] = {name: [] for name in names}
    for file in inside:
        classes[file.parts[len(root)]].append(file)
    empty = [name for name, members in classes.items() if not members]
    if empty or not classes:
        culprit = f"{where}/{empty[0]}" if empty else where
        raise UserError(
            f"{culprit}: holds no pictures, though every folder in {where} is taken for a class. Fill it, or keep it "
            f"elsewhere."
        )
    return classes


def _labelled(classes: dict[str, list[PictureFile]], names: Sequence[str]) -> _Part:
    return [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]


# Reading pictures


class Encoded(Protocol):
    """A picture as it is stored: its name for messages, and its bytes as a seekable file."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...


class Size(Protocol):
    """What becomes of a picture; settings with these keys are one."""

    @property
    def resolution(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def crop(self) -> Crop: ...


def decoded_parts(
    train: Sequence[Encoded], test: Sequence[Encoded], size: Size, opened: ExitStack | None = None
) -> "tuple[DecodedPictures, DecodedPictures]":
    """The pictures of both parts, to be decoded when they are asked for.

    Args:
        train, test: in order.
        size: what becomes of them.
        opened: what has to stay open as long as they may be read; closed with the last reference.
    """
    decoder = _Decoder([*train, *test], size, opened)
    return DecodedPictures(decoder, 0, len(train)), DecodedPictures(decoder, len(train), len(test))


class DecodedPictures:
    """The pictures of a part, decoded on all cores when a slice of them is asked for: uint8 (N, H, W, C).

    Threads will do, because Pillow decodes and resizes outside Python's lock. Where a picture cannot be used, all that
    were not seen yet are looked at, of the other part, too, so that one error names all of them.
    """

    def __init__(self, decoder: "_Decoder", first: int, count: int) -> None:
        self._decoder, self._first = decoder, first
        self.shape = (count, decoder.size.resolution, decoder.size.resolution, decoder.size.channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        from PIL import Image

        Image.init()  # loads the decoders before threads would do so at the same time
        start, stop, _ = rows.indices(len(self))
        result = np.empty((stop - start, *self.shape[1:]), dtype=np.uint8)

        def work(first: int) -> None:
            for index in range(first, min(first + CHUNK, stop)):
                result[index - start] = self._decoder.decoded(self._first + index)

        with ThreadPoolExecutor(_cores()) as pool:
            jobs = [pool.submit(work, first) for first in range(start, stop, CHUNK)]
            try:
                for job in jobs:
                    job.result()
            except UserError as error:
                pool.shutdown(cancel_futures=True)
                _log.warning(
                    "%s All other pictures are looked at, so that what cannot be used is named at once.", error
                )
                raise UserError(self._decoder.all_bad() or str(error)) from error
            finally:
                pool.shutdown(cancel_futures=True)
        if stop == len(self):
            self._decoder.warn_of_one_colour(self._first, self._first + stop)
        return result


class _Decoder:
    """The pictures of both parts, and what was seen of them."""

    def __init__(self, files: Sequence[Encoded], size: Size, opened: ExitStack | None) -> None:
        self.size, self._files, self._opened = size, files, opened
        # Of each picture: 0 not decoded yet, 1 decoded, 2 of one colour.
        self._seen = bytearray(len(files))

    def decoded(self, index: int) -> np.ndarray:
        pixels = read_picture(self._files[index], self.size)
        self._seen[index] = 2 if (pixels == pixels[0, 0]).all() else 1
        return pixels

    def all_bad(self) -> str:
        """A line a picture that cannot be used, up to :data:`MOST_NAMED`, and how many there are."""

        def work(index: int) -> str | None:
            try:
                self.decoded(index)
            except UserError as error:
                return str(error)
            return None

        lines: list[str] = []
        count = 0
        with ThreadPoolExecutor(_cores()) as pool:
            for start in range(0, len(self._files), 1024):  # of millions, what is to be done would fill the memory
                unseen = [index for index, seen in enumerate(self._seen[start : start + 1024], start) if not seen]
                bad = list(filter(None, pool.map(work, unseen)))
                lines += bad[: MOST_NAMED - len(lines)]
                count += len(bad)
        if count > len(lines):
            lines.append(
                f"… and {count - len(lines):,} more: {count:,} pictures of {len(self._files):,} cannot be used."
            )
        return "\n".join(lines)

    def warn_of_one_colour(self, start: int, stop: int) -> None:
        seen = self._seen[start:stop]
        plain = [self._files[index].name for index, what in enumerate(seen, start) if what == 2]
        if plain:
            read = len(seen) - seen.count(0)
            _log.warning("%d of %d pictures are of one colour throughout: %s", len(plain), read, some_of(plain))


def _fingerprint(files: Iterable[tuple[PictureFile, int]], class_names: Sequence[str]) -> str:
    """Of names, sizes and times, not of the content; and of the labels where ``class_names`` are given."""
    digest = hashlib.sha256()
    for file, label in files:
        if isinstance(file.place, Path):
            exists = file.place.exists()  # a dangling link is refused when it is read
            status = file.place.stat() if exists else file.place.lstat()
            facts: tuple[int | str, ...] = (status.st_size, status.st_mtime_ns)
        else:
            facts = (file.place[1].CRC, file.place[1].file_size)
        digest.update(repr((file.parts, *facts, *class_names[label : label + 1])).encode())
    return digest.hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_picture(file: Encoded, size: Size) -> np.ndarray:
    """Reads and converts one picture as the module's docstring says.

    Returns:
        uint8 array, shape (resolution, resolution, channels).

    Raises:
        UserError: the file is truncated, damaged, no picture, too large, or of a kind that is refused.
    """
    from PIL import Image

    try:
        with file.open() as handle, Image.open(handle, formats=FORMATS) as image:
            _refuse_sizes(file, image)
            image.load()
            picture = _to_mode(file, _upright(image), "RGB" if size.channels == 3 else "L")
            converted = _resized(picture, size.resolution, size.crop)
    except Image.DecompressionBombError as error:
        raise UserError(f"{file.name}: has too many pixels ({error}). Make it smaller, or take it out.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{file.name}: {_what_it_is(file)}") from error
    except NotImplementedError as error:
        raise UserError(f"{file.name}: cannot be unpacked ({error}). Pack the zip by another method.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        RuntimeError,  # zipfile, too: passwords
        EOFError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file.name}: cannot be read ({error.strerror}).") from error
        raise UserError(f"{file.name}: cannot be read as a picture ({first_line(error)}). {_DAMAGED}") from error
    return np.asarray(converted).reshape(size.resolution, size.resolution, size.channels)


_DAMAGED = "It may be truncated or damaged; replace it, or take it out."


def _what_it_is(file: Encoded) -> str:
    """In words, of a file that is none of :data:`FORMATS`."""
    with file.open() as handle:
        head = handle.read(32)
    if not head:
        return f"cannot be read as a picture (it has 0 bytes). {_DAMAGED}"
    text = head.lstrip(b"\xef\xbb\xbf\r\n\t ").lower()
    names = [
        name for at, begin, name in (*_READABLE, *_FOREIGN) if head[at:].startswith(begin) or text.startswith(begin)
    ]
    if any(name == readable for name in names for *_, readable in _READABLE):
        return f"cannot be read as a picture (it begins like {names[0]}, and what follows is none). {_DAMAGED}"
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    begins = f"like {names[0]}" if names else f"with the bytes {head[:8].hex(' ')}"
    return f"is not a {formats} (it begins {begins}). Put it there in one of these formats, or take it out."


def _refuse_sizes(file: Encoded, image: "Image.Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected at most {MAX_PIXELS} in all (protection "
            f"against decompression bombs). Make it smaller, or take it out."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected sides of at most {MAX_ASPECT} to 1. Crop it, or take "
            f"it out."
        )


def _upright(image: "Image.Image") -> "Image.Image":
    """Applies the EXIF orientation.

    Called after decoding, because Pillow turns TIFFs itself then, and drops the tag.
    """
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # whatever Pillow's reader of TIFF raises: the pixels are whole, and no orientation is known
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_mode(file: Encoded, image: "Image.Image", mode: Literal["L", "RGB"]) -> "Image.Image":
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(file, image)
    if image.has_transparency_data:
        if image.mode == "La":  # grey with premultiplied alpha, for which Pillow knows only this step
            image = image.convert("LA")
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise UserError(
            f"{file.name}: its pixels are of Pillow's mode {image.mode}, for which there is no defined "
            f"conversion to eight bits. Convert it to an 8-bit PNG."
        )
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def _from_16_bit(file: Encoded, image: "Image.Image") -> "Image.Image":
    from PIL import Image

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{file.name}: has values from {values.min()} to {values.max()}, expected integers from 0 to "
            f"65535. Convert it to a PNG."
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    # A PNG may name one 16-bit value as transparent, that is white after compositing.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _resized(image: "Image.Image", resolution: int, crop: Crop) -> "Image.Image":
    """With the roundings of the published code."""
    from PIL import Image

    if crop == "lanczos":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    if crop == "adm":
        while min(image.size) >= 2 * resolution:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    filter_of = Image.Resampling.BICUBIC if crop == "adm" else Image.Resampling.BOX
    image = image.resize((round(image.width * scale), round(image.height * scale)), filter_of)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))
