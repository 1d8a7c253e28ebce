"""Speed: what is called how often, in which order, and what the columns hold. Nothing is asserted on time."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from draws import Draws
from methods import METHODS, build
from tiny import tiny_denoiser

from diffusion.noise import further_noise, noise_generators
from diffusion.runtime.errors import NonFiniteError, UserError
from evaluation.measure import speed
from evaluation.measure.speed import COLUMNS, measure_speed, median_precision


class Clock:
    """Stands in for the time module: it moves only when a fake sampler says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def fake(calls, name, clock=None, seconds=0.0):
    def sampler(noise):
        calls.append((name, len(noise), noise.clone()))
        if clock is not None:
            clock.now += seconds() if callable(seconds) else seconds
        return noise

    return sampler


def noise(batch_size):
    return torch.randn(batch_size, 1, 2, 2)


def test_rounds_interleave_and_share_noise(clock):
    calls = []
    samplers = {name: fake(calls, name, clock, 1.0) for name in "abc"}
    result = measure_speed(samplers, noise, [4], "cpu", seconds=0, warmup=2, min_rounds=5)
    assert [row["rounds"] for row in result.rows] == [5, 5, 5]
    # one checked call each, two warm-up rounds, five timed rounds, at most one call for the memory
    for name in "abc":
        assert 1 + 2 + 5 <= sum(call[0] == name for call in calls) <= 1 + 2 + 5 + 1
    rounds = [calls[3 + 3 * i : 6 + 3 * i] for i in range(7)]
    for played in rounds:
        assert {call[0] for call in played} == set("abc")
        assert all(torch.equal(call[2], played[0][2]) for call in played)
    assert not torch.equal(rounds[0][0][2], rounds[1][0][2])
    orders = ["".join(call[0] for call in played) for played in rounds]
    assert len(set(orders)) > 3, "the order must be drawn"
    calls.clear()
    measure_speed(samplers, noise, [4], "cpu", seconds=0, warmup=2, min_rounds=5)
    assert ["".join(call[0] for call in calls[3 + 3 * i : 6 + 3 * i]) for i in range(7)] == orders


def test_rounds_fill_the_budget_up_to_the_limit(clock):
    calls, durations = [], itertools.cycle([0.9998, 1.0])  # a median that is never quite known
    samplers = {"a": fake(calls, "a", clock, lambda: next(durations))}
    options = {"warmup": 1, "seconds": 20, "precision": 1e-9}
    assert measure_speed(samplers, noise, [1], "cpu", **options).rows[0]["rounds"] == 19
    assert measure_speed(samplers, noise, [1], "cpu", max_rounds=7, **options).rows[0]["rounds"] == 7
    both = measure_speed(samplers, noise, [1, 2], "cpu", **options).rows
    assert [row["rounds"] for row in both] == [9, 9]


def test_rounds_end_when_every_median_is_precise(clock):
    """Six latencies are the fewest with an interval; of equal ones it has no width. A restless sampler keeps all on."""
    calls, durations = [], itertools.cycle([0.5, 1.5])
    steady = fake(calls, "a", clock, 1.0)
    (row,) = measure_speed({"a": steady}, noise, [1], "cpu", seconds=1000).rows
    assert (row["rounds"], row["median_precision"]) == (6, 0)
    both = {"a": steady, "b": fake(calls, "b", clock, lambda: next(durations))}
    assert {row["rounds"] for row in measure_speed(both, noise, [1], "cpu", seconds=1000, max_rounds=40).rows} == {40}
    loose = measure_speed(both, noise, [1], "cpu", seconds=1000, max_rounds=40, precision=0.9).rows
    assert {row["rounds"] for row in loose} == {6}


def test_the_precision_of_a_median_is_from_order_statistics():
    """Of ten values the 95 % interval runs from the second to the ninth (coverage 0.979)."""
    assert median_precision(np.arange(1.0, 11.0)) == pytest.approx((9 - 2) / 2 / 5.5)
    assert median_precision([1.0] * 5) is None


