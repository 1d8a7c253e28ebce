"""Guidance scales that are drawn from a range, and students that are told them."""

import pytest
import torch
import yaml
from repository import CONFIG
from tiny import stored_data, tiny_conditional, tiny_splits
from tiny_text import SHAPE, TEXTS, tiny_prompts, tiny_text_denoiser

from baselines.progressive_distillation import ProgressiveDistillation, ProgressiveSettings
from boot.distillation import Boot, BootSettings
from boot.trajectory import load_student
from diffusion.distillation.distiller import student_network
from diffusion.guidance import Guidance, guided
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from diffusion.training.loop import TrainingRun
from suite.configuration.experiment import parse_experiment

NOISE = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.8, 0.9], dtype=torch.float64)
SCALES = torch.tensor([0.0, 1.0, 2.5, 4.0])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("prompts"), indices=(0, 1, 2))


@pytest.fixture(scope="module")
def denoiser(prompts):
    return tiny_text_denoiser(prompts)


def condition(prompts, scales=SCALES):
    return {**prompts.of_samples(range(4), "cpu"), "guidance": scales}


def test_a_scale_of_each_image_is_a_loop_over_scalars(denoiser, prompts):
    """At w = 1 it is the conditional teacher, and at w = 0 the unconditional one, bit for bit."""
    told = condition(prompts)
    teacher = guided(denoiser, Guidance((0.0, 4.0)))
    with torch.no_grad():
        estimates, outputs = teacher(NOISE, T, told), teacher.raw(NOISE, T, told)
        for number, scale in enumerate(SCALES.tolist()):
            one = guided(denoiser, Guidance(scale))
            # Of the whole batch: sums over another batch have other rounding.
            assert torch.equal(estimates[number], one(NOISE, T, told)[number]) or scale == 1
            assert torch.equal(outputs[number], one.raw(NOISE, T, told)[number]) or scale == 1
        both = {name: torch.cat([value, prompts.without(told)[name]]) for name, value in told.items()}
        conditional, unconditional = denoiser(torch.cat([NOISE, NOISE]), torch.cat([T, T]), both).chunk(2)
    assert torch.equal(estimates[1], conditional[1])
    assert torch.equal(estimates[0], unconditional[0])
    assert not torch.equal(estimates[2], conditional[2])
    assert teacher.evaluations == Guidance((0.0, 4.0)).evaluations == 2


def test_scales_are_uniform_in_the_range_and_drawn_of_the_generator_alone(prompts):
    drawn = [
        Guidance((1.0, 5.0)).told(prompts.draw(4000, generator), generator)["guidance"]
        for generator in (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    ]
    share = ((drawn[0] - 1) / 4).sort().values
    torch.testing.assert_close(share, torch.linspace(0, 1, 4000), rtol=0, atol=0.03)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    generator = torch.Generator().manual_seed(0)
    told, before = prompts.of_samples(range(4), "cpu"), generator.get_state()
    assert Guidance(2.0).told(told, generator) is told
    assert torch.equal(generator.get_state(), before)


def test_the_student_starts_as_the_teacher_whatever_it_is_told(denoiser, prompts):
    network = student_network(guided(denoiser, Guidance((0.0, 4.0))))
    student = denoiser.with_network(network)
    told = condition(prompts)
    with torch.no_grad():
        assert torch.equal(student(NOISE, T, told), denoiser(NOISE, T, told))
        network.time_embedding.cond_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
        moved = student(NOISE, T, told)
        assert not torch.allclose(moved, student(NOISE, T, condition(prompts, SCALES + 0.5)), atol=1e-4)
    assert network.config.time_cond_proj_dim == 256
    assert all(weight.requires_grad for weight in network.parameters())
    assert not denoiser.network.config.time_cond_proj_dim


def test_a_scale_is_embedded_as_in_the_pipelines_of_diffusers(denoiser, prompts):
    from diffusers import StableDiffusionPipeline

    network, seen = student_network(guided(denoiser, Guidance((0.0, 4.0)))), []
    network.register_forward_pre_hook(lambda _, _x, named: seen.append(named["timestep_cond"]), with_kwargs=True)
    denoiser.with_network(network)(NOISE, T, condition(prompts))
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(None, SCALES - 1, 256)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=2e-3)  # of angles up to 3000, in float32


def trained(method, teacher, folder, data=None):
    with TrainingRun(folder, "key", 0, CPU) as run:
        return method.distil(teacher, run, data)


