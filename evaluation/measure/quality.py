"""Quality measures: thin calls into torch-fidelity and clean-fid, and a variant's rows of metrics.csv.

What this module adds is a fixed protocol (which reference, how many samples, which seeds), checks that nothing
non-finite passes, and a warning where samples are too few. Two measures stand here by hand, because no kept library
has them: density and coverage (`prdc`, their authors' package, holds all N×N distances in memory and has not moved
since 2020), and the extrapolation of a Fréchet distance to infinitely many samples.
"""

import inspect
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

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

from evaluation.columns import METRICS_COLUMNS as COLUMNS
from evaluation.measure.features import metric_name
from evaluation.measure.moments import Moments, RankWarning, as_tensor, checked, moments
from evaluation.measure.neighbours import nearer_than_held_out, nearest
from evaluation.measure.protocols import MAIN, Library
from evaluation.measure.reference import MOST_COMPARED, Reference

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
    return _finite(fid_statistics_to_metric(first, second, False)[KEY_METRIC_FID], "frechet_distance")


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
    return KernelDistance(_finite(result[KEY_METRIC_KID_MEAN], "kid"), _finite(result[KEY_METRIC_KID_STD], "kid"))


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
    return _finite(result[KEY_METRIC_PRECISION], "precision"), _finite(result[KEY_METRIC_RECALL], "recall")


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
    return _finite(isc_features_to_metric(logits, splits=SCORE_SPLITS)[KEY_METRIC_ISC_MEAN], "classifier_score")


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
    return _finite(float(at_infinity), "frechet_distance_extrapolated")


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
    return _finite(value, "cleanfid_frechet_distance")


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
        return _finite(cleanfid.fid.kernel_distance(a, b), "cleanfid_kid")
    finally:
        np.random.set_state(before)  # noqa: NPY002


def measure_under(
    library: Library,
    features: np.ndarray,
    reference: Reference,
    *,
    warn: bool = True,
) -> dict[str, float]:
    """Fréchet distance and, where the reference is more than its moments, KID, by the functions of one library.

    clean-fid finds no real matrix square root for some singular covariances, that is with too few samples, and none at
    all with SciPy 1.18 or later; its Fréchet distance is then left out, with a warning.

    Args:
        features: float32, shape (N, D).
        reference: the real pictures.
        warn: whether to warn of too few samples.
    """
    own, found = moments(features, warn=warn), {}
    if library == "torch-fidelity":
        found["frechet_distance"] = frechet_distance(own, reference.moments)
    else:
        try:
            found["frechet_distance"] = cleanfid_frechet_distance(own, reference.moments)
        except NoMatrixRootError as error:
            warnings.warn(f"no clean-fid figure. {error}", RankWarning, stacklevel=2)
    if reference.features is not None:
        if library == "torch-fidelity":
            found["kid"] = kid(features, reference.features).mean
        else:
            found["kid"] = cleanfid_kid(features, reference.features)
    return found


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


