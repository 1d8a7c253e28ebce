"""Consistency distillation against the paper's formulas, computed by hand in its own variables z = x_t/α_t, τ = σ/α."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher, MixtureTeacher, Reads
from test_samplers import SCHEDULES
from tiny import TEACHER, tiny_conditional, tiny_denoiser, tiny_splits

import baselines.consistency_distillation as module
from baselines.consistency_distillation import (
    ConsistencyDistillation,
    ConsistencySettings,
    consistency_loss,
    level_times,
)
from diffusion.consistency import boundary_coefficients, consistency_function
from diffusion.data.kinds import parse_settings
from diffusion.data.store import load_split, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.distillation.distances import LpipsDistance, picture_distance
from diffusion.noise import further_noise, noise_generators
from diffusion.schedule import CosineSchedule, EdmSchedule
from diffusion.solvers import solver_step
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.pipeline import consistency_timesteps
from diffusion.teachers.schedulers import build_scheduler
from diffusion.teachers.settings import TeacherSettings
from diffusion.thresholding import NO_THRESHOLD
from diffusion.training.loop import TrainingRun

CPU = torch.device("cpu")
FAST = ConsistencyDistillation.TINY["training"] | {"optimiser": "adamw"}  # RAdam's first steps are tiny
COSINE = CosineSchedule()
MEAN, SCALE = 0.3, 0.5  # of the Gaussian teacher
NOISE = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
PICTURES = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1


def settings(**given):
    return ConsistencySettings.model_validate(given)


def ratios(schedule, times):
    return (schedule.sigma(times) / schedule.alpha(times)).numpy()


def published(tau, least, data=0.5):
    """(c_skip, c_out) of the paper's appendix C, and those of EDM's own estimate (Karras et al. 2022, table 1)."""
    rest = tau - least
    boundary = data**2 / (rest**2 + data**2), data * rest / np.sqrt(tau**2 + data**2)
    estimate = data**2 / (tau**2 + data**2), data * tau / np.sqrt(tau**2 + data**2)
    return boundary, estimate


def gaussian(z, tau, mean=MEAN, scale=SCALE):
    """E[x | z] for x ~ N(mean, scale²)."""
    return mean + scale**2 / (scale**2 + tau**2) * (z - mean)


def by_hand(z, tau, least, estimate):
    """f by the paper: EDM's F of the estimate, read with the boundary's coefficients."""
    (skip, out), (skip_estimate, out_estimate) = published(tau, least)
    return skip * z + out * (estimate - skip_estimate * z) / out_estimate


class Function(Denoiser):
    """The student whose consistency function is the one given, wherever the coefficient of x̂ is not zero."""

    def __init__(self, schedule, function):
        super().__init__(torch.nn.Identity(), schedule, "sample", NO_THRESHOLD)
        self.function = function

    def estimate(self, x_t, t, condition=None):
        at = self.schedule.at(t)
        skip, out = (coefficient.like(x_t) for coefficient in boundary_coefficients(self.schedule, at))
        return torch.where(out > 0, (self.function(x_t, at.time.expand(len(x_t))) - skip * x_t) / out, 0.0)


def composed(teacher, levels, solver):
    """The end of the trajectory by the teacher's own solver steps, from whichever level each picture is at."""

    def function(x_t, t):
        level = torch.searchsorted(levels, t - 1e-12)
        for at in range(int(level.max()), 0, -1):
            moved = solver_step(teacher, x_t, *map(teacher.schedule.at, (levels[at], levels[at - 1])), solver)
            x_t = torch.where((level >= at).reshape(-1, 1, 1, 1), moved, x_t)
        return x_t / teacher.schedule.alpha(levels[0])

    return function


