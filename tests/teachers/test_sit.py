"""SiT as a teacher: what the authors' network computes, on this suite's clock and with its sign.

``velocity`` is written from the papers and from the weights' names and shapes. ``RECORDED`` holds what the authors' own
code gave (willisma/SiT, models.py, commit 947f95b, float32 on a processor), filled by the rule of
original_checkpoints.py; it was run outside this repository.
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import original_checkpoints as made
import pytest
import torch
import yaml
from folders import alone, entry_of
from repository import TINY
from safetensors.torch import load_file
from torch.nn.functional import fold, gelu, layer_norm, silu, unfold

from boot.distillation import Boot, BootSettings
from diffusion.conditions import ClassLabels
from diffusion.guidance import Guidance, guided
from diffusion.noise import initial_noise
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import FlowSchedule
from diffusion.solvers import ddim_sample
from diffusion.teachers.conversion import sit
from diffusion.teachers.folder import load_denoiser, pipeline_problems
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.networks.sit_transformer import SiTTransformer
from diffusion.training.loop import TrainingRun
from suite import cli
from suite.configuration.experiment import parse_experiment
from suite.estimate import estimate

from diffusers import AutoencoderKL  # isort: skip

CPU = torch.device("cpu")
HEADS = 3
LABELS = torch.tensor([0, 1, 2])
CASES = {"learnt variance": {}, "none": {"side": 4, "outputs": 4}}
RECORDED = {  # at t = 1, 0.6, 0: of the three classes, and without any
    "learnt variance": (
        [-1.238941, -1.60686, -0.9971113, 0.5219023, -1.335058, -0.8379512,
         -1.893933, 0.7031658, -1.247261, 0.4617773, -2.067244, -0.3939258],
        [-1.335795, -1.543093, -1.170873, 0.6118222, -1.471196, -0.6387094,
         -2.069935, 0.7112727, -1.051673, 0.2557007, -2.142575, -0.2095715],
    ),
    "none": (
        [0.2200406, -0.4766159, -0.1384719, -0.3039471, -1.612403, -1.329458,
         -0.2078393, 0.0840624, -1.29069, -0.5170035, -1.658399, -1.066149],
        [-0.07824107, -0.5355924, -0.3067934, -0.1935327, -1.865727, -1.68113,
         -0.3095679, 0.264018, -1.079818, -0.6631199, -1.880073, -1.20019],
    ),
}  # fmt: skip


def velocity(state, x, t, labels, spacing=128, clock=lambda t: t):
    """v of SiT's network with these weights, at t, 0 where there is noise alone; in float64.

    Args:
        x: shape (N, C, H, W); t, labels: shape (N,).
        spacing, clock: of the embedding of the time, to be got wrong.
    """
    state = {name: value.double() for name, value in state.items()}
    kernel = state["x_embedder.proj.weight"]
    width, channels, side, _ = kernel.shape

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def modulated(value, shift, scale):
        return layer_norm(value, (width,), eps=1e-6) * (1 + scale) + shift

    angles = clock(t)[:, None].double() * 10_000.0 ** (-torch.arange(128) / spacing)
    told = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    told = linear("t_embedder.mlp.2", silu(told)) + state["y_embedder.embedding_table.weight"][labels]
    told = silu(told)[:, None]
    tokens = unfold(x.double(), side, stride=side).mT @ kernel.flatten(1).T
    tokens = tokens + state["x_embedder.proj.bias"] + state["pos_embed"]
    for number in range(sum(name.endswith("attn.qkv.bias") for name in state)):
        block = f"blocks.{number}"
        shift, scale, gate, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", told).chunk(6, -1)
        joint = linear(f"{block}.attn.qkv", modulated(tokens, shift, scale))
        query, key, value = joint.reshape(*joint.shape[:2], 3, HEADS, -1).unbind(2)
        weights = (torch.einsum("nihc,njhc->nhij", query, key) / query.shape[-1] ** 0.5).softmax(-1)
        attended = torch.einsum("nhij,njhc->nihc", weights, value).flatten(2)
        tokens = tokens + gate * linear(f"{block}.attn.proj", attended)
        hidden = gelu(linear(f"{block}.mlp.fc1", modulated(tokens, shift2, scale2)), approximate="tanh")
        tokens = tokens + gate2 * linear(f"{block}.mlp.fc2", hidden)
    output = linear(
        "final_layer.linear", modulated(tokens, *linear("final_layer.adaLN_modulation.1", told).chunk(2, -1))
    )
    # Of a patch's pixels each has all channels; those of the state come first.
    pixels = output.unflatten(-1, (side**2, -1))[..., :channels]
    return fold(pixels.permute(0, 3, 2, 1).flatten(1, 2), x.shape[-2:], side, stride=side)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A size that the authors have not."""
    monkeypatch.setitem(sit.SIZES, 48, (2, HEADS))


