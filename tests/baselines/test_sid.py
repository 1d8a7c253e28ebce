"""SiD against the paper's formula and against Gaussians, for which both scores and the gradients are closed forms."""

import copy
import math

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_conditional, tiny_denoiser

from baselines.sid import Sid, SidSettings, grid_levels, sid_loss, start_time
from diffusion.denoiser import denoising_loss
from diffusion.distillation.distiller import student_network
from diffusion.guidance import Guidance, guided
from diffusion.runtime.errors import NonFiniteError
from diffusion.runtime.files import read_json
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule
from diffusion.student import NoiseStudent
from diffusion.teachers.folder import load_denoiser
from diffusion.times import lognormal_levels
from diffusion.training.loop import TrainingRun

CPU = torch.device("cpu")
SCHEDULES = [CosineSchedule(num_timesteps=200), EdmSchedule(num_timesteps=200)]
MEAN, SCALE = 0.3, 0.5  # of the data


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times_of(schedule, levels):
    """Times at the noise levels σ/α."""
    return schedule.time_of(torch.tensor(levels, dtype=torch.float64).log())


def coefficients(schedule, levels):
    """α_t and σ_t at the noise levels σ/α, from the definitions of the two schedules; float64 arrays."""
    levels = np.asarray(levels, dtype=np.float64)
    alpha = np.ones_like(levels) if isinstance(schedule, EdmSchedule) else 1 / np.sqrt(1 + levels**2)
    return alpha, alpha * levels


def gain(alpha, sigma, scale):
    """∂E[x | x_t] / ∂x_t for x ~ N(mean, scale²)."""
    return alpha * scale**2 / (alpha**2 * scale**2 + sigma**2)


def build(guidance=None, training=None, **settings):
    training = {"steps": 3, "batch_size": 4, "learning_rate": 1e-4} | (training or {})
    return Sid(SidSettings.model_validate({"method": "sid", "training": training, **settings}), guidance)


class Watched(TrainingRun):
    """A run that lets the test see what is trained beside the generator, and may stop at a step."""

    stop_at, look = None, None

    def fit(self, stage, network, *arguments, beside=None, **keywords):
        self.beside = beside
        if self.look is not None:
            self.look(generator=network, fake=beside["fake"])
        return super().fit(stage, network, *arguments, beside=beside, **keywords)

    def generator(self, stage, step, number=0):
        if step == self.stop_at:
            raise KeyboardInterrupt
        return super().generator(stage, step, number)


