"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): flow matching, tokens of two CLIPs and of T5."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion.teachers.stock import TextFamily


class StableDiffusion3(TextFamily):
    pipelines = ("StableDiffusion3Pipeline",)
    networks = ("SD3Transformer2DModel",)
    scales_noise = False

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, _, pooled, _ = pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"text": (77 + 256, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {
            "timestep": told,
            "encoder_hidden_states": condition["text"],
            "pooled_projections": condition["pooled"],
        }


FAMILY = StableDiffusion3()
