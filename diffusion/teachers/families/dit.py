"""DiT (Peebles & Xie 2022, arXiv 2212.09748): class-conditional transformers on latents."""

from collections.abc import Mapping
from typing import Any

import torch

from diffusion.conditions import ClassLabels, Conditions
from diffusion.teachers.stock import StockFamily


class DiT(StockFamily):
    pipelines = ("DiTPipeline",)
    networks = ("DiTTransformer2DModel",)

    def conditions(self, config: Mapping[str, Any], num_classes: int | None = None) -> Conditions:
        classes = config["num_embeds_ada_norm"]
        if num_classes not in (None, classes):
            raise ValueError(f"the network has {classes} classes and one label for no class, but {num_classes} is said")
        return ClassLabels(classes, has_null=True)

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {"timestep": told, "class_labels": condition["class_labels"]}


FAMILY = DiT()
