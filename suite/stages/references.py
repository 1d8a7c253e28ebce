"""The real pictures as one way from pictures to features sees them."""

import argparse

import numpy as np

from diffusion.data import load_split
from diffusion.data.store import PARTS
from diffusion.device import default_device
from diffusion.files import write_json
from evaluation.features import Extractor, load_extractor
from evaluation.protocols import Protocol
from evaluation.reference import write_features, write_reference
from suite.provenance import write_provenance
from suite.stages.common import result_folder


def extract_reference(arguments: argparse.Namespace) -> None:
    """Features and moments of the real pictures, both parts.

    ``<part>.npy`` is float32 (N, D), to be memory-mapped; ``<part>.npz`` is a reference that other experiments take.
    """
    protocol = Protocol.model_validate_json(arguments.protocol)
    extractor = extractor_under(protocol, arguments)
    description = extractor.describe(protocol.mode)
    parts = {}
    with result_folder(arguments.output) as folder:
        for part in PARTS:
            split = load_split(arguments.data, part)
            write_features(
                folder / f"{part}.npy",
                split.images,
                extractor.dimensions,
                lambda images: extractor.extract_in(protocol.mode, images, arguments.batch_size),
            )
            about = {"resolution": split.images.shape[1], "sha256": split.sha256}
            features = np.load(folder / f"{part}.npy", mmap_mode="r")
            write_reference(folder / f"{part}.npz", features, about | {"extractor": description})
            parts[part] = about | {"count": len(split.images)}
        write_json(folder / "facts.json", {"extractor": description, "parts": parts})
        write_provenance(
            folder / "provenance.json", {"data": arguments.data / "manifest.json"}, extractor=description, parts=parts
        )


def extractor_under(protocol: Protocol, arguments: argparse.Namespace) -> Extractor:
    """The extractor of a protocol, with the weights files that the command was given."""
    assert protocol.features is not None, "filled in by the configuration"
    inception = protocol.features == "inception"
    return load_extractor(
        protocol.features,
        default_device(),
        arguments.inception_weights if inception else None,
        arguments.cleanfid_inception_weights if inception else None,
    )
