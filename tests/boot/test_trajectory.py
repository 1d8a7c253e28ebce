"""Errors along the trajectory, on teachers whose trajectory is known."""

import itertools

import pytest
import torch
from gaussian import GaussianTeacher, MixtureTeacher

from boot.state_student import StateStudent
from boot.trajectory import NEAR_ZERO, ddim_signal, trajectory_errors, true_signals
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent

SCHEDULE = CosineSchedule()
TEACHER = GaussianTeacher(SCHEDULE)
NOISE = torch.randn(32, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T_MAX = torch.tensor(SCHEDULE.t_max, dtype=torch.float64)
TIMES = torch.linspace(SCHEDULE.t_max, SCHEDULE.t_min, 11, dtype=torch.float64)


class Exact(NoiseStudent):
    """The true signal, plus ``off``."""

    def __init__(self, off=0.0):
        super().__init__(torch.nn.Identity(), SCHEDULE, "sample")
        self.off = off

    def forward(self, noise, t, condition=None):
        return TEACHER.signal(noise, T_MAX, t) + self.off


def test_the_exact_student_has_no_error_and_one_that_is_off_has_its_square():
    exact = trajectory_errors(Exact(), TEACHER, NOISE, TIMES, substeps=32)
    off = trajectory_errors(Exact(0.1), TEACHER, NOISE, TIMES, substeps=32)
    assert float(exact.student.max()) < 1e-4
    torch.testing.assert_close(off.student, torch.full_like(off.student, 0.01), rtol=0.1, atol=0)


def test_what_a_step_adds_is_the_distance_to_where_the_teacher_carries_the_students_own_signal():
    """A constant ``off`` travels with the flow, whose states keep (x_t − α_t mean) / spread_t: at s it has become
    (α_t spread_s) / (α_s spread_t) times as large. The student says it again; the rest is what it adds."""
    alpha = SCHEDULE.alpha(TIMES)
    spread = (alpha.square() * TEACHER.scale**2 + SCHEDULE.sigma(TIMES).square()).sqrt()
    kept = (alpha[:-1] * spread[1:]) / (alpha[1:] * spread[:-1])
    found = trajectory_errors(Exact(0.1), TEACHER, NOISE, TIMES, ddim_steps=(), substeps=128).one_step
    assert torch.isnan(found[0])
    torch.testing.assert_close(found[1:], (0.1 * (1 - kept)).square(), rtol=2e-3, atol=0)


def test_the_exact_student_adds_nothing_but_the_solvers_error_which_falls_with_its_steps():
    added = [
        float(trajectory_errors(Exact(), TEACHER, NOISE, TIMES, (), substeps).one_step[1:].max())
        for substeps in (1, 8, 16, 32, 64)
    ]
    assert added[0] > 5e-4  # a single step, as the largest of the grid: what a student must not be charged with
    assert added[-1] < 1e-8
    # The square of an error of second order: a sixteenth with every doubling, next to t_min a little later.
    assert all(8 < coarse / fine < 20 for coarse, fine in itertools.pairwise(added[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [TEACHER, MixtureTeacher(SCHEDULE)])
def test_a_student_of_the_true_trajectory_adds_nothing_at_all(teacher, dtype):
    noise = NOISE.to(dtype)
    truth = dict(zip(TIMES.tolist(), true_signals(teacher, noise, TIMES, 8), strict=True))

    class Reproduced(NoiseStudent):
        def forward(self, noise, t, condition=None):
            return truth[float(t)]

    errors = trajectory_errors(Reproduced(torch.nn.Identity(), SCHEDULE, "sample"), teacher, noise, TIMES, (), 8)
    assert errors.student.tolist() == [0] * len(TIMES)
    assert errors.one_step[1:].tolist() == [0] * (len(TIMES) - 1)


def test_ddim_with_more_evaluations_is_nearer_and_with_one_it_is_the_teachers_first_estimate():
    errors = trajectory_errors(Exact(), TEACHER, NOISE, TIMES, ddim_steps=(1, 2, 4, 8, 64), substeps=32)
    at_the_end = [float(values[-1]) for values in errors.ddim.values()]
    assert at_the_end == sorted(at_the_end, reverse=True)
    assert at_the_end[-1] < 0.01 * at_the_end[0]
    first = TEACHER(NOISE, T_MAX)
    torch.testing.assert_close(ddim_signal(TEACHER, NOISE, TIMES[-1], 1), first)
    for values in errors.ddim.values():
        assert float(values[0]) < 1e-20  # at t_max the start is common to all


def test_ddim_signal_counts_its_evaluations():
    calls = 0

    class Counted(GaussianTeacher):
        def estimate(self, x_t, t, condition=None):
            nonlocal calls
            calls += 1
            return super().estimate(x_t, t)

    for count in (1, 2, 5):
        calls = 0
        ddim_signal(Counted(SCHEDULE), NOISE, TIMES[-1], count)
        assert calls == count


def test_ddim_signal_is_ddim():
    """In the state, one level further down: a sampler whose last step ends at t_min and not at the clean picture."""
    t = torch.tensor(SCHEDULE.t_min, dtype=torch.float64)
    fine = SCHEDULE.at(t).noised(ddim_signal(TEACHER, NOISE, t, 400), NOISE)
    torch.testing.assert_close(fine, ddim_sample(TEACHER, NOISE, 400), rtol=0, atol=0.02)


def test_increments_that_vanish_are_counted():
    # A teacher that always answers 0.3 and a student that says so too: nothing left to add anywhere.
    teacher = GaussianTeacher(SCHEDULE, mean=0.3, scale=1e-9)

    class Says(NoiseStudent):
        def forward(self, noise, t, condition=None):
            y = torch.full_like(noise, 0.3)
            y[:, :, 0, 0] += 2 * NEAR_ZERO
            return y

    errors = trajectory_errors(Says(torch.nn.Identity(), SCHEDULE, "sample"), teacher, NOISE, TIMES)
    assert errors.near_zero.tolist() == pytest.approx([0.75] * len(TIMES))


def test_a_student_of_the_state_is_read_as_its_signal():
    """The exact state gives the exact signal, and an error of the state that of the signal over α_t."""

    class State(torch.nn.Module):
        def __init__(self, off):
            super().__init__()
            self.off = off

        def forward(self, noise, timestep, return_dict=False):
            t = SCHEDULE.time(timestep)
            return (SCHEDULE.at(t).noised(TEACHER.signal(noise, T_MAX, t), noise) + self.off,)

    t = torch.full((len(NOISE),), 0.6, dtype=torch.float64)
    exact, off = (StateStudent(State(value), SCHEDULE, "sample")(NOISE, t) for value in (0.0, 0.1))
    torch.testing.assert_close(exact, Exact()(NOISE, t), rtol=0, atol=1e-5)
    torch.testing.assert_close((off - exact) * SCHEDULE.at(t).alpha, torch.full_like(off, 0.1), rtol=1e-5, atol=0)