# -- the parameterisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_smallest_noise_level_the_function_is_the_state_itself(name):
    schedule = SCHEDULES[name]
    end = schedule.at(schedule.t_min)
    student = GaussianTeacher(schedule, mean=1e3)  # whatever the network says
    skip, out = boundary_coefficients(schedule, end)
    assert float(out.value) == 0.0
    assert float(skip.value) == pytest.approx(1 / float(end.alpha.value), rel=1e-14)
    torch.testing.assert_close(consistency_function(student, NOISE, end), NOISE / end.alpha, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_coefficients_are_the_published_ones_after_the_change_of_variable(name):
    """F enters f through x̂ alone: r c_out of EDM's estimate is the paper's c_out, α a + r c_skip its c_skip."""
    schedule = SCHEDULES[name]
    t = torch.linspace(schedule.t_min, schedule.t_max, 41, dtype=torch.float64)[:-1]
    tau, alpha = ratios(schedule, t), schedule.alpha(t).numpy()
    (skip, out), (skip_estimate, out_estimate) = published(tau, tau[0])
    a, r = (found.value.numpy() for found in boundary_coefficients(schedule, schedule.at(t)))
    np.testing.assert_allclose(r * out_estimate, out, rtol=1e-12)
    np.testing.assert_allclose(alpha * a + r * skip_estimate, skip, rtol=1e-12)


def test_the_function_of_an_edm_network_is_the_published_one():
    class Wave(torch.nn.Module):
        def forward(self, fed, told, return_dict=False):
            return (torch.sin(2 * fed + told.reshape(-1, 1, 1, 1)),)

    schedule = EdmSchedule(sigma_data=0.7)
    student = Denoiser(Wave(), schedule, "edm", NO_THRESHOLD)
    t = torch.linspace(0, 1, 16, dtype=torch.float64)
    tau = ((0.002 ** (1 / 7) + t.numpy() * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7).reshape(-1, 1, 1, 1)
    z = PICTURES.numpy() + tau * NOISE.numpy()
    (skip, out), _ = published(tau, 0.002, data=0.7)
    expected = skip * z + out * np.sin(2 * z / np.sqrt(tau**2 + 0.7**2) + np.log(tau) / 4)
    found = consistency_function(student, torch.from_numpy(z), t)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)  # networks answer in float32


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_variance_preserving_teachers_have_the_same_function_of_z_and_tau(kind):
    """An EDM network and one of each other kind that know the same data are one consistency function."""
    t = torch.linspace(0.01, 0.99, 16, dtype=torch.float64)
    tau = torch.tan(t * math.pi / 2)
    x_t = PICTURES * torch.cos(t * math.pi / 2).reshape(-1, 1, 1, 1) + NOISE * torch.sin(t * math.pi / 2).reshape(
        -1, 1, 1, 1
    )
    exploding = EdmSchedule(sigma_min=math.tan(math.pi / 2 * COSINE.t_min), sigma_max=700)
    one = Denoiser(Reads(MixtureTeacher(COSINE), kind), COSINE, kind, NO_THRESHOLD)
    other = Denoiser(Reads(MixtureTeacher(exploding), "edm"), exploding, "edm", NO_THRESHOLD)
    found = consistency_function(one, x_t, t)
    z = x_t / torch.cos(t * math.pi / 2).reshape(-1, 1, 1, 1)
    # float32 outputs, which a noise prediction divides by α ≥ 0.016.
    tolerance = 2e-4 if kind == "epsilon" else 1e-5
    expected = consistency_function(other, z, exploding.time_of(tau.log()))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_no_digits_are_lost_where_almost_no_signal_is_left():
    t = torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64)
    tau = ratios(COSINE, t).reshape(-1, 1, 1, 1)  # up to 637
    x_t, least = NOISE[:3], math.tan(math.pi / 2 * 0.001)
    z = x_t.numpy() / COSINE.alpha(t).numpy().reshape(-1, 1, 1, 1)
    student = GaussianTeacher(COSINE)
    expected = by_hand(z, tau, least, gaussian(z, tau))
    found = consistency_function(student, x_t.float(), t)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    # There the start is the teacher's own estimate.
    torch.testing.assert_close(found[1:], student(x_t.float(), t)[1:], rtol=1e-3, atol=1e-4)


LCM = {
    "boundary": "lcm", "distance": "huber", "spacing": "time", "solver": "ddim", "num_levels": 51, "sigma_max": 1e9
}  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_the_coefficients_of_latent_consistency_models_are_those_of_diffusers(name):
    from diffusers import LCMScheduler

    schedule, scheduler = SCHEDULES[name], LCMScheduler()
    timesteps = torch.arange(schedule.num_timesteps, dtype=torch.float64)
    a, r = (found.value for found in boundary_coefficients(schedule, schedule.at(schedule.time(timesteps)), 1.0, "lcm"))
    expected = torch.tensor([scheduler.get_scalings_for_boundary_condition_discrete(float(t)) for t in timesteps])
    torch.testing.assert_close(torch.stack([a, r], dim=1), expected.double(), rtol=1e-6, atol=1e-9)
    assert (a[0], r[0]) == (1, 0)


