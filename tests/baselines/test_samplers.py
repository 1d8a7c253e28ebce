"""The teacher's samplers against closed forms, the papers' formulas and plain loops over `diffusers`' schedulers."""

import itertools
import math

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher, MixtureTeacher, Reads
from tiny import TEACHER, tiny_conditional, tiny_denoiser

from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance
from diffusion.noise import further_noise, initial_noise, noise_generators
from diffusion.samplers import sampling_grid, scheduler_on
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule, FlowSchedule
from diffusion.solvers import ddim_sample, sampling_times
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.folder import save_denoiser
from diffusion.teachers.schedulers import schedule_of
from diffusion.teachers.settings import TeacherSettings
from diffusion.thresholding import NO_THRESHOLD

CPU = torch.device("cpu")
COSINE = CosineSchedule()
NOISE = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
SAMPLERS = [
    ("ddim", {}),
    ("ddim", {"eta": 1.0}),
    ("ddpm", {}),
    ("dpm_solver_pp", {}),
    ("dpm_solver_pp", {"spacing": "log_snr"}),
    ("unipc", {}),
    ("unipc", {"spacing": "karras"}),
    ("heun", {}),
]
SECOND_ORDER = ["dpm_solver_pp", "unipc", "heun"]


def build(name, guidance=None, **settings):
    kind = method_class(name)
    whole = {"sigma_max": 1e9} if name == "heun" else {}  # from t_max on, as all the others
    return kind(kind.Settings.model_validate({"method": name, **whole, **settings}), guidance)


def discrete(kind, count=1000, **options):
    from diffusers import DDIMScheduler

    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(kind, {})
    return schedule_of(DDIMScheduler(num_train_timesteps=count, beta_schedule=kind, **ends, **options))


SCHEDULES = {
    "cosine": COSINE,
    "linear": discrete("linear"),
    "scaled_linear": discrete("scaled_linear"),
    "zero_snr": discrete("scaled_linear", rescale_betas_zero_snr=True),
    "zero_snr_linear": discrete("linear", rescale_betas_zero_snr=True),
    "edm": EdmSchedule(),
    "flow": FlowSchedule(shift=3.0),
}


