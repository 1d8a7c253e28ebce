"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752): a U-Net that attends to CLIP's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion.teachers.families.unet2d_condition import TakesScale, embedded_scale
from diffusion.teachers.stock import TextFamily


class StableDiffusion(TakesScale, TextFamily):
    pipelines = ("StableDiffusionPipeline",)
    networks = ("UNet2DConditionModel",)

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, _ = pipeline.encode_prompt(texts, pipeline.device, 1, False)
        return {"text": text}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"text": (77, config["cross_attention_dim"])}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        # Padding is attended to, as in its training: no mask.
        scale = embedded_scale(network, condition)
        return {"timestep": told, "encoder_hidden_states": condition["text"], "timestep_cond": scale}


FAMILY = StableDiffusion()
