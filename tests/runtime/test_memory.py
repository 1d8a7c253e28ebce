"""What is said when a batch does not fit the device's memory: which one does, found by trying."""

import gc
import re

import pytest
import torch
from tiny import tiny_denoiser
from torch import nn

from baselines.samplers import Ddim, DdimSettings
from diffusion.distillation.pairs import PairsSettings, generate_pairs
from diffusion.runtime.errors import DeviceMemoryError
from diffusion.runtime.memory import halves, largest_fitting, memory_of, within_memory
from diffusion.runtime.processes import Processes
from diffusion.teachers.folder import save_denoiser
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from diffusion.training.stage import Stage
from evaluation.measure.speed import measure_speed
from suite.jobs.sampling import draw_samples

CPU = torch.device("cpu")


class Small(nn.Module):
    """A device with room for ``room`` pictures; also a network, so that its activations are let go or not."""

    def __init__(self, room):
        super().__init__()
        self.room, self.tried = room, []
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        self.tried.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layer(x)


def train(folder, network, before_step=None, **settings):
    chosen = TrainingSettings(steps=2, batch_size=24, learning_rate=0.1, **settings)

    def loss(step):
        x = torch.randn(step.batch_size, 4, generator=step.generator)
        return network(x).square().mean()

    with TrainingRun(folder, "key", 0, CPU) as run:
        return run.fit("boot", network, loss, chosen, before_step=before_step)


