"""Distances between sets of features, and what else a set of samples is measured by."""

import inspect
import math
import warnings
from typing import NamedTuple

from diffusion.runtime.errors import NonFiniteError, UserError
from diffusion.runtime.packages import version_of

# isort: split
import cleanfid.fid
import numpy as np
import scipy.linalg
import torch
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from evaluation.measure.moments import Moments, as_tensor, checked, moments
from evaluation.measure.neighbours import nearer_than_held_out, nearest
from evaluation.measure.reference import Reference

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


class NoMatrixRootError(UserError):
    """clean-fid gets no real square root of the product of two covariances."""


def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between two sets of features (N, D), or their moments, by torch-fidelity.

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6: ‖μ₁-μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½). Symmetric.

    Raises:
        NonFiniteError: a feature, or the distance, is NaN or infinite.
    """
    one, two = (x if isinstance(x, Moments) else moments(x) for x in (a, b))
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


def kid(
    a: np.ndarray,
    b: np.ndarray,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> KernelDistance:
    """Kernel distance between two sets of features (N, D), by torch-fidelity, over random subsets.

    Bińkowski et al. 2018 (arXiv 1801.01401): unbiased squared MMD with the kernel (xᵀy/D + 1)³. Slightly
    negative values are possible and mean "no difference found". The subset size shrinks to the smaller set. The
    subsets share pictures, so their deviation is less than that between independent sets.

    Raises:
        NonFiniteError: a feature, or the value, is NaN or infinite.
    """
    a, b = checked(a, "features"), checked(b, "features")
    result = kid_features_to_metric(
        as_tensor(a),
        as_tensor(b),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(a), len(b)),
        rng_seed=seed,
        verbose=False,
    )
    return KernelDistance(finite(result[KEY_METRIC_KID_MEAN], "kid"), finite(result[KEY_METRIC_KID_STD], "kid"))


def precision_recall(generated: np.ndarray, real: np.ndarray, neighborhood: int = NEIGHBORHOOD) -> tuple[float, float]:
    """Improved precision and recall of generated features (N, D) against real ones, by torch-fidelity.

    Kynkäänniemi et al. 2019 (arXiv 1904.06991): the share of generated pictures inside the union of the balls
    around real ones that reach to the ``neighborhood``-th neighbour, and the other way round. Both depend on
    the two counts. Not symmetric: the generated set comes first.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
        UserError: a set has no ``neighborhood``-th neighbour.
    """
    generated, real = checked(generated, "generated features"), checked(real, "real features")
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


def density_coverage(
    generated: np.ndarray, real: np.ndarray, neighborhood: int = DENSITY_NEIGHBORHOOD
) -> tuple[float, float]:
    """Density and coverage of generated features (N, D) against real ones (M, D).

    Naeem et al. 2020 (arXiv 2002.09797), eq. 3 and 4, with a ball around each real picture that reaches to its
    ``neighborhood``-th neighbour among the real ones. Density: in how many balls a generated picture lies, over
    ``neighborhood``; 1 is expected for equal distributions, more is possible. Coverage: the share of balls with a
    generated picture inside; 1 − Π_{i=0}^{k−1} (M − 1 − i) / (N + M − 1 − i) is expected then. Memory is bounded.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
        UserError: the real set has no ``neighborhood``-th neighbour.
    """
    generated, real = checked(generated, "generated features"), checked(real, "real features")
    if len(real) <= neighborhood:
        raise UserError(f"density and coverage need more than {neighborhood} real pictures; found {len(real)}.")
    radii = NearestNeighbors(n_neighbors=neighborhood, algorithm="brute").fit(real).kneighbors()[0][:, -1]
    inside, covered = 0, np.zeros(len(real), dtype=bool)
    for distances in pairwise_distances_chunked(generated, real):
        within = distances < radii
        inside += int(within.sum())
        covered |= within.any(axis=0)
    return inside / (neighborhood * len(generated)), float(covered.mean())


def classifier_score(features: np.ndarray, classifier: tuple[np.ndarray, np.ndarray]) -> float:
    """exp E KL(p(y|x) ‖ p(y)) of the extractor's own classes, by torch-fidelity.

    Salimans et al. 2016 (arXiv 1606.03498), sec. 4: the Inception Score, where the extractor is the FID Inception. Mean
    over :data:`SCORE_SPLITS` splits of the shuffled pictures.

    Args:
        features: float32, shape (N, D).
        classifier: weight (K, D) and bias (K,).

    Raises:
        NonFiniteError: a feature, or the score, is NaN or infinite.
    """
    weight, bias = classifier
    logits = torch.from_numpy(np.asarray(checked(features, "features") @ weight.T + bias))
    return finite(isc_features_to_metric(logits, splits=SCORE_SPLITS)[KEY_METRIC_ISC_MEAN], "classifier_score")


def extrapolated_frechet_distance(features: np.ndarray, reference: Moments, seed: int = 0) -> float:
    """The Fréchet distance at infinitely many samples: where a line in 1/N through fewer samples ends.

    Chong & Forsyth 2020 (arXiv 1911.07023): the bias of a Fréchet distance is linear in 1/N to first order. Here the
    counts are :data:`EXTRAPOLATION_POINTS`, even from max(N/10, 2.44 D) to N, each a random subset. What is due to the
    reference's own count stays.

    Args:
        features: float32, shape (N, D).
        reference: the moments of the real pictures.

    Raises:
        NonFiniteError: a feature, or the value, is NaN or infinite.
        UserError: fewer than five samples a dimension, where the bias is not linear in 1/N yet.
    """
    features = checked(features, "features")
    count, dimensions = features.shape
    if count < EXTRAPOLATION_LEAST_PER_DIMENSION * dimensions:
        raise UserError(
            f"extrapolation to infinitely many samples: {count} samples in {dimensions} dimensions; it needs "
            f"{math.ceil(EXTRAPOLATION_LEAST_PER_DIMENSION * dimensions)} or more."
        )
    least = max(count / 10, _SMALLEST_PER_DIMENSION * dimensions)
    counts = np.linspace(least, count, EXTRAPOLATION_POINTS).round().astype(int)
    generator = np.random.default_rng(seed)
    distances = [
        frechet_distance(moments(features[generator.permutation(count)[:some]], warn=False), reference)
        for some in counts
    ]
    _slope, at_infinity = np.polyfit(1 / counts, distances, 1)
    return finite(float(at_infinity), "frechet_distance_extrapolated")


def leak_share(features: np.ndarray, reference: Reference) -> float:
    """The share of pictures that are nearer to a picture of the reference than 99 of 100 held-out real ones are.

    0.01 is expected of new pictures; much more says that the reference, where it is what the teacher was trained on, is
    repeated.
    """
    assert reference.features is not None
    return nearer_than_held_out(nearest(features, reference.features), reference.distance_of_held_out)


def cleanfid_frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between two sets of features (N, D), or their moments, by clean-fid (Parmar et al. 2022, arXiv
    2104.11222).

    clean-fid takes its moments by the same NumPy functions as torch-fidelity, and then another matrix square root.

    Raises:
        NonFiniteError: a feature, or the distance, is NaN or infinite.
        NoMatrixRootError: clean-fid finds no real matrix square root, which happens with too few samples; or the
            installed SciPy no longer has the function that it calls.
    """
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        raise NoMatrixRootError(
            f"clean-fid {version_of('clean-fid')} calls scipy.linalg.sqrtm(…, disp=False), which SciPy "
            f"{version_of('scipy')} does not take. Its Fréchet distance needs 'scipy<1.18'; nothing else does."
        )
    one, two = (x if isinstance(x, Moments) else moments(x, warn=False) for x in (a, b))
    try:
        with warnings.catch_warnings():
            # SciPy's note on singular matrices: the value is checked below.
            warnings.filterwarnings("ignore", message="Matrix is singular")
            value = cleanfid.fid.frechet_distance(
                *(x.statistics[name] for x in (one, two) for name in ("mu", "sigma")),
            )
    except ValueError as error:
        raise NoMatrixRootError(
            f"clean-fid finds no real matrix square root in {len(one.statistics['mu'])} dimensions ({error}). Take "
            f"more samples than that in each set."
        ) from error
    return finite(value, "cleanfid_frechet_distance")


