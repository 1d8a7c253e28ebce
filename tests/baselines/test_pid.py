"""PID against closed forms, computed in numpy in the paper's own variable x(z, τ), noise included."""

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_denoiser

from baselines.pid import Pid, PidSettings, neighbour, pid_loss, start_time, time_grid
from diffusion.distillation.distances import LpipsDistance
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule
from diffusion.student import NoiseStudent
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.settings import TeacherSettings
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings

CPU = torch.device("cpu")
COSINE, EDM = CosineSchedule(), EdmSchedule()
MEAN, SCALE = 0.3, 0.5  # of the Gaussian teacher's data
NOISE = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
BOTH = pytest.mark.parametrize("schedule", [COSINE, EDM], ids=["cosine", "edm"])


def tau_of(schedule, t):
    """τ = σ/α by the schedules' formulas, shaped to multiply pictures."""
    t = np.asarray(t).reshape(-1, 1, 1, 1)
    if schedule is EDM:
        return (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    return np.tan(np.pi / 2 * t)


def posterior_mean(x, tau):
    return MEAN + SCALE**2 / (SCALE**2 + tau**2) * (x - MEAN)


def trajectory(noise, tau, longest):
    """The exact solution of dx/dτ = (x − D)/τ from x(T) = T ε, for Gaussian data."""
    return MEAN + (longest * noise - MEAN) * np.sqrt((SCALE**2 + tau**2) / (SCALE**2 + longest**2))


class ByFormula:
    """A student: F(ε, t) by a function of numpy arrays."""

    def __init__(self, schedule, function):
        self.schedule, self.function = schedule, function

    def __call__(self, noise, t, condition=None):
        return torch.from_numpy(self.function(noise.numpy(), t.numpy()))


def full(value):
    return torch.full((len(NOISE),), value, dtype=torch.float64)


def end_of(schedule):
    return torch.tensor(schedule.t_max, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_on_the_exact_trajectory_the_residual_vanishes_with_the_first_order_of_the_step(schedule, t):
    longest, tau = tau_of(schedule, schedule.t_max), tau_of(schedule, t)

    def exact(noise, times):
        at = tau_of(schedule, times)
        return (trajectory(noise, at, longest) - at * noise) / (1 - at / longest)

    def residual(h):
        s = schedule.time_of(torch.log(torch.tensor(tau.item() * (1 - h), dtype=torch.float64)))
        loss = pid_loss(
            ByFormula(schedule, exact), GaussianTeacher(schedule), NOISE, full(float(s)), full(t), end_of(schedule)
        )
        return float(loss.sqrt())

    # x'' of the trajectory, for the quotient's leading error τ² h x''/2.
    second = (longest * NOISE.numpy() - MEAN) / np.sqrt(SCALE**2 + longest**2)
    second = second * SCALE**2 / (SCALE**2 + tau**2) ** 1.5
    leading = float(np.sqrt(np.mean((tau**2 * second / 2) ** 2)))
    found = [residual(h) for h in (0.02, 0.01, 0.005)]
    assert found[0] / found[1] == pytest.approx(2, rel=0.03)
    assert found[1] / found[2] == pytest.approx(2, rel=0.02)
    assert found[2] == pytest.approx(0.005 * leading, rel=0.02)


@BOTH
def test_loss_by_the_formula_of_the_paper(schedule):
    def function(noise, t):
        return np.sin(3 * noise + t.reshape(-1, 1, 1, 1)) - 0.2

    # In the middle, at the very start T of the trajectory, and at its end, where the neighbour is above.
    t = np.array([0.5, 0.7, 0.9, 0.2, schedule.t_max, schedule.t_max, schedule.t_min, 0.01])
    s = np.array([0.4, 0.69, 0.8, 0.1, schedule.t_max - 0.05, 0.9, schedule.t_min + 0.01, 0.02])
    noise = NOISE.numpy()
    longest, tau, other = (tau_of(schedule, time) for time in (schedule.t_max, t, s))

    def x(at, time):
        return at / longest * (longest * noise) + (1 - at / longest) * function(noise, time)

    x_t, x_s = x(tau, t), x(other, s)
    residual = x_t - tau * (x_t - x_s) / (tau - other) - posterior_mean(x_t, tau)
    found = pid_loss(
        ByFormula(schedule, function),
        GaussianTeacher(schedule),
        NOISE,
        torch.from_numpy(s),
        torch.from_numpy(t),
        end_of(schedule),
    )
    assert float(found) == pytest.approx(np.mean(residual**2), rel=1e-7)


class Seen(torch.nn.Module):
    """A perceptual network that keeps what it is given, and answers with the sums of their product."""

    def forward(self, a, b):
        self.pair = a, b
        return (a * b).sum(dim=(1, 2, 3), keepdim=True)


@BOTH
def test_lpips_compares_both_sides_of_the_residual(schedule):
    def function(noise, t):
        return np.sin(3 * noise + t.reshape(-1, 1, 1, 1)) - 0.2

    noise, longest = NOISE.numpy(), tau_of(schedule, schedule.t_max)
    tau, other = (tau_of(schedule, np.full(8, time)) for time in (0.5, 0.4))
    x_t, x_s = (
        at * noise + (1 - at / longest) * function(noise, np.full(8, time)) for at, time in ((tau, 0.5), (other, 0.4))
    )
    left, right = x_t - tau * (x_t - x_s) / (tau - other), posterior_mean(x_t, tau)
    network = Seen()
    arguments = (NOISE, full(0.4), full(0.5), end_of(schedule), None, LpipsDistance(network))
    found = pid_loss(ByFormula(schedule, function), GaussianTeacher(schedule), *arguments)
    for one, expected in zip(network.pair, (left, right), strict=True):
        np.testing.assert_allclose(one.numpy(), np.broadcast_to(expected, (8, 3, 2, 2)), rtol=1e-7, atol=1e-9)
    assert float(found) == pytest.approx(3 * (left * right).sum() / 8, rel=1e-7)


@BOTH
def test_gradients_run_through_both_evaluations_and_not_through_the_teacher(schedule):
    # F = a is a straight line in τ, of which the quotient is exact: the residual is a − D, whatever the neighbour.
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    class Constant:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, noise, t, condition=None):
            return a * torch.ones_like(noise)

    arguments = (NOISE, full(0.3), full(0.5), end_of(schedule))
    pid_loss(Constant(), GaussianTeacher(schedule), *arguments).backward()
    longest, tau = tau_of(schedule, schedule.t_max), tau_of(schedule, 0.5)
    x_t = tau * NOISE.numpy() + (1 - tau / longest) * 0.7
    estimate = posterior_mean(x_t, tau)
    assert float(a.grad) == pytest.approx(2 * np.mean(0.7 - estimate), rel=1e-9)
    # So it is with a perceptual distance: here the derivative of a · D by a, summed over three channels.
    a.grad = None
    pid_loss(Constant(), GaussianTeacher(schedule), *arguments, None, LpipsDistance(Seen())).backward()
    assert float(a.grad) == pytest.approx(3 * estimate.sum() / 8, rel=1e-9)


@BOTH
def test_the_grid_takes_equal_steps_of_a_power_of_the_noise_level(schedule):
    times = time_grid(schedule, 250, 7.0)
    high, low = (tau_of(schedule, t).item() for t in (schedule.t_max, schedule.t_min))
    expected = (high ** (1 / 7) + np.arange(250) / 249 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(tau_of(schedule, times.numpy()).ravel(), expected, rtol=1e-8)
    assert (float(times[0]), float(times[-1])) == (schedule.t_max, schedule.t_min)


def test_the_neighbour_is_the_next_lower_level_except_for_the_lowest():
    assert neighbour(torch.arange(5), 5).tolist() == [1, 2, 3, 4, 3]


def zero_terminal_snr():
    angle = np.linspace(0.02, np.pi / 2, 40)
    return DiscreteSchedule(np.append(np.cos(angle[:-1]) ** 2, 0.0))


def test_without_signal_at_the_end_the_trajectory_starts_one_timestep_earlier():
    schedule = zero_terminal_snr()
    assert float(schedule.timestep(start_time(schedule))) == pytest.approx(38)
    times = time_grid(schedule, 20, 7.0)
    assert torch.isfinite(schedule.log_noise_to_signal(times)).all()
    assert (times[1:] < times[:-1]).all()
    assert float(start_time(COSINE)) == COSINE.t_max


def train(folder, teacher, **settings):
    training = TrainingSettings(steps=4, batch_size=8, learning_rate=1e-4)
    with TrainingRun(folder, "key", 0, CPU) as run:
        method = Pid(PidSettings(num_times=10, training=training, **settings))
        return run.log, method.distil(teacher, run, None)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "edm", "zero terminal SNR"])
