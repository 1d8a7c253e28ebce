"""The benchmark of training measures what it says; how long anything takes is not asserted."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import training as benchmark

CPU, TINY = torch.device("cpu"), Path(__file__).parent / "tiny.yaml"


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("teacher", (0, 4)),
        (
            "BOOT",
            (4 + 5, 5),
        ),  # the Euler variant: the student at t, the teacher at t and t_max; the student at s and t_max
        ("progressive", (2 * 4, 4)),
        ("consistency", (2 * 4 + 4, 4)),  # Heun's two estimates and the target network
    ],
)
def test_a_training_takes_turns_with_the_plain_loop_and_its_bare_passes(name, evaluations):
    known = {}
    row = benchmark.measure(benchmark.parse(TINY), name, 4, {}, 2, CPU, 1e6, known)
    assert known == {name: evaluations}
    assert row["operations"] == 1e6 * (evaluations[0] + 3 * evaluations[1])
    assert {kind: len(values) for kind, values in row["seconds"].items()} == dict.fromkeys(
        ("ours", "plain", "bare", "product"), 2
    )
    assert min(row["over_plain"], row["over_bare"], row["pictures_per_second"]) > 0
    assert row["arithmetic"] == "float32"


def test_the_plain_loop_trains():
    torch.manual_seed(0)
    loop = benchmark.PlainLoop(benchmark.parse(TINY), 4, CPU)
    before = [p.detach().clone() for p in loop.network.parameters()]
    loop.train(2)
    assert sum(not torch.equal(a, b) for a, b in zip(before, loop.network.parameters(), strict=True)) > 10


def test_sampling_is_timed_at_one_batch():
    row = benchmark.sampling(benchmark.parse(TINY), 2, 4, CPU)
    assert set(row["rates"]) == {1, 2, 4}
    assert row["batch"] in row["rates"]
    assert row["ratio"] == pytest.approx(row["one_evaluation"] / row["fifty_evaluations"])


def test_the_time_ends_what_is_running():
    with pytest.raises(benchmark.OutOfTime), benchmark.until(time.monotonic() + 0.05):
        time.sleep(10)
    with benchmark.until(time.monotonic() + 100):
        pass
