"""One and the same samples under several protocols."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.data import load_split
from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.files import atomic_path, read_json, write_json
from diffusion.images import load_samples
from evaluation import quality
from evaluation.features import Extractor, load_extractor, metric_name
from evaluation.protocols import PARTS, Protocol, in_words
from evaluation.reference import ReferenceSet, load_reference, write_features, write_reference
from suite.provenance import write_provenance
from suite.stages.common import result_folder

_FLOOR_SEED = 0  # of the draw of held-out pictures, which may be sorted by class


def extract_reference(arguments: argparse.Namespace) -> None:
    """Features and moments of the real pictures, both parts, on one way from pictures to features.

    ``<part>.npy`` is float32 (N, D), to be memory-mapped; ``<part>.npz`` is a reference that other experiments take.
    """
    protocol = Protocol.model_validate_json(arguments.protocol)
    extractor = _extractor(arguments, protocol)
    description = extractor.describe(protocol.mode)
    parts = {}
    with result_folder(arguments.output) as folder:
        for part in PARTS:
            split = load_split(arguments.data, part)
            write_features(
                folder / f"{part}.npy",
                split.images,
                extractor.dimensions,
                lambda images: _features(extractor, protocol, images, arguments.batch_size),
            )
            about = {"resolution": split.images.shape[1], "sha256": split.sha256}
            features = np.load(folder / f"{part}.npy", mmap_mode="r")
            write_reference(folder / f"{part}.npz", features, about | {"extractor": description})
            parts[part] = about | {"count": len(split.images)}
        write_json(folder / "facts.json", {"extractor": description, "parts": parts})
        write_provenance(
            folder / "provenance.json", {"data": arguments.data / "manifest.json"}, extractor=description, parts=parts
        )


def measure_protocol(arguments: argparse.Namespace) -> None:
    """The Fréchet distance and KID of some rows, and of held-out real pictures, under one protocol."""
    protocol = Protocol.model_validate_json(arguments.protocol)
    extractor = _extractor(arguments, protocol)
    description = extractor.describe(protocol.mode)
    rows = json.loads(arguments.rows)
    sets = [_first_samples(Path(path), protocol, arguments.name) for *_identity, path in rows]

    def extract(images: np.ndarray) -> np.ndarray:
        return _features(extractor, protocol, images, arguments.batch_size)

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
    held_out = np.load(arguments.reference / f"{other}.npy", mmap_mode="r")
    drawn = np.random.default_rng(_FLOOR_SEED).permutation(len(held_out))[: protocol.num_samples]
    floor = {"method": "real", "variant": other, "nfe": None, "train_seed": None, "seed": None}
    add(floor, np.asarray(held_out[np.sort(drawn)]))

    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(table, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)
    facts = {"extractor": description, "reference": reference.about, "seed": arguments.seed}
    write_provenance(
        arguments.output.with_suffix(".json"),
        {f"samples {number}": Path(row[-1]) for number, row in enumerate(rows)}
        | {"reference": arguments.reference / "facts.json"},
        protocol=protocol.model_dump(mode="json"),
        words=in_words(protocol, facts),
        **facts,
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
    if protocol.reference_is_file:
        return load_reference(Path(protocol.reference), resolution, extractor, extract, protocol.reference_sha256)
    known = load_reference(folder / f"{protocol.reference}.npz", resolution, extractor, extract)
    features = np.load(folder / f"{protocol.reference}.npy", mmap_mode="r")
    return ReferenceSet(known.moments, features, read_json(folder / "facts.json")["parts"][protocol.reference])


def _extractor(arguments: argparse.Namespace, protocol: Protocol) -> Extractor:
    assert protocol.features is not None
    inception = protocol.features == "inception"
    return load_extractor(
        protocol.features,
        default_device(),
        arguments.inception_weights if inception else None,
        arguments.cleanfid_inception_weights if inception else None,
    )


def _features(extractor: Extractor, protocol: Protocol, images: np.ndarray, batch_size: int) -> np.ndarray:
    if protocol.mode is None:
        return extractor.extract(images, batch_size)
    return extractor.extract_cleanfid(images, mode=protocol.mode)
