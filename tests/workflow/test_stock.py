"""A stock pipeline of `diffusers` from prompts to the report, small, and each of the others from prompts to samples."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import tiny_pipelines
import torch
import yaml
from PIL import Image
from repository import CONFIG, inputs_of, snakemake
from stock_jobs import distilled_and_sampled

from diffusion.data.samples import load_samples
from diffusion.data.store import load_split
from diffusion.distillation import distiller
from diffusion.guidance import Guidance
from diffusion.runtime.errors import UserError
from diffusion.teachers.prompts import encoder_of, load_prompts
from diffusion.teachers.stored_network import stored_network
from suite.configuration.experiment import parse_experiment
from suite.estimate import estimate
from suite.jobs import autoencoder
from suite.jobs.data import Prepare
from suite.jobs.prompts import Encode
from suite.jobs.sampling import Sample
from suite.jobs.teacher import Import

from diffusers import DiffusionPipeline  # isort: skip

PROMPTS = "".join(f"{colour} {animal}\n" for colour in ("a red", "a blue") for animal in ("fox", "cat", "owl", "hen"))
SIDES = {"deepfloyd-if": 8, "sana": 32}  # of images; of all others 16
FEW = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "ema_decay": None}


def experiment(folder, name="stable-diffusion", prediction_type=None):
    """An experiment with a tiny pipeline, a text file and some images, all in ``folder``."""
    (folder / "images").mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "prompts.txt").write_text(PROMPTS)
    options = {} if prediction_type is None else {"prediction_type": prediction_type}
    return {
        "experiment": "stock",
        "data": {"kind": "images", "path": str(folder / "images"), "resolution": 16, "test_fraction": 0.34},
        "teacher": {"path": str(tiny_pipelines.write(folder / "teacher", name, **options)), "guidance_scale": 3.0},
        "prompts": {"train": {"kind": "file", "path": str(folder / "prompts.txt")}, "share_held_out": 0.4},
        "methods": {
            "ddim": {"method": "ddim", "num_inference_steps": [1, 2]},
            "boot": {"method": "boot", "training": FEW},
            "sid": {"method": "sid", "training": FEW},
        },
        "evaluation": {
            "num_samples": 16,
            "seeds": [0],
            "features": "efficientnet-lite0-32",
            "teacher": {"variant": "ddim", "nfe": 4},
            "trajectory_noises": 4,
        },
        "speed": {"batch_sizes": [2], "seconds": 1},
    }


@pytest.mark.slow
def test_stable_diffusion_from_prompts_to_the_report(tmp_path):
    """The whole workflow; the student is a stock pipeline that draws what was measured."""
    raw = experiment(tmp_path)
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    snakemake(tmp_path, config=tmp_path / "stock.yaml")
    results = tmp_path / "results" / "stock"
    assert (results / "report" / "index.html").exists()
    trained, asked = load_prompts(results / "training_prompts"), load_prompts(results / "prompts")
    assert len(trained.texts) + len(asked.texts) == 8
    assert not set(trained.texts) & set(asked.texts)
    samples = load_samples(results / "samples" / "boot" / "train-0" / "nfe-1" / "seed-0.npz")
    assert samples.shape == (16, 16, 16, 3)
    record = json.loads((results / "students" / "boot" / "train-0" / "provenance.json").read_text())
    assert record["guidance_scale"] == 3.0
    student = results / "students" / "boot" / "train-0" / "nfe-1"
    pipeline = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a red fox in the snow", num_inference_steps=1, guidance_scale=1.0).images
    assert image.size == (16, 16)


FAMILIES = sorted(set(tiny_pipelines.PIPELINES) - {"stable-diffusion", "dit", "pixart-sigma", "deepfloyd-if-2"})


@pytest.mark.parametrize("name", FAMILIES)
def test_each_pipeline_is_imported_distilled_and_sampled(tmp_path, name):
    """The jobs one after the other, without Snakemake."""
    stored = tiny_pipelines.write(tmp_path / "stored", name)
    Import(stored=str(stored), output=tmp_path / "teacher").run()
    texts = {"train": ["a red fox", "a blue cat"], "evaluation": ["an owl", "a hen"], "negative": "ice"}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "texts.json").write_text(json.dumps(texts))
    common = {"teacher": tmp_path / "teacher", "texts": tmp_path / "texts"}
    for part in ("train", "evaluation"):
        Encode(**common, part=part, output=tmp_path / part).run()
    variant = {"variant": "boot", "settings": {"method": "boot", "training": FEW}}
    samples = distilled_and_sampled(tmp_path, variant, tmp_path / "teacher", tmp_path, guidance_scale=2.0)
    if name == "flux":  # its network is told the scale, so that a sampler evaluates it once a step
        taught = json.loads((tmp_path / "students" / "nfe-1" / "student.json").read_text())
        assert taught["guidance_range"] == [2.0, 2.0]
        Sample(
            variant="ddim",
            settings={"method": "ddim", "num_inference_steps": [2]},
            guidance_scale=2.0,
            guidance_embedded=True,
            source=tmp_path / "teacher",
            prompts=tmp_path / "evaluation",
            num_samples=4,
            batch_size=4,
            seeds=(0,),
            output=tmp_path / "of_teacher",
        ).run()
        assert (tmp_path / "of_teacher" / "nfe-2" / "seed-0.npz").exists()
    side = SIDES.get(name, 16)
    assert samples.shape == (4, side, side, 3)
    assert len(np.unique(samples)) > 10


def captioned(folder, raw):
    """The experiment with a caption of each image, of which the first thirty share ten."""
    lines = [{"file_name": f"{number}.png", "text": caption_of(number)} for number in range(60)]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    raw["data"] |= {"captions": "metadata.jsonl"}
    del raw["prompts"]
    return raw


def caption_of(number):
    which = number // 3 if number < 30 else number
    return f"a {'abcdefgh'[which % 8]}{'ijklmnop'[which // 8]} fox"


def numbers_of(images):
    """The images of :func:`experiment` again, which are of noise by their number."""
    known = {
        np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8).tobytes(): number for number in range(60)
    }
    return [known[image.tobytes()] for image in images]


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A small Stable Diffusion, images with captions, their latents, and the captions of both parts encoded."""
    folder = tmp_path_factory.mktemp("captions")
    raw = captioned(folder, experiment(folder))
    Import(stored=raw["teacher"]["path"], output=folder / "imported").run()
    Prepare(settings=raw["data"], output=folder / "data").run()
    common = {"data": folder / "data", "state": folder / "state"}
    autoencoder.Encode(**common, autoencoder=folder / "imported", batch_size=16, output=folder / "latents").run()
    for part in ("train", "evaluation"):
        Encode(teacher=folder / "imported", data=folder / "data", part=part, output=folder / part).run()
    return folder


