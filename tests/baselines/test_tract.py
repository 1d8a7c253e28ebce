"""TRACT against closed forms, computed in numpy from the paper's formulas."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import tiny_denoiser, tiny_splits

from baselines import tract
from baselines.tract import Tract, TractSettings, tract_loss, tract_target
from diffusion.data.kinds import parse_settings
from diffusion.data.store import load_split, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule
from diffusion.solvers import ddim_sample
from diffusion.teachers.settings import TeacherSettings
from diffusion.thresholding import NO_THRESHOLD
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings

CPU = torch.device("cpu")
SCHEDULE = CosineSchedule()
EDM = EdmSchedule()
MEAN, SCALE = 0.3, 0.5  # of the Gaussian teacher's data
NOISE = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
POINTS = torch.arange(1, 17)
SHORT = {"training": {"steps": 1}, "schedule": {"num_timesteps": 200}}


def level(schedule, point, num_steps):
    """(α, σ) at a point of the grid, by the schedules' formulas: timestep = point · T/N − 1, and the clean picture."""
    if point == 0:
        return 1.0, 0.0
    share = (point * schedule.num_timesteps / num_steps - 1) / (schedule.num_timesteps - 1)
    if isinstance(schedule, EdmSchedule):
        return 1.0, (0.002 ** (1 / 7) + share * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    angle = np.pi / 2 * (0.001 + share * 0.998)
    return np.cos(angle), np.sin(angle)


def posterior_mean(z, alpha, sigma, mean=MEAN, scale=SCALE):
    return mean + alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * (z - alpha * mean)


def moved(z, x, now, then):
    """A DDIM step with the estimate x."""
    return then[0] * x + then[1] * (z - now[0] * x) / now[1]


def teacher_steps(schedule, z, first, last, num_steps):
    """z at point ``last`` after the teacher's DDIM steps from point ``first``."""
    for point in range(first, last, -1):
        now, then = level(schedule, point, num_steps), level(schedule, point - 1, num_steps)
        z = moved(z, posterior_mean(z, *now), now, then)
    return z


def picture_between(z, end, now, then):
    """The x with which one DDIM step leads from z to ``end``."""
    return (end - then[1] / now[1] * z) / (then[0] - now[0] * then[1] / now[1])


class Composition(Denoiser):
    """The student that jumps exactly where all the teacher's steps to the group's start lead, by the closed form."""

    def __init__(self, schedule, group, num_steps):
        super().__init__(torch.nn.Identity(), schedule, "sample", NO_THRESHOLD)
        self.group, self.num_steps = group, num_steps

    def estimate(self, x_t, t, condition=None):
        timestep = self.schedule.timestep(self.schedule.at(t).time)
        points = ((timestep + 1) * self.num_steps / self.schedule.num_timesteps).round().int()
        found = []
        for z, point in zip(x_t.numpy(), points.tolist(), strict=True):
            if point == 0:  # the clean picture: no estimate is used there
                found.append(np.full_like(z, np.nan))
                continue
            start = (point - 1) // self.group * self.group
            now, then = (level(self.schedule, p, self.num_steps) for p in (point, start))
            end = teacher_steps(self.schedule, z, point, start, self.num_steps)
            found.append(picture_between(z, end, now, then))
        return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["cosine", "edm"])
@pytest.mark.parametrize("group", [2, 4, 16])
def test_the_composition_of_the_teachers_steps_is_the_zero_of_the_loss(schedule, group):
    teacher, exact = GaussianTeacher(schedule), Composition(schedule, group, 16)
    other = GaussianTeacher(schedule, mean=-0.4)
    arguments = (0.3 * NOISE.flip(0), NOISE, POINTS, group, 16)
    assert float(tract_loss(exact, teacher, exact, *arguments)) < 1e-17
    # And it is the only one: another self-teacher, or another student, leaves a loss.
    assert float(tract_loss(exact, teacher, other, *arguments)) > 1e-6
    assert float(tract_loss(teacher, teacher, exact, *arguments)) > 1e-6


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["cosine", "edm"])
def test_target_in_the_middle_of_a_group_by_the_formula_of_the_paper(schedule):
    teacher, other = GaussianTeacher(schedule), GaussianTeacher(schedule, mean=-0.4, scale=0.9)
    z = NOISE.numpy()
    # Groups of 4 of 16 steps: from point 7 the teacher leads to 6, and the self-teacher from 6 to 4.
    now, middle, start = (level(schedule, point, 16) for point in (7, 6, 4))
    z_middle = moved(z, posterior_mean(z, *now), now, middle)
    z_start = moved(z_middle, posterior_mean(z_middle, *middle, mean=-0.4, scale=0.9), middle, start)
    found = tract_target(teacher, other, NOISE, torch.full((16,), 7), 4, 16)
    np.testing.assert_allclose(found.numpy(), picture_between(z, z_start, now, start), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["cosine", "edm"])
