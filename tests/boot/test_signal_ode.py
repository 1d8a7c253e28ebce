"""The Signal-ODE against closed forms."""

import itertools
import math

import pytest
import torch
from gaussian import GaussianTeacher

from boot.signal_ode import signal_step
from boot.trajectory import interpolate_noise, true_signals
from diffusion.level import decay
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_step

SCHEDULE = CosineSchedule()
NOISE = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T_MAX = torch.tensor(SCHEDULE.t_max, dtype=torch.float64)


def test_euler_step_in_the_signal_is_a_ddim_step_in_the_state():
    teacher = GaussianTeacher(SCHEDULE)
    t = torch.linspace(0.05, 0.999, 16, dtype=torch.float64)
    s = t - 0.04
    y_t = torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t = SCHEDULE.at(t).noised(y_t, NOISE)
    estimate = teacher(x_t, t)
    y_s = signal_step(teacher, y_t, NOISE, SCHEDULE.at(s), SCHEDULE.at(t), "euler")
    x_s = ddim_step(x_t, estimate, SCHEDULE.at(t), SCHEDULE.at(s))
    torch.testing.assert_close(SCHEDULE.at(s).noised(y_s, NOISE), x_s, rtol=1e-9, atol=1e-9)


def test_decay_by_hand():
    # λ = log tan(πt/2): from 60° to 30°, k = tan 30° / tan 60° = 1/3.
    k = decay(SCHEDULE.at(1 / 3), SCHEDULE.at(2 / 3))
    assert float(k.value) == pytest.approx(1 / 3, rel=1e-6)


def test_the_sign_of_the_ode():
    # As t falls the signal moves towards the teacher's estimate: dy/dt = −λ'(f − y), λ' > 0.
    teacher = GaussianTeacher(SCHEDULE)
    t = torch.full((16,), 0.5, dtype=torch.float64)
    step = 1e-6
    y = torch.zeros_like(NOISE)
    estimate = teacher(SCHEDULE.at(t).noised(y, NOISE), t)
    y_s = signal_step(teacher, y, NOISE, SCHEDULE.at(t - step), SCHEDULE.at(t), "euler", f_t=estimate)
    slope = math.pi  # λ' = (π/2) / (sin cos) = π at t = 1/2
    torch.testing.assert_close((y - y_s) / step, -slope * (estimate - y), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("solver", "order", "bound"), [("euler", 1, 3e-3), ("heun", 2, 2e-5)])
def test_targets_converge_to_the_true_signal_with_the_promised_order(solver, order, bound):
    teacher = GaussianTeacher(SCHEDULE)
    lowest, highest = SCHEDULE.log_noise_to_signal(torch.tensor([0.1, SCHEDULE.t_max]).double())

    def error(steps):
        ratio = torch.exp(torch.linspace(float(highest), float(lowest), steps + 1, dtype=torch.float64))
        times = torch.arctan(ratio) * (2 / math.pi)
        y = teacher(NOISE, T_MAX)
        for t, s in itertools.pairwise(times):
            y = signal_step(teacher, y, NOISE, teacher.schedule.at(s), teacher.schedule.at(t), solver)
        return float((y - teacher.signal(NOISE, T_MAX, times[-1])).square().mean().sqrt())

    coarse, fine = error(256), error(512)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.08)
    assert fine < bound


def test_true_signal_is_the_closed_form():
    teacher = GaussianTeacher(SCHEDULE)
    times = torch.linspace(SCHEDULE.t_max, SCHEDULE.t_min, 9, dtype=torch.float64)
    found = torch.stack([*true_signals(teacher, NOISE, times, substeps=64)], dim=1)
    expected = torch.stack([teacher.signal(NOISE, T_MAX, t) for t in times], dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)


def test_interpolation_keeps_the_ends_and_the_norm():
    a, b = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    points = torch.stack([interpolate_noise(a, b, torch.full((3,), step / 4)) for step in range(5)], dim=1)
    torch.testing.assert_close(points[:, 0], a)
    torch.testing.assert_close(points[:, -1], b)
    norms = points.flatten(2).norm(dim=2)
    assert (norms > 0.85 * norms[:, :1]).all()
