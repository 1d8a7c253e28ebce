"""Compiled steps: the same losses, the same counts, refused where the device cannot."""

import os

import pytest
import torch
from tiny import SMALLEST, stored_data, tiny_denoiser

from boot.distillation import Boot, BootSettings
from diffusion.conditions import ClassLabels
from diffusion.runtime.errors import UserError
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings

CPU = torch.device("cpu")
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5}


@pytest.fixture
def traced(monkeypatch):
    """What a step is here: traced whole, forwards and backwards, and run as it was traced. What torch's compiler makes
    of the trace takes minutes: one method stands for it (distillation/test_methods.py), or all with
    BOOT_TEST_COMPILE=1."""
    if not os.environ.get("BOOT_TEST_COMPILE"):
        compiled = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda function, dynamic, **_: compiled(function, dynamic=dynamic, backend="aot_eager")
        )


def boot(folder, mode, device=CPU, training=None, **options):
    with TrainingRun(folder / mode, "key", 0, device) as run:
        chosen = TRAINING | {"compile": mode} | (training or {})
        method = Boot(BootSettings.model_validate({"training": chosen, **options}))
        student = method.distil(tiny_denoiser(network=SMALLEST).to(device), run, None)[0]
    return [row["loss"] for row in run.log], student.cost["network_evaluations"], student.network


def test_a_compiled_step_of_boot_has_the_same_losses_and_counts(tmp_path, traced):
    options = {"bootstrap_from": "average", "solver": "etd2"}
    eager, compiled = boot(tmp_path, "off", **options), boot(tmp_path, "default", **options)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-4)
    assert compiled[1] == eager[1] == 4 * (8 + 2 + 8 + 8 + 2 + 8)
    for one, other in zip(eager[2].parameters(), compiled[2].parameters(), strict=True):
        # Adam turns the rounding of a gradient near zero into a share of a step, which is the learning rate.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


def test_a_compiled_teacher_has_the_same_losses(tmp_path, traced):
    """Also with the other settings that leave the losses as they are."""
    split = stored_data(tmp_path / "data")

    def losses(mode):
        other = {"activation_checkpointing": True, "channels_last": True} if mode != "off" else {}
        training = TRAINING | {"compile": mode, "steps": 2} | other
        network = SMALLEST | {"attention_resolutions": [8]}
        settings = TeacherSettings.model_validate({"network": network, "labels": True, "training": training})
        with TrainingRun(tmp_path / f"teacher-{mode}", "key", 0, CPU) as run:
            teacher, cost = train_teacher(settings, split, run)
        teacher.requires_grad_(False)
        assert teacher.conditions == ClassLabels(2, has_null=True)
        assert cost["network_evaluations"] == 16
        return [row["loss"] for row in run.log]

    assert losses("default") == pytest.approx(losses("off"), rel=1e-3)


class Counted(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x).sum()


def test_counting_a_compiled_step_draws_nothing(tmp_path, monkeypatch):
    """Dropout draws from the step's own seed, the first step of a process included."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    settings = TrainingSettings(steps=1, compile="default")
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        network = Counted()
        run.count(network)
        step = run.compiled(lambda x: network(x), settings)
        values = []
        for _ in range(2):
            torch.manual_seed(0)
            values.append(float(step(torch.ones(8, 4))))
        torch.manual_seed(0)
        assert values == [float(network(torch.ones(8, 4)))] * 2


def test_cuda_graphs_without_a_cuda_device_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"training\.compile: found 'cudagraphs'"):
        boot(tmp_path, "cudagraphs")


def test_gradients_of_micro_batches_are_added_up_where_no_cuda_graph_overwrites_them(tmp_path):
    """torch adds to the first micro-batch's gradient in place, and a graph's replay overwrites what the last one gave.
    Here the losses are plain, so that the sums, and the weights, are the same bits."""

    def train(compiled):
        torch.manual_seed(0)
        network, places = torch.nn.Linear(4, 4), []
        settings = TrainingSettings(
            steps=3, batch_size=6, gradient_accumulation_steps=3, learning_rate=0.1, compile=compiled
        )

        def loss(step):
            gradient = network.weight.grad
            places.append(None if gradient is None else gradient.data_ptr())
            return network(torch.randn(2, 4, generator=step.generator)).square().mean()

        with TrainingRun(tmp_path / compiled, "key", 0, CPU) as run:
            run.fit("only", network, loss, settings)
        assert network.weight.grad is None
        return network.weight, places

    plain, places = train("off")
    assert [place is None for place in places] == [True, False, False] * 3
    graphs, places = train("cudagraphs")
    assert None not in places
    assert [len(set(places[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]  # anew for every step
    assert torch.equal(plain, graphs)