def write_autoencoder(folder, *widths):
    """Of Stable Diffusion's kind. Its file is from before `diffusers` had a key for the scaling factor."""
    blocks = {
        f"{kind}_block_types": (f"{name}Block2D",) * len(widths)
        for kind, name in (("down", "DownEncoder"), ("up", "UpDecoder"))
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(block_out_channels=widths, latent_channels=4, norm_num_groups=2, **blocks).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("scaling_factor") == 0.18215
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, which the Hub has beside it")
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder"), 4, 8)


def run(content, folder, autoencoder, options="--kind sit", name="a.pt"):
    torch.save(content, folder / name)
    given = [] if autoencoder is None else ["--autoencoder", str(autoencoder)]
    arguments = ["convert", "--checkpoint", str(folder / name), "--output", str(folder / "teacher"), *given]
    cli.parse([*arguments, *options.split()]).run()
    return folder / "teacher"


@pytest.fixture(scope="module")
def converted(tmp_path_factory, autoencoder):
    """Name to the weights of a checkpoint and the folder of its teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sit.SIZES, 48, (2, HEADS))
        states = {name: made.sit(**arguments) for name, arguments in CASES.items()}
        return {name: (s, run(s, tmp_path_factory.mktemp("sit"), autoencoder)) for name, s in states.items()}


def picture():
    return torch.from_numpy(made.numbers((3, 4, 8, 8), 1000)).float()


@pytest.mark.parametrize("name", CASES)
def test_a_converted_network_computes_what_the_authors_does(name, converted):
    _, folder = converted[name]
    denoiser = load_denoiser(folder)
    for labels, recorded in zip((LABELS, torch.full((3,), 3)), RECORDED[name], strict=True):
        with torch.no_grad():
            output = denoiser.network(picture(), torch.tensor([0.0, 400.0, 1000.0]), labels).sample.flatten()
        torch.testing.assert_close(output[:: len(output) // 12][:12], -torch.tensor(recorded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sigma", [1.0, 0.83, 0.5, 0.061, 0.001])
def test_f_is_minus_v_where_the_clocks_meet(name, sigma, converted):
    """Weights and states in float64; times and the output are in float32."""
    state, folder = converted[name]
    denoiser = load_denoiser(folder).double()
    with torch.no_grad():
        found = denoiser.raw(picture(), torch.tensor(sigma, dtype=torch.float64), {"class_labels": LABELS})
    expected = -velocity(state, picture(), torch.full((3,), 1 - sigma, dtype=torch.float64), LABELS)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_each_convention_got_wrong_is_seen(converted):
    """At σ = 0.3, where outputs are of unit size."""
    state, folder = converted["learnt variance"]
    denoiser, t = load_denoiser(folder), torch.full((3,), 0.7, dtype=torch.float64)
    arguments = torch.tensor(0.3, dtype=torch.float64), {"class_labels": LABELS}
    with torch.no_grad():
        right = denoiser.raw(picture(), *arguments).double()
        for options in ({"spacing": 127}, {"clock": lambda t: 1 - t}, {"clock": lambda t: 1000 * t}):
            assert float((right + velocity(state, picture(), t, LABELS, **options)).abs().max()) > 1e-3, options
        assert float((right - velocity(state, picture(), t, LABELS)).abs().max()) > 1
        denoiser.network.time_proj.downscale_freq_shift = 1  # as `diffusers`' own DiT has it
        assert float((denoiser.raw(picture(), *arguments) - right).abs().max()) > 1e-3


def by_euler(state, noise, labels, steps, scale):
    """The authors' guided ODE from noise, t = 0, to data, t = 1."""
    x = noise.double()
    for step in range(steps):
        t = torch.full((len(x),), step / steps, dtype=torch.float64)
        told, untold = (velocity(state, x, t, given) for given in (labels, torch.full_like(labels, 3)))
        x = x + (untold + scale * (told - untold)) / steps
    return x


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_guided_sampling_is_eulers_method_from_noise_to_data(steps, converted, autoencoder):
    state, folder = converted["learnt variance"]
    denoiser, noise = load_denoiser(folder), initial_noise(0, range(3), (4, 8, 8))
    with torch.no_grad():
        found = ddim_sample(guided(denoiser, Guidance(2.5)), noise, steps, {"class_labels": LABELS})
        expected = by_euler(state, noise, LABELS, steps, 2.5)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        given = {"class_labels": LABELS, "latents": noise, "guidance_scale": 2.5, "output_type": "pt"}
        images = LocalPipeline.from_pretrained(folder)(num_inference_steps=steps, **given).images
        decoded = AutoencoderKL.from_pretrained(autoencoder).decode(expected.float() / 0.18215).sample
    assert images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(images, decoded, rtol=1e-3, atol=1e-3)


def test_what_is_stored(converted, autoencoder):
    state, folder = converted["learnt variance"]
    denoiser = load_denoiser(folder)
    assert pipeline_problems(folder) == []
    assert denoiser.conditions == ClassLabels(3, has_null=True)
    assert denoiser.schedule.settings() == FlowSchedule().settings()
    assert (denoiser.prediction_type, denoiser.thresholding.kind, denoiser.shape) == ("flow", "none", (4, 8, 8))
    (scheduler,) = (folder / "scheduler").iterdir()
    stored = json.loads(scheduler.read_text())
    assert (stored["_class_name"], stored["shift"], stored["num_train_timesteps"]) == (
        "FlowMatchEulerDiscreteScheduler", 1.0, 1000,
    )  # fmt: skip
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["transformer.pos_embed.pos_embed"], state["pos_embed"])
    fresh = SiTTransformer.from_config(denoiser.network.config).transformer.pos_embed.pos_embed
    torch.testing.assert_close(fresh, state["pos_embed"], rtol=0, atol=1e-6)
    assert sum(value.numel() for value in weights.values()) == sum(v.numel() for v in state.values()) - 4 * 4 * 49
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["conversion"] == {"kind": "sit", "network": "SiTTransformer", "thresholding": "none"}
    assert facts["inputs"].keys() == {
        "checkpoint", "autoencoder, config.json", "autoencoder, diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json", ".py"}


