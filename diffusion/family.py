"""How the networks of a family of teachers are called: what differs between them and no formula needs to know."""

from typing import Any, ClassVar

import torch
from torch import nn

from diffusion.conditions import Condition


def of_its_kind(
    network: nn.Module, x: torch.Tensor, condition: Condition
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """State and condition in the network's own type of numbers, which frozen ones may have shorter; but for a guidance
    scale, whose embedding wants it exactly."""
    kind = next((weight.dtype for weight in network.parameters()), x.dtype)
    given = condition or {}
    cast = {key for key, value in given.items() if value.is_floating_point() and key != "guidance"}
    return x.to(kind), {key: value.to(kind) if key in cast else value for key, value in given.items()}


class Family:
    """Networks that are called, and configured, as `diffusers`' ``UNet2DModel`` is; other families derive from it.

    A subclass is a file of ``diffusion/teachers/families``.

    Attributes:
        pipelines: the stock pipelines of `diffusers` whose networks these are; empty of a family whose networks are
            known by their class, whatever the pipeline.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output F in float32, shape of ``x``.

        Goes through the module's ``__call__``, so that hooks count it.

        Args:
            x: what the network is fed, shape (N, C, H, W).
            told: what it is told for the time, float32, shape (N,).
        """
        x, given = of_its_kind(network, x, condition)
        output: torch.Tensor = network(x, told, return_dict=False, **given)[0]
        return output.float()

    def takes_scale(self, config: Any) -> bool:
        """Whether a student of a network of this configuration can be told w."""
        return False

    def embeds_scale(self, config: Any) -> bool:
        """Whether a network of this configuration is told w already, in place of being guided."""
        return False

    def embedding_guidance(self, network: nn.Module) -> nn.Module:
        """A copy of ``network`` that is told w too, ``guidance`` of its condition, and does not heed it yet.

        Raises:
            ValueError: networks of this family have no input for it.
        """
        raise ValueError(
            f"guidance_scale: found a range, expected a number: {type(network).__name__} has no input for a scale"
        )

    def shape(self, config: Any) -> tuple[int, int, int]:
        """(C, H, W) of the states that a network of this configuration is fed."""
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.channels(config), height, width

    def channels(self, config: Any) -> int:
        """C of these states."""
        found: int = config.get("out_channels", 3)  # `diffusers`' default
        return found


UNET = Family()
