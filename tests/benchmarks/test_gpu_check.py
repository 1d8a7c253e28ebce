"""`make gpu-check` from beginning to end, at toy size with the processor in place of the GPU."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from repository import ROOT, warm

# On a busy machine a minute holds fewer steps than that.
SMALL = "minutes: 1, steps: 30, batch_size: 8, warmup_steps: 1, ema_decay: 0.5"
TOY = (
    "teacher={network: {block_out_channels: [8, 8, 8], norm_num_groups: 4, attention_head_dim: 4}, "
    f"training: {{{SMALL}}}}}",
    "select=[ddim, boot]",
    f"methods={{ddim: {{num_inference_steps: [1, 2]}}, boot: {{training: {{{SMALL}}}}}}}",
    "evaluation={num_samples: 16, batch_size: 16, trajectory_noises: 8, features: efficientnet-lite0-32, "
    "teacher: {nfe: 2}}",
    "speed={batch_sizes: [1], seconds: 1}",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A zip of images in the layout of the JPEG copy of CIFAR-10."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    with zipfile.ZipFile(folder / "cifar10.zip", "w") as archive:
        for part, count in (("train", 40), ("test", 12)):
            for index in range(count):
                image = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                with archive.open(f"{part}/{('cat', 'ship')[index % 2]}/{index:04d}.png", "w") as file:
                    image.save(file, "PNG")
    return folder / "cifar10.zip"


def gpu_check(folder, *words, **variables):
    """Runs it; words are for Snakemake's --config."""
    environment = os.environ | {"BOOT_DEVICE": "cpu", "BOOT_TEST_DEVICE": "cpu", "FOLDER": str(folder)}
    variables |= {"PYTHON": sys.executable, "ARGS": " ".join(f"'{word}'" for word in words)}
    command = ["make", "gpu-check", *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_all_parts_run_and_leave_one_folder(images, tmp_path, monkeypatch):
    for part in ("TEST", "SUITE", "TRAINING"):  # ends nothing: other tests may run beside this
        monkeypatch.setenv(f"{part}_SECONDS", "900")
    monkeypatch.setenv("TEST_OPTIONS", "-k fp32")
    monkeypatch.setenv("TRAINING_OPTIONS", "--configfile tests/tiny.yaml --batch-size 4 --rounds 3 --modes")
    for name, value in warm().items():
        monkeypatch.setenv(name, value)
    done = gpu_check(tmp_path / "check", *TOY, DATA=images)
    folder = tmp_path / "check"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU" in (folder / "device.txt").read_text()
    summary = (folder / "summary.txt").read_text()
    for part in ("tests", "suite", "training"):
        assert f"{part}: done after" in summary
    assert " passed" in summary
    assert "<h1" in (folder / "report" / "index.html").read_text()
    rows = json.loads((folder / "training.json").read_text())["rows"]
    assert any("pictures_per_second" in row for row in rows)
    # What a time budget came to stands beside the result, and in the report's table.
    root = folder / "results" / "cifar10-minutes"
    steps = json.loads((root / "students/boot/train-0/provenance.json").read_text())["steps"]
    cost = (folder / "report" / "cost.csv").read_text().splitlines()
    column = cost[0].split(",").index("steps")
    assert {line.split(",")[2]: int(line.split(",")[column]) for line in cost[1:]}["boot"] == sum(steps.values()) > 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_part_that_runs_out_of_time_is_ended_and_what_it_lacks_is_listed(images, tmp_path, monkeypatch):
    monkeypatch.setenv("PARTS", "suite")
    monkeypatch.setenv("SUITE_SECONDS", "15")
    done = gpu_check(tmp_path / "check", *TOY, "speed={batch_sizes: [1], seconds: 600}", DATA=images)
    assert done.returncode != 0
    summary = (tmp_path / "check" / "summary.txt").read_text()
    assert "suite: ended at its limit of 15 s" in summary
    assert "not made: report" in summary
    # No job has outlived it.
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "check")], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "summary.txt").write_text("an earlier one")
    assert gpu_check(tmp_path / "check").returncode != 0
    assert (tmp_path / "check" / "summary.txt").read_text() == "an earlier one"


def test_an_unknown_part_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PARTS", "sweet")
    done = gpu_check(tmp_path / "check")
    assert "PARTS: found sweet, expected tests, suite or training" in done.stderr
    assert done.returncode != 0
