"""BOOT as a method of the suite (Gu et al., arXiv 2306.05544): data-free distillation to one evaluation."""

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from boot.losses import Weight, boot_losses
from boot.signal_ode import Solver
from boot.state_student import StateStudent
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import ComparingSettings, squared_l2
from diffusion.distillation.distiller import Student
from diffusion.distillation.one_step import OneStep, ReadingSettings
from diffusion.distillation.pairs import Pairs
from diffusion.schedule import Schedule
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import TeacherFacts
from diffusion.times import uniform_times
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


class BootSettings(ReadingSettings, ComparingSettings):
    """Settings of BOOT.

    Attributes:
        solver: how the teacher's Signal-ODE is stepped from t to s; see :mod:`boot.signal_ode`.
        delta: the step.
        delta_in: "time", t = s + δ; or "lambda", λ_t = λ_s + δ, which takes equal steps of log(σ/α).
        delta_spread: 0 takes δ as it is; r draws it for every noise, uniformly from (1 − r) δ to (1 + r) δ.
        boundary_weight: β, weight of the boundary loss.
        boundary_fraction: share of the batch that also enters the boundary loss. The expectation is the same for
            every share; the loss starts at zero, so a few samples hold it there at a fraction of the evaluations.
        weight: of the bootstrap loss, "inverse_square" 1/(1 − k)², "inverse" 1/(1 − k), "uniform" 1.
        distance: of both losses, "l2" or "lpips"; the latter as ``lpips`` says.
        target: what the student predicts, "signal" y_t, or, for the ablation, "state" x_t.
        times: "uniform", s uniform in [t_min, t_max] all along (the paper's choice); or "progressive", s uniform in an
            interval that grows from t_max down to t_min over the first ``progressive_share`` of the training.
        progressive_share: see ``times``.
        bootstrap_from: the weights that ŷ_t comes from, "online" or "average" (training.ema_decay).
        initialisation: the student's first weights, "teacher" or "random".
    """

    method: Literal["boot"] = "boot"
    solver: Solver = "heun"
    delta: float = Field(0.04, gt=0)
    delta_in: Literal["time", "lambda"] = "time"
    delta_spread: float = Field(0.0, ge=0, lt=1)
    boundary_weight: float = Field(1.0, ge=0)
    boundary_fraction: float = Field(0.25, gt=0, le=1)
    weight: Weight = "inverse_square"
    distance: Literal["l2", "lpips"] = "l2"
    target: Literal["signal", "state"] = "signal"
    times: Literal["uniform", "progressive"] = "uniform"
    progressive_share: float = Field(0.5, gt=0, le=1)
    bootstrap_from: Literal["online", "average"] = "online"
    initialisation: Literal["teacher", "random"] = "teacher"
    training: TrainingSettings = TrainingSettings(
        steps=1000, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99
    )

    @model_validator(mode="after")
    def _consistent(self) -> "BootSettings":
        if self.bootstrap_from == "average" and self.training.ema_decay is None:
            raise ValueError("bootstrap_from: found 'average' with training.ema_decay null; expected a decay")
        if self.distance == "lpips" and self.target == "state":
            raise ValueError("distance: found 'lpips' with target 'state', expected 'l2': noisy states are no pictures")
        if self.times == "uniform" and self.progressive_share != type(self).model_fields["progressive_share"].default:
            raise ValueError(f"progressive_share: found {self.progressive_share} with times 'uniform'; remove one")
        return self