def test_the_teachers_heun_step_averages_the_slopes_of_both_ends(schedule):
    """In the paper's variables z/α and σ/α; from point 7 to 6, and the self-teacher goes on from there."""
    teacher, other = GaussianTeacher(schedule), GaussianTeacher(schedule, mean=-0.4, scale=0.9)
    now, middle, start = (level(schedule, point, 16) for point in (7, 6, 4))
    z = NOISE.numpy()
    tau, tau_middle = now[1] / now[0], middle[1] / middle[0]

    def slope(state, at):
        return (state - posterior_mean(state * at[0], *at)) / (at[1] / at[0])

    euler = z / now[0] + (tau_middle - tau) * slope(z / now[0], now)
    heun = z / now[0] + (tau_middle - tau) * (slope(z / now[0], now) + slope(euler, middle)) / 2
    z_middle = middle[0] * heun
    z_start = moved(z_middle, posterior_mean(z_middle, *middle, mean=-0.4, scale=0.9), middle, start)
    found = tract_target(teacher, other, NOISE, torch.full((16,), 7), 4, 16, solver="heun")
    np.testing.assert_allclose(found.numpy(), picture_between(z, z_start, now, start), rtol=1e-9, atol=1e-9)
    # Alone in its group, the step is all there is: two steps of the student, of 8 each, from point 9.
    now, start = level(schedule, 9, 16), level(schedule, 8, 16)
    heun = z / now[0]
    tau, tau_start = now[1] / now[0], start[1] / start[0]
    euler = heun + (tau_start - tau) * slope(heun, now)
    heun = heun + (tau_start - tau) * (slope(heun, now) + slope(euler, start)) / 2
    found = tract_target(teacher, other, NOISE, torch.full((16,), 9), 8, 16, solver="heun")
    np.testing.assert_allclose(found.numpy(), picture_between(z, start[0] * heun, now, start), rtol=1e-9, atol=1e-9)


def test_the_last_step_has_no_second_slope():
    teacher, other = GaussianTeacher(EDM), GaussianTeacher(EDM, mean=-0.4, scale=0.9)
    found = tract_target(teacher, other, NOISE, torch.full((16,), 1), 4, 16, solver="heun")
    expected = posterior_mean(NOISE.numpy(), *level(EDM, 1, 16))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("point", [1, 5])
def test_target_at_the_first_step_of_a_group_is_the_teachers_estimate(point):
    teacher, other = GaussianTeacher(SCHEDULE), GaussianTeacher(SCHEDULE, mean=-0.4, scale=0.9)
    found = tract_target(teacher, other, NOISE, torch.full((16,), point), 4, 16)
    expected = posterior_mean(NOISE.numpy(), *level(SCHEDULE, point, 16))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


