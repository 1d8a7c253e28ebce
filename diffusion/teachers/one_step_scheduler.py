"""The scheduler of a one-step student within a stock pipeline, where `diffusers` has none that is exact.

This file travels with the weights, as ``scheduler/one_step_scheduler.py``; it imports torch and `diffusers` alone.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


class OneStepScheduler(SchedulerMixin, ConfigMixin):
    """One evaluation: the network is told one time, and the sample is a x + b F of the state x and its output F.

    Args:
        told: the time.
        of_state, of_output: a and b.
        noise_scale: x over standard normal noise, by which pipelines multiply what they begin with.
        scaled_by_pipeline: whether this one does.
        num_train_timesteps: of the teacher.
        variance_type: as pipelines of networks with a learnt variance ask for it: its channels come along, and are
            dropped here.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        told: float = 0.0,
        of_state: float = 0.0,
        of_output: float = 1.0,
        noise_scale: float = 1.0,
        scaled_by_pipeline: bool = True,
        num_train_timesteps: int = 1000,
        variance_type: str = "learned_range",
    ) -> None:
        self.timesteps = torch.tensor([told])
        self.num_inference_steps, self.init_noise_sigma = 1, noise_scale

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **_options: Any,
    ) -> None:
        """Takes 1, as the number of steps or as that of ``sigmas``.

        Raises:
            ValueError: another number, or a pipeline that begins with noise of another scale than the student wants.
        """
        if not self.config.scaled_by_pipeline:
            raise ValueError(
                f"the student is fed noise times {self.config.noise_scale:.4g}, and this pipeline does not scale its "
                f"noise; draw samples by the suite"
            )
        steps = len(sigmas) if num_inference_steps is None and sigmas is not None else num_inference_steps
        if steps not in (1, None):
            raise ValueError(f"num_inference_steps: found {steps}, expected 1: the student answers to pure noise")
        self.timesteps = torch.tensor([self.config.told], device=device)

    def scale_model_input(self, sample: torch.Tensor, *_arguments: Any) -> torch.Tensor:
        """The state as it is."""
        return sample

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        """The sample, twice in a tuple: as the next state, and as the clean one."""
        output = model_output[:, : sample.shape[1]]
        made = self.config.of_state * sample + self.config.of_output * output
        return DDIMSchedulerOutput(made, made) if options.get("return_dict", True) else (made, made)
