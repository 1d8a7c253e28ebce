"""The handwritten digits that scikit-learn ships: 1,797 grey pictures of 8×8 pixels in ten classes."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.settings import DataSettings
from diffusion.data.store import Splits, split_by_class


class DigitSplit(DataSettings):
    """Which of the digits are for testing."""

    kind: str
    # Pictures in the test part; 1,437 remain for training. Each of the ten classes keeps one.
    test_size: int = pydantic.Field(default=360, ge=10, le=1787)
    split_seed: int = pydantic.Field(default=0, ge=0)


class Settings(DigitSplit):
    """The split; the pictures leave nothing to choose."""

    resolution: ClassVar[int] = 8
    num_pictures: ClassVar[int] = 1797
    channels: ClassVar[int] = 1

    kind: Literal["digits"]


def prepare(settings: DigitSplit) -> Splits:
    """Reads the digits from the installed package and splits them by class.

    Pixel counts 0…16 become round(255·x/16). Shapes (1797 - test_size, 8, 8, 1) and (test_size, 8, 8, 1).
    """
    import sklearn
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    return split_by_class(
        images,
        labels,
        settings.test_size,
        settings.split_seed,
        tuple(str(name) for name in digits.target_names),
        f"Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), as shipped in "
        f"scikit-learn {sklearn.__version__}",
    )


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests; nothing has to be made in ``folder``."""
    return {"kind": "digits"}
