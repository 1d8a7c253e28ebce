"""Published teachers: what the authors' networks compute, and files that are not what they should be.

``RECORDED`` holds what the authors' own code gave: NVlabs/edm (training/networks.py, commit 0a2ff34), guided-diffusion
(unet.py, commit 18ff408) and consistency_models (cm/unet.py and karras_diffusion.py, commit 3d86141, its attention with
the order of QKVFlashAttention), with networks of the sizes below, filled by the rule of original_checkpoints.py, in
float32 on a processor. They were run outside this repository.
"""

import io
import json
import math
import pickle
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import original_checkpoints as made
import pytest
import torch
import yaml
from repository import ROOT, TINY

import diffusion  # noqa: F401 - repairs torchvision before `diffusers` is imported

from diffusers import UNet2DModel  # isort: skip
from boot.distillation import Boot, BootSettings
from diffusion.conditions import ClassLabels, Unconditional
from diffusion.distillation.distiller import student_network
from diffusion.noise import initial_noise
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.schedule import DiscreteSchedule, EdmSchedule
from diffusion.solvers import ddim_sample
from diffusion.teachers.conversion.adm import Betas, Order, adm_schedule, load_guided_diffusion
from diffusion.teachers.conversion.edm import load_edm
from diffusion.teachers.conversion.published import PUBLISHED
from diffusion.teachers.conversion.weights import unet_configuration
from diffusion.teachers.folder import load_denoiser
from diffusion.teachers.local_pipeline import LocalPipeline
from diffusion.teachers.networks.song_unet import SongUNet
from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet
from diffusion.thresholding import STATIC
from diffusion.training.loop import TrainingRun
from suite import cli
from suite.configuration.experiment import parse_experiment
from suite.estimate import estimate

CPU = torch.device("cpu")
SIGMA = torch.tensor([0.01, 0.4, 20.0])
TIMESTEPS = torch.tensor([0.0, 321.0, 999.0])
LABELS = torch.tensor([0, 1, 2])
SMALL_SONG = {"size": 16, "channels": 16, "layers": 1, "attends": (8,), "augment": 2}
SMALL_DHARIWAL = {"size": 8, "channels": 128, "multiples": (1, 1), "layers": 1, "attends": (4,), "augment": 2}
CLASSES = {"labels": 3, "label_dropout": 0.1}
SMALL_OPENAI = {"channels": 64, "multiples": (1, 2), "layers": 1, "attends": (1,)}


def ddpmpp(**changes):
    return made.song_unet(**{**SMALL_SONG, "multiples": (1, 2), **CLASSES, **changes})


