"""A variant's rows of metrics.csv: every metric (:mod:`evaluation.measure.metrics`) under the protocol `main`."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import version_of
from evaluation.columns import METRICS_COLUMNS as COLUMNS
from evaluation.measure.clean_fid import NoMatrixRootError, cleanfid_frechet_distance, cleanfid_kid
from evaluation.measure.metric import METRICS, Given, taken_of
from evaluation.measure.metrics import frechet_distance, kid, metric_name
from evaluation.measure.moments import RankWarning, moments
from evaluation.measure.protocols import MAIN, Library
from evaluation.measure.reference import Reference


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
        if reference.features is not None:
            found["kid"] = kid(features, reference.features).mean
        return found
    try:
        found["frechet_distance"] = cleanfid_frechet_distance(own, reference.moments)
    except NoMatrixRootError as error:
        warnings.warn(f"no clean-fid figure. {error}", RankWarning, stacklevel=2)
    if reference.features is not None:
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
    told: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """All quality rows of one variant, in the columns of metrics.csv (:data:`COLUMNS`).

    On every sampling seed every metric at the full count, and those against the reference on the first samples of every
    count in ``fewer``. On the first seed alone the extrapolated Fréchet distance, and the Fréchet distance to the
    teacher's samples of all *other* sampling seeds, so that the teacher's own row is its finite-sample floor and not
    zero; with one sampling seed there is no such row.

    Args:
        identity: experiment, method, variant, nfe, train_seed.
        features: sampling seed to float32 (N, D).
        samples: sampling seed to uint8 (N, H, W, C).
        reference: the real pictures' features, e.g. named "train"; without held-out ones, nothing is extrapolated.
        extractor: name of the extractor; decides whether the Fréchet distance may be called FID.
        fewer: further counts to measure at: that of the real floor. Those that are not fewer are passed over.
        teacher_features: sampling seed to the features of the teacher's many-step samples.
        teacher_samples: sampling seed to the teacher's many-step samples from the same noise; None where the
            noise is not shared (stochastic samplers, external samples).
        teacher_name: what the column ``reference`` says in rows that compare with the teacher.
        told: sampling seed to what concerns what its samples were asked for: ``labels``, ``captions``,
            ``caption_indices`` and matches with captions, as :class:`~evaluation.measure.metric.Given` has them.

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
    first = next(iter(features))
    for seed, vectors in features.items():
        if teacher_samples is not None and seed not in teacher_samples:
            raise UserError(
                f"measures of '{identity.get('variant')}': the teacher has no samples of sampling seed "
                f"{seed}, only of {sorted(teacher_samples)}. Sample the teacher with the same seeds."
            )
        this = {**identity, "seed": seed}
        others = [v for other, v in (teacher_features or {}).items() if other != seed]
        further = {
            "images": samples[seed],
            "teacher_images": teacher_samples[seed] if teacher_samples is not None else None,
            **(told or {}).get(seed, {}),
            "all_seeds": _all_seeds(features, told or {}) if seed == first else None,
            "first_features": vectors if seed == first and reference.held_out is not None else None,
            "other_teacher_features": np.concatenate(others) if others and seed == first else None,
        }
        rows += _rows(this, vectors, reference, extractor, f"seed {seed}", further, teacher_name)
        for count in (count for count in fewer if count < len(vectors)):
            rows += _rows(this, vectors[:count], reference, extractor, None)
    return rows


def measure_floor(
    experiment: str,
    test_features: np.ndarray,
    reference: Reference,
    *,
    extractor: str,
    label_accuracy: tuple[float, int] | None = None,
    captioned: Given | None = None,
) -> list[dict[str, Any]]:
    """The rows of the real test pictures against the reference: what a perfect model would get at that count.

    They carry ``method`` = real and ``variant`` = test; nfe, train_seed and seed are None. ``label_accuracy`` is the
    classifier's own on the real test pictures, and their number; ``captioned`` what concerns captions, of all real test
    images, with ``caption_indices``.
    """
    identity = {
        "experiment": experiment,
        "method": "real",
        "variant": "test",
        **dict.fromkeys(("nfe", "train_seed", "seed")),
    }
    rows = _rows(identity, test_features, reference, extractor, "test pictures")
    if label_accuracy is not None:
        rows.append(_row(identity, "label_accuracy", *label_accuracy, extractor, "labels"))
    if captioned is not None and captioned.caption_indices is not None:
        count = len(captioned.caption_indices)
        values = taken_of(captioned).items()
        rows += [_row(identity, name, value, count, extractor, "captions") for name, value in values]
    return rows


def _all_seeds(
    features: Mapping[int, np.ndarray], told: Mapping[int, Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Features of the samples of all sampling seeds, and the indices of their captions; None where they have none."""
    indices = [told[seed]["caption_indices"] for seed in features if "caption_indices" in told.get(seed, {})]
    if len(indices) < len(features):
        return None
    return np.concatenate([*features.values()]), np.concatenate(indices)


def definitions(extractor: str) -> dict[str, str]:
    """Each metric of the column ``metric`` spelled out, for the report and the provenance files, on an extractor."""
    return {metric_name(name, extractor): metric.sentence for name, metric in METRICS.items()}


def _rows(
    identity: Mapping[str, Any],
    features: np.ndarray,
    reference: Reference,
    extractor: str,
    what: str | None,
    further: Mapping[str, Any] | None = None,
    teacher_name: str = "",
) -> list[dict[str, Any]]:
    """The rows of one set; ``what`` names it in warnings of too few samples, None warns of none."""
    given = Given(
        features=features,
        own_moments=moments(features, what=what or "", warn=what is not None),
        real_features=reference.features,
        real_moments=reference.moments,
        compared=reference.compared,
        classifier=reference.classifier,
        distance_of_held_out=None if reference.held_out is None else reference.distance_of_held_out,
        **(further or {}),
    )
    against = {"": reference.name, "teacher": teacher_name, "labels": "labels", "captions": "captions"}
    return [
        _row(identity, name, value, len(features), extractor, against[METRICS[name].against])
        for name, value in taken_of(given).items()
    ]


def _row(
    identity: Mapping[str, Any], name: str, value: float, count: int, extractor: str, against: str
) -> dict[str, Any]:
    metric = METRICS[name]
    row = {
        **identity,
        "metric": metric_name(name, extractor),
        "value": value,
        "num_samples": count,
        "protocol": MAIN,
        "features": metric.features or extractor,
        "reference": against,
        "library": f"{metric.library} {version_of(metric.library)}",
    }
    return {column: row[column] for column in COLUMNS}
