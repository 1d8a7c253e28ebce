"""Pictures: float in [-1, 1] with shape (N, C, H, W) inside, uint8 with shape (N, H, W, C) on disk."""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch

from diffusion.runtime.errors import NonFiniteError, UserError, first_line
from diffusion.runtime.files import atomic_path

Quantiser = Literal["round", "truncate"]


def to_uint8(images: torch.Tensor, quantiser: Quantiser = "round") -> np.ndarray:
    """The suite's only quantiser: round(clamp(127.5·x + 127.5, 0, 255)).

    Args:
        images: float tensor, shape (N, C, H, W), nominally in [-1, 1].
        quantiser: "truncate" takes the floor and stands for what others do (guided-diffusion, i.e. ADM); it is there
            to show what the difference does to a figure.

    Returns:
        uint8 array, shape (N, H, W, C).

    Raises:
        NonFiniteError: a picture contains NaN or infinity.
    """
    bad = ~torch.isfinite(images).flatten(1).all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(images)} pictures contain NaN or infinity (the first at index {first}). "
            f"The network that made them is broken or overflowed; train it again with a lower learning rate."
        )
    scaled = (images.float() * 127.5 + 127.5).clamp(0, 255)
    if quantiser == "round":
        scaled = scaled.round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], on the device of a tensor."""
    tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    return tensor.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def save_samples(
    path: Path | str,
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray | torch.Tensor | None = None,
) -> None:
    """Stores uint8 pictures as ``.npz`` under ``arr_0``, and the classes that were asked for, if any, under ``arr_1``:
    the convention of the ADM evaluators. Batches are written as they come, so that no more than one is in memory.

    Args:
        batches: each uint8 (n, H, W, C).
        shape: of all of them together, (N, H, W, C).
        labels: (N,).

    Raises:
        ValueError: other batches came.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            count = 0
            for batch in batches:
                if batch.dtype != np.uint8 or batch.shape[1:] != shape[1:]:
                    raise ValueError(f"{path}: found {batch.dtype} {batch.shape}, expected uint8 (n, *{shape[1:]}).")
                count += len(batch)
                member.write(np.ascontiguousarray(batch).data)
        if count != shape[0]:
            raise ValueError(f"{path}: found {count} pictures, expected {shape[0]}.")
        if labels is not None:
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64))


def load_samples(path: Path | str) -> np.ndarray:
    """Reads pictures stored as ``arr_0`` of an ``.npz``: checked against the file's checksum, and memory-mapped where
    they are not compressed (50,000 of 256×256 pixels are 10 GB).

    Returns:
        uint8 array, shape (N, H, W, C).

    Raises:
        UserError: no such file, not an ``.npz``, no ``arr_0``, another type or shape, damaged.
    """
    with _samples_archive(path) as archive:
        images = _array_in(archive, "arr_0.npy")
    _refuse_other_than_images(path, images.shape, images.dtype)
    return images


def samples_shape(path: Path | str) -> tuple[int, ...]:
    """(N, H, W, C) of what :func:`load_samples` would read, from the file's headers alone.

    Raises:
        UserError: as there, but for damage within the pixels.
    """
    with _samples_archive(path) as archive, archive.open("arr_0.npy") as member:
        shape, _, dtype = _read_header(member, "arr_0.npy")
        found = archive.getinfo("arr_0.npy").file_size - member.tell()
        if found != (expected := math.prod(shape) * dtype.itemsize):
            raise ValueError(f"'arr_0.npy' has {found:,} bytes, its header says {expected:,}")
    _refuse_other_than_images(path, shape, dtype)
    return shape


def labels_shape(path: Path | str) -> tuple[int, ...] | None:
    """Shape of the integers that :func:`load_labels` would read, from the file's headers alone; None where none are.

    Raises:
        UserError: they are no integers.
    """
    with _samples_archive(path) as archive:
        if "arr_1.npy" not in archive.namelist():
            return None
        with archive.open("arr_1.npy") as member:
            shape, _, dtype = _read_header(member, "arr_1.npy")
    if not np.issubdtype(dtype, np.integer):
        raise UserError(f"{path}: 'arr_1' is {dtype} of shape {shape}; expected one integer an image.")
    return shape


_EXPECTED = "expected an .npz whose 'arr_0' is uint8 of shape (N, H, W, C) with C = 1 or 3"


@contextmanager
def _samples_archive(path: Path | str) -> Iterator[zipfile.ZipFile]:
    """A file of samples, opened; whatever cannot be read in it is a :class:`UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if "arr_0.npy" not in archive.namelist():
                names = sorted(name.removesuffix(".npy") for name in archive.namelist())
                raise UserError(f"{path}: holds {names}; {_EXPECTED}.")
            yield archive
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; {_EXPECTED}.") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        whole = isinstance(error, zipfile.BadZipFile) and zipfile.is_zipfile(path)
        truncated = ", or it is truncated" if isinstance(error, zipfile.BadZipFile) and not whole else ""
        raise UserError(f"{path}: cannot be read ({first_line(error)}{truncated}); {_EXPECTED}.") from error


def _refuse_other_than_images(path: Path | str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise UserError(f"{path}: 'arr_0' is {dtype} of shape {shape}; {_EXPECTED}.")


def _read_header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of a ``.npy``, of which no more is read."""
    version = np.lib.format.read_magic(member)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"'{name}' is of the .npy format {version}")
    shape, fortran_order, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects")
    return shape, fortran_order, dtype


def _array_in(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A member of an ``.npz``; memory-mapped where it is not compressed, which `numpy.load` does of ``.npy`` only."""
    info = archive.getinfo(name)
    with archive.open(info) as member:
        if info.compress_type != zipfile.ZIP_STORED:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
        shape, fortran_order, dtype = _read_header(member, name)
        within = member.tell()
        while member.read(1 << 20):  # to the end, where the checksum is compared
            pass
    if 0 in shape:
        return np.empty(shape, dtype)
    assert archive.filename is not None
    with open(archive.filename, "rb") as file:
        # The local header: 30 bytes, the last four the lengths of the name and of the extra field, which follow.
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name_length + extra_length + within
    # Copy on write: torch refuses memory that it must not write to, and nobody writes.
    return np.memmap(archive.filename, dtype, "c", start, shape, "F" if fortran_order else "C")


def load_labels(path: Path | str) -> np.ndarray | None:
    """The classes stored with the pictures of :func:`load_samples`, int64 (N,); None where there are none.

    Raises:
        UserError: they are not one integer a picture.
    """
    with _samples_archive(path) as archive:
        if "arr_1.npy" not in archive.namelist():
            return None
        labels = _array_in(archive, "arr_1.npy")
    count = len(load_samples(path))
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: 'arr_1' is {labels.dtype} of shape {labels.shape}; expected {count} integers.")
    return labels.astype(np.int64)
