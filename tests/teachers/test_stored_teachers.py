"""Teachers that users bring: what is read, and what is refused in words while the configuration is read."""

import json
import re
import shutil
import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_denoiser

from boot.distillation import Boot, BootSettings
from diffusion.runtime.errors import UserError
from diffusion.teachers.folder import deciding_files, load_denoiser, load_schedule, pipeline_problems
from diffusion.teachers.settings import StoredTeacher
from diffusion.teachers.stored_network import StoredNetwork
from diffusion.teachers.weights import weights_files
from suite.configuration.experiment import parse_experiment
from suite.jobs.teacher import Import
from suite.provenance import RECORD

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FP16 = WEIGHTS.replace(".safetensors", ".fp16.safetensors")


def tiny_unet(**changes):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**settings | changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A pipeline as `diffusers` writes it."""
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("stored") / "plain"
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "mine")


def edit(file, **changes):
    """Changes keys of a JSON file; those that are given as `...` are left out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def rewrite(folder, change):
    """Stores what ``change`` makes of the weights."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def refusal(folder, channels=1, resolution=8):
    """The lines by which an experiment with this teacher is refused."""
    teacher = StoredTeacher(path=str(folder))
    with pytest.raises(UserError) as refused:
        teacher.facts((channels, resolution, resolution))
    return str(refused.value).splitlines()


# -- parts, channels, times, sizes -------------------------------------------------------------------------------------

PARTS = {
    "vqvae": {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]},
    "text_encoder, tokenizer": {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    },
    "movq": {"movq": ["diffusers", "VQModel"]},
    "image_encoder": {"image_encoder": ["transformers", "CLIPVisionModel"]},
    "super_res_first": {"super_res_first": ["diffusers", "UNet2DModel"]},
    "own": {"own": ["my_module", "Own"]},
}


@pytest.mark.parametrize("names", PARTS)
def test_parts_that_nobody_reads_are_refused_by_name(folder, names):
    edit(folder / "model_index.json", **PARTS[names])
    (line,) = refusal(folder)
    assert line.startswith(f"teacher.path: {folder}/model_index.json: found the parts {names}, expected unet, sched")


def test_an_autoencoder_that_is_not_there_is_missed(folder):
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    (line,) = refusal(folder)
    assert line.startswith(f"teacher.path: {folder}/model_index.json: names the part vae, but there is no folder")


@pytest.mark.parametrize(
    "options",
    [
        {"safety_checker": [None, None], "feature_extractor": [None, None], "vae": [None, None]},
        {"num_classes": None, "requires_safety_checker": False, "levels": [0, 1], "thresholding": {"kind": "none"}},
        {"_name_or_path": "somewhere", "_module": "pipeline.py"},
        {"_class_name": ["pipeline", "OwnPipeline"]},
    ],
)
def test_parts_that_are_left_out_and_plain_options_are_no_parts(folder, options):
    edit(folder / "model_index.json", **options)
    assert pipeline_problems(folder) == []


def test_a_student_is_no_teacher(tmp_path):
    Boot(BootSettings()).save(tmp_path / "student", tiny_denoiser().network, tiny_denoiser())
    (line,) = refusal(tmp_path / "student")
    assert "model_index.json: found a StudentPipeline, a distilled student" in line


NETWORKS = {
    "more inputs": ({"in_channels": 2}, "in_channels 2 and out_channels 1, expected both alike: the network must"),
    "an image beside": ({"in_channels": 6, "out_channels": 3}, "in_channels 6 and out_channels 3"),
    "a learnt variance": (
        {"out_channels": 2},
        "in_channels 1 and out_channels 2, expected both alike: the second half is a learnt var",
    ),
    "outputs not said": ({"out_channels": ...}, "in_channels 1 and out_channels 3"),
    "inputs not said": ({"in_channels": ...}, "in_channels 3 and out_channels 1"),
    "size null": ({"sample_size": None}, "sample_size None, expected the side of the images"),
    "size missing": ({"sample_size": ...}, "sample_size None, expected the side"),
    "width odd": ({"sample_size": [8, 15]}, "sample_size 15 with 2 block_out_channels, expected a multiple of 2"),
    "size of one": ({"sample_size": [8]}, "sample_size [8], expected the side"),
    "size text": ({"sample_size": "8"}, "sample_size '8', expected the side"),
    "size zero": ({"sample_size": 0}, "sample_size 0, expected the side"),
    "size true": ({"sample_size": True}, "sample_size True, expected the side"),
    "size odd": ({"sample_size": 9}, "sample_size 9 with 2 block_out_channels, expected a multiple of 2"),
    "whole times": (
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        "time_embedding_type 'learned', expected 'positional': it knows whole timesteps only",
    ),
    "log times": ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier', expected 'positional': it takes"),
    "unknown times": ({"time_embedding_type": "rotary"}, "time_embedding_type 'rotary', expected 'positional'."),
    "no times": ({"time_embedding_type": None}, "time_embedding_type None, expected 'positional'."),
    "another network": ({"_class_name": "UNet1DModel"}, "the network 'UNet1DModel'"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_cannot_be_a_teacher_are_refused(folder, name):
    changes, expected = NETWORKS[name]
    edit(folder / "unet/config.json", **changes)
    (line, *_) = refusal(folder)
    assert line.startswith(f"teacher.path: {folder}/unet/config.json: found {expected}")


@pytest.mark.parametrize(
    "changes",
    [{"sample_size": [8, 8]}, {"time_embedding_type": ...}, {"_class_name": ...}, {"num_train_timesteps": 1000}],
)
def test_the_same_network_in_other_words_is_read(folder, changes):
    edit(folder / "unet/config.json", **changes)
    teacher = StoredTeacher(path=str(folder))
    teacher.facts((1, 8, 8))
    teacher.check_images((1, 8, 8))


def test_a_stored_teacher_makes_images_of_the_datas_height_and_width(folder):
    edit(folder / "unet/config.json", sample_size=[8, 16])
    teacher = StoredTeacher(path=str(folder))
    assert teacher.facts((1, 8, 16)).shape == (1, 8, 16)
    teacher.check_images((1, 8, 16))
    for shape in ((1, 16, 8), (1, 8, 8)):
        expected = f"makes images of shape (1, 8, 16), but the data set's are {shape}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            teacher.check_images(shape)
    assert load_denoiser(folder).shape == (1, 8, 16)


def test_why_a_network_that_is_told_the_logarithm_is_refused():
    """It divides by what it is told, and the first timestep is 0."""
    network = tiny_unet(time_embedding_type="fourier")
    with torch.no_grad():
        assert not torch.isfinite(network(torch.ones(1, 1, 8, 8), torch.zeros(1)).sample).all()


# -- schedulers --------------------------------------------------------------------------------------------------------

LINEAR = (0.0001, 0.02)
HEUN = (0.00085, 0.012)
# What each class does where its file says nothing: the ends of its linear betas, and whether it clips.
CLASSES = {
    "DDPMScheduler": (LINEAR, "static"),
    "DDPMParallelScheduler": (LINEAR, "static"),
    "DDIMScheduler": (LINEAR, "static"),
    "DDIMParallelScheduler": (LINEAR, "static"),
    "PNDMScheduler": (LINEAR, "none"),
    "DEISMultistepScheduler": (LINEAR, "none"),
    "DPMSolverMultistepScheduler": (LINEAR, "none"),
    "DPMSolverSinglestepScheduler": (LINEAR, "none"),
    "SASolverScheduler": (LINEAR, "none"),
    "UniPCMultistepScheduler": (LINEAR, "none"),
    "EulerDiscreteScheduler": (LINEAR, "none"),
    "EulerAncestralDiscreteScheduler": (LINEAR, "none"),
    "LMSDiscreteScheduler": (LINEAR, "none"),
    "HeunDiscreteScheduler": (HEUN, "none"),
    "KDPM2DiscreteScheduler": (HEUN, "none"),
    "KDPM2AncestralDiscreteScheduler": (HEUN, "none"),
}


def scheduler(folder, **config):
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_scheduler_does_not_say_is_its_classs_default(folder, name):
    (first, last), clips = CLASSES[name]
    scheduler(folder, _class_name=name)
    assert pipeline_problems(folder) == []
    schedule, prediction_type, thresholding = load_schedule(folder)
    expected = np.cumprod(1 - np.linspace(first, last, 1000))
    np.testing.assert_allclose(schedule.alphas_cumprod(), expected, rtol=1e-4)
    assert (prediction_type, thresholding.kind) == ("epsilon", clips)


def squared_cosine(count):
    bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


BETAS = {
    "linear": np.linspace(0.001, 0.1, 100),
    "scaled_linear": np.linspace(0.001**0.5, 0.1**0.5, 100) ** 2,
    "squaredcos_cap_v2": squared_cosine(100),
    "sigmoid": 1 / (1 + np.exp(-np.linspace(-6, 6, 100))) * (0.1 - 0.001) + 0.001,
}


@pytest.mark.parametrize("name", BETAS)
def test_betas_by_hand(folder, name):
    ends = {"beta_start": 0.001, "beta_end": 0.1, "num_train_timesteps": 100}
    scheduler(folder, _class_name="DDPMScheduler", beta_schedule=name, **ends)
    schedule, *_ = load_schedule(folder)
    np.testing.assert_allclose(schedule.alphas_cumprod(), np.cumprod(1 - BETAS[name]), rtol=1e-4)


THRESHOLDINGS = [
    ({"_class_name": "DDPMScheduler", "clip_sample": False}, ("none", None)),
    ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, ("static", None)),
    ({"_class_name": "PNDMScheduler", "clip_sample": True}, ("none", None)),  # a key that PNDM does not have
    ({"_class_name": "EulerDiscreteScheduler", "thresholding": True}, ("none", None)),
    ({"_class_name": "DDIMScheduler", "thresholding": True}, ("dynamic", 1.0)),
    ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 2.0}, ("dynamic", 2.0)),
    ({"_class_name": "EDMEulerScheduler"}, ("none", None)),
]


@pytest.mark.parametrize(("config", "expected"), THRESHOLDINGS)
def test_the_estimate_is_bounded_as_the_named_class_does(folder, config, expected):
    scheduler(folder, **config)
    *_, thresholding = load_schedule(folder)
    assert (thresholding.kind, thresholding.maximum if thresholding.kind == "dynamic" else None) == expected


def test_how_steps_are_spaced_is_no_matter_of_the_network(folder):
    before = load_schedule(folder)[0].alphas_cumprod()
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        # The type of the timesteps matters for v_prediction alone.
        other = {"timestep_spacing": "leading", "timestep_type": "continuous", key: True}
        scheduler(folder, _class_name="EulerDiscreteScheduler", **other)
        assert np.array_equal(load_schedule(folder)[0].alphas_cumprod(), before)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_no_signal_at_the_end_is_none_whoever_samples(folder, name):
    """Samplers that divide by it put 2⁻²⁴ in its place."""
    scheduler(folder, _class_name=name, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert load_schedule(folder)[0].alphas_cumprod()[-1] < 1e-30
    scheduler(folder, _class_name=name, rescale_betas_zero_snr=True)
    assert "zero terminal signal-to-noise" in refusal(folder)[0]


def test_both_of_edms_schedulers_are_read_alike(folder):
    settings = []
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        scheduler(folder, _class_name=name, sigma_max=70.0)
        schedule, prediction_type, _thresholding = load_schedule(folder)
        assert prediction_type == "edm"
        settings.append(schedule.settings())
    assert settings[0] == settings[1]
    assert settings[0]["sigma_max"] == 70.0


SCHEDULERS = {
    "flow": (
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "epsilon"},
        "found prediction_type 'epsilon' with use_flow_sigmas, expected 'flow_prediction'",
    ),
    "flow of DDPM": ({"_class_name": "DDPMScheduler", "use_flow_sigmas": True}, "found use_flow_sigmas True with DDPM"),
    "flow's prediction": (
        {"_class_name": "DEISMultistepScheduler", "prediction_type": "flow_prediction"},
        "found prediction_type 'flow_prediction', expected one of epsilon, v_prediction, sample",
    ),
    "flow on another grid": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True},
        "found use_karras_sigmas True, expected False",
    ),
    "flow of another shift": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "time_shift_type": "linear"},
        "found time_shift_type 'linear', expected 'exponential'",
    ),
    "of consistency models": ({"_class_name": "CMStochasticIterativeScheduler"}, "found the scheduler 'CMStoch"),
    "of their students": ({"_class_name": "LCMScheduler"}, "found the scheduler 'LCMScheduler'"),
    "unCLIP": ({"_class_name": "UnCLIPScheduler"}, "found the scheduler 'UnCLIPScheduler'"),
    "nameless": ({"beta_end": 0.02}, "found the scheduler None"),
    "log times": (
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction"},
        "found timestep_type 'continuous' with v_prediction, expected 'discrete'",
    ),
    "unknown betas": (
        {"_class_name": "DDPMScheduler", "beta_schedule": "exp"},
        "DDPMScheduler of `diffusers` refuses these settings (exp is not implemented",
    ),
    "betas of DDPM alone": (
        {"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"},
        "DDIMScheduler of `diffusers` refuses these settings (sigmoid is not implemented",
    ),
    "betas in words": (
        {"_class_name": "DDPMScheduler", "beta_start": "small"},
        "DDPMScheduler of `diffusers` refuses these settings",
    ),
    "betas above one": ({"_class_name": "DDPMScheduler", "beta_end": 3.0}, "the scheduler's alphas_cumprod must be"),
    "one timestep": ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1}, "the scheduler's alphas_cumprod"),
    "clipped elsewhere": ({"_class_name": "DDPMScheduler", "clip_sample_range": 3.0}, "found clip_sample_range 3.0"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_are_not_read_are_refused(folder, name):
    config, expected = SCHEDULERS[name]
    scheduler(folder, **config)
    (line,) = refusal(folder)
    assert line.startswith(f"teacher.path: {folder}/scheduler/scheduler_config.json: {expected}")


def test_a_scheduler_of_a_package_that_is_missing_says_so(folder, monkeypatch):
    import diffusers

    class Missing:
        @classmethod
        def from_config(cls, _config):
            raise ImportError("\nrequires the torchsde library")

    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", Missing, raising=False)
    scheduler(folder, _class_name="DPMSolverSDEScheduler")
    (line,) = refusal(folder)
    assert "DPMSolverSDEScheduler needs a package that is not installed (requires the torchsde library)" in line


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(("content", "expected"), [("[1]", "found a JSON list"), ("{", "not valid JSON")])
def test_files_that_hold_something_else_are_refused_by_name(folder, file, content, expected):
    (folder / file).write_text(content)
    assert all(line.startswith(f"teacher.path: {folder / file}: ") for line in refusal(folder))
    assert expected in refusal(folder)[0]


# -- weights -----------------------------------------------------------------------------------------------------------


def as_variant(variant, **options):
    """Weights in float16, as `diffusers` names those."""

    def write(folder):
        (folder / WEIGHTS).unlink()
        tiny_unet().half().save_pretrained(folder / "unet", variant=variant, **options)

    return write


def sharded(folder):
    (folder / WEIGHTS).unlink()
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(weights_files(folder / "unet")) > 2


def named(name):
    """Weights whose names a wrapper has changed."""
    return lambda folder: rewrite(folder, lambda weights: {name(old): value for old, value in weights.items()})


def as_numbers(dtype):
    return lambda folder: rewrite(folder, lambda weights: {name: value.to(dtype) for name, value in weights.items()})


READ = {
    "as written": (lambda folder: None, torch.float32),
    "fp16": (as_variant("fp16"), torch.float16),
    "ema": (lambda folder: (folder / WEIGHTS).rename(folder / FP16.replace("fp16", "ema")), torch.float32),
    "sharded": (sharded, torch.float32),
    "sharded fp16": (as_variant("fp16", max_shard_size="10KB"), torch.float16),
    "a variant beside": (lambda folder: shutil.copy(folder / WEIGHTS, folder / FP16), torch.float32),
    "half": (as_numbers(torch.float16), torch.float16),
    "bfloat16": (as_numbers(torch.bfloat16), torch.bfloat16),
    "double": (as_numbers(torch.float64), torch.float32),
    "compiled": (named("_orig_mod.{}".format), torch.float32),
    "parallel": (named("module.{}".format), torch.float32),
    "compiled, then parallel": (named("module._orig_mod.{}".format), torch.float32),
    "FSDP": (named("_fsdp_wrapped_module.{}".format), torch.float32),
    "blocks compiled": (named(lambda name: name.replace(".resnets.0.", ".resnets.0._orig_mod.")), torch.float32),
    "old names, compiled": (
        named(lambda name: "_orig_mod." + name.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn.")),
        torch.float32,
    ),
    "old names of one": (
        named(lambda name: name.replace("down_blocks.1.attentions.0.to_k.", "down_blocks.1.attentions.0.key.")),
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_weights_are_read_and_arrive_in_the_suites_own_form(plain, folder, tmp_path, name):
    change, dtype = READ[name]
    change(folder)
    StoredTeacher(path=str(folder)).facts((1, 8, 8))
    Import(stored=str(folder), output=tmp_path / "results/teacher").run()
    written = load_file(tmp_path / "results/teacher" / WEIGHTS)
    expected = load_file(plain / WEIGHTS)
    assert written.keys() == expected.keys()
    for key, value in written.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[key].to(dtype).float()), key
    assert [file.name for file in (tmp_path / "results/teacher/unet").iterdir() if file.suffix != ".json"] == [
        "diffusion_pytorch_model.safetensors"
    ]
    # What went in is on record, and what the workflow watches for changes: every file that was read.
    record = json.loads((tmp_path / "results/teacher" / RECORD).read_text())
    paths = {one["path"] for one in record["inputs"].values()}
    assert paths == {str(file) for file in deciding_files(folder)}
    assert {str(file) for file in weights_files(folder / "unet")} < paths
    assert torch.equal(load_denoiser(tmp_path / "results/teacher").network.conv_in.weight, written["conv_in.weight"])


def written(content):
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


def cut(count):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:count])


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")


def pickled_as_safetensors(folder):
    torch.save({}, folder / WEIGHTS)


def two_variants(folder):
    shutil.copy(folder / WEIGHTS, folder / FP16)
    (folder / WEIGHTS).rename(folder / FP16.replace("fp16", "non_ema"))


def shards_and_one(folder):
    shutil.copy(folder / WEIGHTS, folder / "kept")
    sharded(folder)
    (folder / "kept").rename(folder / WEIGHTS)


def in_a_shard(change):
    def spoil(folder):
        sharded(folder)
        change(weights_files(folder / "unet")[-1])

    return spoil


def broken_index(folder):
    sharded(folder)
    edit(folder / f"{WEIGHTS}.index.json", weight_map=...)


def without_index(folder):
    sharded(folder)
    (folder / f"{WEIGHTS}.index.json").unlink()


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 143000000\n".encode()
REFUSED = {
    "pointer": (written(POINTER), "is a pointer of git-LFS, not the weights; run `git lfs pull`"),
    "pointer of a shard": (in_a_shard(lambda file: file.write_bytes(POINTER)), "is a pointer of git-LFS"),
    "web page": (written(b"<!DOCTYPE html><html>sign in</html>"), "is a web page, not the weights"),
    "empty": (written(b""), "truncated, or no safetensors file"),
    "noise": (written(bytes(range(256)) * 4), "truncated, or no safetensors file"),
    "cut in the header": (cut(100), "truncated, or no safetensors file"),
    "cut in the numbers": (cut(-1000), "truncated, or no safetensors file"),
    "a shard cut": (in_a_shard(lambda file: file.write_bytes(file.read_bytes()[:-9])), "truncated, or no safetensors"),
    "pickle": (pickled, "not found; diffusion_pytorch_model.bin is a pickle, which is never read. Convert it"),
    "pickle by another name": (pickled_as_safetensors, "is a pickle in spite of its name"),
    "none": (lambda folder: (folder / WEIGHTS).unlink(), "not found; expected the network's weights in safetensors"),
    "another name": (
        lambda folder: (folder / WEIGHTS).rename(folder / "unet/model.safetensors"),
        "not found, only model.safetensors; expected",
    ),
    "two variants": (two_variants, "found diffusion_pytorch_model.fp16.safetensors, diffusion_pytorch_model.non_ema."),
    "shards and one": (shards_and_one, "expected one set of weights; move the others away"),
    "a shard missing": (in_a_shard(lambda file: file.unlink()), "not found beside it; fetch the folder whole"),
    "an index of nothing": (broken_index, "is no index of weights"),
    "no index": (without_index, "not found, only diffusion_pytorch_model-00001-of-"),
    "quantised": (as_numbers(torch.int8), "found numbers of type I8, expected F16, BF16, F32, F64"),
    "a tensor missing": (
        lambda folder: rewrite(folder, lambda weights: {k: v for k, v in weights.items() if k != "conv_in.bias"}),
        'config.json (Error(s) in loading state_dict for UNet2DModel: Missing key(s) in state_dict: "conv_in.bias"',
    ),
    "a tensor more": (
        lambda folder: rewrite(folder, lambda weights: weights | {"more": torch.zeros(1)}),
        'Unexpected key(s) in state_dict: "more"',
    ),
    "another shape": (
        lambda folder: rewrite(folder, lambda weights: weights | {"conv_in.bias": torch.zeros(9)}),
        "size mismatch for conv_in.bias",
    ),
    "another network": (
        lambda folder: edit(folder / "unet/config.json", block_out_channels=[8, 16]),
        "weights of another network than",
    ),
    "names twice": (
        lambda folder: rewrite(folder, lambda weights: weights | {"module.conv_in.bias": torch.zeros(8)}),
        "found tensors twice",
    ),
    "no network": (
        lambda folder: edit(folder / "unet/config.json", down_block_types=["DownBlock2D", "SideBlock2D"]),
        "no network can be built from it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_read_are_refused_before_any_job(folder, name):
    change, expected = REFUSED[name]
    change(folder)
    (line,) = refusal(folder)
    assert line.startswith(f"teacher.path: {folder}/unet")
    assert expected in line
    assert "elete" not in line  # they are the user's
    with pytest.raises(UserError) as refused:  # the job's own reading says the same
        load_denoiser(folder)
    assert line == f"teacher.path: {refused.value}"


def test_what_fits_is_remembered_and_what_has_changed_is_not(folder, tmp_path, monkeypatch):
    built = []

    def counting(path):
        built.append(path)
        return tiny_unet()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(StoredNetwork, "build", counting)
    assert [pipeline_problems(folder) for _ in range(3)] == [[], [], []]
    assert len(built) == 1
    edit(folder / "unet/config.json", dropout=0.1)
    assert pipeline_problems(folder) == []
    assert len(built) == 2
    rewrite(folder, lambda weights: weights | {"conv_in.bias": torch.zeros(9)})
    assert "size mismatch" in pipeline_problems(folder)[0]
    assert pipeline_problems(folder) == pipeline_problems(folder) != []
    assert len(built) == 5, "a refusal is not remembered"


# -- all at once -------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_a_folder_is_said_at_once(folder):
    edit(folder / "model_index.json", movq=["diffusers", "VQModel"])
    edit(folder / "unet/config.json", in_channels=4, sample_size=None, time_embedding_type="learned")
    scheduler(folder, _class_name="UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="epsilon")
    (folder / WEIGHTS).write_bytes(POINTER)
    block = {"method": "ddim", "num_inference_steps": [4]}
    raw = {"experiment": "x", "data": {"kind": "digits"}, "methods": {"ddim": block}}
    with pytest.raises(UserError) as refused:
        parse_experiment(raw | {"teacher": {"path": str(folder)}, "evaluation": {"teacher": {"nfe": 4}}})
    found = [line.removeprefix(f"teacher.path: {folder}/") for line in str(refused.value).splitlines()]
    assert [line.split(", ")[0] for line in found] == [
        "model_index.json: found the parts movq",
        "unet/config.json: found in_channels 4 and out_channels 1",
        "unet/config.json: found sample_size None",
        "unet/config.json: found time_embedding_type 'learned'",
        "scheduler/scheduler_config.json: found prediction_type 'epsilon' with use_flow_sigmas",
        f"{WEIGHTS}: is a pointer of git-LFS",
    ]


@pytest.mark.parametrize(
    ("network", "num_classes", "expected"),
    [
        (
            {"num_class_embeds": 10},
            5,
            "teacher.num_classes: {}: the network has 10 labels; expected num_classes 10, or 9",
        ),
        ({}, 3, "teacher.num_classes: {}: the network is not told any class, but num_classes is 3"),
        ({"class_embed_type": "timestep"}, None, "teacher.path: {}: found class_embed_type 'timestep', expected none"),
    ],
)
def test_classes_that_do_not_fit_are_refused_by_the_key_that_says_them(folder, network, num_classes, expected):
    if network:
        tiny_unet(**network).save_pretrained(folder / "unet")
    with pytest.raises(UserError) as refused:
        StoredTeacher(path=str(folder), num_classes=num_classes).facts((1, 8, 8))
    assert str(refused.value).startswith(expected.format(folder / "unet/config.json"))


def test_a_network_alone_is_no_pipeline(folder):
    assert [line.rpartition("/")[2].partition(":")[0] for line in refusal(folder / "unet")] == [
        "model_index.json",
        "scheduler_config.json",
    ]


def test_weights_of_a_hub_model_are_looked_at_by_the_job(folder, tmp_path, monkeypatch):
    """While the configuration is read they are not there; and a variant is fetched where there are no others."""
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / FP16)
    (folder / WEIGHTS).unlink()
    (folder / FP16).rename(tmp_path / "remote")
    asked = []

    def snapshot(name, revision, allow_patterns, ignore_patterns=None):
        asked.append(allow_patterns)
        if any("*.safetensors" in pattern for pattern in allow_patterns):
            shutil.copy(tmp_path / "remote", folder / FP16)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    StoredTeacher(path="someone/model").facts((1, 8, 8))
    assert not any("safetensors" in pattern for pattern in asked[0])
    job = Import(stored="someone/model", output=tmp_path / "teacher")
    job.run()
    assert torch.equal(
        load_file(tmp_path / "teacher" / WEIGHTS)["conv_in.bias"], weights["conv_in.bias"].half().float()
    )
    (folder / FP16).unlink()
    (tmp_path / "remote").write_bytes(POINTER)
    with pytest.raises(UserError, match="is a pointer of git-LFS"):
        job.run()
