"""A later stage of a cascade: a teacher that enlarges what a student of the stage before has drawn."""

import copy
import hashlib
import json

import numpy as np
import pytest
import tiny_pipelines
import torch
from stock_jobs import distilled_and_sampled
from torch.nn.functional import interpolate

from boot.distillation import Boot
from boot.trajectory import load_student
from diffusion.guidance import Guidance, guided
from diffusion.noise import initial_noise
from diffusion.runtime.errors import UserError
from diffusion.teachers.families import families
from diffusion.teachers.folder import load_denoiser
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.prompts import load_prompts
from diffusion.teachers.settings import StoredTeacher
from diffusion.teachers.stock import encoding_pipeline
from suite.jobs.prompts import Encode
from suite.jobs.teacher import Import

from diffusers import DDPMScheduler, DiffusionPipeline  # isort: skip

CPU = torch.device("cpu")
TEXTS = ["a red fox", "snow"]
LOW = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
FEW = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "ema_decay": None}


def one_step(folder, teacher):
    """A student with other weights than its teacher's, in ``folder``."""
    network = copy.deepcopy(teacher.network)
    torch.manual_seed(1)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    Boot(Boot.Settings()).save(folder, network, teacher)
    return folder


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A student of the first stage, and the second stage's teacher."""
    place = tmp_path_factory.mktemp("cascade")
    first = tiny_pipelines.write(place / "first", "deepfloyd-if")
    second = tiny_pipelines.write(place / "second", "deepfloyd-if-2")
    return one_step(place / "student", load_denoiser(first)), second


@pytest.fixture(scope="module")
def encoded(stages, tmp_path_factory):
    """The texts of both parts, with the images of the first stage's student."""
    student, second = stages
    place = tmp_path_factory.mktemp("encoded")
    Import(stored=str(second), output=place / "teacher").run()
    (place / "texts").mkdir()
    texts = {"train": TEXTS, "evaluation": ["an owl", "a hen"], "negative": "ice"}
    (place / "texts" / "texts.json").write_text(json.dumps(texts))
    common = {"teacher": place / "teacher", "texts": place / "texts", "low_resolution": student, "noise_level": 100}
    for part in ("train", "evaluation"):
        Encode(**common, part=part, output=place / part).run()
    return place


def test_the_network_is_called_as_its_pipeline_calls_it(stages):
    folder, family = stages[1], families()["deepfloyd_if_2"]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ in family.pipelines
    calls = []
    pipeline.unet.register_forward_hook(
        lambda _, arguments, named, output: calls.append((arguments, named, output[0])), with_kwargs=True
    )
    given = {"negative_prompt": ["ice"] * 2, "num_inference_steps": 2, "guidance_scale": 3.0, "noise_level": 100}
    pipeline(TEXTS, image=LOW, generator=torch.Generator().manual_seed(0), output_type="pt", **given)
    encoding = encoding_pipeline(folder, CPU)
    told, negative = family.encoded(encoding, TEXTS, (16, 16)), family.negative(encoding, "ice", (16, 16))
    (fed, time), named, expected = calls[1]
    condition = {
        "text": torch.cat([negative["text"].expand_as(told["text"]), told["text"]]),
        "low_resolution": fed[:, 3:],
        "noise_level": torch.full((4,), 100),
    }
    assert named["class_labels"].tolist() == [100] * 4
    with torch.no_grad():
        found = family.call(pipeline.unet, fed[:, :3], time.float().expand(4), condition)
    assert found.shape == (4, 3, 16, 16)
    torch.testing.assert_close(found, expected[:, :3], rtol=1e-5, atol=1e-6)


def test_each_text_has_the_image_that_the_student_draws_of_it(stages, encoded):
    prompts, pipeline = load_prompts(encoded / "train", encoded / "teacher"), LocalPipeline.read(stages[0])
    stored = prompts.embeddings.tables["low_resolution"]
    assert (stored.shape, stored.dtype) == ((2, 3, 8, 8), torch.uint8)
    encoding = encoding_pipeline(stages[0].parent / "first", CPU)
    with torch.no_grad():
        for row, text in enumerate(TEXTS):
            told = pipeline.family.encoded(encoding, [text], (8, 8))
            drawn = (pipeline.drawn(noise_of(text), 1, told)[0] * 127.5 + 127.5).round().clamp(0, 255)
            assert (stored[row].float() - drawn).abs().max() <= 1  # embeddings are stored as float16
    assert not torch.equal(*stored)


def noise_of(text):
    index = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return initial_noise(0, [index], (3, 8, 8))


