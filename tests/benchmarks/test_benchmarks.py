"""The benchmark of training measures what it says; how long anything takes is not asserted."""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from repository import ROOT, TINY

import diffusion.training.loop

sys.path.insert(0, str(ROOT / "benchmarks"))
import training as benchmark

CPU = torch.device("cpu")
EAGER = ["teacher", "BOOT", "sampling", "progressive", "consistency"]


def measure(name, changes=None, rounds=2, known=None, **options):
    known = {} if known is None else known
    return benchmark.measure(
        benchmark.parse(TINY), name, 4, changes or {}, rounds, 0.05, CPU, 1e6, known, **options
    ), known


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("teacher", (0, 4)),
        # The Euler variant: the student at t, the teacher at t and t_max; the student at s and t_max.
        ("BOOT", (4 + 5, 5)),
        ("progressive", (2 * 4, 4)),
        ("consistency", (2 * 4 + 4, 4)),  # Heun's two estimates and the target network
    ],
)
def test_a_training_takes_turns_with_the_plain_loop_and_its_bare_passes(name, evaluations):
    row, known = measure(name)
    assert known == {name: evaluations}
    assert row["operations"] == 1e6 * (evaluations[0] + 3 * evaluations[1])
    assert {kind: len(values) for kind, values in row["seconds"].items()} == dict.fromkeys(
        ("ours", "plain", "bare", "product", "ahead"), 2
    )
    assert min(row["over_plain"], row["over_bare"], row["pictures_per_second"]) > 0
    for ratio, (ours, theirs) in {"over_bare": ("ours", "bare"), "over_plain": ("plain", "ours")}.items():
        pairs = zip(row["seconds"][ours], row["seconds"][theirs], strict=True)
        assert row["ratios"][ratio] == pytest.approx([a / b for a, b in pairs])
    assert row["arithmetic"] == "float32"


def test_bare_passes_are_computed_as_those_of_the_loop(monkeypatch):
    switches, seen = ["torch's own"], {}

    @contextmanager
    def float32_products(_device, **options):
        switches.append(str(options))
        yield
        switches.pop()

    class Spy(benchmark.Recorder):
        def __call__(self, module, inputs, keywords):
            super().__call__(module, inputs, keywords)
            weight = module.conv_in.weight
            how = (
                switches[-1],
                torch.is_autocast_enabled("cpu"),
                torch.is_grad_enabled(),
                weight.is_contiguous(memory_format=torch.channels_last),
                module.training,
            )
            seen.setdefault("loop" if self.recording else "later", set()).add(how)

    monkeypatch.setattr(benchmark, "Recorder", Spy)
    monkeypatch.setattr(benchmark, "float32_products", float32_products)  # the plain loop's
    monkeypatch.setattr(diffusion.training.loop, "float32_products", float32_products)
    measure("BOOT", {"precision": "bf16", "channels_last": True})
    # The student with and without a gradient, and the teacher, which does not drop out.
    assert len(seen["loop"]) == 3
    assert seen["later"] == seen["loop"]
    assert {how[0] for how in seen["loop"]} == {"{'tf32': True}"}
    assert all(autocast and last for _, autocast, _, last, _ in seen["loop"])


@pytest.mark.parametrize(("products", "rounds"), [(5, 3), (4, None)])
def test_rounds_that_are_done_count_when_the_time_ends(products, rounds, monkeypatch):
    class OutAfterSome(benchmark.Product):  # one to warm up, then one a round, before ours
        def __call__(self):
            nonlocal products
            products -= 1
            if not products:
                raise benchmark.OutOfTime
            super().__call__()

    monkeypatch.setattr(benchmark, "Product", OutAfterSome)
    if rounds is None:  # too few
        with pytest.raises(benchmark.OutOfTime):
            measure("teacher", rounds=7, with_plain=False)
        return
    row, _ = measure("teacher", rounds=7, with_plain=False)
    assert row["over_plain"] is None
    assert {len(values) for values in (row["seconds"] | row["ratios"]).values()} == {rounds}


def test_the_plain_loop_trains():
    torch.manual_seed(0)
    loop = benchmark.PlainLoop(benchmark.parse(TINY), 4, CPU)
    before = [p.detach().clone() for p in loop.network.parameters()]
    loop.train(2)
    assert sum(not torch.equal(a, b) for a, b in zip(before, loop.network.parameters(), strict=True)) > 10


def test_sampling_compares_one_evaluation_with_the_pipelines_fifty(monkeypatch):
    passes, untrained = [], benchmark.untrained

    def watched(*arguments):
        teacher = untrained(*arguments)
        teacher.network.register_forward_pre_hook(lambda _network, inputs: passes.append(len(inputs[0])))
        return teacher

    monkeypatch.setattr(benchmark, "untrained", watched)
    row = benchmark.sampling(benchmark.parse(TINY), 2, 4, CPU)
    assert row["evaluations_per_image"] == {"student": 1, "pipeline_1": 1, "pipeline_50": 50}
    # Three rounds and one to warm up; the calls of one evaluation are five a turn.
    assert passes == [4] * (4 * (5 + 5 + 50))
    rates = row["images_per_second"]
    assert row["over_pipeline"]["pipeline_50"] == pytest.approx(rates["student"] / rates["pipeline_50"])


