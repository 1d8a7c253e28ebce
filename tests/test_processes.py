"""A batch in slices, and several processes that share them: the same training, up to the order of sums."""

import json
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny import TEACHER, tiny_splits

from baselines.sid import Sid, SidSettings
from diffusion.data import parse_settings, write_dataset
from diffusion.errors import UserError
from diffusion.guidance import Guidance
from diffusion.processes import Processes
from diffusion.teacher import TeacherSettings
from diffusion.training import TrainingRun, TrainingSettings


def train(folder, slices, draws, steps=3):
    """A linear network towards numbers that each slice draws; what was drawn is appended to ``draws``."""
    settings = TrainingSettings(steps=steps, batch_size=8, gradient_accumulation_steps=slices, learning_rate=0.1)
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def loss(step):
        x = torch.randn(settings.slice_size, 2, generator=step.generator)
        draws.append(x)
        return (network(x) - x.sum(dim=1, keepdim=True)).square().mean()

    with TrainingRun(folder, "k", 0, torch.device("cpu")) as run:
        run.count(network)
        run.fit("s", network, loss, settings)
        return network, run.evaluations, [row["loss"] for row in run.log]


def test_the_slices_of_a_batch_are_averaged(tmp_path):
    """By hand: the mean of the slices' gradients, clipped once, one step of the optimiser."""
    draws = []
    network, evaluations, losses = train(tmp_path, 4, draws, steps=1)
    assert [len(x) for x in draws] == [2] * 4
    assert len({x.sum().item() for x in draws}) == 4
    torch.manual_seed(0)
    by_hand = torch.nn.Linear(2, 1)
    x = torch.cat(draws)
    value = (by_hand(x) - x.sum(dim=1, keepdim=True)).square().mean()
    value.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    TrainingSettings(steps=1, learning_rate=0.1).optimiser_of(by_hand).step()
    torch.testing.assert_close(network.weight, by_hand.weight, rtol=1e-6, atol=1e-7)
    assert losses == pytest.approx([value.item()])
    assert evaluations == 8


def test_one_slice_draws_what_was_drawn_before_there_were_slices(tmp_path):
    draws = []
    train(tmp_path, 1, draws, steps=2)
    generators = [TrainingRun(tmp_path / "x", "k", 0, torch.device("cpu")).generator("s", step) for step in (0, 1)]
    assert all(torch.equal(x, torch.randn(8, 2, generator=g)) for x, g in zip(draws, generators, strict=True))


def test_slices_have_one_size():
    with pytest.raises(ValueError, match=r"found 3, expected a divisor of batch_size \(8\)"):
        TrainingSettings(steps=1, batch_size=8, gradient_accumulation_steps=3)
    method = Sid(SidSettings(training={"steps": 1, "batch_size": 8, "gradient_accumulation_steps": 2}), Guidance(1.0))
    with pytest.raises(ValueError, match="expected 1: a step trains two networks"):
        method.check(TeacherSettings.model_validate(TEACHER).facts(1, 8))


def test_more_processes_than_slices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.training.join", lambda _device: Processes(0, 3))
    with pytest.raises(UserError, match="found 2, expected a multiple of the number of processes"):
        train(tmp_path, 2, [])


@pytest.mark.slow
def test_two_processes_train_the_same_network_as_one(tmp_path):
    """Also when one process goes on where two were killed."""
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    training = {"steps": 40, "batch_size": 8, "gradient_accumulation_steps": 2, "ema_decay": 0.5, "learning_rate": 1e-3}
    command = ["teacher", "--data", str(tmp_path / "data"), "--settings", json.dumps(TEACHER | {"training": training})]
    alone = [sys.executable, "-m"]
    together = [sys.executable, "-m", "suite.launch", "2"]

    def start(name, launch):
        places = ["--state", str(tmp_path / name / "state"), "--output", str(tmp_path / name / "out")]
        options = [*launch, "suite.cli", *command, *places]
        return subprocess.Popen(
            [*options, "--checkpoint-seconds", "0"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "BOOT_DEVICE": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    for name, launch in (("one", alone), ("two", together)):
        running = start(name, launch)
        _, log = running.communicate(timeout=300)
        assert running.returncode == 0, log
    victim = start("both", together)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "both").glob("state/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in [*psutil.Process(victim.pid).children(recursive=True), victim]:
        process.kill()
    victim.communicate()
    assert not (tmp_path / "both" / "out").exists(), "the job ended before it could be killed"
    again = start("both", alone)
    _, log = again.communicate(timeout=300)
    assert again.returncode == 0, log
    assert "resuming stage" in log

    file = "out/unet/diffusion_pytorch_model.safetensors"
    weights = {name: load_file(tmp_path / name / file) for name in ("one", "two", "both")}
    for other in ("two", "both"):
        for key, tensor in weights["one"].items():
            torch.testing.assert_close(weights[other][key], tensor, rtol=1e-3, atol=1e-5)
    costs = [json.loads((tmp_path / name / "out" / "cost.json").read_text())["students"][0] for name in weights]
    assert len({cost["network_evaluations"] for cost in costs}) == 1
    assert len({cost["real_images_seen"] for cost in costs}) == 1


@pytest.mark.slow
def test_processes_that_are_told_to_stop_leave_together_with_a_state(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    training = {"steps": 100_000, "batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    command = [sys.executable, "-m", "suite.launch", "2", "suite.cli", "teacher", "--data", str(tmp_path / "data")]
    settings = ["--settings", json.dumps(TEACHER | {"training": training})]
    places = ["--state", str(tmp_path / "state"), "--output", str(tmp_path / "out"), "--checkpoint-seconds", "1e6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BOOT_DEVICE": "cpu"}
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen([*command, *settings, *places], env=environment, stdout=log, stderr=log)
    # Written from within the loop, after some seconds.
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob("state/*/seconds")) and time.monotonic() < deadline:
        assert running.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    # As Slurm does it: to every process at once.
    for process in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
        process.terminate()
    running.wait(60)
    said = (tmp_path / "log").read_text()
    steps = re.findall(r"stage teacher is stored at step (\d+)", said)
    assert len(steps) == 2, said
    assert steps[0] == steps[1]
    (checkpoint,) = tmp_path.glob("state/*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["step"] == int(steps[0])
