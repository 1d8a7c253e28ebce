"""FLUX.1 (Black Forest Labs 2024): flow matching on packed latents; guidance is an input of the distilled "dev"."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.runtime.errors import UserError
from diffusion.teachers.stock import TextFamily


class Flux(TextFamily):
    pipelines = ("FluxPipeline",)
    networks = ("FluxTransformer2DModel",)
    scales_noise = False

    def embeds_scale(self, config: Any) -> bool:
        return bool(config.get("guidance_embeds"))

    def takes_scale(self, config: Any) -> bool:
        return self.embeds_scale(config)

    def embedding_guidance(self, network: nn.Module) -> nn.Module:
        given: Any = network
        return copy.deepcopy(network) if self.embeds_scale(given.config) else super().embedding_guidance(network)

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, pooled, _ = pipeline.encode_prompt(texts, None)
        return {"text": text, "pooled": pooled}

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        """As the base class; 2×2 latents are one token, and each token is told its place."""
        height, width = x.shape[2] // 2, x.shape[3] // 2
        places = torch.zeros(height, width, 3, device=x.device)
        places[..., 1] += torch.arange(height, device=x.device)[:, None]
        places[..., 2] += torch.arange(width, device=x.device)
        given = {**(condition or {}), "places": places.reshape(-1, 3)}
        packed = super().call(network, packed_latents(x), told, given)
        return unpacked_latents(packed, height, width)

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"text": (512, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        text = condition["text"]
        return {
            "timestep": told / 1000,  # which the network multiplies by
            "encoder_hidden_states": text,
            "pooled_projections": condition["pooled"],
            "img_ids": condition["places"],
            "txt_ids": text.new_zeros(text.shape[1], 3),
            "guidance": condition.get("guidance"),
        }

    def shape(self, config: Any) -> tuple[int, int, int]:
        if config.get("sample_size") is None:
            raise UserError(
                "transformer/config.json: found no sample_size, expected the side of the latents, or their height and "
                "width: the network takes any, and the schedule depends on it. Write it into the file, 128 for 1,024 "
                "pixels."
            )
        return super().shape(config)

    def channels(self, config: Any) -> int:
        return super().channels(config) // 4  # 2×2 latents are one token


def packed_latents(x: torch.Tensor) -> torch.Tensor:
    """(N, C, 2H, 2W) to tokens, (N, H W, 4 C)."""
    count, channels, height, width = x.shape
    parts = x.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(count, height * width // 4, 4 * channels)


def unpacked_latents(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(N, H W, 4 C) to latents, (N, C, 2H, 2W)."""
    parts = tokens.reshape(len(tokens), height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(len(tokens), -1, 2 * height, 2 * width)


FAMILY = Flux()
