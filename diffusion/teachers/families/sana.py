"""Sana (Xie et al. 2024, arXiv 2410.10629): linear attention on strongly compressed latents, Gemma's tokens."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion.teachers.stock import TextFamily


class Sana(TextFamily):
    pipelines = ("SanaPipeline",)
    networks = ("SanaTransformer2DModel",)

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Behind the long instruction that is the pipeline's default."""
        default = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return self._encoded(pipeline, texts, default)

    def negative(self, pipeline: Any, text: str, size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Without the instruction, as the pipeline has it."""
        return self._encoded(pipeline, [text], None)

    @staticmethod
    def _encoded(pipeline: Any, texts: list[str], instruction: list[str] | None) -> dict[str, torch.Tensor]:
        text, mask, _, _ = pipeline.encode_prompt(
            texts, do_classifier_free_guidance=False, complex_human_instruction=instruction
        )
        return {"text": text, "text_mask": mask.bool()}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"text": (300, config["caption_channels"]), "text_mask": (300,)}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {
            "timestep": told * network.config.timestep_scale,
            "encoder_hidden_states": condition["text"],
            "encoder_attention_mask": condition["text_mask"],
        }


FAMILY = Sana()
