"""The nearest training pictures of samples."""

from pathlib import Path

import numpy as np

from diffusion.data.samples import load_samples
from diffusion.data.store import load_split
from evaluation.measure.neighbours import closeness, nearest
from evaluation.measure.reference import load_features, load_real
from suite.job import Job
from suite.jobs.inputs import checked_data
from suite.provenance import checked, checked_folder

_SHOWN = 16


class Find(Job):
    """The first samples of each row with their nearest training pictures, and how near all its samples come.

    Attributes:
        rows: label, samples and features of each.
        real: the real pictures' features.
        data: the data set.
    """

    rows: tuple[tuple[str, Path, Path], ...]
    real: Path
    data: Path

    def run(self) -> None:
        inputs = checked_data(self.data, "train") | checked_folder("real", self.real)
        for label, samples, features in self.rows:
            inputs |= checked({f"samples of {label}": samples, f"features of {label}": features})
        real = load_real(self.real)
        assert real.features is not None
        pictures = load_split(self.data, "train").images
        found, arrays = {}, {}
        for number, (label, samples, features) in enumerate(self.rows):
            found[label] = nearest(load_features(features), real.features)
            arrays[f"samples-{number}"] = load_samples(samples)[:_SHOWN]
            arrays[f"nearest-{number}"] = np.asarray(pictures[found[label].index[:_SHOWN]])
        held_out = real.distance_of_held_out.distance
        about = {
            "rows": [{"label": label, **facts} for label, facts in closeness(found, real.distance_of_held_out).items()],
            "held_out": {"median_distance": float(np.median(held_out)), "count": len(held_out)},
        }
        with self.result_file(inputs, **about) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
