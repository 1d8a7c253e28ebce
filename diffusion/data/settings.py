"""What the settings of data sets have in common."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import pydantic

from diffusion.runtime.errors import UserError, some_of
from diffusion.runtime.settings import GrownSettings

Crop = Literal["adm", "box", "lanczos"]


class DataSettings(GrownSettings):
    """What the settings of every kind of data set have.

    Attributes:
        flip: whether training draws each image mirrored left to right with probability 1/2. The stored data set is the
            same with and without: references, neighbours and the classifier that judges labels see no flip.
        attributes: names of what can be seen in an image of a class; see :class:`diffusion.data.store.Splits`.
    """

    flip: bool = False

    later: ClassVar[tuple[str, ...]] = ("flip",)
    attributes: ClassVar[tuple[str, ...]] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images: ``resolution`` pixels a side, unless a kind says otherwise."""
        kind: Any = self
        return kind.channels, kind.resolution, kind.resolution


class CountedSettings(DataSettings):
    """How many pictures there must be."""

    # In all parts together; null takes what is there. Seen before a picture is read.
    num_pictures: int | None = pydantic.Field(default=None, ge=1)

    later: ClassVar[tuple[str, ...]] = ("num_pictures", "num_classes", "classes")

    def refuse_other_number(self, where: str, parts: Mapping[str, int]) -> None:
        """Raises UserError where the pictures of all parts are not as many as there must be."""
        found = sum(parts.values())
        if self.num_pictures is not None and found != self.num_pictures:
            each = ", ".join(f"{part} {count:,}" for part, count in parts.items())
            raise UserError(
                f"{where}: found {found:,} pictures ({each}), expected {self.num_pictures:,} (data.num_pictures). "
                f"Unpack or fetch it again; or set data.num_pictures to null to take what is there."
            )


class PictureSettings(CountedSettings):
    """What becomes of pictures that come encoded, and what is held out of them."""

    # Side of the square pictures that come out, in pixels.
    resolution: int = pydantic.Field(ge=2, le=4096)
    # 3 for RGB, 1 for grey.
    channels: Literal[1, 3] = 3
    # How a picture gets its size; see diffusion/data/decode.py.
    crop: Crop = "adm"
    # Share of the pictures for the test part; used where the source itself has no split.
    test_fraction: float = pydantic.Field(default=0.2, gt=0, le=0.5)
    split_seed: int = pydantic.Field(default=0, ge=0)
    # Classes there must be, each of them in both parts where the source itself has a split; null takes what is there.
    num_classes: int | None = pydantic.Field(default=None, ge=1)

    def refuse_other_classes(self, where: str, names: Collection[str]) -> None:
        """Raises UserError where the classes are not as many as there must be."""
        if self.num_classes is not None and len(names) != self.num_classes:
            raise UserError(
                f"{where}: found {len(names):,} classes ({some_of(names)}), expected {self.num_classes:,} "
                f"(data.num_classes). Unpack or fetch it again; or set data.num_classes to null to take what is there."
            )
