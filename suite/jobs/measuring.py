"""Quality from features and samples."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.data.samples import load_labels, load_samples
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.measure import quality
from evaluation.measure.classifier import classify, load_classifier
from evaluation.measure.reference import drawn, load_features, load_real
from suite.delivery import result_file
from suite.provenance import Input, checked, checked_folder
from suite.stages.inputs import number_in


def measure(arguments: argparse.Namespace) -> None:
    """Quality of a variant at every number of evaluations, or of the user's own samples.

    Against the real pictures, and against the teacher's samples.
    """
    # A variant has a folder for every number of evaluations; what a user brings has files.
    brought = dict(zip(arguments.seeds, arguments.samples, strict=True)) if arguments.seeds else {}
    folders = sorted(arguments.features.glob("nfe-*"), key=lambda path: number_in(path.name)) or [arguments.features]
    teacher_nfe = arguments.teacher_features.name
    inputs = (
        _real_and_classifier(arguments)
        | checked_folder("features", arguments.features)
        | checked_folder("teacher's features", arguments.teacher_features.parent, teacher_nfe)
        | checked_folder("teacher's samples", arguments.teacher_samples.parent, teacher_nfe)
    )
    if brought:
        inputs |= checked({f"samples of seed {seed}": file for seed, file in brought.items()})
    else:
        inputs |= checked_folder("samples", arguments.samples[0])
    reference, extractor = load_real(arguments.real), _extractor(arguments.real)
    assert reference.held_out is not None
    teacher = _by_seed(arguments.teacher_features)
    identity = {"experiment": arguments.experiment, "method": arguments.method, "variant": arguments.variant}
    classifier = load_classifier(arguments.classifier, default_device()) if arguments.classifier else None
    rows = []
    for folder in folders:
        features = _by_seed(folder)
        nfe = arguments.nfe if brought else number_in(folder.name)
        files = brought or {seed: arguments.samples[0] / folder.name / f"seed-{seed}.npz" for seed in features}
        samples = {seed: load_samples(path) for seed, path in files.items()}
        if brought:  # the suite's own have it by construction
            check_resolution(arguments, files, samples)
        targets = None
        if nfe in arguments.follows_teacher:
            targets = {seed: load_samples(arguments.teacher_samples / f"seed-{seed}.npz") for seed in features}
        labels = {}
        if classifier is not None:
            asked = {seed: load_labels(path) for seed, path in files.items()}
            _check_labels(arguments, files, samples, asked)
            labels = {
                seed: (told, classify(classifier, samples[seed], arguments.batch_size))
                for seed, told in asked.items()
                if told is not None
            }
        rows += quality.measure(
            identity | {"nfe": nfe, "train_seed": arguments.train_seed},
            features,
            samples,
            reference,
            extractor=extractor["name"],
            fewer=sorted({len(reference.held_out), *([arguments.num_samples] if brought else [])}),
            teacher_features=teacher,
            teacher_samples=targets,
            teacher_name=f"teacher-{number_in(arguments.teacher_samples.name)}",
            labels=labels,
        )
    _write_rows(arguments, rows, inputs)


def check_resolution(
    arguments: argparse.Namespace, files: Mapping[int, Path], samples: Mapping[int, np.ndarray]
) -> None:
    """Refuses samples of another resolution: the extractor would resize them in silence and measure that too.

    Raises:
        UserError: naming both resolutions.
    """
    expected = load_samples(next(arguments.teacher_samples.glob("seed-*.npz"))).shape[1:3]
    for seed, images in samples.items():
        if images.shape[1:3] != expected:
            raise UserError(
                f"{files[seed]}: pictures of {images.shape[1]}×{images.shape[2]} pixels; the experiment's have "
                f"{expected[0]}×{expected[1]}. Bring samples of that resolution."
            )


def _check_labels(
    arguments: argparse.Namespace,
    files: Mapping[int, Path],
    samples: Mapping[int, np.ndarray],
    asked: Mapping[int, np.ndarray | None],
) -> None:
    facts = read_json(arguments.classifier / "classifier.json")
    names = facts["class_names"]
    for seed, labels in asked.items():
        channels = samples[seed].shape[-1]
        if labels is not None and channels != facts["channels"]:
            raise UserError(
                f"{files[seed]}: {channels} channels; expected the data set's {facts['channels']}, so that the "
                f"classifier can judge the labels; or leave out 'arr_1'."
            )
        if labels is not None and not 0 <= labels.min() <= labels.max() < len(names):
            raise UserError(
                f"{files[seed]}: classes {labels.min()} to {labels.max()}, but the data set has {len(names)}, "
                f"0 to {len(names) - 1}. The teacher was trained on other classes, or the file's 'arr_1' is not labels."
            )


def measure_floor(arguments: argparse.Namespace) -> None:
    """The real test pictures against the real training pictures: what perfect looks like at that count."""
    inputs = _real_and_classifier(arguments)
    real = load_real(arguments.real)
    assert real.held_out is not None
    facts = read_json(arguments.classifier / "classifier.json") if arguments.classifier else None
    rows = quality.measure_floor(
        arguments.experiment,
        drawn(real.held_out, arguments.num_samples),
        replace(real, held_out=None),
        extractor=_extractor(arguments.real)["name"],
        label_accuracy=(facts["test_accuracy"], facts["test_count"]) if facts else None,
    )
    _write_rows(arguments, rows, inputs)


def _real_and_classifier(arguments: argparse.Namespace) -> dict[str, Input]:
    """The real pictures' features and moments, and the classifier where there is one, as inputs of the result."""
    inputs = checked_folder("real", arguments.real)
    return inputs | checked_folder("classifier", arguments.classifier) if arguments.classifier else inputs


def _write_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]], inputs: dict[str, Input]) -> None:
    description = _extractor(arguments.real)
    facts = {"extractor": description, "definitions": quality.definitions(description["name"])}
    with result_file(arguments, inputs, **facts) as temporary:
        pd.DataFrame(rows, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)


def _by_seed(folder: Path) -> dict[int, np.ndarray]:
    """Sampling seed to features, of a folder with ``seed-<n>.npy``."""
    return dict(sorted((number_in(path.stem), load_features(path)) for path in folder.glob("seed-*.npy")))


def _extractor(real: Path) -> dict[str, Any]:
    """What made the features of the real pictures, and so all that are compared with them."""
    description: dict[str, Any] = read_json(real / "facts.json")["extractor"]
    return description
