"""How well images go with their captions: a small made CLIP, against the whole model's own logits."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from repository import CONFIG
from safetensors.torch import load_file, save_file
from tiny import stored_data
from tiny_text import INDICES, TEXTS, tiny_prompts, write_clip
from yaml import safe_load

from diffusion.data.samples import save_samples
from diffusion.data.store import Splits
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file
from diffusion.teachers.prompts import save_prompts
from evaluation.measure.caption_metrics import clip_score, pick_score
from evaluation.measure.captions import Match
from evaluation.measure.clip import Clip
from evaluation.measure.protocols import Protocol
from evaluation.measure.text_scores import TextScore
from suite.configuration.experiment import parse_experiment
from suite.jobs.measuring import Measure, MeasureFloor
from suite.jobs.references import Extract

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


def pictures(count, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 16, channels), dtype=np.uint8)


def logits_by_hand(folder, images, texts):
    """What the whole model says, image by image; float64 (N,). And its scale."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    found = []
    for image, text in zip(np.repeat(images, 3 // images.shape[3], axis=3), texts, strict=True):
        inputs = processor(text=[text], images=[image], return_tensors="pt", truncation=True)
        with torch.no_grad():
            found.append(float(model(**inputs).logits_per_image))
    return np.array(found), float(model.logit_scale.detach().double().exp())


# -- the scores --------------------------------------------------------------------------------------------------------


def test_scores_are_means_by_hand():
    """A negative cosine counts as 0 in the CLIP score, and as it is in PickScore."""
    match = Match(np.array([0.25, -0.5, 0.125]), 100.0)
    assert clip_score(match) == pytest.approx((25 + 0 + 12.5) / 3, rel=1e-15)
    assert pick_score(match) == pytest.approx((25 - 50 + 12.5) / 3, rel=1e-15)


@pytest.mark.parametrize("channels", [1, 3])
def test_cosines_are_those_of_the_whole_model(folder, channels):
    images, rows = pictures(7, channels), np.array([2, 0, 1, 1, 0, 2, 0])
    clip = Clip("clip_score", TextScore(model=str(folder)), TEXTS, CPU, batch_size=3)
    match = clip.match(images, rows)
    logits, scale = logits_by_hand(folder, images, [TEXTS[row] for row in rows])
    assert match.cosines.dtype == np.float64
    assert match.logit_scale == scale
    assert match.cosines == pytest.approx(logits / scale, abs=2e-6)
    assert np.ptp(logits) / scale > 1e-2, "captions and images that all match alike would say nothing"
    assert pick_score(match) == pytest.approx(logits.mean(), rel=1e-5)
    assert clip.describe()["weights_sha256"] == sha256_file(folder / "model.safetensors")


def test_captions_that_are_too_long_are_cut_and_counted(folder):
    """As the model's own tokenizer cuts them: the end token stays."""
    texts, images = ["on" * 20, "nine"], pictures(2)
    clip = Clip("pick_score", TextScore(model=str(folder)), texts, CPU, batch_size=8)
    assert clip.num_cut == clip.describe()["captions_cut"] == 1
    logits, scale = logits_by_hand(folder, images, texts)
    assert clip.match(images, np.arange(2)).cosines == pytest.approx(logits / scale, abs=2e-6)


# -- what is refused ---------------------------------------------------------------------------------------------------


def text_experiment(score, encoder):
    raw = safe_load((CONFIG / "digits-text.yaml").read_text())
    raw["teacher"]["text"] = {"encoder": str(encoder), "max_tokens": 40}
    raw["evaluation"]["text_scores"] = {"clip_score": score}
    return raw


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        ("none", r"found 'none', expected an existing folder, or a name on the Hub with its `revision`"),
        ("openai/clip-vit-large-patch14", r"expected an existing folder, or a name .* {model: openai/clip-vit-large"),
        (
            {"model": "openai/clip-vit-large-patch14", "revision": "0" * 40},
            r"not in the Hub's cache.*hf download openai/clip-vit-large-patch14 --revision 0{40}",
        ),
        ({"model": "openai/clip-vit-large-patch14", "revision": "main"}, r"revision: found 'main', expected text of"),
    ],
)
def test_weights_that_are_not_there_are_refused_before_anything_runs(folder, tmp_path, monkeypatch, score, problem):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"^evaluation\.text_scores\.clip_score.*{problem}"):
        parse_experiment(text_experiment(score, folder))


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_before_anything_runs(folder, tmp_path, gone):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert parse_experiment(text_experiment(str(copy), folder)).evaluation.text_scores
    (copy / gone).unlink()
    with pytest.raises(UserError, match=rf"evaluation\.text_scores\.clip_score: .*copy lacks .*{gone}"):
        parse_experiment(text_experiment(str(copy), folder))


