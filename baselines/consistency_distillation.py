"""Consistency distillation (Song et al. 2023, arXiv 2303.01469): every point of a trajectory is mapped to its end.

The paper writes z = x + τ ε, the variance-exploding state, for which τ is the time. For any schedule z = x_t/α_t and
τ = σ_t/α_t, and the teacher's ODE is the same: dz/dτ = (z − x̂)/τ. So one code serves teachers of every schedule.
Everything is computed in x_t, of which z at large τ would lose the digits.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import ComparingSettings, LpipsDistance
from diffusion.distillation.distiller import Distiller, Student, TrainedSettings, student_network
from diffusion.distillation.method import Sampler
from diffusion.distillation.pairs import Pairs
from diffusion.noise import further_noise, noise_generators
from diffusion.runtime.settings import StepCounts
from diffusion.schedule import EdmSchedule, Schedule, per_sample
from diffusion.solvers import ddim_step, heun_step, karras_levels
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun

Solver = Literal["ddim", "heun"]
PixelDistance = Literal["l2", "l1", "pseudo_huber"]
Spacing = Literal["karras", "time"]

_SIGMA_DATA = 0.5  # of pictures in [−1, 1], where the teacher does not come with its own
_PSEUDO_HUBER = 0.00054  # c / √D, Song & Dhariwal 2023 (arXiv 2310.14189), sec. 3.3


class ConsistencySettings(TrainedSettings, ComparingSettings):
    """Settings of consistency distillation.

    Attributes:
        num_inference_steps: step counts to sample with, one network evaluation a step; one student serves them all.
            Published: 1 and 2.
        sampling_levels: the levels, by their index from 0 (the lowest), at which the second and further steps of
            sampling start, decreasing; n steps take the first n − 1. Published: found one after the other by their FID
            on the training data (appendix C). None spreads the steps evenly in the index.
        clip_steps: whether the image after every step but the last is clipped to [−1, 1] before noise is added to it
            (published: yes, in the code).
        num_levels: N, the noise levels of the training grid, both ends included. Published: 18 for CIFAR-10, else 40.
        spacing: of the levels, "karras" (σ/α)^(1/ρ) linear (the paper's), or "time", the schedule's own clock.
        rho: ρ of "karras".
        sigma_max: the grid's largest σ/α, where samples start; the teacher's own where that is smaller. The published
            80 is noise but for 1/80: a schedule whose last levels have far more spends levels on them in vain.
        solver: the teacher's step from one level to the next, "ddim" (Euler in σ/α, one estimate of the teacher) or
            "heun" (the paper's choice, two estimates).
        target_decay: μ of the target network, the moving average of the trained weights that supplies the targets;
            0 is the trained weights themselves. Published: 0 for CIFAR-10, else 0.95.
        distance: "l2" squared, "l1", "lpips" as ``lpips`` says (all three of the paper, which took LPIPS), or
            "pseudo_huber" (Song & Dhariwal 2023).
        lpips: published: images below 256 pixels resized to 224, the backbone "vgg", its pooling "max" for CIFAR-10
            (openai/consistency_models_cifar10) and else "average" (openai/consistency_models).
        training: published: RAdam, a constant rate, no weight decay. The kept result is the average of
            ``training.ema_decay``, as in the paper, which keeps it besides the target network.
    """

    later: ClassVar[tuple[str, ...]] = ("clip_steps", "lpips")

    method: Literal["consistency_distillation"] = "consistency_distillation"
    num_inference_steps: StepCounts = (1, 2, 4)
    sampling_levels: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    clip_steps: bool = False
    num_levels: int = Field(18, ge=2)
    spacing: Spacing = "karras"
    rho: float = Field(7.0, ge=1)
    sigma_max: float = Field(80.0, ge=1)
    solver: Solver = "heun"
    target_decay: float = Field(0.0, ge=0, lt=1)
    distance: PixelDistance | Literal["lpips"] = "l2"
    training: TrainingSettings = TrainingSettings(
        steps=1000, batch_size=128, learning_rate=5e-4, warmup_steps=50, decay="cosine", ema_decay=0.99,
        optimiser="radam",
    )  # fmt: skip

    @model_validator(mode="after")
    def _rho_is_used(self) -> "ConsistencySettings":
        if self.spacing == "time" and self.rho != type(self).model_fields["rho"].default:
            raise ValueError(f"rho: found {self.rho} with spacing 'time'; remove one")
        return self


class ConsistencyDistillation(Distiller):
    """The student's answers at two neighbouring noise levels of one trajectory of the teacher shall agree."""

    name = "consistency_distillation"
    title = "Consistency distillation"
    Settings = ConsistencySettings
    needs_data = True
    TINY = {  # noqa: RUF012
        "num_inference_steps": [1, 3],
        "num_levels": 6,
        "target_decay": 0.5,
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0, "ema_decay": 0.5},
    }

    settings: ConsistencySettings

    def evaluations(self) -> tuple[int, ...]:
        return self.settings.num_inference_steps

    def following(self) -> tuple[int, ...]:
        return tuple(nfe for nfe in self.evaluations() if nfe == 1)  # further steps draw further noise

    def student_for(self, nfe: int) -> int:
        return min(self.evaluations())

    def check(self, teacher: TeacherFacts) -> None:
        settings = self.settings
        most, last = max(settings.num_inference_steps), settings.num_levels - 1
        if most >= settings.num_levels:
            raise ValueError(
                f"num_inference_steps: found {most}, expected fewer than num_levels ({settings.num_levels}), because a "
                f"step starts at one of these levels, and never at the lowest"
            )
        chosen = settings.sampling_levels
        if chosen is not None and (len(chosen) < most - 1 or any(a <= b for a, b in pairwise((last, *chosen)))):
            raise ValueError(
                f"sampling_levels: found {list(chosen)}, expected {most - 1} or more indices of levels, decreasing "
                f"from below {last} (num_levels - 1)"
            )
        settings.check_distance(teacher.channels, teacher.resolution)
        smallest = math.exp(teacher.log_noise_to_signal[0])
        if settings.sigma_max <= smallest:
            raise ValueError(
                f"sigma_max: found {settings.sigma_max}, expected more than the teacher's smallest σ/α ({smallest:.6g})"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Split), "consistency distillation trains on the data set"
        settings = self.settings
        pictures = RealPictures(data, run.device)
        network = student_network(teacher)
        own_target = settings.target_decay > 0
        target_network = copy.deepcopy(network).requires_grad_(False) if own_target else network
        for evaluated in (teacher.network, network, target_network):
            run.count(evaluated)
        student, target = teacher.with_network(network), teacher.with_network(target_network)
        levels = level_times(teacher.schedule, settings).to(run.device)
        distance = settings.perceptual(run.device) or cast(PixelDistance, settings.distance)

        def compute(x: torch.Tensor, noise: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
            t, s = levels[level], levels[level - 1]
            return consistency_loss(student, target, teacher, x, noise, t, s, settings.solver, distance, condition)

        compute = run.compiled(compute, settings.training)

        def loss(step: Step) -> torch.Tensor:
            x, labels = pictures.draw(step.batch_size, step.generator)
            condition = teacher.conditions.of_labels(labels)
            noise = torch.randn(x.shape, generator=step.generator, device=x.device)
            level = torch.randint(1, settings.num_levels, (len(x),), generator=step.generator, device=x.device)
            return compute(x, noise, level, condition)

        def after_step(_step: Step) -> None:
            if own_target:
                move_towards(target_network, network, settings.target_decay)

        trained = run.fit(
            "consistency",
            network,
            loss,
            settings.training,
            real_images=True,
            after_step=after_step,
            beside={"target": target_network} if own_target else None,
        )
        return [Student(min(self.evaluations()), *trained)]

    def save(self, folder: Path, network: nn.Module, teacher: Denoiser) -> None:
        timesteps = teacher.schedule.timestep(level_times(teacher.schedule, self.settings))
        levels: dict[str, Any] = {"timesteps": timesteps.tolist(), "sampling": self.settings.sampling_levels}
        if self.settings.clip_steps:
            levels["clip"] = True
        save_denoiser(folder, teacher.with_network(network), levels=levels)

    def sampler(self, folder: Path, nfe: int, device: torch.device) -> tuple[Sampler, nn.Module]:
        from diffusion.runtime.files import read_json

        student = load_denoiser(folder, device)
        levels = read_json(folder / "model_index.json")["levels"]
        times = step_times(student.schedule, levels["timesteps"], nfe, levels["sampling"])

        def sample(noise: torch.Tensor, condition: Condition = None) -> torch.Tensor:
            return consistency_sample(student, noise, times, condition, levels.get("clip", False))

        return sample, student.network


def level_times(schedule: Schedule, settings: ConsistencySettings) -> torch.Tensor:
    """The times of the N noise levels, increasing from t_min; float64, shape (N,).

    "karras": (τ_1^(1/ρ) + (i − 1)/(N − 1) (τ_N^(1/ρ) − τ_1^(1/ρ)))^ρ of τ = σ/α (Karras et al. 2022, eq. 5; sec. 5 and
    appendix C of the paper). The last level is the last timestep with σ/α ≤ ``sigma_max``; at a timestep, because a
    `diffusers` scheduler knows the schedule exactly only there, and samples start from it.
    """
    low = torch.tensor(schedule.t_min, dtype=torch.float64)
    highest = schedule.timestep(schedule.time_of(torch.tensor(settings.sigma_max, dtype=torch.float64).log()))
    high = schedule.time((highest + 1e-6).floor().clamp(min=1))  # what rounding took from an integer is given back
    share = torch.linspace(0, 1, settings.num_levels, dtype=torch.float64)
    if settings.spacing == "time":
        return torch.lerp(low, high, share)
    first, last = (schedule.log_noise_to_signal(t) for t in (low, high))
    times = schedule.time_of(karras_levels(first, last, share, settings.rho))
    return torch.cat([low[None], times[1:-1], high[None]])


def step_times(
    schedule: Schedule,
    level_timesteps: list[float],
    num_inference_steps: int,
    sampling_levels: Sequence[int] | None = None,
) -> torch.Tensor:
    """The times at which multi-step sampling evaluates the student, decreasing; float64, shape (n,).

    From the last of the N levels on, and then at ``sampling_levels``, or equally spaced in the level's index, towards
    the first, where no step starts. They are whole timesteps, for `diffusers`' sake, see :func:`level_times`.

    Raises:
        ValueError: no step, as many as levels, or more than levels were chosen for.
    """
    last = len(level_timesteps) - 1
    most = last if sampling_levels is None else len(sampling_levels) + 1
    if not 1 <= num_inference_steps <= most:
        raise ValueError(f"num_inference_steps: found {num_inference_steps}, expected 1 to {most}")
    if sampling_levels is None:
        index = [round(last * (1 - step / num_inference_steps)) for step in range(num_inference_steps)]
    else:
        index = [last, *sampling_levels[: num_inference_steps - 1]]
    timesteps = [max(1, round(level_timesteps[i])) for i in index]
    return schedule.time(torch.tensor(timesteps, dtype=torch.float64))


def boundary_coefficients(schedule: Schedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, r) of f = a x_t + r x̂, the consistency function in terms of an estimate x̂; float64, shape of ``t``.

    Published for EDM's networks F (appendix C): f = c_skip z + c_out F with c_skip = σ_d²/((τ − τ_1)² + σ_d²) and
    c_out = σ_d (τ − τ_1)/√(τ² + σ_d²), which makes f(z, τ_1) = z. Their estimate is x̂ = σ_d²/(τ² + σ_d²) z +
    σ_d τ/√(τ² + σ_d²) F, and F put into f gives r = (τ − τ_1)/τ and, with u = τ − τ_1,

        α a = σ_d² τ_1 (τ² + τ u + u² + σ_d²) / (τ (u² + σ_d²) (τ² + σ_d²)).

    The difference of the two skip coefficients is taken out in this form, so it loses no digits at large τ. At first f
    thus is almost the teacher's x̂, whatever the network predicts.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    tau = sigma / alpha
    end = torch.as_tensor(schedule.t_min, dtype=torch.float64, device=t.device)
    least = schedule.sigma(end) / schedule.alpha(end)
    variance = (schedule.sigma_data if isinstance(schedule, EdmSchedule) else _SIGMA_DATA) ** 2
    rest = tau - least
    both = (rest.square() + variance) * (tau.square() + variance)
    skip = variance * least * (tau.square() + tau * rest + rest.square() + variance) / (tau * both)
    return skip / alpha, rest / tau


def consistency_function(
    student: Denoiser, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = None
) -> torch.Tensor:
    """f_θ: the student's answer to where the trajectory through x_t ends, unclipped; f = x_t/α_t at t_min.

    Args:
        x_t: noisy pictures, shape (N, C, H, W).
        t: their times, with a signal left (α_t > 0), shape (N,) or ().
    """
    skip, out = boundary_coefficients(student.schedule, t)
    return per_sample(skip, x_t) * x_t + per_sample(out, x_t) * student.estimate(x_t, t, condition)


@torch.no_grad()
def solver_step(
    teacher: Denoiser, x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor, solver: Solver, condition: Condition = None
) -> torch.Tensor:
    """x_s on the teacher's trajectory through x_t, by one step of its ODE dz/dτ = (z − x̂)/τ = ε̂ (sec. 4, eq. 6).

    "ddim" is Euler's step; "heun" averages ε̂ at both ends.

    Args:
        x_t: shape (N, C, H, W).
        t, s: times with s before t, shape (N,).
    """
    schedule = teacher.schedule
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    estimate = teacher(x_t, t, condition)
    x_s = ddim_step(x_t, estimate, alpha_t, sigma_t, alpha_s, sigma_s)
    if solver == "ddim":
        return x_s
    return heun_step(x_t, estimate, x_s, teacher(x_s, s, condition), alpha_t, sigma_t, alpha_s, sigma_s)


def picture_distance(one: torch.Tensor, other: torch.Tensor, distance: PixelDistance | LpipsDistance) -> torch.Tensor:
    """The distance of two batches of pictures, shape (N, C, H, W); mean over batch and pixels, a scalar.

    "pseudo_huber" is √(‖x − y‖² + c²) − c of a picture of D numbers with c = 0.00054 √D, divided by √D.
    """
    if isinstance(distance, LpipsDistance):
        return distance(one, other).mean()
    if distance == "l1":
        return (one - other).abs().mean()
    if distance == "l2":
        return (one - other).square().mean()
    mean_square = (one - other).square().flatten(1).mean(dim=1)
    return ((mean_square + _PSEUDO_HUBER**2).sqrt() - _PSEUDO_HUBER).mean()


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    x: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    s: torch.Tensor,
    solver: Solver,
    distance: PixelDistance | LpipsDistance,
    condition: Condition = None,
) -> torch.Tensor:
    """d(f_θ(x_t, t), f_θ⁻(x̂_s, s)) with x̂_s one solver step of the teacher from x_t (algorithm 2, weight 1).

    A picture takes one evaluation of the student with gradient, one of the target network, and one ("ddim") or two
    ("heun") estimates of the teacher.

    Args:
        target: the student with the target network's weights.
        x, noise: real pictures and noise, shape (N, C, H, W).
        t, s: times of neighbouring levels, s before t, shape (N,).
    """
    schedule = teacher.schedule
    x_t = per_sample(schedule.alpha(t), x) * x + per_sample(schedule.sigma(t), x) * noise
    with torch.no_grad():
        x_s = solver_step(teacher, x_t, t, s, solver, condition)
        wanted = consistency_function(target, x_s, s, condition)
    return picture_distance(consistency_function(student, x_t, t, condition), wanted, distance)


@torch.no_grad()
def move_towards(target: nn.Module, network: nn.Module, decay: float) -> None:
    """θ⁻ ← μ θ⁻ + (1 − μ) θ with μ = ``decay`` (algorithm 2); buffers are taken over."""
    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(target.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def consistency_sample(
    student: Denoiser, noise: torch.Tensor, times: torch.Tensor, condition: Condition = None, clip: bool = False
) -> torch.Tensor:
    """Multi-step consistency sampling (algorithm 1), one network evaluation a time; unclipped, shape (N, C, H, W).

    The first state is z = τ ε; each further one is z = f + √(τ² − τ_1²) ε', with noises ε' of the sample's own.

    Args:
        noise: ε, shape (N, C, H, W).
        times: decreasing, shape (n,).
        clip: whether f is clipped to [−1, 1] where a further step starts from it.
    """
    schedule = student.schedule
    x_t = per_sample(schedule.sigma(times[0]), noise) * noise
    pictures = consistency_function(student, x_t, times[0], condition)
    if len(times) == 1:
        return pictures
    generators = noise_generators(noise)
    end = torch.tensor(schedule.t_min, dtype=torch.float64)
    least = schedule.sigma(end) / schedule.alpha(end)
    for t in times[1:]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        added = (sigma.square() - (alpha * least).square()).clamp(min=0).sqrt()
        pictures = pictures.clamp(-1, 1) if clip else pictures
        x_t = per_sample(alpha, noise) * pictures + per_sample(added, noise) * further_noise(generators, noise)
        pictures = consistency_function(student, x_t, t, condition)
    return pictures