@pytest.mark.parametrize(("room", "slices"), [(23, 2), (8, 3), (7, 4), (1, 24)])
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_training_names_the_slices_that_fit(tmp_path, room, slices, ema_decay):
    network = Small(room)
    expected = (
        rf"stage boot: 24 pictures at once are more than the memory of cpu can take\. "
        rf"training\.gradient_accumulation_steps: found 1, expected {slices}, in slices of {24 // slices}; "
        rf"the batch of a step stays 24\."
    )
    with pytest.raises(DeviceMemoryError, match=expected) as caught:
        train(tmp_path / "state", network, ema_decay=ema_decay)
    assert "training.activation_checkpointing: true" in str(caught.value)
    # Twice at the size that fits: from the second slice on there is a gradient beside the activations.
    assert network.tried == [24, *(24 // n for n in (2, 3, 4, 6, 8, 12, 24) if 24 // n > room), *2 * [24 // slices]]
    # And with what it says it trains.
    network.tried.clear()
    train(tmp_path / "other", network, ema_decay=ema_decay, gradient_accumulation_steps=slices)
    assert network.tried == 2 * slices * [24 // slices]


def test_optimiser_and_average_are_let_go_before_smaller_slices_are_tried(tmp_path):
    class Watching(Small):
        def forward(self, x):
            if len(x) < 24:
                held.append(sum(type(one) is Stage for one in gc.get_objects()))
            return super().forward(x)

    held = []
    with pytest.raises(DeviceMemoryError):
        train(tmp_path / "state", Watching(12), ema_decay=0.5)
    assert held == [0, 0]


def test_slices_that_are_not_small_enough(tmp_path):
    with pytest.raises(DeviceMemoryError, match=r"8 pictures at once .* found 3, expected 6, in slices of 4;"):
        train(tmp_path / "state", Small(5), gradient_accumulation_steps=3)


def test_micro_batches_must_fit_a_second_network_too(tmp_path):
    second = Small(5)

    def before_step(steps):
        for step in steps:
            second(torch.randn(step.batch_size, 4, generator=step.generator)).mean().backward()

    with pytest.raises(DeviceMemoryError, match=r"24 pictures at once .* found 1, expected 6, in slices of 4;"):
        train(tmp_path / "state", network := Small(11), before_step)
    assert second.tried == [24, 12, 8, 6, *2 * [4]]
    assert network.tried == 2 * [4]


def test_a_process_tries_alone(tmp_path, monkeypatch):
    """The others wait in the step that failed: what it sums over processes while it tries would meet their sums."""
    monkeypatch.setattr("diffusion.training.cost.join", lambda _device: Processes(0, 2))
    monkeypatch.setattr(Processes, "wait", lambda _self: None)
    network, sizes = Small(3), []
    run = TrainingRun(tmp_path / "state", "key", 0, CPU)

    def before_step(_steps):
        sizes.append(run.processes.size)

    settings = TrainingSettings(steps=1, batch_size=24, gradient_accumulation_steps=2)
    with run, pytest.raises(DeviceMemoryError, match="found 2, expected 8, in slices of 3;"):
        run.fit(
            "s", network, lambda step: network(torch.ones(step.batch_size, 4)).mean(), settings, before_step=before_step
        )
    assert sizes == [2, 1, 1, 1]


def test_not_even_one(tmp_path):
    with pytest.raises(DeviceMemoryError, match=r"Not one fits: another program may hold the memory"):
        train(tmp_path / "state", Small(0))


def test_other_errors_are_not_swallowed(tmp_path):
    class Broken(Small):
        def forward(self, x):
            raise RuntimeError("shapes differ" if len(x) < 24 else "DefaultCPUAllocator: can't allocate memory: 1 byte")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tmp_path / "state", Broken(0))


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_gpu_that_has_no_room_says_so_in_many_words(tmp_path, words):
    """All come as a plain RuntimeError. Where no batch at all fits, it may have been something else: it is quoted."""

    class Wordy(Small):
        def forward(self, x):
            if len(x) > self.room:
                raise RuntimeError(words)
            return super().forward(x)

    with pytest.raises(DeviceMemoryError, match=r"found 1, expected 4, in slices of 6"):
        train(tmp_path / "some", Wordy(7))
    quoted = re.escape(words.splitlines()[0])
    with pytest.raises(DeviceMemoryError, match=rf"Not one fits: .* torch says: {quoted}\."):
        train(tmp_path / "none", Wordy(0))

    def attempt(size):
        raise RuntimeError(words)

    with pytest.raises(DeviceMemoryError, match=rf"not even one picture fits: .* torch says: {quoted}"):
        within_memory("evaluation.batch_size", attempt, 9, CPU)


def test_what_did_not_fit_is_let_go_before_the_next_try():
    import weakref

    held = []

    def attempt(size):
        activations = torch.zeros(size)
        assert not any(reference() is not None for reference in held), "the last try's tensors are still there"
        held.append(weakref.ref(activations))
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return activations

    with pytest.raises(torch.OutOfMemoryError) as caught:
        attempt(8)
    assert largest_fitting(caught.value, attempt, [4, 2, 1], CPU).size == 2
    assert len(held) == 3


def test_halves():
    assert halves(24) == [12, 6, 3, 1]
    assert halves(1) == []


def limited(room):
    def attempt(size):
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return size

    return attempt


def test_a_batch_of_samples():
    assert within_memory("evaluation.batch_size", limited(8), 8, CPU) == 8
    with pytest.raises(DeviceMemoryError, match=r"evaluation\.batch_size: found 9, .* expected at most 4\.$"):
        within_memory("evaluation.batch_size", limited(7), 9, CPU)
    with pytest.raises(DeviceMemoryError, match=r"found 9, .* and not even one picture fits"):
        within_memory("evaluation.batch_size", limited(0), 9, CPU)


def test_a_card_is_named_with_its_memory_and_the_peak(monkeypatch):
    class Card:
        name, total_memory = "NVIDIA H100", 80 * 2**30

    for name, value in {
        "get_device_properties": Card,
        "max_memory_allocated": 12.25 * 2**30,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    card = torch.device("cuda", 0)
    assert memory_of(card) == "the 80.0 GiB of NVIDIA H100"
    with pytest.raises(DeviceMemoryError) as caught:
        within_memory("speed.batch_sizes", limited(5), 8, card)
    assert str(caught.value) == (
        "speed.batch_sizes: found 8, more than the 80.0 GiB of NVIDIA H100 can take; expected at most 4 "
        "(tried: 12.2 GiB at the peak)."
    )


class Crowded:
    """Forward hook of a network that has room for few pictures."""

    def __init__(self, room):
        self.room = room

    def __call__(self, _module, inputs):
        limited(self.room)(len(inputs[0]))


def test_sampling_pairs_and_speed_name_their_batch(tmp_path, monkeypatch):
    teacher = tiny_denoiser()
    save_denoiser(tmp_path / "teacher", teacher)
    method = Ddim(DdimSettings(num_inference_steps=(2,)))
    make = method.sampler

    def crowded(folder, nfe, device, conditions=None):
        sampler, network = make(folder, nfe, device, conditions)
        network.register_forward_pre_hook(Crowded(3))
        return sampler, network

    monkeypatch.setattr(method, "sampler", crowded)
    with pytest.raises(DeviceMemoryError, match=r"evaluation\.batch_size: found 8, .* at most 2\."):
        next(draw_samples(method, tmp_path / "teacher", 2, 0, 16, 8, CPU))
    assert sum(len(batch) for batch in draw_samples(method, tmp_path / "teacher", 2, 0, 16, 2, CPU)) == 16

    handle = teacher.network.register_forward_pre_hook(Crowded(3))
    (tmp_path / "pairs").mkdir()
    few = PairsSettings(count=8, num_inference_steps=1)
    with (
        TrainingRun(tmp_path / "run", "key", 0, CPU) as run,
        pytest.raises(DeviceMemoryError, match=r"evaluation\.batch_size: found 8, .* at most 2\."),
    ):
        generate_pairs(few, teacher, run, tmp_path / "pairs", batch_size=8)
    handle.remove()

    sampler = crowded(tmp_path / "teacher", 2, CPU)[0]
    with pytest.raises(DeviceMemoryError, match=r"speed\.batch_sizes: found 6, .* at most 3\."):
        measure_speed({"ddim": sampler}, lambda count: torch.randn(count, 1, 8, 8), [6], "cpu", seconds=0)
