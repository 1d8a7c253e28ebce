"""What our own `diffusers` pipelines share: a network, a scheduler, noise in and pictures out."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

# For `from_pretrained`, which takes a folder's network from a module that is imported and imports none for it.
import diffusion.song_unet  # noqa: F401
import diffusion.time_scaled_unet  # noqa: F401
from diffusion.images import to_uint8
from diffusion.pipelines import picture_shape


class NoisePipeline(DiffusionPipeline):
    """A pipeline that makes pictures from standard normal noise.

    Args:
        unet: a ``UNet2DModel``, or a network that is called as one.
        scheduler: a `diffusers` scheduler; the subclass says which.
        num_classes, thresholding: of a class-conditional denoiser; stored in model_index.json.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self, unet: Any, scheduler: Any, num_classes: int | None = None, thresholding: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(num_classes=num_classes, thresholding=thresholding)

    def draw_noise(
        self, batch_size: int, generator: torch.Generator | list[torch.Generator] | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """``noise`` where it is given, else ``batch_size`` fresh ones; shape (N, C, H, W), on the pipeline's device."""
        if noise is None:
            shape = (batch_size, *picture_shape(self.unet.config))
            noise = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        return noise.to(self.device)

    def to_pil(self, images: torch.Tensor) -> Any:
        """Pictures in [−1, 1], shape (N, C, H, W), as PIL images, quantised as everywhere else."""
        return self.numpy_to_pil(to_uint8(images).astype(np.float32) / 255)

    def output(self, signal: torch.Tensor, output_type: str, return_dict: bool) -> Any:
        """What a call of a pipeline returns, from pictures of shape (N, C, H, W) that are not clipped.

        Args:
            output_type: "pil", "np" (float in [0, 1], N×H×W×C), or "pt" (float in [−1, 1], N×C×H×W, not clipped).
            return_dict: whether the pictures are wrapped in an ``ImagePipelineOutput``.

        Raises:
            ValueError: an unknown ``output_type``.
        """
        if output_type == "pt":
            images: Any = signal
        elif output_type == "np":
            images = (signal / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        elif output_type == "pil":
            images = self.to_pil(signal)
        else:
            raise ValueError(f"output_type: found {output_type!r}, expected 'pil', 'np' or 'pt'")
        return ImagePipelineOutput(images=images) if return_dict else (images,)
