"""SiD with long and short guidance, and its other later keys, against formulas written out by hand in float64."""

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_conditional, tiny_denoiser
from torch import nn

import baselines.sid
from baselines.sid import Sid, SidSettings, dmd_loss, sid_loss, snr_loss
from diffusion.conditions import ClassLabels
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.family import Family
from diffusion.guidance import Guidance, guided
from diffusion.schedule import CosineSchedule, EdmSchedule, FlowSchedule
from diffusion.teachers.facts import facts_of
from diffusion.thresholding import NO_THRESHOLD
from diffusion.training.loop import TrainingRun

SCHEDULE = CosineSchedule(num_timesteps=200)
LABELS = torch.tensor([0, 1, 0, 1, 1])
CONDITION = {"class_labels": LABELS}
T = torch.tensor([0.1, 0.35, 0.5, 0.75, 0.9], dtype=torch.float64)
ALPHA, SIGMA = (f(T * torch.pi / 2).reshape(-1, 1, 1, 1) for f in (torch.cos, torch.sin))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine(nn.Module):
    """F = a_c x + b_c, of the classes 0 and 1 and of ∅."""

    def __init__(self, seed):
        super().__init__()
        self.a, self.b = (nn.Parameter(normal(3, seed=seed + number)) for number in (0, 1))

    def forward(self, x, told, class_labels, return_dict=False):
        a, b = (value[class_labels].reshape(-1, 1, 1, 1) for value in (self.a, self.b))
        return (a * x + b,)


class Float64(Family):
    def call(self, network, x, told, condition):
        return network(x, told, **condition)[0]


def affine(seed):
    return Denoiser(Affine(seed), SCHEDULE, "v_prediction", NO_THRESHOLD, ClassLabels(2, True), Float64())


def by_hand(network, x_t, scale):
    """x̂ = α x_t − σ F̃ of the guided output F̃ = F(∅) + κ (F(c) − F(∅))."""

    def output(labels):
        return network.a[labels].reshape(-1, 1, 1, 1) * x_t + network.b[labels].reshape(-1, 1, 1, 1)

    none = torch.full_like(LABELS, 2)
    return ALPHA * x_t - SIGMA * (output(none) + scale * (output(LABELS) - output(none)))


