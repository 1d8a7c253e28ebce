"""Families of stock pipelines: each network is called, and each text read, as its own pipeline does."""

import copy
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch
from huggingface_hub.errors import GatedRepoError

from baselines.consistency_distillation import ConsistencyDistillation
from boot.distillation import Boot
from boot.trajectory import load_student
from diffusion.denoiser import Denoiser
from diffusion.distillation.distiller import student_network
from diffusion.guidance import Guidance, GuidedDenoiser, guided
from diffusion.runtime.errors import UserError
from diffusion.schedule import DiscreteSchedule, FlowSchedule
from diffusion.solvers import ddim_sample
from diffusion.teachers.families import families
from diffusion.teachers.families.flux import packed_latents, unpacked_latents
from diffusion.teachers.folder import import_teacher, load_denoiser, load_schedule, sampling_facts, save_denoiser
from diffusion.teachers.hub import model_folder
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.schedulers import alphas_cumprod_of, schedule_of
from diffusion.teachers.settings import StoredTeacher
from diffusion.teachers.stock import encoding_pipeline
from diffusion.thresholding import NO_THRESHOLD

from diffusers import DiffusionPipeline, FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler  # isort: skip
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift  # isort: skip

TEXTS = ["a red fox", "snow"]
FAMILIES = {
    "stable-diffusion": "stable_diffusion",
    "stable-diffusion-xl": "stable_diffusion_xl",
    "deepfloyd-if": "deepfloyd_if",
    "pixart-alpha": "pixart",
    "pixart-sigma": "pixart",
    "stable-diffusion-3": "stable_diffusion_3",
    "sana": "sana",
    "flux": "flux",
}
SIZE = {"height": 16, "width": 16}
# What a pipeline calls otherwise.
OWN = {"deepfloyd-if": {"height": 8, "width": 8}, "pixart-alpha": SIZE | {"use_resolution_binning": False}}
OWN |= {"pixart-sigma": OWN["pixart-alpha"], "sana": {"height": 32, "width": 32, "use_resolution_binning": False}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name to the folder of a tiny pipeline, made when it is asked for."""
    made = {}

    def folder(name, **options):
        if (name, *options.values()) not in made:
            made[name, *options.values()] = tiny_pipelines.write(tmp_path_factory.mktemp(name), name, **options)
        return made[name, *options.values()]

    return folder


def part(pipeline):
    return getattr(pipeline, "unet", None) or pipeline.transformer


@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_is_called_as_its_pipeline_calls_it(folders, name):
    """Every tensor that the pipeline's own network gets and gives in two guided steps, against the family's."""
    folder, family = folders(name), families()[FAMILIES[name]]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ in family.pipelines
    calls = []
    network = part(pipeline)
    hook = network.register_forward_hook(
        lambda _, arguments, named, output: calls.append((arguments, named, output[0])), with_kwargs=True
    )
    options = OWN.get(name, SIZE) | ({"true_cfg_scale": 2.0} if name == "flux" else {})
    pipeline(TEXTS, negative_prompt=["ice", "ice"], num_inference_steps=2, guidance_scale=3.0, **options)
    hook.remove()
    encoding = encoding_pipeline(folder, torch.device("cpu"))
    told, negative = (
        family.encoded(encoding, TEXTS, (16, 16)),
        family.negative(encoding, "ice", (16, 16)),
    )
    negative = {key: value.expand(2, *value.shape[1:]) for key, value in negative.items()}
    if name == "flux":
        told, negative = ({**given, "guidance": torch.full((2,), 3.0)} for given in (told, negative))
        conditions = [told, negative]  # two calls a step
    else:
        conditions = [{key: torch.cat([negative[key], told[key]]) for key in told}]
    assert len(calls) == 2 * len(conditions)
    for number, (arguments, named, output) in enumerate(calls):
        fed = arguments[0] if arguments else named["hidden_states"]
        time = pipeline.scheduler.timesteps[number // len(conditions)].float().expand(len(fed))
        expected = output
        if name == "flux":
            fed, expected = unpacked_latents(fed, 4, 4), unpacked_latents(output, 4, 4)
        with torch.no_grad():
            found = family.call(network, fed, time, conditions[number % len(conditions)])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected[:, : fed.shape[1]], rtol=1e-5, atol=1e-6)


def test_dit_is_called_as_its_pipeline_calls_it(folders):
    folder, family = folders("dit"), families()["dit"]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    hook = pipeline.transformer.register_forward_hook(
        lambda _, arguments, output: calls.append((arguments[0], output.sample))
    )
    # The pipeline's label for no class is 1000; this network's is 10.
    with torch.no_grad():
        pipeline(class_labels=[3, 4], num_inference_steps=2, guidance_scale=1.0)
        hook.remove()
        fed, expected = calls[0]
        conditions = family.conditions(pipeline.transformer.config)
        condition = conditions.of_labels(torch.tensor([3, 4]))
        time = pipeline.scheduler.timesteps[0].expand(2)
        found = family.call(pipeline.transformer, fed, time, condition)
        torch.testing.assert_close(found, expected[:, :4], rtol=1e-5, atol=1e-6)
        assert conditions.without(condition)["class_labels"].tolist() == [10, 10]


def test_the_empty_text_of_sdxl_is_zeros(folders):
    pipeline, family = (
        encoding_pipeline(folders("stable-diffusion-xl"), torch.device("cpu")),
        families()["stable_diffusion_xl"],
    )
    none, other = (family.negative(pipeline, text, (16, 16)) for text in ("", "ice"))
    assert not none["text"].any()
    assert not none["pooled"].any()
    assert other["text"].any()
    assert none["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]]


def guided_teacher(folder, name, schedule, prediction_type, scale):
    """The family's denoiser under guidance, with the texts as its condition."""
    family = families()[FAMILIES[name]]
    pipeline, encoding = DiffusionPipeline.from_pretrained(folder), encoding_pipeline(folder, torch.device("cpu"))
    told, none = family.encoded(encoding, TEXTS, (16, 16)), family.negative(encoding, "", (16, 16))

    class Given:
        can_be_guided = True

        @staticmethod
        def without(condition):
            return {key: value.expand_as(condition[key]) for key, value in none.items()}

    denoiser = Denoiser(part(pipeline), schedule, prediction_type, NO_THRESHOLD, Given(), family)
    return GuidedDenoiser(denoiser, scale).eval(), told, pipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_stable_diffusion_is_sampled_as_its_pipeline_samples_it(folders, prediction_type):
    folder = folders("stable-diffusion", prediction_type=prediction_type)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    schedule = DiscreteSchedule(alphas_cumprod_of(pipeline.scheduler))
    teacher, told, pipeline = guided_teacher(folder, "stable-diffusion", schedule, prediction_type, 7.5)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = pipeline(TEXTS, latents=noise, num_inference_steps=4, guidance_scale=7.5, output_type="latent").images
    with torch.no_grad():
        found = ddim_sample(teacher, noise, 4, told)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_stable_diffusion_3_is_sampled_as_its_pipeline_samples_it(folders):
    """With trailing σ given: the pipeline's own grid shifts twice."""
    folder = folders("stable-diffusion-3")
    teacher, told, pipeline = guided_teacher(folder, "stable-diffusion-3", FlowSchedule(3.0, 1000), "flow", 7.0)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 1 / 4, 4).tolist()
    options = {"num_inference_steps": 4, "guidance_scale": 7.0, "output_type": "latent", **SIZE}
    expected = pipeline(TEXTS, latents=noise, sigmas=sigmas, **options).images
    with torch.no_grad():
        found = ddim_sample(teacher, noise, 4, told)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_packing_is_the_pipelines_and_comes_back():
    x = torch.randn(2, 4, 6, 8)
    packed = packed_latents(x)
    assert torch.equal(packed, FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpacked_latents(packed, 3, 4), x)