def test_images_are_enlarged_and_noised_once_for_a_sample(encoded):
    prompts = load_prompts(encoded / "evaluation", encoded / "teacher")
    told = prompts.of_samples([0, 1, 2], CPU)
    stored = prompts.embeddings.tables["low_resolution"].float() / 127.5 - 1
    large = interpolate(stored, (16, 16), mode="bilinear", align_corners=True)[[0, 1, 0]]
    square = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[100]
    noise = (told["low_resolution"] - square.sqrt() * large) / (1 - square).sqrt()
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert not torch.allclose(noise[0], noise[2], atol=0.1)  # one text, two samples
    assert told["noise_level"].tolist() == [100, 100, 100]
    again = prompts.of_samples([2], CPU)
    assert torch.equal(again["low_resolution"][0], told["low_resolution"][2])
    drawn = [prompts.draw(8, torch.Generator().manual_seed(seed))["low_resolution"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_guidance_leaves_image_and_noise_level_alone(encoded):
    prompts = load_prompts(encoded / "train", encoded / "teacher")
    told = prompts.of_samples([0, 1], CPU)
    none = prompts.without(told)
    assert torch.equal(none["low_resolution"], told["low_resolution"])
    assert torch.equal(none["noise_level"], told["noise_level"])
    assert not torch.equal(none["text"], told["text"])
    teacher = load_denoiser(encoded / "teacher")
    teacher.conditions = prompts
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (teacher(x, 0.5, condition) for condition in (none, told))
        found = guided(teacher, Guidance(3.0)).estimate(x, 0.5, told)
        expected = [teacher.estimate(x, 0.5, condition) for condition in (none, told)]
    assert not torch.allclose(one, other, atol=1e-3)
    torch.testing.assert_close(found, expected[0] + 3 * (expected[1] - expected[0]), rtol=1e-4, atol=1e-3)


def test_a_student_is_a_stock_pipeline_and_draws_what_the_suite_draws(stages, tmp_path):
    """`diffusers` draws the noise of the image after that of the state, from one generator."""
    second = stages[1]
    student = one_step(tmp_path / "student", load_denoiser(second))
    pipeline = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 1, "guidance_scale": 1.0, "noise_level": 250, "output_type": "pt"}
    found = pipeline(TEXTS, image=LOW, generator=torch.Generator().manual_seed(0), **given).images
    generator = torch.Generator().manual_seed(0)
    state, noise = (torch.randn(2, 3, 16, 16, generator=generator) for _ in range(2))
    family = families()["deepfloyd_if_2"]
    told = family.encoded(encoding_pipeline(second, CPU), TEXTS, (16, 16))
    large = interpolate(LOW, (16, 16), mode="bilinear", align_corners=True)
    level = torch.full((2,), 250)
    told["low_resolution"] = pipeline.image_noising_scheduler.add_noise(large, noise, timesteps=level)
    told["noise_level"] = level
    with torch.no_grad():
        expected = LocalPipeline.read(student).drawn(state, 1, told)
        read = load_student(student).sample(state, told)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-4)


def test_from_images_of_the_first_stage_to_samples_of_the_second(encoded, tmp_path):
    variant = {"variant": "boot", "settings": {"method": "boot", "training": FEW}}
    samples = distilled_and_sampled(tmp_path, variant, encoded / "teacher", encoded, guidance_scale=2.0)
    assert samples.shape == (4, 16, 16, 3)
    assert len(np.unique(samples)) > 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"^teacher\.low_resolution: missing; expected the folder of a one-step student"),
        ("teacher", r"^teacher\.low_resolution\.path: .*: not a one-step student"),
        ("nowhere", r"^teacher\.low_resolution\.path: .*nowhere"),
        (
            "larger",
            r"^teacher\.low_resolution\.path: makes images of shape \(3, 16, 16\), the teacher of \(3, 16, 16\)",
        ),
        ("level", r"^teacher\.low_resolution\.noise_level: found 1000, expected less than 1000"),
        ("good", None),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages, tmp_path, given, message):
    student, second = stages
    paths = {"teacher": student.parent / "first", "nowhere": tmp_path / "nowhere", "level": student, "good": student}
    if given == "larger":
        paths[given] = one_step(tmp_path / "student", load_denoiser(second))
    low = None if given is None else {"path": str(paths[given]), "noise_level": 1000 if given == "level" else 250}
    raw = {"path": str(second), **({"low_resolution": low} if low else {})}
    teacher = StoredTeacher.model_validate(raw)
    if message is None:
        facts = teacher.facts((3, 16, 16))
        assert (facts.shape, facts.told, facts.can_be_guided) == ((3, 16, 16), "text", True)
        return
    with pytest.raises(UserError, match=message):
        teacher.facts((3, 16, 16))


def test_a_teacher_that_enlarges_nothing_takes_no_images(stages):
    student = stages[0]
    teacher = StoredTeacher.model_validate(
        {"path": str(student.parent / "first"), "low_resolution": {"path": str(student)}}
    )
    with pytest.raises(UserError, match=r"^teacher\.low_resolution: given, but the teacher enlarges no images"):
        teacher.facts((3, 8, 8))
