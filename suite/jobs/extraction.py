"""Features of images: of sets of samples, and of the real ones as one way from images to features sees them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from diffusion.data.decode import resized
from diffusion.data.samples import load_samples
from diffusion.runtime.device import default_device
from diffusion.runtime.processes import join
from evaluation.measure.extractor import Extractor
from evaluation.measure.features import load_extractor
from evaluation.measure.protocols import CleanMode, Protocol, WeightsName
from evaluation.measure.reference import write_features
from suite.job import BatchSize, Job, Key
from suite.provenance import checked


class UnderProtocol(Job):
    """A job that sees images as a protocol has it.

    Attributes:
        protocol: with its extractor filled in.
        weights: where extractors' weights lie, by their name.
    """

    protocol: Annotated[Protocol, Key("evaluation.protocols")]
    batch_size: BatchSize = 256
    weights: Annotated[dict[WeightsName, str], Key("evaluation.weights")] = Field(default_factory=dict)

    def extractor(self) -> tuple[Extractor, CleanMode | None]:
        """The protocol's extractor, and clean-fid's mode."""
        assert self.protocol.features is not None, "filled in by the configuration"
        extractor = load_extractor(self.protocol.features, default_device(), self.weights)
        return extractor, self.protocol.mode

    def features(self, extractor: Extractor, images: np.ndarray) -> np.ndarray:
        """Features of images, uint8 (N, H, W, C), in the size that the protocol gives them; float32 (N, D)."""
        if (size := self.protocol.resolution) is not None:
            greyscale = images.shape[-1] == 1
            pictures = (Image.fromarray(image[..., 0] if greyscale else image) for image in images)
            images = np.stack([np.asarray(resized(picture, size, "lanczos")) for picture in pictures])
            images = images[..., None] if greyscale else images
        return extractor.extract_in(self.protocol.mode, images, self.batch_size)


class Extract(UnderProtocol):
    """Features of sets of samples: ``<name>.npy``, float32 (N, D), to be memory-mapped; ``sets`` is name to samples."""

    sets: dict[str, Path]

    def run(self) -> None:
        extractor, mode = self.extractor()
        inputs, processes = checked(self.sets), join(default_device())
        with self.result_folder(processes) as folder:
            for name, path in self.sets.items():
                write_features(
                    folder / f"{name}.npy",
                    load_samples(path),
                    extractor.dimensions,
                    partial(self.features, extractor),
                    processes,
                )
            if processes.is_main:
                self.write_record(folder, inputs, extractor=extractor.describe(mode))
