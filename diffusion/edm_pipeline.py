"""A `diffusers` pipeline for EDM denoisers (Karras et al. 2022): ``EdmPipeline.from_pretrained(folder)().images``."""

from typing import Any

import torch
from diffusers import ImagePipelineOutput

from diffusion.noise_pipeline import NoisePipeline


class EdmPipeline(NoisePipeline):
    """Draws pictures with the folder's own scheduler, ``EDMEulerScheduler``, one network evaluation a step.

    Args:
        unet: a ``UNet2DModel``.
        scheduler: an ``EDMEulerScheduler``.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 18,
        noise: torch.Tensor | None = None,
        ramp: list[float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            batch_size: number of pictures; ignored when ``noise`` is given.
            generator: source of the noise.
            num_inference_steps: Euler steps on the scheduler's own grid.
            noise: standard normal, shape (N, C, H, W).
            ramp: where to evaluate instead of the scheduler's own grid, growing from 0 (σ_max) to at most 1 (σ_min).
            output_type: "pil", or "pt" (float, N×C×H×W, not clipped).

        Returns:
            ``ImagePipelineOutput`` with ``images``, or a tuple when ``return_dict`` is false.

        Raises:
            ValueError: an unknown ``output_type``.
        """
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type: found {output_type!r}, expected 'pil' or 'pt'")
        if ramp is None:
            self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        else:
            self.scheduler.set_timesteps(sigmas=torch.tensor(ramp, dtype=torch.float64), device=self.device)
        x = self.draw_noise(batch_size, generator, noise) * self.scheduler.sigmas[0]
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(output, t, x).prev_sample
        images: Any = x if output_type == "pt" else self.to_pil(x)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
