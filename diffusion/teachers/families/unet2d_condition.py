"""U-Nets that attend to the tokens of a text, in pixel space: `diffusers`' ``UNet2DConditionModel``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions
from diffusion.teachers.families import TeacherFamily
from diffusion.teachers.families.unet2d import channel_problems, size_problems, time_problems

# What a network may be told beside a text; none of it is given here.
_FURTHER = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


class UNet2DCondition(TeacherFamily):
    networks = ("UNet2DConditionModel",)

    def network_class(self, name: str) -> Any:
        import diffusers  # 3 seconds: not at import

        return diffusers.UNet2DConditionModel

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        assert condition is not None
        output: torch.Tensor = network(
            x,
            told,
            encoder_hidden_states=condition["text"].to(x.dtype),
            encoder_attention_mask=condition["text_mask"],
            return_dict=False,
        )[0]
        return output.float()

    def conditions(self, config: Mapping[str, Any], num_classes: int | None = None) -> Conditions:
        raise ValueError("the network is told texts, and the folder holds none")

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        further = [
            f"found {key} {config[key]!r}, expected none: the network is told a text and a time."
            for key in _FURTHER
            if config.get(key) is not None
        ]
        return [*channel_problems(config, default=4), *size_problems(config), *time_problems(config), *further]


FAMILY = UNet2DCondition()
