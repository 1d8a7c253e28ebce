"""How networks are computed while they train: precision, memory format, activations that are computed again."""

import copy
import json
import os

import pytest
import torch
from peak import peak_bytes
from test_training import SETTINGS, train
from tiny import NETWORK, stored_data, tiny_denoiser
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from boot.distillation import Boot, BootSettings
from diffusion.runtime.errors import UserError
from diffusion.runtime.precision import float32_products, repeatable
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.training.average import MovingAverage
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from evaluation.measure.extractor import reproducible_arithmetic
from suite.provenance import write_provenance

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5}


def boot(folder, watch=None, teacher=None, **training):
    """Losses, the student, the run; ``watch`` is called with the trained network in the middle of the training."""
    with TrainingRun(folder, "key", 0, CPU) as run:
        if watch is not None:
            draw = run.generator

            def generator(stage, step, number=0):
                watch(next(n for n in run._networks if next(n.parameters()).requires_grad))
                return draw(stage, step, number)

            run.generator = generator
        method = Boot(BootSettings.model_validate({"training": TRAINING | training}))
        (student,) = method.distil(teacher or tiny_denoiser(), run, None)
    return [row["loss"] for row in run.log], student.network, run


@pytest.fixture
def data(tmp_path):
    return stored_data(tmp_path / "data")


def teacher_losses(folder, data, dropout=0.0, **training):
    settings = TeacherSettings.model_validate(
        {"network": NETWORK | {"dropout": dropout}, "training": TRAINING | training}
    )
    with TrainingRun(folder, "key", 0, CPU) as run:
        teacher, _cost = train_teacher(settings, data, run)
    return [row["loss"] for row in run.log], teacher.network


def assert_same_weights(one, other, rtol=1e-4):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        # Adam turns the rounding of a gradient near zero into a step, which is the learning rate.
        torch.testing.assert_close(a, b, rtol=rtol, atol=TRAINING["learning_rate"], msg=name)


# -- activations that are computed again ----------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_teacher_trains_the_same_with_recomputed_activations(tmp_path, data, slices, dropout):
    """Dropout included: what is computed again draws what it drew the first time."""
    options = {"dropout": dropout, "gradient_accumulation_steps": slices}
    losses, network = teacher_losses(tmp_path / "kept", data, **options)
    again, other = teacher_losses(tmp_path / "again", data, activation_checkpointing=True, **options)
    assert again == pytest.approx(losses, rel=1e-6)
    assert_same_weights(network, other)
    assert not other.is_gradient_checkpointing


@pytest.mark.parametrize("slices", [1, 2])
def test_boot_trains_the_same_with_recomputed_activations(tmp_path, slices):
    seen = []
    losses, student, _ = boot(tmp_path / "kept", gradient_accumulation_steps=slices)
    again, other, run = boot(
        tmp_path / "again",
        lambda network: seen.append(network.is_gradient_checkpointing),
        gradient_accumulation_steps=slices,
        activation_checkpointing=True,
    )
    assert seen == [True] * 3 * slices
    assert again == pytest.approx(losses, rel=1e-6)
    assert_same_weights(student, other)
    assert not other.is_gradient_checkpointing
    assert run.arithmetic == {"boot": "float32, activations recomputed"}


def test_recomputed_activations_take_less_memory():
    settings = NetworkSettings(block_out_channels=(32, 32), layers_per_block=4)
    network = build_network(settings, (1, 32, 32))
    x = torch.randn(8, 1, 32, 32)

    def step():
        network(x, torch.zeros(8)).sample.square().mean().backward()
        network.zero_grad(set_to_none=True)

    step()
    kept = peak_bytes(step)
    network.enable_gradient_checkpointing()
    assert peak_bytes(step) < 0.6 * kept


def test_a_network_that_cannot_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"activation_checkpointing: found true, expected false: a Sequential cannot"):
        train(tmp_path / "state", SETTINGS.model_copy(update={"activation_checkpointing": True}))


# -- memory format --------------------------------------------------------------------------------------------------


