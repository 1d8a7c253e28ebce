"""Score identity Distillation, SiD (Zhou et al. 2024, arXiv 2404.04057): match the scores of the student's own noised
pictures with the teacher's, without any data.

Three networks, all started from the teacher's weights: the teacher f_φ, frozen; the generator G_θ; and the fake score
f_ψ, which learns to denoise the generator's pictures. The difference f_φ − f_ψ is zero everywhere if, and only if, the
generator's pictures are distributed as the teacher's.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.distillation.distiller import Student, TrainedSettings, student_network
from diffusion.distillation.one_step import OneStep
from diffusion.distillation.pairs import Pairs
from diffusion.guidance import Guidance, guided
from diffusion.schedule import Schedule
from diffusion.solvers import karras_levels
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import TeacherFacts
from diffusion.times import lognormal_levels, uniform_times
from diffusion.training.randomness import seed_dropout
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun

# The grid of noise levels that the paper takes from Karras et al. 2022, table 1; σ/α where the variance is preserved.
_SIGMA_MIN, _SIGMA_MAX, _RHO = 0.002, 80.0, 7.0
_SMALLEST_ERROR = 1e-5  # keeps the generator's weight finite
_DROPPED = 0.1  # of the conditions of a fake score that is guided, in the authors' training

_Decay = Annotated[float, Field(ge=0, lt=1)]


class SidSettings(TrainedSettings):
    """Settings of SiD.

    Attributes:
        sigma_init: the noise level σ/α at which the generator's network is fed pure noise (published: 2.5); the
            nearest of the teacher's timesteps is taken.
        alpha: α of eq. 23, how far the squared difference of the two scores is subtracted from the cross term
            (published: 1.2, or 1).
        largest_level: the generator's loss draws its noise levels evenly in σ^(1/7) from 0.002 up to this share of the
            way to 80; the published t_max of 800 in 1000 is 0.8, which is σ/α = 24.4. Levels beyond the teacher's own
            are taken at its end.
        fake_learning_rate: peak learning rate of the fake score, which decays as ``training`` says but has no warm-up:
            ``training.warmup_steps`` gives it a start over the generator.
        fake_updates: steps of the fake score for each step of the generator (published: 1).
        fake_levels: the noise levels that the fake score learns from, "lognormal" (published, as EDM's networks:
            log σ/α is normal with mean −1.2 and deviation 1.2) or "same", those of the generator's loss.
        fake_betas: decay of the two moments of the fake score's gradient; null: those of ``training`` (published:
            0 and 0.999, of the generator on FFHQ 0.9 and 0.999).
        dropout: of both networks' residual blocks, of each in its own update alone (published: what EDM's teachers were
            trained with, 0.13 on CIFAR-10, 0.1 on ImageNet, 0.05 on FFHQ).
        fake_guidance_train: κ1, the scale at which the fake score is guided while it learns.
        fake_guidance: κ2 = κ3, the scale at which it is guided in the generator's loss. κ4, the teacher's, is
            ``guidance_scale``. Published: long guidance κ4 > 1 and the others 1; short guidance κ1 = κ2 > 1 and κ4 = 1;
            both, all alike.
        fake_condition_dropout: share of the images whose condition is ∅ where the fake score learns; null is 0.1 where
            κ1 or κ2 is not 1 (published), else 0.
        timesteps: [low, high): the generator's loss draws whole timesteps of the teacher, uniformly, in place of the
            levels up to ``largest_level`` (published with guidance: [20, 980] of 1000, ``fake_levels: same``).
        fake_weight: of the fake score's loss, "output", the mean square of the network's own output, or "snr", α²/σ² of
            ‖x̂ − x‖², which is that of ε: SNR/(SNR + 1) of v's (published with guidance).
        gradient: of the generator, "sid", or "dmd", that of distribution matching (Yin et al. 2024, arXiv 2311.18828)
            without its regression on pairs.
        training: the generator's; the fake score has its batch, micro-batches and largest gradient too.
    """

    later: ClassVar[tuple[str, ...]] = (
        "fake_betas",
        "dropout",
        "fake_guidance_train",
        "fake_guidance",
        "fake_condition_dropout",
        "timesteps",
        "fake_weight",
        "gradient",
    )

    method: Literal["sid"] = "sid"
    sigma_init: float = Field(2.5, gt=0)
    alpha: float = Field(1.2, ge=0)
    largest_level: float = Field(0.8, gt=0, le=1)
    fake_learning_rate: float = Field(6e-4, gt=0)
    fake_updates: int = Field(1, ge=1)
    fake_levels: Literal["lognormal", "same"] = "lognormal"
    fake_betas: tuple[_Decay, _Decay] | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    fake_guidance_train: float = Field(1.0, ge=0)
    fake_guidance: float = Field(1.0, ge=0)
    fake_condition_dropout: float | None = Field(None, ge=0, lt=1)
    timesteps: tuple[NonNegativeInt, NonNegativeInt] | None = None
    fake_weight: Literal["output", "snr"] = "output"
    gradient: Literal["sid", "dmd"] = "sid"
    training: TrainingSettings = TrainingSettings(
        steps=800, batch_size=32, learning_rate=3e-4, decay="cosine", ema_decay=0.98, betas=(0.0, 0.999)
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SidSettings":
        defaults = type(self).model_fields
        if self.timesteps is not None and self.timesteps[0] >= self.timesteps[1]:
            raise ValueError(f"timesteps: found {list(self.timesteps)}, expected [low, high] with low < high")
        if self.timesteps is not None and self.largest_level != defaults["largest_level"].default:
            raise ValueError(f"largest_level: found {self.largest_level} with timesteps; remove one")
        if self.gradient == "dmd" and self.alpha != defaults["alpha"].default:
            raise ValueError(f"alpha: found {self.alpha} with gradient 'dmd', which has none; remove one")
        return self

    @property
    def fake_dropped(self) -> float:
        """The share of conditions that the fake score learns without."""
        if self.fake_condition_dropout is not None:
            return self.fake_condition_dropout
        return _DROPPED if (self.fake_guidance_train, self.fake_guidance) != (1, 1) else 0.0


class Sid(OneStep):
    """The generator and its fake score are trained in turn, on nothing but the generator's own pictures."""

    name = "sid"
    title = "SiD"
    Settings = SidSettings
    follows_teacher = False
    TINY = {"training": {"steps": 4, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5}}  # noqa: RUF012

    settings: SidSettings

    def check(self, teacher: TeacherFacts) -> None:
        low, high = teacher.log_noise_to_signal
        if not low <= math.log(self.settings.sigma_init) <= high:
            raise ValueError(
                f"sigma_init: found {self.settings.sigma_init}, expected a noise level σ/α of the teacher, from "
                f"{math.exp(low):.4g} to {math.exp(min(high, 700)):.4g}"
            )
        if self.settings.timesteps is not None and self.settings.timesteps[1] > teacher.num_timesteps:
            raise ValueError(
                f"timesteps: found {list(self.settings.timesteps)}, expected at most the teacher's num_timesteps "
                f"({teacher.num_timesteps})"
            )
        for key in ("fake_guidance_train", "fake_guidance"):
            if (scale := getattr(self.settings, key)) != 1 and not teacher.can_be_guided:
                raise ValueError(
                    f"{key}: found {scale}, expected 1: the teacher has no condition, or no unconditional input"
                )
        if self.settings.fake_condition_dropout and not teacher.can_be_guided:
            raise ValueError(
                f"fake_condition_dropout: found {self.settings.fake_condition_dropout}, expected 0: the teacher has no "
                f"condition, or no unconditional input"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        settings, training, schedule = self.settings, self.settings.training, teacher.schedule
        network, fake_network = (student_network(teacher, settings.dropout, settings.lora) for _ in range(2))
        fake_weights = [weight for weight in fake_network.parameters() if weight.requires_grad]
        for counted in (teacher.network, network, fake_network):
            run.count(counted)
        start = start_time(schedule, settings.sigma_init)
        student = NoiseStudent.of(teacher, network, read_at=start)
        fake = teacher.with_network(fake_network)
        learning_fake, judging_fake = (
            guided(fake, Guidance(scale)) for scale in (settings.fake_guidance_train, settings.fake_guidance)
        )
        changes = {"learning_rate": settings.fake_learning_rate, "betas": settings.fake_betas or training.betas}
        fake_training = training.model_copy(update=changes | {"warmup_steps": 0})
        fake_optimiser = fake_training.optimiser_of(fake_network)
        told = torch.full((training.batch_size,), start, dtype=torch.float64, device=run.device)

        def fake_loss(z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
            with torch.no_grad():
                generated = student(z, told[: len(z)], condition)
            if settings.fake_weight == "snr":
                return snr_loss(learning_fake, generated, noise, t, condition)
            return denoising_loss(learning_fake, generated, noise, t, condition)

        def generator_loss(z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
            generated = student(z, told[: len(z)], condition)
            if settings.gradient == "dmd":
                return dmd_loss(generated, teacher, judging_fake, noise, t, condition)
            return sid_loss(generated, teacher, judging_fake, noise, t, settings.alpha, condition)

        fake_loss, generator_loss = run.compiled(fake_loss, training), run.compiled(generator_loss, training)

        def draw(step: Step, of_fake: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Condition]:
            batch, generator = step.batch_size, step.generator
            z, noise = torch.randn((2, batch, *teacher.shape), generator=generator, device=generator.device)
            if of_fake and settings.fake_levels == "lognormal":
                t = schedule.time_of(lognormal_levels(batch, generator))
            elif settings.timesteps is not None:
                t = schedule.time(torch.randint(*settings.timesteps, (batch,), generator=generator, device=run.device))
            else:
                t = schedule.time_of(grid_levels(batch, generator, settings.largest_level))
            condition = teacher.conditions.draw(batch, generator)
            # The generator too is told ∅ then: its images of ∅ are what the fake score learns ∅ from.
            dropped = settings.fake_dropped if of_fake else 0.0
            return z, noise, t, teacher.conditions.dropped(condition, dropped, generator)

        def drop_in(learning: nn.Module, other: nn.Module) -> None:
            if settings.dropout:  # without it, modes stay as they are: another mode sums in another order
                learning.train()
                other.eval()

        def set_learning(learns: bool) -> None:
            for weight in fake_weights:
                weight.requires_grad_(learns)

        def train_fake(steps: Sequence[Step]) -> None:
            for group in fake_optimiser.param_groups:
                group["lr"] = settings.fake_learning_rate * training.decayed(steps[0].progress)
            drop_in(fake_network, network)
            set_learning(True)
            run.clear_gradients(fake_network, training)
            for update in range(settings.fake_updates):
                for step in steps:
                    # Dropout's, of every micro-batch: other numbers than in the generator's update.
                    seed_dropout(step.generator, 1 + update)
                    share = fake_loss(*draw(step, of_fake=True))
                    (share / training.gradient_accumulation_steps).backward()
                run.processes.sum_gradients(fake_network)
                nn.utils.clip_grad_norm_(fake_network.parameters(), training.gradient_clip)
                fake_optimiser.step()
                run.clear_gradients(fake_network, training)
            set_learning(False)  # the generator's gradient passes through it
            drop_in(network, fake_network)

        def loss(step: Step) -> torch.Tensor:
            return generator_loss(*draw(step, of_fake=False))

        beside = {"fake": fake_network, "fake_optimiser": fake_optimiser}
        # The fake score first (algorithm 1): at the start it is the teacher, and would give no gradient at all.
        return [Student(1, *run.fit("sid", network, loss, training, beside=beside, before_step=train_fake))]

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        start = torch.tensor(start_time(teacher.schedule, self.settings.sigma_init), dtype=torch.float64)
        timestep = round(float(teacher.schedule.timestep(start)), 6)
        return {"told_timestep": timestep, "read_timestep": timestep}


def start_time(schedule: Schedule, sigma_init: float) -> float:
    """The time of the timestep whose σ/α is nearest to ``sigma_init``.

    A whole timestep, because there `diffusers`' schedule and ours are the same.
    """
    exact = schedule.time_of(torch.tensor(sigma_init, dtype=torch.float64).log())
    return float(schedule.time(schedule.timestep(exact).round()))


def grid_levels(count: int, generator: torch.Generator, largest_level: float) -> torch.Tensor:
    """λ = log σ/α of ``count`` noise levels, even in σ^(1/7) from 0.002 to ``largest_level`` of the way to 80.

    Float64, shape (count,). The grid of Karras et al. 2022 (arXiv 2206.00364), eq. 5, without its noisiest part.
    """
    share = uniform_times(count, 0.0, largest_level, generator)
    return karras_levels(math.log(_SIGMA_MIN), math.log(_SIGMA_MAX), share, _RHO)


def sid_loss(
    generated: torch.Tensor,
    teacher: Denoiser,
    fake: Denoiser,
    noise: torch.Tensor,
    t: torch.Tensor,
    alpha: float,
    condition: Condition = None,
) -> torch.Tensor:
    """E ω [(1 − α) ‖f_φ − f_ψ‖² + (f_φ − f_ψ)ᵀ (f_ψ − x_g)] at x_t = α_t x_g + σ_t ε (eq. 23), a scalar.

    ω is the reciprocal of the picture's mean absolute error |x_g − f_φ(x_t)|, without gradient. Mean over batch and
    pixels. The gradient passes through x_t into both networks, whose weights are not to be changed. One estimate of
    the teacher and one evaluation of the fake score a picture.

    Both estimates are unclipped: the loss is zero where the two agree, so that both must be bounded alike; and a bound
    has no gradient where it holds, as at the ends of the range where most pixels of many pictures are.

    Args:
        generated: x_g, the generator's pictures, shape (N, C, H, W).
        noise: ε, of the same shape; t: times, shape (N,).
        alpha: α of the paper, which is not α_t.
        condition: of the pictures; teacher and fake score may be guided, each at a scale of its own.
    """
    at = teacher.schedule.at(t)
    x_t = at.noised(generated, noise)
    real, faked = teacher.estimate(x_t, at, condition), fake.estimate(x_t, at, condition)
    error = (generated - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST_ERROR)
    difference = real - faked
    return (difference * ((1 - alpha) * difference + (faked - generated)) / error).mean()


def dmd_loss(
    generated: torch.Tensor,
    teacher: Denoiser,
    fake: Denoiser,
    noise: torch.Tensor,
    t: torch.Tensor,
    condition: Condition = None,
) -> torch.Tensor:
    """Whose gradient in x_g is ω (f_ψ − f_φ), with nothing through the networks (Yin et al. 2024, algorithm 2).

    Arguments, ω and mean as of :func:`sid_loss`; the value is half the mean square of that gradient.
    """
    with torch.no_grad():
        at = teacher.schedule.at(t)
        x_t = at.noised(generated, noise)
        real, faked = teacher.estimate(x_t, at, condition), fake.estimate(x_t, at, condition)
        error = (generated - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST_ERROR)
        target = generated - (faked - real) / error
    return (generated - target).square().mean() / 2


def snr_loss(
    denoiser: Denoiser, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """α²/σ² ‖x̂ − x‖² at x_t = α_t x + σ_t ε, whatever the prediction type: ‖ε̂ − ε‖², or SNR/(SNR + 1) ‖v̂ − v‖².

    Arguments and mean as of :func:`diffusion.denoiser.denoising_loss`.
    """
    at = denoiser.schedule.at(t)
    error = denoiser.estimate(at.noised(x, noise), at, condition) - x
    return (at.alpha / at.sigma * error).square().mean()