# Name to: the checkpoint's content, the command's options, side of the pictures.
CASES = {
    "ddpmpp": (lambda: made.preconditioned(ddpmpp(), 16, 3), "--kind edm", 16),
    "ncsnpp": (
        lambda: made.preconditioned(made.song_unet(**SMALL_SONG, multiples=(1, 2, 2), ncsn=True), 16),
        "--kind edm",
        16,
    ),
    "dhariwal": (
        lambda: made.preconditioned(made.dhariwal_unet(**SMALL_DHARIWAL, **CLASSES), 8, 3),
        "--kind edm",
        8,
    ),
    "adm heads first": (
        lambda: made.openai_unet(**SMALL_OPENAI, outputs=6, classes=3),
        "--kind guided-diffusion --attention heads-first --schedule linear --resolution 8",
        8,
    ),
    "adm qkv first": (
        lambda: made.openai_unet(**SMALL_OPENAI, outputs=6, classes=3),
        "--kind guided-diffusion --attention qkv-first --schedule cosine --resolution 8",
        8,
    ),
    "consistency": (
        lambda: made.openai_unet(**SMALL_OPENAI, classes=3, flat=False),
        "--kind consistency --attention qkv-first --resolution 8",
        8,
    ),
    "consistency, shift alone": (
        lambda: made.openai_unet(**SMALL_OPENAI, scale_shift=False, flat=False),
        "--kind consistency --attention qkv-first --resolution 8",
        8,
    ),
}
# Name to: the network's output, the denoiser's, and the output without a class, each at twelve places.
RECORDED = {
    "ddpmpp": {
        "F": [
            -0.02012828,
            0.5801291,
            0.1120449,
            0.2957039,
            0.3238248,
            0.8142104,
            -0.2324968,
            0.02039854,
            0.07796361,
            0.2850353,
            -0.8360813,
            -0.4122815,
        ],
        "D": [
            0.005394713,
            0.01972761,
            -0.01994133,
            0.008586413,
            -0.2325542,
            0.537582,
            -0.4180519,
            0.09962356,
            0.04715578,
            0.1539177,
            -0.4350128,
            -0.2118349,
        ],
        "F without class": [
            0.05740155,
            0.4662632,
            0.1357581,
            0.2549103,
            0.302902,
            0.8317191,
            -0.3411409,
            -0.2750353,
            -0.008767705,
            0.2011027,
            -1.089245,
            -0.1774523,
        ],
    },
    "ncsnpp": {
        "F": [
            -0.1176485,
            0.443418,
            -0.03390252,
            -0.1540063,
            0.06986786,
            0.3704548,
            -0.6075329,
            -0.1929525,
            0.02455502,
            -0.6266192,
            0.02012469,
            -0.4967986,
        ],
        "D": [
            -0.0005478109,
            0.002675181,
            -0.01779555,
            0.02243319,
            -0.3131542,
            0.4324078,
            -0.5013363,
            0.004329249,
            0.02044398,
            -0.3017417,
            -0.007112421,
            -0.2540684,
        ],
    },
    "dhariwal": {
        "F": [
            -0.3947251,
            -0.496735,
            0.5056068,
            0.06209508,
            0.2059464,
            0.2316506,
            0.02395908,
            0.5535132,
            -0.1538453,
            -0.03856691,
            -0.1977454,
            0.7528787,
        ],
        "D": [
            0.002897297,
            0.003259276,
            -0.001206322,
            0.002701565,
            0.1481785,
            0.03926356,
            -0.3440144,
            0.4302183,
            -0.09826222,
            -0.0377412,
            -0.0991061,
            0.3894711,
        ],
        "F without class": [
            -0.5564405,
            -0.3327408,
            0.576878,
            -0.01543143,
            0.3850656,
            0.2545723,
            -0.1746601,
            0.3250082,
            0.06136462,
            0.05888516,
            -0.2716923,
            0.907368,
        ],
    },
    "adm heads first": {
        "F": [
            -0.36884,
            -0.5209029,
            -0.4589086,
            0.1400506,
            -0.4811344,
            -0.2916531,
            -1.073315,
            0.6513726,
            -0.6597871,
            -0.07146984,
            0.2155651,
            0.3091953,
        ]
    },
    "adm qkv first": {
        "F": [
            -0.3590881,
            -0.3474377,
            -0.3655318,
            -0.04119951,
            -0.3681659,
            -0.2076761,
            -0.8087249,
            0.384173,
            -0.5831564,
            0.3665264,
            -0.02392726,
            0.3260289,
        ]
    },
    "consistency": {
        "F": [
            -0.468567,
            -0.4786001,
            -0.5027263,
            0.2106635,
            -0.4483148,
            -0.2337283,
            -0.8063018,
            0.3061006,
            -0.5367868,
            0.2238783,
            0.1449362,
            0.2199209,
        ],
        "D": [
            -0.003368977,
            -0.002638288,
            0.00164409,
            0.00541835,
            0.003865778,
            -0.09890858,
            -0.6038219,
            0.3792125,
            -0.289555,
            0.09346306,
            0.07226683,
            0.1230833,
        ],
    },
    "consistency, shift alone": {
        "F": [
            0.3323135,
            -0.1483498,
            1.115926,
            0.1642078,
            0.07586762,
            0.8686818,
            0.4759455,
            1.046979,
            0.1174033,
            -0.04323019,
            0.2977958,
            0.3755463,
        ],
        "D": [
            -0.0003801865,
            -0.006680507,
            3.321678e-05,
            0.000115939,
            0.1527251,
            0.210559,
            -0.304655,
            0.5579789,
            0.03735993,
            -0.04003749,
            0.1486768,
            0.2009144,
        ],
    },
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    made.install_stand_ins(monkeypatch)
    monkeypatch.setattr(made.Persistent, "marker", tmp_path / "executed")
    yield
    assert not (tmp_path / "executed").exists()  # by no test


def write(content, path):
    """A checkpoint as its authors write it."""
    if isinstance(content, dict) and "ema" in content:
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path)
    return path


def run(file, output, options=""):
    arguments = ["convert", "--checkpoint", str(file), "--output", str(output), *options.split()]
    cli.parse(arguments).run()
    return output


def converted(name, folder, options=""):
    content, kind, size = CASES[name]
    file = write(content(), folder / ("a.pkl" if "edm" in kind else "a.pt"))
    return run(file, folder / "teacher", f"{kind} {options}"), size


def picture(size):
    return torch.from_numpy(made.numbers((3, 3, size, size), 1000)).float()


