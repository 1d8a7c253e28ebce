"""The nearest training pictures of samples."""

import argparse
import json
from pathlib import Path

import numpy as np

from diffusion.data.samples import load_samples
from diffusion.data.store import load_split
from evaluation.measure.neighbours import closeness, nearest
from evaluation.measure.reference import load_features, load_real
from suite.delivery import result_file
from suite.provenance import checked, checked_folder
from suite.stages.inputs import checked_data

_SHOWN = 16
_KINDS = ("samples", "features")


def find_neighbours(arguments: argparse.Namespace) -> None:
    """The first samples of each row with their nearest training pictures, and how near all its samples come."""
    rows = json.loads(arguments.rows)
    inputs = checked_data(arguments.data, "train") | checked_folder("real", arguments.real)
    inputs |= checked(
        {f"{kind} of {label}": Path(path) for label, *paths in rows for kind, path in zip(_KINDS, paths, strict=True)}
    )
    real = load_real(arguments.real)
    assert real.features is not None
    pictures = load_split(arguments.data, "train").images
    found, arrays = {}, {}
    for label, samples, features in rows:
        found[label] = nearest(load_features(Path(features)), real.features)
        number = len(found) - 1
        arrays[f"samples-{number}"] = load_samples(Path(samples))[:_SHOWN]
        arrays[f"nearest-{number}"] = np.asarray(pictures[found[label].index[:_SHOWN]])
    held_out = real.distance_of_held_out.distance
    about = {
        "rows": [{"label": label, **facts} for label, facts in closeness(found, real.distance_of_held_out).items()],
        "held_out": {"median_distance": float(np.median(held_out)), "count": len(held_out)},
    }
    with result_file(arguments, inputs, **about) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