# -- students ----------------------------------------------------------------------------------------------------------

# Whether the folder needs code of its own: a scheduler that `diffusers` has not.
STUDENTS = {
    "stable-diffusion": True,
    "stable-diffusion-v": False,
    "stable-diffusion-xl": True,
    "deepfloyd-if": True,
    "pixart-alpha": True,
    "stable-diffusion-3": False,
    "flux": False,
    "sana": False,
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_a_stock_pipeline_and_draws_what_the_suite_draws(folders, tmp_path, name):
    """BOOT's student, one step, through `diffusers` and through the suite: the same latents from the same noise."""
    stock = name.removesuffix("-v")
    folder = folders(stock, prediction_type="v_prediction") if name.endswith("-v") else folders(stock)
    teacher = load_denoiser(folder)
    perturbed = copy.deepcopy(teacher.network)
    torch.manual_seed(1)
    for weight in perturbed.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    Boot(Boot.Settings()).save(tmp_path / "student", perturbed, teacher)
    own_code = STUDENTS[name]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=own_code)
    pipeline.set_progress_bar_config(disable=True)
    options = OWN.get(stock, SIZE)
    state = (teacher.network.config.in_channels, *([16, 16] if stock == "sana" else [8, 8]))
    encoding = encoding_pipeline(folder, torch.device("cpu"))
    told = teacher.family.encoded(encoding, TEXTS, (16, 16))
    given = {"num_inference_steps": 1, "output_type": "latent"}
    if stock == "deepfloyd-if":
        noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        drawn = pipeline(TEXTS, generator=torch.Generator().manual_seed(0), num_inference_steps=1, guidance_scale=1.0,
                         output_type="pt", **options).images  # fmt: skip
    elif stock == "flux":
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        told["guidance"] = torch.full((2,), 3.5)
        packed = pipeline(TEXTS, latents=packed_latents(noise), guidance_scale=3.5, **options, **given).images
        drawn = unpacked_latents(packed, 4, 4)
    else:
        noise = torch.randn(2, *state, generator=torch.Generator().manual_seed(0))
        drawn = pipeline(TEXTS, latents=noise, guidance_scale=1.0, **options, **given).images
    own = LocalPipeline.read(tmp_path / "student")
    with torch.no_grad():
        expected = own.drawn(noise, 1, told)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    if stock in ("stable-diffusion-3", "sana"):  # the other scheduler that is exact; FLUX's pipeline tells it more
        pipeline.scheduler = FlowMapEulerDiscreteScheduler(num_train_timesteps=1)
        again = pipeline(TEXTS, latents=noise, guidance_scale=1.0, **options, **given).images
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    # What was not trained is the teacher's, and is on the disk once.
    linked = next(file for file in (folder / "text_encoder").glob("*.safetensors"))
    assert (tmp_path / "student" / "text_encoder" / linked.name).stat().st_ino == linked.stat().st_ino
    with pytest.raises(UserError, match="a distilled student"):
        StoredTeacher(path=str(tmp_path / "student")).facts((3, 16, 16))
    if own_code:
        with pytest.raises(ValueError, match="num_inference_steps: found 2"):
            pipeline.scheduler.set_timesteps(2)


