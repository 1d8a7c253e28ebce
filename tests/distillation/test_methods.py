"""The contract that every registered method keeps; a new method is found and tested by itself."""

import functools
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import methods
import pytest
import torch
from methods import METHODS, TRAINED, build, inputs_of
from tiny import SMALLEST, TEACHER, stored_data, tiny_conditional, tiny_denoiser, tiny_splits

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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """What a whole training of a method leaves, by its name; trained when it is first asked for."""

    @functools.cache
    def train(name):
        method, teacher, folder = build(name), tiny_denoiser(), tmp_path_factory.mktemp(name)
        before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
        given = inputs_of(method, folder, data, teacher)
        with TrainingRun(folder / "state", "key", 0, CPU) as run:
            students = method.distil(teacher, run, given)
        after = teacher.network.state_dict()
        return SimpleNamespace(students=students, run=run, teacher=(before, after))

    return train


def distil(method, folder, data, key="key", seed=0, stop_at=None, teacher=None):
    """:func:`methods.distil` from the tiny teacher."""
    return methods.distil(method, folder, data, teacher or tiny_denoiser(), key, seed, stop_at)


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
    method.check(TeacherSettings.model_validate(TEACHER).facts((1, 8, 8)))


@pytest.mark.parametrize("name", METHODS)
def test_unknown_keys_are_refused(name):
    kind = method_class(name)
    with pytest.raises(ValueError, match="nonsense"):
        kind.Settings.model_validate({"method": name, "nonsense": 1})


@pytest.mark.parametrize("name", TRAINED)
def test_training_resumes_to_the_same_bits(name, tmp_path, data, whole):
    method, students = build(name), whole(name).students
    with pytest.raises(KeyboardInterrupt):
        distil(method, tmp_path / "stopped", data, stop_at=2)
    resumed = distil(method, tmp_path / "stopped", data)
    assert [s.nfe for s in students] == [s.nfe for s in resumed] == list(method.students())
    for one, two in zip(students, resumed, strict=True):
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, two.network.state_dict()[key]), key
        assert one.cost["network_evaluations"] == two.cost["network_evaluations"] > 0
        assert (one.cost["real_images_seen"] > 0) == method.needs_data


@pytest.mark.parametrize("name", [name for name in TRAINED if method_class(name).needs_data])
def test_a_method_that_trains_on_images_flips_them_and_resumes_to_the_same_bits(name, tmp_path, data, whole):
    flipped = replace(data, flip=True)
    unstopped = distil(build(name), tmp_path / "unstopped", flipped)[-1].network
    with pytest.raises(KeyboardInterrupt):
        distil(build(name), tmp_path / "stopped", flipped, stop_at=2)
    resumed = distil(build(name), tmp_path / "stopped", flipped)[-1].network
    plain = whole(name).students[-1].network
    assert all(torch.equal(a, b) for a, b in zip(unstopped.parameters(), resumed.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(unstopped.parameters(), plain.parameters(), strict=True))


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
def test_another_seed_trains_another_student(name, tmp_path, data, whole):
    one, two = (
        students[-1].network for students in (whole(name).students, distil(build(name), tmp_path / "1", data, seed=1))
    )
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_the_teacher_is_left_alone(name, whole):
    before, after = whole(name).teacher
    assert all(torch.equal(before[key], value) for key, value in after.items())


@pytest.mark.parametrize("name", TRAINED)
def test_recomputed_activations_and_channels_last_train_the_same(name, tmp_path, data, whole):
    plain, method = whole(name), build(name, activation_checkpointing=True, channels_last=True)
    given = inputs_of(method, tmp_path, data, tiny_denoiser())
    with TrainingRun(tmp_path / "other", "key", 0, CPU) as run:
        students = method.distil(tiny_denoiser(), run, given)
    assert set(plain.run.arithmetic.values()) == {"float32"}
    assert set(run.arithmetic.values()) == {"float32, channels last, activations recomputed"}
    assert [row["loss"] for row in run.log] == pytest.approx([row["loss"] for row in plain.run.log], rel=1e-3)
    counts = [[s.cost["network_evaluations"] for s in found] for found in (students, plain.students)]
    assert counts[0] == counts[1]


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
        method, teacher = build(name, compile=mode, steps=2), tiny_denoiser(network=SMALLEST)
        given = inputs_of(method, tmp_path, data, teacher)
        with TrainingRun(tmp_path / mode, "key", 0, CPU) as run:
            students = method.distil(teacher, run, given)
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
def test_images_need_not_be_square(name, tmp_path):
    """Trained, stored, sampled, and made by the pipeline of the student's folder: 8 pixels high and 16 wide."""
    from diffusers import DDIMPipeline

    method, teacher = build(name), tiny_denoiser(size=(8, 16))
    assert teacher.shape == (1, 8, 16)
    data = stored_data(tmp_path / "data", tiny_splits(resolution=(8, 16)))
    folders = {nfe: tmp_path / f"nfe-{method.student_for(nfe)}" for nfe in method.evaluations()}
    if method.trains:
        for student in distil(method, tmp_path / "state", data, teacher=teacher):
            method.save(folders[student.nfe], student.network, teacher)
    else:
        for folder in set(folders.values()):
            method.save(folder, teacher.network, teacher)
    noise = initial_noise(0, range(3), (1, 8, 16))
    for nfe, folder in folders.items():
        sampler, _network = method.sampler(folder, nfe, CPU)
        with torch.inference_mode():
            samples = sampler(noise, None)
        assert samples.shape == (3, 1, 8, 16)
        assert torch.isfinite(samples).all()
    index = json.loads((folder / "model_index.json").read_text())
    loaded = (DDIMPipeline if index["_class_name"] == "DDIMPipeline" else LocalPipeline).from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded(batch_size=2, num_inference_steps=nfe).images[0].size == (16, 8)  # Pillow: width, height


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