class Perfect(Denoiser):
    """The student, and its own self-teacher, that reproduces its target exactly."""

    def __init__(self, teacher, group, num_steps):
        super().__init__(torch.nn.Identity(), teacher.schedule, "sample", NO_THRESHOLD)
        self.teacher, self.group, self.num_steps, self.below = teacher, group, num_steps, None

    def estimate(self, x_t, t, condition=None):
        timestep = self.schedule.timestep(self.schedule.at(t).time)
        step = ((timestep + 1) * self.num_steps / self.schedule.num_timesteps).round()
        if self.below == 0:  # the clean picture, which the target leaves out
            return x_t
        outer, self.below = self.below, int(step.max()) - 1
        try:
            return tract_target(self.teacher, self, x_t, step.expand(len(x_t)), self.group, self.num_steps)
        finally:
            self.below = outer


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["cosine", "edm"])
@pytest.mark.parametrize("phases", [(1,), (4, 1), (8, 2, 1)])
def test_perfect_students_of_all_phases_reproduce_the_teachers_16_steps(schedule, phases):
    source, steps = GaussianTeacher(schedule), 16
    start = schedule.start(NOISE)
    expected = teacher_steps(schedule, start.numpy(), 16, 0, 16)
    for number in phases:
        source, steps = Perfect(source, steps // number, steps), number
        np.testing.assert_allclose(ddim_sample(source, NOISE, number).numpy(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("point", [1, 4, 8])
def test_loss_weights(point):
    # Student estimate 0, target 1 (point masses): the loss is the mean weight.
    for schedule in (SCHEDULE, EDM):
        student, teacher = (GaussianTeacher(schedule, mean=mean, scale=1e-12) for mean in (0.0, 1.0))
        alpha, sigma = level(schedule, point, 8)
        expected = 1 / sigma**2 + 1 / 0.5**2 if schedule is EDM else max(alpha**2 / sigma**2, 1)
        loss = tract_loss(student, teacher, teacher, NOISE, NOISE, torch.full((16,), point), 4, 8)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    return load_split(tmp_path / "data", "train")


class Watched(TrainingRun):
    """Notes the weights of the network and of the self-teacher after each step."""

    stop_at = None

    def fit(self, stage, network, loss, settings, after_step=None, beside=None, **others):
        rows = self.__dict__.setdefault("rows", {}).setdefault(stage, [])
        average = beside["self_teacher"].module

        def weights(module):
            return np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])

        rows.append((weights(network), weights(average)))

        def noted(step):
            after_step(step)
            rows.append((weights(network), weights(average)))

        return super().fit(stage, network, loss, settings, after_step=noted, beside=beside, **others)

    def generator(self, stage, step, number=0):
        if (stage, step) == self.stop_at:
            raise KeyboardInterrupt
        return super().generator(stage, step, number)


def train(folder, data, stop_at=None, teacher=None, **settings):
    training = TrainingSettings(steps=5, batch_size=8, learning_rate=1e-3, ema_decay=0.8)
    method = Tract(TractSettings(start_steps=8, phases=(4, 1), training=training, **settings))
    with Watched(folder, "key", 0, CPU, checkpoint_seconds=0) as run:
        run.stop_at = stop_at
        try:
            return run, method.distil(teacher or tiny_denoiser(), run, data)
        except KeyboardInterrupt:
            return run, None


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_self_teacher_follows_the_weights_at_its_own_decay(tmp_path, data, decay):
    run, students = train(tmp_path / "state", data, self_teacher_decay=decay)
    assert [student.nfe for student in students] == [4, 1]
    for rows in run.rows.values():
        assert np.array_equal(rows[0][0], rows[0][1])  # both begin as the teacher
        expected = rows[1][0].astype(np.float64)  # the first update takes the weights as they are
        np.testing.assert_allclose(rows[1][1], expected, rtol=1e-6, atol=1e-8)
        for network, average in rows[2:]:
            expected = decay * expected + (1 - decay) * network
            np.testing.assert_allclose(average, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(rows[-1][1] - rows[-1][0]).max() > 1e-5


def test_each_phase_starts_from_the_average_that_the_last_one_kept(tmp_path, data):
    run, students = train(tmp_path / "state", data)
    kept = np.concatenate([parameter.detach().numpy().ravel() for parameter in students[0].network.parameters()])
    assert np.array_equal(run.rows["1-steps"][0][0], kept)
    assert not np.array_equal(run.rows["4-steps"][-1][0], kept)


def test_a_phase_closes_over_the_steps_of_the_student_before(tmp_path, data, monkeypatch):
    seen = []

    def noted(student, teacher, self_teacher, x, noise, step, **others):
        assert student.network is not teacher.network is not self_teacher.network is not student.network
        seen.append((others["num_steps"], others["group"], teacher.network, step))
        return tract_loss(student, teacher, self_teacher, x, noise, step, **others)

    monkeypatch.setattr(tract, "tract_loss", noted)
    first = tiny_denoiser()
    train(tmp_path / "state", data, teacher=first)
    assert [row[:2] for row in seen] == [(8, 2)] * 5 + [(4, 4)] * 5  # 8 steps to 4, and 4 to 1
    assert [row[2] is first.network for row in seen] == [True] * 5 + [False] * 5
    for rows, points in ((seen[:5], range(1, 9)), (seen[5:], range(1, 5))):
        assert set(torch.cat([row[3] for row in rows]).tolist()) == set(points)


@pytest.mark.parametrize("stage", ["4-steps", "1-steps"])
def test_the_self_teacher_is_restored_on_resume(tmp_path, data, stage):
    whole, _ = train(tmp_path / "whole", data)
    train(tmp_path / "stopped", data, stop_at=(stage, 3))
    resumed, _ = train(tmp_path / "stopped", data)
    rows = resumed.rows[stage]
    assert len(rows) == 1 + 2  # before the state is read, and the two steps that were left
    for found, expected in zip(rows[1:], whole.rows[stage][4:], strict=True):
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def zero_terminal_snr():
    angle = np.linspace(0.02, np.pi / 2, 40)
    return DiscreteSchedule(np.append(np.cos(angle[:-1]) ** 2, 0.0))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "edm", "zero terminal SNR"])
