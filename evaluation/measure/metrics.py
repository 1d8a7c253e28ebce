"""The metrics: each is one function, with its name, its direction and its sentence beside it.

A metric's parameters name what it takes of :class:`~evaluation.measure.metric.Given`; where there is no such thing, it
is left out. To add one, write it here, or beside those of captions in :mod:`evaluation.measure.caption_metrics`: rows
of metrics.csv, tables, verdicts and footnotes follow. Two are by hand, because no kept library has them: density and
coverage (`prdc`, their authors' package, holds all N×N distances at once and has not moved since 2020), and the
extrapolated Fréchet distance. All raise a NonFiniteError where a feature or the value is NaN or infinite.

The report reads this module too, for names and directions: libraries that take seconds to import are imported within
the functions.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from diffusion.runtime.errors import UserError
from evaluation.measure.metric import METRICS, Metric, TooFewSamplesError, metric, one_image
from evaluation.measure.moments import Moments, as_tensor, checked, finite, moments
from evaluation.measure.neighbours import MOST_COMPARED, Neighbours, nearer_than_held_out, nearest

KID_SUBSETS = 10
KID_SUBSET_SIZE = 1000
KID_SEED = 2020  # torch-fidelity's own default
NEIGHBORHOOD = 3  # Kynkäänniemi et al. 2019
DENSITY_NEIGHBORHOOD = 5  # Naeem et al. 2020
SCORE_SPLITS = 10  # Salimans et al. 2016
# Extrapolation: Chong & Forsyth 2020 take 15 counts from 5,000 to 50,000 in 2,048 dimensions.
EXTRAPOLATION_POINTS = 15
EXTRAPOLATION_LEAST_PER_DIMENSION = 5.0
_SMALLEST_PER_DIMENSION = 5000 / 2048
# Distances that precision and recall hold at once, 0.8 GB.
_MOST_DISTANCES = 200_000_000
_PICTURES_AT_ONCE = 256


_WHOLE = "num_samples samples against the whole 'train' part"
_COMPARED = f"{_WHOLE} (where it is larger, {MOST_COMPARED:,} drawn of it)"


@metric(
    Metric(
        "frechet_distance",
        "{frechet}",
        f"Fréchet distance, {_WHOLE}, by torch-fidelity. Biased upwards by few samples: compare at equal num_samples "
        "only.",
        better="lower",
        words="the {frechet}",
        inception_name="fid",
        of_covariances=True,
    )
)
def frechet_distance(own_moments: np.ndarray | Moments, real_moments: np.ndarray | Moments) -> float:
    """Fréchet distance between two sets of features (N, D), or their moments, by torch-fidelity.

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6: ‖μ₁-μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½). Symmetric.

    Raises:
        UserError: features of different dimensions.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    one, two = (x if isinstance(x, Moments) else moments(x) for x in (own_moments, real_moments))
    if len({x.statistics["mu"].shape for x in (one, two)}) > 1:
        sizes = " and ".join(str(len(x.statistics["mu"])) for x in (one, two))
        raise UserError(f"Fréchet distance: {sizes} dimensions; expected features of one extractor.")
    first, second = one.statistics, two.statistics
    if any(first[name].dtype != second[name].dtype for name in first):  # which torch-fidelity refuses
        first, second = ({k: v.astype(np.float64) for k, v in x.items()} for x in (first, second))
    return finite(fid_statistics_to_metric(first, second, False)[KEY_METRIC_FID], "frechet_distance")


class KernelDistance(NamedTuple):
    """Mean over subsets, and standard deviation between them (n in the denominator)."""

    mean: float
    sd: float