def test_a_latent_consistency_model_of_a_flow_is_the_state_itself_at_the_smallest_level():
    """There the network is told more than nothing: 2.994 of 1000 at shift 3."""
    schedule = SCHEDULES["flow"]
    a, r = boundary_coefficients(schedule, schedule.at(schedule.t_min), 1.0, "lcm")
    assert (float(a.value), float(r.value)) == (1, 0)
    a, r = boundary_coefficients(schedule, schedule.at(0.5), 1.0, "lcm")
    scaled = 10 * 1000 * (0.75 - float(schedule.sigma(torch.tensor(schedule.t_min))))
    assert float(a.value) == pytest.approx(0.25 / (scaled**2 + 0.25), rel=1e-9)
    assert float(r.value) == pytest.approx(scaled / math.sqrt(scaled**2 + 0.25), rel=1e-12)


def test_the_loss_of_latent_consistency_models_by_hand():
    schedule = SCHEDULES["scaled_linear"]
    assert level_times(schedule, settings(**LCM)).tolist() == pytest.approx(
        schedule.time(torch.linspace(0, 999, 51)).tolist(), rel=1e-6
    )
    timesteps = torch.linspace(19.98, 999, 16, dtype=torch.float64)
    t, s = schedule.time(timesteps), schedule.time(timesteps - 19.98)
    (alpha, sigma), (alpha_s, sigma_s) = (
        [numbers(times).numpy().reshape(-1, 1, 1, 1) for numbers in (schedule.alpha, schedule.sigma)]
        for times in (t, s)
    )
    x_t = alpha * PICTURES.numpy() + sigma * NOISE.numpy()

    def estimate(x, alpha, sigma, mean, scale):
        return mean + alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * (x - alpha * mean)

    guess = estimate(x_t, alpha, sigma, MEAN, SCALE)
    x_s = alpha_s * guess + sigma_s * (x_t - alpha * guess) / sigma
    scaled = 10 * timesteps.numpy().reshape(-1, 1, 1, 1)

    def function(x, scaled, *about):
        return 0.25 / (scaled**2 + 0.25) * x + scaled / np.sqrt(scaled**2 + 0.25) * estimate(x, *about)

    answer = function(x_t, scaled, alpha, sigma, -0.1, 0.4)
    wanted = function(x_s, scaled - 199.8, alpha_s, sigma_s, 0.2, 0.3)
    expected = (np.sqrt((answer - wanted) ** 2 + 1e-6) - 1e-3).mean()
    student, target = GaussianTeacher(schedule, -0.1, 0.4), GaussianTeacher(schedule, 0.2, 0.3)
    how = GaussianTeacher(schedule), PICTURES, NOISE, t, s, "ddim", "huber", None, "lcm"
    assert float(consistency_loss(student, target, *how)) == pytest.approx(expected, rel=1e-7)


def test_latent_consistency_models_need_timesteps():
    method = ConsistencyDistillation(settings(**LCM))
    method.check(TeacherSettings.model_validate(TEACHER).facts((1, 8, 8)))
    edm = TEACHER | {"prediction_type": "edm", "schedule": {"kind": "edm"}}
    with pytest.raises(ValueError, match="boundary: found 'lcm', expected 'edm'"):
        method.check(TeacherSettings.model_validate(edm).facts((1, 8, 8)))


# -- levels and steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_karras_between_the_schedules_smallest_and_sigma_max(name):
    schedule = SCHEDULES[name]
    times = level_times(schedule, settings(num_levels=12, rho=5))
    tau = ratios(schedule, times)
    assert float(times[0]) == schedule.t_min
    last = float(schedule.timestep(times[-1]))
    assert last == pytest.approx(round(last), abs=1e-9)
    following = schedule.time(torch.tensor(round(last) + 1.0))  # the next timestep has more than 80, or there is none
    assert tau[-1] <= 80 * (1 + 1e-9)
    assert round(last) == schedule.num_timesteps - 1 or ratios(schedule, following) > 80
    roots = tau[0] ** (1 / 5) + np.arange(12) / 11 * (tau[-1] ** (1 / 5) - tau[0] ** (1 / 5))
    np.testing.assert_allclose(tau, roots**5, rtol=1e-7)


