"""BOOT's targets for every family of teachers, against trajectories that are known."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from gaussian import GaussianTeacher, MixtureTeacher, Reads
from scipy.integrate import solve_ivp

from boot.losses import boot_losses
from boot.signal_ode import signal_step
from boot.state_student import StateStudent
from boot.trajectory import true_signals
from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule, FlowSchedule
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers.schedulers import alphas_cumprod_of
from diffusion.thresholding import NO_THRESHOLD

NOISE = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def discrete(**settings):
    return DiscreteSchedule(alphas_cumprod_of(DDPMScheduler(num_train_timesteps=1000, **settings)))


SCHEDULES = {
    "cosine": CosineSchedule(),
    "linear": discrete(beta_schedule="linear"),
    "scaled-linear": discrete(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "discrete-cosine": discrete(beta_schedule="squaredcos_cap_v2"),
    "zero-terminal-snr": discrete(beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    "edm": EdmSchedule(),
    "flow": FlowSchedule(),
    "shifted-flow": FlowSchedule(shift=3.0),
}
NO_SIGNAL_AT_THE_START = ("zero-terminal-snr", "flow", "shifted-flow")
CASES = [
    (name, kind)
    for name in SCHEDULES
    for kind in (("edm",) if name == "edm" else ("flow",) if "flow" in name else ("epsilon", "v_prediction", "sample"))
    if (name, kind) != ("zero-terminal-snr", "epsilon")  # no estimate of x at t_max: refused on loading
]


def lambda_uniform_times(schedule, steps, low=0.1):
    """From t_max down; where λ(t_max) is infinite, the first step goes to a large finite one."""
    t_low = schedule.t_min + low * (schedule.t_max - schedule.t_min)
    ends = torch.tensor([schedule.t_max, t_low], dtype=torch.float64)
    highest, lowest = schedule.log_noise_to_signal(ends).tolist()
    first = [schedule.t_max] if np.isinf(highest) else []
    assert bool(first) == (schedule in [SCHEDULES[name] for name in NO_SIGNAL_AT_THE_START])
    grid = torch.linspace(min(highest, 7.0), lowest, steps + 1, dtype=torch.float64)
    return torch.cat([torch.tensor(first, dtype=torch.float64), schedule.time_of(grid)])


def bootstrapped(teacher, noise, times, solver, y=None):
    """y at times[-1] by the target of the bootstrap loss, step by step, from y(t_max) = f(x_M, t_max) or a given y."""
    if y is None:
        y = teacher(teacher.schedule.start(noise), times[0])
    for t, s in itertools.pairwise(times):
        y = signal_step(teacher, y, noise, teacher.schedule.at(s), teacher.schedule.at(t), solver)
    return y


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_inverse_of_lambda(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(schedule.t_min, schedule.t_max, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of(schedule.log_noise_to_signal(t)), t, rtol=0, atol=1e-7)
    beyond = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    assert schedule.time_of(beyond).tolist() == pytest.approx([schedule.t_min, schedule.t_max])


def test_edm_by_hand():
    # Karras et al. 2022: σ from 0.002 to 80 with ρ = 7; half way σ^(1/7) is the mean of both ends.
    schedule = EdmSchedule()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    assert schedule.sigma(t).tolist() == pytest.approx([0.002, middle, 80])
    assert schedule.network_time(t).tolist() == pytest.approx((np.log([0.002, middle, 80]) / 4).tolist())
    assert schedule.alpha(t).tolist() == [1, 1, 1]
    # A constant step of the clock keeps 1 − k within bounds.
    k = schedule.sigma(t[1:] - 0.04) / schedule.sigma(t[1:])
    assert ((1 - k) > 0.1).all()
    # σ = 1, σ_data = 0.5: c_in = 1/√1.25, c_skip = 0.2, c_out = 0.5/√1.25.
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, told, return_dict=False):
            seen.append((x, told))
            return (torch.full_like(x, 3.0),)

    at_one = schedule.time_of(torch.zeros((), dtype=torch.float64))
    x = torch.full((2, 1, 1, 1), 2.0)
    estimate = Denoiser(Spy(), schedule, "edm", NO_THRESHOLD)(x, at_one)
    torch.testing.assert_close(seen[0][0], x / 1.25**0.5)
    torch.testing.assert_close(seen[0][1], torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(estimate, 0.2 * x + 3 * 0.5 / 1.25**0.5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_network_of_every_prediction_type_reads_as_the_exact_teacher(name, kind):
    schedule = SCHEDULES[name]
    exact = GaussianTeacher(schedule)
    teacher = Denoiser(Reads(exact, kind), schedule, kind, NO_THRESHOLD)
    x = NOISE.float()
    for share in (0.02, 0.3, 0.7, 1.0):
        t = torch.tensor(schedule.t_min + share * (schedule.t_max - schedule.t_min), dtype=torch.float64)
        state = schedule.at(t).noised(0.3 * x, x)
        torch.testing.assert_close(teacher(state, t), exact(state, t), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_bootstrapped_target_follows_the_true_signal(name, kind):
    schedule = SCHEDULES[name]
    exact = GaussianTeacher(schedule)
    teacher = Denoiser(Reads(exact, kind), schedule, kind, NO_THRESHOLD)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
    times = lambda_uniform_times(schedule, 128)
    found = bootstrapped(teacher, NOISE.float(), times, "heun")
    torch.testing.assert_close(found, exact.signal(NOISE, t_max, times[-1]).float(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("etd2", 2), ("midpoint", 2)])
def test_the_order_of_convergence_is_the_promised_one(name, solver, order):
    schedule = SCHEDULES[name]
    # Knots of an interpolated schedule do not disturb λ-uniform steps: the teacher sees α and σ, smooth in λ.
    teacher = GaussianTeacher(schedule)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)

    def error(steps):
        times = lambda_uniform_times(schedule, steps)
        truth = teacher.signal(NOISE, t_max, times[-1])
        start = None
        if name in NO_SIGNAL_AT_THE_START:
            # The first step away from a state without signal spans an infinite λ: its error does not fall with the
            # others', and a test of its own looks at it.
            times = times[1:]
            start = teacher.signal(NOISE, t_max, times[0])
        return float((bootstrapped(teacher, NOISE, times, solver, start) - truth).square().mean().sqrt())

    coarse, fine = error(256), error(512)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["heun", "etd2", "midpoint"])
def test_second_order_solvers_are_better_than_euler_where_no_signal_is_left_at_the_start(solver):
    schedule = SCHEDULES["zero-terminal-snr"]
    teacher = GaussianTeacher(schedule)
    times = torch.tensor([schedule.t_max, schedule.t_max - 0.1], dtype=torch.float64)
    assert torch.isinf(schedule.log_noise_to_signal(times[0]))
    truth = teacher.signal(NOISE, times[0], times[1])

    def error(name):
        return float((bootstrapped(teacher, NOISE, times, name) - truth).square().mean().sqrt())

    assert error(solver) < error("euler") / 4


def test_etd2_is_more_accurate_than_heun():
    teacher = GaussianTeacher(CosineSchedule())
    t_max = torch.tensor(teacher.schedule.t_max, dtype=torch.float64)
    times = lambda_uniform_times(teacher.schedule, 64)
    truth = teacher.signal(NOISE, t_max, times[-1])
    heun, etd2 = (float((bootstrapped(teacher, NOISE, times, s) - truth).square().mean()) for s in ("heun", "etd2"))
    assert etd2 < heun


def test_etd2_is_exact_where_the_estimate_is_linear_in_lambda():
    """f = λ: y' = y − λ has the solution y = λ + 1 + c e^λ."""
    schedule = CosineSchedule()

    class Linear(Denoiser):
        def forward(self, x_t, t, condition=None):
            return schedule.at(t).log_noise_to_signal.view(-1, 1, 1, 1).expand(x_t.shape)

    teacher = Linear(torch.nn.Identity(), schedule, "sample")
    for step in (1e-5, 0.01, 0.3):  # the series, its neighbourhood, and the closed form
        t = torch.full((8,), 0.7, dtype=torch.float64)
        s = schedule.time_of(schedule.log_noise_to_signal(t) - step)
        lambda_t, lambda_s = schedule.log_noise_to_signal(t), schedule.log_noise_to_signal(s)
        y_t = (lambda_t + 1 + 2 * torch.exp(lambda_t)).view(-1, 1, 1, 1).expand(NOISE.shape)
        y_s = (lambda_s + 1 + 2 * torch.exp(lambda_s)).view(-1, 1, 1, 1).expand(NOISE.shape)
        found = signal_step(teacher, y_t, NOISE, schedule.at(s), schedule.at(t), "etd2")
        torch.testing.assert_close(found, y_s, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in NO_SIGNAL_AT_THE_START])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("etd2", 2), ("midpoint", 2)])
