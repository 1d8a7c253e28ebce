"""A `diffusers` pipeline for class-conditional teachers, which `diffusers`' DDIMPipeline cannot tell the class."""

from typing import Any

import torch
from diffusers import ImagePipelineOutput

from diffusion.guidance import Guidance, guided
from diffusion.noise_pipeline import NoisePipeline
from diffusion.pipelines import denoiser_of
from diffusion.solvers import ddim_sample


class ClassConditionalPipeline(NoisePipeline):
    """Draws pictures of given classes with DDIM: ``ClassConditionalPipeline.from_pretrained(folder)([3, 3, 7])``.

    Args:
        unet: a ``UNet2DModel`` with ``num_class_embeds``.
        scheduler: any that :func:`diffusion.pipelines.schedule_of` reads.
        num_classes: labels that are classes; one more label is no class, which guidance needs.
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int] | torch.Tensor,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            class_labels: one a picture, shape (N,).
            guidance_scale: see :class:`diffusion.guidance.Guidance`.
            num_inference_steps: DDIM steps, of one network evaluation each, or two under guidance.
            generator: source of the noise.
            noise: standard normal, shape (N, C, H, W).
            output_type: "pil", or "pt" (float, N×C×H×W, not clipped).

        Returns:
            ``ImagePipelineOutput`` with ``images``, or a tuple when ``return_dict`` is false.

        Raises:
            ValueError: an unknown ``output_type``, or guidance of a network without a label for no class.
        """
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type: found {output_type!r}, expected 'pil' or 'pt'")
        labels = torch.as_tensor(class_labels, device=self.device)
        denoiser = denoiser_of(self.unet, self.scheduler, self.config.num_classes, self.config.thresholding)
        x = ddim_sample(
            guided(denoiser, Guidance(guidance_scale)),
            self.draw_noise(len(labels), generator, noise).to(self.unet.dtype),
            num_inference_steps,
            {"class_labels": labels},
        )
        images: Any = x if output_type == "pt" else self.to_pil(x)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
