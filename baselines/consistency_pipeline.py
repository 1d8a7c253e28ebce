"""A `diffusers` pipeline for consistency students: ``ConsistencyPipeline.from_pretrained(folder)().images``."""

from collections.abc import Mapping
from typing import Any

import torch

from baselines.consistency_distillation import consistency_sample, step_times
from diffusion.conditions import Condition
from diffusion.noise_pipeline import NoisePipeline
from diffusion.pipelines import denoiser_of


class ConsistencyPipeline(NoisePipeline):
    """Draws pictures with one or more network evaluations (Song et al. 2023, algorithm 1).

    ``DiffusionPipeline.from_pretrained`` does not know this class: load the folder with
    ``ConsistencyPipeline.from_pretrained``.

    Args:
        unet: the student's network.
        scheduler: any that :func:`diffusion.pipelines.schedule_of` reads, for its noise levels and prediction type.
        levels: {"timesteps": the noise levels that the student was trained at, increasing, "sampling": see
            :func:`baselines.consistency_distillation.step_times`, "clip": see
            :func:`baselines.consistency_distillation.consistency_sample`, left out where false}; None is the two ends
            of the schedule, which one step needs.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        levels: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        thresholding: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, num_classes, thresholding)
        ends = {"timesteps": [0.0, scheduler.config.num_train_timesteps - 1.0], "sampling": None}
        self.register_to_config(levels=dict(levels or ends))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        num_inference_steps: int = 1,
        condition: Condition = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            batch_size: number of pictures; ignored when ``noise`` is given.
            generator: source of the noise. The further noise of more than one step follows from that noise.
            noise: the noise itself, shape (N, C, H, W).
            num_inference_steps: network evaluations a picture, fewer than there are levels.
            condition: the network's further keyword arguments, e.g. {"class_labels": labels}.
            output_type, return_dict: see :meth:`diffusion.noise_pipeline.NoisePipeline.output`.

        Raises:
            ValueError: an unknown ``output_type``, or a number of steps that is out of range.
        """
        student = denoiser_of(self.unet, self.scheduler, self.config.num_classes, self.config.thresholding)
        levels = self.config.levels
        times = step_times(student.schedule, levels["timesteps"], num_inference_steps, levels["sampling"])
        drawn = self.draw_noise(batch_size, generator, noise).to(self.unet.dtype)
        sample = consistency_sample(student, drawn, times, condition, levels.get("clip", False))
        return self.output(sample, output_type, return_dict)