def is_channels_last(network):
    weights = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    found = {p.is_contiguous(memory_format=torch.channels_last) for p in weights}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_lie_beside_each_other_while_training_and_not_after(tmp_path, wanted):
    seen, outputs = [], []
    teacher = tiny_denoiser()

    def watch(network):
        seen.append((is_channels_last(network), is_channels_last(teacher.network)))
        convolution = network.down_blocks[0].resnets[0].conv1
        if not outputs:
            convolution.register_forward_hook(lambda _m, _i, out: outputs.append(out))

    _, student, run = boot(tmp_path / "run", watch, teacher, channels_last=wanted)
    assert seen == [(wanted, wanted)] * 3
    assert outputs
    assert {out.is_contiguous(memory_format=torch.channels_last) for out in outputs} == {wanted}
    assert not is_channels_last(student)
    assert not is_channels_last(teacher.network)
    assert run.arithmetic == {"boot": "float32, channels last" if wanted else "float32"}


def test_another_layout_trains_the_same(tmp_path, data):
    losses, student, _ = boot(tmp_path / "contiguous", channels_last=False)
    again, other, _ = boot(tmp_path / "last", channels_last=True)
    assert again == pytest.approx(losses, rel=1e-4)
    assert_same_weights(student, other, rtol=1e-2)
    losses, teacher = teacher_losses(tmp_path / "teacher", data)
    again, other = teacher_losses(tmp_path / "teacher-last", data, channels_last=True)
    assert again == pytest.approx(losses, rel=1e-4)
    assert_same_weights(teacher, other, rtol=1e-2)


def test_a_run_goes_on_in_another_layout(tmp_path):
    """As when "auto" means something else on the device it goes on on. The optimiser's moments must follow."""

    def convolutions():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 4))

    def fit(folder, channels_last, stop_after=None):
        network = convolutions()
        settings = SETTINGS.model_copy(update={"channels_last": channels_last})
        done = 0

        def loss(step):
            nonlocal done
            if done == stop_after:
                raise KeyboardInterrupt
            done += 1
            return network(torch.randn(4, 3, 5, 5, generator=step.generator)).square().mean()

        with TrainingRun(folder, "key", 0, CPU, checkpoint_seconds=0) as run:
            return run.fit("only", network, loss, settings).network, run.arithmetic

    whole, _ = fit(tmp_path / "whole", False)
    for first, then in ((False, True), (True, False)):
        folder = tmp_path / f"{first}-{then}"
        with pytest.raises(KeyboardInterrupt):
            fit(folder, first, stop_after=9)
        resumed, arithmetic = fit(folder, then)
        assert_same_weights(whole, resumed)
        words = {True: "float32, channels last", False: "float32"}
        assert arithmetic == {"only": f"{words[first]}; then {words[then]}"}
        assert fit(folder, then)[1] == arithmetic


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "capability", "bf16", "expected", "channels_last"),
    [
        ("auto", None, True, "fp32", False),
        ("auto", (7, 5), True, "fp32", False),
        ("auto", (8, 0), True, "bf16", True),
        ("auto", (8, 0), False, "tf32", False),
        ("fp32", (9, 0), True, "fp32", False),
        ("tf32", (9, 0), True, "tf32", False),
        ("bf16", (9, 0), False, "bf16", True),
        ("bf16", None, False, "bf16", False),
    ],
)
def test_what_auto_comes_to(monkeypatch, precision, capability, bf16, expected, channels_last):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    settings = TrainingSettings(steps=1, precision=precision)
    found = settings.resolved(CARD if capability else CPU, bf16)
    assert (found.precision, found.channels_last) == (expected, channels_last)
    chosen = TrainingSettings(steps=1, precision=precision, channels_last=not channels_last)
    assert chosen.resolved(CARD if capability else CPU, bf16).channels_last is not channels_last


@pytest.mark.parametrize("device", [CPU, CARD])
def test_tf32_without_a_card_that_has_it_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    with pytest.raises(UserError, match=r"training\.precision: found 'tf32' on the device .*, expected 'auto'"):
        TrainingSettings(steps=1, precision="tf32").resolved(device)


