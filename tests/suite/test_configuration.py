"""Broken configurations are refused before anything runs, naming the key, what was found and what is allowed."""

import copy
import shutil
from typing import get_args

import pytest
import yaml
from repository import CONFIG, ROOT, tiny_experiment
from tiny import tiny_denoiser

import diffusion  # noqa: F401 - repairs torchvision before `diffusers` is imported

from diffusers import DDIMPipeline, DDIMScheduler  # isort: skip
from diffusion.runtime.errors import UserError
from diffusion.teachers.folder import save_denoiser
from evaluation.measure.protocols import ExtractorName
from suite.configuration.experiment import parse_experiment
from suite.plan import Plan

TINY = tiny_experiment()
STEPS = TINY["teacher"]["training"]["steps"]


def changed(path, value):
    """The tiny experiment with one key changed; None as the value of ``del`` removes it."""
    raw = copy.deepcopy(TINY)
    *parents, last = path.split(".")
    block = raw
    for key in parents:
        block = block.setdefault(key, {})
    if value is DELETED:
        del block[last]
    else:
        block[last] = value
    return raw


DELETED = object()
CONSISTENCY = {"method": "consistency_distillation", "distance": "lpips", "lpips": {"greyscale": "repeat"}}


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid(file):
    experiment = parse_experiment(yaml.safe_load(file.read_text()), look_at_files=False)
    assert Plan(experiment).units()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("experimnt", "x", ["experimnt: unknown key", "experiment"]),
        ("experiment", DELETED, ["experiment: missing"]),
        ("experiment", "a/b", ["experiment: found 'a/b'"]),
        ("data.kind", "celeba", ["data.kind: found 'celeba'", "digits", "images"]),
        ("data.colour", 1, ["data.colour", "unknown"]),
        ("teacher.training", DELETED, ["teacher.training: missing"]),
        ("teacher.path", "nowhere", ["teacher.network: unknown key", "guidance_scale, path, revision, num_classes"]),
        ("teacher.training.steps", "many", ["teacher.training.steps: found 'many', expected a whole number"]),
        ("teacher.training.steps", 0, ["teacher.training.steps: found 0, expected at least 1"]),
        ("teacher.training.stepz", 5, ["teacher.training.stepz: unknown key", "batch_size"]),
        ("teacher.training.decay", "step", ["teacher.training.decay: found 'step'", "'cosine'"]),
        ("teacher.schedule.kind", "sigmoid", ["teacher.schedule.kind: found 'sigmoid'", "'cosine'"]),
        ("teacher.schedule.t_min", 0.9999, ["teacher.schedule", "t_min (0.9999)", "smaller than t_max (0.999)"]),
        ("teacher.prediction_type", "velocity", ["teacher.prediction_type: found 'velocity'", "'v_prediction'"]),
        ("teacher.network.attention_resolutions", [5], ["teacher.network", "5", "[8, 4]"]),
        ("teacher.network.block_out_channels", [12], ["teacher.network", "12", "norm_num_groups"]),
        ("teacher.network.block_out_channels", [8, 8, 8, 8, 8], ["teacher.network", "5 levels", "16"]),
        ("teacher.network.downsample_type", "pool", ["teacher.network.downsample_type: found 'pool'", "'resnet'"]),
        ("teacher.network.upsample_type", "pool", ["teacher.network.upsample_type: found 'pool'", "'resnet'"]),
        (
            "teacher.network.resnet_time_scale_shift",
            True,
            ["teacher.network.resnet_time_scale_shift: found true, expected 'default' or"],
        ),
        (
            "teacher.network.resnet_time_scale_shift",
            "spatial",
            ["teacher.network.resnet_time_scale_shift: found 'spatial'", "'scale_shift'"],
        ),
        ("methods.boot-heun.method", "bot", ["methods.boot-heun.method: found 'bot'", "boot", "ddim"]),
        ("methods.boot-heun.solver", "rk4", ["methods.boot-heun.solver: found 'rk4'", "'euler'", "'heun'"]),
        ("methods.boot-heun.delta", 2.0, ["methods.boot-heun.delta: found 2.0", "0.998"]),
        ("methods.boot-heun.delta_spread", 1.0, ["methods.boot-heun.delta_spread: found 1.0"]),
        ("methods.boot-heun.distance", "lpips", ["methods.boot-heun.lpips.greyscale: found null", "'repeat'"]),
        ("methods.boot-heun.lpips", {"backbone": "alex"}, ["methods.boot-heun", "lpips: given, but distance is 'l2'"]),
        ("methods.consistency", CONSISTENCY, ["methods.consistency.lpips.resize: found None with pictures of 8"]),
        ("methods.pid", {"method": "pid", "distance": "lpips"}, ["methods.pid.lpips.greyscale: found null"]),
        ("methods.pid", {"method": "pid", "distance": "l1"}, ["methods.pid.distance: found 'l1'", "'lpips'"]),
        ("methods.boot-heun.target", "noise", ["methods.boot-heun.target: found 'noise'", "'signal'", "'state'"]),
        ("teacher.prediction_type", "edm", ["teacher", "cosine schedule", "'edm' with the edm schedule"]),
        (
            "teacher.noise_levels",
            "lognormal",
            ["teacher.noise_levels: found 'lognormal' with the cosine schedule, expected 'uniform'"],
        ),
        ("teacher.noise_levels", "normal", ["teacher.noise_levels: found 'normal'", "'uniform' or 'lognormal'"]),
        ("data.flip", "left", ["data.flip: found 'left', expected true or false"]),
        ("teacher.schedule", {"kind": "edm", "t_min": 0.1}, ["teacher.schedule", "t_min: not a key of the edm"]),
        ("teacher.schedule", {"sigma_max": 40.0}, ["teacher.schedule", "sigma_max: not a key of the cosine"]),
        (
            "teacher.schedule",
            {"kind": "edm", "sigma_min": 90.0},
            ["teacher.schedule", "must be smaller than sigma_max"],
        ),
        ("methods.boot-heun.beta", 1.0, ["methods.boot-heun.beta: unknown key", "boundary_weight"]),
        ("methods.boot-heun.training.stepz", 1, ["methods.boot-heun.training.stepz: unknown key", "steps"]),
        ("methods.progressive.start_steps", 12, ["methods.progressive", "found 12", "power of two"]),
        ("methods.progressive.start_steps", 16, ["methods.progressive.start_steps: found 16", "divisor", "200"]),
        ("methods.progressive.training.ema_decay", 0.5, ["methods.progressive.training", "ema_decay", "null"]),
        ("methods.ddim.num_inference_steps", [4, 4], ["methods.ddim.num_inference_steps", "[4, 4]"]),
        ("methods.ddim.num_inference_steps", [4, 500], ["methods.ddim.num_inference_steps: found 500", "200"]),
        ("methods.a/b", {"method": "ddim"}, ["methods.a/b", "names folders"]),
        ("select", ["ddim", "nothing"], ["select: found 'nothing'", "boot-heun"]),
        ("select", ["boot-heun"], ["evaluation.teacher", "'ddim'", "none is selected"]),
        ("train_seeds", [0, 0], ["train_seeds", "[0, 0]"]),
        ("evaluation.features", "vgg", ["evaluation.features: found 'vgg'", "inception"]),
        ("evaluation.seeds", [-1], ["evaluation.seeds", "[-1]"]),
        ("evaluation.teacher.nfe", 3, ["evaluation.teacher", "nfe 3", "1, 2, 4"]),
        ("methods.ddim.eta", 1.0, ["evaluation.teacher", "selected deterministic sampler", "none is selected"]),
        (
            "evaluation.nfe",
            {"progressive": [1, 3]},
            ["evaluation.nfe.progressive: found 3, expected numbers among 1, 2"],
        ),
        ("evaluation.nfe", {"nobody": [1]}, ["evaluation.nfe.nobody: found 'nobody'", "boot-heun"]),
        ("evaluation.nfe", {"ddim": []}, ["evaluation.nfe.ddim"]),
        ("evaluation.nfe", {"ddim": [1, 1]}, ["evaluation.nfe.ddim", "different numbers"]),
        ("evaluation.nfe", {"ddim": [1, 2]}, ["evaluation.teacher", "nfe 4", "ddim with 1, 2"]),
        ("evaluation.trajectory_noises", 0, ["evaluation.trajectory_noises: found 0, expected at least 1"]),
        ("evaluation.external", {"ddim": "x.npz"}, ["evaluation.external.ddim"]),
        ("speed.batch_sizes", [], ["speed.batch_sizes"]),
        ("speed.batch_sizes", [8, 8], ["speed.batch_sizes", "[8, 8]"]),
        ("speed.seconds", float("inf"), ["speed.seconds", "finite"]),
        ("teacher.network.attention_head_dim", 5, ["teacher.network", "16", "attention_head_dim (5)"]),
        ("methods.teacher", {"method": "ddim"}, ["methods.teacher", "none of"]),
        ("methods.boot-heun.method", ["boot"], ["methods.boot-heun.method: found ['boot']"]),
        ("evaluation.seeds", [2**70], ["evaluation.seeds"]),
        (
            "train_seeds",
            [2**53],
            ["train_seeds: found [9007199254740992], expected different numbers from 0 to 2^53 − 1"],
        ),
        ("teacher.seed", 2**53, ["teacher.seed: found 9007199254740992, expected less than 9007199254740992"]),
        ("evaluation.weights", {"inception": "x.pth"}, ["evaluation.weights.inception", "remove it"]),
        (
            "teacher.training.warmup_steps",
            STEPS,
            [f"teacher.training: warmup_steps: found {STEPS} with steps {STEPS}, expected {STEPS + 1} steps or more"],
        ),
        (
            "teacher.training.snapshots",
            10,
            [f"teacher.training: snapshots: found 10 with steps {STEPS}, expected 1024 steps or more"],
        ),
        (
            "teacher.training.ema_decay",
            0.999,
            [f"teacher.training: ema_decay: found 0.999 with steps {STEPS}, expected 694 steps or more"],
        ),
        (
            "methods.boot-heun.training",
            {"steps": 30, "warmup_steps": 50, "ema_decay": 0.5},
            ["methods.boot-heun.training: warmup_steps: found 50 with steps 30, expected 51 steps or more"],
        ),
        ("methods.boot-heun.progressive_share", 0.3, ["methods.boot-heun: progressive_share: found 0.3 with times"]),
        (
            "methods.consistency",
            {"method": "consistency_distillation", "spacing": "time", "rho": 3.0},
            ["methods.consistency: rho: found 3.0 with spacing 'time'"],
        ),
        (
            "methods.progressive.training",
            {"steps": 4, "warmup_steps": 5},
            ["methods.progressive.training: warmup_steps: found 5 with steps 4"],
        ),
        ("teacher.training.steps", True, ["teacher.training.steps: found true, expected a number"]),
        ("evaluation.classifier", {"training": {"steps": 3}}, ["evaluation.classifier: given", "teacher.labels"]),
        ("teacher.guidance_scale", 2.0, ["teacher", "guidance_scale: found 2.0 with labels false"]),
        ("teacher.thresholding", {"kind": "static", "ratio": 0.9}, ["teacher.thresholding", "expected 'dynamic'"]),
        ("teacher.labels", "some", ["teacher.labels: found 'some'"]),
        ("evaluation.seeds", [0, True], ["evaluation.seeds: found [0, true], expected a number"]),
        ("evaluation.num_samples", "many", ["evaluation.num_samples: found 'many'"]),
        ("published_as", "celeba", ["published_as: found 'celeba'", "cifar10"]),
        ("methods.boot-heun.method", DELETED, ["methods.boot-heun.method: missing; expected one of: boot,"]),
        ("methods.evaluation", {"seeds": [0]}, ["methods.evaluation.method: missing", "at the start of a line"]),
        ("evaluation.weights", {"vgg": "x"}, ["evaluation.weights.vgg: found 'vgg', expected 'inception'"]),
        ("train_seeds", "[0, 1", ["train_seeds: found '[0, 1', expected a list", "this text is not YAML"]),
        ("methods", "{boot={}}", ["methods: found '{boot={}}', expected a block of keys; this text is not YAML"]),
        (
            "evaluation.protocols.truncated.reference_sha256",
            "ABC",
            ["found 'ABC', expected text of the form ^[0-9a-f]"],
        ),
    ],
)
def test_broken_configurations_are_refused(path, value, expected):
    with pytest.raises(UserError) as caught:
        parse_experiment(changed(path, value))
    for part in expected:
        assert part in str(caught.value)