@pytest.mark.parametrize("scale", [3.5, (2.0, 5.0)])
def test_a_network_that_embeds_its_scale_is_told_it_and_so_is_its_student(folders, tmp_path, scale):
    """FLUX "dev": one evaluation, w as it is and not w − 1, of one number or of each image's own."""
    folder, given = folders("flux"), torch.tensor([3.5, 2.5])
    stored = load_denoiser(folder)
    method = Boot(Boot.Settings.model_validate({"guidance_scale": scale}), Guidance(3.5, embedded=True))
    teacher = guided(stored, method.guidance)
    told = teacher.family.encoded(encoding_pipeline(folder, torch.device("cpu")), TEXTS, (16, 16))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    drawn = isinstance(scale, tuple)
    condition, expected = (told | {"guidance": given}, given) if drawn else (told, torch.full((2,), 3.5))
    seen = []
    hook = stored.network.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named["guidance"]), with_kwargs=True
    )
    with torch.no_grad():
        found = teacher(x, t, condition)
        assert torch.equal(found, stored(x, t, told | {"guidance": expected}))
        assert not torch.allclose(found, stored(x, t, told | {"guidance": torch.ones(2)}), atol=1e-4)
    hook.remove()
    assert len(seen) == 3
    assert torch.equal(seen[0], expected)
    student = method.student(student_network(teacher), teacher)
    with torch.no_grad():
        sample = student.sample(x, condition)
    method.save(tmp_path / "student", student.network, teacher)
    assert sampling_facts(tmp_path / "student")["guidance_range"] == (list(scale) if drawn else [3.5, 3.5])
    sampler, _network = method.sampler(tmp_path / "student", 1, torch.device("cpu"))
    with torch.no_grad():
        by_suite = sampler(x, told)  # at the teacher's 3.5
        read = load_student(tmp_path / "student", scale=3.5).sample(x, told)
    torch.testing.assert_close(by_suite[0], sample[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(read, by_suite, rtol=1e-5, atol=1e-6)
    assert torch.allclose(by_suite[1], sample[1], rtol=1e-5, atol=1e-6) == (not drawn)


def test_a_network_without_that_input_takes_no_range(folders):
    """FLUX "schnell"."""
    teacher = load_denoiser(folders("flux", guidance_embeds=False))
    assert not teacher.family.embeds_scale(teacher.network.config)
    with pytest.raises(ValueError, match="FluxTransformer2DModel has no input for a scale"):
        teacher.family.embedding_guidance(teacher.network)


def test_a_latent_consistency_model_is_a_stock_pipeline_that_is_told_its_scale(folders, tmp_path):
    """Guided by a range of scales, stored, and drawn by `diffusers` alone, whose w' is w − 1."""
    folder = folders("stable-diffusion")
    teacher = load_denoiser(folder)
    settings = ConsistencyDistillation.Settings.model_validate(
        {"boundary": "lcm", "spacing": "time", "num_levels": 51, "sigma_max": 1e9, "solver": "ddim",
         "distance": "huber", "guidance_scale": [4.0, 14.0]}
    )  # fmt: skip
    method = ConsistencyDistillation(settings, Guidance(7.5))
    network = student_network(guided(teacher, method.guidance))
    torch.manual_seed(1)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    method.save(tmp_path / "student", network, teacher)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    told = teacher.family.encoded(encoding_pipeline(folder, torch.device("cpu")), TEXTS, (16, 16))
    own = LocalPipeline.read(tmp_path / "student")
    given = {"latents": noise, "num_inference_steps": 1, "output_type": "latent"}
    found = {}
    for scale in (4.0, 9.0):
        # Its w is the scale less one, and it evaluates once, being told.
        found[scale] = pipeline(TEXTS, guidance_scale=scale, **SIZE, **given).images
        with torch.no_grad():
            expected = own.drawn(noise, 1, told, guidance_scale=scale)
        torch.testing.assert_close(found[scale], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(*found.values(), atol=1e-2)


def test_a_stock_pipeline_is_a_teacher(folders):
    folder = folders("stable-diffusion")
    teacher = StoredTeacher(path=str(folder), guidance_scale=7.5)
    facts = teacher.facts((3, 16, 16))
    assert (facts.shape, facts.is_latent, facts.told, facts.can_be_guided) == ((4, 8, 8), True, "text", True)
    teacher.check_images((3, 16, 16))
    with pytest.raises(UserError, match=r"prompts\.train"):
        load_denoiser(folder).conditions.draw(1, torch.Generator())


@pytest.mark.parametrize(("side", "shift"), [(128, 3.158), (64, 1.878), (32, 1.649)])
def test_a_flow_that_depends_on_the_size_is_that_of_the_teachers(side, shift):
    """FLUX's shift is e^μ with μ linear in the tokens from 0.5 at 256 to 1.15 at 4,096."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    schedule = schedule_of(scheduler, (16, side, side))
    assert schedule.shift == pytest.approx(shift, abs=1e-3)
    tokens = side * side // 4
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=[0.7, 0.3], mu=mu)
    u = torch.tensor([0.7, 0.3], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(u).float(), scheduler.sigmas[:2], rtol=1e-5, atol=1e-6)


READINGS = {
    "earlier": {"told_timestep": 800.0, "read_timestep": 800},
    "scaled": {"told_timestep": 0.0, "signal_scale": 0.5},
    "raw": {"told_timestep": 0.0, "raw": True},
    "exact": {"told_timestep": 0.0, "epsilon_reading": "exact"},
}


@pytest.mark.parametrize("sampled", READINGS.values(), ids=READINGS.keys())
def test_a_student_is_drawn_alike_however_it_is_read(folders, tmp_path, sampled):
    folder = folders("stable-diffusion")
    teacher = load_denoiser(folder)
    save_denoiser(tmp_path / "student", teacher, **sampled)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    drawn = pipeline(TEXTS, latents=noise, **given).images
    told = teacher.family.encoded(encoding_pipeline(folder, torch.device("cpu")), TEXTS, (16, 16))
    with torch.no_grad():
        expected = LocalPipeline.read(tmp_path / "student").drawn(noise, 1, told)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_a_pipeline_that_does_not_scale_its_noise_refuses_a_student_that_wants_it(folders, tmp_path):
    teacher = load_denoiser(folders("stable-diffusion-3"))
    save_denoiser(tmp_path / "student", teacher, told_timestep=500.0, read_timestep=500)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    with pytest.raises(ValueError, match="this pipeline does not scale its noise"):
        pipeline(TEXTS, num_inference_steps=1, guidance_scale=1.0, **SIZE)


def test_a_gated_model_says_what_to_accept(monkeypatch):
    def snapshot(*_, **__):
        raise GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"gated\. Accept its licence at https://huggingface\.co/owner/name, log in"):
        model_folder("owner/name")


def test_an_imported_teacher_is_linked_and_still_a_stock_pipeline(folders, tmp_path):
    folder = folders("stable-diffusion-3")
    import_teacher(tmp_path / "teacher", folder)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "teacher" / weights).stat().st_ino == (folder / weights).stat().st_ino
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "teacher")).__name__ == "StableDiffusion3Pipeline"
    assert load_denoiser(tmp_path / "teacher").schedule.settings() == load_denoiser(folder).schedule.settings()


@pytest.mark.parametrize(("level", "kept"), [(None, 1000), (164.03, 996), (20.0, 967)])
def test_the_noisiest_levels_of_if_are_left_out(folders, tmp_path, level, kept):
    """IF's schedule ends at σ/α = 20,291; its published scheduler begins at λ = −5.1, that is 164."""
    shutil.copytree(folders("deepfloyd-if"), tmp_path / "if")
    file = tmp_path / "if" / "scheduler" / "scheduler_config.json"
    teacher = StoredTeacher(path=str(tmp_path / "if"), start_level=level)
    whole, _, _ = load_schedule(tmp_path / "if")
    schedule, _, _ = teacher.schedule
    assert schedule.num_timesteps == kept
    np.testing.assert_allclose(schedule.alphas_cumprod(), whole.alphas_cumprod()[:kept], rtol=1e-12)
    assert float(schedule.log_noise_to_signal(torch.tensor(1.0))) <= math.log(level or 20_292)
    import_teacher(tmp_path / "imported", tmp_path / "if", start_level=level)
    assert load_denoiser(tmp_path / "imported").schedule.num_timesteps == kept
    if kept == 996:  # what the file itself says
        file.write_text(json.dumps(json.loads(file.read_text()) | {"lambda_min_clipped": -5.1}))
        assert StoredTeacher(path=str(tmp_path / "if")).schedule[0].num_timesteps == 996


def test_a_start_level_that_leaves_nothing_or_of_a_flow_is_refused(folders):
    with pytest.raises(UserError, match=r"teacher\.start_level: found 0\.001, expected a larger one"):
        StoredTeacher(path=str(folders("deepfloyd-if")), start_level=0.001).facts((3, 8, 8))
    with pytest.raises(UserError, match=r"teacher\.start_level: found 20, expected null: the teacher's schedule"):
        StoredTeacher(path=str(folders("stable-diffusion-3")), start_level=20).facts((3, 16, 16))


def test_a_student_of_dit_is_told_every_class(folders):
    """`diffusers`' embedding of labels replaces a tenth of them by no class while it is trained."""
    teacher = load_denoiser(folders("dit"))
    student = student_network(teacher).train()
    condition = {"class_labels": torch.arange(8).repeat(32)}
    x, told = torch.randn(1, 4, 8, 8).expand(256, -1, -1, -1), torch.full((256,), 500.0)
    with torch.no_grad():
        found, again = (teacher.family.call(student, x, told, condition) for _ in range(2))
    assert torch.equal(found, again)
    torch.testing.assert_close(found, teacher.family.call(teacher.network, x, told, condition), rtol=1e-4, atol=1e-5)


def test_a_student_is_read_at_every_time_as_it_was_trained(folders, tmp_path):
    """How its output is read stands beside the stock pipeline's own files."""
    folder = folders("stable-diffusion")
    save_denoiser(tmp_path / "student", load_denoiser(folder), told_timestep=0.0, epsilon_reading="exact")
    student, noise = load_student(tmp_path / "student"), torch.randn(2, 4, 8, 8)
    told = student.denoiser.family.encoded(encoding_pipeline(folder, torch.device("cpu")), TEXTS, (16, 16))
    with torch.no_grad():
        expected = LocalPipeline.read(tmp_path / "student").drawn(noise, 1, told)
        torch.testing.assert_close(student.sample(noise, told), expected, rtol=1e-4, atol=1e-4)
