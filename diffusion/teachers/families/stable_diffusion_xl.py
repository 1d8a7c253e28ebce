"""SDXL (Podell et al. 2023, arXiv 2307.01952): tokens of two encoders, a pooled embedding, and sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion.teachers.families.unet2d_condition import TakesScale, embedded_scale
from diffusion.teachers.stock import TextFamily


class StableDiffusionXL(TakesScale, TextFamily):
    pipelines = ("StableDiffusionXLPipeline",)
    networks = ("UNet2DConditionModel",)

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        # Original size, corner of the crop, and size: whole images of the network's own size.
        sizes = text.new_tensor([*size, 0, 0, *size]).expand(len(texts), 6)
        return {"text": text, "pooled": pooled, "sizes": sizes}

    def negative(self, pipeline: Any, text: str, size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Zeros for the empty text, where the pipeline's configuration says so."""
        given = self.encoded(pipeline, [text], size)
        if text or not pipeline.config.force_zeros_for_empty_prompt:
            return given
        return {**given, "text": torch.zeros_like(given["text"]), "pooled": torch.zeros_like(given["pooled"])}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {"text": (77, config["cross_attention_dim"]), "pooled": (pooled,), "sizes": (6,)}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        added = {"text_embeds": condition["pooled"], "time_ids": condition["sizes"]}
        scale = embedded_scale(network, condition)
        text = condition["text"]
        return {"timestep": told, "encoder_hidden_states": text, "added_cond_kwargs": added, "timestep_cond": scale}


FAMILY = StableDiffusionXL()
