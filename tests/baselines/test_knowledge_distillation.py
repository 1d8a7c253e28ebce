"""Direct knowledge distillation: its loss by hand, and the offline set that it trains on."""

import json

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_conditional, tiny_denoiser

from baselines.knowledge_distillation import KnowledgeDistillation, KnowledgeDistillationSettings
from diffusion.conditions import Unconditional
from diffusion.distillation.pairs import SEED, Pairs, PairsSettings, generate_pairs
from diffusion.noise import initial_noise
from diffusion.runtime.errors import CheckpointError, NonFiniteError
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers.settings import TeacherSettings
from diffusion.training.loop import TrainingRun

CPU = torch.device("cpu")
SETTINGS = PairsSettings(count=10, num_inference_steps=4)
SHAPE = (1, 8, 8)


class Constant(torch.nn.Module):
    """A network that answers ``value`` everywhere and remembers what it was told."""

    def __init__(self, value):
        super().__init__()
        self.value, self.told, self.fed = value, None, None

    def forward(self, fed, told, return_dict=False):
        self.fed, self.told = fed, told
        return (torch.full_like(fed, self.value),)


def kd_loss(student, noise, samples):
    method = KnowledgeDistillation(KnowledgeDistillationSettings())
    return method.loss(student, None, noise, samples, None)


def test_the_loss_is_the_mean_squared_distance_of_the_reading_by_hand():
    schedule, network = CosineSchedule(), Constant(0.7)
    student = NoiseStudent(network, schedule, "v_prediction")
    noise, samples = torch.full((2, 1, 1, 1), 1.5), torch.tensor([0.25, -0.5]).view(2, 1, 1, 1)
    alpha, sigma = np.cos(0.999 * np.pi / 2), np.sin(0.999 * np.pi / 2)
    picture = alpha * 1.5 - sigma * 0.7
    expected = ((picture - 0.25) ** 2 + (picture + 0.5) ** 2) / 2
    assert float(kd_loss(student, noise, samples)) == pytest.approx(expected, rel=1e-6)
    assert network.told.tolist() == [schedule.num_timesteps - 1] * 2
    assert torch.equal(network.fed, noise)


def test_a_perfect_student_has_no_loss():
    """On Gaussian data DDIM with N steps is affine in the noise, and so can be a student."""
    teacher = GaussianTeacher(CosineSchedule())
    noise = torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    samples = ddim_sample(teacher, noise, 8)
    slope, offset = np.polyfit(noise.flatten().numpy(), samples.flatten().numpy(), 1)

    class Affine(torch.nn.Module):
        def forward(self, fed, told, return_dict=False):
            return (slope * fed + offset,)

    student = NoiseStudent(Affine(), teacher.schedule, "sample")
    assert float(kd_loss(student, noise, samples)) < 1e-12
    assert float(kd_loss(student, noise, samples + 0.1)) == pytest.approx(0.01, rel=1e-4)


def generate(folder, teacher=None, batch_size=4, settings=SETTINGS):
    folder.mkdir(parents=True, exist_ok=True)
    teacher = teacher or tiny_denoiser()
    with TrainingRun(folder / "state", "key", 0, CPU) as run:
        generate_pairs(settings, teacher, run, folder, batch_size)
    return Pairs(folder, teacher.conditions)


def test_pairs_are_the_teachers_samples_from_noise_that_nobody_samples_with(tmp_path):
    teacher = tiny_denoiser()
    pairs = generate(tmp_path, teacher)
    assert len(pairs) == 10
    with torch.inference_mode():
        expected = ddim_sample(teacher, initial_noise(SEED, range(10), SHAPE), 4)
    noise, samples, condition = pairs.draw(64, torch.Generator().manual_seed(0))
    assert condition is None
    known = initial_noise(SEED, range(10), SHAPE)
    index = [int((known - one).abs().sum((1, 2, 3)).argmin()) for one in noise]
    assert set(index) == set(range(10))
    assert torch.equal(noise, known[index])
    torch.testing.assert_close(samples, expected[index], rtol=2e-3, atol=1e-3)  # stored as float16
    assert pairs.cost["network_evaluations"] == 40
    assert pairs.cost["real_images_seen"] == 0
    assert pairs.cost["offline_bytes"] == 10 * 64 * 2


