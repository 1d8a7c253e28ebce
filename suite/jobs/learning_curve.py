"""How good a student was while it was trained."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from diffusion.data.samples import load_samples
from diffusion.runtime.device import default_device
from diffusion.runtime.files import new_array, read_json, sha256_file
from evaluation.columns import CURVE_COLUMNS
from evaluation.measure import quality
from evaluation.measure.reference import load_real
from suite.job import NumSamples, SamplingSeed, TeacherNfe, TrainingSeed
from suite.jobs.extraction import UnderProtocol
from suite.jobs.inputs import snapshot_name
from suite.jobs.networks import VariantJob, checked_network, checked_prompts, conditions_of_samples, network_folder
from suite.jobs.sampling import draw_samples
from suite.provenance import checked, checked_folder
from suite.trackers import Trackers

_COSTS = ("network_evaluations", "real_images_seen", "wall_clock_s")


class Measure(VariantJob, UnderProtocol):
    """Measures a variant's last student at its snapshots and at the end, at its fewest evaluations.

    The samples, of one sampling seed, and their features are not kept.

    Attributes:
        students: the variant's folder.
        prompts: as of :class:`suite.jobs.sampling.Sample`.
        real: the real pictures' features.
        teacher_samples: of the variant that stands for the teacher, below which ``teacher_nfe`` names a folder.
    """

    train_seed: TrainingSeed
    seed: SamplingSeed
    num_samples: NumSamples
    students: Path
    prompts: Path | None = None
    real: Path
    teacher_samples: Path
    teacher_nfe: TeacherNfe

    def run(self) -> None:
        method, device = self.method, default_device()
        nfe = min(method.evaluations())
        inputs = checked({name: self.students / name for name in ("cost.json", "training.csv")})
        costs = read_json(self.students / "cost.json")
        end = next(student for student in costs["students"] if student["nfe"] == method.student_for(nfe))
        # Of the last stage, which may be longer than the settings' steps.
        last_step = int(pd.read_csv(self.students / "training.csv")["step"].iloc[-1])
        points = [
            *((snapshot, self.students / snapshot_name(snapshot["step"])) for snapshot in costs["snapshots"]),
            (end | {"step": last_step}, network_folder(method, self.students, nfe)),
        ]
        inputs |= checked_folder("real", self.real) | checked_prompts(self.prompts)
        for cost, folder in points:
            inputs |= checked_network(f"step {cost['step']}", folder)
        teacher = None
        if nfe in method.following():
            file = self.teacher_samples / f"nfe-{self.teacher_nfe}" / f"seed-{self.seed}.npz"
            inputs |= checked({"teacher's samples": file})
            teacher = {self.seed: load_samples(file)}
        extractor, mode = self.extractor()
        # Without the measures that need held-out pictures.
        reference = replace(load_real(self.real), held_out=None)
        rows: list[dict[str, Any]] = []
        for cost, folder in points:
            at = {"variant": self.variant, "nfe": nfe, "train_seed": self.train_seed, "step": cost["step"]}
            at |= {key: cost[key] for key in _COSTS}
            conditions = conditions_of_samples(folder, self.prompts)
            given = (method, folder, nfe, self.seed, self.num_samples, self.batch_size, device)
            drawn = draw_samples(*given, conditions=conditions)
            with _on_disk(drawn, self.num_samples, self.output.parent) as images:
                measured = quality.measure(
                    at | {"experiment": None, "method": method.name},
                    {self.seed: self.features(extractor, images)},
                    {self.seed: images},
                    reference,
                    extractor=extractor.name,
                    fewer=(),
                    teacher_samples=teacher,
                )
            rows += [at | {"metric": row["metric"], "value": row["value"]} for row in measured]
        name, root = f"{self.variant}/quality-{self.train_seed}", self.output.parents[2]
        with Trackers(root, name, sha256_file(self.students / "cost.json")[:8]) as trackers:
            for cost, _ in points:
                here = [row for row in rows if row["step"] == cost["step"]]
                trackers.log({f"quality/{row['metric']}": row["value"] for row in here}, cost["step"])
        with self.result_file(inputs, extractor=extractor.describe(mode)) as temporary:
            pd.DataFrame(rows, columns=list(CURVE_COLUMNS)).to_csv(temporary, index=False)


@contextmanager
def _on_disk(batches: Iterator[np.ndarray], count: int, folder: Path) -> Iterator[np.ndarray]:
    """``count`` images in one array, memory-mapped for as long as the block lasts: 50,000 of 256×256 pixels are 10 GB.

    Args:
        batches: each uint8, shape (n, H, W, C).
    """
    first = next(batches)
    with TemporaryDirectory(prefix=".samples-", dir=folder, ignore_cleanup_errors=True) as place:
        images = new_array(Path(place) / "samples.npy", (count, *first.shape[1:]), np.uint8)
        done = 0
        for batch in itertools.chain([first], batches):
            images[done : done + len(batch)] = batch
            done += len(batch)
        yield images
