"""The real pictures as one way from pictures to features sees them."""

import argparse
import json

import numpy as np

from diffusion.data.store import PARTS, load_split
from diffusion.runtime.device import default_device
from diffusion.runtime.files import sha256_file, write_json
from diffusion.runtime.processes import join
from evaluation.measure.extractor import Extractor
from evaluation.measure.features import load_extractor
from evaluation.measure.protocols import CleanMode, Protocol
from evaluation.measure.reference import load_features, write_features, write_moments
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, write_provenance
from suite.stages.inputs import checked_data


def extract_reference(arguments: argparse.Namespace) -> None:
    """Features and moments of the real pictures, both parts; read by :func:`evaluation.measure.reference.load_real`.

    ``<part>.npy`` is float32 (N, D), to be memory-mapped; ``<part>.npz`` is a reference that other experiments take;
    ``classifier.npz`` has ``weight`` and ``bias`` of the extractor's own classifier, where it has one, so that whoever
    measures need not load the network.
    """
    extractor, mode = extractor_under(arguments)
    description = extractor.describe(mode)
    parts = {}
    inputs, processes = checked_data(arguments.data, *PARTS), join(default_device())
    with result_folder(arguments, processes) as folder:
        for part in PARTS:
            split = load_split(arguments.data, part)
            write_features(
                folder / f"{part}.npy",
                split.images,
                extractor.dimensions,
                lambda images: extractor.extract_in(mode, images, arguments.batch_size),
                processes,
            )
            if not processes.is_main:
                continue
            about = {"resolution": split.images.shape[1], "sha256": split.sha256}
            write_moments(
                folder / f"{part}.npz", load_features(folder / f"{part}.npy"), about | {"extractor": description}
            )
            own = {"count": len(split.images), "features_sha256": sha256_file(folder / f"{part}.npy")}
            parts[part] = about | own
        if not processes.is_main:
            return
        if (classifier := extractor.classifier()) is not None:
            np.savez(folder / "classifier.npz", weight=classifier[0], bias=classifier[1])
        write_json(folder / "facts.json", {"extractor": description, "parts": parts})
        write_provenance(folder / RECORD, inputs, asked(arguments), extractor=description, parts=parts)


def extractor_under(arguments: argparse.Namespace) -> tuple[Extractor, CleanMode | None]:
    """The extractor of a protocol, with the weights that the command was given, and clean-fid's mode."""
    protocol = Protocol.model_validate_json(arguments.protocol)
    assert protocol.features is not None, "filled in by the configuration"
    extractor = load_extractor(protocol.features, default_device(), json.loads(arguments.weights))
    return extractor, protocol.mode
