"""Reference sets: features and moments of real pictures, computed once, and files that come from elsewhere.

Pictures are read in portions, features are written to a memory-mapped file, and moments are summed in float64, so that
memory does not grow with the number of pictures.
"""

import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.errors import UserError
from diffusion.files import atomic_path, sha256_file
from diffusion.images import load_samples
from evaluation.quality import Moments, moments

_PORTION = 4096  # pictures
# So many feature vectors are averaged by the libraries' own function, so that figures are theirs to the last digit.
_LARGEST_IN_MEMORY = 100_000
# What must be equal of two descriptions of an extractor, for features to be of one kind.
_DECIDING = ("name", "library", "layer", "dimensions", "resize", "normalisation", "weights_sha256", "mode")


@dataclass(frozen=True)
class ReferenceSet:
    """What samples are measured against.

    Attributes:
        moments: mean and covariance of the features.
        features: float32 (N, D), perhaps memory-mapped; None where only the moments are known.
        about: ``count`` (None where unknown), ``sha256`` and, where there is one, a ``note`` for the footnote.
    """

    moments: Moments
    features: np.ndarray | None
    about: dict[str, Any]


def write_features(
    path: Path, images: np.ndarray, dimensions: int, extract: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Writes the features of pictures, float32 (N, dimensions), to an ``.npy`` file, a portion at a time.

    Args:
        images: uint8 (N, H, W, C), may be memory-mapped.
        extract: pictures to features.
    """
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(images), dimensions))
    for start in range(0, len(images), _PORTION):
        features[start : start + _PORTION] = extract(np.asarray(images[start : start + _PORTION]))
    features.flush()


def moments_of(features: np.ndarray, what: str) -> Moments:
    """Mean and covariance of features (N, D), which may be memory-mapped and too many to be in memory at once.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
        UserError: fewer than two samples.
    """
    if len(features) <= _LARGEST_IN_MEMORY:
        return moments(np.array(features), what=what)  # a copy: torch warns of memory that it must not write to
    return streamed_moments(features)


def streamed_moments(features: np.ndarray, portion: int = _PORTION) -> Moments:
    """Mean and unbiased covariance, summed in float64 over portions of features (N, D).

    Portions are joined as by Chan, Golub & LeVeque 1979: sums of squares about the mean so far, which lose no digits to
    a large mean.
    """
    count, mean = 0, np.zeros(features.shape[1])
    scatter = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), portion):
        part = np.asarray(features[start : start + portion], dtype=np.float64)
        part_mean = part.mean(axis=0)
        centred, shift = part - part_mean, part_mean - mean
        scatter += centred.T @ centred + np.outer(shift, shift) * (count * len(part) / (count + len(part)))
        mean += shift * (len(part) / (count + len(part)))
        count += len(part)
    return Moments.given(mean, scatter / (count - 1))


def write_reference(path: Path, features: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Stores the moments of features: an ``.npz`` with ``mu``, ``sigma``, ``count`` and ``facts`` (JSON).

    Other tools read ``mu`` and ``sigma`` from it; this suite checks ``facts`` when it is given the file as a reference.

    Args:
        facts: ``extractor`` (its description), ``resolution`` and ``sha256`` of the pictures.
    """
    own = moments_of(features, f"reference '{path.stem}'").statistics
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        content = {**own, "count": np.array(len(features)), "facts": np.array(json.dumps(dict(facts)))}
        np.savez(handle, **content)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle


def load_reference(
    path: Path,
    resolution: int,
    extractor: Mapping[str, Any],
    extract: Callable[[np.ndarray], np.ndarray],
    sha256: str | None = None,
    data: Collection[str] | None = None,
) -> ReferenceSet:
    """A reference from a file: of this suite (:func:`write_reference`), of clean-fid (``mu``, ``sigma``), or of ADM.

    Of a file with pictures (``arr_0``, as ADM's reference batches have) the samples' own extractor makes the features.
    Moments beside them are those of the FID Inception over the whole data set, of which the pictures are some: they are
    taken for the Fréchet distance where the samples' features are of that network, and left alone otherwise.

    Args:
        resolution: of the samples.
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
        raise UserError(f"{path}: cannot be read as an .npz ({error}).") from error
    has_moments = {"mu", "sigma"} <= names
    if "arr_0" in names:
        images = load_samples(path)
        if images.shape[1:3] != (resolution, resolution):
            raise UserError(
                f"{path}: pictures of {images.shape[1]}×{images.shape[2]} pixels, but the samples have {resolution}. A "
                f"reference of another resolution says nothing about them."
            )
        features = extract(images)
        about: dict[str, Any] = {"count": len(images), "sha256": found}
        if has_moments and extractor["name"] == "inception":
            about["note"] = "Fréchet distance against the file's own moments, KID against its pictures"
            return ReferenceSet(_checked_moments(path, content, extractor), features, about)
        if has_moments:
            about["note"] = "the file's pictures, not its moments, which are of another network"
        return ReferenceSet(moments_of(features, str(path)), features, about)
    if not has_moments:
        raise UserError(f"{path}: holds {sorted(names)}; expected 'arr_0' (pictures), or 'mu' and 'sigma' (moments).")
    own = _checked_moments(path, content, extractor)
    about = {"count": int(content["count"]) if "count" in content else None, "sha256": found}
    if "facts" not in content:
        return ReferenceSet(own, None, about | {"note": "its data, resolution and resize are not known"})
    facts = json.loads(str(content["facts"]))
    check_extractor(path, facts["extractor"], extractor)
    if facts["resolution"] != resolution:
        raise UserError(f"{path}: made of pictures of {facts['resolution']} pixels, but the samples have {resolution}.")
    if data is not None and facts["sha256"] not in data:
        raise UserError(
            f"{path}: made of other data (pictures with sha256 {facts['sha256'][:16]}…) than this experiment's."
        )
    return ReferenceSet(own, None, about | {"data_sha256": facts["sha256"]})


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