def measure(
    identity: Mapping[str, Any],
    features: Mapping[int, np.ndarray],
    samples: Mapping[int, np.ndarray],
    reference: Reference,
    *,
    extractor: str,
    fewer: Collection[int],
    teacher_features: Mapping[int, np.ndarray] | None = None,
    teacher_samples: Mapping[int, np.ndarray] | None = None,
    teacher_name: str = "teacher-50",
    teacher_seeds: int = 1,
    labels: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
) -> list[dict[str, Any]]:
    """All quality rows of one variant, in the columns of metrics.csv (:data:`COLUMNS`).

    On every sampling seed: Fréchet distance, KID with its spread over subsets, precision, recall, density, coverage
    and, where the reference has what they need, the classifier score and the leak check, at the full count and on
    the first samples of every count in ``fewer``; the mean squared distance to the teacher's samples
    from the same noise. On the first seed, where there are samples enough, the extrapolated Fréchet distance. On the
    first ``teacher_seeds`` seeds the Fréchet distance to the teacher's samples of all *other* sampling seeds, so that
    the teacher's own row is its finite-sample floor and not zero; with one sampling seed there is no such row.

    Args:
        identity: experiment, method, variant, nfe, train_seed.
        features: sampling seed to float32 (N, D).
        samples: sampling seed to uint8 (N, H, W, C).
        reference: the real pictures' features, e.g. named "train".
        extractor: name of the extractor; decides whether the Fréchet distance may be called FID.
        fewer: further counts to measure at: that of the real floor. Those that are not fewer are passed over.
        teacher_features: sampling seed to the features of the teacher's many-step samples.
        teacher_samples: sampling seed to the teacher's many-step samples from the same noise; None where the
            noise is not shared (stochastic samplers, external samples).
        teacher_name: what the column ``reference`` says in rows that compare with the teacher.
        teacher_seeds: how many sampling seeds are compared with the teacher's samples; each costs as much as
            an FID.
        labels: sampling seed to the classes that its samples were asked for and those that a classifier finds, (N,).

    Raises:
        NonFiniteError: a feature or a value is NaN or infinite.
        UserError: the inputs do not fit together.
    """
    if not features or set(features) != set(samples):
        raise UserError(
            f"measures of '{identity.get('variant')}': features of sampling seeds {sorted(features)} but "
            f"samples of "
            f"{sorted(samples)}. Run the feature extraction of this variant again."
        )
    rows: list[dict[str, Any]] = []
    for position, (seed, vectors) in enumerate(features.items()):
        this = {**identity, "seed": seed}
        rows += _reference_rows(this, vectors, reference, extractor, f"seed {seed}")
        # Fifteen Fréchet distances: for one seed, and not at points of a training, where nothing is held out.
        enough = len(vectors) >= EXTRAPOLATION_LEAST_PER_DIMENSION * vectors.shape[1]
        if enough and position == 0 and reference.held_out is not None:
            extrapolated = extrapolated_frechet_distance(vectors, reference.moments)
            rows.append(
                _row(
                    this,
                    metric=metric_name("frechet_distance_extrapolated", extractor),
                    value=extrapolated,
                    num_samples=len(vectors),
                    features=extractor,
                    reference=reference.name,
                    library="torch-fidelity",
                )
            )
        for count in (count for count in fewer if count < len(vectors)):
            rows += _reference_rows(this, vectors[:count], reference, extractor, f"seed {seed}", warn=False)
        others = [v for other, v in (teacher_features or {}).items() if other != seed]
        if others and position < teacher_seeds:
            rows.append(
                _row(
                    this,
                    metric="frechet_distance_to_teacher",
                    value=frechet_distance(moments(vectors), moments(np.concatenate(others))),
                    num_samples=len(vectors),
                    features=extractor,
                    reference=teacher_name,
                    library="torch-fidelity",
                )
            )
        if labels and seed in labels:
            asked, found = labels[seed]
            rows.append(_accuracy_row(this, float(np.mean(asked == found)), len(asked)))
        if teacher_samples is not None:
            if seed not in teacher_samples:
                raise UserError(
                    f"measures of '{identity.get('variant')}': the teacher has no samples of sampling seed "
                    f"{seed}, only of {sorted(teacher_samples)}. Sample the teacher with the same seeds."
                )
            rows.append(
                _row(
                    this,
                    metric="mse_to_teacher",
                    value=mean_squared_distance(samples[seed], teacher_samples[seed]),
                    num_samples=len(samples[seed]),
                    features="pixels",
                    reference=teacher_name,
                    library="numpy",
                )
            )
    return rows


def measure_floor(
    experiment: str,
    test_features: np.ndarray,
    reference: Reference,
    *,
    extractor: str,
    label_accuracy: tuple[float, int] | None = None,
) -> list[dict[str, Any]]:
    """The rows of the real test pictures against the reference: what a perfect model would get at that count.

    They carry ``method`` = real and ``variant`` = test; nfe, train_seed and seed are None. ``label_accuracy`` is the
    classifier's own on the real test pictures, and their number.
    """
    identity = {
        "experiment": experiment,
        "method": "real",
        "variant": "test",
        "nfe": None,
        "train_seed": None,
        "seed": None,
    }
    rows = _reference_rows(identity, test_features, reference, extractor, "test pictures")
    if label_accuracy is not None:
        rows.append(_accuracy_row(identity, *label_accuracy))
    return rows


