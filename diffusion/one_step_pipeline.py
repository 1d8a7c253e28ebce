"""A `diffusers` pipeline for students of one evaluation, ``OneStepPipeline.from_pretrained(folder)().images``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.conditions import Condition
from diffusion.files import read_json
from diffusion.method import Sampler
from diffusion.noise_pipeline import NoisePipeline
from diffusion.noise_student import NoiseStudent
from diffusion.pipelines import load_denoiser, prediction_type_of, schedule_of


class OneStepPipeline(NoisePipeline):
    """Draws pictures with one network evaluation, by a :class:`diffusion.noise_student.NoiseStudent`.

    ``DiffusionPipeline.from_pretrained`` does not know this class: load the folder with
    ``OneStepPipeline.from_pretrained``.

    Args:
        unet: the student's network.
        scheduler: any that :func:`diffusion.pipelines.schedule_of` reads, for its noise levels and prediction type.
        told_timestep: the timestep that the network is told.
        read_timestep: the timestep at whose noise level it is fed and read; None is the last one.
        signal_scale: what the network's estimate is multiplied by.
        raw: whether its output is that estimate; see :class:`diffusion.noise_student.NoiseStudent`.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        told_timestep: float = 0.0,
        read_timestep: float | None = None,
        signal_scale: float = 1.0,
        raw: bool = False,
        num_classes: int | None = None,
        thresholding: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, num_classes, thresholding)
        facts = {"told_timestep": told_timestep, "read_timestep": read_timestep, "signal_scale": signal_scale}
        self.register_to_config(**facts, raw=raw)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        condition: Condition = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            batch_size: number of pictures; ignored when ``noise`` is given.
            generator: source of the noise.
            noise: the noise itself, shape (N, C, H, W).
            condition: the network's further keyword arguments, e.g. {"class_labels": labels}.
            output_type, return_dict: see :meth:`diffusion.noise_pipeline.NoisePipeline.output`.
        """
        schedule, config = schedule_of(self.scheduler), self.config
        student = _student(self.unet, schedule, prediction_type_of(self.scheduler), config)
        told = schedule.time(torch.tensor(config.told_timestep, dtype=torch.float64))
        signal = student(self.draw_noise(batch_size, generator, noise).to(self.unet.dtype), told, condition)
        return self.output(config.signal_scale * signal, output_type, return_dict)


def _student(network: nn.Module, schedule: Any, prediction_type: Any, config: Mapping[str, Any]) -> NoiseStudent:
    timestep = config["read_timestep"]
    read_at = None if timestep is None else float(schedule.time(torch.tensor(timestep)))
    # Folders from before that key have none.
    return NoiseStudent(network, schedule, prediction_type, read_at, config.get("raw", False))


def one_step_sampler(folder: Path, device: torch.device) -> tuple[Sampler, nn.Module]:
    """The sampler of a folder that holds a :class:`OneStepPipeline`, and its network."""
    stored = load_denoiser(folder, device)
    config = read_json(folder / "model_index.json")
    student = _student(stored.network, stored.schedule, stored.prediction_type, config)
    told = stored.schedule.time(torch.tensor(config["told_timestep"], dtype=torch.float64))

    def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
        return config["signal_scale"] * student(noise, told, condition)

    return sample, stored.network