def test_a_mixture_integrated_to_tolerance(name, solver, order):
    """Two components: an estimate that is not linear in the state, so that the trajectory has no closed form."""
    schedule = SCHEDULES[name]
    teacher = MixtureTeacher(schedule)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64).view(8, 1, 1, 1)
    coarse, fine = (lambda_uniform_times(schedule, steps) for steps in (256, 512))
    lambdas = schedule.log_noise_to_signal(coarse)
    start = teacher(schedule.start(noise), t_max)

    def slope(log_noise_to_signal, y):
        t = schedule.time_of(torch.tensor(log_noise_to_signal, dtype=torch.float64))
        y = torch.from_numpy(y).view_as(noise)
        return (y - teacher(schedule.at(t).noised(y, noise), t)).flatten().numpy()

    reference = solve_ivp(
        slope, (float(lambdas[0]), float(lambdas[-1])), start.flatten().numpy(), rtol=1e-10, atol=1e-12, method="DOP853"
    )
    truth = torch.from_numpy(reference.y[:, -1]).view_as(noise)
    errors = [float((bootstrapped(teacher, noise, t, solver) - truth).square().mean().sqrt()) for t in (coarse, fine)]
    assert errors[1] < 5e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_student_started_from_the_teacher_is_on_the_trajectory_at_t_max(name, kind):
    schedule = SCHEDULES[name]
    exact = GaussianTeacher(schedule)
    student = NoiseStudent(Reads(exact, kind), schedule, kind)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
    at_start = student(NOISE.float(), t_max)
    if kind == "epsilon":  # read as ε − σ_M F = α_M x̂ + (1 − …) ε: finite, and not the teacher's estimate
        assert float(at_start.abs().max()) < 2
    else:
        teacher = Denoiser(student.network, schedule, kind, NO_THRESHOLD)
        torch.testing.assert_close(at_start, teacher(schedule.start(NOISE.float()), t_max), rtol=0, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_goes_where_the_trajectory_leads(name):
    schedule = SCHEDULES[name]
    teacher = GaussianTeacher(schedule)
    times = torch.linspace(schedule.t_max, schedule.t_min, 9, dtype=torch.float64)
    *_, signal = true_signals(teacher, NOISE, times, substeps=64)
    sampled = ddim_sample(teacher, NOISE, min(500, schedule.num_timesteps))
    # A sampler starts in ε, the Signal-ODE in α_M f + σ_M ε: with much signal left at t_max they are not the same.
    left = float(schedule.alpha(times[0])) if schedule.start(NOISE) is NOISE else 0
    torch.testing.assert_close(sampled, signal, rtol=0, atol=0.03 + 2 * left)


@pytest.mark.parametrize(("name", "kind"), [("cosine", NoiseStudent), ("cosine", StateStudent), ("edm", NoiseStudent)])
def test_the_losses_of_the_exact_student_vanish(name, kind):
    schedule = SCHEDULES[name]
    teacher = GaussianTeacher(schedule)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)

    class Exact(kind):
        def forward(self, noise, t, condition=None):
            return teacher.signal(noise, t_max, t)

    s = torch.linspace(0.2, 0.8, 8, dtype=torch.float64)
    student = Exact(torch.nn.Identity(), schedule, "sample")
    bootstrap, boundary = boot_losses(student, teacher, NOISE, s, s + 1e-3, 4)
    assert float(bootstrap) < 1e-6
    assert float(boundary) < 1e-20
