"""Features of samples and of real pictures."""

import argparse
from pathlib import Path

import numpy as np

from diffusion.data import load_split
from diffusion.data.store import PARTS
from diffusion.device import default_device
from diffusion.files import atomic_path
from diffusion.images import load_samples
from evaluation.features import Extractor, load_extractor
from suite.provenance import write_provenance
from suite.stages.common import number_in


def extract_features(arguments: argparse.Namespace) -> None:
    """Features of sets of samples: ``nfe-<n>/seed-<s>`` for a folder that ``sample`` wrote, ``seed-0`` for one file."""
    given = arguments.samples
    files = {"seed-0": given}
    if given.is_dir():
        found = sorted(given.glob("nfe-*/seed-*.npz"), key=lambda path: (path.parent.name, number_in(path.stem)))
        files = {f"{path.parent.name}/{path.stem}": path for path in found}
    extractor = _extractor(arguments)
    features = {name: extractor.extract(load_samples(path), arguments.batch_size) for name, path in files.items()}
    _write(arguments.output, features, files, extractor)


def extract_real_features(arguments: argparse.Namespace) -> None:
    """Features of the real pictures, both parts, and the extractor's own classifier (``classifier-weight``,
    ``classifier-bias``), so that whoever measures need not load the network."""
    extractor = _extractor(arguments)
    features: dict[str, np.ndarray] = {
        name: extractor.extract(np.asarray(load_split(arguments.data, name).images), arguments.batch_size)
        for name in PARTS
    }
    features["classifier-weight"], features["classifier-bias"] = extractor.classifier()
    _write(arguments.output, features, {"data": arguments.data / "manifest.json"}, extractor)


def _extractor(arguments: argparse.Namespace) -> Extractor:
    return load_extractor(arguments.extractor, default_device(), arguments.inception_weights)


def _write(output: Path, features: dict[str, np.ndarray], inputs: dict[str, Path], extractor: Extractor) -> None:
    with atomic_path(output) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **features)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    write_provenance(output.with_suffix(".json"), inputs, extractor=extractor.describe())
