"""What samples are measured against: the real pictures, looked at once, or a file that comes from elsewhere.

Pictures are read in portions, features are written to memory-mapped files, and moments are summed in portions, so that
memory does not grow with the number of pictures.
"""

import json
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.data.samples import load_samples
from diffusion.data.store import Pictures, size_of
from diffusion.runtime.errors import UserError, first_line
from diffusion.runtime.files import atomic_path, new_array, read_json, sha256_file
from diffusion.runtime.processes import ALONE, Processes, drain, portions_of
from evaluation.measure.moments import Moments, moments
from evaluation.measure.neighbours import MOST_COMPARED, Neighbours, nearest

_PORTION = 4096  # pictures
# What must be equal of two descriptions of an extractor, for features to be of one kind.
_DECIDING = ("name", "library", "layer", "dimensions", "resize", "normalisation", "weights_sha256", "mode")
OTHER_PART = {"train": "test", "test": "train"}


@dataclass
class Reference:
    """A set that others are measured against.

    Attributes:
        name: what the column ``reference`` says, e.g. "train".
        features: float32, shape (N, D), perhaps memory-mapped; None where only the moments are known.
        held_out: features of real pictures that are not in the set, for the leak check and the floor; None where there
            are none.
        classifier: weight (K, D) and bias (K,) of the extractor's own classifier; None where it has none.
        stored_moments: mean and covariance, where they are known already.
        about: ``count`` (None where unknown), ``sha256`` and, where there is one, a ``note`` for the footnote.
    """

    name: str
    features: np.ndarray | None
    held_out: np.ndarray | None = None
    classifier: tuple[np.ndarray, np.ndarray] | None = None
    stored_moments: Moments | None = field(default=None, repr=False)
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        if self.stored_moments is not None:
            return self.stored_moments
        assert self.features is not None
        return moments(self.features, what=f"reference '{self.name}'")

    @cached_property
    def compared(self) -> np.ndarray:
        """The features, or :data:`MOST_COMPARED` drawn of them: what precision, recall, density and coverage take."""
        assert self.features is not None
        return self.features if len(self.features) <= MOST_COMPARED else drawn(self.features, MOST_COMPARED)

    @cached_property
    def distance_of_held_out(self) -> Neighbours:
        """The nearest of the reference to each held-out picture."""
        assert self.held_out is not None
        assert self.features is not None
        return nearest(self.held_out, self.features)


def write_features(
    path: Path,
    images: Pictures,
    dimensions: int,
    extract: Callable[[np.ndarray], np.ndarray],
    processes: Processes = ALONE,
) -> None:
    """Writes the features of pictures, float32 (N, dimensions), to an ``.npy`` file, a portion at a time.

    Args:
        images: uint8 (N, H, W, C), may be memory-mapped.
        extract: pictures to features.
        processes: share the portions; the first writes the file.
    """
    portions = portions_of(len(images), _PORTION)
    parts = processes.spread(
        portions,
        lambda indices: torch.from_numpy(extract(np.asarray(images[indices.start : indices.stop]))),
    )
    if not processes.is_main:
        drain(parts)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    features = new_array(path, (len(images), dimensions), np.float32)
    for indices, part in zip(portions, parts, strict=True):
        features[indices.start : indices.stop] = part.numpy()
    features.flush()


def load_features(path: Path) -> np.ndarray:
    """Features that :func:`write_features` wrote, memory-mapped.

    Raises:
        UserError: no such file, or another content.
    """
    try:
        # Copy on write: torch refuses memory that it must not write to, and nobody writes.
        features: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no features can be read from it ({first_line(error)}).") from error
    return features


def drawn(features: np.ndarray, count: int | None) -> np.ndarray:
    """So many feature vectors, or all where there are fewer: drawn, because pictures may be sorted by class, and the
    same ones whenever it is asked.

    Args:
        features: (N, D), may be memory-mapped.
        count: None takes all.
    """
    rows = np.random.default_rng(0).permutation(len(features))[:count]
    return np.asarray(features[np.sort(rows)])


