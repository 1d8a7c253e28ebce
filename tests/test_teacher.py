"""Prediction types and the teacher's loss, by hand."""

import pytest
import torch
from tiny import TEACHER, tiny_denoiser, tiny_splits

from diffusion.data import load_split, parse_settings, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule, EdmSchedule
from diffusion.teacher import RealPictures, TeacherSettings, denoising_loss, train_teacher, uniform_times
from diffusion.thresholding import NO_THRESHOLD
from diffusion.training import TrainingRun

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


def test_a_card_is_not_asked_which_of_the_hosts_pictures_to_take(tmp_path):
    """The host's own generator draws them, which a slice of a step seeds: the same again, whatever was drawn before."""

    class OfACard:
        device = torch.device("cuda", 0)

    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    pictures = RealPictures(load_split(tmp_path / "data", "train"), torch.device("cpu"))
    pictures._held = None
    drawn = []
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        for step in (0, 1, 0):
            run.generator("teacher", step)
            drawn.append([pictures.draw(9, OfACard())[0] for _ in range(2)])
            torch.randn(step + 1)
    assert all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
