"""The same samples under one protocol."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.measure import quality
from evaluation.measure.metrics import metric_name
from evaluation.measure.protocols import Protocol
from evaluation.measure.reference import OTHER_PART, Reference, drawn, load_features, load_given, load_real
from suite.delivery import result_file
from suite.provenance import checked, checked_folder
from suite.stages.references import extractor_under


def measure_protocol(arguments: argparse.Namespace) -> None:
    """The Fréchet distance and KID of some rows, and of held-out real pictures, under one protocol."""
    protocol = Protocol.model_validate_json(arguments.protocol)
    rows = json.loads(arguments.rows)
    inputs = checked({f"features {number}": Path(row[-1]) for number, row in enumerate(rows)})
    inputs |= checked_folder("reference", arguments.reference)
    if protocol.reference_is_file:
        inputs |= checked({"given reference": Path(protocol.reference)})
    facts = read_json(arguments.reference / "facts.json")
    extractor, parts = facts["extractor"], facts["parts"]
    reference = _reference(arguments, protocol, facts)
    library = f"{protocol.library} {extractor['library_version']}"
    table: list[dict[str, Any]] = []

    def add(identity: dict[str, Any], features: np.ndarray) -> None:
        for metric, value in quality.measure_under(protocol.library, features, reference, warn=False).items():
            table.append(
                {"experiment": arguments.experiment, "protocol": arguments.name, "features": extractor["name"]}
                | {"reference": protocol.reference, "library": library}
                | identity
                | {"metric": metric_name(metric, extractor["name"]), "value": value, "num_samples": len(features)}
            )

    for method, variant, nfe, train_seed, seed, path in rows:
        identity = {"method": method, "variant": variant, "nfe": nfe, "train_seed": train_seed, "seed": seed}
        add(identity, _first_features(Path(path), protocol, arguments.name))
    # The floor: real pictures outside the reference, as many as the samples, or as there are.
    other = OTHER_PART.get(protocol.reference, "test")
    if reference.about.get("data_sha256") != parts[other]["sha256"]:
        floor = {"method": "real", "variant": other, "nfe": None, "train_seed": None, "seed": None}
        held_out = load_features(arguments.reference / f"{other}.npy")
        add(floor, drawn(held_out, protocol.num_samples))

    about = {"protocol": protocol.model_dump(mode="json"), "extractor": extractor, "reference": reference.about}
    with result_file(arguments, inputs, seed=arguments.seed, **about) as temporary:
        pd.DataFrame(table, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)


def _first_features(path: Path, protocol: Protocol, name: str) -> np.ndarray:
    features = load_features(path)
    if protocol.num_samples is not None and len(features) < protocol.num_samples:
        raise UserError(
            f"{path}: {len(features)} samples, but the protocol '{name}' measures {protocol.num_samples}. Draw them "
            f"again."
        )
    return features[: protocol.num_samples]


def _reference(arguments: argparse.Namespace, protocol: Protocol, facts: dict[str, Any]) -> Reference:
    if not protocol.reference_is_file:
        return load_real(arguments.reference, protocol.reference)

    def extract(images: np.ndarray) -> np.ndarray:
        extractor, mode = extractor_under(arguments)
        return extractor.extract_in(mode, images, arguments.batch_size)

    return load_given(
        Path(protocol.reference),
        facts["parts"]["train"]["resolution"],
        facts["extractor"],
        extract,
        protocol.reference_sha256,
        {about["sha256"] for about in facts["parts"].values()},
    )
