"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): the one place that knows how a teacher is guided."""

from dataclasses import dataclass, replace

import torch

from diffusion.conditions import Condition, join
from diffusion.denoiser import Denoiser
from diffusion.level import Level, Times
from diffusion.times import uniform_times

Scale = float | tuple[float, float]


@dataclass(frozen=True)
class Guidance:
    """How a teacher is guided wherever it is evaluated: in samplers, in losses and in reference trajectories.

    Attributes:
        scale: w of f(∅) + w (f(c) − f(∅)). 1 is the condition alone and costs one evaluation, all others cost two. Of a
            range (low, high) each image has a w of its own, ``guidance`` of its condition.
        embedded: whether the network itself is told w, having learnt it, in place of two evaluations.
    """

    scale: Scale = 1.0
    embedded: bool = False

    @property
    def drawn(self) -> bool:
        """Whether w is drawn from a range, which a student is told."""
        return isinstance(self.scale, tuple)

    @property
    def evaluations(self) -> int:
        """Network evaluations that one estimate of the teacher takes."""
        return 1 if self.embedded or self.scale == 1 else 2

    def at(self, scale: Scale) -> "Guidance":
        """The same way of guiding at another scale."""
        return replace(self, scale=scale)

    def told(self, condition: Condition, generator: torch.Generator) -> Condition:
        """``condition`` with w of each image, uniform in the range, float32, shape (N,); as it is without a range."""
        if condition is None or not isinstance(self.scale, tuple):
            return condition
        count = len(next(iter(condition.values())))
        return {**condition, "guidance": uniform_times(count, *self.scale, generator).float()}


class GuidedDenoiser(Denoiser):
    """f̃ = f(∅) + w (f(c) − f(∅)), bounded afterwards, from one batch of twice the size.

    The estimate is guided, which is the same as guiding the network's output: all prediction types are linear in it,
    with coefficients that the two share.
    """

    def __init__(self, denoiser: Denoiser, scale: Scale) -> None:
        super().__init__(denoiser.network, **denoiser.reading)
        self.scale, self.evaluations = scale, 2
        self.told_scale = isinstance(scale, tuple)

    def raw(self, x_t: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        """The guided output, which a loss on the network's own output compares."""
        output, _x_t, _at = self._of_both(x_t, t, condition)
        return self._guided(output, condition)

    def estimate(self, x_t: torch.Tensor, t: Times, condition: Condition = None) -> torch.Tensor:
        return self._guided(self.prediction.read(*self._of_both(x_t, t, condition)), condition)

    def _of_both(self, x_t: torch.Tensor, t: Times, condition: Condition) -> tuple[torch.Tensor, torch.Tensor, Level]:
        """Outputs with the condition and without, 2 N of them, and the states and times that they are of."""
        both = join(condition, self.conditions.without(condition))
        times = self.schedule.at(t).time
        at = self.schedule.at(times if times.ndim == 0 else torch.cat([times, times]))
        x_t = torch.cat([x_t, x_t])
        return super().raw(x_t, at, both), x_t, at

    def _guided(self, both: torch.Tensor, condition: Condition) -> torch.Tensor:
        conditional, unconditional = both.chunk(2)
        if not isinstance(self.scale, tuple):
            return unconditional + self.scale * (conditional - unconditional)
        assert condition is not None
        scale = condition["guidance"].reshape(-1, 1, 1, 1)
        # Exactly the condition alone at w = 1, as without guidance.
        return torch.where(scale == 1, conditional, unconditional + scale * (conditional - unconditional))


def guided(denoiser: Denoiser, guidance: Guidance) -> Denoiser:
    """``denoiser`` under guidance.

    Raises:
        ValueError: it has no condition, or no unconditional input, and does not embed w.
    """
    if guidance.embedded:
        scale = None if guidance.drawn else guidance.scale
        told = Denoiser(denoiser.network, **denoiser.reading | {"embedded_scale": scale})
        told.told_scale = guidance.drawn
        return told.eval()
    if guidance.scale == 1:
        return denoiser
    if not denoiser.conditions.can_be_guided:
        raise ValueError("guidance needs a denoiser with a condition and with an unconditional input")
    return GuidedDenoiser(denoiser, guidance.scale).eval()