def test_samples_are_drawn_of_captions_of_the_test_part_that_no_student_is_trained_with(own_images):
    parts = {
        part: set(map(caption_of, numbers_of(load_split(own_images / "data", part).images)))
        for part in ("train", "test")
    }
    trained, asked = load_prompts(own_images / "train"), load_prompts(own_images / "evaluation")
    assert set(trained.texts) == parts["train"]
    assert set(asked.texts) == parts["test"] - parts["train"]
    record = json.loads((own_images / "evaluation" / "provenance.json").read_text())
    assert record["left_out"] == len(parts["test"] & parts["train"]) > 0


def test_prompts_of_a_list_are_left_without_the_captions_that_students_are_trained_with(own_images, tmp_path):
    seen = load_prompts(own_images / "train").texts[0]
    texts = {"train": None, "evaluation": ["an owl", seen, "a hen"], "negative": "ice"}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "texts.json").write_text(json.dumps(texts))
    common = {"teacher": own_images / "imported", "data": own_images / "data", "texts": tmp_path / "texts"}
    for part in ("train", "evaluation"):
        Encode(**common, part=part, output=tmp_path / part).run()
    trained, asked = load_prompts(tmp_path / "train"), load_prompts(tmp_path / "evaluation")
    assert asked.texts == ("an owl", "a hen")
    before = load_prompts(own_images / "train")
    assert trained.texts == before.texts
    assert torch.equal(trained.indices, before.indices)
    assert torch.equal(trained.empty.text, encoder_of(own_images / "imported").negative("ice").text)
    assert not torch.equal(trained.empty.text, before.empty.text)


LCM = {"method": "consistency_distillation", "boundary": "lcm", "num_levels": 51, "spacing": "time", "sigma_max": 1.0e9,
       "solver": "ddim", "target_decay": 0.95, "distance": "huber", "training": FEW}  # fmt: skip
