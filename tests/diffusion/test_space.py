"""Latents: an autoencoder's scale and shift, its training, and folders that have one."""

import inspect
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_pipelines import deep_compression
from tiny_text import SHAPE

from boot.distillation import Boot
from diffusion.consistency import boundary_coefficients, consistency_function
from diffusion.data.batches import RealPictures
from diffusion.data.latents import make_latents, with_latents
from diffusion.data.samples import from_uint8
from diffusion.data.store import LATENTS, Shards, Split
from diffusion.denoiser import Denoiser
from diffusion.runtime.begun import BegunArray
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_sample
from diffusion.space import PIXELS
from diffusion.teachers import latents as spaces
from diffusion.teachers.autoencoder import (
    AutoencoderSettings,
    autoencoder_loss,
    build_autoencoder,
    train_autoencoder,
)
from diffusion.teachers.folder import deciding_files, load_denoiser, save_denoiser
from diffusion.teachers.latents import Latents, space_of
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.settings import StoredTeacher, TeacherSettings
from diffusion.thresholding import NO_THRESHOLD
from diffusion.training.loop import TrainingRun

from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline  # isort: skip
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # isort: skip

CPU = torch.device("cpu")
SMALL = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 3}
STEPS = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
LATENT = (3, 4, 8)


def stored(folder, **config):
    """An autoencoder of random weights as a pipeline's part."""
    torch.manual_seed(0)
    made = build_autoencoder(AutoencoderSettings.model_validate(SMALL | {"training": STEPS}), 1)
    made.register_to_config(**config)
    made.save_pretrained(folder / "vae")
    return made.eval()


def split_of(count=6, flip=False):
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE[1:], SHAPE[0]), np.uint8)
    return Split(Shards([images]), np.arange(count), tuple("abcdef"), "", "train", flip)


SCALES = {
    "Stable Diffusion": {"scaling_factor": 0.18215},
    "Stable Diffusion 3": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "a channel each": {"scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3], "latents_std": [2.0, 0.5, 1.0]},
}


@pytest.mark.parametrize("config", SCALES.values(), ids=SCALES.keys())
def test_shift_and_scale_are_read_as_the_stock_pipelines_read_them(tmp_path, config):
    autoencoder = stored(tmp_path, **config)
    space, images = space_of(tmp_path), torch.randn(2, *SHAPE)
    mean = autoencoder.encode(images).latent_dist.mean
    scaling, shift = config["scaling_factor"], config.get("shift_factor", 0)
    expected = (mean - shift) * scaling
    if "latents_mean" in config:  # StableDiffusionXLPipeline
        centre, deviation = (torch.tensor(config[f"latents_{name}"]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        expected = (mean - centre) * scaling / deviation
    states = space.encode(images)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(space.decode(states), autoencoder.decode(mean).sample, rtol=1e-4, atol=1e-5)
    assert space.image_shape(LATENT) == SHAPE
    assert space.state_shape(SHAPE) == LATENT


def test_portions_change_nothing(tmp_path, monkeypatch):
    stored(tmp_path)
    space, images = space_of(tmp_path), torch.randn(5, *SHAPE)
    whole = space.encode(images), space.decode(space.encode(images))
    monkeypatch.setattr(spaces, "_PIXELS_AT_ONCE", 2 * SHAPE[1] * SHAPE[2])
    torch.testing.assert_close((space.encode(images), space.decode(space.encode(images))), whole, rtol=1e-5, atol=1e-6)


def test_pixels_are_themselves(tmp_path):
    images = torch.randn(2, 3, 4, 4)
    assert space_of(tmp_path) is PIXELS
    assert PIXELS.decode(images) is PIXELS.encode(images) is images


def test_a_deep_compression_autoencoder(tmp_path):
    made = deep_compression()
    made.save_pretrained(tmp_path / "vae")
    space, images = space_of(tmp_path), torch.randn(1, 3, 8, 8)
    expected = made.encode(images).latent * 0.41407
    torch.testing.assert_close(space.encode(images), expected, rtol=1e-5, atol=1e-6)
    assert space.image_shape((4, 4, 4)) == (3, 8, 8)


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderDC])
def test_a_file_that_says_no_scale_has_that_of_its_class(tmp_path, kind):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": kind.__name__}))
    default = inspect.signature(kind).parameters["scaling_factor"].default
    assert float(space_of(tmp_path).scale) == default


def test_what_is_refused(tmp_path):
    stored(tmp_path, scaling_factor=None)
    with pytest.raises(UserError, match="scaling_factor"):
        space_of(tmp_path)
    file = tmp_path / "vae" / "config.json"
    file.write_text(file.read_text().replace("AutoencoderKL", "AutoencoderOobleck"))
    with pytest.raises(UserError, match="AutoencoderOobleck"):
        space_of(tmp_path)
    file.write_text(file.read_text().replace("AutoencoderOobleck", "AutoencoderKL").replace("null", "1.0"))
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no autoencoder can be read"):
        space_of(tmp_path).decode(torch.zeros(1, *LATENT))


def test_the_loss_is_squared_error_and_divergence():
    """KL(N(μ, σ²) ‖ N(0, 1)) by torch.distributions, of an autoencoder that is a line."""
    mean, deviation = torch.full((2, 3, 4, 4), 0.3), torch.full((2, 3, 4, 4), 0.7)
    posterior = DiagonalGaussianDistribution(torch.cat([mean, 2 * deviation.log()], dim=1))
    line = SimpleNamespace(
        encode=lambda _: SimpleNamespace(latent_dist=posterior), decode=lambda z: SimpleNamespace(sample=2 * z)
    )
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(0.3, 0.7), normal(0.0, 1.0))
    expected = (2 * (mean + deviation * noise) - x).square().mean() + 0.5 * divergence
    torch.testing.assert_close(autoencoder_loss(line, x, noise, 0.5), expected)


