"""The nearest training picture beside each sample: a generator that repeats its training set would show here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# So many stand for a larger set where each of its pictures is compared with each: with 50,000 Kynkäänniemi et al. 2019
# measure precision and recall, and the distances of a million to each other would take days.
MOST_COMPARED = 50_000


@dataclass(frozen=True)
class Neighbours:
    """Nearest training pictures of some pictures.

    Attributes:
        index: of the nearest training picture, int64 (N,).
        distance: to it, Euclidean in feature space, float (N,).
    """

    index: np.ndarray
    distance: np.ndarray


def nearest(features: np.ndarray, training: np.ndarray) -> Neighbours:
    """The nearest of ``training`` for every row of ``features``, exactly.

    Args:
        features: (N, D); training: (M, D), both of the same extractor.
    """
    from sklearn.neighbors import NearestNeighbors  # seconds

    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training)
    distance, index = search.kneighbors(features)
    return Neighbours(index[:, 0], distance[:, 0])


def closeness(found: Mapping[str, Neighbours], held_out: Neighbours) -> dict[str, dict[str, float]]:
    """How near each set comes to the training pictures, beside real pictures that the teacher never saw.

    Returns:
        name to ``median_distance``; ``relative``, that over the held-out pictures' median; and ``suspicious``, the
        share of the set that is nearer than 99 of 100 held-out pictures are, which is 0.01 by chance.
    """
    median = np.median(held_out.distance)
    return {
        name: {
            "median_distance": float(np.median(one.distance)),
            "relative": float(np.median(one.distance) / median),
            "suspicious": nearer_than_held_out(one, held_out),
        }
        for name, one in found.items()
    }


def nearer_than_held_out(found: Neighbours, held_out: Neighbours) -> float:
    """The share of a set that is nearer to the training pictures than 99 of 100 held-out pictures are."""
    return float(np.mean(found.distance < np.quantile(held_out.distance, 0.01)))