WITH_DATA = {"lcm": LCM, "progressive": {"method": "progressive_distillation", "start_steps": 2, "training": FEW}}


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_student_of_a_stock_pipeline_is_trained_on_images_with_their_own_captions(
    own_images, tmp_path, monkeypatch, name
):
    drawn = []

    def real_batch(*arguments):
        drawn.append(batch := distiller.real_batch(*arguments))
        return batch

    module = {"lcm": "baselines.consistency_distillation", "progressive": "diffusion.distillation.staged"}[name]
    monkeypatch.setattr(f"{module}.real_batch", real_batch)
    variant = {"variant": name, "settings": WITH_DATA[name]}
    data = {"data": own_images / "data", "latents": own_images / "latents"}
    samples = distilled_and_sampled(
        tmp_path, variant, own_images / "imported", own_images, guidance_scale=(3.0, 9.0), sampled_scale=4.0, **data
    )
    latents = torch.from_numpy(np.load(own_images / "latents" / "train.npy")).permute(0, 3, 1, 2).float()
    numbers = numbers_of(load_split(own_images / "data", "train").images)
    texts = sorted(set(map(caption_of, numbers)))
    known = encoder_of(own_images / "imported")(texts).text.float().flatten(1)
    assert len(drawn) >= 2
    for x, _, condition in drawn:
        rows = torch.cdist(x.flatten(1), latents.flatten(1)).argmin(1)
        assert torch.equal(latents[rows], x)
        distances = torch.cdist(condition["text"].float().flatten(1), known)
        assert [texts[nearest] for nearest in distances.argmin(1)] == [caption_of(numbers[row]) for row in rows]
        assert distances.min(1).values.max() < 0.1 < torch.pdist(known).min()
    assert samples.shape == (4, 16, 16, 3)
    assert len(np.unique(samples)) > 10


