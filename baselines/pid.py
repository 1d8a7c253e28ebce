"""PID, physics-informed distillation (Tee et al. 2024, arXiv 2411.08378): the student is the teacher's trajectory and
learns from its differential equation alone, without any data."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from diffusion.conditions import Condition, join
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import ComparingSettings, Distance
from diffusion.distillation.distiller import Student
from diffusion.distillation.one_step import OneStep, ReadingSettings
from diffusion.distillation.pairs import Pairs
from diffusion.level import decay, gain
from diffusion.schedule import Schedule
from diffusion.solvers import karras_levels
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun


class PidSettings(ReadingSettings, ComparingSettings):
    """Settings of PID.

    Attributes:
        num_times: N, points of the time grid (published: 250). The difference quotient is taken between neighbours.
        rho: exponent of the grid; τ^(1/ρ) takes equal steps, τ = σ/α (Karras et al. 2022, eq. 5; published: 7).
        output: "estimate", F is the network's output as an estimate of the image at t_max, which at first is the
            teacher's; or "network", that output itself, with teachers that predict the image or EDM's (published).
        distance: of the residual, "l2" squared, or "lpips" (published) as ``lpips`` says.
        lpips: published: images resized to 224, the backbone "vgg" with pooling "average".
        training: published: RAdam at a constant 2e-4 (ImageNet-64: 1e-4), average of the weights 0.99995.
    """

    later: ClassVar[tuple[str, ...]] = ("output", "distance", "lpips")

    method: Literal["pid"] = "pid"
    num_times: int = Field(250, ge=3)
    rho: float = Field(7.0, ge=1)
    output: Literal["estimate", "network"] = "estimate"
    distance: Literal["l2", "lpips"] = "l2"
    training: TrainingSettings = TrainingSettings(
        steps=1500, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99
    )


class Pid(OneStep):
    """x(z, τ) = (τ/T) z + (1 − τ/T) F(z, τ) shall solve the probability-flow ODE dx/dτ = (x − D(x, τ)) / τ.

    The ODE of EDM's noise levels is every other schedule's too, for x_t/α_t and τ = σ/α. T is τ at t_max; where no
    signal is left there and τ is infinite, T is τ one timestep earlier, and the trajectory starts there.
    """

    name = "pid"
    title = "PID"
    Settings = PidSettings
    needs_data = False
    TINY = {  # noqa: RUF012
        "num_times": 20,
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-4, "ema_decay": 0.5},
    }

    settings: PidSettings

    def check(self, teacher: TeacherFacts) -> None:
        self.settings.check_distance(teacher)
        self.settings.check_reading(teacher)
        if self.settings.output == "network" and teacher.prediction_type not in ("sample", "edm"):
            raise ValueError(
                f"output: found 'network' with a teacher of {teacher.prediction_type}, expected 'estimate': what that "
                f"network puts out is far from an image"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        self._times = time_grid(teacher.schedule, self.settings.num_times, self.settings.rho).to(run.device)
        self._perceptual = self.settings.perceptual(run.device)
        return super().distil(teacher, run, data)

    def student(self, network: nn.Module, teacher: Denoiser) -> NoiseStudent:
        return NoiseStudent.of(teacher, network, raw=self.settings.output == "network", **self._reading)

    def batch(self, step: Step, teacher: Denoiser, data: Split | Pairs | None) -> tuple[Any, ...]:
        batch, device, times = step.batch_size, step.generator.device, self._times
        noise = torch.randn((batch, *teacher.shape), generator=step.generator, device=device)
        index = torch.randint(len(times), (batch,), generator=step.generator, device=device)
        s, t = times[neighbour(index, len(times))], times[index]
        return noise, s, t, teacher.conditions.draw(batch, step.generator)

    def loss(self, student: NoiseStudent, teacher: Denoiser, *batch: Any) -> torch.Tensor:
        noise, s, t, condition = batch
        return pid_loss(student, teacher, noise, s, t, self._times[0], condition, self._perceptual)

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        # The sample is x(z, τ_min) without its noise τ_min ε: every sampler's last step goes to the clean picture.
        schedule = teacher.schedule
        scale = float(gain(schedule.at(schedule.t_min), schedule.at(start_time(schedule))).value)
        return super().facts(teacher) | {"signal_scale": scale, "raw": self.settings.output == "network"}


def start_time(schedule: Schedule) -> torch.Tensor:
    """The latest time with a finite τ = σ/α: t_max, or one timestep before; float64, shape ()."""
    end = schedule.at(schedule.t_max)
    if torch.isfinite(end.log_noise_to_signal):
        return end.time
    return schedule.time(torch.tensor(schedule.num_timesteps - 2.0))


def time_grid(schedule: Schedule, num_times: int, rho: float) -> torch.Tensor:
    """Decreasing times from :func:`start_time` to t_min at which τ^(1/ρ) takes equal steps (Karras et al. 2022, eq. 5).

    Returns:
        float64, shape (num_times,).
    """
    ends = torch.stack([start_time(schedule), schedule.at(schedule.t_min).time])
    share = torch.linspace(0, 1, num_times, dtype=torch.float64)
    first, last = schedule.log_noise_to_signal(ends)
    times = schedule.time_of(karras_levels(first, last, share, rho))
    times[0], times[-1] = ends
    return times


def neighbour(index: torch.Tensor, num_times: int) -> torch.Tensor:
    """The grid point that the difference quotient takes beside ``index``: the next lower noise level; for the lowest,
    the one above."""
    return torch.where(index == num_times - 1, num_times - 2, index + 1)


def pid_loss(
    student: NoiseStudent,
    teacher: Denoiser,
    noise: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
    start: torch.Tensor,
    condition: Condition = None,
    distance: Distance | None = None,
) -> torch.Tensor:
    """E d(x − τ_t Δx/Δτ, sg D(x, τ_t)) with x = x(z, τ_t) and Δx/Δτ = (x(z, τ_t) − x(z, τ_s)) / (τ_t − τ_s).

    The residual of the ODE as the paper trains on it: gradients run through both of the student's evaluations and not
    through the teacher. Mean over batch and pixels, a scalar. A picture takes two evaluations of the student with
    gradient and one of the teacher.

    Pure noise z = T ε makes x(z, τ) = τ ε + y with the signal y = (1 − τ/T) F. The noise has no part in
    x − τ Δx/Δτ = (y_s − k y_t) / (1 − k), k = τ_s/τ_t, and is left out there: at τ = 600 its difference would lose
    three digits of a float32, and the quotient some more. At t = ``start`` y is zero, so that the loss there is
    ‖F(z, τ_s) − D(z, T)‖²: the trajectory's start needs no loss of its own.

    Args:
        student: F, fed ε.
        noise: ε, shape (N, C, H, W).
        s, t: neighbours on the time grid, shape (N,).
        start: the time of T, shape ().
        distance: d; None is the squared difference, mean over the pixels.
    """
    schedule = student.schedule
    told, at_s, at_t = torch.cat([t, s]), schedule.at(s), schedule.at(t)
    answers = student(torch.cat([noise, noise]), told, join(condition, condition))
    y_t, y_s = (gain(schedule.at(told), schedule.at(start)) * answers).chunk(2)
    with torch.no_grad():
        target = teacher(at_t.noised(y_t, noise), at_t, condition)
    estimate = (y_s - decay(at_s, at_t) * y_t) / gain(at_s, at_t)
    if distance is None:
        return (estimate - target).square().mean()
    return distance(estimate, target).mean()
