"""Profiles and the rules they speak of agree; jobs side by side on one machine have a card each."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from repository import ROOT

PROFILES = ROOT / "workflow" / "profiles"
OTHERS = ("workstation", "slurm", "kubernetes")
# What decides about cards elsewhere: the classifier's few passes need none, and the estimate runs where Snakemake does.
WITHOUT_OWN_CARD = {"measure", "measure_external", "measure_floor", "estimate"}


def profile(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def rules():
    """Name to text of every rule; a rule that uses another one has that one's text too."""
    found = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        parts = re.split(r"(?m)^ *(?:use rule (\w+) as (\w+) with|rule (\w+)):\n", file.read_text())
        for base, derived, plain, text in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4], strict=True):
            name = plain or derived
            found[name] = found.get(name, "") + text + (found[base] if base else "")
    return {name: text for name, text in found.items() if "shell:" in text}


def test_every_rule_says_what_it_asks_of_a_cluster():
    assert len(rules()) > 20
    for name, text in rules().items():
        assert re.search(r"\*\*(asks|shared)\(\s*[\d_]+,\s*([\d *]+|RESUMED)[,)]", text), name
    resumed = {name for name, text in rules().items() if re.search(r"\*\*(asks|shared)\(\s*[\d_]+,\s*RESUMED", text)}
    with_state = {name for name, text in rules().items() if "state=STATE" in text}
    assert resumed == with_state


def test_every_job_is_started_by_the_launcher():
    """Which says why it was killed, ends it with its workflow, and sets how its threads wait."""
    for name, text in rules().items():
        command = text.split("shell:")[1]
        assert re.match(r'\s*(ALONE|TOGETHER|"python -m suite.launch 1 suite {params.job:q})', command), name
    common = (ROOT / "workflow" / "rules" / "common.smk").read_text()
    assert re.findall(r"^(\w+) = .python -m suite.launch ", common, re.M) == ["ALONE", "TOGETHER"]


@pytest.mark.parametrize("name", OTHERS)
def test_profiles_keep_what_the_default_one_says(name):
    default, own = profile("default"), profile(name)
    for of_one_machine in ("resources", "cores"):
        default.pop(of_one_machine)
    assert {key: own.get(key) for key in default} == default
    assert "keep-incomplete" not in own


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_cluster_gives_cards_to_the_rules_that_use_them(name):
    claiming = {
        rule for rule, text in rules().items() if re.search(r"\bgpu=(lambda wildcards: )?GPU|\*\*shared\(", text)
    }
    assert claiming > WITHOUT_OWN_CARD
    given = {rule for rule, resources in profile(name)["set-resources"].items() if resources.get("gpu")}
    assert given == claiming - WITHOUT_OWN_CARD


@pytest.mark.slow
def test_jobs_of_a_workstation_run_side_by_side_on_cards_of_their_own(tmp_path):
    """Four jobs on two pretended cards: two at a time, never two on one."""
    (tmp_path / "job.py").write_text(
        "import pathlib, sys, time, types, torch\n"
        "torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2\n"
        "torch.cuda.get_device_properties = lambda card: types.SimpleNamespace(uuid=f'card-{card}')\n"
        "from diffusion.runtime.gpus import claim_cards\n"
        "(card,) = claim_cards(1)\n"
        "began = time.time()\n"
        "time.sleep(3)\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{card} {began} {time.time()}')\n"
    )
    (tmp_path / "Snakefile").write_text(
        "rule all:\n"
        "    input: expand('{name}.txt', name=list('abcd'))\n"
        "rule one:\n"
        "    output: '{name}.txt'\n"
        "    resources: gpu=1, mem_mb=lambda wildcards, attempt: 10 ** 9 * attempt\n"
        f"    shell: '{sys.executable} job.py {{output}}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", str(PROFILES / "workstation")]
    environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
    done = subprocess.run(
        [*command, "--cores", "4"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    jobs = [(tmp_path / f"{name}.txt").read_text().split() for name in "abcd"]
    times = {card: sorted((float(a), float(b)) for c, a, b in jobs if c == card) for card in ("0", "1")}
    assert [len(of_card) for of_card in times.values()] == [2, 2]
    for (_, end), (beginning, _) in times.values():
        assert end <= beginning
    first = [of_card[0] for of_card in times.values()]
    assert max(begin for begin, _ in first) < min(end for _, end in first), "they did not run side by side"
