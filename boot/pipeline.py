"""A `diffusers` pipeline for BOOT students: ``BootPipeline.from_pretrained(folder)(batch_size=16).images``."""

from typing import Any

import torch

from boot.student import BootStudent
from diffusion.conditions import Condition
from diffusion.noise_pipeline import NoisePipeline
from diffusion.pipelines import prediction_type_of, schedule_of


class BootPipeline(NoisePipeline):
    """Draws pictures with one network evaluation.

    ``DiffusionPipeline.from_pretrained`` does not know this class: load the folder with
    ``BootPipeline.from_pretrained``.

    Args:
        unet: the student's network.
        scheduler: any that :func:`diffusion.pipelines.schedule_of` reads, for its noise levels and prediction type.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        timestep: float = 0.0,
        condition: Condition = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            batch_size: number of pictures; ignored when ``noise`` is given.
            generator: source of the noise.
            noise: the noise itself, shape (N, C, H, W).
            timestep: the time at which the trajectory is read, 0 (the sample) to num_train_timesteps − 1 (the blurred
                start of the trajectory).
            condition: the network's further keyword arguments, e.g. {"class_labels": labels}.
            output_type: "pil", "np" (float in [0, 1], N×H×W×C), or "pt" (float in [−1, 1], N×C×H×W, not clipped).

        Returns:
            ``ImagePipelineOutput`` with ``images``, or a tuple when ``return_dict`` is false.

        Raises:
            ValueError: an unknown ``output_type``.
        """
        # Timesteps count alone: the student reads its network at t_max's noise level for every t.
        schedule = schedule_of(self.scheduler)
        student = BootStudent(self.unet, schedule, prediction_type_of(self.scheduler))
        time = schedule.time(torch.tensor(timestep, dtype=torch.float64))
        signal = student(self.draw_noise(batch_size, generator, noise).to(self.unet.dtype), time, condition)
        return self.output(signal, output_type, return_dict)
