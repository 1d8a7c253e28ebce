"""Students of large teachers: adapters, one copy of frozen weights, moments of a byte, states of what is trained."""

import importlib.util
from pathlib import Path

import methods
import pytest
import tiny_pipelines
import torch
import yaml
from methods import TRAINED, build
from repository import CONFIG, TINY
from tiny import stored_data, tiny_denoiser
from torch import nn

from boot.distillation import Boot
from diffusion.distillation.distiller import student_network
from diffusion.noise import initial_noise
from diffusion.runtime.errors import UserError
from diffusion.teachers.folder import load_denoiser, save_denoiser
from diffusion.teachers.lora import LoraSettings, adapted, is_adapted, merged, num_weights, target_modules
from diffusion.teachers.stock import encoding_pipeline
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from suite.configuration.experiment import parse_experiment

CPU = torch.device("cpu")
LORA = {"rank": 2, "targets": "all"}
with_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="without the package peft")
with_8_bit = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="without the package bitsandbytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_data(tmp_path_factory.mktemp("data") / "data")


def moved(network, seed=1):
    """A network with adapters that are no longer at their start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ".lora_" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return network


def outputs(denoiser, network):
    x, told = initial_noise(0, range(3), (1, 8, 8)), torch.full((3,), 50.0)
    with torch.no_grad():
        return denoiser.family.call(network, x, told, None)


# -- adapters ----------------------------------------------------------------------------------------------------------


@with_peft
@pytest.mark.parametrize("targets", ["attention", "all", ("to_q", "conv_in")])
def test_an_adapted_network_starts_as_the_teacher_and_has_its_weights(targets):
    teacher = tiny_denoiser()
    names = [name for name, _ in teacher.network.named_parameters()]
    network = student_network(teacher, lora=LoraSettings(rank=2, targets=targets))
    assert torch.equal(outputs(teacher, network), outputs(teacher, teacher.network))
    assert [name for name, _ in teacher.network.named_parameters()] == names
    shared = set(map(id, teacher.network.parameters()))
    kept = [weight for weight in network.parameters() if id(weight) in shared]
    assert len(kept) == len(names)
    assert not any(weight.requires_grad for weight in kept)
    learns = [weight for weight in network.parameters() if weight.requires_grad]
    assert learns
    assert not shared & set(map(id, learns))
    assert num_weights(network) == sum(weight.numel() for weight in teacher.network.parameters())


@with_peft
def test_adapters_are_within_the_weights_of_what_is_stored(tmp_path):
    teacher = tiny_denoiser()
    settings = LoraSettings(rank=3, alpha=6, targets="all")
    network = moved(adapted(teacher.network, settings))
    found = outputs(teacher, network)
    assert (found - outputs(teacher, teacher.network)).abs().max() > 0.01
    torch.testing.assert_close(outputs(teacher, merged(network)), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(teacher, network), found, rtol=0, atol=0)  # which is as it was
    save_denoiser(tmp_path / "student", teacher.with_network(network), told_timestep=0.0)
    stored = load_denoiser(tmp_path / "student")
    assert not is_adapted(stored.network)
    torch.testing.assert_close(outputs(stored, stored.network), found, rtol=1e-4, atol=1e-5)
    # By hand: W + alpha/rank · B A.
    name, layer = next((name, part) for name, part in network.named_modules() if name.endswith("to_q"))
    by_hand = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged(network).get_submodule(name).weight, by_hand)


@with_peft
def test_an_adapted_network_has_copies_of_its_adapters():
    """The next stage's student begins as the one before, and moves alone."""
    teacher = tiny_denoiser()
    first = moved(adapted(teacher.network, LoraSettings(rank=2))).requires_grad_(False)
    before = outputs(teacher, first)
    second = adapted(first, LoraSettings(rank=2))
    torch.testing.assert_close(outputs(teacher, second), before, rtol=1e-5, atol=1e-5)
    moved(second)
    assert (outputs(teacher, second) - before).abs().max() > 0.01
    assert torch.equal(outputs(teacher, first), before)
    assert set(map(id, teacher.network.parameters())) <= set(map(id, second.parameters()))