def distil(method, teacher, folder, seconds=1e9, **changes):
    with Watched(folder, "key", 0, CPU, checkpoint_seconds=seconds) as run:
        for name, value in changes.items():
            setattr(run, name, value)
        return method.distil(teacher, run, None), run


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_is_the_formula_of_the_paper(schedule, alpha):
    # Eq. 23: (1 − α) ‖f_φ − f_ψ‖² + (f_φ − f_ψ)ᵀ (f_ψ − x_g), over the picture's mean |x_g − f_φ|.
    generated, noise = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    levels = [0.05, 0.8, 6.0]
    teacher, fake = GaussianTeacher(schedule, MEAN, SCALE), GaussianTeacher(schedule, -0.4, 0.9)
    loss = sid_loss(generated, teacher, fake, noise, times_of(schedule, levels), alpha)

    a, s = (value.reshape(3, 1, 1, 1) for value in coefficients(schedule, levels))
    x_g = generated.numpy()
    x_t = a * x_g + s * noise.numpy()
    real = MEAN + gain(a, s, SCALE) * (x_t - a * MEAN)
    faked = -0.4 + gain(a, s, 0.9) * (x_t + a * 0.4)
    total = 0.0
    for picture in range(3):
        f, g, x = (values[picture].ravel() for values in (real, faked, x_g))
        weight = f.size / np.abs(x - f).sum()
        total += weight * ((1 - alpha) * ((f - g) @ (f - g)) + (f - g) @ (g - x)) / f.size
    assert float(loss) == pytest.approx(total / 3, rel=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_and_gradient_vanish_where_the_generator_has_the_datas_distribution(schedule):
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    stretch = torch.ones((), dtype=torch.float64, requires_grad=True)
    generated = MEAN + shift + stretch * SCALE * normal(6, 1, 4, 4)
    exact = GaussianTeacher(schedule, MEAN, SCALE)
    t = times_of(schedule, np.geomspace(0.01, 20, 6))
    loss = sid_loss(generated, exact, copy.deepcopy(exact), normal(6, 1, 4, 4, seed=1), t, 1.2)
    assert loss.item() == 0
    assert [float(g) for g in torch.autograd.grad(loss, [shift, stretch])] == [0, 0]


@pytest.mark.parametrize("alpha", [1.0, 1.2])
@pytest.mark.parametrize("shift", [0.4, -0.4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradient_in_the_generators_mean_leads_to_the_datas_mean(schedule, shift, alpha):
    # Generator N(m + δ, s²) with its exact fake score: f_φ − f_ψ = −δ c with c = 1 − α_t g, whatever x_t is, and
    # ∂(f_ψ − x_g)/∂mean = −c with ψ frozen: each pixel's gradient is δ c² / |x_g − f_φ|, for every α of the paper.
    levels = np.geomspace(0.05, 20, 5)
    mean = torch.tensor(MEAN + shift, dtype=torch.float64, requires_grad=True)
    generated, noise = mean + SCALE * normal(5, 1, 1, 1), normal(5, 1, 1, 1, seed=1)
    teacher, fake = GaussianTeacher(schedule, MEAN, SCALE), GaussianTeacher(schedule, MEAN + shift, SCALE)
    loss = sid_loss(generated, teacher, fake, noise, times_of(schedule, levels), alpha)

    a, s = coefficients(schedule, levels)
    x_g = generated.detach().numpy().ravel()
    g = gain(a, s, SCALE)
    real = MEAN + g * (a * x_g + s * noise.numpy().ravel() - a * MEAN)
    expected = np.mean(shift * (1 - a * g) ** 2 / np.abs(x_g - real))
    (gradient,) = torch.autograd.grad(loss, mean)
    assert float(gradient) == pytest.approx(expected, rel=1e-6)
    assert math.copysign(1, gradient) == math.copysign(1, shift)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("scale", [0.35, 0.65])
def test_expected_gradient_in_the_generators_deviation_leads_to_the_datas(scale, alpha):
    # x_g = τ ε, data N(0, s²), k = g_φ − g_ψ, V = α_t² τ² + σ²: E (f_φ − f_ψ)(f_φ − x_g − α (f_φ − f_ψ))
    # = k [(g_φ − α k) V − α_t τ²] with ψ frozen, so its derivative in τ is −2 α_t τ k [1 − α_t g_φ + α α_t k].
    # In pictures of many pixels the weight is the constant 1 / E|x_g − f_φ|, of a normal variable.
    schedule, level, count = SCHEDULES[0], 0.7, 512
    tau = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    shape = (4, 1, count, count)
    teacher, fake = GaussianTeacher(schedule, 0.0, SCALE), GaussianTeacher(schedule, 0.0, scale)
    t = times_of(schedule, [level] * 4)
    loss = sid_loss(tau * normal(*shape), teacher, fake, normal(*shape, seed=1), t, alpha)

    a, s = (float(value) for value in coefficients(schedule, level))
    g_real, g_fake = gain(a, s, SCALE), gain(a, s, scale)
    k = g_real - g_fake
    error = math.sqrt((1 - g_real * a) ** 2 * scale**2 + g_real**2 * s**2) * math.sqrt(2 / math.pi)
    expected = -2 * a * scale * k * (1 - a * g_real + alpha * a * k) / error
    value = (k * ((g_real - alpha * k) * (a**2 * scale**2 + s**2) - a * scale**2)) / error
    (gradient,) = torch.autograd.grad(loss, tau)
    assert float(gradient) == pytest.approx(expected, rel=0.02)
    assert float(loss.detach()) == pytest.approx(value, rel=0.02, abs=2e-4)  # at α = 1 it is zero
    assert math.copysign(1, gradient) == math.copysign(1, scale - SCALE)


def test_levels_are_those_of_the_paper():
    drawn = grid_levels(20000, torch.Generator().manual_seed(0), 0.8).exp()
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    # Even in σ^(1/7), from the smallest level to 0.8 of the way to the largest.
    share = ((drawn ** (1 / 7) - low) / (high - low)).sort().values
    assert float(share[0]) == pytest.approx(0, abs=1e-3)
    assert float(share[-1]) == pytest.approx(0.8, abs=1e-3)
    torch.testing.assert_close(share, torch.linspace(0, 0.8, 20000, dtype=torch.float64), rtol=0, atol=0.02)
    assert float(drawn.max()) == pytest.approx(24.4, abs=0.1)
    drawn = lognormal_levels(20000, torch.Generator().manual_seed(0))
    assert (float(drawn.mean()), float(drawn.std())) == pytest.approx((-1.2, 1.2), abs=0.03)


def test_the_start_is_the_nearest_timestep_and_is_stored(tmp_path):
    for prediction_type in ("v_prediction", "epsilon", "sample", "edm"):
        teacher = tiny_denoiser(prediction_type)
        schedule = teacher.schedule
        # σ/α = tan(πt/2), or EDM's own clock.
        exact = (2.5 ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
        exact = exact if prediction_type == "edm" else math.atan(2.5) * 2 / math.pi
        timestep = round((exact - schedule.t_min) / (schedule.t_max - schedule.t_min) * 199)
        assert start_time(schedule, 2.5) == pytest.approx(float(schedule.time(torch.tensor(timestep))), abs=1e-12)
        folder = tmp_path / prediction_type
        build().save(folder, teacher.network, teacher)
        index = read_json(folder / "model_index.json")
        assert (index["told_timestep"], index["read_timestep"]) == (timestep, timestep)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample", "edm"])
def test_the_generator_starts_as_the_teachers_estimate_of_noise_at_the_start(prediction_type, tmp_path):
    teacher = tiny_denoiser(prediction_type, clip=False)
    build().save(tmp_path, teacher.network, teacher)
    sampler, _network = build().sampler(tmp_path, 1, CPU)
    noise = normal(5, 1, 8, 8).float()
    t = torch.tensor(start_time(teacher.schedule, 2.5), dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(sampler(noise), teacher(float(teacher.schedule.sigma(t)) * noise, t))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "edm"])
def test_every_prediction_type_trains_and_moves_both_networks(prediction_type, tmp_path):
    teacher = tiny_denoiser(prediction_type)
    [student], run = distil(build(), teacher, tmp_path)
    for network in (student.network, run.beside["fake"]):
        pairs = zip(network.parameters(), teacher.network.parameters(), strict=True)
        assert sum(float((one - other).square().sum()) for one, other in pairs) > 0
        assert all(torch.isfinite(weights).all() for weights in network.parameters())


@pytest.mark.parametrize("updates", [1, 3])
def test_evaluations_are_two_a_fake_update_and_three_a_generator_update(updates, tmp_path):
    method, teacher = build(fake_updates=updates), tiny_denoiser()
    [student], _run = distil(method, teacher, tmp_path / "plain")
    assert student.cost["network_evaluations"] == 3 * 4 * (2 * updates + 3)
    assert student.cost["real_images_seen"] == 0
    guidance = Guidance(2.0)
    method = build(guidance, fake_updates=updates)
    [student], _run = distil(method, guided(tiny_conditional(), guidance), tmp_path / "guided")
    assert student.cost["network_evaluations"] == 3 * 4 * (2 * updates + 4)


IN_TURN = {
    "fake_updates": 2,
    "training": {"steps": 4, "batch_size": 6, "gradient_accumulation_steps": 3, "ema_decay": 0.5},
}


@pytest.fixture
def float64():
    """Networks and draws in it: Adam's first step is the gradient's sign, that of rounding errors included."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_micro_batches_are_one_batch_of_their_draws(tmp_path):
    """By hand, in one batch: two updates of the fake score, then one of the generator, each with the mean gradient."""
    teacher, betas = tiny_denoiser(), (0.5, 0.9)
    training = IN_TURN["training"] | {"steps": 2, "learning_rate": 1e-3, "betas": betas, "gradient_clip": 2.5}
    training |= {"decay": "constant"}
    method = build(fake_updates=2, fake_learning_rate=1e-3, training=training)
    [student], run = distil(method, teacher, tmp_path)

    generator, fake = (teacher.with_network(student_network(teacher)) for _ in range(2))
    average, start = copy.deepcopy(generator.network), start_time(teacher.schedule, 2.5)
    optimisers = [torch.optim.AdamW(one.network.parameters(), 1e-3, betas, weight_decay=0) for one in (fake, generator)]

    def draw(generators, lognormal):
        """Of every micro-batch, in one batch."""
        noises, times = [], []
        for one in generators:
            noises.append(torch.randn((2, 2, 1, 8, 8), generator=one))
            levels = lognormal_levels(2, one) if lognormal else grid_levels(2, one, 0.8)
            times.append(teacher.schedule.time_of(levels))
        z, noise = torch.cat(noises, dim=1)
        return (
            NoiseStudent(generator.network, teacher.schedule, "v_prediction", start)(
                z, torch.full((6,), start, dtype=torch.float64)
            ),
            noise,
            torch.cat(times),
        )

    norms = []

    def update(network, optimiser, value):
        network.zero_grad()
        value.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 2.5)))
        optimiser.step()

    for step in range(2):
        generators = [TrainingRun(tmp_path, "key", 0, CPU).generator("sid", step, number) for number in range(3)]
        for _ in range(2):
            generated, noise, t = draw(generators, lognormal=True)
            update(fake.network, optimisers[0], denoising_loss(fake, generated.detach(), noise, t))
        generated, noise, t = draw(generators, lognormal=False)
        value = sid_loss(generated, teacher, fake, noise, t, 1.2)
        assert run.log[step]["loss"] == pytest.approx(value.item(), rel=1e-9)
        update(generator.network, optimisers[1], value)
        for kept, weight in zip(average.parameters(), generator.network.parameters(), strict=True):
            kept.data.copy_(weight if step == 0 else (kept + weight) / 2)

    assert sum(norm > 2.5 for norm in norms) == 1, "of sums, not means, it would be more"
    for found, expected in ((student.network, average), (run.beside["fake"], fake.network)):
        for (name, weight), other in zip(found.named_parameters(), expected.parameters(), strict=True):
            if not name.endswith("to_k.bias"):  # no gradient but rounding
                torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")


def test_a_training_in_turn_resumes_to_the_same_bits(tmp_path):
    """Micro-batches, dropout, and both networks; it stops before the third step."""
    method, teacher = build(dropout=0.2, fake_betas=(0.0, 0.99), **IN_TURN), tiny_denoiser()
    [whole], run = distil(method, teacher, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distil(method, teacher, tmp_path / "stopped", seconds=0, stop_at=2)
    [resumed], again = distil(method, teacher, tmp_path / "stopped")
    for one, other in ((whole.network, resumed.network), (run.beside["fake"], again.beside["fake"])):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert whole.cost["network_evaluations"] == resumed.cost["network_evaluations"] == 4 * 6 * (2 * 2 + 3)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_of_the_fake_score_that_is_not_finite_ends_the_training(factor, tmp_path, monkeypatch):
    """At its step, before anything of it is stored."""
    called = []

    def broken(*arguments):
        called.append(True)
        value = denoising_loss(*arguments)
        return value * factor if len(called) == 2 * 6 + 3 else value  # the third step's third of six

    monkeypatch.setattr("baselines.sid.denoising_loss", broken)
    with pytest.raises(NonFiniteError, match=r"stage sid: .* non-finite at step 2, .* checkpoint: .* \(step 2\)"):
        distil(build(**IN_TURN), tiny_denoiser(), tmp_path, seconds=0)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["beside"]["fake"].values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_each_network_has_dropout_in_its_own_update_alone(dropout, tmp_path):
    seen, masks = [], []

    def watch(**networks):
        for name, network in networks.items():
            blocks = [module for key, module in network.named_modules() if key.endswith(".dropout")]

            def note(_module, _inputs, name=name, block=blocks[0]):
                seen.append((name, torch.is_grad_enabled(), block.training and block.p > 0))

            network.register_forward_pre_hook(note)
            blocks[0].register_forward_hook(
                lambda module, _inputs, output: masks.append((output == 0).detach()) if module.training else None
            )

    changes = IN_TURN | {"training": IN_TURN["training"] | {"steps": 2}}
    distil(build(dropout=dropout, **changes), tiny_denoiser(), tmp_path, look=watch)
    drops = dropout > 0
    fakes = [("generator", False, False), ("fake", True, drops)] * 3 * 2
    assert seen == (fakes + [("generator", True, drops), ("fake", True, False)] * 3) * 2
    if drops:
        assert float(torch.cat(masks).float().mean()) == pytest.approx(dropout, abs=0.03)
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks) == 2 * 3 * (2 + 1)


def test_settings_without_the_later_keys_have_the_text_that_they_had():
    text = build().settings.model_dump_json()
    assert "dropout" not in text
    assert "fake_betas" not in text
    settings = build(dropout=0.1, fake_betas=[0.0, 0.99]).settings
    assert SidSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValueError, match="fake_betas"):
        build(fake_betas=[0.0, 1.0])


@pytest.mark.parametrize("levels", ["lognormal", "same"])
def test_the_fake_score_learns_to_denoise_the_generators_pictures(levels, tmp_path):
    # The generator as good as stands still; the fake score starts as the teacher.
    teacher = tiny_denoiser()
    method = build(
        training={"steps": 20, "batch_size": 8, "learning_rate": 1e-12}, fake_learning_rate=3e-3, fake_levels=levels
    )
    [student], run = distil(method, teacher, tmp_path / "state")
    method.save(tmp_path / "saved", student.network, teacher)
    sampler, _network = method.sampler(tmp_path / "saved", 1, CPU)
    fake = teacher.with_network(run.beside["fake"])
    with torch.inference_mode():
        pictures = sampler(normal(64, 1, 8, 8, seed=5).float())
        noise, t = normal(64, 1, 8, 8, seed=6).float(), times_of(teacher.schedule, np.geomspace(0.05, 5, 64))
        before, after = (float(denoising_loss(denoiser, pictures, noise, t)) for denoiser in (teacher, fake))
    assert after < 0.8 * before


def test_the_first_update_of_the_generator_comes_after_the_fake_scores(tmp_path):
    # While the fake score is the teacher, the generator's gradient is nothing but rounding.
    _students, run = distil(build(training={"steps": 1}), tiny_denoiser(), tmp_path)
    assert run.log[0]["gradient_norm"] > 1e-3


def test_the_fake_score_decays_with_the_generator_and_has_no_warm_up(tmp_path):
    method = build(
        training={"steps": 4, "learning_rate": 1e-4, "decay": "linear", "warmup_steps": 3}, fake_learning_rate=8e-4
    )
    _students, run = distil(method, tiny_denoiser(), tmp_path)
    optimiser = run.beside["fake_optimiser"]
    assert optimiser.param_groups[0]["lr"] == pytest.approx(8e-4 * (1 - 3 / 4))
    assert optimiser.param_groups[0]["betas"] == (0.0, 0.999)
    method = build(training={"steps": 1, "betas": [0.9, 0.999]}, fake_betas=[0.0, 0.99])
    _students, run = distil(method, tiny_denoiser(), tmp_path / "own")
    assert run.beside["fake_optimiser"].param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize(("sigma_init", "works"), [(2.5, True), (1e-4, False), (1e4, False)])
def test_a_start_outside_the_teachers_noise_levels_is_refused(sigma_init, works, tmp_path):
    teacher = tiny_denoiser()
    schedule = teacher.schedule
    ends = tuple(math.log(math.tan(math.pi / 2 * t)) for t in (schedule.t_min, schedule.t_max))
    facts = type("Facts", (), {"log_noise_to_signal": ends})()
    if works:
        return build(sigma_init=sigma_init).check(facts)
    with pytest.raises(ValueError, match=r"sigma_init: found .* expected a noise level"):
        build(sigma_init=sigma_init).check(facts)


def test_zero_terminal_signal_is_no_obstacle(tmp_path):
    angles = np.linspace(0.02, math.pi / 2, 100)
    schedule = DiscreteSchedule(np.concatenate([np.cos(angles[:-1]) ** 2, [0.0]]))
    teacher = tiny_denoiser()
    teacher.schedule = schedule
    [student], _run = distil(build(), teacher, tmp_path / "state")
    build().save(tmp_path / "saved", student.network, teacher)
    assert load_denoiser(tmp_path / "saved").schedule.settings() == schedule.settings()
    sampler, _network = build().sampler(tmp_path / "saved", 1, CPU)
    assert torch.isfinite(sampler(normal(2, 1, 8, 8).float())).all()
