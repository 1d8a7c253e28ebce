"""Flow matching against closed forms and `diffusers`: x_t = (1 − σ) x + σ ε, F = ε − x."""

import itertools
import math

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher, Reads
from tiny import tiny_denoiser

from boot.signal_ode import signal_step
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.level import decay, gain
from diffusion.schedule import FlowSchedule, ScheduleSettings
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.teachers.settings import TeacherSettings
from diffusion.thresholding import NO_THRESHOLD

SHIFTS = [1.0, 3.0, 6.93]
NOISE = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("shift", SHIFTS)
def test_levels_by_hand(shift):
    schedule, u = FlowSchedule(shift), times(0.1, 0.5, 0.9, 1.0)
    sigma = shift * u / (1 + (shift - 1) * u)  # Esser et al. 2024, eq. 23
    torch.testing.assert_close(schedule.sigma(u), sigma, rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.alpha(u), 1 - sigma, rtol=0, atol=1e-15)
    assert schedule.alpha(u)[-1] == 0  # exactly: there is no signal
    expected = math.log(shift) + torch.log(u[:3] / (1 - u[:3]))
    torch.testing.assert_close(schedule.log_noise_to_signal(u)[:3], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(schedule.network_time(u), 1000 * sigma, rtol=1e-14, atol=0)
    assert float(schedule.network_time(times(schedule.t_min))) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_changes_neither_k_nor_the_weight(shift):
    """k = [u_s/(1 − u_s)] / [u_t/(1 − u_t)]; 1/(1 − k)² = (u_t (1 − u_s)/(u_t − u_s))², which is 1 at t_max."""
    schedule = FlowSchedule(shift)
    s, t = times(0.05, 0.3, 0.55, 0.9), times(0.15, 0.4, 0.65, 1.0)
    at_s, at_t = schedule.at(s), schedule.at(t)
    expected = (s / (1 - s)) / (t / (1 - t))
    expected[-1] = 0
    torch.testing.assert_close(decay(at_s, at_t).value, expected, rtol=0, atol=1e-15)
    weight = gain(at_s, at_t).value ** -2
    torch.testing.assert_close(weight, (t * (1 - s) / (t - s)) ** 2, rtol=1e-12, atol=0)
    assert weight[-1] == 1


def test_the_target_is_the_difference_and_the_loss_its_mean_square():
    teacher = tiny_denoiser("flow", clip=False)
    x, noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    u = times(0.2, 0.4, 0.8, 1.0)
    with torch.no_grad():
        sigma = u.float().reshape(-1, 1, 1, 1)
        output = teacher.network((1 - sigma) * x + sigma * noise, (200 * u).float(), return_dict=False)[0]
        expected = (output - (noise - x)).square().mean()
        torch.testing.assert_close(denoising_loss(teacher, x, noise, u), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
def test_ddim_is_eulers_step_of_the_flow(shift):
    """x_s = x_t + (σ_s − σ_t) F."""
    schedule = FlowSchedule(shift)
    exact = GaussianTeacher(schedule)
    teacher = Denoiser(Reads(exact, "flow").double(), schedule, "flow", NO_THRESHOLD)
    x, steps = NOISE, 5
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for number in range(steps):
        sigma, to = schedule.sigma(u[number]), schedule.sigma(u[number + 1])
        x = x + (to - sigma) * (x - exact(x, u[number])) / sigma
    torch.testing.assert_close(ddim_sample(teacher, NOISE, steps), x, rtol=0, atol=1e-5)  # F is float32


def test_a_student_of_the_teachers_weights_is_its_estimate_at_t_max_exactly():
    teacher = tiny_denoiser("flow", clip=False)
    student = NoiseStudent(teacher.network, teacher.schedule, "flow")
    noise = NOISE[:6].float().repeat(1, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(student(noise, 1.0), teacher(noise, 1.0))
        output = teacher.network(noise, torch.full((6,), 200.0), return_dict=False)[0]
        assert torch.equal(student(noise, 1.0), noise - output)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_signal_of_a_gaussian_teacher_from_pure_noise(shift):
    """256 Heun steps from u = 1, whose first has k = 0, end at the closed form."""
    schedule = FlowSchedule(shift)
    teacher = GaussianTeacher(schedule)
    grid = torch.linspace(1.0, 0.05, 257, dtype=torch.float64)
    y = teacher(NOISE, grid[0])
    for t, s in itertools.pairwise(grid):
        y = signal_step(teacher, y, NOISE, schedule.at(s), schedule.at(t), "heun")
    truth = teacher.signal(NOISE, grid[0], grid[-1])
    assert float((y - truth).square().mean().sqrt()) < 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_diffusers_scheduler_at_our_grid_draws_the_same(tmp_path, shift, steps):
    """It is told the grid: its own shifts twice."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    plain = tiny_denoiser("flow", clip=False)
    schedule = FlowSchedule(shift, 200)
    teacher = Denoiser(plain.network, schedule, "flow", NO_THRESHOLD).eval()
    save_denoiser(tmp_path / "teacher", teacher)
    again = load_denoiser(tmp_path / "teacher")
    assert again.schedule.settings() == schedule.settings()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "teacher", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = noise
        for timestep in scheduler.timesteps:
            output = teacher.network(x, timestep.expand(3), return_dict=False)[0]
            x = scheduler.step(output, timestep, x, return_dict=False)[0]
        torch.testing.assert_close(ddim_sample(again, noise, steps), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    {
        "v with a flow": ({"schedule": {"kind": "flow"}}, "found 'v_prediction' with the flow schedule"),
        "flow without": ({"prediction_type": "flow"}, "found 'flow' with the cosine schedule"),
        "edm with a flow": ({"schedule": {"kind": "flow"}, "prediction_type": "edm"}, "found 'edm' with the flow"),
    }.values(),
)
def test_prediction_types_belong_to_their_schedules(given, message):
    with pytest.raises(ValueError, match=message):
        TeacherSettings.model_validate({"training": {"steps": 1}, **given})


def test_keys_of_other_schedules_are_refused():
    with pytest.raises(ValueError, match="sigma_max: not a key of the flow schedule"):
        ScheduleSettings(kind="flow", sigma_max=20.0)
    with pytest.raises(ValueError, match="shift: not a key of the cosine schedule"):
        ScheduleSettings(shift=3.0)
    assert "shift" not in ScheduleSettings().model_dump()
    built = ScheduleSettings(kind="flow", shift=3.0, num_timesteps=100).build()
    assert built.settings() == {"kind": "flow", "shift": 3.0, "num_timesteps": 100}
