"""What takes turns in the benchmark of training: the suite's own loop, a plain one, its bare passes, a product."""

import copy
import gc
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion.data.store import Shards, Split
from diffusion.teachers.networks.unet import build_network
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from suite.configuration.experiment import Experiment

CLASSES = 10  # of a class-conditional network; their number costs nothing


class OutOfTime(BaseException):
    """The time is over. No Exception, so that nothing on the way takes it for one of its own."""


class RoundsAreOver(Exception):
    """Ends a training that would have gone on."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raises OutOfTime within it when the deadline has come, in the middle of a compilation too, and again after 5
    seconds, in case that it was raised where Python ignores errors (in a destructor)."""

    def over(_signal: int, _frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()), 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release(device: torch.device) -> None:
    """Lets go of what the last measurement held."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


class Product:
    """A product of matrices that is large enough to keep the device busy, of bfloat16 on a GPU, float32 elsewhere."""

    def __init__(self, device: torch.device) -> None:
        size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
        self.factors = torch.randn(2, size, size, device=device).to(dtype)
        self.operations = 2 * size**3

    def __call__(self) -> None:
        torch.mm(*self.factors)


class PlainLoop:
    """A noise-predicting network trained with the parts that `diffusers` and `accelerate` offer, nothing tuned."""

    def __init__(self, experiment: Experiment, batch: int, device: torch.device) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        data = experiment.data
        labels = CLASSES + 1 if conditional(experiment) else None
        network: Any = build_network(experiment.teacher.network, data.shape, labels)
        self.accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu")
        kind = {"model_cls": type(network), "model_config": network.config}
        self.average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, **kind)
        self.average.to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        rates = get_scheduler("cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=1_000_000)
        self.network, self.optimiser, self.rates = self.accelerator.prepare(network, optimiser, rates)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.pictures = torch.randn(batch, *data.shape, device=device)
        self.told = {"class_labels": torch.zeros(batch, dtype=torch.int64, device=device)} if labels else {}
        self.network.train()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            noise = torch.randn_like(self.pictures)
            last = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, last, (len(noise),), device=noise.device)
            noisy = self.scheduler.add_noise(self.pictures, noise, timesteps)
            with self.accelerator.accumulate(self.network):
                predicted = self.network(noisy, timesteps, **self.told).sample
                loss = nn.functional.mse_loss(predicted, noise)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimiser.step()
                self.rates.step()
                self.optimiser.zero_grad()
            self.average.step(self.network.parameters())
            loss.item()  # the example's progress bar shows every one


class Recorder:
    """Forward hook that keeps what networks were fed; the same one in a network and in its copies."""

    def __init__(self) -> None:
        self.recording = False
        self.passes: list[tuple[nn.Module, torch.Tensor, torch.Tensor, dict[str, Any], bool]] = []

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.recording:
            self.passes.append((module, inputs[0].detach(), inputs[1].detach(), keywords, torch.is_grad_enabled()))

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Recorder":
        return self


class InTurns(TrainingRun):
    """A real training that calls ``turn`` before every step, outside of all that the step consists of."""

    def __init__(
        self, folder: Path, device: torch.device, turn: Callable[[int], None], recorder: Recorder | None
    ) -> None:
        super().__init__(folder, "benchmark", 0, device, checkpoint_seconds=math.inf)
        self.turn, self.recorder = turn, recorder

    def count(self, network: nn.Module) -> None:
        before = len(network._forward_pre_hooks)
        super().count(network)
        if self.recorder is not None and len(network._forward_pre_hooks) > before:
            network.register_forward_pre_hook(self.recorder, with_kwargs=True)

    def generator(self, stage: str, step: int, number: int = 0) -> torch.Generator:
        if stage != "initialisation" and number == 0:
            self.turn(step)
        return super().generator(stage, step, number)


def bare_passes(recorder: Recorder, settings: TrainingSettings, device: torch.device) -> Callable[[], None]:
    """The recorded evaluations and a step of the optimiser, and nothing else."""
    trained = next(module for module, *_, learns in recorder.passes if learns)
    network = copy.deepcopy(trained)  # so that no gradient is left in the real one
    optimiser = settings.optimiser_of(network)
    enabled = settings.precision == "bf16"

    def once() -> None:
        for module, x, timesteps, keywords, learns in recorder.passes:
            evaluated = network if module is trained else module
            with (
                torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False),
                torch.set_grad_enabled(learns),
            ):
                output = evaluated(x, timesteps, **keywords)[0]
                if learns:
                    value = output.float().square().mean()
            if learns:
                value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return once


def conditional(experiment: Experiment) -> bool:
    return bool(experiment.teacher.labels)


def some_pictures(experiment: Experiment) -> Split:
    data, rng, count = experiment.data, np.random.default_rng(0), 512
    images = rng.integers(0, 256, (count, *data.shape[1:], data.shape[0]), dtype=np.uint8)
    names = tuple(map(str, range(CLASSES))) if conditional(experiment) else ("all",)
    return Split(Shards([images]), np.arange(count, dtype=np.int64) % len(names), names, "", "train")