def test_zero_boundary_weight_needs_a_student_that_starts_on_the_trajectory():
    raw = changed("methods.boot-heun.boundary_weight", 0.0)
    parse_experiment(raw)
    raw["teacher"]["prediction_type"] = "epsilon"
    with pytest.raises(UserError, match=r"methods\.boot-heun\.boundary_weight: found 0 with an epsilon teacher"):
        parse_experiment(raw)
    for key, value, reason in (
        ("initialisation", "random", "student of random"),
        ("target", "state", "student of the"),
    ):
        raw = changed("methods.boot-heun.boundary_weight", 0.0)
        raw["methods"]["boot-heun"][key] = value
        with pytest.raises(UserError, match=rf"methods\.boot-heun\.boundary_weight: found 0 with a {reason}"):
            parse_experiment(raw)
    raw = changed("methods.boot-heun.boundary_weight", 0.0)
    raw["teacher"] |= {"labels": True, "guidance_scale": 2.0}
    with pytest.raises(UserError, match=r"methods\.boot-heun\.boundary_weight: found 0 with a guided teacher"):
        parse_experiment(raw)


def test_noisy_states_are_refused_where_they_make_no_sense(tmp_path):
    raw = changed("methods.boot-heun.target", "state")
    parse_experiment(raw)
    raw["methods"]["boot-heun"] |= {"distance": "lpips", "lpips": {"greyscale": "repeat", "resize": 32}}
    with pytest.raises(UserError, match="no pictures"):
        parse_experiment(raw)
    raw = changed("methods.boot-heun.target", "state")
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    folder = tmp_path / "teacher"
    DDIMPipeline(tiny_denoiser().network, scheduler).save_pretrained(folder)
    raw["teacher"] = {"path": str(folder)}
    with pytest.raises(UserError, match=r"methods\.boot-heun\.target: found 'state'"):
        parse_experiment(raw)


