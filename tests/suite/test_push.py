"""A student with its model card, in a folder and on a stand-in of the Hugging Face Hub."""

import inspect
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_pipelines
import torch
import yaml
from folders import NOISE, alone, as_earlier, entry_of
from hub import TOKEN, standing_in
from repository import ROOT
from tiny import TEACHER, tiny_conditional, tiny_denoiser, tiny_splits

from diffusion.data.kinds import parse_settings
from diffusion.data.store import write_dataset
from diffusion.distillation.registry import method_class
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file, write_json
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.teachers.pipeline import StudentPipeline
from evaluation.measure.quality import COLUMNS, definitions
from suite import cli
from suite.jobs.pushing import Push
from suite.provenance import RECORD, checked_folder, write_provenance

CPU = torch.device("cpu")
# variant: method, settings, teacher, guidance
VARIANTS = {
    "boot": ("boot", {"delta": 0.1}, tiny_denoiser(), 1.0),
    "guided": ("boot", {}, tiny_conditional(2), 2.0),
    "progressive": ("progressive_distillation", {"start_steps": 4}, tiny_denoiser(), 1.0),
    "consistency": ("consistency_distillation", {"num_inference_steps": [1, 3]}, tiny_denoiser(), 1.0),
}
# Of texts, by stock pipelines of `diffusers`: family, what the example calls, whether it needs code of the folder's.
OF_TEXTS = {
    "stable-diffusion": ('pipeline("a red fox in the snow", num_inference_steps=1, guidance_scale=1.0)', True),
    "stable-diffusion-3": ('pipeline("a red fox in the snow", num_inference_steps=1, guidance_scale=1.0)', False),
}


