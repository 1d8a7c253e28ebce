"""Pictures: float in [-1, 1] with shape (N, C, H, W) inside, uint8 with shape (N, H, W, C) on disk."""

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from diffusion.errors import NonFiniteError, UserError
from diffusion.files import atomic_path

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


def save_samples(path: Path | str, images: np.ndarray, labels: np.ndarray | torch.Tensor | None = None) -> None:
    """Stores uint8 pictures (N, H, W, C) as ``.npz`` under ``arr_0``, and the classes that were asked for, if any,
    under ``arr_1``: the convention of the ADM evaluators."""
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": np.asarray(labels, dtype=np.int64)})
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle


def load_samples(path: Path | str) -> np.ndarray:
    """Reads pictures stored as ``arr_0`` of an ``.npz``.

    Returns:
        uint8 array, shape (N, H, W, C).

    Raises:
        UserError: no such file, not an ``.npz``, no ``arr_0``, another type or shape.
    """
    expected = "expected an .npz whose 'arr_0' is uint8 of shape (N, H, W, C) with C = 1 or 3"
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "arr_0" not in archive:
                raise UserError(f"{path}: holds {sorted(archive)}; {expected}.")
            images = archive["arr_0"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; {expected}.") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); {expected}.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(f"{path}: 'arr_0' is {images.dtype} of shape {images.shape}; {expected}.")
    return images


def load_labels(path: Path | str) -> np.ndarray | None:
    """The classes stored with the pictures of :func:`load_samples`, int64 (N,); None where there are none.

    Raises:
        UserError: they are not one integer a picture.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "arr_1" not in archive:
                return None
            labels, count = archive["arr_1"], len(archive["arr_0"])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: 'arr_1' cannot be read ({error}); expected one integer a picture.") from error
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: 'arr_1' is {labels.dtype} of shape {labels.shape}; expected {count} integers.")
    return labels.astype(np.int64)
