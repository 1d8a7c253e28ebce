"""Prediction types and the teacher's loss, by hand."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from tiny import TEACHER, tiny_denoiser, tiny_splits

from diffusion.data.batches import RealPictures
from diffusion.data.kinds import parse_settings
from diffusion.data.samples import to_uint8
from diffusion.data.store import load_split, write_dataset
from diffusion.denoiser import Denoiser, denoising_loss
from diffusion.schedule import CosineSchedule, EdmSchedule
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.thresholding import NO_THRESHOLD
from diffusion.times import uniform_times
from diffusion.training.loop import TrainingRun
from diffusion.training.randomness import seed_dropout

SCHEDULE = CosineSchedule()
GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(4, 1, 2, 2, generator=GENERATOR) * 2 - 1
NOISE = torch.randn(4, 1, 2, 2, generator=GENERATOR)
T = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
ALPHA, SIGMA = (f(T).float().view(-1, 1, 1, 1) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
RAW = {"epsilon": NOISE, "v_prediction": ALPHA * NOISE - SIGMA * X, "sample": X}


class Says(torch.nn.Module):
    """A network that answers with a given tensor."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, timestep, return_dict=False):
        return (self.answer,)


@pytest.mark.parametrize("prediction_type", list(RAW))
def test_every_prediction_type_gives_back_the_clean_picture(prediction_type):
    denoiser = Denoiser(Says(RAW[prediction_type]), SCHEDULE, prediction_type)
    torch.testing.assert_close(denoiser(ALPHA * X + SIGMA * NOISE, T), X, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", list(RAW))
def test_the_loss_of_the_right_answer_is_zero_and_of_silence_its_square(prediction_type):
    right = Denoiser(Says(RAW[prediction_type]), SCHEDULE, prediction_type)
    silent = Denoiser(Says(torch.zeros_like(X)), SCHEDULE, prediction_type)
    assert float(denoising_loss(right, X, NOISE, T)) == pytest.approx(0, abs=1e-10)
    expected = float(RAW[prediction_type].square().mean())
    assert float(denoising_loss(silent, X, NOISE, T)) == pytest.approx(expected, rel=1e-5)


def test_the_edm_loss_by_hand():
    # Karras et al. 2022, table 1: F's target is (x − c_skip x_t) / c_out.
    schedule = EdmSchedule()
    t = schedule.time_of(torch.log(torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64)))
    sigma = torch.tensor([0.01, 0.5, 2.0, 80.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x, noise = X.double(), NOISE.double()
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    target = (x - skip * (x + sigma * noise)) / out
    assert float(denoising_loss(Denoiser(Says(target), schedule, "edm"), x, noise, t)) == pytest.approx(0, abs=1e-9)
    silent = Denoiser(Says(torch.zeros_like(X)), schedule, "edm")
    assert float(denoising_loss(silent, x, noise, t)) == pytest.approx(float(target.square().mean()), rel=1e-6)
    assert 0.1 < float(target.square().mean()) < 3  # of unit size at every level, which is what the reading is for


def test_the_edm_loss_is_the_papers_weighted_error_of_the_estimate():
    """E λ(σ) ‖D(x + n; σ) − x‖² with λ(σ) = (σ² + σ_data²) / (σ σ_data)² (Karras et al. 2022, eq. 2 and table 1)."""
    sigma = torch.tensor([0.01, 0.3, 2.0, 80.0], dtype=torch.float64)
    schedule = EdmSchedule(sigma_data=0.4)
    t = schedule.time_of(sigma.log())
    x, noise, sigma = X.double(), NOISE.double(), sigma.view(-1, 1, 1, 1)
    says = torch.randn(X.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    denoiser = Denoiser(Says(says), schedule, "edm")
    weight = (sigma**2 + 0.16) / (0.4 * sigma) ** 2
    expected = (weight * (denoiser.estimate(x + sigma * noise, t) - x) ** 2).mean()
    assert float(denoising_loss(denoiser, x, noise, t)) == pytest.approx(float(expected), rel=1e-6)


def test_clipping_is_for_the_estimate_and_not_for_the_loss():
    denoiser = Denoiser(Says(3 * torch.ones_like(X)), SCHEDULE, "sample")
    assert (denoiser(X, T) == 1).all()
    assert (denoiser.estimate(X, T) == 3).all()
    assert (Denoiser(Says(3 * torch.ones_like(X)), SCHEDULE, "sample", NO_THRESHOLD)(X, T) == 3).all()


def test_networks_get_fractional_timesteps_as_a_tensor_of_floats():
    seen = []

    class Spy(Says):
        def forward(self, x, timestep, return_dict=False):
            seen.append(timestep)
            return super().forward(x, timestep)

    Denoiser(Spy(X), SCHEDULE, "sample")(X, torch.tensor(0.5, dtype=torch.float64))
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], torch.full((4,), 999.5))


def test_conditions_reach_the_network():
    class Conditional(Says):
        def forward(self, x, timestep, return_dict=False, class_labels=None):
            return (class_labels.view(-1, 1, 1, 1) * torch.ones_like(x),)

    denoiser = Denoiser(Conditional(X), SCHEDULE, "sample", NO_THRESHOLD)
    labels = torch.arange(4.0)
    assert denoiser(X, T, {"class_labels": labels}).mean(dim=(1, 2, 3)).tolist() == labels.tolist()


def test_times_are_uniform_on_the_interval():
    times = uniform_times(20_000, 0.2, 0.6, torch.Generator().manual_seed(1))
    assert 0.2 <= float(times.min()) < 0.201
    assert 0.599 < float(times.max()) <= 0.6
    quarters = torch.histc(times, 4, 0.2, 0.6) / len(times)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25, dtype=torch.float64), atol=0.015, rtol=0)