class Boot(OneStep):
    """Bootstraps the student along its own trajectory: the only inputs are noise and the teacher."""

    name = "boot"
    title = "BOOT"
    Settings = BootSettings
    needs_data = False
    embeds_guidance = True
    TINY = {"training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5}}  # noqa: RUF012

    settings: BootSettings

    def check(self, teacher: TeacherFacts) -> None:
        settings = self.settings
        low, high = (teacher.t_min, teacher.t_max) if settings.delta_in == "time" else teacher.log_noise_to_signal
        if settings.delta * (1 + settings.delta_spread) >= high - low:
            drawn = f", drawn up to {1 + settings.delta_spread:.4g} times that" if settings.delta_spread else ""
            raise ValueError(
                f"delta: found {settings.delta}{drawn}, expected less than the teacher's whole interval of "
                f"{settings.delta_in} ({high - low:.6g})"
            )
        if settings.boundary_weight == 0:
            reasons = {
                "an epsilon teacher": teacher.prediction_type == "epsilon" and settings.epsilon_reading == "noise",
                "a guided teacher": self.guidance.scale != 1,
                "a student of random weights": settings.initialisation == "random",
                "a student of the noisy state": settings.target == "state",
            }
            for reason in (reason for reason, holds in reasons.items() if holds):
                raise ValueError(
                    f"boundary_weight: found 0 with {reason}; expected > 0, because that student does not start on the "
                    f"trajectory and only the boundary loss puts it there"
                )
        settings.check_distance(teacher)
        settings.check_reading(teacher)
        if settings.target == "state" and (
            teacher.prediction_type == "edm" or math.isinf(teacher.log_noise_to_signal[1])
        ):
            raise ValueError(
                "target: found 'state', expected 'signal' with this teacher: at t_max its state is noise alone, or far "
                "larger than what the network's output can be read as"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        self._distance = self.settings.perceptual(run.device) or squared_l2
        self._source: NoiseStudent | None = None
        return super().distil(teacher, run, data)

    def network(self, teacher: Denoiser, run: "TrainingRun") -> Any:
        network = super().network(teacher, run)
        if self.settings.initialisation == "random":
            run.seed_initialisation("initialisation of the student")  # not of the teacher, whose seed may be the same
            network.load_state_dict(type(network).from_config(network.config).state_dict())
        return network

    def student(self, network: nn.Module, teacher: Denoiser) -> NoiseStudent:
        kind = StateStudent if self.settings.target == "state" else NoiseStudent
        return kind.of(teacher, network, **self._reading)

    def batch(self, step: Step, teacher: Denoiser, data: Split | Pairs | None) -> tuple[Any, ...]:
        if self.settings.bootstrap_from == "average" and self._source is None:
            assert step.average is not None
            self._source = self.student(step.average, teacher)
        noise = torch.randn(step.batch_size, *teacher.shape, generator=step.generator, device=step.generator.device)
        s, t = draw_times(self.settings, teacher.schedule, step)
        condition = teacher.conditions.draw(step.batch_size, step.generator)
        return noise, s, t, self.guidance.told(condition, step.generator)

    def loss(self, student: NoiseStudent, teacher: Denoiser, *batch: Any) -> torch.Tensor:
        settings, (noise, s, t, condition) = self.settings, batch
        count = math.ceil(len(noise) * settings.boundary_fraction) if settings.boundary_weight else 0
        how = settings.solver, settings.weight, self._distance
        bootstrap, boundary = boot_losses(student, teacher, noise, s, t, count, *how, self._source, condition)
        return bootstrap + settings.boundary_weight * boundary


def draw_times(settings: BootSettings, schedule: Schedule, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The times (s, t) of one step's batch, s < t, two float64 tensors of shape (batch size,).

    s is drawn and t follows, so that the interval is covered up to t_max; the last steps are shorter than δ.
    """
    batch, generator = step.batch_size, step.generator
    low = schedule.t_min
    if settings.times == "progressive":
        grown = min(1.0, step.progress / settings.progressive_share)
        # It starts as long as one step, as far as time tells.
        first = settings.delta if settings.delta_in == "time" else 0.02 * (schedule.t_max - low)
        low = schedule.t_max - max(grown * (schedule.t_max - low), first)
    s = uniform_times(batch, low, schedule.t_max, generator)
    delta: torch.Tensor | float = settings.delta
    if settings.delta_spread:
        delta = delta * uniform_times(batch, 1 - settings.delta_spread, 1 + settings.delta_spread, generator)
    t = s + delta if settings.delta_in == "time" else schedule.time_of(schedule.log_noise_to_signal(s) + delta)
    return s, t.clamp(max=schedule.t_max)
