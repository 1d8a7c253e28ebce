"""A ``UNet2DModel`` that is told another multiple of the time than its scheduler says."""

import inspect
from typing import Any

import torch

# The second for `diffusers`, which takes a class of another module for a network where that module has its base.
from diffusers import ModelMixin, UNet2DModel  # noqa: F401


class TimeScaledUNet(UNet2DModel):
    """``UNet2DModel`` of ``timestep_scale`` times the timestep.

    The EDM networks of openai/consistency_models embed 1000 · ¼ log σ where EDM's own, and `diffusers`'
    ``EDMEulerScheduler``, have ¼ log σ.

    Args:
        timestep_scale: the factor.
        unet: the arguments of ``UNet2DModel``.
    """

    def __init__(self, timestep_scale: float = 1.0, **unet: Any) -> None:
        super().__init__(**unet)
        self.register_to_config(timestep_scale=timestep_scale)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As ``UNet2DModel.forward``."""
        # As a tensor: `diffusers` truncates Python's floats.
        scaled = self.config.timestep_scale * torch.as_tensor(timestep, device=sample.device)
        return super().forward(sample, scaled, class_labels, return_dict)


def _signature() -> inspect.Signature:
    """The arguments by name, by which `diffusers` reads a configuration: its own and one more."""
    own = inspect.signature(TimeScaledUNet.__init__).parameters["timestep_scale"]
    theirs = inspect.signature(UNet2DModel.__init__).parameters.values()
    return inspect.Signature([*theirs, own.replace(kind=inspect.Parameter.KEYWORD_ONLY)])


setattr(TimeScaledUNet.__init__, "__signature__", _signature())  # noqa: B010
