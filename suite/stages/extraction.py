"""Features of sets of samples."""

import argparse
import json
from pathlib import Path

from diffusion.device import default_device
from diffusion.files import sha256_file
from diffusion.images import load_samples
from diffusion.processes import join
from evaluation.reference import write_features
from suite.provenance import write_provenance
from suite.stages.common import result_folder
from suite.stages.references import extractor_under


def extract_features(arguments: argparse.Namespace) -> None:
    """Features of sets of samples under a protocol: ``<name>.npy``, float32 (N, D), to be memory-mapped."""
    extractor, mode = extractor_under(arguments)
    files = {name: Path(path) for name, path in json.loads(arguments.sets).items()}
    processes = join(default_device())
    with result_folder(arguments.output, processes) as folder:
        for name, path in files.items():
            write_features(
                folder / f"{name}.npy",
                load_samples(path),
                extractor.dimensions,
                lambda images: extractor.extract_in(mode, images, arguments.batch_size),
                processes,
            )
        if not processes.is_main:
            return
        made = {name: sha256_file(folder / f"{name}.npy") for name in files}
        write_provenance(folder / "provenance.json", files, extractor=extractor.describe(mode), features_sha256=made)