class Network(torch.nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock.now += self.seconds
        return x


def test_time_is_split_into_the_network_and_the_rest(clock):
    network = Network(clock, 0.3)

    def sampler(x):
        clock.now += 0.4
        return network(network(x))

    (row,) = measure_speed({"a": sampler}, noise, [2], "cpu", networks={"a": network}, seconds=0).rows
    assert row["network_share"] == pytest.approx(0.6)
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_parts_take_their_turns_and_are_columns_of_every_row(clock):
    calls = []
    samplers = {"a": fake(calls, "a", clock, 1.0), "b": fake(calls, "b", clock, 2.0)}
    parts = {"decoder": fake(calls, "decoder", clock, lambda: 0.25 * len(calls[-1][2]))}
    rows = measure_speed(samplers, noise, [1, 2], "cpu", parts=parts, seconds=0, min_rounds=6).rows
    assert [(row["key"], row["batch_size"], row["decoder_ms"]) for row in rows] == [
        ("a", 1, 250.0), ("b", 1, 250.0), ("a", 2, 500.0), ("b", 2, 500.0)
    ]  # fmt: skip
    assert {row["text_encoder_ms"] for row in rows} == {None}
    assert [row["latency_ms_median"] for row in rows[:2]] == [1000, 2000]


def test_energy_is_missing_without_a_card_and_counted_with_one(clock, monkeypatch):
    assert speed.energy_per_image(lambda x: x, noise(2), torch.device("cpu")) is None

    @contextlib.contextmanager
    def counter(_device):
        yield lambda: 100 * clock.now  # a card of 100 W

    monkeypatch.setattr(speed, "_energy_counter", counter)
    sampler = fake([], "a", clock, 0.25)
    assert speed.energy_per_image(sampler, noise(5), torch.device("cpu")) == pytest.approx(100 * 0.25 / 5)


def test_columns_and_values(clock):
    calls = []
    samplers = {"ddim-50": fake(calls, "ddim-50", clock, 0.5), "boot": fake(calls, "boot", clock, 0.01)}
    result = measure_speed(samplers, noise, [10, 1], "cpu", seconds=0)
    assert [(row["key"], row["batch_size"]) for row in result.rows] == [
        ("ddim-50", 10), ("boot", 10), ("ddim-50", 1), ("boot", 1)
    ]  # fmt: skip
    teacher, boot = result.rows[:2]
    assert set(COLUMNS) < set(boot)
    assert boot["images_per_second"] / teacher["images_per_second"] == pytest.approx(50)
    assert boot["images_per_second"] == pytest.approx(1000)
    assert boot["latency_ms_median"] == pytest.approx(10)
    assert boot["latency_ms_p95"] == pytest.approx(10)
    assert boot["latency_ms_iqr"] == pytest.approx(0, abs=1e-9)
    assert boot["dtype"] == "float32"
    assert len(result.raw["latency_ms"]["10"]["boot"]) == boot["rounds"]


def test_memory_is_a_figure_or_missing():
    def sampler(x):
        return x + torch.ones(8_000_000).sum() * 0

    value = measure_speed({"a": sampler}, noise, [1], "cpu", seconds=0).rows[0]["peak_memory_mb"]
    assert value is None or (math.isfinite(value) and value > 30)


def test_memory_is_missing_where_the_mark_cannot_be_reset(monkeypatch):
    monkeypatch.setattr(speed, "_reset_peak_resident_set", lambda: False)
    assert measure_speed({"a": lambda x: x}, noise, [1], "cpu", seconds=0).rows[0]["peak_memory_mb"] is None


STOCHASTIC = {"consistency_distillation", "ddpm", "ddim, eta 1"}


@pytest.mark.parametrize("name", [*METHODS, "ddim, eta 1"])
def test_no_noise_is_drawn_sample_by_sample_within_the_clock(name, tmp_path, monkeypatch):
    """Of all methods: what takes longer than a small network on a GPU must not be timed with it."""
    kind, _, eta = name.partition(", eta ")
    method = build(kind)
    if eta:
        method.settings = method.settings.model_copy(update={"eta": float(eta)})
    method.save(tmp_path, tiny_denoiser().network, tiny_denoiser())
    sampler, _network = method.sampler(tmp_path, max(method.evaluations()), torch.device("cpu"))
    made = []

    def watched(x):
        with Draws() as draws:
            images = sampler(x, None)
        made.extend(draws.made)
        return images

    x = torch.randn(3, 1, 8, 8)
    watched(x)
    assert {shape[0] for shape, _ in made} == ({1} if name in STOCHASTIC else set())
    made.clear()
    monkeypatch.setattr("diffusion.noise.hashlib", None)  # a generator a sample needs it
    measure_speed({"it": watched}, lambda _count: x, [3], "cpu", seconds=0)
    assert {shape for shape, _ in made} == ({(3, 1, 8, 8)} if name in STOCHASTIC else set())


def test_noise_by_batch_is_normal_and_goes_on(monkeypatch):
    """Standard normal, another at every draw and at every call, and by sample again when the timing is over."""
    drawn = []

    def sampler(x):
        generators = noise_generators(x)
        drawn.append([further_noise(generators, x) for _ in range(2)])
        return x

    x = torch.randn(500, 1, 8, 8)
    result = measure_speed({"it": sampler}, lambda _count: x, [500], "cpu", seconds=0, warmup=0)
    assert result.raw["further_noise"] == "drawn on the device, a batch at once"
    draws = torch.stack([one for call in drawn for one in call]).flatten(1)
    assert len(draws) >= 14
    assert torch.corrcoef(draws).sub(torch.eye(len(draws))).abs().max() < 0.05  # deviation 1/√32000 = 0.006
    assert draws.mean().abs() < 0.01
    assert draws.std() == pytest.approx(1, abs=0.01)
    assert isinstance(noise_generators(x), list)


def test_bad_samplers_are_refused():
    with pytest.raises(NonFiniteError, match="'broken'"):
        measure_speed({"broken": lambda x: x * math.nan}, noise, [2], "cpu", seconds=0)
    with pytest.raises(UserError, match="1 pictures for a batch of 2"):
        measure_speed({"short": lambda x: x[:1]}, noise, [2], "cpu", seconds=0)
    with pytest.raises(UserError, match="nothing to measure"):
        measure_speed({}, noise, [2], "cpu")
