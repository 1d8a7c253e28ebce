"""U-Nets that attend to the tokens of a text, in pixel space: `diffusers`' ``UNet2DConditionModel``."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions
from diffusion.family import Family, of_its_kind
from diffusion.teachers.families import TeacherFamily
from diffusion.teachers.families.unet2d import channel_problems, size_problems, time_problems

# What a network may be told beside a text; none of it is given here.
_FURTHER = ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")
_EMBEDDED = 256  # numbers that embed a guidance scale, as many as of latent consistency models


def embedded_scale(network: Any, condition: Condition) -> torch.Tensor | None:
    """What a ``UNet2DConditionModel`` with ``time_cond_proj_dim`` is told of w: as `diffusers`' pipelines embed w − 1;
    None for others."""
    size = network.config.time_cond_proj_dim
    if size is None:
        return None
    from diffusers.models.embeddings import get_timestep_embedding

    assert condition is not None
    embedded = get_timestep_embedding(1000 * (condition["guidance"].float() - 1), size, downscale_freq_shift=1)
    return embedded.to(next(network.parameters()).dtype)


class TakesScale(Family):
    """Families of a ``UNet2DConditionModel`` whose call hands on :func:`embedded_scale`."""

    def takes_scale(self, config: Mapping[str, Any]) -> bool:
        return True

    def embedding_guidance(self, network: nn.Module) -> nn.Module:
        """`diffusers`' ``time_cond_proj_dim``, whose weights start at zero (theirs are random)."""
        given: Any = network
        if given.config.time_cond_proj_dim:
            return copy.deepcopy(network)
        told = type(given).from_config(given.config, time_cond_proj_dim=_EMBEDDED)
        told.load_state_dict(told.state_dict() | given.state_dict())
        nn.init.zeros_(told.time_embedding.cond_proj.weight)
        told = told.to(next(given.parameters())).train(given.training)
        return cast(nn.Module, told)


class UNet2DCondition(TakesScale, TeacherFamily):
    networks = ("UNet2DConditionModel",)

    def network_class(self, name: str) -> Any:
        import diffusers  # 3 seconds: not at import

        return diffusers.UNet2DConditionModel

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        embedded = embedded_scale(network, condition)
        x, given = of_its_kind(network, x, condition)
        output: torch.Tensor = network(
            x,
            told,
            encoder_hidden_states=given["text"],
            encoder_attention_mask=given["text_mask"],
            timestep_cond=embedded,
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