@with_peft
def test_modules_that_the_network_lacks_are_refused():
    network = tiny_denoiser().network
    with pytest.raises(
        ValueError, match=r"lora\.targets: found ff\.net, to_z, expected ends of names.*UNet2DModel has"
    ):
        target_modules(network, LoraSettings(targets=("to_q", "ff.net", "to_z")))
    with pytest.raises(ValueError, match=r"lora\.targets: found to_q, to_k, to_v, to_out\.0"):
        target_modules(nn.Sequential(nn.Linear(1, 1)), LoraSettings())


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        UserError, match="lora needs the package peft, which is not installed: pip install --no-deps peft"
    ):
        adapted(nn.Linear(1, 1), LoraSettings())
    with pytest.raises(UserError, match=r"training\.optimiser: 'adamw_8bit' needs the package bitsandbytes"):
        TrainingSettings(steps=1, optimiser="adamw_8bit").optimiser_of(nn.Linear(1, 1))


# -- training ----------------------------------------------------------------------------------------------------------


def distil(name, folder, data, stop_at=None, teacher=None, settings=None, **training):
    """:func:`methods.distil` with adapters, or with other ``settings``."""
    method = build(name, **training)
    given = {"lora": LoraSettings.model_validate(LORA)} | (settings or {})
    method.settings = method.settings.model_copy(update=given)
    return methods.distil(method, folder, data, teacher or tiny_denoiser(), stop_at=stop_at)


def tensors_of(state):
    if torch.is_tensor(state):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


@with_peft
@pytest.mark.parametrize("name", TRAINED)
def test_every_method_trains_adapters_and_resumes_to_the_same_bits(name, tmp_path, data):
    teacher = tiny_denoiser()
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    whole = distil(name, tmp_path / "whole", data, teacher=teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items())
    assert not torch.equal(outputs(teacher, whole[-1].network), outputs(teacher, teacher.network))
    with pytest.raises(KeyboardInterrupt):
        distil(name, tmp_path / "stopped", data, stop_at=2)
    # What is stored are adapters, their averages and moments, and no copy of the teacher's weights.
    stored = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    shapes = {value.shape for value in before.values() if value.ndim == 4 and value.numel() > 1000}
    assert shapes
    assert not [tensor.shape for tensor in tensors_of(stored) if tensor.shape in shapes]
    resumed = distil(name, tmp_path / "stopped", data)
    for one, two in zip(whole, resumed, strict=True):
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, two.network.state_dict()[key]), key


@with_8_bit
@pytest.mark.parametrize("name", ["boot", "sid"])
def test_moments_of_a_byte_resume_to_the_same_bits(name, tmp_path, data):
    training = {"optimiser": "adamw_8bit"}
    whole = distil(name, tmp_path / "whole", data, settings={"lora": None}, **training)
    with pytest.raises(KeyboardInterrupt):
        distil(name, tmp_path / "stopped", data, stop_at=2, settings={"lora": None}, **training)
    moments = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["optimiser"]["state"].values()
    firsts = [moment["__bnb_optimizer_quant_state__"]["state1"] for moment in moments]
    kinds = {(first.dtype, first.numel() >= 4096) for first in firsts}
    assert kinds == {(torch.uint8, True), (torch.float32, False)}
    resumed = distil(name, tmp_path / "stopped", data, settings={"lora": None}, **training)
    for key, value in whole[0].network.state_dict().items():
        assert torch.equal(value, resumed[0].network.state_dict()[key]), key


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shard": True}, "shard: found true with optimiser"),
        ({"channels_last": True}, "channels_last: found true with"),
    ],
)
def test_what_moments_of_a_byte_do_not_go_with(other, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(steps=1, optimiser="adamw_8bit", **other)


@with_peft
def test_frozen_weights_of_two_bytes(tmp_path):
    """Those of the teacher, which an adapted student shares; its adapters, and what is stored, are float32."""
    teacher = tiny_denoiser()
    teacher.network.to(torch.bfloat16)
    kinds = {
        ".lora_" in name: weight.dtype for name, weight in adapted(teacher.network, LoraSettings()).named_parameters()
    }
    assert kinds == {False: torch.bfloat16, True: torch.float32}
    students = distil("boot", tmp_path / "run", None, teacher=teacher)
    save_denoiser(tmp_path / "student", teacher.with_network(students[0].network), told_timestep=0.0)
    stored = load_denoiser(tmp_path / "student").network
    assert {weight.dtype for weight in stored.parameters()} == {torch.float32}
    torch.testing.assert_close(outputs(teacher, stored), outputs(teacher, students[0].network), rtol=0.05, atol=0.05)
    copied = distil("boot", tmp_path / "copied", None, teacher=teacher, settings={"lora": None})[0].network
    assert {weight.dtype for weight in copied.parameters()} == {torch.float32}


def test_a_large_state_is_stored_more_seldom(tmp_path, monkeypatch):
    """Storing takes a twentieth of the time at most."""
    network, stored = nn.Linear(1, 1), []
    clock = iter(range(10**6))
    monkeypatch.setattr("diffusion.training.loop.time.perf_counter", lambda: float(next(clock)))
    with TrainingRun(tmp_path / "run", "key", 0, CPU, checkpoint_seconds=1e-6) as run:
        save = run._save

        def slow(path, content):
            if path.name == "checkpoint.pt":
                stored.append(content["step"])
                for _ in range(10):
                    next(clock)
            save(path, content)

        monkeypatch.setattr(run, "_save", slow)
        run.fit("s", network, lambda _step: network.weight.square().sum(), TrainingSettings(steps=600, batch_size=1))
        first, *others = stored
        assert first == 1
        spent = float(next(clock))
    assert 1 < len(others) < 600
    assert len(stored) * 10 < 0.06 * spent


# -- stock pipelines ---------------------------------------------------------------------------------------------------

TEXTS = ["a red fox", "snow"]


@with_peft
@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux", "sana"])
def test_the_file_of_adapters_makes_the_teachers_pipeline_the_student(tmp_path, name):
    from diffusers import DiffusionPipeline

    folder = tiny_pipelines.write(tmp_path / "teacher", name)
    teacher = load_denoiser(folder)
    network = moved(student_network(teacher, lora=LoraSettings(rank=4, alpha=2)))
    Boot(Boot.Settings()).save(tmp_path / "student", network, teacher)
    drawn = []
    for source in ("teacher", "student"):
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / source, trust_remote_code=True)
        pipeline.set_progress_bar_config(disable=True)
        if source == "teacher":
            part = "unet" if hasattr(pipeline, "unet") else "transformer"
            plain = outputs_of(getattr(pipeline, part), teacher, folder)
            pipeline.load_lora_weights(tmp_path / "student")
        drawn.append(outputs_of(getattr(pipeline, part), teacher, folder))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)
    assert (drawn[0] - plain).abs().max() > 1e-3