def test_levels_in_time_are_equally_spaced():
    times = level_times(COSINE, settings(num_levels=9, spacing="time", sigma_max=1e9))
    np.testing.assert_allclose(times.numpy(), 0.001 + np.arange(9) / 8 * 0.998, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "index"), [(1, [17]), (2, [17, 8]), (4, [17, 13, 8, 4]), (17, list(range(17, 0, -1)))]
)
def test_sampling_steps_are_equally_spaced_in_the_levels(steps, index):
    levels = {"timesteps": [0.0, *(float(7 * i) + 0.3 for i in range(1, 18))], "sampling": None}
    assert consistency_timesteps(levels, steps) == [7 * i for i in index]


@pytest.mark.parametrize("steps", [0, 18])
def test_more_steps_than_levels_have_no_place(steps):
    with pytest.raises(ValueError, match=rf"num_inference_steps: found {steps}, expected 1 to 17"):
        consistency_timesteps({"timesteps": [float(i) for i in range(18)], "sampling": None}, steps)


@pytest.mark.parametrize(("steps", "index"), [(1, [17]), (2, [17, 6]), (3, [17, 6, 2])])
def test_sampling_steps_start_at_the_chosen_levels(steps, index):
    levels = {"timesteps": [float(7 * i) for i in range(18)], "sampling": [6, 2]}
    assert consistency_timesteps(levels, steps) == [7 * i for i in index]


def test_there_are_no_more_steps_than_chosen_levels():
    with pytest.raises(ValueError, match="num_inference_steps: found 4, expected 1 to 3"):
        consistency_timesteps({"timesteps": [float(i) for i in range(18)], "sampling": [6, 2]}, 4)


@pytest.mark.parametrize("chosen", [[9], [9, 9, 4], [4, 9, 3], [17, 9, 3]])
def test_chosen_levels_that_cannot_serve_every_step_are_refused(chosen):
    method = ConsistencyDistillation(settings(num_inference_steps=[1, 4], sampling_levels=chosen))
    with pytest.raises(ValueError, match=r"sampling_levels: found .*, expected 3 or more indices"):
        method.check(TeacherSettings.model_validate(TEACHER).facts((1, 8, 8)))


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [COSINE, EdmSchedule()], ids=["cosine", "edm"])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_loss_by_hand(schedule, solver):
    t, s = (torch.linspace(low, low + 0.6, 16, dtype=torch.float64) for low in (0.3, 0.2))
    tau, tau_s = (ratios(schedule, times).reshape(-1, 1, 1, 1) for times in (t, s))
    least = ratios(schedule, torch.tensor(schedule.t_min))
    z = PICTURES.numpy() + tau * NOISE.numpy()

    def slope(state, level):
        return (state - gaussian(state, level)) / level  # dz/dτ of the teacher's ODE

    euler = z + (tau_s - tau) * slope(z, tau)
    heun = z + (tau_s - tau) * (slope(z, tau) + slope(euler, tau_s)) / 2
    z_s = {"ddim": euler, "heun": heun}[solver]
    answer = by_hand(z, tau, least, gaussian(z, tau, mean=-0.1, scale=0.4))
    wanted = by_hand(z_s, tau_s, least, gaussian(z_s, tau_s, mean=0.2, scale=0.3))
    student, target = GaussianTeacher(schedule, -0.1, 0.4), GaussianTeacher(schedule, 0.2, 0.3)
    found = consistency_loss(student, target, GaussianTeacher(schedule), PICTURES, NOISE, t, s, solver, "l2")
    assert float(found) == pytest.approx(((answer - wanted) ** 2).mean(), rel=1e-8)


