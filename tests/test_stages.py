"""The stages on their own: what they refuse, and what they go on with."""

import argparse
import json
import shutil

import numpy as np
import pytest
from tiny import tiny_denoiser

from diffusion.errors import UserError
from diffusion.images import load_samples
from diffusion.noise import initial_noise
from diffusion.pipelines import save_denoiser
from diffusion.training import discard_delivered
from suite.stages.measuring import check_resolution
from suite.stages.sampling import sample


def test_samples_of_another_resolution_are_refused(tmp_path):
    """The extractor would resize them in silence."""
    (tmp_path / "teacher").mkdir()
    np.savez(tmp_path / "teacher" / "seed-0.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    arguments = argparse.Namespace(samples=tmp_path / "mine.npz", teacher_samples=tmp_path / "teacher")
    check_resolution(arguments, {0: np.zeros((2, 8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match=r"mine\.npz: pictures of 16×8 pixels; the experiment's have 8×8"):
        check_resolution(arguments, {0: np.zeros((2, 16, 8, 1), np.uint8)})


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