class Recorder(GaussianTeacher):
    """Keeps what it was asked."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def estimate(self, x_t, t, condition=None):
        self.asked.append((x_t.clone(), self.schedule.at(t).time))
        return super().estimate(x_t, t, condition)


def exact_picture(teacher, noise):
    """The end of the probability-flow ODE's trajectory: (x_t − α_t m) / √(α_t² s² + σ_t²) is constant along it."""
    schedule = teacher.schedule
    t = torch.tensor(schedule.t_max, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    start = (sigma if isinstance(schedule, EdmSchedule) else 1.0) * noise
    return teacher.mean + teacher.scale * (start - alpha * teacher.mean) / math.hypot(alpha * teacher.scale, sigma)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("count", [1, 3, 7, 50, 1000])
def test_the_scheduler_has_our_noise_levels_and_takes_our_steps(kind, count):
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    schedule = SCHEDULES[kind]
    times, ratios = sampling_grid(schedule, count)
    assert (np.diff(ratios.numpy()) < 0).all()
    torch.testing.assert_close(times, sampling_times(schedule, count), rtol=0, atol=0)
    alpha, sigma = schedule.alpha(times).numpy(), schedule.sigma(times).numpy()
    size = np.hypot(alpha, sigma)
    chain = scheduler_on(DDPMScheduler, ratios)
    assert chain.timesteps.tolist() == list(range(count - 1, -1, -1))
    found = chain.alphas_cumprod.flip(0).numpy()
    assert chain.alphas_cumprod.dtype == torch.float64
    np.testing.assert_allclose(np.sqrt(found), alpha / size, rtol=1e-9, atol=2.0**-12)
    np.testing.assert_allclose(np.sqrt(1 - found), sigma / size, rtol=1e-7)
    for multistep in (DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        sigmas = scheduler_on(multistep, ratios, final_sigmas_type="zero").sigmas.numpy()
        assert sigmas[-1] == 0
        finite = alpha > 0
        np.testing.assert_allclose(sigmas[:-1][finite], (sigma / np.where(finite, alpha, 1))[finite], rtol=1e-6)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_spacings_run_from_t_max_to_t_min_as_they_say(kind, spacing):
    schedule = SCHEDULES[kind]
    times, ratios = sampling_grid(schedule, 9, spacing)
    assert float(times[0]) == schedule.t_max
    assert float(times[-1]) == pytest.approx(schedule.t_min, abs=1e-9)
    steps = np.diff(np.log(ratios.numpy()) if spacing == "log_snr" else ratios.numpy() ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    middle = schedule.sigma(times) / schedule.alpha(times)
    np.testing.assert_allclose(middle[1:].numpy(), ratios[1:].numpy(), rtol=1e-6)
    assert sampling_grid(schedule, 1, spacing)[0].tolist() == [schedule.t_max]


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("name", "settings"), SAMPLERS)
def test_one_step_is_the_estimate_at_t_max_whatever_the_sampler(name, settings, kind):
    schedule = SCHEDULES[kind]
    teacher = Recorder(schedule)
    found = build(name, **settings).draw(teacher, NOISE, 1)
    ((x_t, t),) = teacher.asked
    start = 80.0 * NOISE if kind == "edm" else NOISE
    assert float(t) == pytest.approx(schedule.t_max, rel=1e-12)
    assert t.dtype == torch.float64
    torch.testing.assert_close(x_t, start, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, teacher(start, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, ddim_sample(teacher, NOISE, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver_pp", "unipc"])
def test_trailing_samplers_ask_at_the_times_of_the_suite(name):
    for count in (7, 16):  # 7 does not divide 2000: `diffusers` would round the steps
        teacher = Recorder(COSINE)
        build(name).draw(teacher, NOISE, count)
        expected = (np.round(np.arange(count, 0, -1) * (2000 / count)) - 1) * (0.998 / 1999) + 0.001
        np.testing.assert_allclose([float(t) for _, t in teacher.asked], expected, rtol=1e-9)


HIGHEST = math.tan(math.pi / 2 * 0.999)  # σ/α at t_max, 637


@pytest.mark.parametrize(("sigma_max", "high"), [(1e9, HIGHEST), (80.0, 80.0)])
def test_heun_asks_twice_at_every_time_of_karras_grid_but_the_first(sigma_max, high):
    teacher = Recorder(COSINE)
    build("heun", sigma_max=sigma_max).draw(teacher, NOISE, 3)
    levels = [high, math.tan(math.pi / 2 * 0.001)]
    middle = ((levels[0] ** (1 / 7) + levels[1] ** (1 / 7)) / 2) ** 7
    expected = [math.atan(level) * 2 / math.pi for level in (levels[0], middle, middle, levels[1], levels[1])]
    assert [float(t) for _, t in teacher.asked] == pytest.approx(expected, rel=1e-9)


# x/α at the start: from ε where that is the state of t_max, and σ/α times ε elsewhere.
@pytest.mark.parametrize(("sigma_max", "high", "size"), [(1e9, HIGHEST, math.sqrt(1 + HIGHEST**2)), (80.0, 80.0, 80.0)])
def test_heun_by_the_algorithm_of_the_paper(sigma_max, high, size):
    """Karras et al. 2022, algorithm 1, in x/α and σ/α, on three steps."""
    teacher, count = GaussianTeacher(COSINE), 3
    low = math.tan(math.pi / 2 * 0.001)
    levels = [(high ** (1 / 7) + i / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(count)]
    levels.append(0.0)

    def slope(x, level):
        alpha = 1 / math.sqrt(1 + level**2)
        gain = alpha * 0.25 / (alpha**2 * 0.25 + (level * alpha) ** 2)
        return (x - (0.3 + gain * (x * alpha - alpha * 0.3))) / level

    x = NOISE.numpy() * size
    for level, following in itertools.pairwise(levels):
        d = slope(x, level)
        euler = x + (following - level) * d
        x = x + (following - level) * (d + slope(euler, following)) / 2 if following else euler
    found = build("heun", sigma_max=sigma_max).draw(teacher, NOISE, count)
    np.testing.assert_allclose(found.numpy(), x, rtol=1e-4, atol=1e-4)


def hand_levels(count):
    """α, σ and λ = log(α/σ) of the cosine schedule at the trailing steps, t = t_min + timestep (t_max − t_min)/1999."""
    t = 0.001 + (np.arange(count, 0, -1) * (2000 / count) - 1) * (0.998 / 1999)
    alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    return alpha, sigma, np.log(alpha / sigma)


def hand_estimate(x, alpha, sigma, mean=0.3, scale=0.5):
    return mean + alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * (x - alpha * mean)


def test_dpm_solver_pp_by_the_formula_of_the_paper():
    """Lu et al. 2022, algorithm 2: four steps, of which the first and the last are of first order."""
    alpha, sigma, lam = hand_levels(4)
    x, estimates = NOISE.numpy(), []
    for i in range(3):
        estimates.append(hand_estimate(x, alpha[i], sigma[i]))
        h, data = lam[i + 1] - lam[i], estimates[-1]
        if i:
            r = (lam[i] - lam[i - 1]) / h
            data = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * data
    expected = hand_estimate(x, alpha[3], sigma[3])
    found = build("dpm_solver_pp").draw(GaussianTeacher(COSINE), NOISE, 4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    # Two steps have no step of second order.
    torch.testing.assert_close(
        build("dpm_solver_pp").draw(GaussianTeacher(COSINE), NOISE, 2),
        ddim_sample(GaussianTeacher(COSINE), NOISE, 2),
        rtol=1e-5,
        atol=1e-5,
    )


def test_unipc_by_the_formula_of_the_paper():
    """Zhao et al. 2023 with x̂ and B₂, four steps: UniP-1, UniC-1 and UniP-2 weigh their difference with 1/2; UniC-2
    integrates σ_t e^λ x̂(λ) exactly, with the parabola through three estimates."""
    alpha, sigma, lam = hand_levels(4)

    def first_order(x, i, data):
        return sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - np.exp(lam[i] - lam[i + 1])) * data

    x0 = NOISE.numpy()
    m0 = hand_estimate(x0, alpha[0], sigma[0])
    m1 = hand_estimate(first_order(x0, 0, m0), alpha[1], sigma[1])
    x1 = first_order(x0, 0, (m0 + m1) / 2)
    r = (lam[0] - lam[1]) / (lam[2] - lam[1])
    m2 = hand_estimate(first_order(x1, 1, m1 + (m0 - m1) / (2 * r)), alpha[2], sigma[2])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    x2 = sigma[2] / sigma[1] * x1
    for node, weight in zip(nodes, weights, strict=True):
        at = (lam[1] + lam[2]) / 2 + node * (lam[2] - lam[1]) / 2
        parabola = sum(
            m * np.prod([(at - lam[j]) / (lam[i] - lam[j]) for j in range(3) if j != i])
            for i, m in enumerate((m0, m1, m2))
        )
        x2 = x2 + weight * (lam[2] - lam[1]) / 2 * sigma[2] * np.exp(at) * parabola
    r = (lam[1] - lam[2]) / (lam[3] - lam[2])
    expected = hand_estimate(first_order(x2, 2, m2 + (m1 - m2) / (2 * r)), alpha[3], sigma[3])
    found = build("unipc").draw(GaussianTeacher(COSINE), NOISE, 4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "counts", "order"),
    [
        ("ddim", {}, "cosine", (64, 128), (0.95, 1.05)),
        # Steps that are uniform in λ, or nearly so, show the order of the papers: 2 of DPM-Solver++(2M) and of Heun,
        # p + 1 = 3 of UniPC with its corrector.
        ("dpm_solver_pp", {"spacing": "log_snr"}, "cosine", (64, 128), (1.9, 2.2)),
        ("dpm_solver_pp", {"spacing": "karras"}, "cosine", (64, 128), (1.9, 2.2)),
        ("dpm_solver_pp", {}, "edm", (64, 128), (1.9, 2.2)),
        ("unipc", {"spacing": "karras"}, "cosine", (32, 64), (2.8, 3.3)),
        ("unipc", {}, "edm", (32, 64), (2.8, 3.3)),
        ("heun", {}, "cosine", (64, 128), (1.9, 2.2)),
        ("heun", {}, "edm", (64, 128), (1.9, 2.2)),
        # Steps that are uniform in t are long in λ at both ends of the cosine schedule, whatever their number, and
        # approach those orders slowly: with 100 to 200 steps one sees 1.7 and 2.2.
        ("dpm_solver_pp", {}, "cosine", (125, 250), (1.5, 2.0)),
        ("unipc", {}, "cosine", (125, 250), (1.8, 3.0)),
    ],
)
def test_order_of_convergence_to_the_exact_trajectory(name, settings, kind, counts, order):
    teacher = GaussianTeacher(SCHEDULES[kind])
    exact = exact_picture(teacher, NOISE)
    few, many = (float((build(name, **settings).draw(teacher, NOISE, n) - exact).abs().max()) for n in counts)
    assert order[0] < math.log2(few / many) < order[1]


@pytest.mark.parametrize(("name", "settings"), [("ddpm", {}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.5})])
def test_one_stochastic_step_has_the_posteriors_mean_and_variance(name, settings):
    """Ho et al. 2020, eq. 7 (η = 1), and Song et al. 2021, eqs. 12 and 16, for a step from t_max to the middle."""
    eta = settings.get("eta", 1.0)
    teacher = Recorder(COSINE)
    build(name, **settings).draw(teacher, NOISE, 2)
    (_, _), (found, _) = teacher.asked
    alpha, sigma, _ = hand_levels(2)
    bar_t, bar_s = alpha**2
    x_t = NOISE.numpy()
    estimate = hand_estimate(x_t, alpha[0], sigma[0])
    beta = 1 - bar_t / bar_s
    variance = eta**2 * (1 - bar_s) / (1 - bar_t) * beta
    if eta == 1:
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * estimate
        mean += math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t) * x_t
    else:
        mean = alpha[1] * estimate + math.sqrt(1 - bar_s - variance) * (x_t - alpha[0] * estimate) / sigma[0]
    drawn = [torch.randn(1, 2, 2, generator=g, dtype=torch.float64).numpy() for g in noise_generators(NOISE)]
    np.testing.assert_allclose(found.numpy(), mean + math.sqrt(variance) * np.stack(drawn), rtol=1e-9, atol=1e-9)


def test_the_noise_of_a_stochastic_sampler_is_the_suites_own():
    teacher = Recorder(COSINE)
    noise = NOISE.float()
    build("ddpm").draw(teacher, noise, 2)
    alpha, sigma, _ = hand_levels(2)
    (bar_t, bar_s), estimate = alpha**2, hand_estimate(noise.numpy(), alpha[0], sigma[0])
    beta = 1 - bar_t / bar_s
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * estimate
    mean += math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t) * noise.numpy()
    drawn = further_noise(noise_generators(noise), noise).numpy()
    expected = mean + math.sqrt((1 - bar_s) / (1 - bar_t) * beta) * drawn
    np.testing.assert_allclose(teacher.asked[1][0].numpy(), expected, rtol=1e-5, atol=1e-5)


def hand_marginal(schedule, count, eta, mean=0.3, scale=0.5):
    """Mean and deviation of the samples of DDIM with η: x̂ is linear in x_t, so that every step keeps a Gaussian."""
    times = schedule.time(torch.arange(count, 0, -1) * (schedule.num_timesteps / count) - 1)
    alpha, sigma = schedule.alpha(times).numpy(), schedule.sigma(times).numpy()
    bar = np.append(alpha**2 / (alpha**2 + sigma**2), 1.0)
    average, variance = 0.0, 1.0
    for bar_t, bar_s in itertools.pairwise(bar):
        gain = math.sqrt(bar_t) * scale**2 / (bar_t * scale**2 + 1 - bar_t)  # x̂ = mean (1 − gain √ᾱ_t) + gain z_t
        drawn = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
        noise_left = math.sqrt(1 - bar_s - drawn) / math.sqrt(1 - bar_t)
        of_estimate = math.sqrt(bar_s) - noise_left * math.sqrt(bar_t)
        average = of_estimate * (mean * (1 - gain * math.sqrt(bar_t)) + gain * average) + noise_left * average
        variance = (of_estimate * gain + noise_left) ** 2 * variance + drawn
    return average, math.sqrt(variance)


@pytest.mark.parametrize("kind", ["cosine", "edm", "zero_snr"])
@pytest.mark.parametrize(("name", "settings"), [("ddpm", {}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.3})])
def test_many_stochastic_steps_have_the_datas_mean_and_variance(name, settings, kind):
    teacher = GaussianTeacher(SCHEDULES[kind], mean=0.3, scale=0.5)
    noise = initial_noise(0, range(4), (1, 96, 96))
    pictures = build(name, **settings).draw(teacher, noise, 250)
    mean, deviation = hand_marginal(teacher.schedule, 250, settings.get("eta", 1.0))
    assert float(pictures.mean()) == pytest.approx(mean, abs=0.01)
    assert float(pictures.std()) == pytest.approx(deviation, rel=0.015)
    # The limit, of which 250 steps miss a little: mostly the last step, which draws nothing.
    assert mean == pytest.approx(0.3, abs=0.01)
    assert deviation == pytest.approx(0.5, rel=0.04)
    assert hand_marginal(teacher.schedule, 1000, settings.get("eta", 1.0))[1] == pytest.approx(0.5, rel=0.012)
    # They are not where the deterministic sampler ends.
    assert float((pictures - build("ddim").draw(teacher, noise, 250)).std()) > 0.1


@pytest.mark.parametrize("kind", ["cosine", "edm", "zero_snr"])
def test_ddpm_is_ddim_with_the_whole_noise(kind):
    teacher = MixtureTeacher(SCHEDULES[kind])
    one, other = build("ddpm").draw(teacher, NOISE, 9), build("ddim", eta=1).draw(teacher, NOISE, 9)
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


PLAIN = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "zero_snr": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    },
    "cosine": {"trained_betas": COSINE.betas().tolist(), "num_train_timesteps": 2000},
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver_pp", "unipc", "heun"])
def test_a_plain_loop_over_diffusers_scheduler_draws_the_same_pictures(name, prediction_type, kind):
    import diffusers

    if kind == "zero_snr" and (prediction_type == "epsilon" or name == "heun"):
        pytest.skip("no estimate at t_max, or not known to the scheduler")
    options = {**PLAIN[kind], "prediction_type": prediction_type}
    own = {
        "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
        "ddpm": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
        "dpm_solver_pp": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
        "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
        # Only so does its Karras grid reach from the first to the last timestep.
        "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
    }
    class_name, more = own[name]
    scheduler = getattr(diffusers, class_name)(**options, **more)
    scheduler.set_timesteps(10)
    network = tiny_denoiser().network
    noise = initial_noise(0, range(3), (1, 8, 8))
    extra = {}
    if name in ("ddim", "ddpm"):
        extra["generator"] = noise_generators(noise)
    if name == "ddim":
        extra["eta"] = 0.5
    with torch.inference_mode():
        # Heun's scheduler starts from σ ε of x/α, which leaves z = ε / √(1 + 1/σ²); the suite's samplers start from ε.
        x = noise * (scheduler.sigmas[0] ** 2 + 1).sqrt() if name == "heun" else noise
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, **extra).prev_sample
        schedule = SCHEDULES[kind]
        if (name, kind) == ("heun", "cosine"):
            # From betas in float32 `diffusers` has σ at timestep 0 wrong by 0.5 %, which is where Heun's grid ends.
            schedule = DiscreteSchedule(scheduler.alphas_cumprod.double().numpy())
        teacher = Denoiser(network, schedule, prediction_type, NO_THRESHOLD)
        method = build(name, eta=0.5) if name == "ddim" else build(name)
        found = method.draw(teacher, noise, 10)
    size = float(x.abs().max())  # of an untrained network's pictures; epsilon / α at t_max is large
    # DDPM's scheduler has ᾱ = 0, not 2⁻²⁴ as the others, at a terminal signal-to-noise ratio of zero.
    tolerance = 1e-3 if (name, kind) == ("ddpm", "zero_snr") else 2e-4
    torch.testing.assert_close(found / size, x / size, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize(
    ("kind", "prediction_type"),
    [
        (kind, prediction_type)
        for kind in SCHEDULES
        for prediction_type in ((kind,) if kind in ("edm", "flow") else ("epsilon", "v_prediction", "sample"))
        if not (kind.startswith("zero_snr") and prediction_type == "epsilon")
    ],
)
def test_every_prediction_type_and_schedule_converges_to_ddims_picture(name, kind, prediction_type):
    exact = MixtureTeacher(SCHEDULES[kind])
    teacher = Denoiser(Reads(exact, prediction_type), SCHEDULES[kind], prediction_type, NO_THRESHOLD)
    picture = ddim_sample(exact, NOISE, 1000)
    few, many = (float((build(name).draw(teacher, NOISE, n) - picture).square().mean().sqrt()) for n in (8, 250))
    assert many < 0.01
    assert many < few


@pytest.mark.parametrize(("name", "settings"), SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "edm"])
def test_counts_batches_and_bounds_of_a_stored_teacher(name, settings, prediction_type, tmp_path):
    method = build(name, **settings, num_inference_steps=[1, 2, 5])
    save_denoiser(tmp_path / "teacher", tiny_denoiser(prediction_type))
    noise = initial_noise(0, range(3), (1, 8, 8))
    assert method.evaluations() == ((1, 3, 9) if name == "heun" else (1, 2, 5))
    for nfe in method.evaluations():
        sampler, network = method.sampler(tmp_path / "teacher", nfe, CPU)
        evaluated = []
        network.register_forward_pre_hook(lambda _m, inputs, evaluated=evaluated: evaluated.append(len(inputs[0])))
        with torch.inference_mode():
            pictures = sampler(noise, None)
            assert evaluated == [3] * nfe
            assert torch.equal(pictures, sampler(noise, None))
            torch.testing.assert_close(pictures[1:2], sampler(noise[1:2], None), rtol=1e-3, atol=1e-4)
        assert (pictures.dtype, pictures.shape) == (torch.float32, noise.shape)
        # The last state is the bounded estimate; Heun's scheduler adds it to x/α of σ/α = 636 and takes that off again.
        assert float(pictures.abs().max()) <= 1 + 1e-4


