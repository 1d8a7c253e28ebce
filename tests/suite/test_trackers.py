"""Losses in TensorBoard and Weights & Biases: read back from the event files, and by a stand-in of wandb."""

import sys
from types import ModuleType

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_denoiser, tiny_splits

from diffusion.data.kinds import parse_settings
from diffusion.data.store import write_dataset
from diffusion.runtime.errors import UserError
from diffusion.teachers.folder import save_denoiser
from diffusion.training.loop import TrainingRun
from suite.jobs.distillation import Distil
from suite.trackers import VARIABLE, wanted_trackers

TRAINING = {"steps": 12, "batch_size": 4, "learning_rate": 1e-4, "ema_decay": 0.5}
SETTINGS = {"method": "boot", "training": TRAINING}
STAGES = {"method": "progressive_distillation", "start_steps": 4, "last_stages_factor": 1} | {
    "training": {"steps": 4, "batch_size": 4}
}
TAGS = {f"boot/{name}" for name in ("loss", "learning_rate", "gradient_norm")}


class Run:
    """One run of the stand-in; ``fails`` after so many rows."""

    def __init__(self, given, resumed, fails=None):
        self.given, self.resumed, self.rows, self.finished, self.fails = given, resumed, [], False, fails

    def log(self, values, step):
        if self.fails is not None and len(self.rows) >= self.fails:
            raise ConnectionError("the network is down")
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in module: ``runs`` by id, each the list of its attempts."""
    module = ModuleType("wandb")
    module.runs, module.fails = {}, None

    def init(**given):
        attempts = module.runs.setdefault(given["id"], [])
        attempts.append(Run(given, resumed=bool(attempts), fails=module.fails))
        return attempts[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mine"
    save_denoiser(folder / "teacher", tiny_denoiser())
    write_dataset(folder / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    return folder


def distil(root, output="one", settings=SETTINGS, data=False, seconds=1e9):
    told = {"settings": settings, "state": root / "state", "output": root / "students" / output}
    told |= {"teacher": root / "teacher", "variant": "mine", "train_seed": 0, "checkpoint_seconds": seconds}
    Distil(**told, data=root / "data" if data else None).run()
    return told["output"]


def stop_after(monkeypatch, steps):
    """The next training ends in the middle of that step, as if killed."""
    draw = TrainingRun.generator

    def interrupt(self, stage, step, number=0):
        if step == steps:
            monkeypatch.setattr(TrainingRun, "generator", draw)
            raise KeyboardInterrupt
        return draw(self, stage, step, number)

    monkeypatch.setattr(TrainingRun, "generator", interrupt)


def scalars(root):
    """(step, value) by tag, of the one curve in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (root / "tensorboard" / "mine").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def weights(folder):
    return load_file(folder / "nfe-1" / "unet" / "diffusion_pytorch_model.safetensors")


def test_nothing_is_logged_unless_asked_for(root, monkeypatch, wandb):
    monkeypatch.delenv(VARIABLE, raising=False)
    distil(root)
    assert not wandb.runs
    assert not (root / "tensorboard").exists()
    assert not (root / "wandb").exists()


def test_the_weights_and_the_state_do_not_know_of_it(root, monkeypatch, wandb):
    monkeypatch.delenv(VARIABLE, raising=False)
    plain, entries = distil(root, "plain"), sorted(path.name for path in (root / "state").iterdir())
    monkeypatch.setenv(VARIABLE, "wandb")
    logged = distil(root, "logged")
    assert all(torch.equal(value, weights(logged)[name]) for name, value in weights(plain).items())
    assert sorted(path.name for path in (root / "state").iterdir()) == entries


def test_weights_and_biases_gets_the_rows_of_the_log(root, monkeypatch, wandb):
    monkeypatch.setenv(VARIABLE, "wandb")
    folder = distil(root)
    ((run,),) = wandb.runs.values()
    log = pd.read_csv(folder / "training.csv")
    assert [step for step, _ in run.rows] == log.step.tolist() == list(range(1, 13))
    assert [values["boot/loss"] for _, values in run.rows] == pytest.approx(log.loss.tolist())
    assert run.rows[0][1].keys() == TAGS
    assert run.finished
    assert (run.given["project"], run.given["name"], run.given["resume"]) == ("mine", "mine/train-0", "allow")
    assert run.given["config"]["training"]["steps"] == 12


