"""A data set on disk: a folder with shards of pictures, two files of labels and a manifest.

``train-00000.npy``, ``train-00001.npy`` … and ``test-00000.npy`` … are uint8 (N, H, W, C) with C = 1 or 3, no larger
than :data:`SHARD_BYTES` each, to be memory-mapped; ``train-labels.npy`` and ``test-labels.npy`` are int64 (N,), indices
into the manifest's ``class_names``. ``manifest.json`` holds counts, resolution (a number, or height and width),
channels, class names, attributes of the classes, images per class, the SHA-256 of every file, the settings and the
source.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pydantic
from tqdm import tqdm

from diffusion.runtime.errors import UserError, first_line
from diffusion.runtime.files import (
    atomic_path,
    new_array,
    only_one,
    read_json,
    remove_leftovers,
    sha256_file,
    write_json,
    writing,
)

# What an autoencoder made of the training part (diffusion.data.latents), in a folder of its own.
LATENTS = "train.npy"
PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")
# A shard is what a preparation that was interrupted has to make again at most.
SHARD_BYTES = 256 * 2**20
# Pictures that are asked for at a time while a shard is written: what has to be in memory.
_PORTION_BYTES = 32 * 2**20


# Names in a folder that are looked at while a configuration is read, which is to take a moment.
MOST_LOOKED_AT = 20_000


def holds(folder: Path, wanted: Callable[[str], bool], skipped: Callable[[str], bool] = lambda _name: False) -> bool:
    """Whether a folder holds a wanted file at any depth; also true where that takes too long to say.

    Args:
        wanted: of a file's name.
        skipped: of a file's or a folder's name.
    """
    waiting, seen = [folder], 0
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MOST_LOOKED_AT:
                        return True
                    if skipped(entry.name):
                        continue
                    if entry.is_dir():
                        waiting.append(Path(entry.path))
                    elif wanted(entry.name):
                        return True
    except OSError:
        return True  # what prepares the data set says why it cannot be listed
    return False


class Pictures(Protocol):
    """Pictures that may be made when they are asked for: uint8, ``shape`` (N, H, W, C)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Splits:
    """A data set in two parts.

    Attributes:
        train_images: uint8 (N, H, W, C): an array, or an object that decodes the slice it is asked for.
        train_labels: int64 (N,), indices into ``class_names``.
        test_images: uint8 (M, H, W, C), likewise.
        test_labels: int64 (M,).
        class_names: one name a class, or one caption; a single name where there are neither.
        source: where the pictures come from, in words.
        fingerprint: changes when the source does, as far as can be told without reading it: what an interrupted
            preparation has made is used again only under the same fingerprint.
        attributes: what can be seen in an image of a class, where classes are captions: name of the attribute to its
            value in every class, a count from 0.
    """

    train_images: Pictures
    train_labels: np.ndarray
    test_images: Pictures
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    fingerprint: str = ""
    attributes: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Shards:
    """The pictures of a part as one read-only array, (N, H, W, C), from memory-mapped files.

    It takes an index, a slice or an array of indices, and gives arrays in memory; ``np.asarray`` reads everything.

    Args:
        arrays: at least one, each (n, H, W, C) of the same type, read-only.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = tuple(arrays)
        self.dtype = arrays[0].dtype
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:])
        self.nbytes = sum(array.nbytes for array in arrays)
        self._rows = np.arange(len(self))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, rows: int | slice | np.ndarray | Sequence[int]) -> np.ndarray:
        index = self._rows[np.asarray(rows, np.int64) if isinstance(rows, Sequence) else rows]  # NumPy's own rules
        found = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, index, side="right")
        for shard in np.unique(shards):
            inside, array = shards == shard, self._arrays[shard]
            found[inside] = array[index[inside] - (self._ends[shard] - len(array))]
        return found


@dataclass(frozen=True)
class Split:
    """One part of a stored data set.

    Attributes:
        images: uint8 (N, H, W, C), memory-mapped and read-only; or their latents, float16
            (:func:`diffusion.data.latents.with_latents`).
        labels: int64 (N,).
        class_names: one name a class.
        sha256: hash of the pictures, as the manifest records it: of the hashes of its shards.
        name: ``train`` or ``test``.
        flip: whether training draws each image mirrored left to right with probability 1/2; ``images`` are unflipped.
        attributes: as of :class:`Splits`.
    """

    images: Shards
    labels: np.ndarray
    class_names: tuple[str, ...]
    sha256: str
    name: str
    flip: bool = False
    attributes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        _, height, width, channels = self.images.shape
        return channels, height, width


def resolution_of(images_shape: Sequence[int]) -> int | list[int]:
    """What a file says of images of shape (N, H, W, C): the side of square ones, else height and width."""
    height, width = images_shape[1:3]
    return height if height == width else [height, width]


def size_of(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of what :func:`resolution_of` says."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return height, width


def stratified_split(labels: np.ndarray, test_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices into a train and a test part that hold the classes in the same proportions.

    The test part takes its share of every class, rounded by the largest remainder so that the sizes add up;
    the last picture of a class always stays in the train part. Within a class the pictures are drawn in the
    order of a hash of seed and index: unlike a library's random generator, that gives the same split for
    ever.

    Args:
        labels: int (N,).
        test_size: pictures in the test part.
        seed: another seed, another split.

    Returns:
        sorted train indices (N - test_size,) and sorted test indices (test_size,).

    Raises:
        UserError: there are too few pictures for a test part of that size.
    """
    classes, counts = np.unique(labels, return_counts=True)
    room = counts - 1
    if not 0 <= test_size <= room.sum():
        raise UserError(
            f"A test part of {test_size} pictures cannot be taken from {len(labels)} pictures in "
            f"{len(classes)} classes: every class keeps one picture for training. Use a smaller test part "
            f"or more pictures."
        )
    quotas = counts * test_size / len(labels)
    sizes = np.minimum(np.floor(quotas).astype(int), room)
    by_remainder = np.argsort(-(quotas - sizes), kind="stable")
    while sizes.sum() < test_size:
        for index in by_remainder:
            if sizes[index] < room[index] and sizes.sum() < test_size:
                sizes[index] += 1
    test: list[int] = []
    for name, size in zip(classes, sizes, strict=True):
        members = np.flatnonzero(labels == name).tolist()
        members.sort(key=lambda index: hashlib.sha256(f"{seed}/{index}".encode()).digest())
        test += members[:size]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[test] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def split_by_class(
    images: np.ndarray, labels: np.ndarray, test_size: int, seed: int, class_names: tuple[str, ...], source: str
) -> Splits:
    """The two parts of pictures that are in memory, uint8 (N, H, W, C), by :func:`stratified_split`."""
    train, test = stratified_split(labels, test_size, seed)
    return Splits(images[train], labels[train], images[test], labels[test], class_names, source)


