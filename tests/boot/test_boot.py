"""The BOOT student and its losses, against hand-made cases and closed forms."""

import copy
from typing import get_args

import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_denoiser

from boot.losses import boot_losses
from boot.signal_ode import Solver, signal_step
from diffusion.level import decay
from diffusion.schedule import CosineSchedule, DiscreteSchedule
from diffusion.student import NoiseStudent

NOISE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))


class Constant(torch.nn.Module):
    """A network whose output is ``slope · timestep``, whatever it is fed."""

    def __init__(self, slope=0.0, value=0.0):
        super().__init__()
        self.slope, self.value = slope, value

    def forward(self, x, timestep, return_dict=False):
        return (torch.zeros_like(x) + self.value + self.slope * timestep.view(-1, 1, 1, 1),)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_an_untrained_student_equals_the_teacher_at_t_max_exactly(prediction_type):
    teacher = tiny_denoiser(prediction_type, clip=False)
    student = NoiseStudent(copy.deepcopy(teacher.network), teacher.schedule, prediction_type)
    t_max = torch.full((6,), teacher.schedule.t_max, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(student(NOISE, t_max), teacher(NOISE, t_max), rtol=0, atol=0)


def test_the_student_is_read_with_the_coefficients_of_t_max_for_every_t():
    schedule = CosineSchedule()
    for t in (0.001, 0.4, 0.999):
        time = torch.tensor(t, dtype=torch.float64)
        read = {
            kind: NoiseStudent(Constant(value=0.7), schedule, kind)(NOISE, time)
            for kind in ("sample", "v_prediction", "epsilon")
        }
        alpha, sigma = 0.0015707956808, 0.99999876630  # cos and sin of 0.999 · 90°
        torch.testing.assert_close(read["sample"], torch.full_like(NOISE, 0.7))
        torch.testing.assert_close(read["v_prediction"], alpha * NOISE - sigma * 0.7)
        torch.testing.assert_close(read["epsilon"], NOISE - sigma * 0.7)


def test_zero_terminal_signal_is_allowed():
    schedule = DiscreteSchedule(torch.tensor([0.99, 0.5, 0.0]).numpy())
    student = NoiseStudent(Constant(value=-0.25), schedule, "v_prediction")
    torch.testing.assert_close(student(NOISE, torch.tensor(schedule.t_max)), torch.full_like(NOISE, 0.25))


def test_the_network_is_fed_pure_noise_and_the_target_time():
    seen = {}

    class Spy(Constant):
        def forward(self, x, timestep, return_dict=False):
            seen.update(x=x, timestep=timestep)
            return super().forward(x, timestep)

    schedule = CosineSchedule()
    student = NoiseStudent(Spy(), schedule, "v_prediction")
    t = torch.linspace(schedule.t_min, schedule.t_max, 6, dtype=torch.float64)
    student(NOISE, t)
    assert seen["x"] is NOISE
    torch.testing.assert_close(seen["timestep"], torch.linspace(0, 1999, 6), rtol=1e-6, atol=1e-3)
    student.sample(NOISE)
    torch.testing.assert_close(seen["timestep"], torch.zeros(6), rtol=0, atol=1e-6)


def test_losses_by_hand():
    # Student g = 0 everywhere, teacher f = 1 everywhere: target y_s = (1−k), so that the weighted bootstrap loss is
    # ((1−k)/(1−k))² = 1 for every step size, and the boundary loss is 1.
    schedule = CosineSchedule()
    student = NoiseStudent(Constant(), schedule, "sample")
    teacher = GaussianTeacher(schedule, mean=1.0, scale=1e-12)
    s = torch.linspace(0.001, 0.9, 6, dtype=torch.float64)
    for delta in (1e-3, 0.04, 0.09):
        for solver in get_args(Solver):
            bootstrap, boundary = boot_losses(student, teacher, NOISE, s, s + delta, 2, solver)
            assert float(bootstrap) == pytest.approx(1.0, rel=1e-4)
            assert float(boundary) == pytest.approx(1.0, rel=1e-5)


def test_bootstrap_loss_with_a_student_that_moves():
    # g(ε, t) = c·timestep, f = 0: residual g(s) − k g(t), divided by 1 − k.
    schedule = CosineSchedule()
    slope = 1e-3
    student = NoiseStudent(Constant(slope), schedule, "sample")
    teacher = GaussianTeacher(schedule, mean=0.0, scale=1e-12)
    s = torch.full((6,), 0.5, dtype=torch.float64)
    t = s + 0.04
    k = float(decay(schedule.at(s), schedule.at(t)).value[0])
    g_s, g_t = slope * 1999 * (0.5 - 0.001) / 0.998, slope * 1999 * (0.54 - 0.001) / 0.998
    bootstrap, _ = boot_losses(student, teacher, NOISE, s, t, 1, "euler")
    assert float(bootstrap) == pytest.approx(((g_s - k * g_t) / (1 - k)) ** 2, rel=1e-4)


def test_targets_carry_no_gradient():
    """The gradient of the loss is that of a regression on a constant target: nothing flows through g(ε, t)."""
    teacher = tiny_denoiser()
    student = NoiseStudent(copy.deepcopy(teacher.network).requires_grad_(True), teacher.schedule, "v_prediction")
    parameter = next(student.parameters())
    s = torch.linspace(0.01, 0.9, 6, dtype=torch.float64)
    t = s + 0.04
    bootstrap, _ = boot_losses(student, teacher, NOISE, s, t, 1, "euler")
    (gradient,) = torch.autograd.grad(bootstrap, parameter)
    with torch.no_grad():
        y_t = student(NOISE, t)
        at_s, at_t = teacher.schedule.at(s), teacher.schedule.at(t)
        target = signal_step(teacher, y_t, NOISE, at_s, at_t, "euler")
    weight = (1 / (1 - decay(at_s, at_t).value)).float().view(-1, 1, 1, 1)
    regression = ((student(NOISE, s) - target) * weight).square().mean()
    (expected,) = torch.autograd.grad(regression, parameter)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("solver", "teacher_evaluations"),
    [("euler", 6 + 2), ("heun", 6 + 2 + 6), ("etd2", 6 + 2 + 6), ("midpoint", 6 + 2 + 6)],
)
def test_evaluations_of_one_step_are_those_of_the_docstring(solver, teacher_evaluations):
    teacher = tiny_denoiser()
    student = NoiseStudent(copy.deepcopy(teacher.network), teacher.schedule, "v_prediction")
    counts = {"teacher": 0, "student": 0}

    def counter(name):
        def hook(_module, inputs):
            counts[name] += len(inputs[0])

        return hook

    teacher.network.register_forward_pre_hook(counter("teacher"))
    student.network.register_forward_pre_hook(counter("student"))
    s = torch.linspace(0.01, 0.9, 6, dtype=torch.float64)
    boot_losses(student, teacher, NOISE, s, s + 0.04, 2, solver)
    assert counts == {"teacher": teacher_evaluations, "student": 6 + 6 + 2}


def test_the_exact_signal_has_a_bootstrap_loss_that_vanishes_with_the_step():
    # The true y_t of the Gaussian teacher is the fixed point: what remains is the solver's error, which falls with
    # the step size, as δ² for Euler (the loss is a square) and faster for Heun.
    schedule = CosineSchedule()
    teacher = GaussianTeacher(schedule)
    noise = NOISE.double()
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)

    class Exact(NoiseStudent):
        def forward(self, noise, t, condition=None):
            return teacher.signal(noise, t_max, t)

    student = Exact(Constant(), schedule, "sample")
    s = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)

    def loss(solver, delta):
        return float(boot_losses(student, teacher, noise, s, s + delta, 1, solver)[0])

    assert loss("euler", 0.02) / loss("euler", 0.01) == pytest.approx(4, rel=0.1)
    assert loss("heun", 0.02) / loss("heun", 0.01) == pytest.approx(16, rel=0.25)
    assert loss("heun", 0.01) < 0.01 * loss("euler", 0.01)
    assert float(boot_losses(student, teacher, noise, s, s + 0.01, 6, "euler")[1]) < 1e-12