@pytest.mark.parametrize("alpha", [1.0, 1.2])
@pytest.mark.parametrize(("of_teacher", "of_fake"), [(3.0, 1.0), (1.0, 2.5), (1.5, 1.5), (2.0, 0.0)])
def test_loss_and_gradient_of_the_generator_are_the_formula_with_both_scales(of_teacher, of_fake, alpha):
    """Zhou et al. 2025: (1 − α) ‖f_φ,κ4 − f_ψ,κ2‖² + (f_φ,κ4 − f_ψ,κ2)ᵀ (f_ψ,κ3 − x_g), over |x_g − f_φ,κ4|."""
    teacher, fake, noise = affine(seed=10), affine(seed=20), normal(5, 1, 4, 4, seed=1)
    loss, gradient = [], []
    for formula in (False, True):
        x_g = normal(5, 1, 4, 4).requires_grad_()
        if formula:
            x_t = ALPHA * x_g + SIGMA * noise
            real, faked = by_hand(teacher.network, x_t, of_teacher), by_hand(fake.network, x_t, of_fake)
            weight = 1 / (x_g - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
            product = (real - faked) * (faked - x_g)
            value = (weight * ((1 - alpha) * (real - faked) ** 2 + product)).mean()
        else:
            teachers = guided(teacher, Guidance(of_teacher)), guided(fake, Guidance(of_fake))
            value = sid_loss(x_g, *teachers, noise, T, alpha, CONDITION)
        loss.append(value.detach())
        gradient += torch.autograd.grad(value, x_g)
    torch.testing.assert_close(*loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("weight", ["output", "snr"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_gradient_of_the_fake_score_is_the_closed_form_in_both_its_branches(scale, weight):
    # d/db_c of mean w (F̃ − v)² is the mean of 2 w κ (F̃ − v) over the images of class c; of ∅, that of
    # 2 w (1 − κ) (F̃ − v) over all. w is 1, or SNR/(SNR + 1) = α².
    fake, x, noise = affine(seed=20), normal(5, 1, 4, 4), normal(5, 1, 4, 4, seed=1)
    kind = snr_loss if weight == "snr" else denoising_loss
    loss = kind(guided(fake, Guidance(scale)), x, noise, T, CONDITION)
    found_a, found_b = torch.autograd.grad(loss, [fake.network.a, fake.network.b])

    with torch.no_grad():
        x_t, v = ALPHA * x + SIGMA * noise, ALPHA * noise - SIGMA * x
        error = (ALPHA * x_t - by_hand(fake.network, x_t, scale)) / SIGMA - v
        w = ALPHA**2 if weight == "snr" else torch.ones_like(ALPHA)
        torch.testing.assert_close(loss.detach(), (w * error**2).mean(), rtol=1e-12, atol=0)
        for found, factor in ((found_a, x_t), (found_b, torch.ones_like(x_t))):
            each = (2 * w * error * factor).sum(dim=(1, 2, 3)) / error.numel()
            by_class = [scale * each[label == LABELS].sum() for label in (0, 1)]
            torch.testing.assert_close(found, torch.stack([*by_class, (1 - scale) * each.sum()]), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon", "edm", "flow"])
def test_the_weight_snr_is_the_loss_of_the_noise_for_every_prediction_type(kind):
    schedule = {"edm": EdmSchedule, "flow": FlowSchedule}.get(kind, CosineSchedule)(num_timesteps=200)
    denoiser, x, noise = tiny_denoiser(kind, clip=False), normal(4, 1, 8, 8).float(), normal(4, 1, 8, 8, seed=1).float()
    at = schedule.at(schedule.time(torch.tensor([20, 60, 100, 180])))
    x_t = at.noised(x, noise)
    estimate = denoiser.estimate(x_t, at).double()
    estimated_noise = (x_t.double() - at.alpha * estimate) / at.sigma
    expected = (estimated_noise - noise).square().mean()
    torch.testing.assert_close(snr_loss(denoiser, x, noise, at.time).double(), expected, rtol=1e-4, atol=0)


def test_the_gradient_of_distribution_matching_is_the_difference_of_the_estimates():
    """Yin et al. 2024, algorithm 2: (f_ψ − f_φ) over the image's mean |x_g − f_φ|; nothing passes the networks."""
    teacher, fake, noise = affine(seed=10), affine(seed=20), normal(5, 1, 4, 4, seed=1)
    x_g = normal(5, 1, 4, 4).requires_grad_()
    loss = dmd_loss(x_g, guided(teacher, Guidance(3.0)), fake, noise, T, CONDITION)
    (gradient,) = torch.autograd.grad(loss, x_g, retain_graph=True)
    with torch.no_grad():
        x_t = ALPHA * x_g + SIGMA * noise
        real, faked = by_hand(teacher.network, x_t, 3.0), by_hand(fake.network, x_t, 1.0)
        expected = (faked - real) / (x_g - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient * x_g.numel(), expected, rtol=1e-10, atol=1e-12)
    weights = [*teacher.parameters(), *fake.parameters()]
    assert all(one is None for one in torch.autograd.grad(loss, weights, allow_unused=True))


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_distribution_matching_leads_to_the_datas_mean(shift):
    mean = torch.tensor(0.3 + shift, dtype=torch.float64, requires_grad=True)
    generated = mean + 0.5 * normal(5, 1, 4, 4)
    exact, fake = GaussianTeacher(SCHEDULE, 0.3, 0.5), GaussianTeacher(SCHEDULE, 0.3 + shift, 0.5)
    (gradient,) = torch.autograd.grad(dmd_loss(generated, exact, fake, normal(5, 1, 4, 4, seed=1), T), mean)
    assert np.sign(float(gradient)) == np.sign(shift)


def build(**settings):
    training = {"steps": 3, "batch_size": 4, "learning_rate": 1e-4}
    return Sid(SidSettings.model_validate({"method": "sid", "training": training, **settings}))


def distil(method, teacher, folder):
    with TrainingRun(folder, "key", 0, torch.device("cpu")) as run:
        (student,) = method.distil(teacher, run, None)
    return student


def test_scales_of_one_train_to_the_same_bits(tmp_path):
    spelt = {"fake_guidance_train": 1.0, "fake_guidance": 1.0, "fake_condition_dropout": 0.0, "fake_weight": "output"}
    one = distil(build(), tiny_conditional(), tmp_path / "one").network
    other = distil(build(**spelt), tiny_conditional(), tmp_path / "other").network
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert "fake_guidance" not in build(**spelt).settings.model_dump_json()


@pytest.mark.parametrize(("train", "judge"), [(2.0, 1.0), (1.0, 2.0), (2.0, 2.0)])
def test_each_scale_guides_its_own_evaluation_of_the_fake_score(train, judge, tmp_path, monkeypatch):
    scales = set()
    for name, place in (("denoising_loss", 0), ("sid_loss", 2)):
        original = getattr(baselines.sid, name)

        def watched(*arguments, name=name, place=place, original=original):
            scales.add((name, getattr(arguments[place], "scale", 1.0)))
            return original(*arguments)

        monkeypatch.setattr(baselines.sid, name, watched)
    settings = {"fake_guidance_train": train, "fake_guidance": judge}
    student = distil(build(**settings), guided(tiny_conditional(), Guidance(2.0)), tmp_path)
    evaluations = (1 + (2 if train != 1 else 1)) + (1 + (2 if judge != 1 else 1) + 2)
    assert student.cost["network_evaluations"] == 3 * 4 * evaluations
    assert scales == {("denoising_loss", train), ("sid_loss", judge)}
    assert build(**settings).settings.fake_dropped == 0.1
    assert build(**settings, fake_condition_dropout=0.0).settings.fake_dropped == 0


def test_conditions_are_dropped_and_timesteps_drawn_as_the_keys_say(tmp_path, monkeypatch):
    """Of a fake score that is guided a tenth learns ∅; its times and the generator's are whole and in [20, 180)."""
    seen = {"denoising_loss": [], "sid_loss": []}
    for name, calls in seen.items():
        original = getattr(baselines.sid, name)

        def watched(*arguments, calls=calls, original=original):
            calls.append((arguments[-3] if original is sid_loss else arguments[-2], arguments[-1]["class_labels"]))
            return original(*arguments)

        monkeypatch.setattr(baselines.sid, name, watched)
    training = {"steps": 2, "batch_size": 200, "learning_rate": 1e-4}
    method = build(fake_guidance_train=2.0, timesteps=[20, 180], fake_levels="same", training=training)
    distil(method, tiny_conditional(), tmp_path)
    for name, calls in seen.items():
        timesteps = SCHEDULE.timestep(torch.cat([t for t, _labels in calls]))
        torch.testing.assert_close(timesteps, timesteps.round(), rtol=0, atol=1e-9)
        assert 20 <= timesteps.min() < 24
        assert 175 < timesteps.max() <= 179.1
        dropped = torch.cat([labels for _t, labels in calls]) == 3
        assert float(dropped.double().mean()) == pytest.approx(0.1 if name == "denoising_loss" else 0, abs=0.05)
        assert bool(dropped.any()) == (name == "denoising_loss")


@pytest.mark.parametrize("gradient", ["sid", "dmd"])
def test_every_later_key_trains(gradient, tmp_path):
    settings = {"fake_guidance_train": 2.0, "fake_guidance": 2.0, "fake_weight": "snr", "gradient": gradient}
    teacher = guided(tiny_conditional(), Guidance(2.0))
    student = distil(build(**settings), teacher, tmp_path)
    pairs = zip(student.network.parameters(), teacher.network.parameters(), strict=True)
    assert sum(float((one - other).square().sum()) for one, other in pairs) > 0


@pytest.mark.parametrize(
    ("settings", "told", "message"),
    [
        ({"fake_guidance": 2.0}, "nothing", "fake_guidance: found 2.0, expected 1"),
        ({"fake_guidance_train": 0.0}, "nothing", "fake_guidance_train: found 0.0, expected 1"),
        ({"fake_condition_dropout": 0.1}, "nothing", "fake_condition_dropout: found 0.1, expected 0"),
        ({"timesteps": [20, 201]}, "class", "timesteps: found .20, 201., expected at most .*200"),
        ({"fake_guidance": 2.0, "timesteps": [0, 200]}, "class", None),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(settings, told, message):
    facts = facts_of(SCHEDULE, "v_prediction", (1, 8, 8), told, can_be_guided=told != "nothing")
    if message is None:
        return build(**settings).check(facts)
    with pytest.raises(ValueError, match=message):
        build(**settings).check(facts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": [20, 20]}, "expected .low, high. with low < high"),
        ({"timesteps": [20, 180], "largest_level": 0.5}, "largest_level: found 0.5 with timesteps"),
        ({"gradient": "dmd", "alpha": 1.0}, "alpha: found 1.0 with gradient 'dmd'"),
        ({"fake_guidance": -1.0}, "fake_guidance"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
