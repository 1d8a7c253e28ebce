"""Every option of BOOT trains, resumes and changes what it says it changes."""

import pytest
import torch
from gaussian import GaussianTeacher
from tiny import TEACHER, tiny_denoiser, tiny_splits

from boot.distillation import Boot, BootSettings, draw_times
from boot.losses import boot_losses
from boot.state_student import StateStudent
from diffusion.data.kinds import parse_settings
from diffusion.data.store import load_split, write_dataset
from diffusion.level import decay
from diffusion.schedule import CosineSchedule, EdmSchedule
from diffusion.student import NoiseStudent
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import Step

CPU = torch.device("cpu")
NOISE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5}


def settings(**options):
    return BootSettings.model_validate({"training": TRAINING, **options})


def distilled(folder, prediction_type="v_prediction", **options):
    teacher = tiny_denoiser(prediction_type)
    with TrainingRun(folder, "key", 0, CPU, checkpoint_seconds=0) as run:
        return Boot(settings(**options)).distil(teacher, run, None)[0]


OPTIONS = {
    "euler": {"solver": "euler"},
    "etd2": {"solver": "etd2"},
    "midpoint": {"solver": "midpoint"},
    "lambda": {"delta_in": "lambda", "delta": 0.4},
    "spread": {"delta_spread": 0.5},
    "no boundary": {"boundary_weight": 0.0},
    "inverse": {"weight": "inverse"},
    "uniform": {"weight": "uniform"},
    "state": {"target": "state"},
    "progressive": {"times": "progressive"},
    "average": {"bootstrap_from": "average"},
    "random": {"initialisation": "random"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains_to_another_student_than_the_default(name, tmp_path):
    default, other = distilled(tmp_path / "default"), distilled(tmp_path / "other", **OPTIONS[name])
    pairs = list(zip(default.network.parameters(), other.network.parameters(), strict=True))
    assert all(torch.isfinite(b).all() for _, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "edm", "flow"])
def test_every_prediction_type_trains(prediction_type, tmp_path):
    student = distilled(tmp_path, prediction_type)
    assert all(torch.isfinite(p).all() for p in student.network.parameters())


def times_of(progress=0.0, schedule=None, seed=0, **options):
    chosen = settings(training=TRAINING | {"batch_size": 4096}, **options)
    step = Step(torch.Generator().manual_seed(seed), progress, chosen.training.batch_size)
    return draw_times(chosen, schedule or CosineSchedule(), step)


def test_times_are_uniform_and_cover_the_interval_up_to_t_max():
    s, t = times_of(delta=0.1)
    assert 0.001 <= float(s.min()) < 0.005
    assert 0.995 < float(s.max()) <= 0.999
    assert float(s.mean()) == pytest.approx(0.5, abs=0.02)
    inside = s < 0.899
    torch.testing.assert_close((t - s)[inside], torch.full_like(s[inside], 0.1))
    assert (t[~inside] == 0.999).all()
    assert (s < t).all()


def test_a_spread_step_is_drawn_for_every_noise():
    s, t = times_of(delta=0.1, delta_spread=0.5)
    steps = (t - s)[s < 0.8]
    assert (float(steps.min()), float(steps.max())) == pytest.approx((0.05, 0.15), abs=1e-3)
    assert float(steps.mean()) == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize("schedule", [CosineSchedule(), EdmSchedule()])
def test_a_step_in_lambda_has_one_decay_for_all_times(schedule):
    s, t = times_of(delta=0.3, delta_in="lambda", schedule=schedule)
    inside = t < schedule.t_max
    k = decay(schedule.at(s), schedule.at(t)).value[inside]
    torch.testing.assert_close(k, torch.full_like(k, 0.7408182206817179))  # e^−0.3
    assert (s < t).all()


def test_progressive_times_grow_downwards():
    lowest = [
        float(times_of(p, delta=0.1, times="progressive", progressive_share=0.5)[0].min()) for p in (0, 0.25, 0.5)
    ]
    assert lowest == pytest.approx([0.899, 0.5, 0.001], abs=3e-3)
    assert float(times_of(0.9, delta=0.1, times="progressive")[0].min()) < 0.005


class Says(torch.nn.Module):
    """A network whose output is one value, whatever it is fed."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, timestep, return_dict=False):
        return (torch.full_like(x, self.value),)


@pytest.mark.parametrize(("weight", "power"), [("inverse_square", 0), ("inverse", 1), ("uniform", 2)])
def test_weights_by_hand(weight, power):
    # g = 0 and f = 1: the residual is 1 − k, its square is weighted with (1 − k)^−2, ^−1 or ^0.
    schedule = CosineSchedule()
    student, teacher = NoiseStudent(Says(0.0), schedule, "sample"), GaussianTeacher(schedule, mean=1.0, scale=1e-12)
    s = torch.full((6,), 0.4, dtype=torch.float64)
    k = float(decay(schedule.at(s), schedule.at(s + 0.1)).value[0])
    bootstrap, boundary = boot_losses(student, teacher, NOISE, s, s + 0.1, 2, "euler", weight)
    assert float(bootstrap) == pytest.approx((1 - k) ** power, rel=1e-4)
    assert float(boundary) == pytest.approx(1, rel=1e-4)


def test_the_state_is_compared_with_a_ddim_step_in_the_state():
    # g = 0.5 stands for x_t, f = 1: x_s = (σ_s/σ_t) 0.5 + (α_s − α_t σ_s/σ_t).
    schedule = CosineSchedule()
    student, teacher = StateStudent(Says(0.5), schedule, "sample"), GaussianTeacher(schedule, mean=1.0, scale=1e-12)
    s = torch.full((6,), 0.4, dtype=torch.float64)
    t = s + 0.1
    bootstrap, boundary = boot_losses(student, teacher, NOISE, s, t, 6, "euler", "uniform")
    alpha_s, sigma_s, alpha_t, sigma_t = (float(f(u)[0]) for u in (s, t) for f in (schedule.alpha, schedule.sigma))
    x_s = sigma_s / sigma_t * 0.5 + alpha_s - alpha_t * sigma_s / sigma_t
    assert float(bootstrap) == pytest.approx((x_s - 0.5) ** 2, rel=1e-4)
    t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
    at_start = schedule.at(t_max).noised(torch.ones_like(NOISE), NOISE)  # x_M of the signal f = 1
    assert float(boundary) == pytest.approx(float((at_start - 0.5).square().mean()), rel=1e-4)


def test_bootstrapping_from_another_student_takes_its_signal():
    # g = 0 is compared, ŷ_t = 2 comes from the other: target k 2 + (1 − k) 1.
    schedule = CosineSchedule()
    student, other = (NoiseStudent(Says(value), schedule, "sample") for value in (0.0, 2.0))
    teacher = GaussianTeacher(schedule, mean=1.0, scale=1e-12)
    s = torch.full((6,), 0.4, dtype=torch.float64)
    k = float(decay(schedule.at(s), schedule.at(s + 0.1)).value[0])
    bootstrap, _ = boot_losses(student, teacher, NOISE, s, s + 0.1, 1, "euler", "uniform", source=other)
    assert float(bootstrap) == pytest.approx((1 + k) ** 2, rel=1e-4)


def test_a_resumed_run_that_bootstraps_from_the_average_ends_with_the_same_bits(tmp_path):
    whole = distilled(tmp_path / "whole", bootstrap_from="average")
    teacher, calls = tiny_denoiser(), 0

    def interrupt(_module, _inputs):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt

    handle = teacher.network.register_forward_pre_hook(interrupt)
    method = Boot(settings(bootstrap_from="average"))
    with pytest.raises(KeyboardInterrupt), TrainingRun(tmp_path / "x", "key", 0, CPU, checkpoint_seconds=0) as run:
        method.distil(teacher, run, None)
    handle.remove()
    with TrainingRun(tmp_path / "x", "key", 0, CPU, checkpoint_seconds=0) as run:
        (resumed,) = method.distil(teacher, run, None)
    for one, two in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_random_student_is_the_same_for_the_same_seed_and_not_the_teacher(tmp_path):
    one = distilled(tmp_path / "one", initialisation="random")
    two = distilled(tmp_path / "two", initialisation="random")
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    teacher = tiny_denoiser().network
    distances = [
        float((a - b).abs().max()) for a, b in zip(one.network.parameters(), teacher.parameters(), strict=True)
    ]
    assert max(distances) > 0.05


@pytest.mark.parametrize("student_seed", [0, 1])
def test_a_random_student_starts_from_none_of_its_teachers_first_weights(student_seed, tmp_path, monkeypatch):
    """Of the same seed too: the two have one architecture, and would have one network."""
    starts = []

    class Start(Exception):
        pass

    def note(_run, _stage, network, *_arguments, **_options):
        starts.append({name: weight.detach().clone() for name, weight in network.named_parameters()})
        raise Start

    monkeypatch.setattr(TrainingRun, "fit", note)
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    for _ in range(2):
        with TrainingRun(tmp_path / "teacher", "key", 0, CPU) as run, pytest.raises(Start):
            train_teacher(TeacherSettings.model_validate(TEACHER), load_split(tmp_path / "data", "train"), run)
    with TrainingRun(tmp_path / "student", "key", student_seed, CPU) as run, pytest.raises(Start):
        Boot(settings(initialisation="random")).distil(tiny_denoiser(), run, None)
    teacher, again, student = starts
    assert all(torch.equal(teacher[name], again[name]) for name in teacher)
    drawn = [name for name, weight in teacher.items() if weight.unique().numel() > 1]
    assert len(drawn) > 20
    assert not any(torch.isclose(teacher[name], student[name]).float().mean() > 0.01 for name in drawn)
