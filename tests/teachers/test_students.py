"""Students and teachers leave the checkout: their folders load where `diffusers` is and this project is not."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from folders import EARLIER, NOISE, alone, as_earlier, entry_of
from repository import ROOT
from tiny import tiny_conditional, tiny_denoiser

from diffusion.conditions import ClassLabels
from diffusion.denoiser import Denoiser
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance
from diffusion.schedule import DiscreteSchedule, EdmSchedule
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.networks.song_unet import SongUNet
from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding

CPU = torch.device("cpu")
LABELS = [0, 2, 1, 1]


def linear(prediction_type="epsilon", classes=0):
    """With the betas of DDPM."""
    teacher = tiny_conditional(3) if classes else tiny_denoiser()
    schedule = DiscreteSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 200)))
    return Denoiser(teacher.network, schedule, prediction_type, STATIC, teacher.conditions).eval().requires_grad_(False)


def zero_terminal():
    """Without any signal at the last timestep."""
    teacher = tiny_denoiser()
    schedule = DiscreteSchedule(np.cos(np.linspace(0.02, np.pi / 2, 200)).clip(1e-300) ** 2 * (np.arange(200) < 199))
    return Denoiser(teacher.network, schedule, "v_prediction", STATIC).eval().requires_grad_(False)


def edm(kind="song", classes=0, thresholding=STATIC):
    """On a network that `diffusers` has not."""
    torch.manual_seed(0)
    if kind == "song":
        small = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
        network = SongUNet(8, 1, 1, **small, num_class_embeds=classes or None)
    else:
        levels = {"block_out_channels": (16, 16), "norm_num_groups": 8, "layers_per_block": 1}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        network = TimeScaledUNet(10.0, sample_size=8, in_channels=1, out_channels=1, **levels, **blocks)
    with torch.no_grad():
        for weight in network.parameters():  # some start at nothing
            weight += 0.02 * torch.randn(weight.shape)
    conditions = ClassLabels(classes, has_null=False) if classes else None
    return (
        Denoiser(network, EdmSchedule(num_timesteps=200), "edm", thresholding, conditions).eval().requires_grad_(False)
    )


DYNAMIC = Thresholding(kind="dynamic", ratio=0.9)
LIMITED = Thresholding(kind="dynamic", ratio=0.9, maximum=1.2)
GUIDED = Guidance(2.0)
# name: teacher, method, its settings, guidance
CASES = {
    **{f"boot-{kind}": (tiny_denoiser(kind), "boot", {}, None) for kind in ("epsilon", "sample", "edm")},
    "boot": (tiny_denoiser(), "boot", {}, None),
    "boot-classes": (tiny_conditional(3), "boot", {}, None),
    "boot-guided": (tiny_conditional(3), "boot", {}, GUIDED),
    "boot-epsilon-of-betas": (linear(), "boot", {}, None),
    "boot-epsilon-exact": (linear(), "boot", {"epsilon_reading": "exact"}, None),
    "boot-zero-terminal": (zero_terminal(), "boot", {}, None),
    "boot-song": (edm(), "boot", {}, None),
    "boot-song-classes": (edm(classes=3), "boot", {}, None),
    "boot-scaled": (edm("scaled"), "boot", {}, None),
    "boot-state": (tiny_denoiser(), "boot", {"target": "state"}, None),
    "progressive": (tiny_denoiser(), "progressive_distillation", {"start_steps": 8}, None),
    "progressive-classes": (tiny_conditional(3), "progressive_distillation", {"start_steps": 8}, None),
    "progressive-edm": (tiny_denoiser("edm"), "progressive_distillation", {"start_steps": 8}, None),
    "tract": (linear(), "tract", {"start_steps": 8, "phases": [4, 1]}, None),
    "tract-song": (edm(), "tract", {"start_steps": 8, "phases": [4, 1]}, None),
    "consistency": (tiny_denoiser(), "consistency_distillation", {"num_inference_steps": [1, 3]}, None),
    "consistency-epsilon": (linear(), "consistency_distillation", {"num_inference_steps": [1, 3]}, None),
    "consistency-classes": (
        tiny_conditional(3),
        "consistency_distillation",
        {"num_inference_steps": [1, 3], "sampling_levels": [9, 4], "clip_steps": True},
        None,
    ),
    "consistency-edm": (edm("scaled"), "consistency_distillation", {"num_inference_steps": [1, 3]}, None),
    "sid": (tiny_denoiser(), "sid", {}, None),
    "sid-edm": (edm(), "sid", {}, None),
    "sid-of-betas": (linear(), "sid", {}, None),
    "pid": (tiny_denoiser("sample"), "pid", {}, None),
    "pid-network": (tiny_denoiser("edm"), "pid", {"output": "network"}, None),
    "knowledge": (tiny_denoiser("epsilon"), "knowledge_distillation", {}, None),
    "knowledge-classes": (tiny_conditional(3), "knowledge_distillation", {}, None),
    "teacher": (tiny_denoiser(), "ddim", {"num_inference_steps": [1, 4]}, None),
    "teacher-epsilon": (linear(), "ddim", {"num_inference_steps": [4]}, None),
    "teacher-classes": (tiny_conditional(3), "ddim", {"num_inference_steps": [1, 5]}, None),
    "teacher-guided": (tiny_conditional(3, thresholding=DYNAMIC), "ddim", {"num_inference_steps": [5]}, GUIDED),
    "teacher-classes-of-betas": (linear(classes=3), "ddim", {"num_inference_steps": [7]}, GUIDED),
    "teacher-edm": (tiny_denoiser("edm"), "ddim", {"num_inference_steps": [5]}, None),
    "teacher-edm-dynamic": (edm("scaled", thresholding=LIMITED), "ddim", {"num_inference_steps": [5]}, None),
    "teacher-edm-unbounded": (edm(thresholding=NO_THRESHOLD), "ddim", {"num_inference_steps": [3]}, None),
    "teacher-song-classes": (edm(classes=3), "ddim", {"num_inference_steps": [3]}, None),
}  # fmt: skip
STOCK = {"progressive", "tract", "teacher", "teacher-epsilon"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every case's folder, the suite's samples and those that were drawn without the suite, by name and evaluations."""
    folder = tmp_path_factory.mktemp("students")
    np.save(folder / "latents.npy", NOISE.numpy())
    entries, suites = [], {}
    for name, (teacher, kind, settings, guidance) in CASES.items():
        method = method_class(kind)
        method = method(method.Settings.model_validate({"method": kind, **settings}), guidance)
        method.save(folder / name, teacher.network, teacher)
        condition = {"class_labels": torch.tensor(LABELS)} if isinstance(teacher.conditions, ClassLabels) else None
        for nfe in method.evaluations():
            sampler, _ = method.sampler(folder / name, nfe, CPU)
            with torch.inference_mode():
                suites[name, nfe] = sampler(NOISE, condition).numpy()
            call = {"num_inference_steps": nfe if method.trains else nfe // method.guidance.evaluations}
            call |= {} if condition is None else {"class_labels": LABELS}
            call |= {} if guidance is None or method.trains else {"guidance_scale": guidance.scale}
            call |= {"use_clipped_model_output": True} if name in STOCK else {}
            entries.append(entry_of(folder, folder / name, f"{name}-{nfe}", name not in STOCK, **call))
    for name in ("boot-song", "consistency-edm"):  # somebody stores them once more, and loads that
        (entry,) = (entry for entry in entries if entry["images"].endswith(f"/{name}-1.npy"))
        again = str(folder / f"{name}-again")
        entries += [entry | {"resaved": again}, entry | {"source": again, "images": str(folder / f"{name}-again.npy")}]
    refused = [entry_of(folder, folder / name, f"refused-{name}", False) for name in ("boot-sample", "teacher-edm")]
    said, warnings = alone(folder, [*entries, *refused])
    return folder, suites, said, warnings


@pytest.mark.parametrize("name", CASES)
def test_a_folder_draws_the_suites_own_samples_without_the_suite(drawn, name):
    folder, suites, _, _ = drawn
    index = json.loads((folder / name / "model_index.json").read_text())
    assert index["_class_name"] == ("DDIMPipeline" if name in STOCK else ["pipeline", "StudentPipeline"])
    assert (folder / name / "pipeline.py").exists() == (name not in STOCK)
    for nfe in (nfe for case, nfe in suites if case == name):
        expected, found = suites[name, nfe], np.load(folder / f"{name}-{nfe}.npy")
        assert np.isfinite(expected).all()
        if name in STOCK:  # `diffusers` has α and σ in float32, and float32 square roots of 1 − ᾱ
            expected = (expected / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["boot-song", "consistency-edm"])
def test_a_folder_that_is_stored_again_elsewhere_keeps_its_code(drawn, name):
    folder, suites, _, _ = drawn
    np.testing.assert_array_equal(np.load(folder / f"{name}-again.npy"), suites[name, 1])
    for file in ("pipeline.py", "model_index.json"):
        assert (folder / f"{name}-again" / file).exists()


def test_own_code_asks_for_trust_and_warns_of_nothing_else(drawn):
    folder, _, said, warnings = drawn
    assert said.keys() == {str(folder / "boot-sample"), str(folder / "teacher-edm")}
    assert all("pipeline.py" in sentence and "trust_remote_code=True" in sentence for sentence in said.values())
    told = [line for line in warnings.splitlines() if line.strip() and "it/s" not in line and "Loading" not in line]
    assert told == []


def test_the_code_in_a_folder_imports_nothing_else():
    import ast

    for module in ("pipeline", "networks/song_unet", "networks/time_scaled_unet", "networks/sit_transformer"):
        source = (ROOT / "diffusion" / "teachers" / f"{module}.py").read_text()
        nodes = list(ast.walk(ast.parse(source)))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        packages = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert packages <= {"torch", "numpy", "diffusers"}, module


# What earlier versions wrote: the class that drew the samples, no code, and the module of an own network.
@pytest.mark.parametrize("name", EARLIER)
def test_folders_of_earlier_versions_draw_the_same(drawn, name, tmp_path):
    folder, suites, _, _ = drawn
    shutil.copytree(folder / name, tmp_path / name)
    as_earlier(tmp_path / name, name)
    nfe = max(nfe for case, nfe in suites if case == name)
    labels = LABELS if "classes" in name else None
    pipeline = LocalPipeline.from_pretrained(tmp_path / name)
    found = pipeline(class_labels=labels, num_inference_steps=nfe, latents=NOISE, output_type="pt").images
    np.testing.assert_array_equal(found.numpy(), suites[name, nfe])
    _, kind, settings, _ = CASES[name]
    method = method_class(kind)
    method = method(method.Settings.model_validate({"method": kind, **settings}))
    sampler, _ = method.sampler(tmp_path / name, nfe, CPU)
    with torch.inference_mode():
        condition = None if labels is None else {"class_labels": torch.tensor(labels)}
        np.testing.assert_array_equal(sampler(NOISE, condition).numpy(), suites[name, nfe])


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("boot", {"class_labels": [1]}, "not class-conditional"),
        ("boot-classes", {"class_labels": [1], "guidance_scale": 2.0}, "learnt its guidance"),
        ("boot", {"num_inference_steps": 4}, "found 4, expected 1"),
        ("boot", {"output_type": "numpy"}, "expected 'pil', 'np', 'pt' or 'latent'"),
        ("boot", {"latents": NOISE[:, :, :4]}, r"found shape \(4, 1, 4, 8\), expected \(4, 1, 8, 8\)"),
        ("boot-classes", {}, "class_labels: found none, expected one an image, each from 0 to 2"),
        ("boot-classes", {"class_labels": [0, 4]}, r"found \[0, 4\], expected labels from 0 to 2"),
        ("boot-classes", {"class_labels": [0, -1]}, "expected labels from 0 to 2"),
        ("boot-classes", {"class_labels": []}, "expected labels from 0 to 2"),
        ("boot-classes", {"class_labels": [0, 1], "batch_size": 3}, r"found shape \(2,\), expected \(3,\)"),
        ("boot-classes", {"class_labels": [0, 1], "latents": NOISE}, r"found shape \(2,\), expected \(4,\)"),
        ("teacher-edm", {}, "num_inference_steps: found none, expected 1 to 200"),
        ("teacher-edm", {"num_inference_steps": 201}, "found 201, expected 1 to 200"),
        ("teacher-edm", {"num_inference_steps": 2, "timestep": 3}, "timestep: given"),
        ("teacher-edm", {"num_inference_steps": 2, "guidance_scale": 2.0}, "not class-conditional"),
        ("teacher-song-classes", {"class_labels": 1, "guidance_scale": 2.0}, "no label for no class"),
        ("consistency", {"num_inference_steps": 18}, "found 18, expected 1 to 17"),
    ],
)
def test_calls_that_make_no_sense_are_refused(drawn, name, call, expected):
    with pytest.raises(ValueError, match=expected):
        LocalPipeline.from_pretrained(drawn[0] / name)(**call)


