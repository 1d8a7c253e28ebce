"""What captions ask for, and what is found in the samples: attributes, how unlike they are, how well they match."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffusion.data.store import Split

MOST_COMPARED_WITHIN = 8


@dataclass(frozen=True)
class Captions:
    """What the samples of one set were asked for, and what they show.

    Attributes:
        asked: int64 (N, A), the values of the caption's attributes.
        found: int64 (N, A), the values that a classifier finds.
        is_new: bool (N,), whether the training part holds no image with these values together.
        exchangeable: whether all attributes have the same values, so that a value can be found in another's place.
    """

    asked: np.ndarray
    found: np.ndarray
    is_new: np.ndarray
    exchangeable: bool

    @property
    def right(self) -> np.ndarray:
        """Whether every attribute is as asked for, bool (N,)."""
        return np.all(self.found == self.asked, axis=1)

    @property
    def swapped(self) -> np.ndarray:
        """Whether the values are those asked for, but in other places, bool (N,)."""
        same_values = np.all(np.sort(self.found, axis=1) == np.sort(self.asked, axis=1), axis=1)
        return same_values & ~self.right


class Match(NamedTuple):
    """How well N images go with their captions.

    Attributes:
        cosines: between the embeddings of image and caption, float64, (N,), in [-1, 1].
        logit_scale: exp of CLIP's learnt temperature: logits are the cosines times that.
    """

    cosines: np.ndarray
    logit_scale: float


def variance_within(classes: np.ndarray, images: np.ndarray) -> float | None:
    """Mean over captions, each of equal weight, of the unbiased variance per pixel between images of one caption.

    Args:
        classes: int (N,), the caption of each image.
        images: uint8 (N, H, W, C), decoded to [-1, 1]; those of one caption are held in memory at a time.

    Returns:
        None where no caption has two images.
    """
    variances = [np.var(images[rows] / 127.5, axis=0, ddof=1).mean() for rows in _rows_by_caption(classes)]
    return float(np.mean(variances)) if variances else None


def distance_within(classes: np.ndarray, features: np.ndarray, most: int = MOST_COMPARED_WITHIN) -> float | None:
    """Mean over captions, each of equal weight, of the mean Euclidean distance between two images of one caption.

    Its expectation does not depend on how many images a caption has.

    Args:
        classes: int (N,), the caption of each image.
        features: float (N, D).
        most: the first images of each caption that are compared, each with each.

    Returns:
        None where no caption has two images.
    """
    from scipy.spatial.distance import pdist

    distances = [pdist(features[rows[:most]].astype(np.float64)).mean() for rows in _rows_by_caption(classes)]
    return float(np.mean(distances)) if distances else None


def _rows_by_caption(classes: np.ndarray) -> list[np.ndarray]:
    """The rows of each caption that has two images or more, in their order."""
    _, counts = np.unique(classes, return_counts=True)
    rows_of_caption = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    return [rows for rows in rows_of_caption if len(rows) > 1]


@dataclass(frozen=True)
class Attributes:
    """The attributes of a data set whose classes are captions.

    Attributes:
        names: of the A attributes.
        num_values: how many values each has, counted from 0.
        of_class: int64 (K, A), the values in every class.
        in_training: int64 (M, A), the combinations of values that the training part holds.
    """

    names: tuple[str, ...]
    num_values: tuple[int, ...]
    of_class: np.ndarray
    in_training: np.ndarray

    @classmethod
    def of(cls, training: Split) -> "Attributes | None":
        """Those of a data set by its training part; None where its classes are no captions."""
        if not training.attributes:
            return None
        of_class = np.array(list(training.attributes.values()), np.int64).T
        in_training = np.unique(of_class[np.unique(training.labels)], axis=0)
        num_values = tuple(int(count) for count in of_class.max(axis=0) + 1)
        return cls(tuple(training.attributes), num_values, of_class, in_training)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Attributes":
        """What :meth:`as_json` gave."""
        of_class, in_training = (np.array(content[key], np.int64) for key in ("of_class", "in_training"))
        return cls(tuple(content["names"]), tuple(content["num_values"]), of_class, in_training)

    def as_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "num_values": list(self.num_values),
            "of_class": self.of_class.tolist(),
            "in_training": self.in_training.tolist(),
        }

    def captions(self, classes: np.ndarray, found: np.ndarray) -> Captions:
        """What was asked for by class, (N,), beside the values that a classifier finds, (N, A)."""
        trained = {tuple(values) for values in self.in_training.tolist()}
        is_new = np.array([tuple(values) not in trained for values in self.of_class.tolist()])
        sets_of_values = {tuple(np.unique(values)) for values in self.of_class.T}
        exchangeable = len(self.names) > 1 and len(sets_of_values) == 1
        return Captions(self.of_class[classes], found, is_new[classes], exchangeable)