def places(output):
    flat = output.flatten()
    return flat[:: max(1, len(flat) // 12)][:12]


def close(output, recorded):
    expected = torch.tensor(recorded)
    torch.testing.assert_close(places(output), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", CASES)
def test_a_converted_network_computes_what_the_authors_does(name, tmp_path):
    folder, size = converted(name, tmp_path)
    denoiser = load_denoiser(folder)
    condition = {"class_labels": LABELS} if isinstance(denoiser.conditions, ClassLabels) else {}
    told = TIMESTEPS if denoiser.prediction_type == "epsilon" else SIGMA.log() / 4
    with torch.no_grad():
        output = denoiser.network(picture(size), told, **condition).sample
        close(output, RECORDED[name]["F"])
        if denoiser.prediction_type == "edm":
            t = denoiser.schedule.time_of(SIGMA.double().log())
            close(denoiser.estimate(SIGMA[:, None, None, None] * picture(size), t, condition), RECORDED[name]["D"])
        else:
            t = denoiser.schedule.time(TIMESTEPS)
            close(denoiser.raw(picture(size), t, condition), RECORDED[name]["F"])
    assert output.shape == (3, 3, size, size)


@pytest.mark.parametrize("name", ["ddpmpp", "dhariwal"])
def test_no_class_is_a_label_where_it_was_trained(name, tmp_path):
    folder, size = converted(name, tmp_path)
    denoiser = load_denoiser(folder)
    assert denoiser.conditions == ClassLabels(3, has_null=True)
    with torch.no_grad():
        output = denoiser.network(picture(size), SIGMA.log() / 4, denoiser.conditions.null * torch.ones(3, dtype=int))
    close(output.sample, RECORDED[name]["F without class"])


def test_no_class_is_no_label_where_it_was_not_trained(tmp_path):
    file = write(made.preconditioned(ddpmpp(label_dropout=0), 16, 3), tmp_path / "a.pkl")
    denoiser = load_edm(file, STATIC)
    assert denoiser.conditions == ClassLabels(3, has_null=False)
    assert denoiser.network.class_embedding.num_embeddings == 3


def test_the_attentions_order_matters_and_is_not_guessed(tmp_path):
    state = made.openai_unet(**SMALL_OPENAI)
    file = write(state, tmp_path / "a.pt")
    networks = [load_guided_diffusion(file, order, "linear", STATIC, 8).network for order in get_args(Order)]
    with torch.no_grad():
        one, other = (network(picture(8), TIMESTEPS).sample for network in networks)
    assert float((one - other).abs().max()) > 1e-2
    with pytest.raises(UserError, match="--attention: not given, and the weights do not tell"):
        run(file, tmp_path / "out", "--kind guided-diffusion --schedule linear --resolution 8")


def test_half_precision_becomes_single_without_a_loss(tmp_path):
    state = {name: value.half() for name, value in made.openai_unet(**SMALL_OPENAI).items()}
    folder = run(write(state, tmp_path / "a.pt"), tmp_path / "t", CASES["adm qkv first"][1])
    network = load_denoiser(folder).network
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert torch.equal(network.conv_in.weight, state["input_blocks.0.0.weight"].float())


@pytest.mark.parametrize("name", CASES)
def test_what_is_stored_is_said_beside_it(name, tmp_path, capsys):
    folder, size = converted(name, tmp_path, "--thresholding none")
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["conversion"]["kind"] in CASES[name][1]
    assert len(facts["inputs"]["checkpoint"]["sha256"]) == 64
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} - {".py"} == {".safetensors", ".json"}
    assert load_denoiser(folder).thresholding.kind == "none"
    told = capsys.readouterr().out
    assert f"3×{size}×{size}" in told
    assert yaml.safe_load(told.split("\n\n")[1]) == {"teacher": {"path": str(folder)}}


def adm(network_class, resolution, width, multiples, layers, attends, labels=None, scale_shift=True):
    configuration = unet_configuration(
        resolution=resolution,
        pictures=3,
        channels=[width * multiple for multiple in multiples],
        layers=layers,
        attends=attends,
        scale_shift=scale_shift,
        labels=labels,
    )
    return network_class, configuration


SIX_LEVELS = (256, 256, (1, 1, 2, 2, 4, 4), 2, (False, False, False, True, True, True))
FOUR_LEVELS = (64, 192, (1, 2, 3, 4), 3, (False, True, True, True), 1000)
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
# So many weights has the authors' code, and of those so many are not kept: the map of 9 augmentation labels, the three
# outputs of the variance. In millions, the papers print 56, 62 and 296 (Karras et al. 2022, table 7), 296, 554 and 552
# (Dhariwal & Nichol 2021, table 11); NVlabs/edm's training prints 61,805,571.
PUBLISHED_SIZES = {
    "ddpmpp cifar10": (SongUNet, {"sample_size": 32, "channel_mult": (2, 2, 2)}, 55_733_891, 9 * 128),
    "ncsnpp cifar10": (SongUNet, {"sample_size": 32, "channel_mult": (2, 2, 2), **NCSN}, 56_397_827, 9 * 256),
    "ddpmpp ffhq": (SongUNet, {"sample_size": 64}, 61_805_571, 9 * 128),
    "adm imagenet 64, edm": (*adm(UNet2DModel, *FOUR_LEVELS), 295_899_267, 0),
    "adm imagenet 64": (*adm(UNet2DModel, *FOUR_LEVELS), 295_904_454, 3 * (9 * 192 + 1)),
    "adm imagenet 256": (*adm(UNet2DModel, *SIX_LEVELS, 1000), 553_838_086, 3 * (9 * 256 + 1)),
    "adm lsun": (*adm(UNet2DModel, *SIX_LEVELS), 552_814_086, 3 * (9 * 256 + 1)),
    "consistency imagenet 64": (*adm(TimeScaledUNet, *FOUR_LEVELS), 295_899_267, 0),
    "consistency lsun": (*adm(TimeScaledUNet, *SIX_LEVELS, scale_shift=False), 526_304_771, 0),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_networks_of_published_sizes_have_as_many_weights(name):
    network_class, configuration, original, left_out = PUBLISHED_SIZES[name]
    with torch.device("meta"):
        network = network_class(**configuration)
    assert sum(weight.numel() for weight in network.parameters()) == original - left_out


def test_a_published_size_is_read_as_that_network(tmp_path):
    """The names and shapes of the authors' CIFAR-10 network, all of them, without its numbers."""
    tree = made.song_unet(32, 128, (2, 2, 2), 4, (16,), labels=10, augment=9)
    assert sum(value.numel() for value in made.tensors_of(tree).values()) / 1e6 == pytest.approx(55.7, abs=0.05)
    file = write(made.preconditioned(tree, 32, 10), tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
    denoiser = load_denoiser(run(file, tmp_path / "teacher"))
    assert denoiser.conditions == ClassLabels(10, has_null=False)
    assert dict(denoiser.network.config)["attention_resolutions"] in ((16,), [16])


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class MaliciousStorage:
    """The same, within the bytes that a tensor of a network pickle is read from."""

    def __init__(self, marker):
        buffer = io.BytesIO()
        torch.save(Malicious(marker), buffer)
        self.content = buffer.getvalue()

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def small():
    return made.preconditioned(ddpmpp(), 16, 3)


def test_code_in_a_network_pickle_is_refused_by_name_and_not_executed(tmp_path):
    content = small() | {"augment_pipe": Malicious(tmp_path / "touched")}
    with pytest.raises(CheckpointError, match=r"a\.pkl: refused \(it asks for pathlib\S*touch|it asks for builtins"):
        run(write(content, tmp_path / "a.pkl"), tmp_path / "out", "--kind edm")
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out").exists()


def test_code_in_the_bytes_of_a_tensor_is_refused_and_not_executed(tmp_path):
    content = small()
    content["ema"].state["_buffers"]["sneaky"] = MaliciousStorage(tmp_path / "touched")
    with pytest.raises(CheckpointError, match=r"refused \(it asks for .* in a tensor"):
        run(write(content, tmp_path / "a.pkl"), tmp_path / "out", "--kind edm")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch_utils.persistence", "_src_to_module.__globals__"),
    ],
)
def test_only_known_names_are_looked_up(module, name, tmp_path):
    # STACK_GLOBAL of protocol 4 follows dots; what it is given here must not be followed.
    text = b"".join(pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name))
    (tmp_path / "a.pkl").write_bytes(pickle.PROTO + b"\x04" + text + pickle.STACK_GLOBAL + pickle.STOP)
    with pytest.raises(CheckpointError, match=f"it asks for {module}.{name}"):
        run(tmp_path / "a.pkl", tmp_path / "out", "--kind edm")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    class Beyond:
        def __reduce__(self):
            storage = torch.zeros(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 2, (3,), (1,), False, {})

    content = small()
    content["ema"].state["_buffers"]["far"] = Beyond()
    with pytest.raises(CheckpointError, match="a tensor beyond the end of its storage"):
        run(write(content, tmp_path / "a.pkl"), tmp_path / "out", "--kind edm")


def test_a_file_cannot_nest_without_end(tmp_path):
    content = small()
    content["ema"].state["_modules"]["model"].state["_modules"]["enc"]._modules["again"] = (
        content["ema"].state["_modules"]["model"].state["_modules"]["enc"]
    )
    with pytest.raises(CheckpointError, match="modules deep"):
        run(write(content, tmp_path / "a.pkl"), tmp_path / "out", "--kind edm")


def changed(change):
    content = small()
    model = content["ema"].state["_modules"]["model"]
    change(content, model)
    return content


def in_block(attribute, value):
    def change(content, model):
        model.state["_modules"]["enc"]._modules["16x16_block0"].state[attribute] = value

    return change


def extra(content, model):
    model.state["_modules"]["more"] = made.linear(2, 2)


def lacking(content, model):
    del model.state["_modules"]["dec"]._modules["8x8_block1"]


def filtered(content, model):
    block = model.state["_modules"]["enc"]._modules["8x8_down"]
    block.state["_modules"]["skip"].state["_buffers"]["resample_filter"] = torch.full((1, 1, 2, 2), 0.3)


def not_finite(content, model):
    model.state["_modules"]["map_layer0"].state["_parameters"]["weight"][0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, m: c.update(ema=made.Persistent("VPPrecond")), "holds a VPPrecond, the baseline with variance-pres"),
        (lambda c, m: c.update(ema=made.Persistent("VEPrecond")), "holds a VEPrecond, the baseline with variance-expl"),
        (lambda c, m: c.update(ema=made.Persistent("Generator")), "holds a Generator; expected EDMPrecond"),
        (lambda c, m: c.pop("ema"), r"holds the keys \['dataset_kwargs', 'loss_fn'\]; expected .* 'ema'"),
        (lambda c, m: setattr(m, "class_name", "Transformer"), "its model is a Transformer, expected SongUNet or Dhar"),
        (lambda c, m: c["ema"].state.update(sigma_data="0.5"), "EDMPrecond.sigma_data is '0.5', expected float or int"),
        (in_block("skip_scale", 1.0), r"16x16_block0.skip_scale is 1.0, expected 0.70710"),
        (in_block("num_heads", 1), r"16x16_block0.num_heads is 1, expected 0"),
        (extra, "has, beside all that is known, 2 of the weights of the SongUNet .*more.bias"),
        (lacking, r"lacks 1\d of the weights of the SongUNet .*dec.8x8_block1"),
        (filtered, "resample_filter is .*expected the one filter"),
        (not_finite, "1 tensors contain NaN or infinity, e.g. map_layer0.weight"),
    ],
)
def test_another_network_is_refused_by_what_was_found(change, message, tmp_path):
    def keep(content, model):
        change(content, model)

    content = changed(keep)
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(CheckpointError, match=message):
        run(file, tmp_path / "out", "--kind edm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl"]