def test_boot_learns_the_scale_and_its_folder_draws_with_any_of_the_range(denoiser, prompts, tmp_path):
    training = {"steps": 4, "batch_size": 8, "learning_rate": 3e-2, "warmup_steps": 0, "ema_decay": None}
    settings = BootSettings.model_validate({"method": "boot", "guidance_scale": [1.0, 4.0], "training": training})
    method = Boot(settings, Guidance(2.0))
    assert (method.guidance, method.sampled_at) == (Guidance((1.0, 4.0)), 2.0)
    (student,) = trained(method, guided(denoiser, method.guidance), tmp_path / "state")
    assert student.network.time_embedding.cond_proj.weight.abs().max() > 1e-3
    folder = tmp_path / "nfe-1"
    method.save(folder, student.network, denoiser)
    assert read_json(folder / "model_index.json")["guidance_range"] == [1.0, 4.0]
    assert read_json(folder / "unet" / "config.json")["time_cond_proj_dim"] == 256

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    told = prompts.of_samples(range(3), "cpu")
    found = {}
    for scale in (1.0, 2.0, 4.0):
        sampler, network = Boot(settings, Guidance(scale)).sampler(folder, 1, CPU)
        calls = []
        network.register_forward_pre_hook(lambda _module, arguments, calls=calls: calls.append(len(arguments[0])))
        with torch.inference_mode():
            found[scale] = sampler(NOISE[:3], told)
            read = load_student(folder, scale=scale).sample(NOISE[:3], told)
        assert calls == [3]
        assert torch.equal(read, found[scale])
        given = {"num_inference_steps": 1, "latents": NOISE[:3], "output_type": "pt"}
        images = pipeline(list(TEXTS), guidance_scale=scale, **given).images
        torch.testing.assert_close(images, found[scale], rtol=0, atol=2e-5)
    assert not torch.allclose(found[1.0], found[4.0], atol=1e-3)
    for outside in (0.5, 4.5):
        with pytest.raises(ValueError, match=rf"guidance_scale: found {outside}, expected 1\.0 to 4\.0"):
            pipeline(list(TEXTS), guidance_scale=outside, num_inference_steps=1)


def test_every_progressive_student_is_told_the_scale(denoiser, prompts, tmp_path):
    raw = {"start_steps": 4, "guidance_scale": [1.0, 4.0]}
    raw["training"] = {"steps": 6, "batch_size": 8, "learning_rate": 3e-2}
    method = ProgressiveDistillation(ProgressiveSettings.model_validate(raw), Guidance(2.0))
    data = stored_data(tmp_path / "data", tiny_splits(resolution=(8, 16)))
    students = trained(method, guided(denoiser, method.guidance), tmp_path / "state", data)
    assert [student.nfe for student in students] == [2, 1]
    # Two estimates of the teacher: the first is guided, and the second embeds the scale. A stage has twice six steps.
    assert students[-1].cost["network_evaluations"] == 12 * 8 * (1 + 4) + 12 * 8 * (1 + 2)
    told = prompts.of_samples(range(4), "cpu")
    for student in students:
        folder = tmp_path / f"nfe-{student.nfe}"
        method.save(folder, student.network, denoiser)
        drawn = []
        for scale in (1.0, 4.0):
            sampler, _ = ProgressiveDistillation(method.settings, Guidance(scale)).sampler(folder, student.nfe, CPU)
            with torch.inference_mode():
                drawn.append(sampler(NOISE, told))
        assert not torch.allclose(*drawn, atol=1e-3)


def test_a_network_without_the_input_is_refused():
    with pytest.raises(ValueError, match="UNet2DModel has no input for a scale"):
        student_network(guided(tiny_conditional(), Guidance((1.0, 2.0))))


@pytest.mark.parametrize(
    ("file", "variant", "value", "message"),
    [
        ("digits-text", "boot", [1.0, 4.0], None),
        ("digits-text", "progressive", [0.0, 2.0], None),
        ("digits-text", "sid", [1.0, 4.0], r"expected a number: SiD.* has no student that is told a scale"),
        ("digits-text", "ddim", [1.0, 4.0], r"expected a number: DDIM has no student"),
        ("digits-text", "boot", [3.0, 4.0], r"expected a range with the teacher's 2\.0, at which samples"),
        ("digits-text", "boot", [4.0, 1.0], r"methods\.boot\.guidance_scale: found \[4\.0, 1\.0\], expected \[low"),
        ("digits-text", "boot", -1.0, r"^methods\.boot\.guidance_scale: found -1\.0, expected at least 0"),
        ("digits-text", "boot", [-1.0, 3.0], r"methods\.boot\.guidance_scale\.0: found -1\.0, expected at least 0"),
        ("digits-conditional", "boot", [0.5, 4.0], r"expected a number: the teacher.s network has no input"),
    ],
)
def test_ranges_that_no_student_can_learn_are_refused(file, variant, value, message):
    raw = yaml.safe_load((CONFIG / f"{file}.yaml").read_text())
    raw["methods"][variant]["guidance_scale"] = value
    raw.pop("ablation", None)
    if message is None:
        assert parse_experiment(raw, look_at_files=False).methods[variant].guidance.scale == tuple(value)
        return
    with pytest.raises(UserError, match=message):
        parse_experiment(raw, look_at_files=False)
