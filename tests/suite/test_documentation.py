"""What the documentation says in YAML is what the suite takes."""

import re
from typing import get_args

import pytest
import yaml
from repository import ROOT

from diffusion.data.kinds import parse_settings
from diffusion.distillation.registry import method_class, method_modules
from diffusion.teachers.lora import LoraSettings
from diffusion.teachers.prompt_sources import PromptSettings, PromptSource, prompt_lists
from diffusion.teachers.settings import TeacherSettings
from evaluation.measure.protocols import PRESETS, Protocol
from evaluation.measure.quality import definitions
from evaluation.measure.text_scores import TextScoreName
from suite.configuration.blocks import EvaluationSettings
from suite.configuration.experiment import parse_experiment
from suite.plan import Plan

DOCUMENT = (ROOT / "docs" / "methods.md").read_text()
TEACHERS = (ROOT / "docs" / "teachers.md").read_text()
TEXTS = (ROOT / "docs" / "text-to-image.md").read_text()
MEASURES = (ROOT / "docs" / "measures.md").read_text()
# What its blocks have under ``evaluation``.
MEASURED = [yaml.safe_load(text)["evaluation"] for text in re.findall(r"```yaml\n(.*?)```", MEASURES, re.S)]


def published():
    """The blocks by name."""
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S)]
    return {name: block for blocks_of in blocks for name, block in blocks_of.items() if "method" in block}


def test_every_published_block_is_a_methods_settings():
    found = published()
    assert {block["method"] for block in found.values()} == set(method_modules())
    for block in found.values():
        settings = method_class(block["method"]).Settings.model_validate(block)
        assert settings.model_dump(mode="json", include=block.keys()).keys() == block.keys()


def test_the_edm_teacher_of_the_documentation_is_trained_on_edms_noise_levels():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEACHERS, re.S)]
    (block,) = (found["teacher"] for found in blocks if "training" in found["teacher"])
    assert TeacherSettings.model_validate(block).noise_levels == "lognormal"


def test_the_prompts_of_the_documentation_are_prompts_and_all_keys_have_a_row():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXTS, re.S)]
    (block,) = (found for found in blocks if "prompts" in found)
    found = prompt_lists(PromptSettings.model_validate(block["prompts"]))
    assert len(found.train) + len(found.evaluation) == 40
    rows = set(re.findall(r"^\| `prompts\.(\w+)` \|", TEXTS, re.M))
    assert rows == set(PromptSettings.model_fields)
    sources = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)*) ?\|", TEXTS, re.M))
    assert set(sources) == set(get_args(PromptSource.model_fields["kind"].annotation))
    assert set(re.findall(r"`(\w+)`", " ".join(sources.values()))) == set(PromptSource.model_fields) - {"kind"}


def test_the_images_with_captions_of_the_documentation_are_for_the_published_consistency_model():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXTS, re.S)]
    (block,) = (found for found in blocks if "data" in found)
    assert parse_settings(block["data"]).captions == "metadata.jsonl"
    assert block["methods"] == {name: found for name, found in published().items() if name in block["methods"]}


@pytest.mark.parametrize("name", ["cifar10", "ffhq64", "imagenet64", "bedroom256"])
def test_experiments_train_as_published(name):
    """Whatever a block leaves to its method's defaults, which are those of digits. Micro-batches are the hardware's."""
    raw = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    experiment = parse_experiment(raw | {"select": list(raw["methods"])}, look_at_files=False)
    compared = set()
    for variant, method in experiment.methods.items():
        if method.trains and (block := published().get(f"{variant}-{name}")) is not None:
            expected = type(method).Settings.model_validate(block)
            one = {"gradient_accumulation_steps": 1}
            assert method.settings.training.model_copy(update=one) == expected.training, variant
            if variant == "sid":
                assert method.settings.model_copy(update={"training": expected.training}) == expected
            compared.add(variant)
    assert "consistency" in compared or "sid" in compared


def test_eight_processes_share_the_largest_published_batch():
    raw = yaml.safe_load((ROOT / "config" / "imagenet64.yaml").read_text())
    plan = Plan(parse_experiment(raw | {"select": list(raw["methods"])}, look_at_files=False))
    assert {plan.processes(variant, 8) for variant in plan.trained_variants() if variant != "tract"} == {8}


def test_every_method_stands_in_the_table():
    rows = re.findall(r"^\| .* \| `(\w+)` \|", DOCUMENT, re.M)
    assert sorted(rows) == sorted(method_modules())


def test_every_measure_stands_in_the_table_with_tests_that_exist():
    rows = [line.split("|")[1:-1] for line in MEASURES.splitlines() if re.match(r"\| [^|]+ \| `", line)]
    names = {name for row in rows[: len(rows)] for name in re.findall(r"`(\w+)`", row[1])}
    assert names >= set(definitions("efficientnet-lite0-64")) | set(definitions("inception"))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row[-1])}
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_the_protocols_of_the_documentation_are_protocols():
    blocks = [block for block in MEASURED if "protocols" in block]
    assert len(blocks) == 2
    for protocol in [protocol for block in blocks for protocol in block["protocols"].values()]:
        Protocol.model_validate(protocol)


def test_the_text_scores_of_the_documentation_are_settings():
    (scores,) = (block["text_scores"] for block in MEASURED if "text_scores" in block)
    scores["pick_score"]["revision"] = "0" * 40
    assert set(EvaluationSettings(text_scores=scores).text_scores) == set(get_args(TextScoreName))


def test_every_preset_stands_in_the_documentation():
    assert set(re.findall(r"^\| `(coco[\w-]+)` \|", MEASURES, re.M)) == set(PRESETS)


def test_the_large_block_of_the_documentation_is_boots_and_adapters_have_a_row_a_key():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXTS, re.S)]
    (block,) = (found["methods"]["boot"] for found in blocks if "boot" in found.get("methods", ()))
    assert method_class("boot").Settings.model_validate(block).lora == LoraSettings(rank=64, targets="all")
    assert set(re.findall(r"^\| `lora\.(\w+)` \|", TEXTS, re.M)) == set(LoraSettings.model_fields)