def write_moments(path: Path, features: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Stores the moments of features: an ``.npz`` with ``mu``, ``sigma``, ``count`` and ``facts`` (JSON).

    Other tools read ``mu`` and ``sigma`` from it; this suite checks ``facts`` when it is given the file as a reference.

    Args:
        facts: ``extractor`` (its description), ``resolution`` and ``sha256`` of the pictures.
    """
    own = moments(features, what=f"reference '{path.stem}'").statistics
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        content = {**own, "count": np.array(len(features)), "facts": np.array(json.dumps(dict(facts)))}
        np.savez(handle, **content)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle


def load_real(folder: Path, part: str = "train") -> Reference:
    """A part of the experiment's own pictures, with the other part held out.

    Args:
        folder: what :func:`suite.jobs.references.Extract` made: for each part its features
            (``<part>.npy``) and moments (``<part>.npz``), the extractor's own classifier, where it has one
            (``classifier.npz``), and ``facts.json``.
    """
    with np.load(folder / f"{part}.npz", allow_pickle=False) as archive:
        known = Moments.given(archive["mu"], archive["sigma"])
    classifier = None
    if (folder / "classifier.npz").exists():
        with np.load(folder / "classifier.npz", allow_pickle=False) as archive:
            classifier = archive["weight"], archive["bias"]
    features, held_out = (load_features(folder / f"{name}.npy") for name in (part, OTHER_PART[part]))
    return Reference(part, features, held_out, classifier, known, read_json(folder / "facts.json")["parts"][part])


def load_given(
    path: Path,
    resolution: int | Sequence[int],
    extractor: Mapping[str, Any],
    extract: Callable[[np.ndarray], np.ndarray],
    sha256: str | None = None,
    data: Collection[str] | None = None,
) -> Reference:
    """A reference from a file: of this suite (:func:`write_moments`), of clean-fid (``mu``, ``sigma``), or of ADM.

    Of a file with pictures (``arr_0``, as ADM's reference batches have) the samples' own extractor makes the features.
    Moments beside them are those of the FID Inception over the whole data set, of which the pictures are some: they are
    taken for the Fréchet distance where the samples' features are of that network, and left alone otherwise.

    Args:
        resolution: of the samples, or their height and width.
        extractor: description of the samples' extractor.
        extract: pictures to features.
        sha256: of the file, or its beginning.
        data: hashes of the pictures that a file of this suite may have been made of; None takes any.

    Raises:
        UserError: no such file, another content, neither pictures nor moments; or a reference of other data, another
            resolution or another extractor, as far as the file tells.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; expected an .npz with 'arr_0', or with 'mu' and 'sigma'.")
    found = sha256_file(path)
    if sha256 and not found.startswith(sha256):
        raise UserError(f"{path}: sha256 {found}, expected {sha256} (reference_sha256). It is another file.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive)
            content = {name: archive[name] for name in {"mu", "sigma", "count", "facts"} & names}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as an .npz ({first_line(error)}).") from error
    has_moments = {"mu", "sigma"} <= names
    if "arr_0" in names:
        images = load_samples(path)
        _check_size(path, images.shape[1:3], resolution)
        about: dict[str, Any] = {"count": len(images), "sha256": found}
        own = None
        if has_moments and extractor["name"] == "inception":
            about["note"] = "Fréchet distance against the file's own moments, KID against its pictures"
            own = _checked_moments(path, content, extractor)
        elif has_moments:
            about["note"] = "the file's pictures, not its moments, which are of another network"
        return Reference(str(path), extract(images), stored_moments=own, about=about)
    if not has_moments:
        raise UserError(f"{path}: holds {sorted(names)}; expected 'arr_0' (pictures), or 'mu' and 'sigma' (moments).")
    own = _checked_moments(path, content, extractor)
    about = {"count": int(content["count"]) if "count" in content else None, "sha256": found}
    if "facts" not in content:
        about["note"] = "its data, resolution and resize are not known"
        return Reference(str(path), None, stored_moments=own, about=about)
    facts = json.loads(str(content["facts"]))
    check_extractor(path, facts["extractor"], extractor)
    _check_size(path, facts["resolution"], resolution)
    if data is not None and facts["sha256"] not in data:
        raise UserError(
            f"{path}: made of other data (pictures with sha256 {facts['sha256'][:16]}…) than this experiment's."
        )
    return Reference(str(path), None, stored_moments=own, about=about | {"data_sha256": facts["sha256"]})


def _check_size(path: Path, found: int | Sequence[int], samples: int | Sequence[int]) -> None:
    """Raises UserError unless a reference's images have the samples' size: sides, or heights and widths."""
    (height, width), (expected_height, expected_width) = size_of(found), size_of(samples)
    if (height, width) != (expected_height, expected_width):
        raise UserError(
            f"{path}: made of images of {height}×{width} pixels, but the samples have {expected_height}×"
            f"{expected_width}. A reference of another resolution says nothing about them."
        )


def _checked_moments(path: Path, content: Mapping[str, np.ndarray], extractor: Mapping[str, Any]) -> Moments:
    mu, sigma = content["mu"], content["sigma"]
    dimensions = extractor["dimensions"]
    if mu.shape != (dimensions,) or sigma.shape != (dimensions, dimensions):
        raise UserError(
            f"{path}: moments of shape {mu.shape} and {sigma.shape}, but '{extractor['name']}' has {dimensions} "
            f"dimensions: they were made with another extractor."
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T, atol=1e-4)):
        raise UserError(f"{path}: 'mu' or 'sigma' is not finite, or 'sigma' is not symmetric; it is no covariance.")
    return Moments.given(mu, sigma)


def check_extractor(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses features or moments of another extractor.

    Raises:
        UserError: naming what differs.
    """
    for key in _DECIDING:
        if found.get(key) != expected.get(key):
            raise UserError(
                f"{path}: made with another extractor: {key} is {found.get(key)!r} there and {expected.get(key)!r} of "
                f"the samples' features. Make it again under this protocol."
            )
