"""The two ways in which a one-step student of an epsilon teacher is read, on Stable Diffusion's schedule."""

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from methods import TRAINED, build
from tiny import tiny_denoiser

from boot.distillation import Boot, BootSettings
from boot.trajectory import load_student
from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.runtime.files import read_json
from diffusion.schedule import CosineSchedule, ScheduleSettings
from diffusion.student import NoiseStudent
from diffusion.teachers.facts import facts_of
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.thresholding import NO_THRESHOLD

NOISE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
STABLE = ScheduleSettings(kind="scaled_linear", num_timesteps=1000).build()
CPU = torch.device("cpu")
READ_AT_THE_END = ("boot", "knowledge_distillation", "pid")


def teacher_of(schedule=STABLE, prediction_type="epsilon"):
    network = tiny_denoiser().network
    return Denoiser(network, schedule, prediction_type, NO_THRESHOLD).eval().requires_grad_(False)


def test_the_schedule_is_stable_diffusions(tmp_path):
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(num_train_timesteps=1000, **betas)
    np.testing.assert_allclose(STABLE.alphas_cumprod(), scheduler.alphas_cumprod.numpy(), rtol=2e-5)
    last = STABLE.at(torch.tensor(STABLE.t_max, dtype=torch.float64))
    assert float(last.sigma.value / last.alpha.value) == pytest.approx(14.61, abs=0.01)
    save_denoiser(tmp_path, teacher_of())
    assert load_denoiser(tmp_path).schedule.settings() == STABLE.settings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_start": 0.012}, "must be smaller than beta_end"),
        ({"t_max": 0.9}, "t_max: not a key of the scaled_linear schedule"),
        ({"kind": "cosine", "beta_end": 0.02}, "beta_end: not a key of the cosine schedule"),
    ],
)
def test_keys_of_another_schedule_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ScheduleSettings.model_validate({"kind": "scaled_linear", **change})
    assert "beta_start" not in ScheduleSettings().model_dump_json()


def test_the_exact_reading_is_the_teachers_estimate_and_the_other_is_that_times_alpha():
    """Of an exact teacher: y = (ε − σ_M F) / α_M = f(ε, t_max), and without the division α_M f(ε, t_max)."""
    at = STABLE.at(torch.tensor(STABLE.t_max, dtype=torch.float64))
    estimate = GaussianTeacher(STABLE)(NOISE.double(), at)
    answer = (NOISE.double() - at.alpha * estimate) / at.sigma
    for reading, factor in (("exact", 1.0), ("noise", float(at.alpha.value))):
        student = NoiseStudent(Says(answer), STABLE, "epsilon", epsilon_reading=reading)
        for t in (STABLE.t_min, 0.5, STABLE.t_max):  # the coefficients are those of M, whatever it is told
            torch.testing.assert_close(student(NOISE, t).double(), factor * estimate, rtol=0, atol=1e-5)


class Says(torch.nn.Module):
    """A network with one answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, fed, told, return_dict=False):
        return (self.answer,)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_students_are_read_alike(kind):
    teacher = teacher_of(CosineSchedule(num_timesteps=200), kind)
    with torch.no_grad():
        one, other = (
            NoiseStudent(teacher.network, teacher.schedule, kind, epsilon_reading=reading)(NOISE, 0.5)
            for reading in ("noise", "exact")
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize("reading", ["noise", "exact"])
@pytest.mark.parametrize("name", READ_AT_THE_END)
def test_a_folder_is_read_as_its_student_was_trained(name, reading, tmp_path):
    kind, teacher = method_class(name), teacher_of()
    method = kind(kind.Settings.model_validate({"method": name, "epsilon_reading": reading}))
    method.check(facts_of(STABLE, "epsilon", (1, 8, 8), "nothing", can_be_guided=False))
    method.save(tmp_path, teacher.network, teacher)
    index = read_json(tmp_path / "model_index.json")
    assert index["epsilon_reading"] == reading
    sampler, _ = method.sampler(tmp_path, 1, CPU)
    told = STABLE.time(torch.tensor(index["told_timestep"]))
    with torch.inference_mode():
        found, expected = sampler(NOISE), method.student(teacher.network, teacher)(NOISE, told)
        torch.testing.assert_close(found, index["signal_scale"] * expected, rtol=0, atol=2e-5)
        if name == "boot":
            torch.testing.assert_close(load_student(tmp_path).sample(NOISE), found, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", READ_AT_THE_END)
@pytest.mark.parametrize(
    ("schedule", "kind", "message"),
    [
        (CosineSchedule(), "epsilon", r"epsilon_reading: found 'exact' with σ/α = 636\.6 at t_max, expected 'noise'"),
        (CosineSchedule(), "v_prediction", r"epsilon_reading: found 'exact' with a teacher of v_prediction"),
        (STABLE, "epsilon", None),
    ],
)
def test_the_division_is_refused_where_it_is_none_or_too_large(name, schedule, kind, message):
    method = method_class(name)
    method = method(method.Settings.model_validate({"method": name, "epsilon_reading": "exact"}))
    facts = facts_of(schedule, kind, (1, 8, 8), "nothing", can_be_guided=False)
    if message is None:
        return method.check(facts)
    with pytest.raises(ValueError, match=message):
        method.check(facts)


def test_a_student_that_starts_exactly_may_do_without_the_boundary_loss():
    facts = facts_of(STABLE, "epsilon", (1, 8, 8), "nothing", can_be_guided=False)
    Boot(BootSettings(boundary_weight=0.0, epsilon_reading="exact")).check(facts)
    with pytest.raises(ValueError, match="boundary_weight: found 0 with an epsilon teacher"):
        Boot(BootSettings(boundary_weight=0.0)).check(facts)


@pytest.mark.parametrize("name", TRAINED)
def test_the_key_belongs_to_students_that_are_read_at_the_end(name):
    method = build(name)
    assert hasattr(method.settings, "epsilon_reading") == (name in READ_AT_THE_END)
    assert "epsilon_reading" not in method.settings.model_dump_json()