def cleanfid_kid(a: np.ndarray, b: np.ndarray, seed: int = KID_SEED) -> float:
    """Kernel distance between two sets of features (N, D) by clean-fid: the mean over 100 random subsets.

    Raises:
        NonFiniteError: a feature, or the value, is NaN or infinite.
    """
    a, b = checked(a, "clean-fid features"), checked(b, "clean-fid features")
    # clean-fid draws from NumPy's global generator, which belongs to the caller.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        return finite(cleanfid.fid.kernel_distance(a, b), "cleanfid_kid")
    finally:
        np.random.set_state(before)  # noqa: NPY002


def mean_squared_distance(samples: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over all elements of (x - x')² on uint8 pictures (N, H, W, C) decoded to [-1, 1].

    Means something only when picture i of both sets was made from the same noise.

    Raises:
        UserError: not uint8, or of different shapes.
    """
    if samples.dtype != np.uint8 or teacher.dtype != np.uint8 or samples.shape != teacher.shape:
        raise UserError(
            f"mse_to_teacher: found {samples.dtype} {samples.shape} and {teacher.dtype} {teacher.shape}; "
            f"expected two uint8 arrays of one shape, made from the same noise."
        )
    total = 0  # of whole numbers, so exact; a portion at a time, for pictures may be more than memory holds
    for start in range(0, len(samples), _PICTURES_AT_ONCE):
        portion = slice(start, start + _PICTURES_AT_ONCE)
        difference = samples[portion].astype(np.int32) - teacher[portion]
        total += int(np.sum(difference**2, dtype=np.int64))
    return total / samples.size / 127.5**2


def finite(value: float, metric: str) -> float:
    if not np.isfinite(value):
        raise NonFiniteError(f"{metric} is {value}. Check the number of samples and the features it came from.")
    return float(value)
