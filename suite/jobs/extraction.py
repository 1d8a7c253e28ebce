"""Features of sets of samples."""

import argparse
import json
from pathlib import Path

from diffusion.data.samples import load_samples
from diffusion.runtime.device import default_device
from diffusion.runtime.processes import join
from evaluation.measure.reference import write_features
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, checked, write_provenance
from suite.stages.references import extractor_under


def extract_features(arguments: argparse.Namespace) -> None:
    """Features of sets of samples under a protocol: ``<name>.npy``, float32 (N, D), to be memory-mapped."""
    extractor, mode = extractor_under(arguments)
    files = {name: Path(path) for name, path in json.loads(arguments.sets).items()}
    inputs, processes = checked(files), join(default_device())
    with result_folder(arguments, processes) as folder:
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
        write_provenance(folder / RECORD, inputs, asked(arguments), extractor=extractor.describe(mode))