def test_trained_latents_have_unit_variance(tmp_path):
    settings = AutoencoderSettings.model_validate(SMALL | {"training": STEPS})
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        autoencoder, cost = train_autoencoder(settings, split_of(), run)
    autoencoder.save_pretrained(tmp_path / "vae")
    latents = space_of(tmp_path).encode(from_uint8(split_of().images[:]))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=1e-3, atol=0)
    assert cost["network_evaluations"] == cost["real_images_seen"] == 12


@pytest.mark.parametrize("flip", [False, True])
def test_stored_latents_are_drawn_in_the_place_of_images(tmp_path, flip):
    stored(tmp_path)
    space, split = space_of(tmp_path), split_of(flip=flip)
    latents = make_latents(split, space.encode, LATENT, BegunArray(tmp_path / "begun.npy"), 4, CPU)
    np.save(tmp_path / LATENTS, latents)
    images = from_uint8(split.images[:])
    both = torch.cat([images, images.flip(3)]) if flip else images
    given = with_latents(split, tmp_path)
    torch.testing.assert_close(
        torch.from_numpy(np.asarray(given.images)).float(), space.encode(both).permute(0, 2, 3, 1), rtol=0, atol=2e-3
    )
    assert given.shape == LATENT
    x, labels = RealPictures(given, CPU).draw(3, torch.Generator().manual_seed(0))
    assert x.shape == (3, *LATENT)
    assert x.dtype == torch.float32
    for one, label in zip(x, labels, strict=True):
        candidates = np.asarray(given.images)[given.labels == int(label)]
        assert any(np.array_equal(one.permute(1, 2, 0).numpy(), found.astype(np.float32)) for found in candidates)
    with pytest.raises(CheckpointError, match="of 5 images"):
        with_latents(replace(split, labels=np.arange(5)), tmp_path)


def latent_denoiser(folder):
    stored(folder, latents_mean=[0.1, -0.2, 0.3], latents_std=[2.0, 0.5, 1.0])
    torch.manual_seed(0)
    small = {"block_out_channels": [4, 8], "norm_num_groups": 2, "attention_head_dim": 4}
    network = build_network(NetworkSettings.model_validate(small), LATENT)
    space = Latents(folder / "vae")
    return Denoiser(network, CosineSchedule(num_timesteps=200), "v_prediction", NO_THRESHOLD, space=space).eval()


