"""Consistency distillation (Song et al. 2023, arXiv 2303.01469): every point of a trajectory is mapped to its end.

The paper writes z = x + τ ε, the variance-exploding state, for which τ is the time. For any schedule z = x_t/α_t and
τ = σ_t/α_t, and the teacher's ODE is the same: dz/dτ = (z − x̂)/τ. So one code serves teachers of every schedule.
Everything is computed in x_t, of which z at large τ would lose the digits.

Latent consistency models (Luo et al. 2023, arXiv 2310.04378) are the same loss with other settings: ``boundary`` "lcm",
``distance`` "huber", ``spacing`` "time", ``solver`` "ddim", and a guidance scale drawn from a range.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from diffusion.conditions import Condition
from diffusion.consistency import Boundary, consistency_function
from diffusion.data.batches import RealPictures
from diffusion.data.store import Split
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import ComparingSettings, LpipsDistance, PixelDistance, picture_distance
from diffusion.distillation.distiller import Distiller, Student, TrainedSettings, real_batch, student_network
from diffusion.distillation.pairs import Pairs
from diffusion.runtime.settings import StepCounts
from diffusion.schedule import Schedule
from diffusion.solvers import Solver, karras_levels, solver_step
from diffusion.teachers.facts import TeacherFacts
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Step
from diffusion.training.trained import own_weights, with_frozen_shared

if TYPE_CHECKING:  # a student is sampled without the loop
    from diffusion.training.loop import TrainingRun

Spacing = Literal["karras", "time"]


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
        distance: "l2" squared, "l1", "lpips" as ``lpips`` says (all three of the paper, which took LPIPS),
            "pseudo_huber" (Song & Dhariwal 2023) of an image, or "huber" of each of its numbers (Luo et al. 2023).
        boundary: what makes f the state itself at the smallest level, "edm" (the paper's) or "lcm" (Luo et al. 2023).
        lpips: published: images below 256 pixels resized to 224, the backbone "vgg", its pooling "max" for CIFAR-10
            (openai/consistency_models_cifar10) and else "average" (openai/consistency_models).
        training: published: RAdam, a constant rate, no weight decay. The kept result is the average of
            ``training.ema_decay``, as in the paper, which keeps it besides the target network.
    """

    later: ClassVar[tuple[str, ...]] = ("clip_steps", "lpips", "boundary")

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
    boundary: Boundary = "edm"
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
    embeds_guidance = True
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
        settings.check_distance(teacher)
        if settings.boundary == "lcm" and teacher.prediction_type == "edm":
            raise ValueError("boundary: found 'lcm', expected 'edm': it counts in timesteps, and the teacher has none")
        smallest = math.exp(teacher.log_noise_to_signal[0])
        if settings.sigma_max <= smallest:
            raise ValueError(
                f"sigma_max: found {settings.sigma_max}, expected more than the teacher's smallest σ/α ({smallest:.6g})"
            )

    def distil(self, teacher: Denoiser, run: "TrainingRun", data: Split | Pairs | None) -> list[Student]:
        assert isinstance(data, Split), "consistency distillation trains on the data set"
        settings, pictures = self.settings, RealPictures(data, run.device)
        network = student_network(teacher, lora=settings.lora)
        own_target = settings.target_decay > 0
        target_network = with_frozen_shared(network).requires_grad_(False) if own_target else network
        for evaluated in (teacher.network, network, target_network):
            run.count(evaluated)
        levels = level_times(teacher.schedule, settings).to(run.device)
        distance = settings.perceptual(run.device) or cast(PixelDistance, settings.distance)
        student, target = teacher.with_network(network), teacher.with_network(target_network)

        def compute(x: torch.Tensor, noise: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
            t, s = levels[level], levels[level - 1]
            how = settings.solver, distance, condition, settings.boundary
            return consistency_loss(student, target, teacher, x, noise, t, s, *how)

        compute = run.compiled(compute, settings.training)

        def loss(step: Step) -> torch.Tensor:
            x, noise, condition = real_batch(pictures, teacher.conditions, step, self.guidance)
            level = torch.randint(1, settings.num_levels, (len(x),), generator=step.generator, device=x.device)
            return compute(x, noise, level, condition)

        def after_step(_step: Step) -> None:
            if own_target:
                move_towards(target_network, network, settings.target_decay)

        beside = {"target": target_network} if own_target else None
        how: dict[str, Any] = {"real_images": True, "after_step": after_step, "beside": beside}
        return [Student(min(self.evaluations()), *run.fit("consistency", network, loss, settings.training, **how))]

    def facts(self, teacher: Denoiser) -> dict[str, Any]:
        timesteps = teacher.schedule.timestep(level_times(teacher.schedule, self.settings))
        levels: dict[str, Any] = {"timesteps": timesteps.tolist(), "sampling": self.settings.sampling_levels}
        if self.settings.clip_steps:
            levels["clip"] = True
        if self.settings.boundary != "edm":
            levels["boundary"] = self.settings.boundary
        return {"levels": levels}


def level_times(schedule: Schedule, settings: ConsistencySettings) -> torch.Tensor:
    """The times of the N noise levels, increasing from t_min; float64, shape (N,).

    "karras": (τ_1^(1/ρ) + (i − 1)/(N − 1) (τ_N^(1/ρ) − τ_1^(1/ρ)))^ρ of τ = σ/α (Karras et al. 2022, eq. 5; sec. 5 and
    appendix C of the paper). The last level is the last timestep with σ/α ≤ ``sigma_max``; at a timestep, because a
    `diffusers` scheduler knows the schedule exactly only there, and samples start from it.
    """
    low = schedule.at(schedule.t_min).time
    highest = schedule.timestep(schedule.time_of(torch.tensor(settings.sigma_max, dtype=torch.float64).log()))
    high = schedule.time((highest + 1e-6).floor().clamp(min=1))  # what rounding took from an integer is given back
    share = torch.linspace(0, 1, settings.num_levels, dtype=torch.float64)
    if settings.spacing == "time":
        return torch.lerp(low, high, share)
    first, last = (schedule.log_noise_to_signal(t) for t in (low, high))
    times = schedule.time_of(karras_levels(first, last, share, settings.rho))
    return torch.cat([low[None], times[1:-1], high[None]])


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
    boundary: Boundary = "edm",
) -> torch.Tensor:
    """d(f_θ(x_t, t), f_θ⁻(x̂_s, s)) with x̂_s one solver step of the teacher from x_t (algorithm 2, weight 1).

    A picture takes one evaluation of the student with gradient, one of the target network, and one ("ddim") or two
    ("heun") estimates of the teacher.

    Args:
        target: the student with the target network's weights.
        x, noise: real pictures and noise, shape (N, C, H, W).
        t, s: times of neighbouring levels, s before t, shape (N,).
    """
    at_t, at_s = teacher.schedule.at(t), teacher.schedule.at(s)
    x_t = at_t.noised(x, noise)
    with torch.no_grad():
        x_s = solver_step(teacher, x_t, at_t, at_s, solver, condition)
        wanted = consistency_function(target, x_s, at_s, condition, boundary)
    return picture_distance(consistency_function(student, x_t, at_t, condition, boundary), wanted, distance)


@torch.no_grad()
def move_towards(target: nn.Module, network: nn.Module, decay: float) -> None:
    """θ⁻ ← μ θ⁻ + (1 − μ) θ with μ = ``decay`` (algorithm 2); buffers are taken over."""
    torch._foreach_lerp_(*own_weights(target, network), 1 - decay)
    for kept, current in zip(target.buffers(), network.buffers(), strict=True):
        kept.copy_(current)