def outputs_of(network, teacher, folder):
    told = teacher.family.encoded(encoding_pipeline(Path(folder), CPU), TEXTS, (16, 16))
    told["guidance"] = torch.full((2,), 3.5)
    noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return teacher.family.call(network.eval(), noise, torch.full((2,), 500.0), told)


@with_peft
def test_where_diffusers_loads_no_adapters_the_network_has_them(tmp_path):
    folder = tiny_pipelines.write(tmp_path / "teacher", "pixart-alpha")
    teacher = load_denoiser(folder)
    network = moved(student_network(teacher, lora=LoraSettings(rank=2)))
    Boot(Boot.Settings()).save(tmp_path / "student", network, teacher)
    assert not list((tmp_path / "student").glob("*.safetensors"))
    stored = load_denoiser(tmp_path / "student").network
    found, expected = (outputs_of(one, teacher, folder) for one in (stored, network))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# -- configuration -----------------------------------------------------------------------------------------------------


def refused_block(block):
    """What `check` says of the tiny experiment with a changed block of BOOT."""
    raw = yaml.safe_load(TINY.read_text())
    raw["methods"]["boot-euler"] |= block
    with pytest.raises(UserError) as refusal:
        parse_experiment(raw, look_at_files=False)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["to_q", "ff.net"]}, "methods.boot-euler.lora.targets: found ff.net, expected ends of names of"),
        ({"rank": 0}, "methods.boot-euler.lora.rank: found 0, expected at least 1"),
        (
            {"targets": "everything"},
            "methods.boot-euler.lora.targets: found 'everything', expected 'attention' or 'all'",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_anything_runs(lora, message):
    assert message in refused_block({"lora": lora})


def test_adapters_are_not_spread():
    found = refused_block({"lora": {}, "training": {"steps": 4, "batch_size": 8, "ema_decay": None, "shard": True}})
    assert "methods.boot-euler: lora: given with training.shard true, expected one of the two" in found


def test_a_range_of_scales_has_no_adapters():
    raw = yaml.safe_load((CONFIG / "digits-text.yaml").read_text())
    raw["methods"]["boot"] |= {"guidance_scale": [1.0, 4.0], "lora": {}}
    with pytest.raises(UserError, match=r"methods\.boot\.guidance_scale: .* expected a number with lora"):
        parse_experiment(raw, look_at_files=False)
