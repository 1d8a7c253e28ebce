"""DeepFloyd IF, the second stage: it enlarges an image of the first (Saharia et al. 2022, arXiv 2205.11487)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.teachers.families.deepfloyd_if import DeepFloydIF


class DeepFloydIF2(DeepFloydIF):
    pipelines = ("IFSuperResolutionPipeline",)
    enlarges = True

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        """As the base class; the image that is enlarged lies beside the state, on the channels."""
        assert condition is not None
        fed = torch.cat([x, condition["low_resolution"].to(x.dtype)], dim=1)
        return super().call(network, fed, told, condition)[:, : x.shape[1]]

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {**super().arguments(network, told, condition), "class_labels": condition["noise_level"]}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {**super().told_shapes(config), "low_resolution": self.shape(config), "noise_level": ()}

    def channels(self, config: Any) -> int:
        return super().channels(config) // 2


FAMILY = DeepFloydIF2()