class Seen(torch.nn.Module):
    """A perceptual network that keeps what it is given, and answers with the sums of their product."""

    def forward(self, a, b):
        self.pair = a, b
        return (a * b).sum(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize("schedule", [COSINE, EdmSchedule()], ids=["cosine", "edm"])
def test_lpips_compares_the_two_answers_unclipped(schedule):
    t, s = (torch.linspace(low, low + 0.6, 16, dtype=torch.float64) for low in (0.3, 0.2))
    student, target = GaussianTeacher(schedule, -2.1, 0.4), GaussianTeacher(schedule, 0.2, 0.3)
    teacher = GaussianTeacher(schedule)
    at_t, at_s = schedule.at(t), schedule.at(s)
    x_t = at_t.noised(PICTURES, NOISE)
    answer = consistency_function(student, x_t, at_t)
    wanted = consistency_function(target, solver_step(teacher, x_t, at_t, at_s, "heun"), at_s)
    assert float(answer.min()) < -1
    network = Seen()
    distance = LpipsDistance(network)
    found = consistency_loss(student, target, teacher, PICTURES, NOISE, t, s, "heun", distance)
    for one, other in zip(network.pair, (answer, wanted), strict=True):
        torch.testing.assert_close(one, other.expand(-1, 3, -1, -1), rtol=1e-12, atol=1e-12)
    assert float(found) == pytest.approx(3 * float((answer * wanted).sum()) / 16, rel=1e-12)


def test_the_gradient_of_lpips_is_that_of_the_student_alone():
    teacher, level = tiny_denoiser(), torch.tensor([3, 7])
    levels = level_times(teacher.schedule, settings(num_levels=12))
    student = teacher.with_network(copy.deepcopy(teacher.network).requires_grad_(True))
    x, noise = torch.rand(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network = Seen()
    arguments = (x, noise, levels[level], levels[level - 1], "heun", LpipsDistance(network))
    consistency_loss(student, student, teacher, *arguments).backward()
    answer, wanted = network.pair
    assert answer.requires_grad
    assert not wanted.requires_grad
    assert max(float(weight.grad.abs().max()) for weight in student.network.parameters()) > 0


def test_distances_by_hand():
    one = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).reshape(2, 1, 2, 2)
    other = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).reshape(2, 1, 2, 2)
    assert float(picture_distance(one, other, "l2")) == 25 / 8
    assert float(picture_distance(one, other, "l1")) == 7 / 8
    huber = (math.sqrt(9 + 1e-6) - 1e-3 + math.sqrt(16 + 1e-6) - 1e-3) / 8  # six of the numbers are alike
    assert float(picture_distance(one, other, "huber")) == pytest.approx(huber, rel=1e-12)
    c = 0.00054 * math.sqrt(4)  # of pictures of four numbers; the second is at no distance
    assert float(picture_distance(one, other, "pseudo_huber")) == pytest.approx(
        (math.sqrt(25 + c**2) - c) / math.sqrt(4) / 2, rel=1e-12
    )