def test_every_teacher_can_be_distilled(tmp_path, kind):
    teacher = tiny_denoiser(kind if " " not in kind else "v_prediction")
    if " " in kind:
        teacher.schedule = zero_terminal_snr()
    log, (student,) = train(tmp_path / "state", teacher)
    # Three evaluations a noise: the student's two and the teacher's.
    assert student.cost["network_evaluations"] == 4 * 8 * 3
    assert student.cost["real_images_seen"] == 0
    assert all(np.isfinite(row["loss"]) for row in log)
    assert all(torch.isfinite(value).all() for value in student.network.state_dict().values())


def test_the_sample_is_the_signal_at_the_lowest_noise_level(tmp_path):
    teacher = tiny_denoiser("v_prediction")
    teacher.schedule = DiscreteSchedule(np.linspace(0.9, 0.1, 10))  # τ from 1/3 to T = 3
    Pid(PidSettings()).save(tmp_path / "student", teacher.network, teacher)
    sampler, network = Pid(PidSettings()).sampler(tmp_path / "student", 1, CPU)
    noise = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = network(noise, torch.zeros(8), return_dict=False)[0]
        expected = (1 - (1 / 3) / 3) * (0.1**0.5 * noise - 0.9**0.5 * output)
        torch.testing.assert_close(sampler(noise, None), expected, rtol=1e-4, atol=1e-5)


