"""What is said of a metric beside the function that takes it, and how all of them are taken."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from diffusion.runtime.errors import UserError
from evaluation.measure.captions import Captions, Match
from evaluation.measure.moments import Moments
from evaluation.measure.neighbours import Neighbours


@dataclass(frozen=True)
class Metric:
    """What is said of one value."""

    name: str  # in the column ``metric``
    title: str  # of its columns in the report; {frechet} and {score} stand for the names on the features at hand
    # What it is, for the report and the provenance files; what all have in common is the protocol's.
    sentence: str
    better: Literal["lower", "higher"] | None = None
    # What sentences call it. Those that have such words are ranked: they stand in the main table and give verdicts; the
    # others stand in the table of further measures.
    words: str = ""
    inception_name: str = ""  # its name on the FID Inception, and there alone
    library: str = "torch-fidelity"  # what computes it
    features: str = ""  # what it looks at, where that is not the extractor's features
    # What it is measured against, where that is not the reference.
    against: Literal["", "teacher", "labels", "captions"] = ""
    whole: bool = False  # taken of all samples alone, not of fewer too
    of_covariances: bool = False  # of the features, which few samples leave without full rank
    # Number of images to the smallest difference that it can show; None: any difference is one.
    resolution: Callable[[int], float] | None = None


def one_image(count: int) -> float:
    """The resolution of shares of count images (recall's of the real ones, about as many)."""
    return 1 / count


METRICS: dict[str, Metric] = {}
# What takes them: a function to the names of its values.
FUNCTIONS: dict[Callable[..., Any], tuple[str, ...]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def metric(*values: Metric) -> Callable[[_Function], _Function]:
    """Declares that a function takes a metric; several, where it gives a tuple."""

    def declared(function: _Function) -> _Function:
        METRICS.update({value.name: value for value in values})
        FUNCTIONS[function] = tuple(value.name for value in values)
        return function

    return declared


class TooFewSamplesError(UserError):
    """A metric cannot be taken of so few samples; the others can."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a metric can ask for, by the name of a parameter; None where there is none."""

    features: np.ndarray | None = None  # of the samples, float32 (N, D)
    own_moments: Moments | None = None  # theirs
    real_features: np.ndarray | None = None  # of the reference
    real_moments: Moments | None = None
    compared: np.ndarray | None = None  # the reference's features, or 50,000 drawn of them
    classifier: tuple[np.ndarray, np.ndarray] | None = None  # weight (K, D) and bias (K,) of the extractor's own
    distance_of_held_out: Neighbours | None = None  # of real pictures that are not in the reference, to it
    images: np.ndarray | None = None  # the samples, uint8 (N, H, W, C)
    teacher_images: np.ndarray | None = None  # the teacher's many-step samples from the same noise
    labels: tuple[np.ndarray, np.ndarray] | None = None  # classes asked for, and found by a classifier, (N,) each
    captions: Captions | None = None  # in place of labels, where classes are captions
    caption_indices: np.ndarray | None = None  # of the caption that each sample was asked for, (N,)
    # Of the samples of all sampling seeds, the features, (N, D), and these indices.
    all_seeds: tuple[np.ndarray, np.ndarray] | None = None
    clip_score_match: Match | None = None  # of the samples and their captions, by the CLIP of the CLIP score
    pick_score_match: Match | None = None  # by that of PickScore
    first_features: np.ndarray | None = None  # of a finished student's first sampling seed, for what is dear to take
    other_teacher_features: np.ndarray | None = None  # beside these, of the teacher's samples of all other seeds

    @property
    def exchangeable_captions(self) -> Captions | None:
        """Captions whose attributes have the same values."""
        return self.captions if self.captions is not None and self.captions.exchangeable else None


def taken_of(given: Given) -> dict[str, float]:
    """Every metric that there is all for, by name.

    Raises:
        NonFiniteError: a feature or a value is NaN or infinite.
        UserError: the inputs do not fit together.
    """
    found: dict[str, float] = {}
    for function, names in FUNCTIONS.items():
        parameters = inspect.signature(function).parameters.values()
        arguments = [getattr(given, one.name) for one in parameters if one.default is one.empty]
        if any(argument is None for argument in arguments):
            continue
        with suppress(TooFewSamplesError):
            values = function(*arguments)
            found |= zip(names, values if isinstance(values, tuple) else (values,), strict=True)
    return found
