"""The real pictures as one way from pictures to features sees them."""

from functools import partial
from pathlib import Path

import numpy as np

from diffusion.data.store import PARTS, load_split, resolution_of
from diffusion.runtime.device import default_device
from diffusion.runtime.files import sha256_file, write_json
from diffusion.runtime.processes import join
from evaluation.measure.reference import load_features, write_features, write_moments
from suite.jobs.extraction import UnderProtocol
from suite.jobs.inputs import checked_data


class Extract(UnderProtocol):
    """Features and moments of the real pictures, both parts; read by :func:`evaluation.measure.reference.load_real`.

    ``<part>.npy`` is float32 (N, D), to be memory-mapped; ``<part>.npz`` is a reference that other experiments take;
    ``classifier.npz`` has ``weight`` and ``bias`` of the extractor's own classifier, where it has one, so that whoever
    measures need not load the network.
    """

    data: Path

    def run(self) -> None:
        extractor, mode = self.extractor()
        description = extractor.describe(mode)
        parts = {}
        inputs, processes = checked_data(self.data, *PARTS), join(default_device())
        with self.result_folder(processes) as folder:
            for part in PARTS:
                split, file = load_split(self.data, part), folder / f"{part}.npy"
                write_features(
                    file,
                    split.images,
                    extractor.dimensions,
                    partial(self.features, extractor),
                    processes,
                )
                if processes.is_main:
                    size = self.protocol.resolution or resolution_of(split.images.shape)
                    about = {"resolution": size, "sha256": split.sha256}
                    write_moments(folder / f"{part}.npz", load_features(file), about | {"extractor": description})
                    own = {"count": len(split.images), "features_sha256": sha256_file(file)}
                    parts[part] = about | own
            if not processes.is_main:
                return
            if (classifier := extractor.classifier()) is not None:
                np.savez(folder / "classifier.npz", weight=classifier[0], bias=classifier[1])
            facts = {"extractor": description, "parts": parts}
            write_json(folder / "facts.json", facts)
            self.write_record(folder, inputs, **facts)