def test_a_teacher_that_is_told_no_texts_has_no_text_scores(folder):
    raw = safe_load((CONFIG / "digits.yaml").read_text())
    raw["evaluation"] = {"text_scores": {"pick_score": str(folder)}}
    with pytest.raises(UserError, match=r"^evaluation\.text_scores: given, but the teacher is told no texts"):
        parse_experiment(raw)


def test_weights_of_another_network_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"text_scores\.pick_score.*lacks text_projection.weight and 0 more of",
    ):
        Clip("pick_score", TextScore(model=str(copy)), TEXTS, CPU, 8)


# -- through the jobs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of ten captions, three of them in its test part, and its real features."""
    root = tmp_path_factory.mktemp("scored")
    names = [f"caption {number}" for number in range(10)]
    for index, text in zip(INDICES, TEXTS, strict=True):
        names[index] = text
    tested = np.array([*INDICES, *INDICES, INDICES[0]])
    splits = Splits(
        *(pictures(20, seed=1), np.arange(20) % 10),
        *(pictures(7, seed=2), tested),
        tuple(names),
        "made for a test",
    )
    stored_data(root / "data", splits)
    protocol = Protocol.model_validate({"features": "efficientnet-lite0-32"})
    Extract(protocol=protocol, data=root / "data", output=root / "real").run()
    save_prompts(root / "prompts", tiny_prompts(root))
    (root / "prompts" / "provenance.json").write_text(json.dumps({"files": {}}))
    return root


def measured(made, folder, place, labels):
    images = pictures(len(labels), seed=3)
    save_samples(place / "samples/nfe-1/seed-0.npz", [images], images.shape, np.array(labels))
    (place / "features/nfe-1").mkdir(parents=True)
    np.save(place / "features/nfe-1/seed-0.npy", np.random.default_rng(5).standard_normal((len(labels), 1280), "f4"))
    Measure(
        **{"experiment": "e", "method": "boot", "variant": "boot", "teacher": "ddim", "teacher_nfe": 1},
        **{"real": made / "real", "prompts": made / "prompts"},
        **{"features": place / "features", "samples": place / "samples"},
        **{"teacher_features": place / "features", "teacher_samples": place / "samples"},
        text_scores={"clip_score": {"model": str(folder)}, "pick_score": {"model": str(folder)}},
        batch_size=4,
        output=place / "measures.csv",
    ).run()
    return images, pd.read_csv(place / "measures.csv").set_index("metric")


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_samples_are_compared_with_the_texts_that_they_were_asked_for(made, folder, tmp_path):
    labels = [*INDICES, *INDICES, INDICES[1], INDICES[1]]
    images, rows = measured(made, folder, tmp_path, labels)
    logits, scale = logits_by_hand(folder, images, [TEXTS[INDICES.index(label)] for label in labels])
    assert rows.loc["pick_score", "value"] == pytest.approx(logits.mean(), rel=1e-5)
    assert rows.loc["clip_score", "value"] == pytest.approx(100 * np.maximum(logits / scale, 0).mean(), rel=1e-5)
    assert set(rows.loc[["clip_score", "pick_score"], "reference"]) == {"captions"}
    assert set(rows.loc[["clip_score", "pick_score"], "num_samples"]) == {8}
    assert rows.loc["clip_score", "library"] == f"transformers {transformers.__version__}"
    # No classifier is needed for what is taken within a caption.
    assert {"caption_variance", "caption_diversity"} <= set(rows.index)
    record = json.loads((tmp_path / "measures.json").read_text())
    assert record["clips"]["clip_score"]["weights_sha256"] == sha256_file(folder / "model.safetensors")
    assert record["text_scores"]["pick_score"] == {"model": str(folder), "revision": None}


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_a_caption_that_no_prompt_has_is_refused(made, folder, tmp_path):
    with pytest.raises(UserError, match=r"seed-0\.npz: found the caption 0, expected the indices of the 3 captions"):
        measured(made, folder, tmp_path, [*INDICES, 0])


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_the_floor_is_the_real_images_with_their_own_captions(made, folder, tmp_path):
    scores = {"clip_score": {"model": str(folder)}}
    common = {"experiment": "e", "real": made / "real", "num_samples": 4, "data": made / "data"}
    MeasureFloor(**common, text_scores=scores, output=tmp_path / "real.csv").run()
    rows = pd.read_csv(tmp_path / "real.csv").set_index("metric")
    texts = [*TEXTS, *TEXTS, TEXTS[0]]
    logits, scale = logits_by_hand(folder, pictures(7, seed=2), texts)
    assert rows.loc["clip_score", "value"] == pytest.approx(100 * np.maximum(logits / scale, 0).mean(), rel=1e-5)
    assert rows.loc["clip_score", "num_samples"] == 7
    assert "pick_score" not in rows.index
    assert {"caption_variance", "caption_diversity"} <= set(rows.index)