@pytest.mark.parametrize("schedule", [COSINE, EdmSchedule()], ids=["cosine", "edm"])
@pytest.mark.parametrize("spacing", ["karras", "time"])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_teachers_own_steps_down_to_the_smallest_level_are_the_fixed_point(schedule, spacing, solver):
    teacher = GaussianTeacher(schedule)
    levels = level_times(schedule, settings(num_levels=10, spacing=spacing))
    student = Function(schedule, composed(teacher, levels, solver))
    level = torch.arange(16).remainder(9) + 1
    arguments = (PICTURES, NOISE, levels[level], levels[level - 1], solver, "l2")
    assert float(consistency_loss(student, student, teacher, *arguments)) < 1e-25
    # The trajectory's true end is none for steps of this length.
    exact = Function(schedule, lambda x, t: teacher.state(x, t, levels[0]) / schedule.alpha(levels[0]))
    assert float(consistency_loss(exact, exact, teacher, *arguments)) > 1e-6
    # One step from the noise then is the whole trajectory of the teacher.
    torch.testing.assert_close(
        consistency_function(student, schedule.at(levels[-1]).sigma * NOISE, levels[-1]),
        composed(teacher, levels, solver)(schedule.sigma(levels[-1]) * NOISE, levels[-1].expand(16)),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("name", ["cosine", "linear", "zero_snr", "edm"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_the_fixed_point_tends_to_the_true_consistency_function_at_the_solvers_order(name, solver, order):
    schedule, errors = SCHEDULES[name], []
    for num_levels in (80, 160, 320):
        levels = level_times(schedule, settings(num_levels=num_levels))
        tau = ratios(schedule, levels)
        start = schedule.sigma(levels[-1]) * NOISE
        found = composed(GaussianTeacher(schedule), levels, solver)(start, levels[-1].expand(16)).numpy()
        # dz/dτ = (z − m) τ / (s² + τ²): the deviation from the mean shrinks by √((s² + τ_1²)/(s² + τ_N²)).
        z = start.numpy() / float(schedule.alpha(levels[-1]))
        gain = math.sqrt((SCALE**2 + tau[0] ** 2) / (SCALE**2 + tau[-1] ** 2))
        expected = MEAN + gain * (z - MEAN)
        errors.append(np.abs(found - expected).max())
    measured = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert measured == pytest.approx([order, order], abs=0.12)


@pytest.mark.parametrize(
    ("solver", "expected"), [("ddim", [-0.1348, -0.0694, -0.0351, -0.0089]), ("heun", [0.1098, 0.0218, 0.0049, 0.0003])]
)
def test_how_far_the_fixed_point_is_from_the_true_function_of_an_edm_teacher(solver, expected):
    """At N = 10, 20, 40, 160, the error of the sample a unit of noise; the literals are the products of the solver's
    gains 1 + h τ/(s² + τ²), without any network, less the true gain."""
    schedule, found = EdmSchedule(), []
    teacher = GaussianTeacher(schedule, mean=0.0)
    for num_levels in (10, 20, 40, 160):
        levels = level_times(schedule, settings(num_levels=num_levels))
        end = composed(teacher, levels, solver)(80 * torch.ones(1, 1, 2, 2, dtype=torch.float64), levels[-1:])
        found.append(float(end.mean()) - 80 * math.sqrt((SCALE**2 + 0.002**2) / (SCALE**2 + 80**2)))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "edm", "flow"])
def test_networks_of_every_kind_have_the_loss_of_the_paper(name, kind):
    """Networks that know a point mass at 0.4, read as they mean it: x̂ is that point, and every step is exact."""
    schedule = SCHEDULES[name]
    if kind != name and {kind, name} & {"edm", "flow"}:
        return
    exact = GaussianTeacher(schedule, mean=0.4, scale=1e-6)
    teacher = Denoiser(Reads(exact, kind), schedule, kind, NO_THRESHOLD)
    levels = level_times(schedule, settings(num_levels=12))
    level = torch.arange(16).remainder(11) + 1
    point = torch.full((16, 1, 2, 2), 0.4)
    loss = consistency_loss(
        teacher, teacher, teacher, point, NOISE.float(), levels[level], levels[level - 1], "heun", "l2"
    )
    tau = ratios(schedule, levels)
    z = 0.4 + tau[level].reshape(-1, 1, 1, 1) * NOISE.numpy()
    z_s = 0.4 + tau[level - 1].reshape(-1, 1, 1, 1) * NOISE.numpy()
    answers = [
        by_hand(state, tau[at].reshape(-1, 1, 1, 1), tau[0], 0.4) for state, at in ((z, level), (z_s, level - 1))
    ]
    assert float(loss) == pytest.approx(((answers[0] - answers[1]) ** 2).mean(), rel=1e-3, abs=1e-7)


def test_the_target_is_not_differentiated():
    student, teacher = tiny_denoiser(seed=3), tiny_denoiser()
    network = student.network.requires_grad_(True)
    levels = level_times(student.schedule, settings(num_levels=6))
    level = torch.arange(8).remainder(5) + 1
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for target in (student, student.with_network(copy.deepcopy(network).requires_grad_(False))):
        loss = consistency_loss(student, target, teacher, x, noise, levels[level], levels[level - 1], "ddim", "l2")
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("schedule", [COSINE, EdmSchedule()], ids=["cosine", "edm"])
def test_multi_step_sampling_is_algorithm_1(schedule, clip):
    timesteps = [1950.0, 1200.0, 400.0, 30.0]
    times = schedule.time(torch.tensor(timesteps, dtype=torch.float64))
    tau, least = ratios(schedule, times), float(ratios(schedule, torch.tensor(schedule.t_min)))
    generators = noise_generators(NOISE)
    picture, z = None, tau[0] * NOISE.numpy()
    for i, level in enumerate(tau):
        if i:
            start = np.clip(picture, -1, 1) if clip else picture
            assert np.abs(picture).max() > 1
            z = start + math.sqrt(level**2 - least**2) * further_noise(generators, NOISE).numpy()
        picture = by_hand(z, level, least, gaussian(z, level, mean=1.2))
    kind = "edm" if isinstance(schedule, EdmSchedule) else "sample"
    network = Reads(GaussianTeacher(schedule, mean=1.2), kind)
    network.register_parameter("unused", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    levels = {"timesteps": [0.0, *timesteps[::-1]], "sampling": [3, 2, 1], "clip": clip}
    pipeline = LocalPipeline(network, build_scheduler(Denoiser(network, schedule, kind)), levels=levels)
    pipeline.schedule = schedule
    with torch.no_grad():
        found = pipeline.drawn(NOISE, len(times))
    np.testing.assert_allclose(found.numpy(), picture, rtol=1e-5, atol=1e-5)  # networks answer in float32


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample", "edm", "classes"])
def test_a_stored_student_samples_with_exactly_so_many_evaluations(kind, tmp_path):
    method = ConsistencyDistillation(settings(num_inference_steps=[1, 2, 5], num_levels=8))
    denoiser = tiny_conditional(num_classes=3) if kind == "classes" else tiny_denoiser(kind, seed=2)
    condition = {"class_labels": torch.tensor([0, 1, 2, 1])} if kind == "classes" else None
    method.save(tmp_path / "student", denoiser.network, denoiser)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for nfe in method.evaluations():
        sampler, network = method.sampler(tmp_path / "student", nfe, CPU)
        evaluated = []
        network.register_forward_pre_hook(lambda _m, inputs, evaluated=evaluated: evaluated.append(len(inputs[0])))
        with torch.inference_mode():
            drawn[nfe] = sampler(noise, condition)
            assert evaluated == [4] * nfe
            assert torch.equal(drawn[nfe], sampler(noise, condition))
    assert not torch.allclose(drawn[1], drawn[2], atol=1e-2)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_latent_consistency_model_samples_as_the_scheduler_of_diffusers(kind, tmp_path):
    from diffusers import LCMScheduler

    schedule = SCHEDULES["scaled_linear"]
    denoiser = Denoiser(tiny_denoiser(kind).network, schedule, kind, NO_THRESHOLD)
    method = ConsistencyDistillation(settings(**LCM, num_inference_steps=[1, 2]))
    method.save(tmp_path / "student", denoiser.network, denoiser)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = LCMScheduler(
        trained_betas=schedule.betas().tolist(), prediction_type=kind, clip_sample=False, original_inference_steps=50
    )
    for nfe, timesteps in ((1, [999]), (2, [999, 499])):
        sampler, network = method.sampler(tmp_path / "student", nfe, CPU)
        scheduler.set_timesteps(nfe)
        assert scheduler.timesteps.tolist() == timesteps
        x, generators = noise, noise_generators(noise)
        with torch.inference_mode():
            for number, timestep in enumerate(timesteps):
                output = network(x, torch.tensor(timestep), return_dict=False)[0]
                step = scheduler.step(output, timestep, x, generator=torch.Generator().manual_seed(0))
                if number + 1 < len(timesteps):  # its own noise in place of the scheduler's
                    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                    level = (1 - scheduler.alphas_cumprod[timesteps[number + 1]]).sqrt()
                    x = step.prev_sample + level * (further_noise(generators, noise) - drawn)
            torch.testing.assert_close(sampler(noise, None), step.denoised, rtol=1e-3, atol=1e-3 if nfe == 2 else 1e-4)


def test_a_stored_student_clips_between_steps_if_its_settings_say_so(tmp_path):
    denoiser, drawn = tiny_denoiser(), []
    denoiser.network.conv_out.weight.mul_(10)  # answers beyond ±1
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = {"num_inference_steps": [1, 2], "num_levels": 8, "sampling_levels": [1]}
    for clip in (False, True):
        method = ConsistencyDistillation(settings(**chosen, clip_steps=clip))
        method.save(tmp_path / str(clip), denoiser.network, denoiser)
        with torch.inference_mode():
            drawn.append([method.sampler(tmp_path / str(clip), nfe, CPU)[0](noise, None) for nfe in (1, 2)])
        found = LocalPipeline.from_pretrained(tmp_path / str(clip))(
            latents=noise, num_inference_steps=2, output_type="pt"
        )
        assert torch.equal(found.images, drawn[-1][1])
    assert float(drawn[0][0].abs().max()) > 1
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.allclose(drawn[0][1], drawn[1][1], atol=1e-2)
    assert "clip_steps" not in settings().model_dump()


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    return load_split(tmp_path / "data", "train")


def tiny_method(**given):
    return ConsistencyDistillation(settings(**(ConsistencyDistillation.TINY | given)))


def watched(method, folder, data, monkeypatch, teacher=None):
    """Trains; returns the trained weights and the target network's after each step, the losses' two networks, and the
    pairs of times that were compared."""
    fit, seen, networks, pairs = TrainingRun.fit, [], [], set()

    def watch(run, stage, network, loss, training, after_step=None, beside=None, **rest):
        def after(step):
            after_step(step)
            target = beside["target"] if beside else network
            seen.append([[p.detach().clone() for p in kind.parameters()] for kind in (network, target)])

        return fit(run, stage, network, loss, training, after_step=after, beside=beside, **rest)

    def loss(student, target, *arguments, **keywords):
        networks.append((student.network, target.network))
        _teacher, _x, _noise, t, s = arguments[:5]
        pairs.update(zip(s.tolist(), t.tolist(), strict=True))
        return consistency_loss(student, target, *arguments, **keywords)

    monkeypatch.setattr(TrainingRun, "fit", watch)
    monkeypatch.setattr(module, "consistency_loss", loss)
    with TrainingRun(folder, "key", 0, CPU) as run:
        [student] = method.distil(teacher or tiny_denoiser(), run, data)
    return student, seen, networks, pairs


def test_the_target_network_is_a_moving_average_that_starts_at_the_teacher(tmp_path, data, monkeypatch):
    teacher = tiny_denoiser()
    method = tiny_method(target_decay=0.75, training=FAST)
    _, seen, networks, _ = watched(method, tmp_path / "state", data, monkeypatch, teacher)
    assert len(seen) == 6
    expected = [p.double() for p in teacher.network.parameters()]
    for trained, target in seen:
        expected = [0.75 * e + 0.25 * p.double() for e, p in zip(expected, trained, strict=True)]
        for e, found in zip(expected, target, strict=True):
            torch.testing.assert_close(found.double(), e, rtol=1e-5, atol=1e-7)
    trained, target = seen[-1]
    assert max(float((a - b).abs().max()) for a, b in zip(trained, target, strict=True)) > 1e-3
    assert all(student is not target for student, target in networks)


def test_without_decay_the_target_is_the_trained_network_and_all_levels_are_trained(tmp_path, data, monkeypatch):
    _, seen, networks, pairs = watched(tiny_method(target_decay=0.0), tmp_path / "state", data, monkeypatch)
    assert len(seen) == 6
    assert all(student is target for student, target in networks)
    levels = level_times(tiny_denoiser().schedule, settings(num_levels=6)).tolist()
    assert pairs == set(itertools.pairwise(levels))  # neighbours, none left out


def test_the_kept_result_is_the_average_of_the_training_settings_and_not_the_target(tmp_path, data, monkeypatch):
    student, seen, *_ = watched(tiny_method(target_decay=0.9, training=FAST), tmp_path / "state", data, monkeypatch)
    expected = [p.double() for p in seen[0][0]]  # torch's average starts at the first step's weights
    for trained, _target in seen[1:]:
        expected = [0.5 * e + 0.5 * p.double() for e, p in zip(expected, trained, strict=True)]
    for e, found in zip(expected, student.network.parameters(), strict=True):
        torch.testing.assert_close(found.double(), e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("solver", "passes"), [("ddim", 3), ("heun", 4)])
def test_cost_counts_the_student_the_target_and_the_teacher(tmp_path, data, solver, passes):
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        [student] = tiny_method(solver=solver).distil(tiny_denoiser(), run, data)
    assert student.cost["network_evaluations"] == 6 * 8 * passes
    assert student.cost["real_images_seen"] == 6 * 8


@pytest.mark.parametrize("kind", ["epsilon", "sample", "edm"])
def test_teachers_of_every_kind_are_distilled(kind, tmp_path, data):
    method = tiny_method(distance="pseudo_huber", spacing="time")
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        [student] = method.distil(tiny_denoiser(kind), run, data)
    method.save(tmp_path / "student", student.network, tiny_denoiser(kind))
    sampler, _ = method.sampler(tmp_path / "student", 3, CPU)
    with torch.inference_mode():
        assert torch.isfinite(sampler(torch.randn(4, 1, 8, 8), None)).all()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_one_student_serves_every_number_of_steps():
    method = ConsistencyDistillation(settings(num_inference_steps=[4, 1, 2]))
    assert method.evaluations() == (4, 1, 2)
    assert method.students() == (1,)
    assert method.following() == (1,)


def test_settings_that_make_no_sense_are_refused():
    facts = TeacherSettings.model_validate(TEACHER).facts((1, 8, 8))
    with pytest.raises(ValueError, match=r"num_inference_steps: found 6, expected fewer than num_levels \(6\)"):
        ConsistencyDistillation(settings(num_inference_steps=[6], num_levels=6)).check(facts)
    late = TeacherSettings.model_validate(TEACHER | {"schedule": {"t_min": 0.9}}).facts((1, 8, 8))
    with pytest.raises(
        ValueError, match=r"sigma_max: found 5\.0, expected more than the teacher's smallest .*6\.31375"
    ):
        ConsistencyDistillation(settings(sigma_max=5)).check(late)
    with pytest.raises(ValueError, match="expected different numbers"):
        settings(num_inference_steps=[1, 1])