@pytest.mark.parametrize(("name", "settings"), SAMPLERS)
def test_guidance_doubles_the_evaluations(name, settings, tmp_path):
    method = build(name, Guidance(2.0), **settings, num_inference_steps=[2])
    save_denoiser(tmp_path / "teacher", tiny_conditional())
    (nfe,) = method.evaluations()
    assert nfe == (6 if name == "heun" else 4)
    sampler, network = method.sampler(tmp_path / "teacher", nfe, CPU)
    evaluated = []
    network.register_forward_pre_hook(lambda _m, inputs: evaluated.append(len(inputs[0])))
    with torch.inference_mode():
        sampler(initial_noise(0, range(3), (1, 8, 8)), {"class_labels": torch.tensor([0, 1, 2])})
    assert sum(evaluated) == 3 * nfe


def test_only_deterministic_samplers_follow_the_teacher():
    follows = {(name, *settings.values()): build(name, **settings).follows_teacher for name, settings in SAMPLERS}
    assert [key for key, value in follows.items() if not value] == [("ddim", 1.0), ("ddpm",)]
    assert build("ddim", eta=0).follows_teacher
    assert not any(build(name).trains for name, _ in SAMPLERS)


def test_settings_and_teachers_that_make_no_sense_are_refused():
    facts = TeacherSettings.model_validate(TEACHER | {"schedule": {"num_timesteps": 100}}).facts((1, 8, 8))
    assert isinstance(facts, TeacherFacts)
    for name in ("ddim", "ddpm", "dpm_solver_pp", "unipc", "heun"):
        with pytest.raises(ValueError, match=r"expected different numbers ≥ 1, found \[4, 4\]"):
            build(name, num_inference_steps=[4, 4])
        build(name, num_inference_steps=[100]).check(facts)
        with pytest.raises(ValueError, match=r"num_inference_steps: found 101, expected at most .*\(100\)"):
            build(name, num_inference_steps=[4, 101]).check(facts)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            build("ddim", eta=eta)
    with pytest.raises(ValueError, match="spacing"):
        build("unipc", spacing="leading")


def test_an_infinite_ratio_is_replaced_by_one_above_the_next():
    bar = np.array([0.9, 0.5, 1e-9, 0.0])
    schedule = DiscreteSchedule(bar)
    _, ratios = sampling_grid(schedule, 4)
    np.testing.assert_allclose(ratios[1:].numpy(), np.sqrt((1 - bar) / np.where(bar, bar, 1))[2::-1], rtol=1e-6)
    assert float(ratios[0]) == pytest.approx(2 * math.sqrt(1e9), rel=1e-6)
    assert sampling_grid(SCHEDULES["zero_snr"], 4)[1][0] == 4096
