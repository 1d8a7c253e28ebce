"""The jobs between texts and samples, and what is refused before the first of them."""

import copy
import json
import shutil

import pytest
import torch
import yaml
from repository import CONFIG
from tiny_text import MAX_TOKENS, SHAPE, TEXTS, tiny_prompts, tiny_text_denoiser, write_encoder

from diffusion.guidance import Guidance, guided
from diffusion.noise import initial_noise
from diffusion.runtime.errors import UserError
from diffusion.solvers import ddim_sample
from diffusion.teachers.folder import load_conditions, load_denoiser, save_denoiser
from diffusion.teachers.prompts import Prompts, encoder_of, load_prompts
from suite.configuration.experiment import parse_experiment
from suite.job import read_job
from suite.jobs.networks import load_teacher
from suite.jobs.prompts import Collect, Encode

WORDS = {"a": ["two", "six", "ten", "four"], "b": ["one", "nine", "five", "seven", "eight"]}
GRAMMAR = {"kind": "grammar", "templates": ["{a} on {b}"], "slots": WORDS}
BOOT = {"method": "boot", "training": {"steps": 2, "batch_size": 4, "warmup_steps": 0, "ema_decay": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher that is told texts, and the lists of a grammar with a negative prompt."""
    folder = tmp_path_factory.mktemp("jobs")
    save_denoiser(folder / "teacher", tiny_text_denoiser(tiny_prompts(folder)))
    collect(folder, "texts", train=GRAMMAR, negative="one", share_held_out=0.3)
    return folder


def collect(folder, output, **block):
    stage = {"stage": "prompts.Collect", "settings": block, "teacher": str(folder / "teacher")}
    read_job(json.dumps(stage | {"output": str(folder / output)})).run()
    return json.loads((folder / output / "texts.json").read_text())


def encode(folder, output, **fields):
    Encode(teacher=folder / "teacher", output=folder / output, **fields).run()
    return load_prompts(folder / output, folder / "teacher")


def distil(folder, output, prompts=None):
    told = {"stage": "distillation.Distil", "variant": "boot", "settings": BOOT, "guidance_scale": 2.0, "train_seed": 0}
    told |= {"teacher": str(folder / "teacher"), "state": str(folder / f"state-{output}")}
    told |= {"prompts": str(folder / prompts)} if prompts else {}
    read_job(json.dumps(told | {"output": str(folder / output)})).run()
    return folder / output


def test_lists_and_their_counts_are_stored(folder):
    lists = json.loads((folder / "texts" / "texts.json").read_text())
    assert sorted([*lists["train"], *lists["evaluation"]]) == sorted(
        f"{a} on {b}" for a in GRAMMAR["slots"]["a"] for b in GRAMMAR["slots"]["b"]
    )
    assert lists["negative"] == "one"
    counts = json.loads((folder / "texts" / "provenance.json").read_text())["counts"]
    assert counts["train"] == {
        "given": 20,
        "twice": 0,
        "too_long": 0,
        "held_out": len(lists["evaluation"]),
        "kept": len(lists["train"]),
    }


def test_tokens_are_counted_by_the_tokenizer_before_the_teacher_is_there(folder):
    """Letters and the two ends: "four on five" has 12 tokens, and "two on one on one" 15."""
    job = Collect(settings={"train": GRAMMAR, "evaluation": GRAMMAR | {"templates": ["{a} on {b} on {b}"]}},
                  tokenizer=folder / "teacher/tokenizer", max_tokens=14, output=folder / "short")  # fmt: skip
    with pytest.raises(UserError, match=r"prompts\.evaluation: no prompt is left, .*too long 20"):
        job.run()
    assert not (folder / "short").exists()


def test_embeddings_of_both_parts_are_the_encoders(folder):
    lists = json.loads((folder / "texts" / "texts.json").read_text())
    encoder = encoder_of(folder / "teacher", MAX_TOKENS)
    negative = encoder(["one"])
    for part in ("train", "evaluation"):
        found = encode(folder, f"embedded-{part}", texts=folder / "texts", part=part)
        assert list(found.texts) == lists[part]
        for one, other in ((found.embeddings, encoder(lists[part])), (found.empty, negative)):
            torch.testing.assert_close(dict(one.tables), dict(other.tables), rtol=2e-3, atol=2e-3)
    record = json.loads((folder / "embedded-evaluation" / "provenance.json").read_text())
    assert (record["left_out"], record["seen_by_the_teacher"]) == (0, 0)


def test_the_captions_of_the_teacher_stay_under_a_negative_prompt(folder):
    collect(folder, "only-negative", negative="one")
    found = encode(folder, "negated", texts=folder / "only-negative", part="train")
    own = load_conditions(folder / "teacher")
    assert found.texts == own.texts
    assert torch.equal(found.embeddings.text, own.embeddings.text)
    assert torch.equal(found.empty.text, encoder_of(folder / "teacher", MAX_TOKENS)(["one"]).text)


def test_evaluation_leaves_out_what_the_teachers_captions_have(folder):
    listed = {"kind": "grammar", "templates": ["{a}"], "slots": {"a": [TEXTS[0], "ten on one", "ten on nine"]}}
    collect(folder, "known", evaluation=listed)
    found = encode(folder, "unknown", texts=folder / "known")
    assert sorted(found.texts) == ["ten on nine", "ten on one"]
    assert json.loads((folder / "unknown" / "provenance.json").read_text())["left_out"] == 1


def test_a_data_free_student_is_trained_with_teacher_and_texts_alone(folder):
    """Stored embeddings and those of the loop give one student, and others than the teacher's captions give."""
    for name, cache in (("stored", True), ("loop", False)):
        encode(folder, name, texts=folder / "texts", part="train", cache=cache)
    students = [distil(folder, f"of-{prompts}", prompts) for prompts in ("stored", "loop", None)]
    weights = [load_denoiser(student / "nfe-1").network.state_dict() for student in students]
    one, other, captions = (torch.cat([weight.flatten() for weight in each.values()]) for each in weights)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert (one - captions).abs().max() > 1e-4
    record = json.loads((students[0] / "provenance.json").read_text())
    assert {role.partition(",")[0] for role in record["inputs"]} == {"teacher", "prompts"}
    assert load_conditions(students[0] / "nfe-1").texts == load_prompts(folder / "stored").texts


def test_a_teacher_is_asked_for_the_texts_under_their_negative_prompt(folder):
    given = encode(folder, "asked", texts=folder / "texts")
    teacher = load_teacher(folder / "teacher", 3.0, torch.device("cpu"), folder / "asked")
    with_captions = load_teacher(folder / "teacher", 3.0, torch.device("cpu"), folder / "asked", captions=True)
    assert teacher.conditions.texts == given.texts
    assert with_captions.conditions.texts == TEXTS
    noise, told = initial_noise(0, range(3), SHAPE), given.of_samples(range(3), "cpu")
    plain = load_denoiser(folder / "teacher")
    assert isinstance(plain.conditions, Prompts)
    plain.conditions = plain.conditions.with_empty(given.empty)
    with torch.inference_mode():
        expected = ddim_sample(guided(plain, Guidance(3.0)), noise, 2, told)
        for each in (teacher, with_captions):
            assert torch.equal(ddim_sample(each, noise, 2, told), expected)


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    raw = yaml.safe_load((CONFIG / "digits-text.yaml").read_text())
    raw["teacher"]["text"]["encoder"] = str(write_encoder(tmp_path_factory.mktemp("encoder")))
    raw["results"] = str(tmp_path_factory.mktemp("results"))
    return raw


def test_prompts_are_the_captions_unless_said_otherwise(raw):
    for block in (None, {}, {"train": {"kind": "captions"}, "evaluation": {"kind": "captions"}}):
        experiment = parse_experiment(raw | {"prompts": block})
        assert experiment.prompts.only_captions
        assert experiment.has_classifier


def test_no_classifier_judges_samples_of_other_texts(raw):
    assert not parse_experiment(raw | {"prompts": {"train": GRAMMAR, "share_held_out": 0.3}}).has_classifier
    assert parse_experiment(raw | {"prompts": {"train": GRAMMAR, "evaluation": {"kind": "captions"}}}).has_classifier


@pytest.mark.parametrize(
    ("block", "message"),
    {
        "unknown key": ({"negativ": "x"}, r"prompts\.negativ: unknown key; expected one of: train, evaluation"),
        "no block": ({"train": "captions"}, r"prompts\.train: found 'captions', expected a block of keys"),
        "no such file": ({"train": {"kind": "file", "path": "no.txt"}}, r"prompts\.train\.path: found 'no\.txt'"),
        "a slot": ({"train": GRAMMAR | {"templates": ["{c}"]}}, r"prompts\.train: templates\.0: found the slot \{c\}"),
        "share": ({"train": GRAMMAR, "share_held_out": 1}, r"prompts\.share_held_out: found 1, expected less than 1"),
        "nothing held out": ({"train": GRAMMAR, "share_held_out": 1e-9}, r"prompts\.evaluation: no prompt is left"),
    }.values(),
)
def test_a_wrong_block_is_refused_before_anything_runs(raw, block, message):
    with pytest.raises(UserError, match=message):
        parse_experiment(raw | {"prompts": block})


def test_a_negative_prompt_without_guidance_is_refused(raw):
    changed = copy.deepcopy(raw) | {"prompts": {"negative": "blurred"}}
    parse_experiment(changed)
    changed["teacher"]["guidance_scale"] = 1.0
    del changed["ablation"]  # over other scales
    changed["evaluation"]["teacher"] = {"variant": "ddim", "nfe": 32}
    with pytest.raises(UserError, match=r"prompts\.negative: given, but nothing is guided"):
        parse_experiment(changed)


def test_prompts_of_a_teacher_that_is_told_no_text_are_refused():
    raw = yaml.safe_load((CONFIG / "digits.yaml").read_text())
    with pytest.raises(UserError, match=r"prompts: given, but the teacher is told no text; remove the block, or set"):
        parse_experiment(raw | {"prompts": {"train": GRAMMAR}})


def test_a_file_that_is_among_the_results_is_looked_at_no_more(raw, tmp_path):
    (tmp_path / "list.txt").write_text("one\n")
    changed = raw | {
        "results": str(tmp_path),
        "prompts": {"train": {"kind": "file", "path": str(tmp_path / "list.txt")}},
    }
    with pytest.raises(UserError, match=r"prompts\.train: one prompt is left"):
        parse_experiment(changed)
    (tmp_path / "digits-text" / "texts").mkdir(parents=True)
    (tmp_path / "digits-text" / "texts" / "provenance.json").write_text("{}")
    parse_experiment(changed)
    shutil.rmtree(tmp_path / "digits-text")
