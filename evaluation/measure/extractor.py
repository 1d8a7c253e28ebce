"""What turns images into features: batches, resizing as the protocol says, checks; the networks are its subclasses'."""

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cleanfid.fid
import numpy as np
import torch
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import get_featuresdict_from_dataset

from diffusion.runtime.errors import NonFiniteError, UserError
from diffusion.runtime.memory import within_memory
from diffusion.runtime.packages import version_of
from diffusion.runtime.precision import float32_products
from evaluation.measure.protocols import CleanMode


class Extractor(ABC):
    """A named extractor on a device. Make one with :func:`load_extractor`."""

    name: str
    dimensions: int

    def __init__(self, name: str, network: FeatureExtractorBase, layer: str, device: torch.device) -> None:
        self.name = name
        self.dimensions = int(layer)
        self._network = network
        self._layer = layer
        self._device = device
        self._cleanfid_models: dict[CleanMode, Callable[[torch.Tensor], torch.Tensor]] = {}

    def extract_in(self, mode: CleanMode | None, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Features through torch-fidelity (``mode`` None) or clean-fid in a mode, as by the two functions below.

        Raises:
            DeviceMemoryError: a batch does not fit the device's memory.
        """

        def extract(size: int) -> np.ndarray:
            return self.extract(images, size) if mode is None else self.extract_cleanfid(images, size, mode)

        # clean-fid's are 299×299 floats: no more than a few at a time.
        size = min(batch_size, len(images), *([] if mode is None else [32]))
        return within_memory("evaluation.batch_size", extract, size, self._device)

    def extract(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Features through torch-fidelity's own extraction loop, float32 (N, dimensions).

        Args:
            images: uint8, shape (N, H, W, C) with C = 1 (repeated to three channels) or 3.
            batch_size: on a CPU small batches are the fastest, they stay in its caches.

        Raises:
            UserError: the pictures are not uint8, or have another shape.
            NonFiniteError: a feature is NaN or infinite.
        """
        dataset = _Pictures(_check_images(images))
        # A DataLoader draws a seed even when it has no workers: that must not move the caller's random state.
        with torch.random.fork_rng(devices=[]), reproducible_arithmetic(self._device):
            features = get_featuresdict_from_dataset(
                dataset,
                self._network,
                batch_size,
                cuda=self._device.type == "cuda",
                save_cpu_ram=True,  # no worker processes: the pictures are in memory already
                verbose=False,
            )
        return _check_features(features[self._layer].float().numpy(), self.name)

    def extract_cleanfid(self, images: np.ndarray, batch_size: int = 32, mode: CleanMode = "clean") -> np.ndarray:
        """As :meth:`extract`, through clean-fid's own loop, which resizes every picture before the network sees it.

        The same pictures as PNG files in a folder give the same features (Parmar et al. 2022, arXiv 2104.11222).

        Args:
            mode: see :data:`evaluation.measure.protocols.RESIZES`.

        Raises:
            UserError: also where clean-fid's own weights (``inception``) are missing and cannot be downloaded.
        """
        dataset = _Pictures(_check_images(images))
        if mode not in self._cleanfid_models:
            self._cleanfid_models[mode] = self._cleanfid_model(mode)
        model = self._cleanfid_models[mode]
        batch_size = min(batch_size, len(dataset))
        # get_model_features draws latents that nobody needs: they must not move the caller's random state.
        # Its resizers turn all of Python's warnings off: for as long as they run and no longer.
        with (
            torch.random.fork_rng(devices=[]),
            reproducible_arithmetic(self._device),
            warnings.catch_warnings(),
            ThreadPoolExecutor(torch.get_num_threads()) as pool,
        ):
            batches = _BatchesOfCleanFid(dataset, batch_size, mode, pool)
            features = cleanfid.fid.get_model_features(
                batches,
                model,
                mode=mode,
                z_dim=1,
                num_gen=len(dataset),
                batch_size=batch_size,
                device=self._device,
                verbose=False,
                custom_fn_resize=batches.resized,
            )
        return _check_features(np.asarray(features, dtype=np.float32), self.name)

    @abstractmethod
    def classifier(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Weight (K, dimensions) and bias (K,) of the network's own classifier; features @ weight.T + bias = logits.

        None where the network has none."""

    @abstractmethod
    def _cleanfid_model(self, mode: CleanMode) -> Callable[[torch.Tensor], torch.Tensor]:
        """What clean-fid calls: float (N, 3, H, W) in 0..255 to features (N, dimensions); H = W = 299 but for
        "legacy_tensorflow", where the pictures come in their own size."""

    @abstractmethod
    def describe(self, mode: CleanMode | None = None) -> dict[str, Any]:
        """The extractor in words and hashes, for provenance: as torch-fidelity uses it, or clean-fid in a mode."""

    def _common_description(self, mode: CleanMode | None) -> dict[str, Any]:
        library = "torch-fidelity" if mode is None else "clean-fid"
        return {
            "name": self.name,
            "library": library,
            "library_version": version_of(library),
            "mode": mode,
            "layer": self._layer,
            "dimensions": self.dimensions,
            "greyscale": "repeated to three channels",
            "arithmetic": "float32, TF32 off",
        }


class _Pictures(Dataset):
    """uint8 (N, H, W, C) as torch-fidelity wants it: RGB uint8 tensors (3, H, W), one by one."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """A batch at once, which torch's loader asks for where it can: one call a picture costs as much as a pass of a
        small network."""
        batch = torch.from_numpy(self._images[indices]).permute(0, 3, 1, 2)
        return list(batch.expand(-1, 3, -1, -1).contiguous().unbind(0))


class _BatchesOfCleanFid:
    """A "generator" for clean-fid that ignores its latents and hands out the stored pictures in order.

    clean-fid always asks for whole batches and cuts the surplus off itself: the last batch is filled with
    repetitions of the last picture.

    clean-fid's own resizer runs in threads, a batch ahead of the network, which would otherwise wait for it: beside a
    small network, or one on a GPU, resizing is most of the time.
    """

    def __init__(self, dataset: _Pictures, batch_size: int, mode: CleanMode, pool: ThreadPoolExecutor) -> None:
        self._dataset, self._batch_size, self._pool = dataset, batch_size, pool
        # Of "legacy_tensorflow" the network resizes.
        self._resize = None if mode == "legacy_tensorflow" else cleanfid.fid.build_resizer(mode)
        self._resizing: deque[Future[np.ndarray]] = deque()
        self._batches = self._one_ahead()

    def __call__(self, _latents: torch.Tensor) -> torch.Tensor:
        return next(self._batches)

    def resized(self, _picture: np.ndarray) -> np.ndarray:
        """The next picture, resized; clean-fid asks once for each that it was handed, in order."""
        return self._resizing.popleft().result()

    def _one_ahead(self) -> Iterator[torch.Tensor]:
        waiting: torch.Tensor | None = None
        for start in range(0, len(self._dataset), self._batch_size):
            indices = [min(index, len(self._dataset) - 1) for index in range(start, start + self._batch_size)]
            batch = torch.stack(self._dataset.__getitems__(indices)).float()
            if self._resize is not None:
                pictures = batch.permute(0, 2, 3, 1).numpy()
                self._resizing.extend(self._pool.submit(self._resize, picture) for picture in pictures)
            if waiting is not None:
                yield waiting
            waiting = batch
        if waiting is not None:
            yield waiting


def _check_images(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"feature extraction: found pictures of type {images.dtype} and shape {images.shape}; "
            f"expected uint8 of shape (N, H, W, C) with C = 1 or 3. Quantise with diffusion.data.samples.to_uint8."
        )
    return images


def _check_features(features: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(features).all():
        raise NonFiniteError(f"feature extraction: '{name}' gave NaN or infinity; check the device and the weights.")
    return features


@contextmanager
def reproducible_arithmetic(device: torch.device) -> Iterator[None]:
    """Full float32 on CUDA, so that a figure depends neither on a card's TF32 nor on what the process did before."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with flags, float32_products(device, tf32=False):
        yield
