"""PixArt-α and -Σ (Chen et al. 2023, arXiv 2310.00426; 2024, arXiv 2403.04692): transformers, and tokens of T5."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion.teachers.stock import TextFamily

_TOLD_THEIR_SIZE = (1024, 1024)  # images of the networks that are


class PixArt(TextFamily):
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    networks = ("PixArtTransformer2DModel",)

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, mask, _, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        given = {"text": text, "text_mask": mask.bool()}
        if tuple(size) == _TOLD_THEIR_SIZE:
            given["resolution"] = text.new_tensor(_TOLD_THEIR_SIZE).expand(len(texts), 2)
            given["aspect_ratio"] = text.new_ones(len(texts), 1)
        return given

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"text": (300, config["caption_channels"]), "text_mask": (300,)}
        told_its_size = config["sample_size"] == 128
        return shapes | ({"resolution": (2,), "aspect_ratio": (1,)} if told_its_size else {})

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {
            "timestep": told,
            "encoder_hidden_states": condition["text"],
            "encoder_attention_mask": condition["text_mask"],
            "added_cond_kwargs": {key: condition.get(key) for key in ("resolution", "aspect_ratio")},
        }


FAMILY = PixArt()
