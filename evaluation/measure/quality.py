"""Quality measures: thin calls into torch-fidelity and clean-fid, and a variant's rows of metrics.csv.

What this module adds is a fixed protocol (which reference, how many samples, which seeds), checks that nothing
non-finite passes, and a warning where samples are too few. Two measures stand here by hand, because no kept library
has them: density and coverage (`prdc`, their authors' package, holds all N×N distances in memory and has not moved
since 2020), and the extrapolation of a Fréchet distance to infinitely many samples.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import version_of
from evaluation.measure.distances import (
    DENSITY_NEIGHBORHOOD,
    EXTRAPOLATION_LEAST_PER_DIMENSION,
    EXTRAPOLATION_POINTS,
    KID_SEED,
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    NEIGHBORHOOD,
    SCORE_SPLITS,
    NoMatrixRootError,
    classifier_score,
    cleanfid_frechet_distance,
    cleanfid_kid,
    density_coverage,
    extrapolated_frechet_distance,
    frechet_distance,
    kid,
    leak_share,
    mean_squared_distance,
    precision_recall,
)

# isort: split
import numpy as np

from evaluation.columns import METRICS_COLUMNS as COLUMNS
from evaluation.measure.features import metric_name
from evaluation.measure.moments import RankWarning, moments
from evaluation.measure.protocols import MAIN, Library
from evaluation.measure.reference import MOST_COMPARED, Reference


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
