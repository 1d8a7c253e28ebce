"""ImageNet at 64×64 in the batches of Chrabaszcz et al. 2017 (arXiv 1707.08819), as image-net.org gives them out.

``train_data_batch_1.npz`` … ``_10.npz`` and ``val_data.npz``, each with ``data`` (N, 12288), plane by plane, and
``labels`` from 1. The classes are in the order of that data set's own list (``map_clsloc.txt``), which is not that of
the WordNet ids. Its pictures were squeezed to a square with a box filter, not cropped: ADM, EDM, consistency models and
BOOT train on crops of ImageNet instead (kind ``images``, ``crop: adm``), and figures on the two are not comparable.
"""

import hashlib
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits
from diffusion.runtime.errors import UserError, first_line, some_of
from diffusion.runtime.settings import UserPath

_SIZE = 3 * 64 * 64
_FILES = (*(f"train_data_batch_{number}.npz" for number in range(1, 11)), "val_data.npz")
_COUNTS = {"train": 1_281_167, "test": 50_000}


class Settings(DataSettings):
    """Where the batches are."""

    resolution: ClassVar[int] = 64
    num_pictures: ClassVar[int] = sum(_COUNTS.values())
    channels: ClassVar[int] = 3

    kind: Literal["imagenet64"]
    # The folder with train_data_batch_<n>.npz and val_data.npz.
    path: UserPath = pydantic.Field(min_length=1)
    # All pictures and all 1,000 classes there must be; a part of them is refused unless this is false.
    whole: bool = True


def prepare(settings: Settings) -> Splits:
    """Reads the labels; pictures are read, one batch file at a time, when they are asked for.

    Raises:
        UserError: a file is missing or truncated, pictures or classes are missing.
    """
    folder, files = Path(settings.path), _files(settings)
    labels = {part: [_labels(file) for file in found] for part, found in files.items()}
    joined = {part: np.concatenate(found) for part, found in labels.items()}
    classes = 1000 if settings.whole else 1 + int(max(part.max() for part in joined.values()))
    for part, found in joined.items():
        missing = np.setdiff1d(np.arange(classes), found)
        if settings.whole and (len(found) != _COUNTS[part] or len(missing)):
            raise UserError(
                f"{folder}: {len(found):,} pictures in the {part} part, expected {_COUNTS[part]:,}"
                + (f"; class {missing[0] + 1} and {len(missing) - 1} more are missing" if len(missing) else "")
                + ". A batch file is incomplete; unpack it again, or set data.whole to false for a part of ImageNet."
            )
    return Splits(
        train_images=_Batches(files["train"], [len(one) for one in labels["train"]]),
        train_labels=joined["train"],
        test_images=_Batches(files["test"], [len(one) for one in labels["test"]]),
        test_labels=joined["test"],
        class_names=tuple(f"class {number}" for number in range(1, classes + 1)),
        source="ImageNet at 64×64 (Chrabaszcz et al. 2017)",
        fingerprint=hashlib.sha256(repr([(f.name, f.stat().st_size) for f in files["train"]]).encode()).hexdigest(),
    )


def problems(settings: Settings) -> list[str]:
    """What is wrong with ``data.path``, without a look into the batches."""
    return [
        f"data.path: {file}: is not a whole .npz file; it may be truncated. Unpack it again."
        for part in _files(settings).values()
        for file in part
        if not zipfile.is_zipfile(file)
    ]


def _files(settings: Settings) -> dict[str, list[Path]]:
    """The batch files of both parts."""
    folder = Path(settings.path)
    train = sorted(folder.glob("train_data_batch_*.npz"), key=lambda file: int(re.findall(r"\d+", file.name)[-1]))
    files = {"train": train, "test": [file for file in [folder / "val_data.npz"] if file.is_file()]}
    for part, name in (("train", "train_data_batch_<n>.npz"), ("test", "val_data.npz")):
        if not files[part]:
            raise UserError(
                f"{folder}: has no {name}. Log in at https://image-net.org/download-images.php, fetch "
                f"'Downsampled Image Data' 64x64 (npz format: Imagenet64_train_part1_npz.zip, "
                f"Imagenet64_train_part2_npz.zip, Imagenet64_val_npz.zip; 13 GB) and unpack them into one folder."
            )
    if settings.whole and (absent := [name for name in _FILES if not (folder / name).is_file()]):
        raise UserError(
            f"{folder}: lacks {some_of(absent)}. Unpack all of Imagenet64_train_part1_npz.zip, "
            f"Imagenet64_train_part2_npz.zip and Imagenet64_val_npz.zip there; or set data.whole to false for a part."
        )
    return files


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: two batch files and the validation file with a few pictures of the true size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train_data_batch_1", 9), ("train_data_batch_2", 7), ("val_data", 6)):
        data = rng.integers(0, 256, (count, _SIZE), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", data=data, labels=1 + np.arange(count) % 3, mean=data.mean(axis=0))
    return {"kind": "imagenet64", "path": str(folder), "whole": False}


class _Batches:
    """The pictures of several batch files, of which one is in memory at a time: uint8 (N, 64, 64, 3)."""

    def __init__(self, files: list[Path], counts: list[int]) -> None:
        self._files, self._counts = files, counts
        self._ends = np.cumsum(counts)
        self._loaded: tuple[int, np.ndarray] | None = None
        self.shape = (int(self._ends[-1]), 64, 64, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _step = rows.indices(len(self))
        pieces = [np.empty((0, *self.shape[1:]), np.uint8)]
        for number, end in enumerate(self._ends):
            begin = end - self._counts[number]
            if start < end and begin < stop:
                pieces.append(self._batch(number)[max(start - begin, 0) : stop - begin])
        return np.concatenate(pieces)

    def _batch(self, number: int) -> np.ndarray:
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # before the next is read: a file has gigabytes
            data = _member(self._files[number], "data")
            if data.dtype != np.uint8 or data.shape != (self._counts[number], _SIZE):
                raise UserError(
                    f"{self._files[number]}: 'data' is {data.dtype} {data.shape}, expected uint8 "
                    f"({self._counts[number]}, {_SIZE}). It is not a batch of 64×64 pictures."
                )
            self._loaded = number, data.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1)
        return self._loaded[1]


def _labels(file: Path) -> np.ndarray:
    """From 0, int64."""
    labels = np.asarray(_member(file, "labels"))
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer) or not labels.min() >= 1:
        raise UserError(f"{file}: 'labels' is {labels.dtype} {labels.shape}, expected integers from 1.")
    return labels.astype(np.int64) - 1


def _member(file: Path, name: str) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
            return array
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); it may be truncated. Unpack it again."
        ) from error
