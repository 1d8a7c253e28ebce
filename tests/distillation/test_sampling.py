"""Stored students are sampled by the pipeline that travels with them: it must read a network as training does."""

from typing import get_args

import pytest
import torch
from tiny import tiny_conditional, tiny_denoiser

from baselines.sid import start_time
from diffusion.consistency import consistency_function
from diffusion.distillation.registry import method_class
from diffusion.noise import initial_noise
from diffusion.prediction import PredictionType
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent

NOISE = initial_noise(0, range(4), (1, 8, 8))
LABELS = {"class_labels": torch.tensor([0, 2, 1, 1])}
KINDS = [*get_args(PredictionType), "classes"]


def sampled(name, folder, teacher, network, nfe, condition, **settings):
    kind = method_class(name)
    method = kind(kind.Settings.model_validate({"method": name, **settings}))
    method.save(folder, network, teacher)
    with torch.inference_mode():
        return method.sampler(folder, nfe, torch.device("cpu"))[0](NOISE, condition)


@pytest.fixture(params=KINDS)
def case(request):
    """A teacher, the network of a student, and a condition."""
    if request.param == "classes":
        teacher = tiny_conditional(3)
        return teacher, teacher.network, LABELS
    return tiny_denoiser(request.param), tiny_denoiser(request.param, seed=3).network, None


def test_one_step_is_the_students_answer(case, tmp_path):
    teacher, network, condition = case
    schedule = teacher.schedule
    start = start_time(schedule, 2.5)
    with torch.no_grad():
        at_end = NoiseStudent(network, schedule, teacher.prediction_type)
        expected = {
            "boot": at_end(NOISE, schedule.t_min, condition),
            "knowledge_distillation": at_end(NOISE, schedule.t_max, condition),
            "sid": NoiseStudent(network, schedule, teacher.prediction_type, start)(NOISE, start, condition),
        }
    for name, answer in expected.items():
        found = sampled(name, tmp_path / name, teacher, network, 1, condition)
        torch.testing.assert_close(found, answer, rtol=0, atol=1e-6)


def test_students_of_several_steps_take_ddims(case, tmp_path):
    teacher, network, condition = case
    with torch.no_grad():
        expected = ddim_sample(teacher.with_network(network).eval(), NOISE, 4, condition)
    found = sampled("progressive_distillation", tmp_path, teacher, network, 4, condition)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_one_step_of_consistency_is_the_function_at_the_last_level(case, tmp_path):
    teacher, network, condition = case
    # Of a flow the level of t_max is infinite; the last one that is used is the last whole timestep below σ/α = 80.
    schedule, largest = teacher.schedule, 80.0 if teacher.prediction_type == "flow" else 1e9
    last = schedule.time_of(torch.tensor(largest, dtype=torch.float64).log())
    at = schedule.at(schedule.time((schedule.timestep(last) + 1e-6).floor()))
    with torch.no_grad():
        expected = consistency_function(teacher.with_network(network).eval(), at.sigma * NOISE, at, condition)
    found = sampled("consistency_distillation", tmp_path, teacher, network, 1, condition, sigma_max=largest)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
