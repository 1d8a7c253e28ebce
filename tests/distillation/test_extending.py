"""The README's examples of new methods: written where it says, found, and held to the contract."""

import re
import shutil
import subprocess
import sys

import yaml
from repository import ROOT

README = (ROOT / "README.md").read_text()


def block(language, holding):
    """The one fenced block of the README with that text in it."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if holding in text]
    assert len(found) == 1, holding
    return found[0]


def run(folder, *command):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_examples_in_the_readme_are_methods_that_keep_the_contract(tmp_path):
    example = block("python", "class OnlineDistillation(OneStep)")
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    for package in ("boot", "baselines", "diffusion", "evaluation", "suite", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "baselines" / "online_distillation.py").write_text(example)
    (tmp_path / "baselines" / "mine.py").write_text(block("python", "class MyBoot(Boot)"))
    contract = ("-m", "pytest", "-rA", "-p", "no:cacheprovider", "tests/distillation/test_methods.py")
    out = run(tmp_path, *contract, "-k", "online_dist or my_boot")
    for name in ("online_distillation", "my_boot"):
        assert len(re.findall(rf"(?m)^PASSED .*\[{name}\]$", out)) >= 8
    raw = yaml.safe_load((ROOT / "config" / "digits.yaml").read_text())
    raw["methods"] = {"ddim": raw["methods"]["ddim"]} | yaml.safe_load(block("yaml", "online_distillation"))["methods"]
    raw.pop("select")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    script = (
        "import yaml; from suite.configuration.experiment import parse_experiment; "
        "print(parse_experiment(yaml.safe_load(open('mine.yaml'))).methods['online'].settings.num_inference_steps)"
    )
    assert run(tmp_path, "-c", script).split()[-1] == "8"
