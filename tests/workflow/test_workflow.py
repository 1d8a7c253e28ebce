"""The real Snakefile on a tiny experiment, from nothing to the report, and what users do to it afterwards."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from corruptions import CORRUPTIONS, consumers, corrupted, records, refusal, result_files
from PIL import Image
from repository import ROOT, TINY, snakemake, warm

from diffusion.runtime.files import sha256_file
from evaluation.columns import COST_COLUMNS, METRICS_COLUMNS, SPEED_COLUMNS

BOOT_RULES = {"boot-euler", "boot-heun"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which the tiny experiment has run, with two rows of the user's own samples."""
    folder = tmp_path_factory.mktemp("workflow")
    for seed, name in enumerate(("mine", "a", "b")):
        images = np.random.default_rng(seed).integers(0, 256, (48, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", arr_0=images)
    raw = yaml.safe_load(TINY.read_text())
    model = {"path": ["a.npz", "b.npz"], "nfe": 1, "title": "My model", "seeds": [0, 1]}
    raw["evaluation"]["external"] = {"mine": "mine.npz", "my-model": model}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    snakemake(folder, config=folder / "tiny.yaml")
    return folder


@pytest.fixture
def copy(finished, tmp_path_factory):
    """A copy to break things in, times kept."""
    folder = tmp_path_factory.mktemp("copy") / "."
    shutil.copytree(finished, folder, symlinks=True, dirs_exist_ok=True)
    return folder


@pytest.mark.slow
def test_the_report_is_there_and_a_second_run_has_nothing_to_do(finished):
    report = finished / "results" / "tiny" / "report"
    assert "<h1" in (report / "index.html").read_text()
    done = snakemake(finished, "--dry-run", config=finished / "tiny.yaml")
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("job", ["samples/ddim", "students/boot-heun"])
def test_what_is_imported_by_a_name_in_a_variable_is_a_source_too(finished, job):
    asked = json.loads((finished / "results" / "tiny" / "jobs" / job / "train-0.json").read_text())
    method = "boot/distillation.py" if "boot" in job else "baselines/samplers.py"
    assert asked["code"].keys() >= {method, "diffusion/teachers/families/unet2d.py"}


@pytest.mark.slow
def test_the_long_tables_have_the_promised_columns_and_rows(finished):
    report = finished / "results" / "tiny" / "report"
    metrics, speed, cost = (pd.read_csv(report / f"{name}.csv") for name in ("metrics", "speed", "cost"))
    assert tuple(metrics.columns) == tuple(METRICS_COLUMNS)
    assert tuple(speed.columns) == tuple(SPEED_COLUMNS)
    assert tuple(cost.columns) == tuple(COST_COLUMNS)
    rows = {
        (row.variant, row.nfe) for row in metrics[metrics.method != "real"].itertuples() if row.method != "external"
    }
    assert rows == {
        ("ddim", 1), ("ddim", 2), ("ddim", 4), ("boot-euler", 1), ("boot-heun", 1),
        ("progressive", 2), ("progressive", 1), ("knowledge", 1),
    }  # fmt: skip
    assert set(metrics.metric) == {
        "frechet_distance", "kid", "kid_subset_sd", "precision", "recall", "density", "coverage", "classifier_score",
        "leak_share", "mse_to_teacher", "frechet_distance_to_teacher",
    }  # fmt: skip
    libraries = {library.split()[0] for library in metrics.library}
    assert libraries == {"torch-fidelity", "scikit-learn", "numpy"}
    assert set(metrics.protocol) == {"main"}
    assert np.isfinite(metrics.value).all()
    assert set(metrics[metrics.variant == "mine"].metric) >= {"frechet_distance", "kid"}
    assert "mse_to_teacher" not in set(metrics[metrics.variant == "mine"].metric)
    teacher = metrics[(metrics.variant == "ddim") & (metrics.nfe == 4) & (metrics.metric == "mse_to_teacher")]
    assert (teacher.value == 0).all()
    assert len(teacher) == 2
    floor = metrics[(metrics.method == "real") & (metrics.metric == "frechet_distance")]
    assert floor.num_samples.tolist() == [48]  # the test part is larger than the number of samples
    assert set(speed.batch_size) == {1, 8}


@pytest.mark.slow
def test_samples_of_ones_own_stand_in_the_tables_and_among_the_neighbours(finished):
    root = finished / "results" / "tiny"
    table = pd.read_csv(root / "report" / "tables" / "main.csv").set_index("method")
    assert table.loc[["mine", "My model"], "frechet_distance_n"].tolist() == [1, 2]
    assert table.loc["My model", "nfe"] == 1
    assert table.loc["My model", ["images_per_second", "network_evaluations", "data_free"]].isna().all()
    protocols = pd.read_csv(root / "report" / "tables" / "protocols.csv").set_index("protocol")
    assert protocols["external:my-model"].notna().tolist() == [True, True, False, True]
    assert protocols["external:my-model"].round(3).nunique() == 3
    assert not any("my-model" in column for column in pd.read_csv(root / "report" / "speed.csv").variant)
    labels = [row["label"] for row in json.loads((root / "neighbours" / "neighbours.json").read_text())["rows"]]
    assert labels[-2:] == ["mine", "My model, NFE 1"]


@pytest.mark.slow
def test_samples_of_ones_own_may_be_called_as_a_folder_of_the_suites(finished):
    raw = yaml.safe_load((finished / "tiny.yaml").read_text())
    raw["evaluation"]["external"]["train-0"] = "mine.npz"
    assert {"features_external", "measure_external", "neighbours", "protocol", "report"} <= planned(finished, raw)


@pytest.mark.slow
def test_one_set_of_samples_is_measured_under_every_protocol(finished):
    root = finished / "results" / "tiny"
    table = pd.read_csv(root / "report" / "tables" / "protocols.csv").set_index("protocol")
    assert table.index.tolist() == ["main", "clean", "truncated", "few"]
    assert table.num_samples.tolist() == [48, 48, 48, 32]
    assert table.reference.tolist() == ["train (1,437)"] * 3 + ["test (360)"]
    metrics = pd.read_csv(root / "report" / "metrics.csv")
    same = metrics[(metrics.seed == 0) & (metrics.num_samples == 48)]
    for variant, nfe in (("ddim", 4), ("boot-heun", 1)):
        of_variant = same[(same.variant == variant) & (same.nfe == nfe)].set_index("metric").value
        assert table.loc["main", f"{variant}_{nfe}"] == pytest.approx(of_variant["frechet_distance"], rel=1e-6)
        assert table.loc["main", f"{variant}_{nfe}_kid"] == pytest.approx(of_variant["kid"], rel=1e-4)
    assert table["boot-heun_1"].nunique() == 4
    floor = metrics[(metrics.method == "real") & (metrics.metric == "frechet_distance")].value.item()
    assert table.loc["main", "floor"] == pytest.approx(floor, rel=1e-6)
    # A sample's picture under the truncating quantiser is the same or one grey level darker.
    own, darker = (
        np.load(root / folder / "boot-heun/train-0/nfe-1/seed-0.npz")["arr_0"].astype(int)
        for folder in ("samples", "quantised/truncate")
    )
    assert set(np.unique(own - darker)) == {0, 1}
    # Pictures are seen once for all protocols that see them alike: the features of 'few' are those of 'main'.
    main, clean = "torch-fidelity-efficientnet-lite0-64", "clean-fid-clean-efficientnet-lite0-64"
    assert {path.name for path in (root / "references").iterdir()} == {main, clean}
    assert {str(path.relative_to(root / "further_features")) for path in (root / "further_features").glob("*/*")} == {
        f"{main}/truncate", f"{clean}/round"
    }  # fmt: skip


@pytest.mark.slow
def test_the_costs_are_those_of_the_settings(finished):
    cost = pd.read_csv(finished / "results" / "tiny" / "report" / "cost.csv").set_index("variant")
    # Per BOOT step at batch 16, a quarter of it at the boundary: student 16 + 20, teacher 20 (Euler) or 36 (Heun).
    assert cost.network_evaluations["boot-euler"] == 8 * (16 + 20 + 20)
    assert cost.network_evaluations["boot-heun"] == 8 * (16 + 20 + 36)
    assert cost.real_images_seen["boot-heun"] == cost.real_images_seen["boot-euler"] == 0
    # Progressive distillation: two evaluations of its teacher and one of the student a picture; the last two
    # halvings are twice as long, and the one-step student has paid for the two-step one.
    assert cost.network_evaluations["progressive@nfe-2"] == 3 * 16 * 4 * 2
    assert cost.network_evaluations["progressive@nfe-1"] == 2 * 3 * 16 * 4 * 2
    assert cost.real_images_seen["progressive@nfe-1"] == 2 * 16 * 4 * 2
    # Knowledge distillation pays for its set of 24 pairs, four steps of the teacher each.
    assert cost.network_evaluations["knowledge"] == 24 * 4 + 8 * 16
    assert cost.offline_bytes["knowledge"] == 24 * 8 * 8 * 2
    assert cost.offline_bytes.drop("knowledge").eq(0).all()
    assert cost.network_evaluations["teacher"] == cost.real_images_seen["teacher"] == 8 * 16


@pytest.mark.slow
def test_the_learning_curve_ends_in_the_measured_student(finished):
    report = finished / "results" / "tiny" / "report"
    curve, metrics = pd.read_csv(report / "learning_curves.csv"), pd.read_csv(report / "metrics.csv")
    assert set(curve.variant) == {"knowledge", "progressive"}
    # Before the first step: the set of pairs; the stage before, for a chain's curve is its last stage's.
    for variant, before, step_cost in (("knowledge", 24 * 4, 16), ("progressive", 8 * 3 * 16, 3 * 16)):
        of_variant = curve[(curve.variant == variant) & (curve.metric == "frechet_distance")].set_index("step")
        assert of_variant.index.tolist() == [2, 4, 8]
        assert of_variant.network_evaluations.tolist() == [before + step_cost * step for step in (2, 4, 8)]
        assert of_variant.wall_clock_s.is_monotonic_increasing
        same = metrics[(metrics.variant == variant) & (metrics.nfe == 1) & (metrics.metric == "frechet_distance")]
        end = same[(same.seed == 0) & (same.num_samples == 48)].value.item()
        assert of_variant.value[8] == pytest.approx(end, rel=1e-9)
        assert of_variant.value.nunique() == 3
        stored = finished / "results/tiny/students" / variant / "train-0/snapshots"
        assert {folder.name for folder in stored.iterdir()} == {"step-2", "step-4"}


@pytest.mark.slow
def test_samples_follow_the_convention_and_share_their_noise(finished):
    samples = finished / "results" / "tiny" / "samples"
    files = sorted(samples.rglob("nfe-*/seed-*.npz"))
    assert len(files) == 8 * 2
    for file in files:
        with np.load(file) as archive:
            assert archive.files == ["arr_0"]
            assert archive["arr_0"].dtype == np.uint8
            assert archive["arr_0"].shape == (48, 8, 8, 1)
    facts = json.loads((samples / "boot-heun" / "train-0" / "provenance.json").read_text())
    assert facts["seeds"] == [0, 1]
    weights = finished / "results/tiny/students/boot-heun/train-0/nfe-1/unet/diffusion_pytorch_model.safetensors"
    assert facts["inputs"]["diffusion_pytorch_model.safetensors, nfe 1"]["sha256"] == sha256_file(weights)


@pytest.mark.slow
def test_every_result_has_its_provenance(finished):
    root = finished / "results" / "tiny"
    for file in [
        *root.glob("*/provenance.json"), *root.glob("pairs/*/provenance.json"),
        *root.glob("students/*/*/provenance.json"), *root.glob("measures/**/*.json"),
        root / "speed" / "speed.json", *root.glob("protocols/*.json"), *root.glob("references/*/provenance.json"),
    ]:  # fmt: skip
        facts = json.loads(file.read_text())
        assert {"inputs", "versions", "hardware", "commit", "command"} <= facts.keys(), file
    trained = {"teacher": "teacher", "students/boot-heun/train-0": "boot"}
    for folder, stage in trained.items():
        assert set(json.loads((root / folder / "provenance.json").read_text())["arithmetic"]) == {stage}
    assert not (root / "state").exists() or not any((root / "state").iterdir())


@pytest.mark.slow
def test_teacher_and_students_load_in_diffusers(finished):
    from boot.pipeline import BootPipeline

    root = finished / "results" / "tiny"
    images = BootPipeline.from_pretrained(root / "students/boot-heun/train-0/nfe-1")(batch_size=16).images
    assert len(images) == 16

    from diffusers import DDIMPipeline

    for folder in (root / "teacher", root / "students/progressive/train-0/nfe-2"):
        pipeline = DDIMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2


@pytest.mark.slow
def test_a_student_leaves_with_the_measures_that_the_workflow_took(finished, tmp_path):
    told = "push --experiment-folder results/tiny --variant boot-heun --train-seed 0 --nfe 1 --output"
    command = [sys.executable, "-m", "suite.cli", *told.split(), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=finished, env=os.environ | warm(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    metrics = pd.read_csv(finished / "results" / "tiny" / "report" / "metrics.csv")
    measured = set(metrics[metrics.variant == "boot-heun"].metric)
    assert {"frechet_distance", "kid"} <= measured == set(re.findall(r"^\| (\w+) \| ", card, re.M)) - {"Measure"}
    assert '"solver": "heun"' in card


def edges(folder):
    """(from, to) pairs of the real graph, each node written as "rule variant"."""
    dot = snakemake(folder, "--forceall", "--dag", "dot").stdout
    labels = {}
    for number, label in re.findall(r'(\d+)\[label = "([^"]*)"', dot):
        rule, *wildcards = label.split("\\n")
        variants = [value.removeprefix("variant: ") for value in wildcards if value.startswith("variant: ")]
        labels[number] = " ".join([rule, *variants])
    pairs = [(labels[a], labels[b]) for a, b in re.findall(r"(\d+) -> (\d+)", dot)]
    assert pairs, dot
    return pairs


@pytest.mark.slow
def test_no_edge_leads_from_the_data_to_a_boot_student(tmp_path):
    pairs = edges(tmp_path)
    into = {variant: {a for a, b in pairs if b == f"distil {variant}"} for variant in BOOT_RULES}
    assert into == {variant: {"teacher"} for variant in BOOT_RULES}
    assert {a for a, b in pairs if b == "distil_with_data progressive"} == {"data", "teacher"}
    assert {a for a, b in pairs if b == "distil_with_pairs knowledge"} == {"pairs", "teacher"}
    assert {a for a, b in pairs if b == "pairs"} == {"teacher"}
    assert ("data", "teacher") in pairs


@pytest.mark.slow
def test_boot_is_distilled_with_the_data_folder_deleted(copy):
    root = copy / "results" / "tiny"
    before = sha256_file(root / "students/boot-heun/train-0/nfe-1/unet/diffusion_pytorch_model.safetensors")
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "students" / "boot-heun")
    done = snakemake(copy, "results/tiny/students/boot-heun/train-0", config=copy / "tiny.yaml")
    assert not (root / "data").exists()
    assert "rule teacher" not in done.stdout + done.stderr
    after = sha256_file(root / "students/boot-heun/train-0/nfe-1/unet/diffusion_pytorch_model.safetensors")
    assert before == after


@pytest.mark.slow
def test_what_was_made_is_read_again_wherever_it_was_moved_to(finished, tmp_path):
    """Without Snakemake's notes, under another name, with whatever times: nothing is made again, but for other
    settings everything that they decide."""
    shutil.copytree(finished / "results", tmp_path / "moved")
    for file in finished.glob("*.npz"):
        shutil.copy(file, tmp_path)
    random = np.random.default_rng(0)
    for file in sorted((tmp_path / "moved").rglob("*")):
        when = int(random.integers(10**9, 4 * 10**9))  # many a year ahead, some of them
        os.utime(file, (when, when))
    raw = yaml.safe_load((finished / "tiny.yaml").read_text()) | {"results": "moved"}
    assert planned(tmp_path, raw) == set()
    raw["teacher"]["training"]["steps"] = 9
    rules = planned(tmp_path, raw)
    assert {"teacher", "distil boot-heun", "pairs", "report"} <= rules
    assert not {"data", "reference", "measure_floor"} & rules


@pytest.mark.slow
def test_no_corruption_of_a_stored_file_goes_unnoticed(copy, monkeypatch):
    """Whatever happens to a file of a result, whoever reads it refuses it, by name."""
    monkeypatch.chdir(copy)
    monkeypatch.setenv("BOOT_DEVICE", "cpu")
    root = copy / "results" / "tiny"
    readers, files = consumers(root, copy), {file for file in result_files(root) if root / "report" not in file.parents}
    # The code that travels with a student is for those who take it elsewhere: `push` looks at it.
    unread = {str(file.relative_to(root)) for file in files - readers.keys() if file.name != "pipeline.py"}
    assert unread == set()
    tried = 0
    for number, file in enumerate(sorted(files & readers.keys())):
        for corruption in (CORRUPTIONS[number % len(CORRUPTIONS)], None):
            with corrupted(file, corruption):
                said = refusal(readers[file], monkeypatch)
            assert str(file.relative_to(copy)) in said, (file, corruption, readers[file], said)
            assert "Delete" in said, said
            assert "Snakemake again" in said, said
            tried += 1
    for record in records(root):
        reader = next((readers[file] for file in sorted(readers) if record.parent in file.parents), None)
        if reader is not None and record.name == "provenance.json":
            with corrupted(record, CORRUPTIONS[0]):
                assert refusal(reader, monkeypatch).startswith("error: "), record
            tried += 1
    assert tried > 200


@pytest.mark.slow
def test_every_stored_file_that_a_job_opens_is_checked(copy, monkeypatch):
    """By listening to what is opened: a file of a result that is not among the job's inputs would be read in faith."""
    monkeypatch.chdir(copy)
    monkeypatch.setenv("BOOT_DEVICE", "cpu")
    root, opened = copy / "results" / "tiny", set()
    listening = True

    def listen(event, arguments):
        if event == "open" and listening and isinstance(arguments[0], (str, os.PathLike)):
            opened.add(Path(os.path.abspath(arguments[0])))

    sys.addaudithook(listen)
    found = {}
    dear = {"teacher.Train", "distillation.Distil", "speed.Time", "references.Extract", "pairs.Make", "data.Prepare"}
    for record, content in sorted(records(root).items()):
        stage = content["job"]["settings"]["stage"]
        if stage in dear | found.keys():
            continue  # seconds each; they read through the same functions as the others
        opened.clear()
        assert refusal(content["command"], monkeypatch) == "", content["command"]
        inputs = {copy / one["path"] for one in content["inputs"].values()}
        own = record.parent if record.name == "provenance.json" else record.with_suffix("")
        found[stage] = {
            file
            for file in opened
            if root in file.parents
            and file not in inputs
            and not str(file).startswith(str(own))
            and not {"jobs", "state", "benchmarks"} & set(file.relative_to(root).parts)
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
            and "record_sha256" not in (file.read_text() if file.suffix == ".json" else "")
        }
    listening = False
    quick = {"sampling.Sample", "extraction.Extract", "measuring.Measure", "measuring.MeasureFloor"}
    assert quick | {"protocols.Measure", "neighbours.Find", "report.Write"} <= found.keys()
    assert {stage: files for stage, files in found.items() if files} == {}


@pytest.mark.slow
def test_what_a_message_advises_works(copy):
    """A byte of the teacher's features is another: a reader refuses them, and with the file gone they are made anew."""
    root = copy / "results" / "tiny"
    file = root / "features/ddim/train-0/nfe-4/seed-0.npy"
    before = file.read_bytes()
    file.write_bytes(CORRUPTIONS[0](before))
    (root / "measures/ddim/train-0.csv").unlink()
    done = snakemake(copy, "measures", config=copy / "tiny.yaml", check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "seed-0.npy: found SHA-256" in said
    shutil.rmtree(copy / re.search(r"Delete (\S+) and run Snakemake again", said)[1])
    snakemake(copy, "measures", config=copy / "tiny.yaml")
    assert file.read_bytes() == before
    file.unlink()  # a single one, as its owner may
    said = snakemake(copy, "measures", config=copy / "tiny.yaml").stderr
    assert "seed-0.npy is missing or of another size" in said
    assert file.read_bytes() == before


def planned(folder, raw):
    """The rules (with variant) that a changed configuration would run."""
    (folder / "changed.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    done = snakemake(folder, "--dry-run", config=folder / "changed.yaml")
    text = done.stdout + done.stderr
    rules = set()
    for block in re.split(r"\n\n|\n(?=\[)", text):
        rule = re.search(r"^(?:local)?rule (\w+):", block, re.M)
        variant = re.search(r"wildcards: variant=([^,\n]+)", block)
        if rule:
            rules.add(rule[1] + (f" {variant[1]}" if variant else ""))
    return rules


@pytest.mark.slow
def test_a_change_of_one_method_reruns_that_method_alone(finished):
    raw = yaml.safe_load((finished / "tiny.yaml").read_text())
    raw["methods"]["boot-euler"]["training"]["steps"] = 9
    assert planned(finished, raw) == {
        "distil boot-euler", "sample boot-euler", "features boot-euler", "measure boot-euler", "pictures boot-euler",
        "trajectory boot-euler", "protocol", "sample_quantised", "further_features",
        "neighbours", "speed", "report", "all",
    }  # fmt: skip


@pytest.mark.slow
def test_a_change_of_the_flips_retrains_but_prepares_and_measures_no_images_again(finished):
    raw = yaml.safe_load((finished / "tiny.yaml").read_text())
    raw["data"]["flip"] = False  # what it was
    assert planned(finished, raw) == {"report", "all"}
    raw["data"]["flip"] = True
    rules = planned(finished, raw)
    assert {"teacher", "distil_with_data progressive", "distil boot-heun", "report"} <= rules
    assert not {"data", "reference", "measure_floor"} & rules
    # With another teacher the methods that see no image would be left alone: nothing tells them of flips.
    jobs = finished / "results/tiny/jobs"
    flips = {str(file.relative_to(jobs)) for file in jobs.rglob("*.json") if '"flip": true' in file.read_text()}
    assert flips == {"teacher.json", "students/progressive/train-0.json", "report.json"}


@pytest.mark.slow
def test_a_change_of_the_speed_budget_trains_nothing(finished):
    raw = yaml.safe_load((finished / "tiny.yaml").read_text())
    raw["speed"]["seconds"] = 3
    assert planned(finished, raw) == {"speed", "report", "all"}


@pytest.mark.slow
def test_what_jobs_ask_of_a_cluster_makes_nothing_again(finished, monkeypatch):
    monkeypatch.setenv("BOOT_PROCESSES", "2")
    asked = ["--set-resources", "distil:mem_mb=1", "teacher:runtime=1", "sample:gpu=1", "--set-threads", "distil=2"]
    done = snakemake(finished, "--dry-run", *asked, config=finished / "tiny.yaml")
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_broken_configuration_is_refused_before_any_job(tmp_path):
    raw = yaml.safe_load(TINY.read_text())
    raw["methods"]["boot-heun"]["detla"] = 0.1
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(raw))
    done = snakemake(tmp_path, config=tmp_path / "broken.yaml", check=False)
    assert done.returncode != 0
    assert "methods.boot-heun.detla: unknown key" in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_data_set_can_be_named_on_the_command_line(tmp_path):
    """As docs/experiments/cifar10.md has it; Snakemake hands on the numbers of a nested value as texts."""
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for index in range(4):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (index, 0, 0)).save(buffer, "PNG")
            archive.writestr(f"{index}.png", buffer.getvalue())
    chosen = "data={kind: images, path: mine.zip, resolution: 32}"
    done = snakemake(tmp_path, "--dry-run", "--config", chosen, config=ROOT / "config" / "cifar10-short.yaml")
    assert "rule data:" in done.stdout
    assert "rule fetch:" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("job", ["teacher", "boot-heun", "progressive"])
def test_a_killed_job_resumes_to_the_same_weights(finished, tmp_path, job):
    """SIGKILL in the middle of the command that a rule runs, then the same command again."""
    root = finished / "results" / "tiny"
    steps = 60
    raw = yaml.safe_load(TINY.read_text())
    settings = raw["teacher"] if job == "teacher" else raw["methods"][job]
    settings["training"]["steps"] = steps
    told = {"stage": "teacher.Train", "settings": settings, "checkpoint_seconds": 0}
    if job != "teacher":
        told |= {"stage": "distillation.Distil", "variant": job, "train_seed": 0, "teacher": str(root / "teacher")}
    if job in ("teacher", "progressive"):
        told["data"] = str(root / "data")

    def start(name):
        places = {"state": str(tmp_path / name / "state"), "output": str(tmp_path / name / "out")}
        command = [sys.executable, "-m", "suite", json.dumps(told | places)]
        environment = os.environ | warm() | {"OMP_NUM_THREADS": "1", "BOOT_DEVICE": "cpu"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    whole = start("whole")
    assert whole.wait(200) == 0, whole.stderr.read()
    victim = start("killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("state/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.kill()
    victim.wait(30)
    assert not (tmp_path / "killed" / "out").exists(), "the job ended before it could be killed"
    again = start("killed")
    _, log = again.communicate(timeout=200)
    assert again.returncode == 0, log
    assert "resuming stage" in log
    files = [path.relative_to(tmp_path / "whole" / "out") for path in (tmp_path / "whole/out").rglob("*.safetensors")]
    assert files
    for file in files:
        assert sha256_file(tmp_path / "whole/out" / file) == sha256_file(tmp_path / "killed/out" / file), file
    costs = [json.loads((tmp_path / name / "out/cost.json").read_text())["students"] for name in ("whole", "killed")]
    assert [s["network_evaluations"] for s in costs[0]] == [s["network_evaluations"] for s in costs[1]]


@pytest.mark.slow
def test_a_users_own_pictures_and_a_stored_teacher(tmp_path):
    """A zip of colour pictures in class folders, from a YAML of a few lines to the report; then its teacher again."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for index in range(40):
            picture = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(picture, "PNG")
            archive.writestr(f"mine/{'cats' if index % 2 else 'dogs'}/{index}.png", picture.getvalue())
    raw = yaml.safe_load(TINY.read_text()) | {
        "experiment": "mine",
        "data": {"kind": "images", "path": "mine.zip", "resolution": 8},
        "select": ["ddim", "boot-heun"],
    }
    raw["evaluation"] |= {"num_samples": 16, "protocols": {}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    snakemake(tmp_path, config=tmp_path / "mine.yaml")
    assert "<h1" in (tmp_path / "results/mine/report/index.html").read_text()
    with np.load(tmp_path / "results/mine/samples/boot-heun/train-0/nfe-1/seed-0.npz") as archive:
        assert archive["arr_0"].shape == (16, 8, 8, 3)

    raw |= {"experiment": "again", "teacher": {"path": "results/mine/teacher"}}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(raw))
    snakemake(tmp_path, "results/again/students/boot-heun/train-0", config=tmp_path / "again.yaml")
    assert not (tmp_path / "results/again/data").exists()
    files = [tmp_path / f"results/{name}/students/boot-heun/train-0/nfe-1/unet" for name in ("mine", "again")]
    one, two = (sha256_file(folder / "diffusion_pytorch_model.safetensors") for folder in files)
    assert one == two


@pytest.mark.slow
def test_a_guided_class_conditional_experiment(tmp_path):
    """Labels are judged, guided samplers count two evaluations a step, an ablation's changes become rows, and another
    scale does not train the teacher."""
    raw = yaml.safe_load(TINY.read_text()) | {"experiment": "classes", "select": ["ddim", "boot-heun", "progressive"]}
    raw["teacher"] |= {"labels": True, "guidance_scale": 2.0}
    raw["evaluation"] |= {
        "seeds": [0],
        "teacher": {"variant": "ddim", "nfe": 8},
        "classifier": {"training": {"steps": 4, "batch_size": 16}},
        "nfe": {"progressive": [1]},
        "trajectory_noises": 9,
        "batch_size": 32,
    }
    raw["ablation"] = {"base": "boot-heun", "axes": {"delta": [{"delta": 0.1}]}}
    snakemake(tmp_path, config=write(tmp_path, raw))
    metrics = pd.read_csv(tmp_path / "results/classes/report/metrics.csv")
    judged = metrics[metrics["metric"] == "label_accuracy"]
    assert set(judged.dropna(subset="nfe")["nfe"].astype(int)) == {1, 2, 4, 8}
    assert set(judged["method"]) == {"ddim", "boot", "progressive_distillation", "real"}
    assert "Label accuracy" in (tmp_path / "results/classes/report/tables/main.md").read_text()
    rows = (tmp_path / "results/classes/report/tables/ablation.md").read_text()
    assert "| base | – |" in rows
    assert "| delta | delta 0.1 |" in rows
    page = (tmp_path / "results/classes/report/index.html").read_text()
    assert "One change at a time" in page
    # Of two students the last is sampled; both are trained, and cost.
    assert set(metrics.loc[metrics["variant"] == "progressive", "nfe"].astype(int)) == {1}
    folder = tmp_path / "results/classes/samples/progressive/train-0"
    assert [path.name for path in folder.glob("nfe-*")] == ["nfe-1"]
    cost = pd.read_csv(tmp_path / "results/classes/report/cost.csv")
    assert {"progressive@nfe-2", "progressive@nfe-1"} <= set(cost["variant"])
    facts = json.loads((tmp_path / "results/classes/trajectory/boot-heun/train-0.json").read_text())
    assert facts["noises"] == 9
    log = (tmp_path / "results/classes/logs/trajectory/boot-heun/train-0.log").read_text()
    assert "trajectory: 100%" in log
    trajectory = pd.read_csv(tmp_path / "results/classes/report/trajectory.csv")
    assert set(trajectory["variant"]) == {"boot-heun", "delta-0.1"}
    with np.load(tmp_path / "results/classes/samples/boot-heun/train-0/nfe-1/seed-0.npz") as archive:
        assert archive["arr_1"].tolist() == [index % 10 for index in range(48)]
    with np.load(tmp_path / "results/classes/pictures/boot-heun/train-0.npz") as archive:
        assert archive["classes"].shape == archive["interpolation"].shape

    raw["teacher"]["guidance_scale"] = 3.0
    done = snakemake(tmp_path, "--dry-run", config=write(tmp_path, raw))
    planned_rules = {line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("rule ")}
    assert {"distil", "sample"} <= planned_rules
    assert not {"teacher", "classifier", "data"} & planned_rules


def write(folder, raw):
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path