@pytest.mark.parametrize("name", ["digits", "digits-conditional", "images-example"])
def test_the_block_of_the_ablation_runs_on_every_other_experiment(name, tmp_path):
    config = CONFIG
    block = yaml.safe_load((config / "digits-ablation.yaml").read_text())["ablation"]
    raw = yaml.safe_load((config / f"{name}.yaml").read_text())
    block["base"] = next(variant for variant, settings in raw["methods"].items() if settings["method"] == "boot")
    if name == "images-example":  # whose warm-up of 500 steps leaves no room for less
        with pytest.raises(UserError) as refused:
            parse_experiment(raw | {"ablation": copy.deepcopy(block)}, look_at_files=False)
        assert str(refused.value).count("training: warmup_steps: found 500 with steps") == 2
        block["axes"]["length"] = [{"training": {"steps": steps}} for steps in (1000, 2000)]
    if raw["teacher"].get("guidance_scale", 1) != 1:  # there, the boundary loss alone teaches the guidance
        block["axes"]["boundary"].remove({"boundary_weight": 0.0})
    changes = [change for axis in block["axes"].values() for change in axis]
    experiment = parse_experiment(raw | {"ablation": block}, look_at_files=False)
    assert sum(map(len, experiment.ablation.values())) == len(changes)


def test_options_that_the_teacher_does_not_allow():
    raw = changed("methods.boot-heun.delta_in", "lambda")
    raw["methods"]["boot-heun"]["delta"] = 5.0
    parse_experiment(raw)
    raw["methods"]["boot-heun"]["delta"] = 13.0  # λ runs over 2 · log tan(89.91°) = 12.9
    with pytest.raises(UserError, match=r"methods\.boot-heun\.delta: found 13.0, expected less .* of lambda \(12.9"):
        parse_experiment(raw)
    raw = changed("methods.boot-heun.distance", "lpips")
    raw["methods"]["boot-heun"]["lpips"] = {"greyscale": "repeat"}
    with pytest.raises(UserError, match=r"boot-heun\.lpips\.resize: found None with pictures of 8 pixels, .* 16 "):
        parse_experiment(raw)
    raw["methods"]["boot-heun"]["lpips"]["resize"] = 32
    parse_experiment(raw)
    raw["methods"]["boot-heun"]["lpips"]["weights"] = "nowhere.pth"
    with pytest.raises(UserError, match=r"boot-heun\.lpips\.weights: found 'nowhere.pth'"):
        parse_experiment(raw)
    raw = changed("methods.boot-heun.bootstrap_from", "average")
    parse_experiment(raw)
    raw["methods"]["boot-heun"]["training"]["ema_decay"] = None
    with pytest.raises(UserError, match=r"methods\.boot-heun: .*found 'average' with training.ema_decay null"):
        parse_experiment(raw)
    raw = changed("teacher.schedule", {"kind": "edm"})
    raw["teacher"]["prediction_type"] = "edm"
    parse_experiment(raw)
    settings = parse_experiment(raw).teacher
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings  # as the rules hand it on
    raw["methods"]["boot-heun"]["target"] = "state"
    with pytest.raises(UserError, match=r"methods\.boot-heun\.target: found 'state', expected 'signal'"):
        parse_experiment(raw)