def test_broken_and_foreign_files_of_either_family(tmp_path):
    edm, state = small(), made.openai_unet(**SMALL_OPENAI)
    whole = pickle.dumps(edm, protocol=4)
    torch.save(state, tmp_path / "whole.pt")
    torch.save({"net": edm["ema"], "optimizer_state": {}}, tmp_path / "training-state-000.pt")
    torch.save({"a": Malicious(tmp_path / "touched")}, tmp_path / "code.pt")
    contents = {
        "cut.pkl": whole[: len(whole) // 2],
        "empty.pkl": b"",
        "text.pkl": b"<html>404 Not Found</html>",
        "cut.pt": (tmp_path / "whole.pt").read_bytes()[:-3000],
        "empty.pt": b"",
        "text.pt": b"<html>404 Not Found</html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    openai = CASES["adm qkv first"][1]
    for name, options, message in (
        ("cut.pkl", "--kind edm", "refused|truncated, or no pickle"),
        ("empty.pkl", "--kind edm", "truncated, or no pickle|refused"),
        ("text.pkl", "--kind edm", "truncated, or no pickle|refused"),
        ("training-state-000.pt", "--kind edm", r"is an archive of torch.save, .*training-state-\*.pt"),
        ("cut.pt", openai, "truncated, or not of torch.save"),
        ("empty.pt", openai, "truncated, or not of torch.save"),
        ("text.pt", openai, "truncated, or not of torch.save"),
        ("code.pt", openai, r"refused \(it asks for \S+\)"),
        (
            "training-state-000.pt",
            openai,
            r"refused \(it asks for torch_utils.persistence._reconstruct_persistent_obj\)",
        ),
        ("absent.pt", openai, "is no file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(tmp_path / name, tmp_path / "out", options)
        assert name in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch advises to turn it off
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "touched").exists()


def without(state, *starts):
    return {name: value for name, value in state.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"state_dict": s}, r"holds the keys state_dict; expected names with a tensor each"),
        (lambda s: [1, 2], r"holds a list; expected names"),
        (lambda s: {"conv.weight": torch.zeros(3)}, r"holds the keys conv.weight, without time_embed.0.weight, inp"),
        (lambda s: without(s, "output_blocks", "out.") | {"out.4.c_proj.bias": torch.zeros(3)}, "like the classifiers"),
        (lambda s: without(s, "output_blocks.1.1"), "lacks 10 of the .*up_blocks.0.attentions.1.group_norm.bias"),
        (lambda s: without(s, "input_blocks.1.0.out_layers.3"), "has no input_blocks.1.0.out_layers.3.weight"),
        (lambda s: without(s, "output_blocks.3.0.in_layers.0"), "lacks 2 of the weights of the UNet2DModel"),
        (lambda s: s | {"input_blocks.2.0.op.weight": torch.zeros(3)}, "resblock_updown False"),
        (
            lambda s: s | {"input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3)},
            "takes pictures of 6 channels and gives 3",
        ),
        (
            lambda s: s | {"input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)},
            "embeds the time in 64 channels and has 32",
        ),
        (
            lambda s: s | {"middle_block.1.qkv.weight": torch.zeros(96, 32, 1)},
            "96 rows, expected three times a multiple",
        ),
        (
            lambda s: s | {"extra.weight": torch.zeros(3)},
            "has, beside all that is known, 1 of the weights .*extra.weight",
        ),
        (
            lambda s: s | {"out.2.bias": torch.tensor([0.0, math.nan, 0.0])},
            "contain NaN or infinity, e.g. conv_out.bias",
        ),
    ],
)
def test_another_state_dictionary_is_refused_by_what_was_found(change, message, tmp_path):
    torch.save(change(made.openai_unet(**SMALL_OPENAI)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path / "a.pt", tmp_path / "out", CASES["adm qkv first"][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_options_that_are_missing_foreign_or_wrong(tmp_path):
    openai = write(made.openai_unet(**SMALL_OPENAI), tmp_path / "a.pt")
    network = write(small(), tmp_path / "a.pkl")
    (tmp_path / "taken").mkdir()
    for file, options, message in (
        (openai, "", r"--kind: not given, and docs/teachers.md lists no a.pt; expected edm, guided-diffusion, cons"),
        (openai, "--kind consistency", "--attention: not given"),
        (openai, "--kind guided-diffusion --attention qkv-first", "--schedule: not given"),
        (
            openai,
            "--kind guided-diffusion --attention qkv-first --schedule linear",
            r"--resolution: not given, .* 1, 2 t",
        ),
        (openai, f"{CASES['adm qkv first'][1]} --resolution 9", "--resolution: found 9, expected a multiple of 2"),
        (
            openai,
            "--kind consistency --attention qkv-first --schedule linear",
            "--schedule: not an option of --kind con",
        ),
        (network, "--kind edm --resolution 16", "--resolution: not an option of --kind edm; remove it"),
        (network, "--published mine", "--published: found 'mine', expected one of: edm-cifar10-32x32-uncond-vp.pkl"),
        (network, "--published cd_imagenet64_l2.pt", "cannot be a teacher here: it is a consistency model"),
        (network, "--published edm-cifar10-32x32-cond-vp.pkl", "found 3 classes, expected 10, as https"),
        (network, "--published edm-cifar10-32x32-uncond-vp.pkl", "found 3 classes, expected no, as https"),
    ):
        with pytest.raises(UserError, match=message):
            run(file, tmp_path / "out", options)
    uncond = write(made.preconditioned(ddpmpp(labels=0), 16), tmp_path / "edm-cifar10-32x32-uncond-vp.pkl")
    with pytest.raises(UserError, match="found 16 pixels a side, expected 32"):
        run(uncond, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"128x128_diffusion\.pt: cannot be a teacher here: its attention has four heads"
    ):
        run(openai.rename(tmp_path / "128x128_diffusion.pt"), tmp_path / "out")
    with pytest.raises(UserError, match=r"--output: .*taken exists; expected a new folder"):
        run(network, tmp_path / "taken", "--kind edm")
    assert not (tmp_path / "out").exists()


def test_published_names_bring_their_options(tmp_path):
    state = made.openai_unet(**SMALL_OPENAI, outputs=6, classes=1000)
    file = write(state, tmp_path / "64x64_diffusion.pt")
    denoiser = load_denoiser(run(file, tmp_path / "t", "--resolution 64"))
    explicit = load_guided_diffusion(file, "qkv-first", "cosine", STATIC, 64)
    assert np.array_equal(denoiser.schedule.alphas_cumprod(), explicit.schedule.alphas_cumprod())
    for name, value in explicit.network.state_dict().items():
        assert torch.equal(denoiser.network.state_dict()[name], value)


def test_guided_diffusions_schedules_by_hand():
    linear, cosine = adm_schedule("linear"), adm_schedule("cosine")
    np.testing.assert_allclose(linear.betas()[[0, 500, 999]], [1e-4, 1e-4 + 500 * (0.02 - 1e-4) / 999, 0.02], rtol=1e-9)
    np.testing.assert_allclose(adm_schedule("linear", 4000).betas()[[0, 3999]], [2.5e-5, 0.005], rtol=1e-9)
    turn = np.cos((np.array([0, 1, 500, 999]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alphas_cumprod()[[0, 499, 998]], turn[1:] / turn[0], rtol=1e-9)
    assert cosine.betas()[999] == pytest.approx(0.999, rel=1e-9)
    assert cosine.betas()[:999].max() < 0.999
    assert isinstance(cosine, DiscreteSchedule)


@pytest.mark.parametrize("betas", get_args(Betas))
def test_a_stored_schedule_is_the_one_that_it_was_trained_on(betas, tmp_path):
    file = write(made.openai_unet(**SMALL_OPENAI), tmp_path / "a.pt")
    options = f"--kind guided-diffusion --attention qkv-first --schedule {betas} --resolution 8"
    folder = run(file, tmp_path / "t", options)
    for _ in range(2):  # from our own file, and from the scheduler alone
        denoiser = load_denoiser(folder)
        expected = adm_schedule(betas).alphas_cumprod()
        np.testing.assert_allclose(denoiser.schedule.alphas_cumprod(), expected, rtol=1e-6)
        assert (denoiser.prediction_type, denoiser.thresholding.kind) == ("epsilon", "static")
        (folder / "schedule.json").unlink(missing_ok=True)


def one_step_of_boot(folder, state):
    teacher = load_denoiser(folder)
    settings = BootSettings.model_validate({"training": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3}})
    with TrainingRun(state, "k", 0, CPU) as training:
        (student,) = Boot(settings).distil(teacher, training, None)
    return teacher, student


@pytest.mark.parametrize("name", CASES)
def test_a_converted_teacher_is_distilled_and_drawn_from(name, tmp_path):
    folder, size = converted(name, tmp_path, "--thresholding none")
    teacher, student = one_step_of_boot(folder, tmp_path / "state")
    moved = [
        not torch.equal(before, after)
        for before, after in zip(teacher.network.parameters(), student.network.parameters(), strict=True)
    ]
    assert any(moved)
    Boot(BootSettings()).save(tmp_path / "student", student.network, teacher)
    condition = {"class_labels": LABELS} if isinstance(teacher.conditions, ClassLabels) else None
    noise = initial_noise(0, range(3), (3, size, size))
    sampler, _ = Boot(BootSettings()).sampler(tmp_path / "student", 1, CPU)
    given = {"class_labels": None if condition is None else LABELS, "latents": noise, "output_type": "pt"}
    drawn = LocalPipeline.from_pretrained(tmp_path / "student")(**given).images
    images = LocalPipeline.from_pretrained(folder)(num_inference_steps=4, **given).images
    with torch.no_grad():
        assert torch.equal(drawn, sampler(noise, condition))
        assert torch.equal(images, ddim_sample(teacher, noise, 4, condition))


def experiment(folder, size, **teacher):
    raw = yaml.safe_load(TINY.read_text())
    raw["data"] = {"kind": "images", "path": "nowhere", "resolution": size}
    raw["teacher"] = {"path": str(folder), **teacher}
    raw["methods"] = {
        "ddim": raw["methods"]["ddim"],
        "boot": {"method": "boot", "training": {"steps": 2, "batch_size": 4}},
    }
    raw["evaluation"] |= {"teacher": {"variant": "ddim", "nfe": 4}}
    raw.pop("comparison", None)
    return raw


@pytest.mark.parametrize("name", ["ddpmpp", "consistency", "adm heads first"])
def test_the_configuration_and_the_estimate_know_a_converted_teacher(name, tmp_path):
    folder, size = converted(name, tmp_path)
    parsed = parse_experiment(experiment(folder, size), look_at_files=False)
    assert parsed.conditional
    found = estimate(parsed, CPU, 0)
    assert found.network.num_weights == sum(weight.numel() for weight in load_denoiser(folder).network.parameters())
    assert found.network.operations > 1e6
    row = next(row for row in found.rows if row.rule == "distil")
    assert row.trained > 0
    with pytest.raises(UserError, match=f"makes images of shape .3, {size}, {size}., but the data set's are"):
        parse_experiment(experiment(folder, 2 * size), look_at_files=False)
    if name == "ddpmpp":
        assert (
            parse_experiment(experiment(folder, size, guidance_scale=2), look_at_files=False).teacher.guidance_scale
            == 2
        )
    else:
        with pytest.raises(UserError, match="has no unconditional input"):
            parse_experiment(experiment(folder, size, guidance_scale=2), look_at_files=False)


def test_a_checkpoint_named_as_a_teacher_is_answered_with_the_command(tmp_path):
    file = write(small(), tmp_path / "a.pkl")
    with pytest.raises(UserError, match=r"teacher.path: .*a.pkl' is a file.*suite.cli convert --checkpoint"):
        parse_experiment(experiment(file, 16))


def test_song_unet_is_called_as_a_unet_is():
    torch.manual_seed(0)
    network = SongUNet(8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for told in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5]), torch.tensor(0.5, dtype=torch.float64)):
            assert torch.equal(
                network.eval()(x, told).sample, network(x, torch.tensor([0.5, 0.5]), return_dict=False)[0]
            )
        assert float(network(x, 0.5).sample.abs().max()) < 1e-2  # a fresh network starts next to zero
        assert not torch.equal(network.train()(x, 0.5).sample, network(x, 0.5).sample)
        student = student_network(load_like(network)).train()
        assert torch.equal(student(x, 0.5).sample, student(x, 0.5).sample)
    with pytest.raises(ValueError, match="class_labels for a network without classes"):
        network(x, 0.5, torch.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="no class_labels"):
        SongUNet(8, model_channels=16, channel_mult=(1,), num_blocks=1, num_class_embeds=2)(x, 0.5)
    for wrong, message in (
        ({"sample_size": 9}, "sample_size: found 9, expected a multiple of 8"),
        ({"sample_size": 8, "encoder_type": "skip"}, "encoder_type: found 'skip'"),
        ({"sample_size": 8, "embedding_type": "learned"}, "embedding_type: found 'learned'"),
    ):
        with pytest.raises(ValueError, match=message):
            SongUNet(**wrong)


def load_like(network):
    """A denoiser around a network, as far as a student's copy needs one."""

    class Around:
        told_scale = False

        def __init__(self):
            self.network = network

    return Around()


def test_song_unet_runs_in_half_precision():
    network = SongUNet(8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,)).bfloat16()
    with torch.no_grad():
        output = network(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), torch.tensor([0.1, 0.2])).sample
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_the_scaled_time_is_the_same_network_at_another_time():
    torch.manual_seed(0)
    arguments = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    scaled, plain = TimeScaledUNet(timestep_scale=1000.0, **arguments), UNet2DModel(**arguments)
    plain.load_state_dict(scaled.state_dict())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        told = torch.tensor([0.25, -0.5])
        assert torch.equal(scaled(x, told).sample, plain(x, 1000 * told).sample)
        assert torch.equal(scaled(x, 0.25).sample, plain(x, torch.tensor(250.0)).sample)
    again = TimeScaledUNet.from_config(json.loads(scaled.to_json_string()))
    assert again.config.timestep_scale == 1000
    assert again.config.block_out_channels == (32, 32) or list(again.config.block_out_channels) == [32, 32]


def test_the_documentation_lists_what_is_published():
    page = (ROOT / "docs" / "teachers.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| [`")]
    listed = {}
    for checkpoint, kind, size, classes, attention, schedule, _ in rows:
        name, address = checkpoint.removeprefix("[`").removesuffix(")").split("`](")
        listed[name] = (address, kind, size, classes, attention, schedule)
    dash = "–"
    assert listed == {
        name: (
            known.address,
            f"`{known.kind}`",
            str(known.resolution),
            str(known.classes or dash),
            f"`{known.attention}`" if known.attention else dash,
            f"`{known.schedule}`" if known.schedule else dash,
        )
        for name, known in PUBLISHED.items()
    }


def test_the_experiment_in_the_documentation_is_one(tmp_path):
    page = (ROOT / "docs" / "teachers.md").read_text()
    blocks = [yaml.safe_load(text.split("```")[0]) for text in page.split("```yaml\n")[1:]]
    (block,) = (found for found in blocks if "path" in found["teacher"])
    commands = page.split("```yaml")[0]
    assert f"--output {block['teacher']['path']}" in commands
    address, name = commands.split("wget ")[1].split()[0].rsplit("/", 1)
    assert PUBLISHED[name].address == f"{address}/{name}"
    assert f"--checkpoint {name}" in commands
    tree = made.song_unet(**SMALL_SONG | {"size": 32}, multiples=(1, 2))
    block["teacher"]["path"] = str(run(write(made.preconditioned(tree, 32), tmp_path / name), tmp_path / "teacher"))
    assert parse_experiment(block).evaluation.teacher.nfe == 50


def test_unconditional_teachers_are_told_nothing(tmp_path):
    folder, _ = converted("ncsnpp", tmp_path)
    denoiser = load_denoiser(folder)
    assert isinstance(denoiser.conditions, Unconditional)
    assert denoiser.schedule.settings() == EdmSchedule().settings()
    assert "training.networks" not in sys.modules