def settings_of(kind, **changes):
    raw = TEACHER | {"schedule": {"kind": kind, "num_timesteps": 200}} | changes
    return TeacherSettings.model_validate(raw | ({"prediction_type": "edm"} if kind == "edm" else {}))


def test_an_edm_teachers_noise_levels_are_the_papers():
    """ln σ ~ N(P_mean −1.2, P_std 1.2) (Karras et al. 2022, table 1): moments and quantiles of 40,000 levels."""
    settings, count = settings_of("edm"), 40_000
    schedule = settings.schedule.build()
    times = settings.draw_times(count, schedule, torch.Generator().manual_seed(0))
    assert times.dtype == torch.float64
    levels = schedule.log_noise_to_signal(times).numpy()
    paper = NormalDist(-1.2, 1.2)
    # Bounds of four standard errors each.
    assert levels.mean() == pytest.approx(-1.2, abs=4 * 1.2 / count**0.5)
    assert levels.std() == pytest.approx(1.2, abs=4 * 1.2 / (2 * count) ** 0.5)
    for share in (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999):
        below = (levels < paper.inv_cdf(share)).mean()
        assert below == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5), share
    assert np.exp(np.median(levels)) == pytest.approx(0.301, abs=0.01)  # where uniform in t has 2.5


def test_levels_beyond_the_schedule_are_taken_at_its_ends():
    """And none within it is moved: the same draws on a schedule that reaches less far."""
    narrow = settings_of("edm", schedule={"kind": "edm", "sigma_min": 0.1, "sigma_max": 1.0})
    schedule, count = narrow.schedule.build(), 20_000
    times = narrow.draw_times(count, schedule, torch.Generator().manual_seed(0))
    drawn = -1.2 + 1.2 * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(times), drawn.exp().clamp(0.1, 1.0), rtol=1e-12, atol=0)
    assert (times == 0).sum() == (drawn.exp() <= 0.1).sum() > 0
    assert (times == 1).sum() == (drawn.exp() >= 1.0).sum() > 0


@pytest.mark.parametrize(("kind", "levels"), [("cosine", None), ("cosine", "uniform"), ("edm", "uniform")])
def test_uniform_levels_are_drawn_as_ever(kind, levels):
    settings = settings_of(kind, noise_levels=levels)
    schedule = settings.schedule.build()
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    times = settings.draw_times(50, schedule, one)
    unit = torch.rand(50, generator=other, dtype=torch.float64)
    assert torch.equal(times, schedule.t_min + (schedule.t_max - schedule.t_min) * unit)
    assert torch.equal(one.get_state(), other.get_state())


def test_noise_levels_are_said_only_where_they_are_edms():
    """The text of other teachers' settings stays as it was: their results stay valid. EDM's say what they were."""
    assert "noise_levels" not in settings_of("cosine").model_dump(mode="json")
    for changes, levels in (({}, "lognormal"), ({"noise_levels": "uniform"}, "uniform")):
        settings = settings_of("edm", **changes)
        assert settings.model_dump(mode="json")["noise_levels"] == levels
        assert TeacherSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("levels", [None, "uniform"])
def test_an_edm_teacher_trains_on_its_noise_levels(levels, tmp_path, monkeypatch):
    seen = []

    def watched(denoiser, x, noise, t, condition=None):
        seen.append(denoiser.schedule.sigma(t))
        return denoising_loss(denoiser, x, noise, t, condition)

    monkeypatch.setattr("diffusion.teachers.train.denoising_loss", watched)
    training = {"steps": 40, "batch_size": 16, "learning_rate": 1e-3}
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        train_teacher(settings_of("edm", noise_levels=levels, training=training), stored(tmp_path), run)
    sigma = torch.cat(seen)
    assert len(sigma) == 640
    # The share of levels below 1 is Φ(1) = 0.841, or the time of 1 where they are uniform. Four standard errors.
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = NormalDist().cdf(1) if levels is None else (1 - low) / (high - low)
    error = (expected * (1 - expected) / 640) ** 0.5
    assert float((sigma < 1).double().mean()) == pytest.approx(expected, abs=4 * error)


