"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test pictures of 32×32 pixels in ten classes.

Read from the "binary version" of its page, ``cifar-10-binary.tar.gz``, or from a folder with its files. The Python
version holds the same images in pickles, and is not read.
"""

import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits, holds
from diffusion.runtime.downloads import Download
from diffusion.runtime.errors import UserError, some_of
from diffusion.runtime.settings import UserPath

_ARCHIVE = Download(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",  # from the data set's page
    size=170_052_171,
)
_FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_NAMES = [name for files in _FILES.values() for name in files]
_COUNTS = {"train": 50_000, "test": 10_000}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32


class Settings(DataSettings):
    """Where the data set is."""

    resolution: ClassVar[int] = 32
    num_pictures: ClassVar[int] = 60_000
    channels: ClassVar[int] = 3

    kind: Literal["cifar10"]
    # cifar-10-binary.tar.gz, or a folder that has its files at any depth. Null downloads the archive.
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
    contents = _contents(place)
    if missing := [name for name in _NAMES if name not in contents]:
        raise UserError(_lacks(place, missing))
    fingerprint = hashlib.sha256()
    parts = {}
    for part, names in _FILES.items():
        for name in names:
            fingerprint.update(contents[name])
        arrays = [_parse(f"{place}: {name}", contents[name]) for name in names]
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
        raise UserError(f"{place}: not found. {_FETCH}")
    if place.is_dir() and not holds(place, _NAMES.__contains__):
        raise UserError(_lacks(place, _NAMES))
    try:
        if not place.is_dir() and not tarfile.is_tarfile(place):
            raise UserError(f"{place}: is not a tar archive. {_FETCH}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place}: cannot be read as a tar archive ({error}). {_FETCH}") from error
    return []


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: the six binary files with a few pictures of the true size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in _NAMES:
        records = rng.integers(0, 256, (10, _RECORD), dtype=np.uint8)
        records[:, 0] = np.arange(10)
        (folder / name).write_bytes(records.tobytes())
    return {"kind": "cifar10", "path": str(folder), "whole": False}


_FETCH = f"Fetch {_ARCHIVE.url}, or leave data.path out."


def _lacks(place: Path, missing: list[str]) -> str:
    return (
        f"{place}: lacks {some_of(missing)}. Expected {_ARCHIVE.name} or the folder it unpacks to; the Python version, "
        f"whose pickles torchvision reads, will not do. {_FETCH}"
    )


def _contents(place: Path) -> dict[str, bytes]:
    """What the files hold, by their names, wherever in the folder or the archive they lie."""
    if place.is_dir():
        return {name: file.read_bytes() for name in _NAMES for file in sorted(place.rglob(name), reverse=True)}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:  # read in memory: nothing is unpacked, so no name can point outside
                if Path(member.name).name in _NAMES and (handle := archive.extractfile(member)):
                    contents[Path(member.name).name] = handle.read()
    except FileNotFoundError as error:
        raise UserError(f"{place}: not found (data.path). {_FETCH}") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place}: cannot be read as a tar archive ({error}); it may be truncated.") from error
    return contents


def _parse(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,) of records of one label and 3,072 pixels, plane by plane."""
    if not content or len(content) % _RECORD:
        raise UserError(f"{name}: {len(content)} bytes, expected a multiple of {_RECORD}. It may be truncated.")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= 10:
        raise UserError(f"{name}: labels {labels.min()} to {labels.max()}, expected 0 to 9. It is not CIFAR-10.")
    return records[:, 1:], labels