def definitions(extractor: str, reference: str = "train") -> dict[str, str]:
    """Each measure of the column ``metric`` spelled out, for the report and the provenance files.

    What they have in common (features, quantiser, reference) is the protocol's (:mod:`evaluation.measure.protocols`).

    Args:
        extractor: its name; decides what the Fréchet distance is called.
        reference: name of the reference set.
    """
    by = "by torch-fidelity"
    whole = f"num_samples samples against the whole '{reference}' part"
    compared = f"{whole} (where it is larger, {MOST_COMPARED:,} drawn of it)"
    few = EXTRAPOLATION_LEAST_PER_DIMENSION
    sentences = {
        "frechet_distance": (
            f"Fréchet distance, {whole}, {by}. Biased upwards by few samples: compare at equal num_samples only."
        ),
        "kid": (
            f"Kernel distance, unbiased, polynomial kernel of degree 3, {by}; mean over {KID_SUBSETS} random "
            f"subsets of {KID_SUBSET_SIZE} pictures (fewer where a set is smaller), seed {KID_SEED}."
        ),
        "kid_subset_sd": (
            "Standard deviation of KID between those subsets, which share pictures. Of a set no larger than a subset "
            "every subset is the whole: the deviation is then the reference's alone."
        ),
        "precision": f"Improved precision with {NEIGHBORHOOD} nearest neighbours, {compared}, {by}.",
        "recall": f"Improved recall with {NEIGHBORHOOD} nearest neighbours, {compared}, {by}.",
        "density": (
            f"Mean number of real balls that a sample lies in, over {DENSITY_NEIGHBORHOOD}; a ball reaches to the "
            f"{DENSITY_NEIGHBORHOOD}th nearest real neighbour; {compared}. 1 is expected of equal distributions."
        ),
        "coverage": "Share of these balls with a sample inside. Grows with num_samples.",
        "classifier_score": (
            f"exp E KL(p(y|x) ‖ p(y)) of the extractor's own classes, mean over {SCORE_SPLITS} splits, {by}. It "
            f"knows no reference, and grows with num_samples; called Inception Score on the FID Inception only."
        ),
        "frechet_distance_extrapolated": (
            f"Where a line in 1/N through the Fréchet distances of {EXTRAPOLATION_POINTS} random subsets ends. Taken "
            f"only with {few:.0f} samples a dimension or more; what the reference's own count adds stays."
        ),
        "leak_share": (
            f"Share of the samples that are nearer to a picture of the '{reference}' part, in the features, than 99 of "
            f"100 held-out real pictures are. 0.01 is expected of new pictures."
        ),
        "frechet_distance_to_teacher": (
            f"Fréchet distance between num_samples samples and the teacher's many-step samples of all other sampling "
            f"seeds together, {by}. No noise is shared between the two sets, so the teacher's own row is its "
            f"floor."
        ),
        "mse_to_teacher": (
            "Mean squared difference per element on uint8 pictures decoded to [-1, 1], between samples and the "
            "teacher's many-step samples from the same initial noise."
        ),
        "label_accuracy": (
            "Share of the samples that a classifier, trained on the real training pictures alone, gives the class that "
            "was asked for; for the real test pictures, their own class. Sample i is asked to be of class i modulo the "
            "number of classes."
        ),
    }
    return {metric_name(metric, extractor): sentence for metric, sentence in sentences.items()}


def _reference_rows(
    identity: Mapping[str, Any],
    features: np.ndarray,
    reference: Reference,
    extractor: str,
    what: str,
    warn: bool = True,
) -> list[dict[str, Any]]:
    """The measures against the reference at one count; those that need no full count too."""
    assert reference.features is not None
    own = moments(features, what=what, warn=warn)
    precision, recall = precision_recall(features, reference.compared)
    density, coverage = density_coverage(features, reference.compared)
    kernel = kid(features, reference.features)
    by_fidelity = {
        "frechet_distance": frechet_distance(own, reference.moments),
        "kid": kernel.mean,
        "kid_subset_sd": kernel.sd,
        "precision": precision,
        "recall": recall,
    }
    if reference.classifier is not None and len(features) >= SCORE_SPLITS:
        by_fidelity["classifier_score"] = classifier_score(features, reference.classifier)
    by_sklearn = {"density": density, "coverage": coverage}
    if reference.held_out is not None:
        by_sklearn["leak_share"] = leak_share(features, reference)
    return [
        _row(
            identity,
            metric=metric_name(metric, extractor),
            value=value,
            num_samples=len(features),
            features=extractor,
            reference=reference.name,
            library=library,
        )
        for library, values in (("torch-fidelity", by_fidelity), ("scikit-learn", by_sklearn))
        for metric, value in values.items()
    ]


def _accuracy_row(identity: Mapping[str, Any], value: float, count: int) -> dict[str, Any]:
    return _row(
        identity,
        metric="label_accuracy",
        value=value,
        num_samples=count,
        features="classifier",
        reference="labels",
        library="torchvision",
    )


def _row(identity: Mapping[str, Any], *, library: str, **measured: Any) -> dict[str, Any]:
    row = {**identity, **measured, "protocol": MAIN, "library": f"{library} {version_of(library)}"}
    return {column: row[column] for column in COLUMNS}


def _finite(value: float, metric: str) -> float:
    if not np.isfinite(value):
        raise NonFiniteError(f"{metric} is {value}. Check the number of samples and the features it came from.")
    return float(value)
