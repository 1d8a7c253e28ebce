"""Bounding the estimate of the clean picture, which pixels need and latents do not."""

from typing import Literal

import torch
from pydantic import Field, model_validator

from diffusion.runtime.settings import Settings


class Thresholding(Settings):
    """How x̂ is bounded.

    Attributes:
        kind: "static" clips to [−1, 1]; "dynamic" (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3) clips each picture
            to its own [−q, q] and divides by q, where q ≥ 1 is the ``ratio`` quantile of |x̂|; "none" leaves x̂ alone.
        ratio: the quantile of "dynamic".
        maximum: the largest q of "dynamic"; null sets none.
    """

    kind: Literal["none", "static", "dynamic"] = "static"
    ratio: float = Field(0.995, gt=0, lt=1)
    maximum: float | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _only_dynamic_has_numbers(self) -> "Thresholding":
        if self.kind != "dynamic" and (self.ratio, self.maximum) != (0.995, None):
            raise ValueError(f"ratio, maximum: given, but kind is {self.kind!r}; expected 'dynamic'")
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The bounded pictures, shape (N, C, H, W) as given."""
        if self.kind == "none":
            return x
        if self.kind == "static":
            return x.clamp(-1, 1)
        bound = torch.quantile(x.abs().flatten(1), self.ratio, dim=1).clamp(1, self.maximum).reshape(-1, 1, 1, 1)
        return x.clamp(-bound, bound) / bound


NO_THRESHOLD = Thresholding(kind="none")
STATIC = Thresholding(kind="static")