def test_all_pipelines_are_called_alike(drawn):
    """The number of images is that of the labels or of the noise; one label stands for all."""
    for name, steps in (("boot-classes", None), ("consistency-classes", None), ("teacher-classes", 2)):
        pipeline = LocalPipeline.from_pretrained(drawn[0] / name)

        def draw(pipeline=pipeline, steps=steps, **call):
            generator = torch.Generator().manual_seed(3)
            return pipeline(num_inference_steps=steps, generator=generator, output_type="np", **call).images

        one = draw(class_labels=[2, 2, 2])
        assert one.shape == (3, 8, 8, 1)
        np.testing.assert_array_equal(one, draw(class_labels=2, batch_size=3))
        np.testing.assert_array_equal(one, draw(class_labels=[2, 2, 2], batch_size=3))
        np.testing.assert_array_equal(one, draw(condition={"class_labels": torch.tensor([2, 2, 2])}))
        assert not np.array_equal(one, draw(class_labels=[0, 1, 2]))
        (images,) = pipeline(class_labels=[1], num_inference_steps=steps, return_dict=False)
        assert images[0].size == (8, 8)


def test_half_precision_draws_nearly_the_same(drawn):
    whole, half = (
        LocalPipeline.from_pretrained(drawn[0] / "consistency", torch_dtype=kind)(
            latents=NOISE, output_type="pt"
        ).images
        for kind in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)