def test_the_time_ends_what_is_running():
    with pytest.raises(benchmark.OutOfTime), benchmark.until(time.monotonic() + 0.05):
        time.sleep(10)
    with benchmark.until(time.monotonic() + 100):
        pass


def run(tmp_path, *options):
    file = tmp_path / "rows.json"
    shape = ["--configfile", str(TINY), "--rounds", "2", "--batch-size", "2", "--json", str(file)]
    return benchmark.main(["--quick", *shape, *options]), json.loads(file.read_text())


def test_quick_measures_what_the_aims_are_about_first(tmp_path, monkeypatch, capsys):
    unfinished, write_json = [], benchmark.write_json

    def written(path, facts):
        write_json(path, facts)
        rows = json.loads(path.read_text())["rows"]
        unfinished.append([row["trains"] for row in rows if "not_run" in row])

    monkeypatch.setattr(benchmark, "write_json", written)
    code, found = run(tmp_path, "--modes", "--seconds", "3000")
    assert code == 0
    assert [row["trains"] for row in found["rows"]] == EAGER
    assert unfinished == [EAGER[done:] for done in range(6)]  # the file was whole before and after every row
    teacher, boot, sampled, *others = found["rows"]
    assert teacher["over_plain"] > 0
    assert boot["over_plain"] is None
    assert all(row["product_operations_per_second"] > 0 for row in (teacher, boot, *others))
    assert all("peak_memory_gib" in row for row in found["rows"])
    assert sampled["evaluations_per_image"]["pipeline_50"] == 50
    assert {"torch", "python", "accelerate"} <= found["versions"].keys()
    assert "processor" in found["hardware"]
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("tiny ")] == EAGER
    assert f"aim ≤ 1.10: {boot['over_bare']:.2f} (" in printed
    assert f"aim ≥ 2: {teacher['over_plain']:.2f} (" in printed
    assert f"aim ≥ 40 %: {teacher['share_of_product']:.1%} (" in printed


def test_what_does_not_fit_is_listed(tmp_path, monkeypatch, capsys):
    row, _ = measure("teacher")
    bounds = []

    @contextmanager
    def until(deadline):
        bounds.append(deadline - time.monotonic())
        yield

    def pretended(_experiment, name, *_rest):
        if name == "BOOT":
            raise benchmark.OutOfTime
        if name == "progressive":
            raise RuntimeError("no room\nfor it")
        return row

    monkeypatch.setattr(benchmark, "until", until)
    monkeypatch.setattr(benchmark, "measure", pretended)
    monkeypatch.setattr(benchmark, "sampling", lambda *_: {"not_run": "no pipeline"})
    code, found = run(tmp_path, "--seconds", "600")
    assert bounds == pytest.approx([200] * 5 + [300] * 2, abs=10)
    reasons = {(row["trains"], bool(row["changed"])): row.get("not_run") for row in found["rows"]}
    assert reasons == {
        ("teacher", False): None,
        ("BOOT", False): "not done in 200 s",
        ("sampling", False): "no pipeline",
        ("progressive", False): "RuntimeError: no room",
        ("consistency", False): None,
        ("teacher", True): "its eager form was not",
        ("BOOT", True): "its eager form was not",
    }
    assert code == 1
    printed = capsys.readouterr().out
    assert all(f"not run: {reason}" in printed for reason in reasons.values() if reason)
    assert "aim ≤ 1.10: not measured (not done in 200 s)" in printed
    assert f"aim ≥ 2: {row['over_plain']:.2f} (" in printed


@pytest.mark.parametrize(
    ("which", "error", "code"),
    [
        (None, None, 0),
        ("BOOT", benchmark.OutOfTime, 1),
        ("sampling", benchmark.OutOfTime, 1),
        ("consistency", benchmark.OutOfTime, 0),  # has no aim
        ("consistency", ValueError("broken"), 1),
    ],
)
def test_the_exit_code_says_whether_the_rows_ran(which, error, code, tmp_path, monkeypatch):
    row = {"not_run": "pretended"}

    def pretended(name):
        if name == which:
            raise error
        return row

    monkeypatch.setattr(benchmark, "measure", lambda _experiment, name, *_: pretended(name))
    monkeypatch.setattr(benchmark, "sampling", lambda *_: pretended("sampling"))
    assert run(tmp_path, "--modes", "--seconds", "3000")[0] == code


@pytest.mark.slow
def test_ways_of_waiting_are_timed_in_turn():
    command = [sys.executable, str(Path(benchmark.__file__).with_name("waiting.py")), "--rounds", "1", "--steps", "1"]
    options = ["--configfile", str(TINY), "--threads", "1", "--busy"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"(?m)^(.{30}) median +([\d.]+) ms, mean +([\d.]+), largest +([\d.]+), ratio ([\d.]+)$", done.stdout
    )
    assert [name.strip() for name, *_ in rows][::5] == ["libgomp's own (300,000 spins)", "one thread"]
    assert rows[0][-1] == "1.00"
    assert all(float(row[1]) > 0 for row in rows)
