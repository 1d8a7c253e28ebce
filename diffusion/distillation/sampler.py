"""Samplers of the teacher itself: no training."""

from abc import abstractmethod
from pathlib import Path

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions
from diffusion.denoiser import Denoiser
from diffusion.distillation.method import Method, MethodSettings, Sampler
from diffusion.guidance import guided
from diffusion.runtime.settings import StepCounts
from diffusion.samplers import Spacing
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import load_denoiser


class TeacherSamplerSettings(MethodSettings):
    """Settings of a sampler of the teacher.

    Attributes:
        num_inference_steps: step counts to sample with; the sampler says how many estimates of the teacher a number of
            steps takes. An estimate is one network evaluation, or two under guidance.
    """

    num_inference_steps: StepCounts = (1, 2, 4, 8, 16, 50)


class TeacherSampler(Method):
    """A sampler of the teacher itself: no training at all, the guidance applied at every step.

    A subclass says how it draws pictures, :meth:`draw`; and, where a step is not one estimate of the teacher, how the
    two numbers are related.
    """

    trains = False
    settings: TeacherSamplerSettings

    @abstractmethod
    def draw(
        self, denoiser: Denoiser, noise: torch.Tensor, num_inference_steps: int, condition: Condition = None
    ) -> torch.Tensor:
        """Pictures from ``noise`` at t_max, both of shape (N, C, H, W).

        Args:
            denoiser: the guided teacher, to be asked exactly ``estimates(num_inference_steps)`` times.
        """

    @property
    def spacing(self) -> Spacing:
        """How the steps are spread, see :func:`diffusion.samplers.sampling_grid`."""
        return getattr(self.settings, "spacing", "trailing")

    def uneven_steps(self, teacher: TeacherFacts) -> tuple[int, ...]:
        """The step counts that do not divide the teacher's timesteps, where the steps are spread over these.

        With those, `diffusers`' own schedulers draw other samples: they step by whole timesteps, and the next step
        begins elsewhere (docs/methods.md).
        """
        by_timesteps = self.spacing == "trailing" and teacher.prediction_type != "edm"  # whose scheduler has a clock
        counts = self.settings.num_inference_steps if by_timesteps else ()
        return tuple(count for count in counts if teacher.num_timesteps % count)

    def estimates(self, num_inference_steps: int) -> int:
        """Estimates of the teacher that so many steps take."""
        return num_inference_steps

    def steps(self, estimates: int) -> int:
        """The inverse of :meth:`estimates`."""
        return estimates

    def evaluations(self) -> tuple[int, ...]:
        return tuple(self.estimates(steps) * self.guidance.evaluations for steps in self.settings.num_inference_steps)

    def check(self, teacher: TeacherFacts) -> None:
        most = max(self.settings.num_inference_steps)
        if most > teacher.num_timesteps:
            raise ValueError(
                f"num_inference_steps: found {most}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )

    def sampler(
        self, folder: Path, nfe: int, device: torch.device, conditions: Conditions | None = None
    ) -> tuple[Sampler, nn.Module]:
        denoiser = load_denoiser(folder, device)
        denoiser.conditions = conditions or denoiser.conditions
        denoiser = guided(denoiser, self.guidance)
        steps = self.steps(nfe // self.guidance.evaluations)

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return self.draw(denoiser, noise, steps, condition)

        return sample, denoiser.network
