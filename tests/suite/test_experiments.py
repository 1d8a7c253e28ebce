"""Every experiment of config/: it parses, plans, and runs scaled down on made pictures of its true size and format.

By default the small runs go to the students' samples, which is where data, teachers and methods meet; with
``BOOT_TEST_EXPERIMENTS=report`` they go to the report.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from repository import CONFIG, snakemake

import diffusion.training.stage
from diffusion.data.kinds import cifar10, fashion_mnist, lsun, parse_settings, prepare
from diffusion.data.store import load_split, write_dataset
from diffusion.runtime.errors import UserError
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from suite.configuration.experiment import parse_experiment

ALL = sorted(path.stem for path in CONFIG.glob("*.yaml"))
PUBLISHED = (
    "cifar10",
    "cifar10-short",
    "cifar10-minutes",
    "ffhq64",
    "imagenet64",
    "bedroom256",
    "fashion-mnist",
    "mnist",
)


def configuration(name):
    return yaml.safe_load((CONFIG / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_and_every_variant_of_it_is_accepted(name):
    raw = configuration(name)
    parse_experiment(raw, look_at_files=False)
    if "select" in raw:
        experiment = parse_experiment(raw | {"select": list(raw["methods"])}, look_at_files=False)
        assert set(experiment.methods) >= set(raw["methods"])


@pytest.mark.parametrize(
    ("name", "variant", "resize", "pooling"),
    [
        ("cifar10", "consistency", 224, "max"),
        ("imagenet64", "consistency", 224, "average"),
        ("bedroom256", "consistency", None, "average"),
        ("cifar10", "pid", 224, "average"),
        ("imagenet64", "pid", 224, "average"),
    ],
)
def test_what_was_published_with_lpips_has_it(name, variant, resize, pooling):
    raw = configuration(name)
    settings = (
        parse_experiment(raw | {"select": [*raw["select"], variant]}, look_at_files=False).methods[variant].settings
    )
    assert settings.distance == "lpips"
    assert settings.lpips.model_dump() == {"backbone": "vgg", "weights": None, "resize": resize, "greyscale": None} | (
        {"pooling": pooling} if pooling != "max" else {}
    )
    # Neither code has a warm-up, a decay or a clip.
    training = settings.training
    assert (training.optimiser, training.warmup_steps, training.decay) == ("radam", 0, "constant")
    assert training.gradient_clip == 1e9


def test_nothing_of_the_default_experiment_draws_beside_its_steps_generator(tmp_path, monkeypatch):
    """No dropout, and no other use of torch's own generator: whatever it is seeded with, the weights are the same."""
    raw = configuration("digits")
    few = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "ema_decay": None}
    for block in (raw["teacher"], *(method for method in raw["methods"].values() if "training" in method)):
        block["training"] = block["training"] | few
    experiment = parse_experiment(raw | {"select": list(raw["methods"])}, look_at_files=False)
    write_dataset(tmp_path / "data", prepare(experiment.data), experiment.data)
    split = load_split(tmp_path / "data", "train")
    trained = []
    for number in (1, 2):
        seeds = iter(range(1000 * number, 10**6))
        monkeypatch.setattr(
            diffusion.training.stage, "seed_dropout", lambda _, seeds=seeds: torch.manual_seed(next(seeds))
        )
        networks = []
        with TrainingRun(tmp_path / f"teacher-{number}", "key", 0, torch.device("cpu")) as run:
            teacher, _ = train_teacher(experiment.teacher, split, run)
        networks.append(teacher.network.requires_grad_(False))
        for name, method in experiment.methods.items():
            if method.trains:
                with TrainingRun(tmp_path / f"{name}-{number}", "key", 0, torch.device("cpu")) as run:
                    students = method.distil(teacher, run, split if method.needs_data else None)
                networks += [student.network for student in students]
        assert next(seeds) >= 1000 * number + 2 * (len(networks) - 1)
        trained.append([network.state_dict() for network in networks])
    assert len(trained[0]) == 1 + 2 + 4
    for one, other in zip(*trained, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_plans_or_says_where_its_data_come_from(name, tmp_path):
    done = snakemake(tmp_path, "--dry-run", config=CONFIG / f"{name}.yaml", check=False)
    told = done.stdout + done.stderr
    brought = name in ("ffhq64", "imagenet64", "bedroom256")
    assert (f"{name}.yaml:" in told and "data.path: data/" in told) == brought
    assert ("rule teacher:" in told) != brought
    fetches = "rule fetch:" in told
    assert fetches == (name.startswith("cifar10") or (name == "fashion-mnist" and not fashion_mnist.DEBIAN.is_dir()))


def pictures(folder, names, size, mode="RGB"):
    """Files as their data sets have them; of ImageNet also a grey and a CMYK one."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in names:
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / name)


def made_data(name, folder):
    """What replaces the data block's keys: a small set of true size and format."""
    if name.startswith("cifar10"):
        return cifar10.tiny_settings(folder)
    if name == "fashion-mnist":
        return fashion_mnist.tiny_settings(folder)
    if name == "bedroom256":
        return lsun.tiny_settings(folder) | {"resolution": 256, "num_pictures": None}
    if name == "ffhq64":
        for start in (0, 1000):  # as download_ffhq.py lays them out
            names = [f"{index:05d}.png" for index in range(start, start + 40)]
            pictures(folder / f"{start:05d}", names, (128, 128))
        return {"path": str(folder), "num_pictures": None, "test_fraction": 0.1}  # its own 3 % are too few to measure
    if name == "imagenet64":
        for part, count in (("train", 8), ("val", 4)):
            for label in ("n01440764", "n01443537"):
                pictures(folder / part / label, [f"{part}_{label}_{i}.JPEG" for i in range(count)], (120, 90))
        pictures(folder / "train" / "n01484850", ["grey_0.JPEG", "grey_1.JPEG"], (75, 90), "L")
        pictures(folder / "val" / "n01484850", ["cmyk_0.JPEG", "cmyk_1.JPEG"], (90, 75), "CMYK")
        return {"path": str(folder), "num_classes": None, "num_pictures": None}
    return {}


@pytest.mark.parametrize(
    ("name", "found", "classes"),
    [
        ("ffhq64", "80 pictures .* expected 70,000", ("all",)),
        ("imagenet64", "3 classes .* expected 1,000", ("n01440764", "n01443537", "n01484850")),
        ("bedroom256", "12 pictures .* expected 3,033,042", ("all",)),
    ],
)
def test_what_has_to_be_fetched_by_hand_is_counted(name, found, classes, tmp_path):
    made = configuration(name)["data"] | made_data(name, tmp_path / "made")
    assert prepare(parse_settings(made)).class_names == classes
    own = {key: configuration(name)["data"].get(key) for key in ("num_classes", "num_pictures") if key in made}
    with pytest.raises(UserError, match=f"found {found}"):
        prepare(parse_settings(made | own))


def shortened(training):
    slices = {key: 2 for key in ("gradient_accumulation_steps",) if key in training}
    without = {"minutes": None, "warmup_steps": 0, "ema_decay": None, "snapshots": 0}  # what two steps are too few for
    return training | {"steps": 2, "batch_size": 4} | without | slices


def scaled_down(name, folder):
    """The experiment's own file with a small network, few steps and few pictures."""
    raw = configuration(name)
    raw["data"] |= made_data(name, folder)
    network = raw["teacher"]["network"]
    network |= {"block_out_channels": [8] * len(network["block_out_channels"]), "norm_num_groups": 4}
    network |= {"attention_head_dim": 4, "layers_per_block": 1}
    raw["teacher"]["training"] = shortened(raw["teacher"]["training"])
    kinds = ("ddim", "boot", "progressive_distillation")
    raw["select"] = [v for v in raw.get("select", raw["methods"]) if raw["methods"][v]["method"] in kinds]
    for method in (raw["methods"][variant] for variant in raw["select"]):
        if method["method"] == "ddim":
            method["num_inference_steps"] = [1, 2]
        else:
            method["training"] = shortened(method["training"])
        if method["method"] == "progressive_distillation":
            method["start_steps"] = 2  # of which only one evaluation is sampled, where the file names any
        if method.pop("lpips", None) or method.get("distance") == "lpips":
            method["distance"] = "l2"  # LPIPS wants weights that are not here
    few = {"num_samples": 16, "seeds": [0, 1], "teacher": {"variant": "ddim", "nfe": 2}, "protocols": {}}
    raw["evaluation"] |= few | {"features": "efficientnet-lite0-32", "batch_size": 16}
    raw["evaluation"]["nfe"] = {variant: [1] for variant in raw["evaluation"].get("nfe", {})}
    if "classifier" in raw["evaluation"]:
        raw["evaluation"]["classifier"]["training"] = shortened(raw["evaluation"]["classifier"]["training"])
    raw["speed"] = {"batch_sizes": [1], "seconds": 1}
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_runs_scaled_down(name, tmp_path):
    raw = scaled_down(name, tmp_path / "made")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    boot = next(variant for variant in raw["select"] if raw["methods"][variant]["method"] == "boot")
    root = Path("results") / raw["experiment"]
    whole = os.environ.get("BOOT_TEST_EXPERIMENTS") == "report"
    targets = (
        [] if whole else [str(root / "samples" / variant / "train-0") for variant in raw["select"] if variant != "ddim"]
    )
    snakemake(tmp_path, *targets, config=tmp_path / "small.yaml")
    experiment = parse_experiment(raw, look_at_files=False)
    size = (experiment.data.resolution, experiment.data.resolution, experiment.data.channels)
    with np.load(tmp_path / root / "samples" / boot / "train-0" / "nfe-1" / "seed-0.npz") as archive:
        assert archive["arr_0"].shape == (16, *size)
        assert ("arr_1" in archive) == (name == "imagenet64")
    if whole:
        assert (tmp_path / root / "report" / "index.html").is_file()