def test_stages_share_one_axis(root, monkeypatch, wandb):
    monkeypatch.setenv(VARIABLE, "wandb")
    distil(root, settings=STAGES, data=True)
    ((run,),) = wandb.runs.values()
    assert [step for step, _ in run.rows] == list(range(1, 9))
    assert ["2-steps/loss" in values for _, values in run.rows] == [True] * 4 + [False] * 4


def test_a_stopped_run_goes_on_in_the_same_curve(root, monkeypatch, wandb):
    monkeypatch.setenv(VARIABLE, "wandb")
    stop_after(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        distil(root, seconds=0)
    distil(root)
    ((first, second),) = wandb.runs.values()
    assert first.finished
    assert [step for step, _ in first.rows + second.rows] == list(range(1, 13))
    other = SETTINGS | {"training": TRAINING | {"steps": 13}}
    distil(root, "two", other)
    assert len(wandb.runs) == 2  # other settings, another curve


def test_a_tracker_that_is_asked_for_later_gets_what_was_logged_before(root, monkeypatch, wandb):
    monkeypatch.delenv(VARIABLE, raising=False)
    stop_after(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        distil(root, seconds=0)
    monkeypatch.setenv(VARIABLE, "wandb")
    distil(root)
    ((run,),) = wandb.runs.values()
    assert [step for step, _ in run.rows] == list(range(1, 13))


def test_tensorboard_has_the_curve_once_though_the_run_was_stopped(root, monkeypatch):
    monkeypatch.setenv(VARIABLE, "tensorboard")
    stop_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        distil(root, seconds=0)
    stop_after(monkeypatch, 9)  # with steps that were logged after the last state
    with pytest.raises(KeyboardInterrupt):
        distil(root)
    folder = distil(root)
    log, found = pd.read_csv(folder / "training.csv"), scalars(root)
    assert found.keys() == TAGS
    assert [step for step, _ in found["boot/loss"]] == list(range(1, 13))
    assert [value for _, value in found["boot/loss"]] == pytest.approx(log.loss.tolist(), rel=1e-6)


def test_a_tracker_that_fails_does_not_end_the_training(root, monkeypatch, wandb, capsys):
    monkeypatch.setenv(VARIABLE, "wandb")
    wandb.fails = 3
    folder = distil(root)
    assert len(pd.read_csv(folder / "training.csv")) == 12
    ((run,),) = wandb.runs.values()
    assert len(run.rows) == 3
    said = capsys.readouterr().err
    assert said.count("wandb failed (ConnectionError: the network is down); the training goes on without it") == 1


@pytest.mark.parametrize(
    ("given", "missing", "expected"),
    [
        ("wandb", "wandb", "found 'wandb', but its package is not installed; `pip install wandb`, or leave it out"),
        ("tensorboard", "tensorboard", "`pip install tensorboard`"),
        ("wandb,mlflow", None, "found 'mlflow', expected tensorboard, wandb"),
        ("Tensorboard", None, "found 'Tensorboard', expected tensorboard, wandb"),
        ("yes", None, "found 'yes', expected"),
    ],
)
def test_what_cannot_be_logged_to_is_one_sentence(given, missing, expected, monkeypatch, wandb):
    monkeypatch.setenv(VARIABLE, given)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=expected):
        wanted_trackers()


@pytest.mark.parametrize(("given", "expected"), [("", ()), (" wandb , ", ("wandb",)), ("wandb,wandb", ("wandb",))])
def test_the_variable_is_a_list(given, expected, monkeypatch, wandb):
    monkeypatch.setenv(VARIABLE, given)
    assert wanted_trackers() == expected


def test_a_missing_package_ends_the_job_before_it_trains(root, monkeypatch):
    monkeypatch.setenv(VARIABLE, "wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="not installed"):
        distil(root)
    assert not (root / "state").exists()
