"""One and the same samples under one protocol."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.errors import UserError
from diffusion.files import atomic_path, read_json
from diffusion.images import load_samples
from evaluation import quality
from evaluation.features import metric_name
from evaluation.protocols import Protocol
from evaluation.reference import ReferenceSet, load_reference
from suite.provenance import write_provenance
from suite.stages.references import extractor_under


def measure_protocol(arguments: argparse.Namespace) -> None:
    """The Fréchet distance and KID of some rows, and of held-out real pictures, under one protocol."""
    protocol = Protocol.model_validate_json(arguments.protocol)
    extractor = extractor_under(protocol, arguments)
    description = extractor.describe(protocol.mode)
    rows = json.loads(arguments.rows)
    sets = [_first_samples(Path(path), protocol, arguments.name) for *_identity, path in rows]

    def extract(images: np.ndarray) -> np.ndarray:
        return extractor.extract_in(protocol.mode, images, arguments.batch_size)

    reference = _reference(arguments.reference, protocol, sets[0].shape[1], description, extract)
    library = f"{protocol.library} {description['library_version']}"
    table: list[dict[str, Any]] = []

    def add(identity: dict[str, Any], features: np.ndarray) -> None:
        measured = quality.measure_under(protocol.library, features, reference.moments, reference.features, warn=False)
        for metric, value in measured.items():
            row = {"metric": metric_name(metric, extractor.name), "value": value, "num_samples": len(features)}
            table.append(
                {"experiment": arguments.experiment, "protocol": arguments.name, "features": extractor.name}
                | {"reference": protocol.reference, "library": library}
                | identity
                | row
            )

    for (method, variant, nfe, train_seed, _path), images in zip(rows, sets, strict=True):
        identity = {"method": method, "variant": variant, "nfe": nfe, "train_seed": train_seed}
        add(identity | {"seed": arguments.seed}, extract(images))
    # The floor: real pictures outside the reference, as many as the samples, or as there are.
    other = "train" if protocol.reference == "test" else "test"
    if reference.about.get("data_sha256") != read_json(arguments.reference / "facts.json")["parts"][other]["sha256"]:
        held_out = np.load(arguments.reference / f"{other}.npy", mmap_mode="r")
        floor = {"method": "real", "variant": other, "nfe": None, "train_seed": None, "seed": None}
        add(floor, quality.held_out_draw(held_out, protocol.num_samples))

    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(table, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)
    write_provenance(
        arguments.output.with_suffix(".json"),
        {f"samples {number}": Path(row[-1]) for number, row in enumerate(rows)}
        | {"reference": arguments.reference / "facts.json"},
        protocol=protocol.model_dump(mode="json"),
        extractor=description,
        reference=reference.about,
        seed=arguments.seed,
    )


def _first_samples(path: Path, protocol: Protocol, name: str) -> np.ndarray:
    images = load_samples(path)
    if protocol.num_samples is not None and len(images) < protocol.num_samples:
        raise UserError(
            f"{path}: {len(images)} samples, but the protocol '{name}' measures {protocol.num_samples}. Draw them "
            f"again."
        )
    return images[: protocol.num_samples]


def _reference(
    folder: Path, protocol: Protocol, resolution: int, extractor: dict[str, Any], extract: Any
) -> ReferenceSet:
    parts = read_json(folder / "facts.json")["parts"]
    if protocol.reference_is_file:
        hashes = {about["sha256"] for about in parts.values()}
        return load_reference(
            Path(protocol.reference), resolution, extractor, extract, protocol.reference_sha256, hashes
        )
    known = load_reference(folder / f"{protocol.reference}.npz", resolution, extractor, extract)
    # Copy on write: torch refuses memory that it must not write to, and nobody writes.
    features = np.load(folder / f"{protocol.reference}.npy", mmap_mode="c")
    return ReferenceSet(known.moments, features, parts[protocol.reference])