def test_a_folder_carries_the_autoencoder_and_draws_images_without_this_suite(tmp_path):
    (tmp_path / "source").mkdir()
    denoiser = latent_denoiser(tmp_path / "source")
    save_denoiser(tmp_path / "saved", denoiser)
    loaded, noise = load_denoiser(tmp_path / "saved"), torch.randn(2, *LATENT)
    assert loaded.space.is_latent
    assert loaded.with_network(loaded.network).space is loaded.space
    expected = loaded.space.decode(ddim_sample(denoiser, noise, 4))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    given = {"latents": noise, "num_inference_steps": 4}
    torch.testing.assert_close(pipeline(**given, output_type="pt").images, expected, rtol=1e-4, atol=1e-5)
    assert pipeline(**given).images[0].size == (16, 8)
    own = LocalPipeline.read(tmp_path / "saved")
    torch.testing.assert_close(own(**given, output_type="pt").images, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own(**given, output_type="latent").images, ddim_sample(denoiser, noise, 4))
    weights = tmp_path / "saved" / "vae" / "diffusion_pytorch_model.safetensors"
    assert weights in deciding_files(tmp_path / "saved")


def test_a_stored_teacher_makes_images_of_the_decoded_size(tmp_path):
    (tmp_path / "source").mkdir()
    save_denoiser(tmp_path / "saved", latent_denoiser(tmp_path / "source"))
    teacher = StoredTeacher(path=str(tmp_path / "saved"))
    teacher.check_images(SHAPE)
    facts = teacher.facts(SHAPE)
    assert (facts.shape, facts.is_latent) == (LATENT, True)
    with pytest.raises(ValueError, match="makes images of shape"):
        teacher.check_images(LATENT)


def teacher_settings(**changes):
    return TeacherSettings.model_validate(
        {"training": STEPS, "autoencoder": SMALL | {"training": STEPS}, "network": {"block_out_channels": [32, 64]}}
        | changes
    )


def test_latents_are_not_bounded_and_not_compared_by_lpips():
    settings = teacher_settings()
    assert settings.thresholding == NO_THRESHOLD
    facts = settings.facts(SHAPE)
    assert (facts.shape, facts.is_latent) == (LATENT, True)
    with pytest.raises(ValueError, match="latents have no bounds"):
        teacher_settings(thresholding={"kind": "static"})
    with pytest.raises(ValueError, match="states are latents"):
        Boot(Boot.Settings.model_validate(Boot.TINY | {"distance": "lpips", "lpips": {"backbone": "vgg"}})).check(facts)
    settings.check_images(SHAPE)
    with pytest.raises(ValueError, match="multiples of 2; found 7"):
        settings.check_images((1, 7, 16))


def test_a_consistency_student_of_latents_takes_their_deviation(tmp_path):
    """The boundary's σ_d is 1, in training and in both pipelines; of images it stays 0.5."""
    (tmp_path / "source").mkdir()
    denoiser = latent_denoiser(tmp_path / "source")
    save_denoiser(tmp_path / "saved", denoiser, levels={"timesteps": [0, 60, 120, 190], "sampling": None})
    noise, schedule = torch.randn(2, *LATENT), denoiser.schedule
    at = schedule.at(schedule.time(torch.tensor(190.0, dtype=torch.float64)))
    with torch.no_grad():
        expected = consistency_function(denoiser, at.sigma * noise, at)
    a, r = boundary_coefficients(schedule, at, 1.0)
    tau = float(at.sigma.value / at.alpha.value)
    assert float(a.value) == pytest.approx(0.0, abs=0.1)
    assert float(boundary_coefficients(schedule, at)[0].value) != float(a.value)
    assert 0 < float(r.value) < 1 < tau
    own = LocalPipeline.read(tmp_path / "saved")
    torch.testing.assert_close(own.drawn(noise, 1), expected, rtol=1e-4, atol=1e-4)
    stock = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    drawn = stock(latents=noise, num_inference_steps=1, output_type="latent").images
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
