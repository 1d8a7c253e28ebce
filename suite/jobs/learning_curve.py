"""How good a student was while it was trained."""

import argparse
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
from suite.delivery import result_file
from suite.provenance import checked, checked_folder
from suite.stages.inputs import snapshot_name
from suite.stages.networks import checked_network, configured_method, network_folder
from suite.stages.references import extractor_under
from suite.stages.sampling import draw_samples
from suite.trackers import Trackers

_COSTS = ("network_evaluations", "real_images_seen", "wall_clock_s")


def measure_learning_curve(arguments: argparse.Namespace) -> None:
    """Measures a variant's last student at its snapshots and at the end, at its fewest evaluations.

    The samples, of one sampling seed, and their features are not kept.
    """
    method, device = configured_method(arguments.settings), default_device()
    nfe = min(method.evaluations())
    inputs = checked({name: arguments.students / name for name in ("cost.json", "training.csv")})
    facts = read_json(arguments.students / "cost.json")
    end = next(student for student in facts["students"] if student["nfe"] == method.student_for(nfe))
    # Of the last stage, which may be longer than the settings' steps.
    last_step = int(pd.read_csv(arguments.students / "training.csv")["step"].iloc[-1])
    points = [
        *((snapshot, arguments.students / snapshot_name(snapshot["step"])) for snapshot in facts["snapshots"]),
        (end | {"step": last_step}, network_folder(method, arguments.students, nfe)),
    ]
    teacher_samples = arguments.teacher_samples / f"seed-{arguments.seed}.npz"
    inputs |= checked_folder("real", arguments.real)
    for cost, folder in points:
        inputs |= checked_network(f"step {cost['step']}", folder)
    if nfe in method.following():
        inputs |= checked({"teacher's samples": teacher_samples})
    extractor, mode = extractor_under(arguments)
    # Without the measures that need held-out pictures.
    reference = replace(load_real(arguments.real), held_out=None)
    teacher = None
    if nfe in method.following():
        teacher = {arguments.seed: load_samples(teacher_samples)}
    rows: list[dict[str, Any]] = []
    for cost, folder in points:
        at = {"variant": arguments.variant, "nfe": nfe, "train_seed": arguments.train_seed, "step": cost["step"]}
        at |= {key: cost[key] for key in _COSTS}
        drawn = draw_samples(method, folder, nfe, arguments.seed, arguments.num_samples, arguments.batch_size, device)
        with _on_disk(drawn, arguments.num_samples, arguments.output.parent) as images:
            measured = quality.measure(
                at | {"experiment": None, "method": method.name},
                {arguments.seed: extractor.extract_in(mode, images, arguments.batch_size)},
                {arguments.seed: images},
                reference,
                extractor=extractor.name,
                fewer=(),
                teacher_samples=teacher,
            )
        rows += [at | {"metric": row["metric"], "value": row["value"]} for row in measured]
    name, root = f"{arguments.variant}/quality-{arguments.train_seed}", arguments.output.parents[2]
    with Trackers(root, name, sha256_file(arguments.students / "cost.json")[:8]) as trackers:
        for cost, _ in points:
            here = [row for row in rows if row["step"] == cost["step"]]
            trackers.log({f"quality/{row['metric']}": row["value"] for row in here}, cost["step"])
    about = {"extractor": extractor.describe(mode), "seed": arguments.seed, "num_samples": arguments.num_samples}
    with result_file(arguments, inputs, **about) as temporary:
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