def method_of(variant):
    name, settings, _, _ = VARIANTS[variant]
    kind = method_class(name)
    return kind(kind.Settings.model_validate({"method": name, **settings}))


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """An experiment's folder, as far as a card is written from it."""
    root = tmp_path_factory.mktemp("results") / "mine"
    write_dataset(root / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    save_denoiser(root / "teacher", tiny_denoiser())
    write_provenance(root / "teacher" / RECORD, {}, None, settings=TEACHER)
    for variant, (_, _, teacher, scale) in VARIANTS.items():
        method, folder = method_of(variant), root / "students" / variant / "train-0"
        students = []
        for nfe in method.students():
            method.save(folder / f"nfe-{nfe}", teacher.network, teacher)
            cost = {"network_evaluations": 66_000.0, "real_images_seen": 12_800 * method.needs_data}
            students.append({"nfe": nfe, **cost, "wall_clock_s": 150.0, "parameters": 12_345})
        write_json(folder / "cost.json", {"students": students})
        settings = method.settings.model_dump(mode="json")
        write_provenance(folder / RECORD, {}, {"settings": {}}, settings=settings, guidance_scale=scale, seed=0)
    protocol = ["main", "efficientnet-lite0-64", "train", "torch-fidelity 0.4.0"]
    rows = [
        ["mine", "boot", "boot", 1, 0, seed, name, value + seed, count, *protocol]
        for name, value, count in (("frechet_distance", 190.0, 48), ("frechet_distance", 350.0, 16), ("kid", 0.9, 48))
        for seed in (0, 1)
    ]
    (root / "measures" / "boot").mkdir(parents=True)
    table = root / "measures" / "boot" / "train-0.csv"
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(table, index=False)
    said = definitions("efficientnet-lite0-64")
    write_provenance(table.with_suffix(".json"), {}, None, [table], definitions=said)
    return root


def push(root, variant="boot", nfe=1, *further, seed=0):
    told = ["push", "--experiment-folder", root, "--variant", variant, "--train-seed", seed, "--nfe", nfe, *further]
    cli.parse([str(one) for one in told]).run()


def files_in(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def card_of(folder):
    """Front matter and text."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_height_and_width(delivered, tmp_path):
    root = tmp_path / "wide"
    shutil.copytree(delivered, root)
    write_dataset(root / "data", tiny_splits(resolution=(8, 16)), parse_settings({"kind": "digits"}))
    push(root, "boot", 1, "--output", tmp_path / "out")
    assert "12 training images of 8×16 pixels, 1 channel, 2 classes" in card_of(tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("variant", "nfe", "call"),
    [
        ("boot", 1, "pipeline(batch_size=16)"),
        ("guided", 1, "pipeline(class_labels=[0, 1])"),
        ("progressive", 2, "pipeline(batch_size=16, num_inference_steps=2, use_clipped_model_output=True)"),
        ("consistency", 3, "pipeline(batch_size=16, num_inference_steps=3)"),
    ],
)
def test_the_card_of_every_kind_of_student(delivered, tmp_path, variant, nfe, call, monkeypatch):
    output = tmp_path / "out"
    push(delivered, variant, nfe, "--output", output)
    front, text = card_of(output)
    assert front["library_name"] == "diffusers"
    assert (front["license"], front["license_name"]) == ("other", "unknown")
    assert {"diffusion", "distillation", method_of(variant).name.replace("_", "-")} <= set(front["tags"])
    assert call in text
    assert ("trust_remote_code=True" in text) == (variant != "progressive")
    assert "66,000 network evaluations" in text
    assert "12,345 parameters" in text
    assert "12 training images of 8×8 pixels, 1 channel, 2 classes (made for a test)" in text
    assert ("read none of it" in text) == (variant in ("boot", "guided"))
    assert ("under guidance 2, which it has learnt: 0 even, 1 odd" in text) == (variant == "guided")
    assert "CC BY 4.0" in text
    assert "https://arxiv.org/abs/" in text
    source = delivered / "students" / variant / "train-0" / f"nfe-{method_of(variant).student_for(nfe)}"
    exported = {str(file.relative_to(output)): sha256_file(file) for file in output.rglob("*") if file.is_file()}
    del exported["README.md"]
    assert exported == {
        str(file.relative_to(source)): sha256_file(file) for file in source.rglob("*") if file.is_file()
    }
    assert sha256_file(output / "unet/diffusion_pytorch_model.safetensors") in text
    listed = json.loads((source.parent / RECORD).read_text())["files"]
    assert {f"{source.name}/{name}" for name in exported} <= listed.keys()
    # The example is what it says.
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(output.parent)
    space = {}
    exec(code, space)
    assert len(space["images"]) == (2 if variant == "guided" else 16)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_the_card_of_a_student_of_texts(delivered, tmp_path, name, monkeypatch):
    call, own_code = OF_TEXTS[name]
    root = tmp_path / "mine"
    shutil.copytree(delivered, root)
    teacher = load_denoiser(tiny_pipelines.write(tmp_path / "teacher", name))
    method, folder = method_of("guided"), root / "students" / "texts" / "train-0"
    method.save(folder / "nfe-1", teacher.network, teacher)
    shutil.copy(root / "students" / "guided" / "train-0" / "cost.json", folder)
    settings = method.settings.model_dump(mode="json")
    write_provenance(folder / RECORD, {}, {"settings": {}}, settings=settings, guidance_scale=7.5, seed=0)
    push(root, "texts", 1, "--output", tmp_path / "out")
    front, text = card_of(tmp_path / "out")
    assert (front["tags"][0], front["pipeline_tag"]) == ("text-to-image", "text-to-image")
    assert "It is conditional on a text, under guidance 7.5, which it has learnt." in text
    assert call in text
    assert ("trust_remote_code=True" in text) == own_code
    assert not (tmp_path / "out" / "pipeline.py").exists()
    space = {}
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], space)
    assert len(space["images"]) == 1


def test_the_card_has_the_measures_with_their_protocol(delivered, tmp_path):
    push(delivered, "boot", 1, "--output", tmp_path / "out", "--license", "mit")
    front, text = card_of(tmp_path / "out")
    assert front["license"] == "mit"
    assert "license_name" not in front
    for value in ("190.5 ± 0.7 | 48", "350.5 ± 0.7 | 16"):
        assert f"| frechet_distance | {value} | main | efficientnet-lite0-64 | train | torch-fidelity 0.4.0 |" in text
    assert "over 2 sampling seeds" in text
    assert f"- `kid`: {definitions('efficientnet-lite0-64')['kid']}" in text
    push(delivered, "guided", 1, "--output", tmp_path / "other")
    assert "Not measured." in card_of(tmp_path / "other")[1]


@pytest.mark.parametrize(
    ("stored", "expected", "base"),
    [
        ("google/ddpm-cifar10-32", "Teacher: `google/ddpm-cifar10-32`, revision abc.", "google/ddpm-cifar10-32"),
        ("/home/me/secret/edm-cifar10", "Teacher: `edm-cifar10`, revision abc.", None),
        ("checkpoints/edm-cifar10/", "Teacher: `edm-cifar10`, revision abc.", None),
    ],
)
def test_the_card_names_a_stored_teacher_and_not_where_it_lies(delivered, tmp_path, stored, expected, base):
    root = tmp_path / "mine"
    shutil.copytree(delivered, root)
    write_provenance(root / "teacher" / RECORD, {}, None, stored=stored, revision="abc")
    push(root, "boot", 1, "--output", tmp_path / "out")
    front, text = card_of(tmp_path / "out")
    assert expected in text
    assert "secret" not in text
    assert front.get("base_model") == base
    assert "Teacher: unknown to the suite" in text


def test_a_dry_run_shows_files_and_card_and_writes_nothing(delivered, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    push(delivered, "boot", 1, "--repo", "user/digits", "--dry-run")
    out = capsys.readouterr().out
    assert "unet/diffusion_pytorch_model.safetensors: " in out
    assert 'from_pretrained("user/digits", trust_remote_code=True)' in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"variant": "bot"}, r"students.bot.train-0 not found; there are: boot/train-0, consistency/train-0, guided"),
        ({"seed": 1}, r"train-1 not found; there are: boot/train-0"),
        ({"nfe": 2}, r"--nfe: found 2, expected one of 1\."),
        ({"root": "nowhere"}, "--experiment-folder: nowhere holds no students"),
        ({"further": ()}, "--repo: missing; expected a name on the Hub"),
        ({"further": ("--repo", "digits")}, "--repo: found 'digits', expected user/name"),
        ({"further": ("--output", ".")}, "--output: . exists"),
    ],
)
def test_what_cannot_be_pushed_is_said(delivered, tmp_path, changes, expected):
    given = {"root": delivered, "variant": "boot", "nfe": 1, "further": ("--output", tmp_path / "out"), "seed": 0}
    given |= changes
    with pytest.raises(UserError, match=expected):
        push(given["root"], given["variant"], given["nfe"], *given["further"], seed=given["seed"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["students/boot/train-0/nfe-1/model_index.json", "students/boot/train-0/nfe-1/pipeline.py",
             "students/boot/train-0/cost.json", "measures/boot/train-0.csv", "teacher/provenance.json"],
)  # fmt: skip
def test_a_changed_file_is_not_pushed(delivered, tmp_path, name):
    root = tmp_path / "mine"
    shutil.copytree(delivered, root)
    (root / name).write_text((root / name).read_text().replace("0", "1", 1))
    with pytest.raises(UserError, match=r"changed after it was|is not the record of a result"):
        push(root, "boot", 1, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_student_of_an_earlier_version_gets_the_code_it_needs(delivered, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(delivered, root)
    folder = root / "students" / "guided" / "train-0"
    as_earlier(folder / "nfe-1", "boot-classes")
    record = json.loads((folder / RECORD).read_text())
    told = {name: record[name] for name in ("settings", "guidance_scale", "seed")}
    write_provenance(folder / RECORD, {}, {"settings": {}}, **told)
    push(root, "guided", 1, "--output", tmp_path / "out")
    now = delivered / "students" / "guided" / "train-0" / "nfe-1"
    for file in (file for file in now.rglob("*") if file.is_file()):
        ours = tmp_path / "out" / file.relative_to(now)
        if file.name == "model_index.json":
            one, other = (json.loads(path.read_text()) for path in (ours, file))
            unset = {None, 1.0, False}  # what the class takes where a key is missing
            assert one == {k: v for k, v in other.items() if isinstance(v, dict | list) or v not in unset or k in one}
        else:
            assert ours.read_bytes() == file.read_bytes()


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with standing_in() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_what_is_pushed_loads_by_name_where_the_suite_is_not(delivered, tmp_path, hub, capsys):
    for variant, nfe in (("boot", 1), ("progressive", 2)):
        push(delivered, variant, nfe, "--repo", f"user/{variant}", "--output", tmp_path / variant, "--private")
        files = {
            str(file.relative_to(tmp_path / variant)): file.read_bytes()
            for file in (tmp_path / variant).rglob("*")
            if file.is_file()
        }
        assert hub.repos[f"user/{variant}"] == files
        assert f"{hub.address}/user/{variant}/commit/" in capsys.readouterr().out
    np.save(tmp_path / "latents.npy", NOISE.numpy())
    stock = {"num_inference_steps": 2, "use_clipped_model_output": True}
    entries = [
        entry_of(tmp_path, "user/boot", "boot"),
        entry_of(tmp_path, "user/progressive", "progressive", False, **stock),
        entry_of(tmp_path, "user/boot", "refused", False),
    ]
    said, _ = alone(tmp_path, entries, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    assert said.keys() == {"user/boot"}
    for variant, nfe in (("boot", 1), ("progressive", 2)):
        sampler, _ = method_of(variant).sampler(tmp_path / variant, nfe, CPU)
        with torch.inference_mode():
            expected = sampler(NOISE, None)
        found = np.load(tmp_path / f"{variant}.npy")
        if variant == "boot":
            np.testing.assert_array_equal(found, expected.numpy())
        else:
            expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)


def test_a_repository_that_exists_is_updated_only_where_that_is_asked_for(delivered, hub):
    push(delivered, "boot", 1, "--repo", "user/digits", "--private")
    assert hub.settings["user/digits"].get("private") or hub.settings["user/digits"].get("visibility") == "private"
    before = dict(hub.repos["user/digits"])
    with pytest.raises(UserError, match=r"user/digits exists at http.*expected a new name, or --update"):
        push(delivered, "consistency", 3, "--repo", "user/digits")
    assert hub.repos["user/digits"] == before
    push(delivered, "consistency", 3, "--repo", "user/digits", "--update")
    assert hub.repos["user/digits"]["README.md"] != before["README.md"]


def test_what_the_hub_does_not_take_is_one_sentence(delivered, tmp_path, hub, monkeypatch):
    given = ("boot", 1, "--repo", "user/digits", "--output", tmp_path / "out")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match=r"does not let this token write user/digits \(401\)"):
        push(delivered, *given)
    assert (tmp_path / "out" / "README.md").exists()
    shutil.rmtree(tmp_path / "out")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token of the Hub was found; log in"):
        push(delivered, *given)
    assert hub.repos == {}


def test_a_network_that_is_down_is_one_sentence(delivered, hub, monkeypatch):
    hub.server_close()
    hub.shutdown()
    with pytest.raises(UserError, match=r"cannot be reached .*Check the network; with --output the folder is kept"):
        push(delivered, "boot", 1, "--repo", "user/digits")


def test_offline_is_one_sentence(delivered, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=r"cannot be reached \(OfflineModeIsEnabled"):
        push(delivered, "boot", 1, "--repo", "user/digits")


def test_records_list_the_code_that_travels(delivered):
    found = checked_folder("student", delivered / "students" / "boot" / "train-0", "nfe-1")
    assert "student, nfe-1/pipeline.py" in found


def test_the_documentation_names_every_option_and_argument():
    text = (ROOT / "docs" / "students.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(--[a-z-]+|\w+)[ A-Z]*`", text)) | set(re.findall(r"(--[a-z-]+) ", text))
    called = set(inspect.signature(StudentPipeline.__call__).parameters) - {"self"}
    assert called - told == set()
    options = {option for action in cli.parser_of("push", Push)._actions for option in action.option_strings}
    assert options - told - {"-h", "--help"} == set()