def switches():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_products_of_float32_are_shortened_within_and_left_as_they_were():
    before = switches()
    with float32_products(CPU, tf32=True):
        assert switches() == before
    for tf32, within in ((True, ("high", True)), (False, ("highest", False))):
        with float32_products(CARD, tf32=tf32):
            assert switches() == within
        assert switches() == before
    with pytest.raises(KeyboardInterrupt), float32_products(CARD, tf32=True):
        raise KeyboardInterrupt
    assert switches() == before


@pytest.mark.parametrize(("device", "wanted", "expected"), [(CARD, "1", True), (CARD, "", False), (CPU, "1", False)])
def test_a_gpu_repeats_itself_within_where_that_is_wanted(monkeypatch, device, wanted, expected):
    monkeypatch.setenv("BOOT_DETERMINISTIC", wanted)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with repeatable(device):
        assert torch.are_deterministic_algorithms_enabled() == expected
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if expected else None)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyboardInterrupt), repeatable(device):
        raise KeyboardInterrupt
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_says_so(tmp_path):
    torch.use_deterministic_algorithms(True)
    try:
        _, _, run = boot(tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert run.arithmetic == {"boot": "float32, deterministic"}


def test_features_are_exact_whatever_was_set_before():
    before = switches()
    torch.set_float32_matmul_precision("high")
    try:
        with reproducible_arithmetic(CARD):
            assert switches() == ("highest", False)
        assert switches() == ("high", before[1])
    finally:
        torch.set_float32_matmul_precision(before[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_trains_in_what_it_says(tmp_path, monkeypatch, precision):
    """On a card, whose two switches are all that a test without one can see."""
    seen = []
    monkeypatch.setattr(
        "diffusion.training.loop.float32_products",
        lambda _device, tf32: seen.append(tf32) or float32_products(CARD, tf32),
    )
    within = []
    _, _, run = boot(tmp_path / "run", lambda _network: within.append(switches()), precision=precision)
    assert seen == [precision != "fp32"]
    assert within == [("high", True) if precision == "bf16" else ("highest", False)] * 3
    assert run.arithmetic == {"boot": "bfloat16 autocast" if precision == "bf16" else "float32"}


def test_boot_under_bfloat16_trains_every_weight(tmp_path):
    """The student is first evaluated without gradients: weights that autocast had cached there would get none."""
    teacher = tiny_denoiser()
    exact, student, _ = boot(tmp_path / "fp32", teacher=teacher, precision="fp32")
    losses, short, _ = boot(tmp_path / "bf16", teacher=teacher, precision="bf16")
    assert losses == pytest.approx(exact, rel=0.3)
    assert losses != exact
    for (name, before), (_, after) in zip(teacher.network.named_parameters(), short.named_parameters(), strict=True):
        moved = (student.get_parameter(name) - before).norm()
        if moved > 0:  # the keys' bias has no gradient: a softmax does not see it
            assert (after - before).norm() > 0.5 * moved, name


def test_the_words_are_in_the_provenance(tmp_path):
    _, _, run = boot(tmp_path / "run")
    write_provenance(tmp_path / "provenance.json", {}, None, arithmetic=run.arithmetic)
    assert json.loads((tmp_path / "provenance.json").read_text())["arithmetic"] == {"boot": "float32"}


# -- the average ----------------------------------------------------------------------------------------------------


def test_the_moving_average_is_torchs_to_the_bit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    ours, theirs = MovingAverage(network, 0.9), AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
            network(torch.randn(2, 1, 5, 5))  # moves the buffers
        for average in (ours, theirs):
            average.update_parameters(network)
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
    assert not any(p.requires_grad for p in ours.parameters())
    assert all(p.requires_grad for p in network.parameters())
    resumed = MovingAverage(copy.deepcopy(network), 0.9)
    resumed.load_state_dict(ours.state_dict())
    for average in (ours, resumed):
        average.update_parameters(network)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), resumed.parameters(), strict=True))