@metric(
    Metric(
        "kid",
        "KID",
        "Kernel distance, unbiased, polynomial kernel of degree 3, by torch-fidelity; mean over "
        f"{KID_SUBSETS} random subsets of {KID_SUBSET_SIZE} pictures (fewer where a set is smaller), seed {KID_SEED}.",
        better="lower",
        words="KID",
    ),
    Metric(
        "kid_subset_sd",
        "KID: deviation between subsets",
        "Standard deviation of KID between those subsets, which share pictures. Of a set no larger than a subset every "
        "subset is the whole: the deviation is then the reference's alone.",
    ),
)
def kid(
    features: np.ndarray,
    real_features: np.ndarray,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> KernelDistance:
    """Kernel distance between two sets of features (N, D), by torch-fidelity, over random subsets.

    Bińkowski et al. 2018 (arXiv 1801.01401): unbiased squared MMD with the kernel (xᵀy/D + 1)³. Slightly
    negative values are possible and mean "no difference found". The subset size shrinks to the smaller set. The
    subsets share pictures, so their deviation is less than that between independent sets.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    a, b = checked(features, "features"), checked(real_features, "features")
    result = kid_features_to_metric(
        as_tensor(a),
        as_tensor(b),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(a), len(b)),
        rng_seed=seed,
        verbose=False,
    )
    return KernelDistance(finite(result[KEY_METRIC_KID_MEAN], "kid"), finite(result[KEY_METRIC_KID_STD], "kid"))


@metric(
    Metric(
        "precision",
        "Precision",
        f"Improved precision with {NEIGHBORHOOD} nearest neighbours, {_COMPARED}, by torch-fidelity.",
        better="higher",
        words="precision",
        resolution=one_image,
    ),
    Metric(
        "recall",
        "Recall",
        f"Improved recall with {NEIGHBORHOOD} nearest neighbours, {_COMPARED}, by torch-fidelity.",
        better="higher",
        words="recall",
        resolution=one_image,
    ),
)
def precision_recall(
    features: np.ndarray, compared: np.ndarray, neighborhood: int = NEIGHBORHOOD
) -> tuple[float, float]:
    """Improved precision and recall of generated features (N, D) against real ones, by torch-fidelity.

    Kynkäänniemi et al. 2019 (arXiv 1904.06991): the share of generated pictures inside the union of the balls
    around real ones that reach to the ``neighborhood``-th neighbour, and the other way round. Both depend on
    the two counts. Not symmetric: the generated set comes first.

    Raises:
        UserError: a set has no ``neighborhood``-th neighbour.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    generated, real = checked(features, "generated features"), checked(compared, "real features")
    if min(len(generated), len(real)) <= neighborhood:
        raise UserError(
            f"precision and recall need more than {neighborhood} pictures in each set; "
            f"found {len(generated)} generated and {len(real)} real."
        )
    result = prc_features_to_metric(
        as_tensor(generated),
        as_tensor(real),
        prc_neighborhood=neighborhood,
        prc_batch_size=max(100, min(10_000, _MOST_DISTANCES // max(len(generated), len(real)))),
        verbose=False,
        save_cpu_ram=True,  # distances in portions; the values are the same
    )
    return finite(result[KEY_METRIC_PRECISION], "precision"), finite(result[KEY_METRIC_RECALL], "recall")


@metric(
    Metric(
        "density",
        "Density",
        f"Mean number of real balls that a sample lies in, over {DENSITY_NEIGHBORHOOD}; a ball reaches to the "
        f"{DENSITY_NEIGHBORHOOD}th nearest real neighbour; {_COMPARED}. 1 is expected of equal distributions.",
        better="higher",
        library="scikit-learn",
    ),
    Metric(
        "coverage",
        "Coverage",
        "Share of these balls with a sample inside. Grows with num_samples.",
        better="higher",
        library="scikit-learn",
    ),
)
def density_coverage(
    features: np.ndarray, compared: np.ndarray, neighborhood: int = DENSITY_NEIGHBORHOOD
) -> tuple[float, float]:
    """Density and coverage of generated features (N, D) against real ones (M, D).

    Naeem et al. 2020 (arXiv 2002.09797), eq. 3 and 4, with a ball around each real picture that reaches to its
    ``neighborhood``-th neighbour among the real ones. Density: in how many balls a generated picture lies, over
    ``neighborhood``; 1 is expected for equal distributions, more is possible. Coverage: the share of balls with a
    generated picture inside; 1 − Π_{i=0}^{k−1} (M − 1 − i) / (N + M − 1 − i) is expected then. Memory is bounded.

    Raises:
        UserError: the real set has no ``neighborhood``-th neighbour.
    """
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    generated, real = checked(features, "generated features"), checked(compared, "real features")
    if len(real) <= neighborhood:
        raise UserError(f"density and coverage need more than {neighborhood} real pictures; found {len(real)}.")
    radii = NearestNeighbors(n_neighbors=neighborhood, algorithm="brute").fit(real).kneighbors()[0][:, -1]
    inside, covered = 0, np.zeros(len(real), dtype=bool)
    for distances in pairwise_distances_chunked(generated, real):
        within = distances < radii
        inside += int(within.sum())
        covered |= within.any(axis=0)
    return inside / (neighborhood * len(generated)), float(covered.mean())


@metric(
    Metric(
        "classifier_score",
        "{score}",
        f"exp E KL(p(y|x) ‖ p(y)) of the extractor's own classes, mean over {SCORE_SPLITS} splits, by torch-fidelity. "
        "It knows no reference, and grows with num_samples; called Inception Score on the FID Inception only.",
        better="higher",
        inception_name="inception_score",
    )
)
def classifier_score(features: np.ndarray, classifier: tuple[np.ndarray, np.ndarray]) -> float:
    """exp E KL(p(y|x) ‖ p(y)) of the extractor's own classes, by torch-fidelity.

    Salimans et al. 2016 (arXiv 1606.03498), sec. 4: the Inception Score, where the extractor is the FID Inception. Mean
    over :data:`SCORE_SPLITS` splits of the shuffled pictures.

    Raises:
        TooFewSamplesError: fewer samples than splits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    if len(features) < SCORE_SPLITS:
        raise TooFewSamplesError(f"classifier score: {len(features)} samples for {SCORE_SPLITS} splits.")
    weight, bias = classifier
    logits = torch.from_numpy(np.asarray(checked(features, "features") @ weight.T + bias))
    return finite(isc_features_to_metric(logits, splits=SCORE_SPLITS)[KEY_METRIC_ISC_MEAN], "classifier_score")


@metric(
    Metric(
        "leak_share",
        "Nearer to training than 99 % of held-out",
        "Share of the samples that are nearer to a picture of the 'train' part, in the features, than 99 of 100 "
        "held-out real pictures are. 0.01 is expected of new pictures.",
        library="scikit-learn",
    )
)
def leak_share(features: np.ndarray, real_features: np.ndarray, distance_of_held_out: Neighbours) -> float:
    """The share of pictures that are nearer to a picture of the reference than 99 of 100 held-out real ones are.

    0.01 is expected of new pictures; much more says that the reference, where it is what the teacher was trained on, is
    repeated.
    """
    return nearer_than_held_out(nearest(features, real_features), distance_of_held_out)


@metric(
    Metric(
        "frechet_distance_extrapolated",
        "{frechet}, all samples and N → ∞",
        f"Where a line in 1/N through the Fréchet distances of {EXTRAPOLATION_POINTS} random subsets ends. Taken only "
        f"with {EXTRAPOLATION_LEAST_PER_DIMENSION:.0f} samples a dimension or more; what the reference's own count "
        "adds stays.",
        better="lower",
        inception_name="fid_extrapolated",
        whole=True,
    )
)
def extrapolated_frechet_distance(first_features: np.ndarray, real_moments: Moments, seed: int = 0) -> float:
    """The Fréchet distance at infinitely many samples: where a line in 1/N through fewer samples ends.

    Chong & Forsyth 2020 (arXiv 1911.07023): the bias of a Fréchet distance is linear in 1/N to first order. Here the
    counts are :data:`EXTRAPOLATION_POINTS`, even from max(N/10, 2.44 D) to N, each a random subset. What is due to the
    reference's own count stays.

    Raises:
        TooFewSamplesError: fewer than five samples a dimension, where the bias is not linear in 1/N yet.
    """
    features = checked(first_features, "features")
    count, dimensions = features.shape
    if count < EXTRAPOLATION_LEAST_PER_DIMENSION * dimensions:
        raise TooFewSamplesError(
            f"extrapolation to infinitely many samples: {count} samples in {dimensions} dimensions; it needs "
            f"{math.ceil(EXTRAPOLATION_LEAST_PER_DIMENSION * dimensions)} or more."
        )
    least = max(count / 10, _SMALLEST_PER_DIMENSION * dimensions)
    counts = np.linspace(least, count, EXTRAPOLATION_POINTS).round().astype(int)
    generator = np.random.default_rng(seed)
    distances = [
        frechet_distance(moments(features[generator.permutation(count)[:some]], warn=False), real_moments)
        for some in counts
    ]
    _slope, at_infinity = np.polyfit(1 / counts, distances, 1)
    return finite(float(at_infinity), "frechet_distance_extrapolated")


@metric(
    Metric(
        "frechet_distance_to_teacher",
        "{frechet} to the teacher's samples",
        "Fréchet distance between num_samples samples and the teacher's many-step samples of all other sampling seeds "
        "together, by torch-fidelity. No noise is shared between the two sets, so the teacher's own row is its floor.",
        better="lower",
        against="teacher",
        whole=True,
        of_covariances=True,
    )
)
def frechet_distance_to_teacher(own_moments: Moments, other_teacher_features: np.ndarray) -> float:
    """Fréchet distance to samples of the teacher that share no noise with these."""
    return frechet_distance(own_moments, other_teacher_features)


@metric(
    Metric(
        "mse_to_teacher",
        "MSE to teacher",
        "Mean squared difference per element on uint8 pictures decoded to [-1, 1], between samples and the teacher's "
        "many-step samples from the same initial noise.",
        better="lower",
        words="the MSE to the teacher",
        library="numpy",
        features="pixels",
        against="teacher",
        whole=True,
        resolution=lambda _count: (2 / 255) ** 2 / 6,  # what rounding both images to 256 grey levels adds
    )
)
def mean_squared_distance(images: np.ndarray, teacher_images: np.ndarray) -> float:
    """Mean over all elements of (x - x')² on uint8 pictures (N, H, W, C) decoded to [-1, 1].

    Means something only when picture i of both sets was made from the same noise.

    Raises:
        UserError: not uint8, or of different shapes.
    """
    if images.dtype != np.uint8 or teacher_images.dtype != np.uint8 or images.shape != teacher_images.shape:
        raise UserError(
            f"mse_to_teacher: found {images.dtype} {images.shape} and {teacher_images.dtype} {teacher_images.shape}; "
            f"expected two uint8 arrays of one shape, made from the same noise."
        )
    total = 0  # of whole numbers, so exact; a portion at a time, for pictures may be more than memory holds
    for start in range(0, len(images), _PICTURES_AT_ONCE):
        portion = slice(start, start + _PICTURES_AT_ONCE)
        difference = images[portion].astype(np.int32) - teacher_images[portion]
        total += int(np.sum(difference**2, dtype=np.int64))
    return total / images.size / 127.5**2


@metric(
    Metric(
        "label_accuracy",
        "Label accuracy",
        "Share of the samples that a classifier, trained on the real training pictures alone, gives the class that was "
        "asked for; for the real test pictures, their own class. Sample i is asked to be of class i modulo the number "
        "of classes.",
        better="higher",
        words="label accuracy",
        library="torchvision",
        features="classifier",
        against="labels",
        whole=True,
        resolution=one_image,
    )
)
def label_accuracy(labels: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of the classes asked for, (N,), that a classifier finds, (N,)."""
    asked, found = labels
    return float(np.mean(asked == found))


# Below, because tables show metrics in the order in which they are declared.
import evaluation.measure.caption_metrics  # noqa: E402, F401

# Tables and figures call a metric the same on any features, and say which in its title.
PLAIN_NAMES = {about.inception_name: name for name, about in METRICS.items() if about.inception_name}
RANKED = tuple(name for name, about in METRICS.items() if about.words)


def metric_name(name: str, extractor: str) -> str:
    """The name a metric goes by: a Fréchet distance is ``fid`` on the FID Inception only, and so on."""
    return (METRICS[name].inception_name if extractor == "inception" else "") or name
