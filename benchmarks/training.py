"""How near training comes to what the device can do, to the bare network, and to the loop that others write.

    python benchmarks/training.py [--configfile config/ffhq64.yaml …] [--seconds 440] [--json FILE]

Without options: the networks of config/ffhq64.yaml, imagenet64.yaml and bedroom256.yaml on a card, and that of
digits.yaml on a processor. No data and no weights are needed: pictures are noise and networks are untrained, which
the time does not see.

Of every network the teacher, BOOT, progressive distillation and consistency distillation train in the suite's own
loop: eagerly first, then, as long as there is time, compiled and as CUDA graphs, and at last with one other setting
at a time. Between every few steps others take their turn, and a round is over when each had one:

- the plain loop: the same network trained as a teacher by the parts of `diffusers`, `accelerate` and torch that the
  example of `diffusers` for unconditional training is made of, eagerly in float32 (with torch's defaults:
  convolutions in TF32 on a card), its batch already on the device;
- the bare passes: the evaluations that one step of the method was seen to make, by network, size and order, the
  trained ones forward and backward, and one step of the optimiser;
- a large product of matrices, of bfloat16 on a card and float32 on a processor.

Columns: pictures a second; the time of a step over that of its bare passes; the operations of those evaluations a
second (a backward pass counts two more; recomputed activations count for nothing) over those of the product; the plain
loop's pictures a second, and ours over them (a plain loop trains a teacher: a distiller evaluates its networks more
often); the most memory of a step. Sampling: pictures a second with one evaluation of a student and with 50 of the
teacher, at the smallest batch that is nearly the best for one.

Medians over rounds. Compare ratios of one run only. What the time does not suffice for is listed as not run.
"""

import argparse
import copy
import functools
import gc
import json
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from throughput import medians, of_one_stage, synchronised_time, untrained
from torch import nn

from baselines.consistency_distillation import ConsistencyDistillation
from baselines.ddim import Ddim, DdimSettings
from baselines.progressive_distillation import ProgressiveDistillation
from boot.distillation import Boot
from boot.student import BootStudent
from diffusion.conditions import ClassLabels, Unconditional
from diffusion.data.store import Shards, Split
from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.guidance import guided
from diffusion.memory import out_of_memory
from diffusion.networks import build_network
from diffusion.precision import float32_products
from diffusion.teacher import TeacherSettings, train_teacher
from diffusion.training import TrainingRun, TrainingSettings
from suite.configuration import Experiment, parse_experiment
from suite.estimate import network_operations
from suite.provenance import hardware, versions

CONFIG = Path(__file__).parents[1] / "config"
METHODS: dict[str, Any] = {
    "BOOT": Boot,
    "progressive": ProgressiveDistillation,
    "consistency": ConsistencyDistillation,
}
CLASSES = 10  # of a class-conditional network; their number costs nothing
WITH_GRADIENT = 3  # forward, and twice that backward


class OutOfTime(BaseException):
    """The time is over. No Exception, so that nothing on the way takes it for one of its own."""


class RoundsAreOver(Exception):
    """Ends a training that would have gone on."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raises OutOfTime within it when the deadline has come, in the middle of a compilation too."""

    def over(_signal: int, _frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))
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


