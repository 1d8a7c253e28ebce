"""Jobs on their own: what they refuse, and what they go on with."""

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
from suite.job import Job, read_job
from suite.jobs.distillation import Distil
from suite.jobs.measuring import check_resolution
from suite.jobs.sampling import Sample
from suite.jobs.teacher import Train
from suite.reruns import asked_in


def test_samples_of_another_resolution_are_refused(tmp_path):
    """The extractor would resize them in silence."""
    (tmp_path / "teacher").mkdir()
    np.savez(tmp_path / "teacher" / "seed-0.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    teacher, files = tmp_path / "teacher", {0: tmp_path / "mine.npz"}
    check_resolution(teacher, files, {0: np.zeros((2, 8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match=r"mine\.npz: images of 16×8 pixels; the experiment's have 8×8"):
        check_resolution(teacher, files, {0: np.zeros((2, 16, 8, 1), np.uint8)})
    np.savez(tmp_path / "teacher" / "seed-0.npz", arr_0=np.zeros((4, 8, 16, 1), np.uint8))
    check_resolution(teacher, files, {0: np.zeros((2, 8, 16, 1), np.uint8)})
    with pytest.raises(UserError, match=r"mine\.npz: images of 16×8 pixels; the experiment's have 8×16"):
        check_resolution(teacher, files, {0: np.zeros((2, 16, 8, 1), np.uint8)})


def sample(folder, **changes):
    """Runs a sampling job; its state is kept."""
    told = {"variant": "ddpm", "settings": {"method": "ddpm", "num_inference_steps": [2, 3]}, "seeds": [0, 5]}
    told |= {"source": folder / "teacher", "num_samples": 7, "batch_size": 2}
    told |= {"state": folder / "state", "output": folder / "samples"}
    Sample(**told | changes).run()


def test_sampling_that_was_stopped_goes_on_with_the_next_batch(tmp_path, monkeypatch):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    sample(tmp_path, output=tmp_path / "undisturbed", state=None)
    monkeypatch.setattr("suite.jobs.sampling._NOTED_EVERY_S", 0.0)
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
        monkeypatch.setattr("suite.jobs.sampling.initial_noise", failing_at(last))
        if last is None:
            sample(tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                sample(tmp_path)
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
    sample(tmp_path, num_samples=2)
    before = load_samples(tmp_path / "samples/nfe-2/seed-0.npz")
    assert len(list((tmp_path / "state").rglob("*.npz"))) == 4
    shutil.rmtree(tmp_path / "teacher")
    save_denoiser(tmp_path / "teacher", tiny_denoiser(seed=7))
    sample(tmp_path, num_samples=2, output=tmp_path / "other")
    assert (load_samples(tmp_path / "other/nfe-2/seed-0.npz") != before).any()


def weights_of(job):
    """Runs a training job; its state is kept."""
    shutil.rmtree(job.output, ignore_errors=True)
    job.run()
    (file,) = job.output.rglob("*.safetensors")
    assert json.loads((job.output / "provenance.json").read_text())["flip"] is job.flip
    return file.read_bytes()


@pytest.mark.parametrize("kind", [Train, Distil])
def test_a_job_that_trains_on_images_is_told_of_flips(kind, tmp_path):
    """With the state of the one before it, which is another training's."""
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    told = {"settings": TEACHER, "data": tmp_path / "data", "state": tmp_path / "state", "output": tmp_path / "out"}
    if kind is Distil:
        method = {"method": "progressive_distillation", **method_class("progressive_distillation").TINY}
        told |= {"settings": method | {"start_steps": 2}, "variant": "progressive", "train_seed": 0}
        told |= {"teacher": tmp_path / "teacher"}
    plain = weights_of(kind(**told))
    assert weights_of(kind(**told, flip=True)) != plain
    assert weights_of(kind(**told)) == plain


def test_what_a_student_must_not_see_or_lacks_is_refused(tmp_path):
    told = {"variant": "mine", "train_seed": 0, "teacher": tmp_path, "state": tmp_path, "output": tmp_path / "out"}
    boot = told | {"settings": {"method": "boot", **method_class("boot").TINY}}
    with pytest.raises(UserError, match=r"data\.flip: given, but the method boot draws no images"):
        Distil(**boot, flip=True).run()
    with pytest.raises(UserError, match=r"methods\.mine: the method boot must not see data"):
        Distil(**boot, data=tmp_path).run()


def told_to(**changes):
    """What a rule might say to a sampling job."""
    told = {"stage": "sampling.Sample", "variant": "mine", "settings": {"method": "ddim"}, "seeds": [0]}
    return json.dumps(told | {"source": "s", "output": "o", "num_samples": 4, "batch_size": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, r"^evaluation\.batch_size: found 0, expected at least 1\.$"),
        ({"num_samples": "many"}, r"^evaluation\.num_samples: found 'many', expected a whole number\.$"),
        ({"nfe": ["a"]}, r"^evaluation\.nfe\.mine\.0: found 'a', expected a whole number\.$"),
        ({"guidance_scale": True}, r"^teacher\.guidance_scale: found true, expected a number\.$"),
        (
            {"settings": {"method": "ddim", "steps": 4}},
            r"^methods\.mine\.steps: unknown key; expected one of: guidance_scale, num_inference_steps, ",
        ),
        ({"sead": 1}, r"^sampling\.Sample: sead: unknown key; expected one of: .*seeds"),
        ({"source": None}, r"^sampling\.Sample: source: found null"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_key_in_the_yaml(changes, problem):
    with pytest.raises(UserError, match=problem):
        read_job(told_to(**changes)).run()


def test_what_decides_comes_from_the_file_and_the_rest_from_the_rule(tmp_path):
    settings = {"stage": "sampling.Sample", "variant": "mine", "settings": {"method": "ddim"}, "seeds": [0, 1]}
    settings |= {"num_samples": 4, "batch_size": 2, "nfe": [1]}
    write_json(tmp_path / "job.json", {"results": "r", "settings": settings, "code": {}, "files": {}})
    job = read_job(json.dumps({"asked": str(tmp_path / "job.json"), "source": "s", "output": "o", "nfe": [2]}))
    assert (job.seeds, job.nfe, str(job.source), str(job.output)) == ((0, 1), (2,), "s", "o")
    assert job.facts() == {name: value for name, value in settings.items() if name != "stage"} | {
        "guidance_scale": 1.0, "guidance_embedded": False, "quantiser": "round", "nfe": [2],
    }  # fmt: skip


class Nothing(Job):
    """A job for what jobs have in common."""


def test_what_was_made_of_other_settings_is_not_delivered(tmp_path):
    """A trainer that outlived its Snakemake, when the next one has asked for something else and got it."""
    asked, output = tmp_path / "job.json", tmp_path / "student"
    asked_for = {"results": str(tmp_path), "settings": {"steps": 500}, "code": {}, "files": {}}
    write_json(asked, asked_for)
    job = Nothing(output=output, asked=asked)
    job._began_with = asked_in(asked)
    output.mkdir()
    (output / "weights").write_text("of 4 steps")
    write_json(asked, asked_for | {"settings": {"steps": 4}})
    with (
        pytest.raises(UserError, match="other settings are asked for than when this job began"),
        job.result_folder() as folder,
    ):
        (folder / "weights").write_text("of 500 steps")
    write_json(asked, asked_for)
    assert (output / "weights").read_text() == "of 4 steps"
    with job.result_folder() as folder:
        (folder / "weights").write_text("of 500 steps")
    assert (output / "weights").read_text() == "of 500 steps"


def test_one_job_at_a_time_makes_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr("suite.job._WAIT_FOR_OTHERS_S", 0.1)
    job = Nothing(output=tmp_path / "student")
    leftover = tmp_path / ".student.killed"
    leftover.mkdir()
    with (
        job.sole_maker(),
        pytest.raises(UserError, match=rf"student: in use by process {os.getpid()} on "),
        job.sole_maker(),
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
                sample(tmp_path, output=tmp_path / "other")
        return real(*arguments)

    monkeypatch.setattr("suite.jobs.sampling.initial_noise", meanwhile)
    sample(tmp_path)
    assert inside
    assert not (tmp_path / "other").exists()
