"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test pictures of 32×32 pixels in ten classes.

Read from the "binary version" of its page, ``cifar-10-binary.tar.gz``, or from a folder with its files. The Python
version, which torchvision keeps, holds the same pictures in pickles, and is read without executing anything in them.
"""

import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits, holds
from diffusion.runtime.downloads import Download
from diffusion.runtime.errors import UserError, some_of
from diffusion.runtime.pickles import NUMPY, KnownOnly
from diffusion.runtime.settings import UserPath

_ARCHIVE = Download(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",  # from the data set's page
    size=170_052_171,
)
_BINARY = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_PYTHON = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_COUNTS = {"train": 50_000, "test": 10_000}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32


class Settings(DataSettings):
    """Where the data set is."""

    resolution: ClassVar[int] = 32
    num_pictures: ClassVar[int] = 60_000
    channels: ClassVar[int] = 3

    kind: Literal["cifar10"]
    # cifar-10-binary.tar.gz, or a folder that has, at any depth, the files of the binary or of the Python version
    # (torchvision's root). Null downloads the archive.
    path: UserPath | None = None
    # All pictures there must be; a part of them is refused unless this is false.
    whole: bool = True


def downloads(settings: Settings) -> list[Download]:
    """What has to be fetched; nothing where a path is given."""
    return [] if settings.path is not None else [_ARCHIVE]


def prepare(settings: Settings, downloaded: Path | None = None) -> Splits:
    """Reads both parts into memory (180 MB).

    Raises:
        UserError: a file is missing, truncated, or holds something else.
    """
    if settings.path is not None:
        place = Path(settings.path)
    else:
        assert downloaded is not None
        place = downloaded / _ARCHIVE.name
    contents = _from_folder(place) if place.is_dir() else _from_archive(place)
    fingerprint = hashlib.sha256()
    parts = {}
    for part, files in contents.items():
        arrays = []
        for name, content in files:
            fingerprint.update(content)
            arrays.append(_pickled(name, content) if not name.endswith(".bin") else _binary(name, content))
        pixels, labels = (np.concatenate(pieces) for pieces in zip(*arrays, strict=True))
        if settings.whole and len(labels) != _COUNTS[part]:
            raise UserError(
                f"{place}: {len(labels)} pictures in the {part} part, expected {_COUNTS[part]:,}. Fetch "
                f"{_ARCHIVE.url} again, or set data.whole to false for a part of it."
            )
        parts[part] = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
    return Splits(*parts["train"], *parts["test"], _CLASSES, "CIFAR-10 (Krizhevsky 2009)", fingerprint.hexdigest())


def problems(settings: Settings) -> list[str]:
    """What is wrong with ``data.path`` as far as a moment shows."""
    if settings.path is None:
        return []
    place = Path(settings.path)
    if not place.exists():
        return [f"data.path: {place}: not found. Fetch {_ARCHIVE.url}, or leave data.path out."]
    if place.is_dir():
        names = {name for form in (_BINARY, _PYTHON) for files in form.values() for name in files}
        return [] if holds(place, names.__contains__) else [f"data.path: {_holds_none(place)}"]
    try:
        return [] if tarfile.is_tarfile(place) else [f"data.path: {place}: is not a tar archive. {_FETCH}"]
    except (OSError, EOFError, zlib.error) as error:
        return [f"data.path: {place}: cannot be read as a tar archive ({error}). {_FETCH}"]


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: the six binary files with a few pictures of the true size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*_BINARY["train"], *_BINARY["test"]):
        records = rng.integers(0, 256, (10, _RECORD), dtype=np.uint8)
        records[:, 0] = np.arange(10)
        (folder / name).write_bytes(records.tobytes())
    return {"kind": "cifar10", "path": str(folder), "whole": False}


def _from_folder(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    for names in (_BINARY, _PYTHON):
        wanted = [name for files in names.values() for name in files]
        found = {file.name: file for name in wanted for file in sorted(folder.rglob(name), reverse=True)}
        if missing := [name for name in wanted if name not in found]:
            if found:
                raise UserError(f"{folder}: lacks {', '.join(missing)}. Unpack {_ARCHIVE.name} there again.")
            continue
        return {part: [(str(found[name]), found[name].read_bytes()) for name in files] for part, files in names.items()}
    raise UserError(_holds_none(folder))


_FETCH = f"Fetch {_ARCHIVE.url}."


def _holds_none(folder: Path) -> str:
    return (
        f"{folder}: has neither data_batch_1.bin nor data_batch_1. Expected {_ARCHIVE.name} unpacked, or torchvision's "
        f"cifar-10-batches-py. {_FETCH}"
    )


def _from_archive(path: Path) -> dict[str, list[tuple[str, bytes]]]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:  # read in memory: nothing is unpacked, so no name can point outside
                if member.isfile() and (handle := archive.extractfile(member)):
                    contents[Path(member.name).name] = handle.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found (data.path). Fetch {_ARCHIVE.url}, or leave data.path out.") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as a tar archive ({error}); it may be truncated.") from error
    for names in (_BINARY, _PYTHON):
        if all(name in contents for files in names.values() for name in files):
            return {part: [(f"{path}/{n}", contents[n]) for n in files] for part, files in names.items()}
    raise UserError(
        f"{path}: holds {some_of(sorted(contents))}; expected the files of {_ARCHIVE.name}. Fetch it again."
    )


def _binary(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,) of records of one label and 3,072 pixels, plane by plane."""
    if not content or len(content) % _RECORD:
        raise UserError(f"{name}: {len(content)} bytes, expected a multiple of {_RECORD}. It may be truncated.")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], _checked(name, records[:, 0].astype(np.int64))


def _pickled(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same of a file of the Python version: ``data`` (N, 3072) and ``labels``."""
    try:
        batch = KnownOnly(io.BytesIO(content), NUMPY, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # broken bytes can make of it whatever its opcodes raise, MemoryError too
        raise UserError(
            f"{name}: refused ({type(error).__name__}: {error}); expected a batch of CIFAR-10. Nothing of it was "
            f"executed. If it is damaged, unpack it again."
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise UserError(f"{name}: {pixels.dtype} {pixels.shape} with {len(labels)} labels, expected uint8 (N, 3072).")
    return pixels, _checked(name, labels)


def _checked(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.size and not 0 <= labels.min() <= labels.max() < 10:
        raise UserError(f"{name}: labels {labels.min()} to {labels.max()}, expected 0 to 9. It is not CIFAR-10.")
    return labels