class Product:
    """A product of matrices that is large enough to keep the device busy, of bfloat16 on a card, float32 elsewhere."""

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
        network: Any = build_network(experiment.teacher.network, data.channels, data.resolution, labels)
        self.accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu")
        self.average = EMAModel(
            network.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            model_cls=type(network),
            model_config=network.config,
        )
        self.average.to(device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        rates = get_scheduler("cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=1_000_000)
        self.network, self.optimiser, self.rates = self.accelerator.prepare(network, optimiser, rates)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.pictures = torch.randn(batch, data.channels, data.resolution, data.resolution, device=device)
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


def some_pictures(experiment: Experiment, count: int = 512) -> Split:
    data, rng = experiment.data, np.random.default_rng(0)
    images = rng.integers(0, 256, (count, data.resolution, data.resolution, data.channels), dtype=np.uint8)
    names = tuple(map(str, range(CLASSES))) if conditional(experiment) else ("all",)
    return Split(Shards([images]), np.arange(count, dtype=np.int64) % len(names), names, "", "train")


def method_of(experiment: Experiment, kind: Any) -> Any:
    """The experiment's variant of a method, or the method with its own defaults."""
    own = [method for method in experiment.methods.values() if isinstance(method, kind)]
    return own[0] if own else kind(kind.Settings(), experiment.teacher.guidance)


def trainer(
    experiment: Experiment, name: str, batch: int, changes: dict[str, Any], device: torch.device
) -> tuple[Callable[[TrainingRun], Any], TrainingSettings]:
    """What trains, and the settings that it comes to on the device."""
    split, teacher = some_pictures(experiment), experiment.teacher
    method = None if name == "teacher" else method_of(experiment, METHODS[name])
    training = teacher.training if method is None else method.settings.training
    training = training.model_copy(
        update={
            "steps": 1_000_000,
            "batch_size": batch,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "snapshots": 0,
            "compile": "off",
            **changes,
        }
    )
    if method is None:
        settings = teacher.model_copy(update={"training": training})
        return lambda run: train_teacher(settings, split, run), training.resolved(device, bf16=True)
    short, guidance = of_one_stage(method, training), teacher.guidance

    def distil(run: TrainingRun) -> Any:
        return short.distil(guided(untrained(experiment, device, CLASSES), guidance), run, split)

    return distil, training.resolved(device)


def measure(
    experiment: Experiment,
    name: str,
    batch: int,
    changes: dict[str, Any],
    rounds: int,
    device: torch.device,
    operations: float,
    known: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    """One training in turns with the plain loop, a large product and, where it is eager, its own bare passes.

    Args:
        operations: of one evaluation of the network.
        known: the evaluations of one step of each training, without a gradient and with one; an eager one adds its own.
    """
    eager = changes.get("compile", "off") == "off"
    train, settings = trainer(experiment, name, batch, changes, device)
    recorder = Recorder() if eager else None
    plain: PlainLoop | None = None
    product = Product(device)
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "bare": [], "product": []}
    warmup = 3 if eager else 5
    started, memory, bare, steps = 0.0, None, None, 1

    def timed(kind: str, call: Callable[[], Any], share: int) -> None:
        start = synchronised_time(device)
        call()
        seconds[kind].append((synchronised_time(device) - start) / share)

    def turn(step: int) -> None:
        nonlocal started, memory, plain, bare, steps
        if recorder is not None:
            recorder.recording = step == 0
        if step < warmup - 1 or (step > warmup and (step - warmup) % steps):
            return
        now = synchronised_time(device)
        if step == warmup - 1:  # one step more, to know how long it takes and what it holds
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = now
            return
        if step == warmup:
            if device.type == "cuda":
                memory = torch.cuda.max_memory_allocated(device)
            # Turns of half a second, so that their ends do not matter.
            steps = min(25, max(1, math.ceil(0.5 / (now - started))))
            plain = PlainLoop(experiment, batch, device)
            if recorder is not None:
                bare = bare_passes(recorder, settings, device)
        else:
            seconds["ours"].append((now - started) / steps)
            if len(seconds["ours"]) == rounds:
                raise RoundsAreOver
        assert plain is not None
        with float32_products(device, tf32=False, tf32_convolutions=True):  # as a script that sets nothing
            if step == warmup:
                plain.train(2)
            timed("plain", functools.partial(plain.train, steps), steps)
        if step == warmup:
            product()
        repeats = 10 if device.type == "cuda" else 1
        timed("product", lambda: [product() for _ in range(repeats)], repeats)
        if bare is not None:
            if step == warmup:
                bare()
            timed("bare", lambda: [bare() for _ in range(steps)], steps)
        started = synchronised_time(device)

    with (
        tempfile.TemporaryDirectory() as folder,
        InTurns(Path(folder), device, turn, recorder) as run,
        suppress(RoundsAreOver),
    ):
        train(run)
    if recorder is not None:
        fed = [(len(x), learns) for _module, x, *_, learns in recorder.passes]
        known[name] = sum(n for n, learns in fed if not learns), sum(n for n, learns in fed if learns)
    found = {kind: statistics.median(values) for kind, values in seconds.items() if values}
    forward, trained = known[name]
    done = operations * (forward + WITH_GRADIENT * trained)
    return {
        "batch": batch,
        "arithmetic": settings.arithmetic,
        "pictures_per_second": batch / found["ours"],
        "plain_pictures_per_second": batch / found["plain"],
        "over_plain": statistics.median(p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)),
        "over_bare": (
            statistics.median(o / b for o, b in zip(seconds["ours"], seconds["bare"], strict=True)) if eager else None
        ),
        "evaluations": [forward, trained],
        "operations": done,
        "product_operations_per_second": product.operations / found["product"],
        "share_of_product": statistics.median(
            done / o * p / product.operations for o, p in zip(seconds["ours"], seconds["product"], strict=True)
        ),
        "peak_memory_gib": None if memory is None else memory / 2**30,
        "seconds": seconds,
    }


def sampling(experiment: Experiment, rounds: int, largest: int, device: torch.device) -> dict[str, Any]:
    """Pictures a second with one evaluation of a student and with 50 of the teacher, and the best batch for the one."""
    teacher = untrained(experiment, device, CLASSES)
    student = BootStudent(teacher.network, teacher.schedule, teacher.prediction_type)
    ddim, data = Ddim(DdimSettings()), experiment.data

    def noise_and_condition(batch: int) -> tuple[torch.Tensor, Any]:
        noise = torch.randn(batch, data.channels, data.resolution, data.resolution, device=device)
        return noise, teacher.conditions.of_samples(range(batch), device)

    rates: dict[int, float] = {}
    with torch.inference_mode():
        for batch in (2**power for power in range(20) if 2**power <= largest):
            fed = noise_and_condition(batch)
            try:
                found = medians({"one": lambda fed=fed: student.sample(*fed)}, 3, device)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                break
            rates[batch] = batch / found["one"]
        best = min(batch for batch, rate in rates.items() if rate >= 0.97 * max(rates.values()))
        noise, condition = noise_and_condition(best)
        guided_teacher = guided(teacher, experiment.teacher.guidance)
        found = medians(
            {
                "one": lambda: student.sample(noise, condition),
                "fifty": lambda: ddim.draw(guided_teacher, noise, 50, condition),
            },
            max(2, rounds // 2),
            device,
        )
    return {
        "batch": best,
        "one_evaluation": best / found["one"],
        "fifty_evaluations": best / found["fifty"],
        "ratio": found["fifty"] / found["one"],
        "rates": rates,
    }


def parse(path: Path) -> Experiment:
    raw = yaml.safe_load(path.read_text())
    raw.pop("select", None)  # all of its variants
    experiment = parse_experiment(raw)
    if not isinstance(experiment.teacher, TeacherSettings):
        sys.exit(f"error: {path}: found a stored teacher, expected one with a network to be trained.")
    return experiment


def jobs(
    experiments: list[Experiment], modes: list[str], device: torch.device
) -> Iterator[tuple[Experiment, str, dict[str, Any]]]:
    """What is measured, the most telling first: each with the experiment, what trains and the changed settings."""
    for experiment in experiments:
        for name in ("teacher", *METHODS):
            yield experiment, name, {}
        yield experiment, "sampling", {}
    for name in ("teacher", *METHODS):
        for experiment in experiments:
            for mode in modes:
                yield experiment, name, {"compile": mode}
    for experiment in experiments:
        for name in ("teacher", "BOOT"):
            yield experiment, name, {"activation_checkpointing": True}
        yield experiment, "teacher", {"channels_last": device.type != "cuda"}
        yield experiment, "teacher", {"precision": "fp32" if device.type == "cuda" else "bf16"}


HEAD = (
    f"{'network':12s} {'trains':12s} {'changed':30s} {'batch':>5s} {'pictures/s':>10s} {'step/bare':>9s} "
    f"{'of product':>10s} {'plain loop':>10s} {'over plain':>10s} {'GiB':>6s}"
)


def line(network: str, name: str, changed: str, row: dict[str, Any]) -> str:
    if "not_run" in row:
        return f"{network:12s} {name:12s} {changed:30s} not run: {row['not_run']}"
    if name == "sampling":
        return (
            f"{network:12s} {name:12s} {'':30s} {row['batch']:5d} {row['one_evaluation']:10.4g} with one evaluation, "
            f"{row['fifty_evaluations']:.4g} with 50, ratio {row['ratio']:.1f}"
        )
    bare = "" if row["over_bare"] is None else f"{row['over_bare']:.3f}"
    memory = "" if row["peak_memory_gib"] is None else f"{row['peak_memory_gib']:.2f}"
    return (
        f"{network:12s} {name:12s} {changed:30s} {row['batch']:5d} {row['pictures_per_second']:10.4g} {bare:>9s} "
        f"{row['share_of_product']:10.1%} {row['plain_pictures_per_second']:10.4g} {row['over_plain']:10.2f} "
        f"{memory:>6s}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, nargs="+", help="experiments whose networks are measured")
    parser.add_argument("--batch-size", type=int, help="of training; by the resolution if not given")
    parser.add_argument("--modes", nargs="*", choices=("default", "cudagraphs"), help="how steps are compiled")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=440, help="after that nothing is begun or gone on with")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for all figures, written after every row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    deadline = time.monotonic() + arguments.seconds
    device = default_device()
    on_card = device.type == "cuda"
    names = ("ffhq64", "imagenet64", "bedroom256") if on_card else ("digits",)
    experiments = [parse(path) for path in arguments.configfile or [CONFIG / f"{name}.yaml" for name in names]]
    modes = arguments.modes if arguments.modes is not None else ["default", *(["cudagraphs"] if on_card else [])]
    machine = torch.cuda.get_device_name(device) if on_card else f"{torch.get_num_threads()} threads"
    print(f"{device}, {machine}, torch {torch.__version__}, medians of {arguments.rounds} rounds")
    print(HEAD, flush=True)

    rows: list[dict[str, Any]] = []
    operations: dict[str, float] = {}
    known: dict[str, dict[str, tuple[int, int]]] = {}
    for experiment, name, changes in jobs(experiments, modes, device):
        data = experiment.data
        batch = arguments.batch_size or {True: 64, False: 8}[data.resolution <= 64]
        if experiment.name not in operations:
            labels = CLASSES + 1 if conditional(experiment) else None
            operations[experiment.name] = network_operations(
                lambda e=experiment, n=labels: build_network(e.teacher.network, e.data.channels, e.data.resolution, n),
                (data.channels, data.resolution, data.resolution),
                ClassLabels(CLASSES, has_null=True) if labels else Unconditional(),
            )
        row: dict[str, Any]
        evaluations = known.setdefault(experiment.name, {})
        try:
            with until(deadline):
                if name == "sampling":
                    row = sampling(experiment, arguments.rounds, 1024 if on_card else 256, device)
                elif changes.get("compile") and name not in evaluations:
                    row = {"not_run": "its eager form was not"}
                else:
                    each = operations[experiment.name]
                    row = measure(experiment, name, batch, changes, arguments.rounds, device, each, evaluations)
        except OutOfTime:
            row = {"not_run": f"the {arguments.seconds:.0f} s are over"}
        except (UserError, RuntimeError) as error:
            row = {"not_run": str(error).splitlines()[0]}
        changed = ", ".join(f"{key}: {value}" for key, value in changes.items())
        print(line(experiment.name, name, changed, row), flush=True)
        rows.append({"network": experiment.name, "trains": name, "changed": changes, **row})
        release(device)
        if arguments.json is not None:
            facts = {
                "hardware": hardware(),
                "versions": versions(),
                "device": str(device),
                "threads": torch.get_num_threads(),
                "rounds": arguments.rounds,
                "operations_per_evaluation": operations,
                "rows": rows,
            }
            arguments.json.write_text(json.dumps(facts, indent=1))
    if any("not_run" in row for row in rows):
        print("\nMore time: --seconds; fewer networks: --configfile; fewer modes: --modes.", file=sys.stderr)


if __name__ == "__main__":
    main()