def test_null_and_numbers_to_choose_from_may_be_texts():
    """As Snakemake's --config hands them on."""
    raw = changed("teacher.training.ema_decay", "null")
    raw["ablation"], raw["evaluation"]["protocols"] = "null", "~"
    raw["methods"]["unipc"] = {"method": "unipc", "solver_order": "3"}
    experiment = parse_experiment(raw)
    assert experiment.teacher.training.ema_decay is None
    assert experiment.ablation is None
    assert list(experiment.evaluation.further_protocols) == ["clean-fid"]
    assert experiment.methods["unipc"].settings.solver_order == 3
    with pytest.raises(UserError, match=r"methods\.unipc\.solver_order: found '4'"):
        parse_experiment(changed("methods.unipc", {"method": "unipc", "solver_order": "4"}))
    with pytest.raises(UserError, match=r"teacher\.training: found neither steps nor minutes"):
        parse_experiment(changed("teacher.training.steps", "null"))


def test_all_problems_are_listed_at_once():
    raw = changed("methods.boot-heun.delta", 2.0)
    raw["methods"]["progressive"]["start_steps"] = 12
    with pytest.raises(UserError) as caught:
        parse_experiment(raw)
    assert "methods.boot-heun.delta" in str(caught.value)
    assert "methods.progressive" in str(caught.value)


