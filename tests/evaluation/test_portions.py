"""What is evaluated after the training comes in portions of ``evaluation.batch_size``, and comes out the same."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_conditional, tiny_denoiser
from torch.nn.modules.module import register_module_forward_pre_hook

from boot.trajectory import TrajectoryErrors, trajectory_errors
from diffusion.noise import initial_noise
from diffusion.runtime.errors import DeviceMemoryError
from diffusion.runtime.memory import in_portions
from diffusion.student import NoiseStudent
from diffusion.teachers.folder import save_denoiser
from evaluation.measure.classifier import build_classifier, classify
from evaluation.measure.features import load_extractor
from suite.jobs.learning_curve import _on_disk
from suite.jobs.pictures import Draw
from suite.jobs.trajectory import Measure

CPU = torch.device("cpu")


@contextmanager
def batches_seen(room=10**9, kind=None):
    """The sizes of the batches that networks are evaluated on; larger ones than ``room`` are out of memory."""
    seen, kind = [], kind or type(tiny_denoiser().network)

    def note(module, arguments):
        if isinstance(module, kind):
            seen.append(len(arguments[0]))
            if seen[-1] > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Students and teachers, without and with classes."""
    folder = tmp_path_factory.mktemp("stored")
    for name, make in (("plain", tiny_denoiser), ("classes", tiny_conditional)):
        teacher, student = make(), make()
        with torch.no_grad():
            for weight in student.network.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        save_denoiser(folder / name / "teacher", teacher)
        save_denoiser(folder / name / "student/nfe-1", student, told_timestep=0.0)
    return folder


def run(job, folder, output, **fields):
    job(student=folder / "student", teacher=folder / "teacher", output=output, seed=3, **fields).run()


def test_the_errors_along_the_trajectory_are_the_same_in_portions(stored, tmp_path):
    tables, largest = [], []
    for size in (7, 3):
        output = tmp_path / f"{size}.csv"
        with batches_seen() as seen:
            run(Measure, stored / "classes", output, noises=7, batch_size=size, guidance_scale=2)
        tables.append(pd.read_csv(output))
        largest.append(max(seen))
    # Guidance asks the teacher of every image twice.
    assert largest == [14, 6]
    at_once, in_threes = tables
    pd.testing.assert_frame_equal(in_threes, at_once, rtol=1e-5)
    assert len(at_once) == 11 + 10 + 11 + 4 * 11


def test_the_number_of_noises_is_what_is_asked_for(stored, tmp_path):
    for count in (2, 5):
        run(Measure, stored / "plain", tmp_path / f"{count}.csv", noises=count, batch_size=64)
    two, five = (pd.read_csv(tmp_path / f"{count}.csv")["value"] for count in (2, 5))
    assert not np.allclose(two, five)


def test_the_mean_over_portions_weighs_them_by_their_noises():
    teacher, student = (
        tiny_denoiser(),
        NoiseStudent(tiny_denoiser(seed=1).network, tiny_denoiser().schedule, "v_prediction"),
    )
    noise = initial_noise(0, range(5), (1, 8, 8)).double()
    teacher.double(), student.double()
    times = torch.linspace(teacher.schedule.t_max, teacher.schedule.t_min, 3, dtype=torch.float64)
    with torch.inference_mode():
        whole, *parts = (
            trajectory_errors(student, teacher, part, times, (1, 2), 2) for part in (noise, *noise.split(3))
        )
    found = TrajectoryErrors.mean(parts, [3, 2])
    for name in ("student", "one_step", "near_zero"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-6, atol=0, equal_nan=True)
    assert found.ddim.keys() == whole.ddim.keys()
    for count, errors in whole.ddim.items():
        torch.testing.assert_close(found.ddim[count], errors, rtol=1e-6, atol=1e-15)


def test_pictures_are_the_same_in_portions(stored, tmp_path):
    files = [tmp_path / f"{size}.npz" for size in (72, 5)]
    for size, file in zip((72, 5), files, strict=True):
        with batches_seen() as seen:
            run(Draw, stored / "classes", file, batch_size=size, guidance_scale=2)
        assert max(seen) == max(size, 2 * min(size, 6))  # the teacher draws the trajectories of six rows
    at_once, in_fives = (dict(np.load(file)) for file in files)
    assert set(at_once) == {"times", "all_times", "trajectory", "interpolation", "classes", "class_pairs"}
    assert at_once.keys() == in_fives.keys()
    for key, expected in at_once.items():
        assert expected.shape == in_fives[key].shape
        # Whole levels of 255, one of which a float32 sum may tip over.
        assert np.abs(in_fives[key].astype(float) - expected).max() <= (expected.dtype == np.uint8)


@pytest.mark.parametrize(("job", "fields"), [(Measure, {"noises": 9}), (Draw, {})])
def test_a_batch_that_does_not_fit_is_named_with_one_that_does(stored, tmp_path, job, fields):
    with (
        batches_seen(room=3),
        pytest.raises(DeviceMemoryError, match=r"evaluation\.batch_size: found [68], .* expected at most [234]\."),
    ):
        run(job, stored / "plain", tmp_path / "out", **fields, batch_size=8)
    assert not (tmp_path / "out").exists()


def test_the_classifier_and_the_extractor_name_their_batch():
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    torch.manual_seed(0)
    network = build_classifier(3, 1).eval()
    with batches_seen(kind=type(network)) as seen:
        at_once, in_fours = classify(network, images, 256), classify(network, images, 4)
    assert seen == [9, 4, 4, 1]
    assert np.array_equal(at_once, in_fours)
    message = r"evaluation\.batch_size: found 8, .* expected at most 2\."
    with batches_seen(3, type(network)), pytest.raises(DeviceMemoryError, match=message):
        classify(network, images, 8)
    extractor = load_extractor("efficientnet-lite0-32")
    with batches_seen(3, type(extractor._network)), pytest.raises(DeviceMemoryError, match=message):
        extractor.extract_in(None, images, 8)


def test_portions_are_all_and_in_order():
    assert [*in_portions("key", list, 7, 3, CPU)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [*in_portions("key", list, 0, 3, CPU)] == []


def test_samples_of_a_learning_curve_lie_on_disk(tmp_path):
    batches = [np.full((count, 2, 2, 1), count, np.uint8) for count in (3, 3, 1)]
    with _on_disk(iter(batches), 7, tmp_path) as images:
        assert isinstance(images, np.memmap)
        assert np.array_equal(images, np.concatenate(batches))
        assert len([*tmp_path.iterdir()]) == 1
    assert not [*tmp_path.iterdir()]