def test_every_teacher_can_be_distilled(tmp_path, data, kind):
    teacher = tiny_denoiser(kind if " " not in kind else "v_prediction")
    if " " in kind:
        teacher.schedule = zero_terminal_snr()
    before = copy.deepcopy(teacher.network.state_dict())
    run, students = train(tmp_path / "state", data, teacher=teacher)
    # Three evaluations a picture: student, teacher and self-teacher.
    assert students[-1].cost["network_evaluations"] == 2 * 5 * 8 * 3
    assert students[-1].cost["real_images_seen"] == 2 * 5 * 8
    assert all(np.isfinite(row["loss"]) for row in run.log)
    weights = students[-1].network.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any(not torch.equal(before[key], value) for key, value in weights.items())


@pytest.mark.parametrize("kind", ["v_prediction", "edm"])
def test_only_the_teacher_takes_heun_steps(tmp_path, data, kind):
    run, students = train(tmp_path / "state", data, teacher=tiny_denoiser(kind), solver="heun")
    # One more estimate of the teacher a picture in the first phase, whose last step computes one in vain.
    assert [student.cost["network_evaluations"] for student in students] == [5 * 8 * 4, 5 * 8 * (4 + 3)]
    assert all(np.isfinite(row["loss"]) for row in run.log)
    assert all(torch.isfinite(value).all() for value in students[-1].network.state_dict().values())


def test_heun_steps_need_a_signal():
    facts = TeacherSettings.model_validate(SHORT).facts((1, 8, 8))
    method = Tract(TractSettings(start_steps=40, phases=(8, 1), solver="heun"))
    method.check(facts)
    with pytest.raises(ValueError, match=r"solver: found 'heun' with a teacher without signal at t_max"):
        method.check(dataclasses.replace(facts, log_noise_to_signal=(facts.log_noise_to_signal[0], math.inf)))
    assert "solver" not in TractSettings().model_dump()


@pytest.mark.parametrize(
    ("start", "phases"), [(16, [16]), (16, [3]), (16, [4, 4]), (16, [4, 8]), (16, [4, 3]), (8, [0])]
)
def test_phases_that_are_no_groups_are_refused(start, phases):
    with pytest.raises(ValueError, match=rf"phases: found {phases[-1]} after .* expected a smaller divisor"):
        TractSettings.model_validate({"start_steps": start, "phases": phases})


def test_start_steps_must_lie_on_the_teachers_grid():
    facts = TeacherSettings.model_validate(SHORT).facts((1, 8, 8))
    Tract(TractSettings(start_steps=40, phases=(8, 1))).check(facts)
    with pytest.raises(ValueError, match=r"start_steps: found 48, expected a divisor .*200"):
        Tract(TractSettings(start_steps=48, phases=(8, 1))).check(facts)
