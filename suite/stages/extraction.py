"""Features of samples and of real pictures."""

import argparse
import sys
from pathlib import Path

import numpy as np

from diffusion.data import load_split
from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.files import atomic_path
from diffusion.images import load_samples
from evaluation.features import load_extractor
from suite.provenance import write_provenance
from suite.stages.common import number_in


def extract_features(arguments: argparse.Namespace) -> None:
    """Features of sets of samples, and of the first sampling seed's for clean-fid too (``cleanfid/…``).

    The sets are called ``nfe-<n>/seed-<s>`` for a folder that ``sample`` wrote, and ``seed-0`` for one file.
    """
    given = arguments.samples
    files = {"seed-0": given}
    if given.is_dir():
        found = sorted(given.glob("nfe-*/seed-*.npz"), key=lambda path: (path.parent.name, number_in(path.stem)))
        files = {f"{path.parent.name}/{path.stem}": path for path in found}
    sets = {name: load_samples(path) for name, path in files.items()}
    first: dict[str, str] = {}
    for name in sets:
        first.setdefault(name.rpartition("/")[0], name)
    _extract(arguments, sets, {f"cleanfid/{name}": sets[name] for name in first.values()}, files)


def extract_real_features(arguments: argparse.Namespace) -> None:
    """Features of the real pictures, both parts, for torch-fidelity and clean-fid; and the extractor's own classifier
    (``classifier-weight``, ``classifier-bias``), so that whoever measures need not load the network."""
    sets = {name: np.asarray(load_split(arguments.data, name).images) for name in ("train", "test")}
    _extract(
        arguments,
        sets,
        {f"cleanfid-{name}": images for name, images in sets.items()},
        {"data": arguments.data / "manifest.json"},
        with_classifier=True,
    )


def _extract(
    arguments: argparse.Namespace,
    sets: dict[str, np.ndarray],
    cleanfid_sets: dict[str, np.ndarray],
    inputs: dict[str, Path],
    with_classifier: bool = False,
) -> None:
    extractor = load_extractor(
        arguments.extractor, default_device(), arguments.inception_weights, arguments.cleanfid_inception_weights
    )
    features = {name: extractor.extract(images, arguments.batch_size) for name, images in sets.items()}
    if with_classifier:
        features["classifier-weight"], features["classifier-bias"] = extractor.classifier()
    cleanfid = "measured"
    try:
        for name, images in cleanfid_sets.items():
            features[name] = extractor.extract_cleanfid(images)
    except UserError as error:
        # clean-fid has its own copy of the Inception; the other measures do not need it.
        cleanfid = str(error)
        print(f"without clean-fid: {error}", file=sys.stderr)
    with atomic_path(arguments.output) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **features)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    write_provenance(arguments.output.with_suffix(".json"), inputs, extractor=extractor.describe(), cleanfid=cleanfid)
