"""The stages on their own: what they refuse, and what they go on with."""

import argparse
import json
import os
import shutil

import numpy as np
import pytest
from tiny import TEACHER, tiny_denoiser, tiny_splits

from diffusion.data.kinds import parse_settings
from diffusion.data.samples import load_samples
from diffusion.data.store import write_dataset
from diffusion.distillation.registry import method_class
from diffusion.noise import initial_noise
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from diffusion.teachers.folder import save_denoiser
from diffusion.training.delivered import discard_delivered
from suite.cli import build_parser
from suite.delivery import result_folder, sole_maker
from suite.stages.distillation import distil
from suite.stages.measuring import check_resolution
from suite.stages.sampling import sample
from suite.stages.teacher import train_teacher


def test_samples_of_another_resolution_are_refused(tmp_path):
    """The extractor would resize them in silence."""
    (tmp_path / "teacher").mkdir()
    np.savez(tmp_path / "teacher" / "seed-0.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    arguments, files = argparse.Namespace(teacher_samples=tmp_path / "teacher"), {0: tmp_path / "mine.npz"}
    check_resolution(arguments, files, {0: np.zeros((2, 8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match=r"mine\.npz: pictures of 16×8 pixels; the experiment's have 8×8"):
        check_resolution(arguments, files, {0: np.zeros((2, 16, 8, 1), np.uint8)})


def sampling(folder, **changes):
    """The arguments of a sampling job; its state is kept."""
    told = {"settings": json.dumps({"method": "ddpm", "num_inference_steps": [2, 3]}), "guidance_scale": 1.0}
    told |= {"source": folder / "teacher", "seeds": [0, 5], "nfe": (), "num_samples": 7, "batch_size": 2}
    told |= {"quantiser": "round", "state": folder / "state", "output": folder / "samples"}
    return argparse.Namespace(**told | changes)


def test_sampling_that_was_stopped_goes_on_with_the_next_batch(tmp_path, monkeypatch):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    sample(sampling(tmp_path, output=tmp_path / "undisturbed", state=None))
    monkeypatch.setattr("suite.stages.sampling._NOTED_EVERY_S", 0.0)
    drawn = []

    def failing_at(last):
        def initial(seed, indices, shape):
            if len(drawn) == last:
                raise KeyboardInterrupt
            drawn.append((seed, list(indices)))
            return initial_noise(seed, indices, shape)

        return initial

    # In the second set's third batch, in the fourth set's first, and never.
    for last in (6, 12, None):
        monkeypatch.setattr("suite.stages.sampling.initial_noise", failing_at(last))
        if last is None:
            sample(sampling(tmp_path))
        else:
            with pytest.raises(KeyboardInterrupt):
                sample(sampling(tmp_path))
            assert not (tmp_path / "samples").exists()
    assert drawn == [(seed, batch) for _ in (2, 3) for seed in (0, 5) for batch in ([0, 1], [2, 3], [4, 5], [6])]
    for file in sorted((tmp_path / "undisturbed").rglob("*.npz")):
        other = tmp_path / "samples" / file.relative_to(tmp_path / "undisturbed")
        np.testing.assert_array_equal(load_samples(other), load_samples(file))
    assert len(list((tmp_path / "samples").rglob("*.npz"))) == 4
    discard_delivered(tmp_path / "state")
    assert not list((tmp_path / "state").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "undisturbed", "samples", "state"}


def test_sampling_of_other_weights_goes_on_with_nothing(tmp_path):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    sample(sampling(tmp_path, num_samples=2))
    before = load_samples(tmp_path / "samples/nfe-2/seed-0.npz")
    assert len(list((tmp_path / "state").rglob("*.npz"))) == 4
    shutil.rmtree(tmp_path / "teacher")
    save_denoiser(tmp_path / "teacher", tiny_denoiser(seed=7))
    sample(sampling(tmp_path, num_samples=2, output=tmp_path / "other"))
    assert (load_samples(tmp_path / "other/nfe-2/seed-0.npz") != before).any()


def training_job(folder, command, *options):
    """Runs a training command of the rules in this process; its state is kept."""
    places = ["--state", str(folder / "state"), "--output", str(folder / "out")]
    arguments = build_parser().parse_args([command, *places, *options])
    shutil.rmtree(folder / "out", ignore_errors=True)
    {"teacher": train_teacher, "distil": distil}[command](arguments)
    weights = folder / "out" / ("" if command == "teacher" else "nfe-1") / "unet/diffusion_pytorch_model.safetensors"
    return json.loads((folder / "out/provenance.json").read_text()), weights.read_bytes()


@pytest.mark.parametrize("command", ["teacher", "distil"])
def test_a_job_that_trains_on_images_is_told_of_flips(command, tmp_path):
    """With the state of the one before it, which is another training's."""
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    settings = TEACHER
    options = ["--data", str(tmp_path / "data")]
    if command == "distil":
        settings = {"method": "progressive_distillation", **method_class("progressive_distillation").TINY}
        options += ["--variant", "progressive", "--seed", "0", "--teacher", str(tmp_path / "teacher")]
    options += ["--settings", json.dumps(settings)]
    facts, plain = training_job(tmp_path, command, *options)
    assert facts["flip"] is False
    facts, flipped = training_job(tmp_path, command, *options, "--flip")
    assert facts["flip"] is True
    assert flipped != plain
    assert training_job(tmp_path, command, *options)[1] == plain


def test_flips_without_a_data_set_are_refused(tmp_path):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    settings = json.dumps({"method": "boot", **method_class("boot").TINY})
    options = ["--settings", settings, "--variant", "boot", "--seed", "0", "--teacher", str(tmp_path / "teacher")]
    with pytest.raises(UserError, match=r"--flip: given without --data, and the method boot draws no images"):
        training_job(tmp_path, "distil", *options, "--flip")


def test_what_was_made_of_other_settings_is_not_delivered(tmp_path):
    """A trainer that outlived its Snakemake, when the next one has asked for something else and got it."""
    job, output = tmp_path / "job.json", tmp_path / "student"
    asked_for = {"results": str(tmp_path), "settings": {"steps": 500}, "code": {}, "files": {}}
    write_json(job, asked_for)
    arguments = argparse.Namespace(output=output, job=job)
    with sole_maker(arguments):
        output.mkdir()
        (output / "weights").write_text("of 4 steps")
        write_json(job, asked_for | {"settings": {"steps": 4}})
        with (
            pytest.raises(UserError, match="other settings are asked for than when this job began"),
            result_folder(arguments) as folder,
        ):
            (folder / "weights").write_text("of 500 steps")
        write_json(job, asked_for)
        assert (output / "weights").read_text() == "of 4 steps"
        with result_folder(arguments) as folder:
            (folder / "weights").write_text("of 500 steps")
    assert (output / "weights").read_text() == "of 500 steps"


def test_one_job_at_a_time_makes_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr("suite.delivery._WAIT_FOR_OTHERS_S", 0.1)
    arguments = [argparse.Namespace(output=tmp_path / "student", job=None) for _ in range(2)]
    leftover = tmp_path / ".student.killed"
    leftover.mkdir()
    with (
        sole_maker(arguments[0]),
        pytest.raises(UserError, match=rf"student: in use by process {os.getpid()} on "),
        sole_maker(arguments[1]),
    ):
        pass
    assert not leftover.exists()


def test_one_job_at_a_time_draws_into_a_state(tmp_path, monkeypatch):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    inside = []
    real = initial_noise

    def meanwhile(*arguments):
        if not inside:
            inside.append(True)
            with pytest.raises(UserError, match=r"samples that are being drawn\): in use by process"):
                sample(sampling(tmp_path, output=tmp_path / "other"))
        return real(*arguments)

    monkeypatch.setattr("suite.stages.sampling.initial_noise", meanwhile)
    sample(sampling(tmp_path))
    assert inside
    assert not (tmp_path / "other").exists()
