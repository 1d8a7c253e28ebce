"""A batch in slices, and several processes that share them: the same training, up to the order of sums; and samples,
features and pairs that do not depend on the number of processes at all."""

import copy
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import yaml
from repository import TINY, warm
from safetensors.torch import load_file
from tiny import TEACHER, stored_data, tiny_denoiser

from diffusion.runtime.errors import UserError
from diffusion.runtime.processes import Processes, portions_of
from diffusion.teachers.folder import save_denoiser
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from diffusion.training.sharding import shard, whole
from suite.configuration.experiment import parse_experiment
from suite.plan import Plan

ALONE = [sys.executable, "-m"]
TOGETHER = [*ALONE, "suite.launch", "2"]


def environment():
    return os.environ | warm() | {"OMP_NUM_THREADS": "1", "BOOT_DEVICE": "cpu"}


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


def test_more_processes_than_slices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.training.cost.join", lambda _device: Processes(0, 3))
    with pytest.raises(UserError, match="found 2, expected a multiple of the number of processes"):
        train(tmp_path, 2, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["teacher", "spread teacher", "two networks in turn"])
def test_two_processes_train_the_same_network_as_one(kind, tmp_path):
    """Also when one process goes on where two were killed, and the other way round."""
    spread, in_turn = kind == "spread teacher", kind == "two networks in turn"
    stored_data(tmp_path / "data")
    training = {"batch_size": 8, "gradient_accumulation_steps": 2, "ema_decay": 0.5, "learning_rate": 1e-3}
    # Every step is stored here, and gathering what is spread takes its time.
    settings = TEACHER | {"training": training | {"shard": spread, "steps": 12 if spread else 40}}
    job = {"stage": "teacher.Train", "data": str(tmp_path / "data"), "settings": settings, "checkpoint_seconds": 0}
    if in_turn:
        save_denoiser(tmp_path / "teacher", tiny_denoiser())
        settings = {"method": "sid", "fake_updates": 2, "dropout": 0.2, "training": training | {"steps": 20}}
        job = {"stage": "distillation.Distil", "variant": "sid", "train_seed": 0, "settings": settings}
        job |= {"teacher": str(tmp_path / "teacher"), "checkpoint_seconds": 0}

    def start(name, launch):
        places = {"state": str(tmp_path / name / "state"), "output": str(tmp_path / name / "out")}
        return subprocess.Popen(
            [*launch, "suite", json.dumps(job | places)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(name, launch):
        running = start(name, launch)
        _, log = running.communicate(timeout=300)
        assert running.returncode == 0, log
        return log

    finish("one", ALONE)
    finish("two", TOGETHER)
    for name, launch, other in (("fewer", TOGETHER, ALONE), ("more", ALONE, TOGETHER)):
        victim = start(name, launch)
        deadline = time.monotonic() + 120
        while not list((tmp_path / name).glob("state/*/checkpoint.pt")) and time.monotonic() < deadline:
            time.sleep(0.005)
        for process in [*psutil.Process(victim.pid).children(recursive=True), victim]:
            process.kill()
        victim.communicate()
        assert not (tmp_path / name / "out").exists(), "the job ended before it could be killed"
        assert "resuming stage" in finish(name, other)

    file = f"out/{'nfe-1/' * in_turn}unet/diffusion_pytorch_model.safetensors"
    names = ("one", "two", "fewer", "more")
    weights = {name: load_file(tmp_path / name / file) for name in names}
    for name in names[1:]:
        for key, tensor in weights["one"].items():
            if not key.endswith("to_k.bias"):  # no gradient but rounding, which Adam blows up: softmax does not see it
                torch.testing.assert_close(weights[name][key], tensor, rtol=1e-4, atol=1e-6)
    costs = [json.loads((tmp_path / name / "out" / "cost.json").read_text())["students"][0] for name in names]
    assert len({cost["network_evaluations"] for cost in costs}) == 1
    assert len({cost["real_images_seen"] for cost in costs}) == 1


def test_two_processes_take_the_same_number_of_steps_of_a_time_budget(tmp_path):
    """Each has its own clock: the first one's counts. One process takes so many steps to the same network."""
    stored_data(tmp_path / "data")
    training = {"batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "decay": "cosine"}
    weights = {}
    ends = {"minutes": 0.05}
    for name, launch in (("two", TOGETHER), ("one", ALONE)):
        job = {"stage": "teacher.Train", "settings": TEACHER | {"training": training | ends}}
        places = {"data": "data", "state": name, "output": f"{name}-out"}
        job |= {field: str(tmp_path / place) for field, place in places.items()}
        subprocess.run([*launch, "suite", json.dumps(job)], env=environment(), check=True, timeout=300)
        facts = json.loads((tmp_path / f"{name}-out" / "provenance.json").read_text())
        cost = json.loads((tmp_path / f"{name}-out" / "cost.json").read_text())["students"][0]
        ends = {"steps": facts["steps"]["teacher"]}
        assert cost["steps"] == ends["steps"] >= 1
        weights[name] = load_file(tmp_path / f"{name}-out/unet/diffusion_pytorch_model.safetensors")
    for key, tensor in weights["one"].items():
        if not key.endswith("to_k.bias"):  # as above
            torch.testing.assert_close(weights["two"][key], tensor, rtol=1e-3, atol=1e-5)


class _Two(torch.nn.Module):
    """A part and a list of parts, as a U-Net has them."""

    def __init__(self):
        super().__init__()
        self.first, self.others = torch.nn.Linear(6, 8), torch.nn.ModuleList([torch.nn.Linear(8, 4, bias=False)])

    def forward(self, x):
        return self.others[0](self.first(x))


def _sharded(rank, size, rendezvous, found):
    """Every process keeps its share alone, of weights, gradients, moments and average."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    torch.manual_seed(0)
    network = _Two()
    whole_network = copy.deepcopy(network)
    shard(network, Processes(rank, size))
    x = torch.full((5, 6), rank + 1.0)
    network(x).sum().backward()
    (whole_network(x).sum() + whole_network(torch.full((5, 6), 2.0 - rank)).sum()).backward()
    gradients = [weight.grad for weight in network.parameters()]
    for gradient, expected in zip(gradients, whole_network.parameters(), strict=True):
        torch.testing.assert_close(whole(gradient), expected.grad)  # the sum over both
    torch.save([tuple(weight.to_local().shape) for weight in network.parameters()], f"{found}-{rank}")
    torch.distributed.destroy_process_group()


def test_a_process_keeps_its_share_alone(tmp_path):
    torch.multiprocessing.spawn(_sharded, (2, tmp_path / "rendezvous", tmp_path / "found"), nprocs=2)
    assert torch.load(tmp_path / "found-0") == torch.load(tmp_path / "found-1") == [(4, 6), (4,), (2, 8)]


def test_what_cannot_be_spread_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="shard: found true with compile 'default', expected 'off'"):
        TrainingSettings(steps=1, shard=True, compile="default")
    with pytest.raises(ValueError, match="shard: found true with channels_last true"):
        TrainingSettings(steps=1, shard=True, channels_last=True)
    monkeypatch.setattr("diffusion.training.cost.join", lambda _device: Processes(0, 2))
    monkeypatch.setattr(Processes, "wait", lambda _self: None)
    network = torch.nn.Linear(2, 1)
    settings = TrainingSettings(steps=1, batch_size=2, gradient_accumulation_steps=2, shard=True)
    with (
        TrainingRun(tmp_path, "k", 0, torch.device("cpu")) as run,
        pytest.raises(UserError, match="beside the network this method changes other"),
    ):
        run.fit("s", network, lambda _step: network.weight.sum(), settings, beside={"other": torch.nn.Linear(1, 1)})


def _spread(rank, size, rendezvous, found):
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    computed = []

    def compute(indices):
        computed.append(indices)
        return torch.tensor([[i, i**2] for i in indices])

    results = list(Processes(rank, size).spread(portions_of(7, 2), compute))
    torch.save({"results": results, "computed": [list(indices) for indices in computed]}, f"{found}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_portions_come_out_the_same_whatever_the_number_of_processes(size, tmp_path):
    """Seven in portions of two: the last is shorter, and for some processes none is left."""
    if size == 1:
        results = [list(Processes().spread(portions_of(7, 2), lambda part: torch.tensor([[i, i**2] for i in part])))]
    else:
        found = tmp_path / "found"
        torch.multiprocessing.spawn(_spread, (size, tmp_path / "rendezvous", found), nprocs=size)
        stored = [torch.load(f"{found}-{rank}") for rank in range(size)]
        results = [one["results"] for one in stored]
        shares = [{tuple(part) for part in one["computed"]} for one in stored]
        assert set.union(*shares) == {(0, 1), (2, 3), (4, 5), (6,)}
        assert max(map(len, shares)) == -(-4 // size)
    for own in results:
        assert [len(part) for part in own] == [2, 2, 2, 1]
        assert torch.cat(own).tolist() == [[i, i**2] for i in range(7)]


def test_a_training_takes_as_many_processes_as_can_share_its_slices():
    raw = yaml.safe_load(TINY.read_text())
    raw["teacher"]["training"] |= {"batch_size": 12, "gradient_accumulation_steps": 6}
    plan = Plan(parse_experiment(raw, look_at_files=False))
    assert [plan.processes(None, most) for most in (1, 2, 3, 4, 5, 6, 8)] == [1, 2, 3, 2, 1, 6, 2]
    assert plan.processes("boot-heun", 4) == 1  # one slice


def test_a_single_process_is_the_launchers_child():
    """And no launcher of several stands between: a signal that is passed on reaches it."""
    says = ["timeit", "-n1", "-r1", "-s", "import os", "print(os.getppid())"]
    command = [*ALONE, "suite.launch", "1", *says]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as started:
        said, _ = started.communicate(timeout=60)
    assert said.splitlines()[0] == str(started.pid)


@pytest.mark.slow
def test_two_processes_make_the_same_samples_features_and_pairs_as_one(tmp_path):
    """Bit for bit, with the same counts; the last turn leaves one of them without work."""
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    stored_data(tmp_path / "data")
    ddim = {"variant": "ddim", "settings": {"method": "ddim", "num_inference_steps": [2]}, "batch_size": 2}
    protocol = {"protocol": {"features": "efficientnet-lite0-32"}, "batch_size": 2}
    teacher, data = str(tmp_path / "teacher"), str(tmp_path / "data")

    def jobs(root):
        yield ddim | {
            "stage": "sampling.Sample",
            "source": teacher,
            "seeds": [0],
            "num_samples": 5,
            "output": "samples",
        }
        sets = {"a": str(root / "samples/nfe-2/seed-0.npz")}
        yield protocol | {"stage": "extraction.Extract", "sets": sets, "output": "features"}
        yield protocol | {"stage": "references.Extract", "data": data, "output": "reference"}
        pairs = {"settings": {"count": 5, "num_inference_steps": 3}, "batch_size": 2, "state": str(root / "state")}
        yield pairs | {"stage": "pairs.Make", "teacher": teacher, "output": "pairs"}

    for name, launch in (("one", ALONE), ("two", TOGETHER)):
        for job in jobs(tmp_path / name):
            job["output"] = str(tmp_path / name / job["output"])
            command = [*launch, "suite", json.dumps(job)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    arrays = {
        name: {
            "samples": np.load(tmp_path / name / "samples/nfe-2/seed-0.npz")["arr_0"],
            "features": np.load(tmp_path / name / "features/a.npy"),
            "train": np.load(tmp_path / name / "reference/train.npy"),
            "pairs": np.load(tmp_path / name / "pairs/images.npy"),
        }
        for name in ("one", "two")
    }
    for key, array in arrays["one"].items():
        assert len(np.unique(array.reshape(len(array), -1), axis=0)) == len(array)
        np.testing.assert_array_equal(arrays["two"][key], array, err_msg=key)
    costs = [json.loads((tmp_path / name / "pairs/pairs.json").read_text())["cost"] for name in ("one", "two")]
    assert [cost["network_evaluations"] for cost in costs] == [15, 15]


@pytest.mark.slow
def test_processes_that_are_told_to_stop_leave_together_with_a_state(tmp_path):
    stored_data(tmp_path / "data")
    training = {"steps": 100_000, "batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    job = {"stage": "teacher.Train", "settings": TEACHER | {"training": training}, "checkpoint_seconds": 1e6}
    job |= {field: str(tmp_path / place) for field, place in (("data", "data"), ("state", "state"), ("output", "out"))}
    with (tmp_path / "log").open("w") as log:
        command = [*TOGETHER, "suite", json.dumps(job)]
        running = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
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
