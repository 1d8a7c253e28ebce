"""Quality from features and samples."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.files import atomic_path, read_json
from diffusion.images import load_labels, load_samples
from evaluation import quality
from evaluation.classifier import classify, load_classifier
from suite.provenance import write_provenance
from suite.stages.common import number_in


def measure(arguments: argparse.Namespace) -> None:
    """Quality of a variant at every number of evaluations, or of the user's own samples.

    Against the real pictures, and against the teacher's samples.
    """
    own, real = load_features(arguments.features), load_features(arguments.real)
    teacher = _under(load_features(arguments.teacher_features), arguments.teacher_samples.name)
    identity = {"experiment": arguments.experiment, "method": arguments.method, "variant": arguments.variant}
    reference = quality.Reference("train", real["train"], real["test"], _own_classifier(real))
    classifier = load_classifier(arguments.classifier, default_device()) if arguments.classifier else None
    rows = []
    for group in dict.fromkeys(name.rpartition("/")[0] for name in own):
        features, nfe = _under(own, group), number_in(group) if group else None
        files = {seed: arguments.samples / group / f"seed-{seed}.npz" for seed in features}
        if not arguments.samples.is_dir():
            files = {0: arguments.samples}
        samples = {seed: load_samples(path) for seed, path in files.items()}
        if arguments.samples.is_file():  # brought by the user; the suite's own have it by construction
            check_resolution(arguments, samples)
        targets = None
        if nfe in arguments.follows_teacher:
            targets = {seed: load_samples(arguments.teacher_samples / f"seed-{seed}.npz") for seed in features}
        labels = {}
        if classifier is not None:
            asked = {seed: load_labels(path) for seed, path in files.items()}
            _check_labels(arguments, samples, asked)
            labels = {s: (told, classify(classifier, samples[s])) for s, told in asked.items() if told is not None}
        rows += quality.measure(
            identity | {"nfe": nfe, "train_seed": arguments.train_seed},
            features,
            samples,
            reference,
            extractor=_extractor(arguments.real)["name"],
            small_count=min(len(real["test"]), *(len(vectors) for vectors in features.values())),
            teacher_features=teacher,
            teacher_samples=targets,
            teacher_name=f"teacher-{number_in(arguments.teacher_samples.name)}",
            labels=labels,
        )
    inputs = {"features": arguments.features, "real": arguments.real, "teacher": arguments.teacher_features}
    _write_rows(arguments, rows, inputs | _judge(arguments))


def check_resolution(arguments: argparse.Namespace, samples: dict[int, np.ndarray]) -> None:
    """Refuses samples of another resolution: the extractor would resize them in silence and measure that too.

    Raises:
        UserError: naming both resolutions.
    """
    expected = load_samples(next(arguments.teacher_samples.glob("seed-*.npz"))).shape[1:3]
    for images in samples.values():
        if images.shape[1:3] != expected:
            raise UserError(
                f"{arguments.samples}: pictures of {images.shape[1]}×{images.shape[2]} pixels; the experiment's have "
                f"{expected[0]}×{expected[1]}. Bring samples of that resolution."
            )


def _check_labels(
    arguments: argparse.Namespace, samples: dict[int, np.ndarray], asked: dict[int, np.ndarray | None]
) -> None:
    facts = read_json(arguments.classifier / "classifier.json")
    names = facts["class_names"]
    for seed, labels in asked.items():
        channels = samples[seed].shape[-1]
        if labels is not None and channels != facts["channels"]:
            raise UserError(
                f"{arguments.samples}: {channels} channels; expected the data set's {facts['channels']}, so that the "
                f"classifier can judge the labels; or leave out 'arr_1'."
            )
        if labels is not None and not 0 <= labels.min() <= labels.max() < len(names):
            raise UserError(
                f"{arguments.samples}: classes {labels.min()} to {labels.max()}, but the data set has {len(names)}, "
                f"0 to {len(names) - 1}. The teacher was trained on other classes, or the file's 'arr_1' is not labels."
            )


def measure_floor(arguments: argparse.Namespace) -> None:
    """The real test pictures against the real training pictures: what perfect looks like at that count."""
    real = load_features(arguments.real)
    facts = read_json(arguments.classifier / "classifier.json") if arguments.classifier else None
    rows = quality.measure_floor(
        arguments.experiment,
        quality.held_out_draw(real["test"], arguments.num_samples),
        quality.Reference("train", real["train"], classifier=_own_classifier(real)),
        extractor=_extractor(arguments.real)["name"],
        label_accuracy=(facts["test_accuracy"], facts["test_count"]) if facts else None,
    )
    _write_rows(arguments, rows, {"real": arguments.real} | _judge(arguments))


def _judge(arguments: argparse.Namespace) -> dict[str, Path]:
    """The classifier's weights, where there is one, as an input of the result."""
    return {"classifier": arguments.classifier / "model.safetensors"} if arguments.classifier else {}


def _write_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]], inputs: dict[str, Path]) -> None:
    description = _extractor(arguments.real)
    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(rows, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)
    write_provenance(
        arguments.output.with_suffix(".json"),
        inputs,
        extractor=description,
        definitions=quality.definitions(description["name"]),
    )


def load_features(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a features file by name, each of shape (N, D)."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive}


def _own_classifier(real: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The extractor's own classifier, from the features of the real pictures."""
    return real["classifier-weight"], real["classifier-bias"]


def _under(features: dict[str, np.ndarray], group: str) -> dict[int, np.ndarray]:
    """Sampling seed to features, of the sets that are called ``<group>/seed-<n>``."""
    prefix = f"{group}/seed-" if group else "seed-"
    return {number_in(name): value for name, value in features.items() if name.startswith(prefix)}


def _extractor(features: Path) -> dict[str, Any]:
    """What made a features file, from the JSON beside it."""
    description: dict[str, Any] = read_json(features.with_suffix(".json"))["extractor"]
    return description
