"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 70,000 grey pictures of 28×28 pixels, ten kinds of clothing.

Four files in the idx format of MNIST, as published and as Debian's package ``dataset-fashion-mnist`` installs them; any
set of that format can be read with ``path`` (MNIST itself, KMNIST, EMNIST's splits by digit).
"""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits
from diffusion.runtime.downloads import Download
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import UserPath

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# The MD5 that the authors publish beside each file, and its size, gzipped.
_PUBLISHED = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 29_515),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148),
}
_CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


class Settings(DataSettings):
    """Where the four files are."""

    num_pictures: ClassVar[int] = 70_000
    channels: ClassVar[int] = 1

    kind: Literal["fashion_mnist"]
    # A folder with the four files, gzipped or not. Null: Debian's package where it is installed, else a download.
    path: UserPath | None = None
    resolution: int = pydantic.Field(default=28, ge=1)


def downloads(settings: Settings) -> list[Download]:
    """What has to be fetched; nothing where the files are at hand."""
    if settings.path is not None or DEBIAN.is_dir():
        return []
    return [Download(f"{name}.gz", f"{_URL}{name}.gz", md5=md5, size=size) for name, (md5, size) in _PUBLISHED.items()]


def prepare(settings: Settings, downloaded: Path | None = None) -> Splits:
    """Reads the four files.

    Raises:
        UserError: a file is missing, truncated, or not what its name says.
    """
    if settings.path is not None:
        folder = Path(settings.path)
    else:
        folder = downloaded if downloads(settings) and downloaded else DEBIAN
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    fingerprint = hashlib.sha256()
    for (part, what), name in _FILES.items():
        file = _find(folder, name)
        content = _read(file)
        fingerprint.update(content)
        (images if what == "images" else labels)[part] = _parse(file, content, 3 if what == "images" else 1)
    for part, pictures in images.items():
        if pictures.shape[1:] != (settings.resolution,) * 2:
            raise UserError(
                f"{folder}: the {part} pictures have {pictures.shape[2]}×{pictures.shape[1]} pixels; expected "
                f"{settings.resolution} (data.resolution)."
            )
        if len(pictures) != len(labels[part]) or len(pictures) < 2:
            raise UserError(f"{folder}: the {part} part has {len(pictures)} pictures and {len(labels[part])} labels.")
    # Of a set of the user's, the numbers that occur: EMNIST's letters are from 1.
    numbers = np.arange(len(_CLOTHES)) if settings.path is None else np.unique(np.concatenate([*labels.values()]))
    return Splits(
        *(images["train"][..., np.newaxis], np.searchsorted(numbers, labels["train"])),
        *(images["test"][..., np.newaxis], np.searchsorted(numbers, labels["test"])),
        class_names=_CLOTHES if settings.path is None else tuple(map(str, numbers.tolist())),
        source="Fashion-MNIST (Xiao et al. 2017)" if settings.path is None else f"idx files in {folder.name}",
        fingerprint=fingerprint.hexdigest(),
    )


def problems(settings: Settings) -> list[str]:
    """Which of the four files are missing in ``data.path``."""
    if settings.path is not None:
        for name in _FILES.values():
            _find(Path(settings.path), name)
    return []


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: four files with a few pictures of the true size, written to ``folder``."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for (part, what), name in _FILES.items():
        count = 20 if part == "train" else 10
        labels = what == "labels"
        values = np.arange(count, dtype=np.uint8) % 10 if labels else rng.integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return {"kind": "fashion_mnist", "path": str(folder)}


def _find(folder: Path, name: str) -> Path:
    candidates = [folder / name, folder / f"{name}.gz"]
    for file in candidates:
        if file.is_file():
            return file
    raise UserError(
        f"{folder}: has neither {candidates[0].name} nor {candidates[1].name}. Expected the four idx files "
        f"({', '.join(_FILES.values())}; .gz or not). For Fashion-MNIST: apt-get install dataset-fashion-mnist, or "
        f"fetch them from {_URL} and name their folder under data.path."
    )


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); it may be truncated. Fetch it again.") from error


def _parse(file: Path, content: bytes, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: 0, 0, type, number of dimensions; the sizes, big-endian; the values."""
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(
            f"{file}: begins with {content[:4].hex(' ')}, expected 00 00 08 {dimensions:02x} (an idx file of bytes in "
            f"{dimensions} dimension{'s' * (dimensions > 1)}). It is another file, or truncated."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    if len(content) - head != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{file}: {len(content) - head} values, expected {shape}. It may be truncated; fetch it again.")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)