def test_what_the_authors_training_stores_is_read_by_its_average(tmp_path, autoencoder, converted):
    state, folder = converted["none"]
    options = Namespace(path_type="Linear", prediction="velocity", model="SiT-S/4", data_path="/data")
    stored = {"model": {name: 0 * value for name, value in state.items()}, "ema": state, "opt": {}, "args": options}
    again = run(stored, tmp_path, autoencoder)
    files = [path / "unet" / "diffusion_pytorch_model.safetensors" for path in (folder, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def one_step_of_boot(teacher, state):
    settings = BootSettings.model_validate({"training": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3}})
    with TrainingRun(state, "k", 0, CPU) as training:
        (student,) = Boot(settings).distil(teacher, training, None)
    return student


def test_a_student_and_its_teacher_draw_without_the_suite_what_they_draw_in_it(tmp_path, converted):
    _, folder = converted["learnt variance"]
    teacher = load_denoiser(folder)
    student = one_step_of_boot(teacher, tmp_path / "state")
    assert not torch.equal(
        student.network.time_embedding.linear_1.weight, teacher.network.time_embedding.linear_1.weight
    )
    Boot(BootSettings()).save(tmp_path / "student", student.network, teacher)
    noise, condition = initial_noise(0, range(3), (4, 8, 8)), {"class_labels": LABELS}
    sampler, _ = Boot(BootSettings()).sampler(tmp_path / "student", 1, CPU)
    np.save(tmp_path / "latents.npy", noise.numpy())
    told = {"class_labels": LABELS.tolist()}
    entries = [
        entry_of(tmp_path, tmp_path / "student", "student", **told),
        entry_of(tmp_path, folder, "teacher", **told, num_inference_steps=4, guidance_scale=2.0),
    ]
    alone(tmp_path, entries)
    with torch.inference_mode():
        drawn = teacher.space.decode(sampler(noise, condition))
        images = teacher.space.decode(ddim_sample(guided(teacher, Guidance(2.0)), noise, 4, condition))
    for name, expected in (("student", drawn), ("teacher", images)):  # the autoencoder's last bits differ
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected.numpy(), rtol=0, atol=1e-5)