def stored(folder, flip=False):
    """The training part of a data set in which no image is its own mirror image, nor any other's."""
    if not (folder / "data").exists():
        write_dataset(folder / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    return load_split(folder / "data", "train", flip)


@pytest.mark.parametrize("mapped", [False, True])
def test_half_of_the_drawn_images_are_mirrored_left_to_right(mapped, tmp_path):
    split, count = stored(tmp_path, flip=True), 1000
    pictures = RealPictures(split, torch.device("cpu"))
    pictures._held = None if mapped else pictures._held
    x, labels = pictures.draw(count, torch.Generator().manual_seed(4))
    # Each image and its class are found again among the stored ones by their bytes alone.
    images = np.asarray(split.images)
    as_stored = {image.tobytes(): number for number, image in enumerate(images)}
    mirrored = {image[:, ::-1].tobytes(): number for number, image in enumerate(images)}
    assert not as_stored.keys() & mirrored.keys()
    rows = [image.tobytes() for image in to_uint8(x)]
    flips = np.array([row in mirrored for row in rows])
    numbers = np.array([mirrored[row] if row in mirrored else as_stored[row] for row in rows])
    assert labels.tolist() == split.labels[numbers].tolist()
    # What the same generator gives: first which images, then which of them are mirrored.
    generator = torch.Generator().manual_seed(4)
    assert numbers.tolist() == torch.randint(len(images), (count,), generator=generator).tolist()
    assert flips.tolist() == (torch.rand(count, generator=generator) < 0.5).tolist()
    assert flips.sum() == pytest.approx(count / 2, abs=4 * (count / 4) ** 0.5)


@pytest.mark.parametrize("mapped", [False, True])
def test_without_flips_images_are_drawn_as_ever(mapped, tmp_path):
    split = stored(tmp_path)
    pictures = RealPictures(split, torch.device("cpu"))
    pictures._held = None if mapped else pictures._held
    one, other = (torch.Generator().manual_seed(4) for _ in range(2))
    x, labels = pictures.draw(30, one)
    index = torch.randint(len(split.images), (30,), generator=other).numpy()
    assert np.array_equal(to_uint8(x), split.images[index])
    assert labels.tolist() == split.labels[index].tolist()
    assert torch.equal(one.get_state(), other.get_state())


def test_a_teacher_with_flips_resumes_to_the_same_bits(tmp_path):
    def train(name, flip=True, stop_at=None):
        with TrainingRun(tmp_path / name, "key", 0, torch.device("cpu"), checkpoint_seconds=0) as run:
            generator = run.generator

            def interrupt(stage, step, number=0):
                if (stage, step) == ("teacher", stop_at):
                    raise KeyboardInterrupt
                return generator(stage, step, number)

            run.generator = interrupt
            return train_teacher(TeacherSettings.model_validate(TEACHER), stored(tmp_path, flip), run)[0].network

    whole, plain = train("whole"), train("plain", flip=False)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_at=4)
    resumed = train("stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True))


def test_training_lowers_the_loss_and_counts_its_cost(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    split = load_split(tmp_path / "data", "train")
    settings = TeacherSettings.model_validate(
        TEACHER | {"training": {"steps": 60, "batch_size": 8, "learning_rate": 2e-3}}
    )
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        denoiser, cost = train_teacher(settings, split, run)
    assert cost["network_evaluations"] == cost["real_images_seen"] == 480
    x, _ = RealPictures(split, torch.device("cpu")).draw(64, torch.Generator().manual_seed(2))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    with torch.no_grad():
        untrained = float(denoising_loss(tiny_denoiser(), x, noise, t))
        assert float(denoising_loss(denoiser, x, noise, t)) < 0.9 * untrained


def test_pictures_too_large_to_hold_are_drawn_from_the_map(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    split = load_split(tmp_path / "data", "train")
    cpu = torch.device("cpu")
    held, mapped = RealPictures(split, cpu), RealPictures(split, cpu)
    mapped._held = None
    (one, labels), (two, same_labels) = (source.draw(5, torch.Generator().manual_seed(4)) for source in (held, mapped))
    assert torch.equal(one, two)
    assert torch.equal(labels, same_labels)
    assert one.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("flip", [False, True])
def test_a_card_is_not_asked_which_of_the_hosts_pictures_to_take(flip, tmp_path):
    """Nor which of them to mirror. The host's own generator draws both, which every micro-batch of a step seeds: the
    same again, whatever was drawn before."""

    class OfACard:
        device = torch.device("cuda", 0)

    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    pictures = RealPictures(load_split(tmp_path / "data", "train", flip), torch.device("cpu"))
    pictures._held = None
    drawn = []
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        for step in (0, 1, 0):
            seed_dropout(run.generator("teacher", step))
            drawn.append([pictures.draw(9, OfACard())[0] for _ in range(2)])
            torch.randn(step + 1)
    assert all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
