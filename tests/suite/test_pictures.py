"""The images of a BOOT student whose teacher is told texts."""

import json

import numpy as np
import pytest
import torch
from tiny_text import SHAPE, TEXTS, tiny_prompts, tiny_text_denoiser

from boot.trajectory import load_student
from diffusion.data.samples import to_uint8
from diffusion.noise import initial_noise
from diffusion.teachers.folder import save_denoiser
from diffusion.teachers.prompts import load_prompts, save_prompts
from suite.jobs.pictures import Draw

SEED, ROWS, COLUMNS = 3, 6, 12
# Other texts than those that the teacher was trained with, of different lengths.
ASKED = ("ten on two", "one", "six on a nine", "two and two")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The student, the texts to evaluate with, and the file of its images."""
    folder = tmp_path_factory.mktemp("pictures")
    known = tiny_prompts(folder)
    (folder / "asked").mkdir()
    save_prompts(folder / "prompts", tiny_prompts(folder / "asked", ASKED, (0, 1, 2, 3)))
    teacher, student = tiny_text_denoiser(known), tiny_text_denoiser(known)
    with torch.no_grad():  # of random weights a network hardly hears its text
        for name, weight in student.network.named_parameters():
            scale = 0.5 if "attn2" in name else 0.05
            weight += scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    save_denoiser(folder / "teacher", teacher)
    save_denoiser(folder / "student/nfe-1", student, told_timestep=0.0)
    draw(folder, folder / "pictures.npz", folder / "prompts")
    return folder, load_student(folder / "student/nfe-1"), load_prompts(folder / "prompts")


def draw(folder, output, prompts=None):
    told = {"student": folder / "student", "teacher": folder / "teacher", "prompts": prompts}
    Draw(**told, output=output, seed=SEED, batch_size=64, guidance_scale=2.0).run()


def test_the_arrays_of_a_teacher_that_is_told_texts(drawn):
    folder, _, _ = drawn
    with np.load(folder / "pictures.npz", allow_pickle=False) as found:
        images = {"all_times", "trajectory", "interpolation", "between", "by_text"}
        assert set(found) == {"times", "texts", *images}
        for name in images:
            assert found[name].shape == (ROWS, COLUMNS, 8, 16, 1)
            assert found[name].dtype == np.uint8
        assert found["texts"].tolist() == [*ASKED, *ASKED[:3]]
    inputs = json.loads((folder / "pictures.json").read_text())["inputs"]
    assert any(name.startswith("prompts, ") for name in inputs)


def test_columns_share_their_noise_and_rows_their_text(drawn):
    folder, student, prompts = drawn
    noise = initial_noise(SEED, range(COLUMNS), SHAPE)
    with np.load(folder / "pictures.npz") as found:
        by_text = found["by_text"]
    for row in range(ROWS):
        with torch.inference_mode():
            expected = student.sample(noise, prompts.of_samples([row] * COLUMNS, "cpu"))
        assert_alike(by_text[row], to_uint8(expected))
    assert not np.array_equal(by_text[0], by_text[1])
    assert not np.array_equal(by_text[:, 0], by_text[:, 1])


def test_the_way_between_texts_ends_in_plain_samples(drawn):
    folder, student, prompts = drawn
    with np.load(folder / "pictures.npz") as found:
        between, by_text = found["between"], found["by_text"]
    noise = initial_noise(SEED, range(ROWS), SHAPE)
    for column, shift in ((0, 0), (-1, 1)):
        with torch.inference_mode():
            expected = student.sample(noise, prompts.of_samples([row + shift for row in range(ROWS)], "cpu"))
        assert_alike(between[:, column], to_uint8(expected))
    assert_alike(between[:, 0], np.stack([by_text[row, row] for row in range(ROWS)]))
    assert not np.array_equal(between[:, 5], between[:, 0])


def test_without_texts_to_evaluate_with_rows_are_of_the_teachers_own(drawn, tmp_path):
    draw(drawn[0], tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as found:
        assert found["texts"].tolist() == [*TEXTS, *TEXTS, TEXTS[0]]


def assert_alike(found, expected):
    """Whole levels of 255, one of which a float32 sum may tip over in a batch of another size."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
