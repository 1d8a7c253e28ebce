"""Teacher families: one file, found by itself, through which a network of another kind is read, called and told."""

import re

import pytest
import torch
from repository import ROOT

from diffusion.conditions import ClassLabels
from diffusion.guidance import Guidance, guided
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers import families
from diffusion.teachers.folder import load_denoiser, pipeline_problems, save_denoiser
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.stored_network import stored_network

DOCUMENT = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The family of docs/teachers.md, beside those of the suite."""
    (source,) = re.findall(r"```python\n(.*?class PixelTransformer.*?)```", DOCUMENT, re.S)
    (tmp_path / "pixel_transformer.py").write_text(source)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    families.families.cache_clear()
    yield families.families()["pixel_transformer"]
    families.families.cache_clear()


@pytest.fixture
def transformer(tmp_path):
    """A `diffusers` pipeline's folder with a small transformer of three classes."""
    from diffusers import DDPMScheduler, DiTTransformer2DModel
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    class Pipeline(DiffusionPipeline):
        def __init__(self, transformer, scheduler):
            super().__init__()
            self.register_modules(transformer=transformer, scheduler=scheduler)

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=3,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.1)
    Pipeline(network, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine", network


def test_without_its_family_a_network_is_refused_by_name(transformer):
    folder, _network = transformer
    (problem, *_) = pipeline_problems(folder)
    assert "found the network 'DiTTransformer2DModel' (_class_name), expected one of SiTTransformer, UNet2D" in problem


def test_the_documented_family_is_called_told_and_guided(documented, transformer):
    folder, network = transformer
    assert pipeline_problems(folder) == []
    assert stored_network(folder).shape == (1, 8, 8)
    denoiser = load_denoiser(folder)
    assert denoiser.conditions == ClassLabels(3, has_null=True)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9], dtype=torch.float64), torch.tensor([2, 0])
    timesteps = t * 1000 - 1
    with torch.no_grad():
        expected = network(x, timestep=timesteps.float(), class_labels=labels).sample[:, :1]  # without the variance
        assert torch.equal(denoiser.raw(x, t, {"class_labels": labels}), expected)
        noise = torch.randn(2, 1, 8, 8)
        alone = ddim_sample(guided(denoiser, Guidance(1.0)), noise, 4, {"class_labels": labels})
        both = ddim_sample(guided(denoiser, Guidance(3.0)), noise, 4, {"class_labels": labels})
    assert torch.isfinite(both).all()
    assert not torch.allclose(alone, both)


def test_a_teacher_of_the_documented_family_is_stored_and_read_again(documented, transformer, tmp_path):
    denoiser = load_denoiser(transformer[0])
    save_denoiser(tmp_path / "again", denoiser)
    again = load_denoiser(tmp_path / "again")
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64), torch.tensor([1, 1])
    assert torch.equal(again(x, t, {"class_labels": labels}), denoiser(x, t, {"class_labels": labels}))
    assert again.family is denoiser.family is documented


def test_a_student_of_the_documented_family_is_sampled_through_it(documented, transformer, tmp_path):
    teacher = load_denoiser(transformer[0])
    save_denoiser(tmp_path / "student", teacher, told_timestep=0.0)
    student = NoiseStudent(teacher.network, teacher.schedule, teacher.prediction_type, family=documented)
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([2, 1])
    with torch.no_grad():
        drawn = LocalPipeline.read(tmp_path / "student").drawn(noise, 1, {"class_labels": labels})
        torch.testing.assert_close(drawn, student.sample(noise, {"class_labels": labels}))
