"""The contract that every registered method keeps; a new method is found and tested by itself."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import METHODS, TRAINED, build
from tiny import TEACHER, tiny_conditional, tiny_denoiser, tiny_splits

from diffusion.data.kinds import parse_settings
from diffusion.data.store import load_split, write_dataset
from diffusion.distillation.pairs import Pairs, generate_pairs
from diffusion.distillation.registry import method_class
from diffusion.guidance import Guidance, guided
from diffusion.noise import initial_noise
from diffusion.runtime.errors import DeviceMemoryError, UserError
from diffusion.teachers import pipeline as student_pipeline
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.settings import TeacherSettings
from diffusion.training.loop import TrainingRun

CPU = torch.device("cpu")
NOISE = initial_noise(0, range(5), (1, 8, 8))
# Compiling takes minutes a method: one stands for all, unless BOOT_TEST_COMPILE=1 asks for every one.
COMPILED = TRAINED if os.environ.get("BOOT_TEST_COMPILE") else ["progressive_distillation"]


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    return load_split(tmp_path / "data", "train")


def inputs_of(method, folder, data, teacher):
    """What the workflow gives the method to train on: the data set, an offline set, or nothing."""
    if method.pairs() is None:
        return data if method.needs_data else None
    stored = folder / "pairs"
    if not stored.exists():
        stored.mkdir(parents=True)
        with TrainingRun(folder / "pairs-state", "key", 0, CPU) as run:
            generate_pairs(method.pairs(), teacher, teacher.shape, run, stored)
    return Pairs(stored, teacher.conditions)


def distil(method, folder, data, key="key", seed=0, stop_at=None, teacher=None):
    """Trains the method's tiny students from the tiny teacher; may stop in the middle of a stage's step ``stop_at``."""
    teacher = teacher or tiny_denoiser()
    given = inputs_of(method, folder.parent, data, teacher)
    with TrainingRun(folder, key, seed, CPU, checkpoint_seconds=0) as run:
        if stop_at is not None:
            draw = run.generator

            def interrupt(stage, step, number=0):
                if step == stop_at:
                    raise KeyboardInterrupt
                return draw(stage, step, number)

            run.generator = interrupt
        return method.distil(teacher, run, given)


def test_the_registry_knows_the_methods_and_their_files():
    assert {"boot", "ddim", "progressive_distillation"} <= set(METHODS)
    assert {"ddpm", "dpm_solver_pp", "heun", "unipc"} <= set(METHODS)  # by the base TeacherSampler
    with pytest.raises(UserError, match=r"expected one of.*boot"):
        method_class("unknown")


@pytest.mark.parametrize("name", METHODS)
def test_settings_name_the_method_and_have_json(name):
    method = build(name)
    assert method.settings.method == name
    assert type(method.settings).model_validate_json(method.settings.model_dump_json()) == method.settings
    assert method.evaluations()
    method.check(TeacherSettings.model_validate(TEACHER).facts(channels=1, resolution=8))


@pytest.mark.parametrize("name", METHODS)
def test_unknown_keys_are_refused(name):
    kind = method_class(name)
    with pytest.raises(ValueError, match="nonsense"):
        kind.Settings.model_validate({"method": name, "nonsense": 1})


@pytest.mark.parametrize("name", TRAINED)
def test_training_resumes_to_the_same_bits(name, tmp_path, data):
    method = build(name)
    whole = distil(method, tmp_path / "whole", data)
    with pytest.raises(KeyboardInterrupt):
        distil(method, tmp_path / "stopped", data, stop_at=2)
    resumed = distil(method, tmp_path / "stopped", data)
    assert [s.nfe for s in whole] == [s.nfe for s in resumed] == list(method.students())
    for one, two in zip(whole, resumed, strict=True):
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, two.network.state_dict()[key]), key
        assert one.cost["network_evaluations"] == two.cost["network_evaluations"] > 0
        assert (one.cost["real_images_seen"] > 0) == method.needs_data


@pytest.mark.parametrize("name", [name for name in TRAINED if method_class(name).needs_data])
def test_a_method_that_trains_on_images_flips_them_and_resumes_to_the_same_bits(name, tmp_path, data):
    flipped = replace(data, flip=True)
    plain, whole = (distil(build(name), tmp_path / str(split.flip), split)[-1].network for split in (data, flipped))
    with pytest.raises(KeyboardInterrupt):
        distil(build(name), tmp_path / "stopped", flipped, stop_at=2)
    resumed = distil(build(name), tmp_path / "stopped", flipped)[-1].network
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_the_timed_steps_of_a_time_budget_leave_no_trace(name, tmp_path, data, monkeypatch):
    """Whatever a method changes while the first steps are timed is taken back: its result is that of so many steps."""

    def time_three(run, signals, stage, settings, take, began):
        for step in range(3):
            take(step, settings.model_copy(update={"steps": 10**9}))
        return 4

    monkeypatch.setattr("diffusion.training.loop.fitting_steps", time_three)
    brief = {"warmup_steps": 0, "ema_decay": None}  # for so few steps methods shorten their own defaults
    timed = distil(build(name, steps=None, minutes=1.0, **brief), tmp_path / "timed", data)
    method = build(name, steps=4, **brief)
    if name == "progressive_distillation":
        method.settings = method.settings.model_copy(update={"last_stages_factor": 1})
    for one, two in zip(timed, distil(method, tmp_path / "counted", data), strict=True):
        seconds = dict.fromkeys(("wall_clock_s", "cpu_s", "gpu_s"), 0)
        assert one.cost | seconds == two.cost | seconds
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, two.network.state_dict()[key]), key


@pytest.mark.parametrize("name", TRAINED)
def test_a_time_budget_in_place_of_steps_is_not_ended_by_the_methods_own_number(name):
    assert build(name, minutes=1.0).settings.training.steps == method_class(name).TINY["training"]["steps"]
    kind = method_class(name)
    alone = kind.Settings.model_validate({"method": name, "training": {"minutes": 1.0}})
    assert (alone.training.steps, alone.training.minutes) == (None, 1.0)


@pytest.mark.parametrize("name", TRAINED)
def test_another_seed_trains_another_student(name, tmp_path, data):
    one, two = (distil(build(name), tmp_path / str(seed), data, seed=seed)[-1].network for seed in (0, 1))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_the_teacher_is_left_alone(name, tmp_path, data):
    teacher = tiny_denoiser()
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    distil(build(name), tmp_path / "state", data, teacher=teacher)
    assert all(torch.equal(before[key], value) for key, value in teacher.network.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
def test_recomputed_activations_and_channels_last_train_the_same(name, tmp_path, data):
    found = {}
    for kind, options in (("plain", {}), ("other", {"activation_checkpointing": True, "channels_last": True})):
        method = build(name, **options)
        given = inputs_of(method, tmp_path, data, tiny_denoiser())
        with TrainingRun(tmp_path / kind, "key", 0, CPU) as run:
            students = method.distil(tiny_denoiser(), run, given)
        found[kind] = [row["loss"] for row in run.log], [s.cost["network_evaluations"] for s in students]
        assert set(run.arithmetic.values()) == {
            "float32" if kind == "plain" else "float32, channels last, activations recomputed"
        }
    assert found["other"][0] == pytest.approx(found["plain"][0], rel=1e-3)
    assert found["other"][1] == found["plain"][1]


class Crowded:
    """A hook of a network, and of its copies, that lets five pictures pass at once."""

    def __call__(self, _module, inputs):
        if len(inputs[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def __deepcopy__(self, _memo):
        return self


@pytest.mark.parametrize("name", TRAINED)
def test_a_batch_that_is_too_large_ends_with_one_that_fits(name, tmp_path, data):
    """The loss of every method can be computed of fewer pictures than its settings say."""
    method, teacher = build(name), tiny_denoiser()
    given = inputs_of(method, tmp_path, data, teacher)
    teacher.network.register_forward_pre_hook(Crowded())
    with (
        TrainingRun(tmp_path / "state", "key", 0, CPU) as run,
        pytest.raises(DeviceMemoryError, match=r"8 pictures at once .* found \d+, expected \d+,") as caught,
    ):
        method.distil(teacher, run, given)
    fitting = int(re.search(r"expected (\d+)", str(caught.value))[1])
    method = build(name, gradient_accumulation_steps=fitting)
    with TrainingRun(tmp_path / "other", "key", 0, CPU) as run:
        assert method.distil(teacher, run, given)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_training_has_the_same_losses_and_counts(name, tmp_path, data):
    found = {}
    for mode in ("off", "default"):
        method = build(name, compile=mode, steps=2)
        given = inputs_of(method, tmp_path, data, tiny_denoiser())
        with TrainingRun(tmp_path / mode, "key", 0, CPU) as run:
            students = method.distil(tiny_denoiser(), run, given)
        found[mode] = [row["loss"] for row in run.log], [s.cost["network_evaluations"] for s in students]
    assert found["default"][0] == pytest.approx(found["off"][0], rel=1e-3)
    assert len(found["off"][0]) >= 2
    assert found["default"][1] == found["off"][1]


@pytest.mark.parametrize("name", METHODS)
def test_samples_have_the_right_shape_at_the_promised_evaluations_and_are_deterministic(name, tmp_path):
    method, teacher = build(name), tiny_denoiser()
    method.save(tmp_path / "saved", tiny_denoiser(seed=3).network, teacher)
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    for nfe in method.evaluations():
        sampler, network = method.sampler(tmp_path / "saved", nfe, CPU)
        evaluated = []
        network.register_forward_pre_hook(lambda _m, inputs, evaluated=evaluated: evaluated.append(len(inputs[0])))
        with torch.inference_mode():
            pictures = sampler(NOISE, None)
            assert evaluated == [len(NOISE)] * nfe
            assert torch.equal(pictures, sampler(NOISE, None))
            # A picture does not depend on its neighbours in the batch.
            torch.testing.assert_close(pictures[:2], sampler(NOISE[:2], None), rtol=1e-3, atol=1e-4)
        assert pictures.shape == NOISE.shape
        assert torch.isfinite(pictures).all()


@pytest.mark.parametrize("name", METHODS)
def test_saved_folders_load_with_a_diffusers_pipeline(name, tmp_path):
    """The one that model_index.json names, with its code beside it where `diffusers` has none."""
    from diffusers import DDIMPipeline

    method, teacher = build(name), tiny_denoiser()
    for nfe in method.evaluations() if method.trains else method.evaluations()[:1]:
        folder = tmp_path / str(nfe)
        method.save(folder, teacher.network, teacher)
        index = json.loads((folder / "model_index.json").read_text())
        if index["_class_name"] == "DDIMPipeline":
            loaded = DDIMPipeline.from_pretrained(folder)
            loaded.set_progress_bar_config(disable=True)
            assert len(loaded(batch_size=2, num_inference_steps=2).images) == 2
            continue
        assert index["_class_name"] == ["pipeline", "StudentPipeline"]
        assert (folder / "pipeline.py").read_bytes() == Path(student_pipeline.__file__).read_bytes()
        loaded = LocalPipeline.from_pretrained(folder)
        assert len(loaded(batch_size=2).images) == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_guided_class_conditional_teacher_works_with_every_method(name, tmp_path, data):
    """The students take the class, not the guidance: exactly nfe evaluations, and other pictures for other classes."""
    teacher, guidance = tiny_conditional(num_classes=2), Guidance(2.0)
    method = build(name, guidance)
    folders = {nfe: tmp_path / f"nfe-{method.student_for(nfe)}" for nfe in method.evaluations()}
    if method.trains:
        for student in distil(method, tmp_path / "state", data, teacher=guided(teacher, guidance)):
            method.save(folders[student.nfe], student.network, teacher)
    else:
        for folder in set(folders.values()):
            method.save(folder, teacher.network, teacher)
    for nfe, folder in folders.items():
        assert load_conditions(folder) == teacher.conditions
        sampler, network = method.sampler(folder, nfe, CPU)
        counted = 0

        def count(_module, inputs):
            nonlocal counted
            counted += len(inputs[0])

        network.register_forward_pre_hook(count)
        with torch.inference_mode():
            one, other = (sampler(NOISE, {"class_labels": torch.full((len(NOISE),), label)}) for label in (0, 1))
        assert counted == 2 * nfe * len(NOISE)
        assert torch.isfinite(one).all()
        assert not torch.equal(one, other)