def test_the_network_computes_its_blocks_again_and_takes_what_lies_between_classes(converted):
    denoiser = load_denoiser(converted["learnt variance"][1])
    network, gradients = denoiser.network.train(), []
    for recomputed in (False, True):
        x = picture().requires_grad_(True)
        if recomputed:
            network.enable_gradient_checkpointing()
        network(x, 250.0, LABELS, return_dict=False)[0].square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    first, second = ({"class_labels": torch.tensor([label] * 3)} for label in (0, 2))
    at = torch.tensor(0.4, dtype=torch.float64)
    with torch.no_grad(), denoiser.conditions.between_read_by(network):
        ends = [
            denoiser.raw(picture(), at, denoiser.conditions.between(first, second, torch.full((3,), s)))
            for s in (0.0, 1.0)
        ]
    with torch.no_grad():
        for found, condition in zip(ends, (first, second), strict=True):
            torch.testing.assert_close(found, denoiser.raw(picture(), at, condition))


def test_networks_of_published_sizes_have_as_many_weights():
    """The authors' code has 675,129,632 in XL/2 and 32,963,360 in S/2, positions and the unused outputs included."""
    for width, original in ((1152, 675_129_632), (384, 32_963_360)):
        depth, heads = sit.SIZES[width]
        with torch.device("meta"):
            network = SiTTransformer(num_layers=depth, num_attention_heads=heads, attention_head_dim=width // heads)
        assert sum(value.numel() for value in network.state_dict().values()) == original - 4 * 4 * (width + 1)


def without(state, *starts):
    return {name: value for name, value in state.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [1, 2], "holds a list; expected names with a tensor each, of SiT"),
        (lambda s: {"ema": [1]}, "holds a list; expected names"),
        (lambda s: without(s, "pos_embed"), "holds the keys .*, without pos_embed"),
        (lambda s: without(s, "blocks.1."), "has 1 blocks of width 48, expected one of: 12 of width 384, "),
        (lambda s: s | {"blocks.2.attn.qkv.bias": torch.zeros(144)}, "has 3 blocks of width 48"),
        (lambda s: made.sit(width=64), "has 2 blocks of width 64, expected one of"),
        (lambda s: without(s, "blocks.0.mlp.fc1"), "lacks 2 of the weights of the SiTTransformer .*0.ff.net.0.proj"),
        (lambda s: s | {"extra.weight": torch.zeros(3)}, "has, beside all that is known, 1 of .*extra.weight"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.zeros(16)}, "0.attn.q_norm.weight, as LightningDiT"),
        (lambda s: s | {"blocks.0.mlp.w12.weight": torch.zeros(16)}, "blocks.0.mlp.w12.weight, as LightningDiT"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 15, 48)}, "has 15 patches, expected a square's"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 16, 40)}, r"has in another shape 1 .*pos_embed \(1, 16, 40\)"),
        (lambda s: s | {"final_layer.linear.bias": torch.zeros(48)}, "gives 12 channels, expected 4, or twice as many"),
        (lambda s: s | {"final_layer.linear.bias": torch.full((32,), torch.nan)}, "contain NaN or infinity"),
        (lambda s: {"ema": s, "args": Namespace(path_type="GVP")}, "trained with path_type 'GVP', expected 'Linear'"),
        (lambda s: {"ema": s, "args": Namespace(prediction="noise")}, "was trained with prediction 'noise'"),
        (lambda s: s | {"where": Path("a")}, r"refused \(it asks for pathlib"),
    ],
)  # fmt: skip
def test_another_checkpoint_is_refused_by_what_was_found(change, message, tmp_path, autoencoder):
    with pytest.raises(CheckpointError, match=message):
        run(change(made.sit()), tmp_path, autoencoder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_options_that_are_missing_foreign_or_wrong(tmp_path, autoencoder):
    other = tmp_path / "other"
    AutoencoderKL(latent_channels=8).save_config(other)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((autoencoder / "config.json").read_bytes())
    (tmp_path / "nothing").mkdir()
    for given, options, message in (
        (None, "--kind sit", "--autoencoder: not given, and the checkpoint has none"),
        (autoencoder, "--kind edm", "--autoencoder: not an option of --kind edm"),
        (autoencoder, "--kind sit --thresholding static", "--thresholding: found static, expected none"),
        (autoencoder, "--kind sit --attention qkv-first", "--attention: not an option of --kind sit"),
        (autoencoder, "--kind sit --resolution 16", "--resolution: not an option of --kind sit"),
        (tmp_path / "nothing", "--kind sit", "--autoencoder: .*nothing is no folder of an autoencoder"),
        (other, "--kind sit", "makes latents of 8 channels, expected 4"),
        (broken, "--kind sit", "broken: no autoencoder can be read"),
        (autoencoder, "--published SiT-XL-2-256x256.pt", "found 3 classes, expected 1000, as https"),
    ):
        with pytest.raises(UserError, match=message):
            run(made.sit(), tmp_path, given, options)
        assert not (tmp_path / "teacher").exists()
    with pytest.raises(CheckpointError, match="found 16 pixels a side, expected 256, as https"):
        run(made.sit(classes=1000), tmp_path, autoencoder, "", "SiT-XL-2-256x256.pt")


def test_the_published_name_brings_kind_classes_and_pixels(tmp_path, capsys):
    autoencoder = write_autoencoder(tmp_path / "autoencoder", 4, 4, 4, 4)
    folder = run(made.sit(size=32, classes=1000), tmp_path, autoencoder, "", "SiT-XL-2-256x256.pt")
    assert load_denoiser(folder).conditions == ClassLabels(1000, has_null=True)
    assert "SiTTransformer, 0.2 M weights, 4×32×32, 1000 classes, flow" in capsys.readouterr().out


def test_the_configuration_and_the_estimate_know_a_converted_teacher(converted):
    _, folder = converted["learnt variance"]
    raw = yaml.safe_load(TINY.read_text())
    raw["data"] = {"kind": "images", "path": "nowhere", "resolution": 16}
    raw["teacher"] = {"path": str(folder), "guidance_scale": 1.5}
    raw["methods"] = {
        "ddim": raw["methods"]["ddim"],
        "boot": {"method": "boot", "training": {"steps": 2, "batch_size": 4}},
    }
    raw["evaluation"] |= {"teacher": {"variant": "ddim", "nfe": 4}}
    raw.pop("comparison", None)
    parsed = parse_experiment(raw, look_at_files=False)
    assert parsed.conditional
    found = estimate(parsed, CPU, 0)
    assert found.network.num_weights == sum(weight.numel() for weight in load_denoiser(folder).network.parameters())
    assert next(row for row in found.rows if row.rule == "distil").trained > 0
