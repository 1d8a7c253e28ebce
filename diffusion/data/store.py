"""A data set on disk: a folder with four ``.npy`` arrays and a manifest.
 ``train-images.npy`` and ``test-images.npy`` are uint8 (N, H, W, C) with H = W and C = 1 or 3;
``train-labels.npy`` and ``test-labels.npy`` are int64 (N,), indices into the manifest's ``class_names``.
``manifest.json`` holds counts, resolution, channels, class names, pictures per class, the SHA-256 of every
array file, the settings and the source.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from diffusion.errors import UserError
from diffusion.files import atomic_path, read_json, sha256_file, write_json

PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Splits:
    """A data set in two parts.

    Attributes:
        train_images: uint8 (N, H, W, C), may be memory-mapped.
        train_labels: int64 (N,), indices into ``class_names``.
        test_images: uint8 (M, H, W, C).
        test_labels: int64 (M,).
        class_names: one name a class; a single name where there are no classes.
        source: where the pictures come from, in words.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Split:
    """One part of a stored data set.

    Attributes:
        images: uint8 (N, H, W, C), memory-mapped and read-only.
        labels: int64 (N,).
        class_names: one name a class.
        sha256: hash of the pictures' file, as the manifest records it.
        name: ``train`` or ``test``.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    sha256: str
    name: str


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


def write_dataset(folder: Path | str, splits: Splits, settings: pydantic.BaseModel) -> None:
    """Stores a data set; the folder appears whole or not at all, and replaces an existing one.

    Raises:
        ValueError: ``splits`` break the contract (types, shapes, labels): a fault of the data set's module.
        UserError: the folder cannot be written.
    """
    _check(splits)
    folder = Path(folder)
    manifest: dict[str, Any] = {
        "resolution": splits.train_images.shape[1],
        "channels": splits.train_images.shape[3],
        "class_names": list(splits.class_names),
        "source": splits.source,
        "settings": settings.model_dump(mode="json"),
        "splits": {},
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for part in PARTS:
            images, labels = getattr(splits, f"{part}_images"), getattr(splits, f"{part}_labels")
            np.save(temporary / f"{part}-images.npy", images, allow_pickle=False)
            np.save(temporary / f"{part}-labels.npy", labels, allow_pickle=False)
            manifest["splits"][part] = {
                "count": len(images),
                "per_class": np.bincount(labels, minlength=len(splits.class_names)).tolist(),
                "sha256": {what: sha256_file(temporary / f"{part}-{what}.npy") for what in ("images", "labels")},
            }
        write_json(temporary / "manifest.json", manifest)


def load_split(folder: Path | str, name: Literal["train", "test"]) -> Split:
    """Opens one part of a stored data set; the pictures are memory-mapped, the labels read.

    The hashes are taken over from the manifest and not computed again, which would read every picture.

    Raises:
        UserError: a file is missing, is not what the manifest says, or would need a pickle to be read.
    """
    folder = Path(folder)
    remedy = f"Delete {folder} and run the rule that prepares the data again."
    manifest = read_json(folder / "manifest.json")
    try:
        part = manifest["splits"][name]
        side, channels, class_names = manifest["resolution"], manifest["channels"], manifest["class_names"]
        shapes = {"images": (part["count"], side, side, channels), "labels": (part["count"],)}
        sha256 = part["sha256"]["images"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'manifest.json'}: is not a manifest of a data set ({error!r}). {remedy}") from error
    arrays = {}
    for what, dtype in (("images", np.uint8), ("labels", np.int64)):
        file = folder / f"{name}-{what}.npy"
        try:
            array = np.load(file, mmap_mode="r" if what == "images" else None, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"{file}: not found, though the manifest lists it. {remedy}") from error
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file}: cannot be read as an array ({error}). {remedy}") from error
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shapes[what]:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
            raise UserError(
                f"{file}: found {found}, expected {np.dtype(dtype)} {shapes[what]} as in the manifest. {remedy}"
            )
        arrays[what] = array
    labels = arrays["labels"]
    if labels.size and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise UserError(
            f"{folder / f'{name}-labels.npy'}: labels reach from {labels.min()} to {labels.max()}, expected "
            f"0 to {len(class_names) - 1} for the classes of the manifest. {remedy}"
        )
    return Split(arrays["images"], labels, tuple(class_names), sha256, name)


def _check(splits: Splits) -> None:
    names = splits.class_names
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class_names must be non-empty and distinct, found {names}")
    shape = splits.train_images.shape[1:]
    for part in PARTS:
        images, labels = getattr(splits, f"{part}_images"), getattr(splits, f"{part}_labels")
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"{part}_images must be uint8 (N, H, W, C) with N > 0, found {images.dtype} {images.shape}"
            )
        if images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3) or images.shape[1:] != shape:
            raise ValueError(f"pictures must be square with 1 or 3 channels, alike in both parts, found {images.shape}")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise ValueError(f"{part}_labels must be int64 ({len(images)},), found {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{part}_labels must lie in 0..{len(names) - 1}")