def test_a_stopped_generation_goes_on_and_ends_the_same(tmp_path):
    whole, teacher = generate(tmp_path / "whole"), tiny_denoiser()
    calls = 0

    def interrupt(_module, _inputs):
        nonlocal calls
        calls += 1
        if calls > 6:  # in the second batch of three
            raise KeyboardInterrupt

    handle = teacher.network.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "stopped", teacher)
    handle.remove()
    evaluated = []
    teacher.network.register_forward_pre_hook(lambda _m, inputs: evaluated.append(len(inputs[0])))
    resumed = generate(tmp_path / "stopped", teacher)
    assert sum(evaluated) == 4 * 6  # not those of the first batch of four
    for one, two in zip(*(p.draw(20, torch.Generator().manual_seed(1))[:2] for p in (whole, resumed)), strict=True):
        assert torch.equal(one, two)
    assert whole.cost["network_evaluations"] == resumed.cost["network_evaluations"] == 40


def test_pairs_of_a_conditional_teacher_know_their_class(tmp_path):
    teacher = tiny_conditional(num_classes=3)
    pairs = generate(tmp_path, teacher)
    noise, samples, condition = pairs.draw(32, torch.Generator().manual_seed(0))
    known = initial_noise(SEED, range(10), SHAPE)
    index = torch.tensor([int((known - one).abs().sum((1, 2, 3)).argmin()) for one in noise])
    assert torch.equal(condition["class_labels"], index % 3)
    with torch.inference_mode():
        expected = ddim_sample(teacher, noise, 4, condition)
    torch.testing.assert_close(samples, expected, rtol=2e-3, atol=2e-3)


def test_broken_sets_are_refused(tmp_path):
    generate(tmp_path)
    images = tmp_path / "images.npy"
    content = images.read_bytes()
    images.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Pairs(tmp_path, Unconditional())
    images.write_bytes(content)
    facts = json.loads((tmp_path / "pairs.json").read_text())
    facts["settings"]["count"] = 11
    (tmp_path / "pairs.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="10 pairs, expected 11"):
        Pairs(tmp_path, Unconditional())


def test_samples_that_are_not_finite_stop_the_job(tmp_path):
    teacher = tiny_denoiser(clip=False)
    with torch.no_grad():
        next(teacher.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="pairs 0 to 3"):
        generate(tmp_path, teacher)


def test_the_students_cost_holds_that_of_the_set(tmp_path):
    pairs, method = generate(tmp_path), build()
    with TrainingRun(tmp_path / "training", "key", 0, CPU) as run:
        (student,) = method.distil(tiny_denoiser(), run, pairs)
        own = run.evaluations
    assert own == 4 * 6
    assert student.cost["network_evaluations"] == 40 + own
    assert student.cost["offline_bytes"] == pairs.cost["offline_bytes"]
    assert student.cost["wall_clock_s"] == pytest.approx(
        pairs.cost["wall_clock_s"] + run.cost()["wall_clock_s"], abs=0.5
    )
    (snapshot,) = student.snapshots
    assert snapshot.step == 2
    assert snapshot.cost["network_evaluations"] == 40 + 2 * 6
    assert student.cost["cpu_s"] == pytest.approx(pairs.cost["cpu_s"] + run.cost()["cpu_s"], abs=0.5)
    # A set whose making was not timed so: the sum is not known.
    del pairs.cost["cpu_s"], pairs.cost["gpu_s"]
    with TrainingRun(tmp_path / "again", "key", 0, CPU) as run:
        (student,) = method.distil(tiny_denoiser(), run, pairs)
    assert {"cpu_s", "gpu_s"}.isdisjoint(student.cost)
    assert student.cost["wall_clock_s"] > 0


def build(**changes):
    training = {"steps": 4, "batch_size": 6, "ema_decay": 0.5, "snapshots": 1}
    settings = {"pairs": SETTINGS.model_dump(), "training": training} | changes
    return KnowledgeDistillation(KnowledgeDistillationSettings.model_validate(settings))


def test_more_steps_than_the_teacher_has_are_refused():
    teacher = {"schedule": {"num_timesteps": 20}, "training": {"steps": 1}}
    facts = TeacherSettings.model_validate(teacher).facts((1, 8, 8))
    with pytest.raises(ValueError, match=r"pairs\.num_inference_steps: found 21, expected at most"):
        build(pairs={"count": 4, "num_inference_steps": 21}).check(facts)
