"""Teachers and students as `diffusers` folders."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_denoiser

from boot.distillation import Boot, BootSettings
from boot.pipeline import BootPipeline
from diffusion.data.samples import to_uint8
from diffusion.distillation.distiller import student_network
from diffusion.noise import initial_noise
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import DiscreteSchedule
from diffusion.solvers import ddim_sample, sampling_times
from diffusion.teachers.folder import deciding_files, load_denoiser, save_denoiser
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.schedulers import build_scheduler
from diffusion.teachers.stored_network import stored_network

NOISE = initial_noise(0, range(6), (1, 8, 8))


@pytest.fixture
def folder(tmp_path):
    save_denoiser(tmp_path / "teacher", tiny_denoiser())
    return tmp_path / "teacher"


def test_only_safetensors_and_json_are_written(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "edm", "flow"])
@pytest.mark.parametrize("clip", [True, False])
def test_round_trip(tmp_path, prediction_type, clip):
    denoiser = tiny_denoiser(prediction_type, clip=clip)
    save_denoiser(tmp_path / "teacher", denoiser)
    again = load_denoiser(tmp_path / "teacher")
    t = torch.linspace(0.001, 0.999, 6, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(again(NOISE, t), denoiser(NOISE, t))
    assert type(again.schedule) is type(denoiser.schedule)
    assert again.thresholding.kind == ("static" if clip else "none")


def test_an_edm_folder_without_our_own_file_is_read_from_its_scheduler(tmp_path):
    denoiser = tiny_denoiser("edm", clip=False)
    save_denoiser(tmp_path / "teacher", denoiser)
    (tmp_path / "teacher" / "schedule.json").unlink()
    again = load_denoiser(tmp_path / "teacher")
    assert again.schedule.settings() == denoiser.schedule.settings()
    with torch.no_grad():
        assert torch.equal(ddim_sample(again, NOISE, 3), ddim_sample(denoiser, NOISE, 3))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 7])
def test_a_stored_edm_teacher_samples_as_the_suite_does(tmp_path, steps, clip):
    denoiser = tiny_denoiser("edm", clip=clip)
    save_denoiser(tmp_path / "teacher", denoiser)
    pipeline = LocalPipeline.from_pretrained(tmp_path / "teacher")
    theirs = pipeline(latents=NOISE, num_inference_steps=steps, output_type="pt").images
    with torch.no_grad():
        assert torch.equal(theirs, ddim_sample(denoiser, NOISE, steps))
    assert pipeline(batch_size=2, num_inference_steps=3).images[0].size == (8, 8)


def test_edms_own_scheduler_steps_as_ddim_does(tmp_path):
    """Euler on dx/dσ, which `diffusers` does, is DDIM at α = 1."""
    denoiser = tiny_denoiser("edm", clip=False)
    scheduler, network = build_scheduler(denoiser), denoiser.network
    scheduler.set_timesteps(sigmas=(1 - sampling_times(denoiser.schedule, 5)))
    x = NOISE * scheduler.sigmas[0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        torch.testing.assert_close(x, ddim_sample(denoiser, NOISE, 5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_ddim_pipeline_reproduces_the_suites_samples(folder, steps):
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    # The pipeline draws its own noise; it is handed ours in that draw's place.
    import diffusers.pipelines.ddim.pipeline_ddim as module

    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: NOISE.clone()
    try:
        theirs = pipeline(
            batch_size=len(NOISE),
            num_inference_steps=steps,
            eta=0.0,
            use_clipped_model_output=True,
            output_type="np",
        ).images
    finally:
        module.randn_tensor = original
    with torch.no_grad():
        ours = ddim_sample(load_denoiser(folder), NOISE, steps)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-3 if steps > 8 else 2e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "edm", "flow"])
def test_boot_pipeline_draws_the_students_own_samples(tmp_path, prediction_type):
    teacher = tiny_denoiser(prediction_type)
    method = Boot(BootSettings())
    method.save(tmp_path / "student", tiny_denoiser(seed=1).network, teacher)
    sampler, _ = method.sampler(tmp_path / "student", 1, torch.device("cpu"))
    with torch.no_grad():
        expected = sampler(NOISE, None)
    pipeline = BootPipeline.from_pretrained(tmp_path / "student")
    images = pipeline(latents=NOISE, output_type="pt").images
    assert torch.equal(images, expected)
    assert torch.equal(pipeline(noise=NOISE, output_type="pt").images, expected)  # as it was called earlier
    pictures = pipeline(latents=NOISE).images
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pictures])[..., None], to_uint8(images))


def test_boot_pipeline_from_a_folder_as_the_readme_says(tmp_path):
    Boot(BootSettings()).save(tmp_path / "student", tiny_denoiser().network, tiny_denoiser())
    images = BootPipeline.from_pretrained(tmp_path / "student")(batch_size=3).images
    assert len(images) == 3
    assert images[0].size == (8, 8)
    one, two = (
        BootPipeline.from_pretrained(tmp_path / "student")(
            batch_size=2, generator=torch.Generator().manual_seed(1), output_type="np"
        ).images
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)


def test_a_foreign_diffusers_teacher_is_read_through_its_own_scheduler(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler

    network = tiny_denoiser().network
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "hub", safe_serialization=True)
    denoiser = load_denoiser(tmp_path / "hub")
    assert denoiser.prediction_type == "epsilon"
    assert isinstance(denoiser.schedule, DiscreteSchedule)
    np.testing.assert_allclose(denoiser.schedule.alphas_cumprod(), scheduler.alphas_cumprod, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVe"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "expected one of epsilon"),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_schedule": "exponential"},
            "expected 'karras'",
        ),
        ({"clip_sample_range": 2.0}, "clip_sample_range"),
        ({"prediction_type": "flow"}, "'flow'"),
        ({"trained_betas": None, "rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "zero terminal"),
    ],
)
def test_teachers_of_another_family_are_refused(folder, change, expected):
    (folder / "schedule.json").unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=expected):
        load_denoiser(folder)


def test_another_network_is_refused_while_the_configuration_is_read(folder):
    from diffusion.teachers.settings import StoredTeacher

    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "UNet1DModel"}))
    reads = (
        lambda: StoredTeacher(path=str(folder)).facts((1, 8, 8)),
        lambda: load_denoiser(folder),
        lambda: stored_network(folder),
    )
    for read in reads:
        with pytest.raises(UserError, match=r"unet/config\.json: found the network 'UNet1DModel' .*UNet2DModel"):
            read()
    del config["_class_name"]  # the Hub's oldest folders do not say
    path.write_text(json.dumps(config))
    for read in reads:
        read()


ENTRIES = ["boot.pipeline", "baselines.samplers", "evaluation.measure.features", "suite.__main__"]


@pytest.mark.parametrize("module", ENTRIES)
def test_every_entry_imports_in_a_fresh_interpreter(module):
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_students_have_no_dropout_and_start_as_the_teacher():
    teacher = tiny_denoiser()
    for module in teacher.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    student = student_network(teacher).train()
    assert all(parameter.requires_grad for parameter in student.parameters())
    found = {
        (name.split(".")[-1], module.p)
        for name, module in student_network(teacher, 0.2).named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert found == {("dropout", 0.2), ("1", 0.0)}, "of the residual blocks, not of attention's output"
    t = torch.tensor(10.0)
    with torch.no_grad():
        # Close, not equal: training mode takes other kernels, which add in another order.
        torch.testing.assert_close(student(NOISE, t).sample, teacher.network(NOISE, t).sample)


def weights_of(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_truncated_weights_are_refused(folder):
    weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_denoiser(folder)


def test_weights_of_another_network_are_refused(folder):
    save_file({"foreign": torch.zeros(3)}, weights_of(folder))
    with pytest.raises(CheckpointError, match="another network"):
        load_denoiser(folder)


def test_weights_with_nan_are_refused(folder):
    weights = load_file(weights_of(folder))
    name = next(iter(weights))
    weights[name] = weights[name] * float("nan")
    save_file(weights, weights_of(folder))
    with pytest.raises(CheckpointError, match="NaN"):
        load_denoiser(folder)


def test_a_pickle_is_not_read(folder):
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    weights_of(folder).unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_denoiser(folder)


def test_a_schedule_that_is_not_the_schedulers_is_refused(folder):
    path = folder / "schedule.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"t_max": 0.9}))
    with pytest.raises(UserError, match=r"schedule\.json"):
        load_denoiser(folder)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match="model_index"):
        load_denoiser(tmp_path)


def test_noise_depends_on_seed_and_index_alone():
    whole = initial_noise(7, range(10), (3, 4, 4))
    parts = torch.cat([initial_noise(7, range(3), (3, 4, 4)), initial_noise(7, range(3, 10), (3, 4, 4))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, initial_noise(8, range(10), (3, 4, 4)))
    many = initial_noise(0, range(2000), (1, 8, 8))
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(1, abs=0.02)


def test_copying_a_folder_keeps_it_whole(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    t = torch.tensor(0.5)
    with torch.no_grad():
        assert torch.equal(load_denoiser(folder)(NOISE, t), load_denoiser(tmp_path / "copy")(NOISE, t))


# -- teachers by name --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_layout(tmp_path):
    """A pipeline as the Hub's oldest ones are: no folder a part, and the attention's old names in the weights."""
    denoiser = tiny_denoiser("epsilon", clip=False)
    save_denoiser(tmp_path / "new", denoiser)
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(tmp_path / "new" / "model_index.json", old)
    shutil.copy(tmp_path / "new" / "unet" / "config.json", old)
    shutil.copy(tmp_path / "new" / "scheduler" / "scheduler_config.json", old)
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(tmp_path / "new" / "unet" / "diffusion_pytorch_model.safetensors").items():
        for today, then in before.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{then}.")
        weights[name] = tensor
    assert any(".query." in name for name in weights)
    save_file(weights, old / "diffusion_pytorch_model.safetensors")
    return old, denoiser


def test_the_hubs_oldest_layout_is_read(hub_layout):
    folder, denoiser = hub_layout
    found = load_denoiser(folder)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(found.network(x, 5.0).sample, denoiser.network(x, 5.0).sample)
    assert stored_network(folder).shape == (1, 8, 8)
    assert {file.name for file in deciding_files(folder)} == {
        "config.json", "scheduler_config.json", "model_index.json", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip


def test_a_teacher_by_the_name_of_a_hub_model(hub_layout, tmp_path, monkeypatch):
    """Only the small files are asked for while the experiment is read; the weights by the job."""
    from diffusion.teachers.settings import StoredTeacher
    from suite.jobs.teacher import Import

    folder, denoiser = hub_layout
    asked = []

    def snapshot(name, revision, allow_patterns, ignore_patterns=None):
        asked.append((name, revision, any("safetensors" in pattern for pattern in allow_patterns)))
        assert not any(pattern.endswith((".bin", ".pt", ".ckpt", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    teacher = StoredTeacher(path="google/ddpm-tiny", revision="abc")
    facts = teacher.facts((1, 8, 8))
    assert (facts.prediction_type, facts.shape) == ("epsilon", (1, 8, 8))
    teacher.check_images((1, 8, 8))
    with pytest.raises(ValueError, match=r"google/ddpm-tiny makes images of shape \(1, 8, 8\), but the data"):
        teacher.check_images((3, 32, 32))
    assert asked == [("google/ddpm-tiny", "abc", False)]
    Import(stored="google/ddpm-tiny", revision="abc", output=tmp_path / "t").run()
    assert asked[1:] == [("google/ddpm-tiny", "abc", True)]
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_denoiser(tmp_path / "t").network(x, 5.0).sample, denoiser.network(x, 5.0).sample)


def test_a_teacher_that_is_nowhere_is_refused_in_words(tmp_path, monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    from diffusion.teachers.settings import StoredTeacher

    with pytest.raises(UserError, match=r"teacher\.path: 'no such folder' is no folder .* and no name of a model"):
        StoredTeacher(path="no such folder").facts((1, 8, 8))
    with pytest.raises(UserError, match=r"'nobody/nothing': no folder of that name, not in the Hub's cache, and"):
        StoredTeacher(path="nobody/nothing").facts((1, 8, 8))  # the tests have no network

    def missing(*_args, **_options):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
    with pytest.raises(UserError, match=r"'nobody/nothing', revision 'x': .* the Hub has no such public model"):
        StoredTeacher(path="nobody/nothing", revision="x").facts((1, 8, 8))