def write_dataset(
    folder: Path | str,
    splits: Splits,
    settings: pydantic.BaseModel,
    state: Path | None = None,
    finish: Callable[[Path], None] = lambda _folder: None,
) -> None:
    """Stores a data set; the folder appears whole or not at all, and replaces an existing one.

    Args:
        state: a folder in which shards are kept until all are made, so that a run that is stopped goes on where it was;
            on the same file system. None starts anew every time.
        finish: called with the folder when all else is in it, before it appears.

    Raises:
        ValueError: ``splits`` break the contract (types, shapes, labels): a fault of the data set's module.
        UserError: the folder cannot be written, has no room, or is being prepared by another process.
    """
    _check(splits)
    folder = Path(folder)
    parts: dict[str, tuple[Pictures, np.ndarray]] = {
        "train": (splits.train_images, splits.train_labels),
        "test": (splits.test_images, splits.test_labels),
    }
    manifest: dict[str, Any] = {
        "resolution": resolution_of(splits.train_images.shape),
        "channels": splits.train_images.shape[3],
        "class_names": list(splits.class_names),
        "source": splits.source,
        "settings": settings.model_dump(mode="json"),
        "splits": {},
    }
    if splits.attributes:
        manifest["attributes"] = {name: list(values) for name, values in splits.attributes.items()}
    with _workplace(folder, splits, settings, state) as work:
        _refuse_if_full(folder, work, sum(_size(images) for images, _ in parts.values()))
        for name, (images, labels) in parts.items():
            shards = _write_shards(work, name, images)
            np.save(work / f"{name}-labels.npy", labels, allow_pickle=False)
            hashes = {file: sha256_file(work / file) for file in shards}
            manifest["splits"][name] = {
                "count": len(images),
                "per_class": np.bincount(labels, minlength=len(splits.class_names)).tolist(),
                "shards": [{"file": file, "count": count, "sha256": hashes[file]} for file, count in shards.items()],
                "sha256": {
                    "images": hashlib.sha256("".join(hashes.values()).encode()).hexdigest(),
                    "labels": sha256_file(work / f"{name}-labels.npy"),
                },
            }
        write_json(work / "manifest.json", manifest)
        finish(work)


@contextmanager
def _workplace(folder: Path, splits: Splits, settings: pydantic.BaseModel, state: Path | None) -> Iterator[Path]:
    """Where the data set is made; it becomes ``folder`` at the end."""
    if state is None:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            yield temporary
        return
    facts = [settings.model_dump(mode="json"), splits.fingerprint, splits.train_images.shape, splits.test_images.shape]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    work = state / f"data-{key}"
    with only_one(state / f"data-{key}.lock", f"{work} (a data set that is being prepared)"):
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
        remove_leftovers(work)
        yield work
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, folder)
    (state / f"data-{key}.lock").unlink(missing_ok=True)


