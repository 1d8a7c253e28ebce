"""What must be known of a teacher before anything runs."""

from dataclasses import dataclass
from typing import Literal

import torch

from diffusion.prediction import PredictionType
from diffusion.schedule import Schedule

Told = Literal["nothing", "class", "text"]


@dataclass(frozen=True)
class TeacherFacts:
    """What a method's settings are checked against before anything runs.

    Attributes:
        log_noise_to_signal: λ at t_min and at t_max; the latter is infinite where no signal is left.
        shape: (C, H, W) of the states.
        is_latent: whether these are an autoencoder's latents, and no images.
        told: what it is told beside the time.
        can_be_guided: whether it has an unconditional input too.
        embeds_guidance: whether students of its network can be told a guidance scale.
    """

    prediction_type: PredictionType
    num_timesteps: int
    t_min: float
    t_max: float
    log_noise_to_signal: tuple[float, float]
    shape: tuple[int, int, int]
    told: Told
    can_be_guided: bool
    is_latent: bool = False
    embeds_guidance: bool = False

    @property
    def conditional(self) -> bool:
        return self.told != "nothing"


def facts_of(
    schedule: Schedule,
    prediction_type: PredictionType,
    shape: tuple[int, int, int],
    told: Told,
    can_be_guided: bool,
    is_latent: bool = False,
    embeds_guidance: bool = False,
) -> TeacherFacts:
    t_min, t_max = schedule.t_min, schedule.t_max
    low, high = schedule.log_noise_to_signal(torch.tensor([t_min, t_max], dtype=torch.float64)).tolist()
    levels = schedule.num_timesteps, t_min, t_max, (low, high)
    return TeacherFacts(prediction_type, *levels, shape, told, can_be_guided, is_latent, embeds_guidance)
