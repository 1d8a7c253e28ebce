"""The whole workflow of a teacher of latents that is told texts, small: from captions to the report."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from repository import CONFIG, inputs_of, snakemake
from tiny_text import write_clip, write_encoder

from diffusion.data.samples import load_labels
from diffusion.runtime.files import sha256_file
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.prompts import load_prompts

pytestmark = pytest.mark.slow

FEW = {"steps": 2, "batch_size": 8, "warmup_steps": 0, "ema_decay": None}
MEASURES = {
    "caption_accuracy",
    "caption_accuracy_new",
    "caption_partly_right",
    "caption_swapped",
    "caption_swapped_new",
    "caption_variance",
    "caption_diversity",
    "clip_score",
    "pick_score",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which config/digits-text.yaml and its latent variant have run with few steps, and with letters for
    an encoder."""
    folder = tmp_path_factory.mktemp("text")
    raw = yaml.safe_load((CONFIG / "digits-text.yaml").read_text())
    raw["data"] |= {"train_per_pair": 2, "test_per_pair": 1}
    latent = yaml.safe_load((CONFIG / "variants" / "digits-text-latent.yaml").read_text())["teacher"]
    raw["teacher"] |= {"autoencoder": latent["autoencoder"] | {"block_out_channels": [4, 8], "norm_num_groups": 2}}
    raw["teacher"]["autoencoder"]["training"] |= FEW
    del raw["ablation"]
    teacher, methods = raw["teacher"], raw["methods"]
    teacher["text"] = {"encoder": str(write_encoder(folder / "encoder")), "max_tokens": 40}
    teacher["network"] |= {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 4}
    teacher["training"] |= FEW
    raw["methods"] = {name: methods[name] for name in ("boot", "ddim", "progressive")}
    raw["methods"]["unguided"] = {"method": "ddim", "num_inference_steps": [2], "guidance_scale": 1.0}
    raw["methods"]["ranged"] = methods["boot"] | {
        "guidance_scale": [1.0, 4.0],
        "training": methods["boot"]["training"] | FEW,
    }
    raw["methods"]["lcm"] = {
        **{"method": "consistency_distillation", "num_inference_steps": [1, 2], "guidance_scale": [1.0, 4.0]},
        **{"boundary": "lcm", "num_levels": 6, "spacing": "time", "sigma_max": 1e9, "solver": "ddim"},
        **{"target_decay": 0.5, "distance": "huber", "training": FEW},
    }
    raw["methods"]["ddim"]["num_inference_steps"] = [1, 2]
    raw["methods"]["boot"]["training"] |= FEW
    raw["methods"]["progressive"] |= {"start_steps": 2, "training": FEW | {"steps": 4, "snapshots": 2}}
    raw["evaluation"] |= {"num_samples": 104, "seeds": [0, 1], "teacher": {"variant": "ddim", "nfe": 4}}
    clip = str(write_clip(folder / "clip"))
    raw["evaluation"]["text_scores"] = {"clip_score": clip, "pick_score": {"model": clip}}
    raw["evaluation"] |= {"trajectory_noises": 8, "classifier": {"training": FEW}}
    raw["speed"] = {"batch_sizes": [4], "seconds": 1}
    (folder / "text.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    snakemake(folder, config=folder / "text.yaml")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return folder / "results" / "digits-text"


def test_a_second_run_has_nothing_to_do(folder):
    done = snakemake(folder, "--dry-run", config=folder / "text.yaml")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_samples_are_of_captions_that_no_training_has_seen(results):
    trained, asked = load_conditions(results / "teacher"), load_prompts(results / "prompts")
    assert len(asked.texts) == 100
    assert not set(trained.texts) & set(asked.texts)
    names = json.loads((results / "data" / "manifest.json").read_text())["class_names"]
    for sets in ("boot/train-0/nfe-1", "ddim/train-0/nfe-4", "progressive/train-0/nfe-1"):
        labels = load_labels(results / "samples" / sets / "seed-0.npz")
        assert [names[label] for label in labels] == [*asked.texts, *asked.texts[:4]]


def test_a_method_has_its_own_guidance(results):
    """Two steps without it are two evaluations, and other images."""
    unguided = results / "samples" / "unguided" / "train-0" / "nfe-2" / "seed-0.npz"
    guided = results / "samples" / "ddim" / "train-0" / "nfe-4" / "seed-0.npz"
    assert (np.load(unguided)["arr_0"] != np.load(guided)["arr_0"]).any()
    record = json.loads((results / "students" / "boot" / "train-0" / "provenance.json").read_text())
    assert record["guidance_scale"] == 2.0


@pytest.mark.parametrize("variant", ["ranged", "lcm"])
def test_a_student_of_a_range_of_scales_is_sampled_at_the_teachers(results, variant):
    told = {
        kind: json.loads((results / kind / variant / "train-0" / "provenance.json").read_text())["guidance_scale"]
        for kind in ("students", "samples")
    }
    assert told == {"students": [1.0, 4.0], "samples": 2.0}
    assert (results / "students" / variant / "train-0" / "nfe-1" / "unet").is_dir()


def test_captions_are_measured_and_shown(folder, results):
    table = pd.read_csv(results / "report" / "metrics.csv")
    assert set(table[table.variant == "boot"].metric) >= MEASURES
    # Of each caption the test part has one image.
    assert set(table[table.method == "real"].metric) >= MEASURES - {"caption_variance", "caption_diversity"}
    assert "label_accuracy" not in set(table.metric)
    speed = pd.read_csv(results / "report" / "speed.csv")
    assert (speed.text_encoder_ms > 0).all()
    assert speed.decoder_ms.isna().all() or (speed.decoder_ms > 0).all()
    page = (results / "report" / "index.html").read_text()
    assert load_prompts(results / "prompts").texts[0] in page
    assert "Caption accuracy" in page
    weights = sha256_file(folder / "clip" / "model.safetensors")
    assert all(words in page for words in ("CLIP score ↑", "PickScore ↑", "Diversity within a caption", weights))


def test_a_data_free_student_is_made_again_without_the_data(folder, results, tmp_path):
    """The job of its rule is told the teacher alone; with a grammar, texts too, which are made without the data."""
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    copy = tmp_path / "copy"
    student = copy / "results" / "digits-text" / "students" / "boot" / "train-0"

    def made(config, rules):
        for gone in (student, copy / "results" / "digits-text" / "data", copy / "results" / "digits-text" / "state"):
            shutil.rmtree(gone, ignore_errors=True)
        target = "results/digits-text/students/boot/train-0"
        snakemake(copy, target, "--allowed-rules", *rules, "--rerun-triggers", "mtime", config=config)
        assert not (copy / "results" / "digits-text" / "data").exists()
        record = json.loads((student / "provenance.json").read_text())
        weights = (student / "nfe-1" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        return weights, {role.partition(",")[0] for role in record["inputs"]}

    before = (student / "nfe-1" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert made(copy / "text.yaml", ["distil"]) == (before, {"teacher"})
    with_grammar(folder / "text.yaml", copy / "grammar.yaml")
    weights, read = made(copy / "grammar.yaml", ["texts", "training_prompts", "distil"])
    assert read == {"teacher", "prompts"}
    assert weights != before
    lists = json.loads((copy / "results" / "digits-text" / "texts" / "texts.json").read_text())
    assert load_conditions(student / "nfe-1").texts == tuple(lists["train"])


def with_grammar(config, path):
    """The experiment with texts of a grammar."""
    raw = yaml.safe_load(config.read_text())
    digits = ["two", "three", "four", "six", "nine"]
    source = {"kind": "grammar", "templates": ["{a} before {b}"], "slots": {"a": digits, "b": digits}}
    path.write_text(yaml.safe_dump(raw | {"prompts": {"train": source, "negative": "none", "share_held_out": 0.3}}))


def test_the_graph_leads_from_texts_to_students_and_samples_and_not_from_the_data(folder, tmp_path):
    captions = inputs_of(tmp_path, folder / "text.yaml")
    assert captions["distil"] == {"teacher"}
    assert captions["prompts"] == {"teacher", "data"}
    assert not captions.keys() & {"texts", "training_prompts"}
    with_grammar(folder / "text.yaml", tmp_path / "grammar.yaml")
    grammar = inputs_of(tmp_path, tmp_path / "grammar.yaml")
    assert grammar["texts"] == set()
    assert grammar["prompts"] == grammar["training_prompts"] == {"teacher", "texts"}
    assert grammar["distil"] == {"teacher", "training_prompts"}
    assert grammar["distil_with_data"] == {"teacher", "data", "latents", "training_prompts"}  # for the negative prompt
    assert "classifier" not in grammar
    for rule in ("sample", "speed", "pictures", "learning_curve"):
        assert "prompts" in grammar[rule]
        assert "data" not in grammar[rule]