def test_images_with_captions_lead_to_all_students_through_the_texts(tmp_path):
    """A method without data, too, may be told them; the data itself it does not see."""
    raw = captioned(tmp_path, experiment(tmp_path))
    raw["methods"] |= WITH_DATA
    found = parse_experiment(raw)
    assert found.encodes_captions
    (tmp_path / "captions.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    graph = inputs_of(tmp_path, tmp_path / "captions.yaml")
    assert graph["training_prompts"] == graph["prompts"] == {"teacher", "data"}
    assert graph["distil"] == {"teacher", "training_prompts"}
    assert graph["distil_with_data"] == {"teacher", "data", "latents", "training_prompts"}
    assert "texts" not in graph
    # Captions are what is trained with there, so that another source is refused; and those of no file are.
    raw["prompts"] = {"train": {"kind": "file", "path": str(tmp_path / "prompts.txt")}}
    with pytest.raises(
        UserError, match=r"methods\.lcm: needs images with their captions; expected prompts\.train to be"
    ):
        parse_experiment(raw)


def test_what_a_stock_pipeline_cannot_do_is_refused(tmp_path):
    raw = experiment(tmp_path)
    raw["methods"]["progressive"] = {"method": "progressive_distillation", "start_steps": 8, "training": FEW}
    del raw["prompts"]
    with pytest.raises(UserError) as refused:
        parse_experiment(raw)
    lines = str(refused.value).splitlines()
    assert any(line.startswith("prompts.train: found captions, expected another source") for line in lines)
    assert any(
        line.startswith("methods.progressive: needs images with their captions; expected some (data.captions)")
        for line in lines
    )


LARGE = {
    "sd15": "stable-diffusion",
    "sd21": "stable-diffusion",
    "sd3": "stable-diffusion-3",
    "sana": "sana",
    "deepfloyd-if": "deepfloyd-if",
    "flux": "flux",
}


def large(folder, name):
    """A shipped configuration with a tiny pipeline of its teacher's class, and files where the user's would be."""
    raw = yaml.safe_load((CONFIG / "text-to-image" / f"{name}.yaml").read_text())
    if "lora" in raw["methods"]["boot"]:
        pytest.importorskip("peft", reason="adapters are an extra: make test-large")
    made = experiment(folder, LARGE[name], prediction_type="v_prediction" if name == "sd21" else None)
    raw["data"] |= {"path": made["data"]["path"], "resolution": SIDES.get(name, 16)}
    raw["teacher"]["path"] = made["teacher"]["path"]
    raw["prompts"] = made["prompts"]
    return raw


@pytest.mark.parametrize("name", LARGE)
def test_a_large_configuration_is_checked_and_planned(tmp_path, name):
    raw = large(tmp_path, name)
    found = parse_experiment(raw)
    assert (found.told, found.is_latent) == ("text", name != "deepfloyd-if")
    assert set(found.methods) >= {"boot", "ddim"}
    assert all(not method.needs_data for method in found.methods.values() if method.trains)
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    done = snakemake(tmp_path, "--dry-run", config=tmp_path / "large.yaml")
    assert "training_prompts" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_configuration_runs_to_its_report(tmp_path, name):
    """All that it says but for its lengths; with BOOT and DDIM alone. A minute each: asked for by BOOT_TEST_LARGE=1."""
    if not os.environ.get("BOOT_TEST_LARGE"):
        pytest.skip("a minute each: BOOT_TEST_LARGE=1 (make test-large)")
    raw = large(tmp_path, name) | {"select": ["boot", "ddim"]}
    raw["methods"]["ddim"]["num_inference_steps"] = [1, 2]
    raw["methods"]["boot"]["training"] |= {"steps": 2, "batch_size": 4, "gradient_accumulation_steps": 2,
                                           "warmup_steps": 0, "ema_decay": None}  # fmt: skip
    small = {"num_samples": 16, "batch_size": 8, "features": "efficientnet-lite0-32", "trajectory_noises": 4}
    raw["evaluation"] |= small | {"teacher": {"variant": "ddim", "nfe": 2 if name == "flux" else 4}}
    raw["speed"] = {"batch_sizes": [2], "seconds": 1}
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    snakemake(tmp_path, config=tmp_path / "large.yaml")
    (results,) = (tmp_path / "results").iterdir()
    table = pd.read_csv(results / "report" / "metrics.csv")
    assert set(table["variant"]) >= {"boot", "ddim"}
    student = results / "students" / "boot" / "train-0" / "nfe-1"
    pipeline = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    given = {"guidance_scale": 3.5} if name == "flux" else {"guidance_scale": 1.0}
    size = {} if name in ("sd15", "sd21") else dict.fromkeys(("height", "width"), raw["data"]["resolution"])
    (image,) = pipeline("a red fox in the snow", num_inference_steps=1, **given, **size).images
    assert image.size == (raw["data"]["resolution"],) * 2


def test_a_sampler_of_a_teacher_that_is_told_its_scale_evaluates_once_a_step(tmp_path):
    raw = experiment(tmp_path, "flux")
    del raw["methods"]["sid"]
    raw["methods"]["range"] = {"method": "boot", "guidance_scale": [2.0, 4.0], "training": FEW}
    raw["evaluation"]["teacher"]["nfe"] = 2
    found = parse_experiment(raw)
    assert found.methods["ddim"].evaluations() == (1, 2)
    assert found.methods["boot"].guidance == Guidance(3.0, embedded=True)
    assert found.methods["range"].guidance == Guidance((2.0, 4.0), embedded=True)
    raw["prompts"]["negative"] = "ice"
    with pytest.raises(UserError, match=r"^prompts\.negative: given, but nothing is guided"):
        parse_experiment(raw)


@pytest.mark.parametrize("name", sorted(set(LARGE.values())))
def test_a_stock_pipeline_is_estimated(tmp_path, name):
    """Of the true network with random weights, on texts of the shapes that its encoders give."""
    nfe = 2 if name == "flux" else 4
    raw = experiment(tmp_path, name) | {"evaluation": {"num_samples": 16, "seeds": [0], "teacher": {"nfe": nfe}}}
    raw["data"]["resolution"] = SIDES.get(name, 16)
    found = estimate(parse_experiment(raw), torch.device("cpu"), seconds=0.1)
    rows = {(row.rule, row.variant): row for row in found.rows}
    assert rows["distil", "boot"].trained > 0
    # What decoding takes is counted beside the evaluations.
    assert (rows["sample", "boot"].compared > 0) == (name != "deepfloyd-if")  # whose states are the images
    assert rows["sample", "boot"].forward == 16


def test_blank_texts_have_the_shapes_of_true_ones(tmp_path):
    for name in FAMILIES:
        folder = tiny_pipelines.write(tmp_path / name, name)
        family, encoder = stored_network(folder).family, encoder_of(folder)
        blank = family.told_shapes(stored_network(folder).config)
        found = {key: tuple(table.shape[1:]) for key, table in encoder(["a fox"]).tables.items()}
        assert blank.keys() == found.keys()
        # The number of tokens is that of the published pipelines.
        assert {key: shape[1:] for key, shape in blank.items()} == {key: shape[1:] for key, shape in found.items()}