def test_extractor_names_are_those_of_the_evaluation():
    from evaluation.measure.features import EXTRACTORS

    assert get_args(ExtractorName) == EXTRACTORS


def test_selection_keeps_the_files_order_and_drops_the_rest():
    experiment = parse_experiment(changed("select", ["progressive", "ddim"]))
    assert list(experiment.methods) == ["ddim", "progressive"]
    assert {(unit.variant, unit.nfe) for unit in Plan(experiment).units()} == {
        ("ddim", 1), ("ddim", 2), ("ddim", 4), ("progressive", 2), ("progressive", 1),
    }  # fmt: skip


def test_a_stored_teacher_is_checked_before_anything_runs(tmp_path):
    raw = copy.deepcopy(TINY)
    raw["teacher"] = {"path": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"teacher\.path: .*nowhere' is no folder"):
        parse_experiment(raw)
    save_denoiser(tmp_path / "teacher", tiny_denoiser(channels=3))
    raw["teacher"] = {"path": str(tmp_path / "teacher")}
    with pytest.raises(UserError, match=r"teacher\.path: .*\(3, 8, 8\).*\(1, 8, 8\)"):
        parse_experiment(raw)
    shutil.rmtree(tmp_path / "teacher")
    save_denoiser(tmp_path / "teacher", tiny_denoiser("epsilon"))
    raw["methods"]["boot-heun"]["boundary_weight"] = 0.0
    with pytest.raises(UserError, match="epsilon teacher"):
        parse_experiment(raw)
    raw["methods"]["boot-heun"]["boundary_weight"] = 1.0
    assert parse_experiment(raw).teacher.facts((1, 8, 8)).num_timesteps == 200


