"""Progressive distillation against closed forms and the paper's formulas."""

import math

import pytest
import torch
from gaussian import GaussianTeacher

from baselines.progressive_distillation import (
    ProgressiveDistillation,
    ProgressiveSettings,
    progressive_loss,
    progressive_target,
)
from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_sample, grid_level
from diffusion.thresholding import NO_THRESHOLD

SCHEDULE = CosineSchedule()
NOISE = torch.randn(32, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Perfect(Denoiser):
    """The student that reproduces its target exactly, at the grid points of its own number of steps."""

    def __init__(self, teacher: Denoiser, num_steps: int) -> None:
        super().__init__(torch.nn.Identity(), teacher.schedule, "sample", NO_THRESHOLD)
        self.teacher, self.num_steps = teacher, num_steps

    def estimate(self, x_t, t, condition=None):
        step = (self.schedule.timestep(self.schedule.at(t).time) + 1) * (self.num_steps / self.schedule.num_timesteps)
        step = step.round().expand(len(x_t))
        return progressive_target(self.teacher, x_t, step, self.num_steps)


def test_perfect_students_of_every_halving_reproduce_the_teachers_16_steps():
    teacher = GaussianTeacher(SCHEDULE)
    expected = ddim_sample(teacher, NOISE, 16)
    source = teacher
    for num_steps in (8, 4, 2, 1):
        source = Perfect(source, num_steps)
        torch.testing.assert_close(ddim_sample(source, NOISE, num_steps), expected, rtol=1e-7, atol=1e-7)


def test_target_by_the_formula_of_the_paper():
    teacher = GaussianTeacher(SCHEDULE)
    num_steps, step = 4, torch.full((32,), 3.0, dtype=torch.float64)
    z_t = NOISE
    target = progressive_target(teacher, z_t, step, num_steps)
    # One DDIM step of the student with x̃ must land where two steps of the teacher land.
    levels = [grid_level(SCHEDULE, step - back, num_steps) for back in (0, 0.5, 1)]
    t, middle, _ = (at.time[0] for at in levels)
    (alpha, sigma), (alpha_m, sigma_m), (alpha_e, sigma_e) = (
        (float(at.alpha.value[0]), float(at.sigma.value[0])) for at in levels
    )

    def move(z, x, a, b, c, d):
        eps = (z - a * x) / b
        return c * x + d * eps

    z = move(z_t, teacher(z_t, t), alpha, sigma, alpha_m, sigma_m)
    z = move(z, teacher(z, middle), alpha_m, sigma_m, alpha_e, sigma_e)
    torch.testing.assert_close(move(z_t, target, alpha, sigma, alpha_e, sigma_e), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        target, (z - (sigma_e / sigma) * z_t) / (alpha_e - (sigma_e / sigma) * alpha), rtol=1e-6, atol=1e-7
    )


def test_target_of_the_last_step_is_the_teachers_estimate():
    teacher = GaussianTeacher(SCHEDULE)
    step = torch.ones(32, dtype=torch.float64)
    for num_steps in (1, 8):
        t, middle = grid_level(SCHEDULE, step, num_steps), grid_level(SCHEDULE, step - 0.5, num_steps)
        ratio = float(middle.sigma.value[0] / t.sigma.value[0])
        z_middle = ratio * NOISE + float(middle.alpha.value[0] - ratio * t.alpha.value[0]) * teacher(NOISE, t)
        torch.testing.assert_close(
            progressive_target(teacher, NOISE, step, num_steps), teacher(z_middle, middle), rtol=1e-9, atol=1e-9
        )


def test_grid_ends():
    at = grid_level(SCHEDULE, torch.tensor([0.0, 8.0]), 8)
    assert (float(at.alpha.value[0]), float(at.sigma.value[0])) == (1.0, 0.0)
    assert float(at.time[1]) == pytest.approx(SCHEDULE.t_max)


def test_loss_weight_is_the_truncated_signal_to_noise_ratio():
    # Student estimate 0, target 1 (point mass at 1): the loss is the mean weight max(α²/σ², 1).
    teacher = GaussianTeacher(SCHEDULE, mean=1.0, scale=1e-12)
    student = GaussianTeacher(SCHEDULE, mean=0.0, scale=1e-12)
    for step in (1, 2, 4):
        steps = torch.full((32,), float(step), dtype=torch.float64)
        t = float(grid_level(SCHEDULE, steps, 4).time[0])
        expected = max(1 / math.tan(math.pi / 2 * t) ** 2, 1)
        loss = progressive_loss(student, teacher, NOISE, NOISE, steps, 4)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_a_perfect_student_is_zero():
    teacher = GaussianTeacher(SCHEDULE)
    step = torch.arange(1, 33).remainder(4).add(1).double()
    assert float(progressive_loss(Perfect(teacher, 4), teacher, NOISE, NOISE.flip(0), step, 4)) < 1e-20


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(16, 1, (8, 4, 2, 1)), (8, 2, (4, 2)), (2, 1, (1,)), (12, 3, (6, 3))]
)
def test_every_halving_is_a_student(start, end, expected):
    settings = ProgressiveSettings(start_steps=start, end_steps=end)
    assert ProgressiveDistillation(settings).evaluations() == expected


@pytest.mark.parametrize(("start", "end"), [(12, 1), (16, 16), (4, 8), (9, 3)])
def test_step_counts_that_cannot_be_halved_are_refused(start, end):
    with pytest.raises(ValueError, match="power of two"):
        ProgressiveSettings(start_steps=start, end_steps=end)