def _write_shards(work: Path, name: str, images: Pictures) -> dict[str, int]:
    """Writes what is not there yet of a part's shards; their names with the number of pictures."""
    size = max(1, _size(images) // max(1, len(images)))
    length, portion = max(1, SHARD_BYTES // size), max(1, _PORTION_BYTES // size)
    shards = {}
    with tqdm(total=len(images), desc=name, unit="pictures", mininterval=5) as progress:
        for number, start in enumerate(range(0, len(images), length)):
            file, count = f"{name}-{number:05d}.npy", min(length, len(images) - start)
            shards[file] = count
            if not (work / file).exists():
                with atomic_path(work / file) as temporary:
                    shape = (count, *images.shape[1:])
                    array = new_array(temporary, shape, np.uint8)
                    for first in range(0, count, portion):
                        rows = images[start + first : start + min(first + portion, count)]
                        array[first : first + len(rows)] = rows
                        progress.update(len(rows))
                    array.flush()
            progress.n = start + count
            progress.refresh()
    return shards


def _size(images: Pictures) -> int:
    return int(np.prod(images.shape, dtype=np.int64))


def _refuse_if_full(folder: Path, work: Path, needed: int) -> None:
    """Before hours are spent."""
    missing = needed - sum(file.stat().st_size for file in work.glob("*.npy"))
    free = shutil.disk_usage(work).free
    if free < missing:
        raise UserError(
            f"{folder}: cannot be written: the pictures need {missing / 2**20:,.1f} MiB more, {free / 2**20:,.1f} MiB "
            f"are free. Free space, or choose a lower resolution."
        )


def load_split(folder: Path | str, name: Literal["train", "test"], flip: bool = False) -> Split:
    """Opens one part of a stored data set; the pictures are memory-mapped, the labels read.

    The hashes are taken over from the manifest and not computed again, which would read every picture.

    Args:
        flip: of the :class:`Split`. The folder does not say it, so that another choice prepares nothing again.

    Raises:
        UserError: a file is missing, is not what the manifest says, or would need a pickle to be read.
    """
    folder = Path(folder)
    shards, about = _shards_of(folder, name)
    count, class_names = about["count"], about["class_names"]
    images = Shards([_open(folder / file, np.uint8, shape) for file, shape in shards.items()])
    labels = np.array(_open(folder / f"{name}-labels.npy", np.int64, (count,)))
    if labels.size and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise UserError(
            f"{folder / f'{name}-labels.npy'}: labels reach from {labels.min()} to {labels.max()}, expected "
            f"0 to {len(class_names) - 1} for the classes of the manifest."
        )
    return Split(images, labels, tuple(class_names), about["sha256"], name, flip, about["attributes"])


def stored_files(folder: Path | str, *names: Literal["train", "test"]) -> list[Path]:
    """The files of parts of a stored data set, as its manifest lists them.

    Raises:
        UserError: the manifest is missing or is none.
    """
    folder = Path(folder)
    return [folder / file for name in names for file in (*_shards_of(folder, name)[0], f"{name}-labels.npy")]


def _shards_of(folder: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """The shapes of a part's shards, by their names; and ``count``, ``sha256``, ``class_names``, ``attributes``."""
    manifest = read_json(folder / "manifest.json")
    try:
        part = manifest["splits"][name]
        size, channels, class_names = size_of(manifest["resolution"]), manifest["channels"], manifest["class_names"]
        sizes = {str(shard["file"]): shard["count"] for shard in part["shards"]}
        shards: dict[str, tuple[int, ...]] = {file: (count, *size, channels) for file, count in sizes.items()}
        about = {"count": part["count"], "sha256": part["sha256"]["images"], "class_names": class_names}
        about["attributes"] = manifest.get("attributes", {})
        _check_attributes(about["attributes"], len(class_names))
        if not shards or sum(shape[0] for shape in shards.values()) != about["count"]:
            raise KeyError("shards")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'manifest.json'}: is not a manifest of a data set ({error!r}).") from error
    return shards, about


def _open(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{file}: not found, though the manifest lists it.") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file}: cannot be read as an array ({first_line(error)}).") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{file}: found {found}, expected {np.dtype(dtype)} {shape} as in the manifest.")
    return array


def _check(splits: Splits) -> None:
    names = splits.class_names
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class_names must be non-empty and distinct, found {names}")
    shape = splits.train_images.shape[1:]
    for part in PARTS:
        images, labels = getattr(splits, f"{part}_images"), getattr(splits, f"{part}_labels")
        kind = images[:1].dtype if len(images.shape) == 4 and len(images) else None
        if kind != np.uint8:
            raise ValueError(f"{part}_images must be uint8 (N, H, W, C) with N > 0, found {kind} {images.shape}")
        if images.shape[3] not in (1, 3) or images.shape[1:] != shape:
            raise ValueError(f"images must have 1 or 3 channels and one shape in both parts, found {images.shape}")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise ValueError(f"{part}_labels must be int64 ({len(images)},), found {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{part}_labels must lie in 0..{len(names) - 1}")
    _check_attributes(splits.attributes, len(names))


def _check_attributes(attributes: Any, classes: int) -> None:
    """Raises ValueError unless they are what :class:`Splits` says, for so many classes."""
    if not isinstance(attributes, Mapping):
        raise ValueError(f"attributes must be a mapping, found {attributes!r}")
    for name, values in attributes.items():
        fit = isinstance(values, Sequence) and len(values) == classes
        if not fit or any(type(value) is not int or value < 0 for value in values):
            raise ValueError(f"attributes[{name!r}] must be a whole number ≥ 0 for each of the {classes} classes")