@pytest.mark.parametrize(
    ("features", "key", "kind"),
    [("inception", "inception", "file"), ("inception", "inception-clean-fid", "file")]
    + [(name, name, "folder") for name in ("clip-vit-l-14", "dinov2-vit-l-14")],
)
def test_missing_weights_are_found_before_anything_runs(features, key, kind):
    raw = changed("evaluation.features", features)
    raw["evaluation"]["weights"] = {key: "nowhere"}
    with pytest.raises(UserError, match=rf"evaluation\.weights\.{key}: found 'nowhere', expected an existing {kind}"):
        parse_experiment(raw)
    raw["evaluation"]["weights"] = {"resnet": "nowhere"}
    with pytest.raises(UserError, match=r"evaluation\.weights\.resnet"):
        parse_experiment(raw)


def test_step_counts_that_divide_no_timesteps_are_known():
    raw = changed("methods.ddim.num_inference_steps", [1, 3, 4, 16])
    raw["methods"] |= {
        "dpm": {"method": "dpm_solver_pp", "num_inference_steps": [3]},
        "dpm-karras": {"method": "dpm_solver_pp", "spacing": "karras", "num_inference_steps": [3]},
        "unipc": {"method": "unipc", "num_inference_steps": [8]},
        "heun": {"method": "heun", "num_inference_steps": [3]},
    }
    experiment = parse_experiment(raw)
    assert experiment.num_timesteps == 200
    assert experiment.uneven_steps == {"ddim": (3, 16), "dpm": (3,)}
    raw["teacher"] |= {"schedule": {"kind": "edm", "num_timesteps": 200}, "prediction_type": "edm"}
    assert parse_experiment(raw).uneven_steps == {}


@pytest.mark.parametrize("name", ["digits", "cifar10-minutes", "mnist"])
def test_shipped_experiments_sample_with_diffusers_own_steps(name):
    assert parse_experiment(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())).uneven_steps == {}


def test_a_training_block_in_part_keeps_the_methods_own_defaults():
    raw = changed("methods.boot-heun.training", {"steps": 7})
    training = parse_experiment(raw).methods["boot-heun"].settings.training
    # Seven of a thousand steps: too few for a warm-up of 50, and for an average that loses a hundredth a step.
    assert (training.steps, training.warmup_steps, training.decay) == (7, 0, "cosine")
    assert training.ema_decay == pytest.approx(0.99 ** (1000 / 7), abs=1e-6)
    raw = changed("methods.boot-heun.training", {"steps": "40", "ema_decay": 0.5})
    training = parse_experiment(raw).methods["boot-heun"].settings.training
    assert (training.steps, training.warmup_steps, training.ema_decay) == (40, 2, 0.5)
    for spelt in (40.0, "4_0"):
        raw = changed("methods.boot-heun.training", {"steps": spelt, "ema_decay": 0.5})
        assert parse_experiment(raw).methods["boot-heun"].settings.training == training
    raw = changed("methods.boot-heun.training", {"steps": 100})
    training = parse_experiment(raw).methods["boot-heun"].settings.training
    assert (training.warmup_steps, training.ema_decay) == (50, 0.99)
    raw = changed("methods.progressive.training", {"steps": 7})
    assert parse_experiment(raw).methods["progressive"].settings.training.decay == "linear"


def test_the_numbers_of_evaluations_that_are_sampled_can_be_chosen():
    """In the method's order, and for that variant alone."""
    plain, chosen = (Plan(parse_experiment(raw)) for raw in (TINY, changed("evaluation.nfe", {"ddim": [4, 1]})))
    of_ddim = [unit.nfe for unit in chosen.units() if unit.variant == "ddim"]
    assert of_ddim == [1, 4]
    others = [[unit for unit in plan.units() if unit.variant != "ddim"] for plan in (plain, chosen)]
    assert others[0] == others[1]
    assert not any("nfe-2" in name for name in chosen.sets("ddim", 0))
    # What a method is stays the same, so that nothing is trained again.
    for name, method in plain.experiment.methods.items():
        assert method.settings == chosen.experiment.methods[name].settings
    only_two = Plan(parse_experiment(changed("evaluation.nfe", {"progressive": [2]})))
    assert [unit.nfe for unit in only_two.neighboured_units() if unit.variant == "progressive"] == [2]
    assert only_two.experiment.methods["progressive"].students() == (2, 1)