def test_the_networks_own_output_can_be_the_image(tmp_path):
    """F at EDM's c_in(T) T ε, told τ; the sample is (1 − τ_min/T) F."""
    teacher, method = tiny_denoiser("edm"), Pid(PidSettings(output="network"))
    noise = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fed = 80 / (80**2 + 0.5**2) ** 0.5 * noise
        told = torch.full((8,), np.log(0.002) / 4)
        expected = (1 - 0.002 / 80) * teacher.network(fed, told, return_dict=False)[0]
        method.save(tmp_path / "student", teacher.network, teacher)
        sampler, _ = method.sampler(tmp_path / "student", 1, CPU)
        torch.testing.assert_close(sampler(noise, None), expected, rtol=1e-4, atol=1e-5)
        found = LocalPipeline.from_pretrained(tmp_path / "student")(latents=noise, output_type="pt").images
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        Pid(PidSettings()).save(tmp_path / "estimate", teacher.network, teacher)
        other, _ = Pid(PidSettings()).sampler(tmp_path / "estimate", 1, CPU)
        assert not torch.allclose(other(noise, None), expected, atol=1e-2)
    log, (trained,) = train(tmp_path / "state", teacher, output="network")
    _, (estimate,) = train(tmp_path / "other", teacher)
    assert all(np.isfinite(row["loss"]) for row in log)
    weights = [[weight.ravel() for weight in one.network.parameters()] for one in (trained, estimate)]
    assert not torch.equal(*map(torch.cat, weights))
    assert "output" not in PidSettings().model_dump()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_output_that_is_no_image_is_refused(kind):
    facts = TeacherSettings.model_validate({"training": {"steps": 1}, "prediction_type": kind}).facts((1, 8, 8))
    Pid(PidSettings()).check(facts)
    with pytest.raises(ValueError, match=f"output: found 'network' with a teacher of {kind}, expected 'estimate'"):
        Pid(PidSettings(output="network")).check(facts)


@BOTH
def test_an_untrained_student_starts_at_the_teachers_estimate(schedule):
    """F told t_max is x̂ there, and that is all the loss asks for between t_max and a neighbour that is next to it."""
    teacher = tiny_denoiser("edm" if schedule is EDM else "v_prediction", clip=False)
    student = NoiseStudent(teacher.network, teacher.schedule, teacher.prediction_type)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    end = end_of(teacher.schedule)
    with torch.no_grad():
        near = float(pid_loss(student, teacher, noise, (end - 1e-6).expand(4), end.expand(4), end))
        assert near < 1e-6
