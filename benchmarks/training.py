"""How near training comes to what the device can do, to the bare network, and to the loop that others write.

    python benchmarks/training.py --quick [--seconds 100] [--json FILE]
    python benchmarks/training.py [--configfile config/ffhq64.yaml …] [--seconds 440] [--json FILE]

Networks: config/ffhq64.yaml, imagenet64.yaml and bedroom256.yaml on a GPU, of which --quick takes the first, and
digits.yaml on a processor. Neither data nor weights are needed: images are noise and networks are untrained, which the
time does not see.

Of every network the teacher, BOOT, progressive distillation and consistency distillation train in the suite's own
loop: eagerly first, then, as long as there is time, as CUDA graphs and compiled, and at last (not with --quick) with
one other setting at a time. Between every few steps others take their turn, and a round is over when each had one:

- the plain loop: the same network trained as a teacher by the parts of `diffusers`, `accelerate` and torch that the
  example of `diffusers` for unconditional training is made of, eagerly in float32 (with torch's defaults:
  convolutions in TF32 on a GPU), its batch already on the device; with --quick beside the teacher only;
- the bare passes: the evaluations that one step of the method was seen to make, by network, size and order, the
  trained ones forward and backward, and one step of the optimiser, in the loop's own arithmetic and memory format;
- a large product of matrices, of bfloat16 on a GPU and float32 on a processor.

Columns: images a second; the time of a step over that of its bare passes; the operations of those evaluations a
second (a backward pass counts two more; recomputed activations count for nothing) over those of the product; the plain
loop's images a second, and ours over them (a plain loop trains a teacher: a distiller evaluates its networks more
often); for how many milliseconds the device still worked when the host was done with a turn (near 0, the host is what
holds it up); the most memory of a step. The loop looks at its loss every 25 steps: not every turn contains a look,
which costs one emptied queue.

Sampling: images a second of a BOOT student, one evaluation, by the suite, and of `diffusers`' DDIMPipeline with 50
steps and with one, on the same network and batch. The pipeline is called as the README does, without its progress bar
and with output_type="np"; both draw their noise on the device and end with float images in [0, 1] on the host.

Medians over rounds. Compare ratios of one run only. --seconds count from the start of the process; what they do not
suffice for is listed as not run. With --quick a row may take a third of them, a compiled one half; one that is cut
short keeps its rounds, from three on. The JSON file is whole after every row. Exit code: 1 if a row failed, or if the
time did not suffice for the eager teacher, the eager BOOT or sampling; whether aims are met does not matter.
"""

import argparse
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from harness import medians, of_one_stage, synchronised_time, untrained
from rows import HEAD, foot, line
from torch import nn
from turns import (
    CLASSES,
    InTurns,
    OutOfTime,
    PlainLoop,
    Product,
    Recorder,
    RoundsAreOver,
    bare_passes,
    conditional,
    peak_memory_gib,
    release,
    some_pictures,
    until,
)

from baselines.consistency_distillation import ConsistencyDistillation
from baselines.progressive_distillation import ProgressiveDistillation
from boot.distillation import Boot
from diffusion.conditions import ClassLabels, Unconditional
from diffusion.guidance import guided
from diffusion.runtime.device import default_device
from diffusion.runtime.files import write_json
from diffusion.runtime.precision import float32_products
from diffusion.student import NoiseStudent
from diffusion.teachers.networks.unet import build_network
from diffusion.teachers.schedulers import build_scheduler
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from suite.configuration.experiment import Experiment, parse_experiment
from suite.network_cost import network_operations
from suite.provenance import commit, hardware, versions

CONFIG = Path(__file__).parents[1] / "config"
METHODS: dict[str, Any] = {"BOOT": Boot, "progressive": ProgressiveDistillation, "consistency": ConsistencyDistillation}
OTHERS = ("accelerate", "triton")  # packages that can change these numbers, beside those of every result
WITH_GRADIENT = 3  # forward, and twice that backward
FEWEST_ROUNDS = 3  # that a row is told from, where its time ends before


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
    update = {"steps": 1_000_000, "batch_size": batch, "gradient_accumulation_steps": 1}
    update |= {"warmup_steps": 0, "snapshots": 0, "compile": "off"}
    training = training.model_copy(update=update | changes)
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
    turn_seconds: float,
    device: torch.device,
    operations: float,
    known: dict[str, tuple[int, int]],
    with_plain: bool = True,
) -> dict[str, Any]:
    """One training in turns with a large product, the plain loop and, where it is eager, its own bare passes.

    Args:
        turn_seconds: how long a turn takes about; at least one step, at most 25.
        operations: of one evaluation of the network.
        known: the evaluations of one step of each training, without a gradient and with one; an eager one adds its own.
        with_plain: whether the plain loop takes part.
    """
    eager = changes.get("compile", "off") == "off"
    train, settings = trainer(experiment, name, batch, changes, device)
    recorder = Recorder() if eager else None
    repeats = 10 if device.type == "cuda" else 1
    calls: dict[str, tuple[Callable[[], Any], int]] = {}  # the others, and how many of theirs one call is
    seconds: dict[str, list[float]] = {"ours": [], "ahead": []}
    warmup = 3 if eager else 5
    started, memory, product_operations, steps = 0.0, None, 0, 1

    def begin(step_seconds: float) -> None:
        """Makes the others and warms them up."""
        nonlocal memory, product_operations, steps
        memory = peak_memory_gib(device)
        steps = min(25, max(1, math.ceil(turn_seconds / step_seconds)))
        product = Product(device)
        product_operations = product.operations
        product()
        calls["product"] = (lambda: [product() for _ in range(repeats)], repeats)
        if with_plain:
            plain = PlainLoop(experiment, batch, device)

            def train_plainly(steps: int) -> None:
                with float32_products(device, tf32=False, tf32_convolutions=True):  # as a script that sets nothing
                    plain.train(steps)

            train_plainly(2)
            calls["plain"] = (functools.partial(train_plainly, steps), steps)
        if recorder is not None:
            bare = bare_passes(recorder, settings, device)
            bare()
            calls["bare"] = (lambda: [bare() for _ in range(steps)], steps)

    def turn(step: int) -> None:
        nonlocal started
        if recorder is not None:
            recorder.recording = step == 0
        if step < warmup - 1 or (step > warmup and (step - warmup) % steps):
            return
        host_done, now = time.perf_counter(), synchronised_time(device)
        if step == warmup - 1:  # one step more, to know how long it takes and what it holds
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = now
            return
        if step == warmup:
            begin(now - started)
        else:
            seconds["ours"].append((now - started) / steps)
            seconds["ahead"].append(now - host_done)
            if len(seconds["ours"]) == rounds:
                raise RoundsAreOver
        for kind, (call, share) in calls.items():
            start = synchronised_time(device)
            call()
            seconds.setdefault(kind, []).append((synchronised_time(device) - start) / share)
        started = synchronised_time(device)

    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            InTurns(Path(folder), device, turn, recorder) as run,
            suppress(RoundsAreOver),
        ):
            train(run)
    except OutOfTime:
        if len(seconds["ours"]) < FEWEST_ROUNDS:
            raise
    times = {kind: np.array(values[: len(seconds["ours"])]) for kind, values in seconds.items()}
    if recorder is not None:
        fed = [(len(x), learns) for _module, x, *_, learns in recorder.passes]
        known[name] = sum(n for n, learns in fed if not learns), sum(n for n, learns in fed if learns)
    forward, trained = known[name]
    done = operations * (forward + WITH_GRADIENT * trained)
    ratios = {"share_of_product": done / product_operations * times["product"] / times["ours"]}
    if with_plain:
        ratios["over_plain"] = times["plain"] / times["ours"]
    if eager:
        ratios["over_bare"] = times["ours"] / times["bare"]
    found = {kind: float(np.median(values)) for kind, values in (times | ratios).items()}
    return {
        "batch": batch,
        "arithmetic": settings.arithmetic,
        "pictures_per_second": batch / found["ours"],
        "plain_pictures_per_second": batch / found["plain"] if with_plain else None,
        **{ratio: found.get(ratio) for ratio in ("over_plain", "over_bare", "share_of_product")},
        "evaluations": [forward, trained],
        "operations": done,
        "product_operations_per_second": product_operations / found["product"],
        "host_ahead_ms": 1000 * found["ahead"],
        "peak_memory_gib": memory,
        "ratios": {ratio: values.tolist() for ratio, values in ratios.items()},
        "seconds": {kind: values.tolist() for kind, values in times.items()},
    }


def sampling(experiment: Experiment, rounds: int, batch: int, device: torch.device) -> dict[str, Any]:
    """Images a second of a BOOT student and of `diffusers`' pipeline with the same network, at one batch."""
    from diffusers import DDIMPipeline

    if conditional(experiment):
        return {"not_run": "`diffusers` has no pipeline for a class-conditional UNet2DModel"}
    teacher, data = untrained(experiment, device, CLASSES), experiment.data
    student = NoiseStudent(teacher.network, teacher.schedule, teacher.prediction_type)
    pipeline = DDIMPipeline(teacher.network, build_scheduler(teacher))
    pipeline.set_progress_bar_config(disable=True)
    evaluated, evaluations = 0, {}

    def count(_network: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    teacher.network.register_forward_pre_hook(count)

    @torch.inference_mode()
    def ours() -> Any:
        images = student.sample(torch.randn(batch, *data.shape, device=device))
        return (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()

    def theirs(steps: int) -> Any:
        # The flag, so that its 50 steps make the suite's samples.
        options = {"num_inference_steps": steps, "use_clipped_model_output": True, "output_type": "np"}
        return pipeline(batch_size=batch, **options).images

    repeats = {"student": 5, "pipeline_1": 5, "pipeline_50": 1}
    once = {"student": ours, "pipeline_1": lambda: theirs(1), "pipeline_50": lambda: theirs(50)}

    def several(name: str) -> None:
        before = evaluated
        for _ in range(repeats[name]):
            once[name]()
        evaluations[name] = (evaluated - before) / (batch * repeats[name])

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    calls = {name: functools.partial(several, name) for name in once}
    found = {name: value / repeats[name] for name, value in medians(calls, max(3, rounds // 2), device).items()}
    return {
        "batch": batch,
        "output_type": "np",
        "images_per_second": {name: batch / value for name, value in found.items()},
        "evaluations_per_image": evaluations,
        "over_pipeline": {name: found[name] / found["student"] for name in ("pipeline_1", "pipeline_50")},
        "peak_memory_gib": peak_memory_gib(device),
    }


def parse(path: Path) -> Experiment:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw.pop("select", None)  # all of its variants
    experiment = parse_experiment(raw, look_at_files=False)
    if not isinstance(experiment.teacher, TeacherSettings):
        sys.exit(f"error: {path}: found a stored teacher, expected one with a network to be trained.")
    return experiment


def jobs(
    experiments: list[Experiment], modes: list[str], device: torch.device, quick: bool
) -> Iterator[tuple[Experiment, str, dict[str, Any]]]:
    """What is measured, the most telling first: each with the experiment, what trains and the changed settings."""
    for experiment in experiments:
        for name in ("teacher", "BOOT", "sampling", "progressive", "consistency"):
            yield experiment, name, {}
    for mode in modes:
        for name in ("teacher", "BOOT") if quick else ("teacher", *METHODS):
            for experiment in experiments:
                yield experiment, name, {"compile": mode}
    for experiment in [] if quick else experiments:
        for name in ("teacher", "BOOT"):
            yield experiment, name, {"activation_checkpointing": True}
        yield experiment, "teacher", {"channels_last": device.type != "cuda"}
        yield experiment, "teacher", {"precision": "fp32" if device.type == "cuda" else "bf16"}


def main(argv: list[str] | None = None, spent: float = 0.0) -> int:
    """Measures, and returns the exit code; ``spent``: of --seconds, the imports took so many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="what the aims are about, on one network")
    parser.add_argument("--configfile", type=Path, nargs="+", help="experiments whose networks are measured")
    parser.add_argument("--batch-size", type=int, help="if not given 64, 8 above 64 px, 16 on a processor with --quick")
    parser.add_argument("--modes", nargs="*", choices=("default", "cudagraphs"), help="how steps are compiled")
    parser.add_argument("--rounds", type=int, help="7, or 5 with --quick, if not given")
    parser.add_argument("--seconds", type=float, help="of the process, after which it ends; 440, or 100 with --quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for all numbers, written after every row")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    rounds = arguments.rounds or (5 if quick else 7)
    seconds = arguments.seconds or (100 if quick else 440)
    deadline = time.monotonic() + seconds - spent
    device = default_device()
    on_gpu = device.type == "cuda"
    names = ("ffhq64", *(() if quick else ("imagenet64", "bedroom256"))) if on_gpu else ("digits",)
    experiments = [parse(path) for path in arguments.configfile or [CONFIG / f"{name}.yaml" for name in names]]
    modes = arguments.modes if arguments.modes is not None else [*(["cudagraphs"] if on_gpu else []), "default"]
    machine = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"{device}, {machine}, torch {torch.__version__}, medians of {rounds} rounds, {seconds:.0f} s")
    print(HEAD, flush=True)

    plan = list(jobs(experiments, modes, device, quick))
    rows: list[dict[str, Any]] = [
        {"network": experiment.name, "trains": name, "changed": changes, "not_run": "the run ended before"}
        for experiment, name, changes in plan
    ]
    operations: dict[str, float] = {}
    known: dict[str, dict[str, tuple[int, int]]] = {}
    facts = {
        "hardware": hardware(),
        "versions": versions() | {other.name: other.version for other in distributions() if other.name in OTHERS},
        "commit": commit(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "options": {"quick": quick, "rounds": rounds, "seconds": seconds},
        "operations_per_evaluation": operations,
        "rows": rows,
    }

    def run(experiment: Experiment, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        data = experiment.data
        batch = arguments.batch_size or (8 if max(data.shape) > 64 else 64 if on_gpu or not quick else 16)
        evaluations = known.setdefault(experiment.name, {})
        if name == "sampling":
            return sampling(experiment, rounds, batch, device)
        if changes.get("compile") and name not in evaluations:
            return {"not_run": "its eager form was not"}
        if experiment.name not in operations:
            labels = CLASSES + 1 if conditional(experiment) else None
            operations[experiment.name] = network_operations(
                lambda: build_network(experiment.teacher.network, data.shape, labels),
                data.shape,
                ClassLabels(CLASSES, has_null=True) if labels else Unconditional(),
            )
        each, turn = operations[experiment.name], 0.3 if quick else 0.5  # so long that its ends do not matter
        with_plain = name == "teacher" or not quick
        return measure(experiment, name, batch, changes, rounds, turn, device, each, evaluations, with_plain)

    def store() -> None:
        if arguments.json is not None:
            write_json(arguments.json, facts)

    store()
    for row, (experiment, name, changes) in zip(rows, plan, strict=True):
        found: dict[str, Any]
        now = time.monotonic()
        share = seconds / (2 if "compile" in changes else 3) if quick else math.inf
        try:
            with until(min(deadline, now + share)):
                release(device)
                found = run(experiment, name, changes)
        except OutOfTime:
            reason = f"the {seconds:.0f} s are over" if time.monotonic() >= deadline else f"not done in {share:.0f} s"
            found = {"not_run": reason, "late": True}
        except Exception as error:  # the other rows can still be had
            found = {"not_run": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", "failed": True}
        del row["not_run"]
        row |= found | {"took_seconds": time.monotonic() - now}
        print(line(row), flush=True)
        store()
    print("", *foot(rows, on_gpu), sep="\n")
    if any("late" in row for row in rows):
        print("\nMore time: --seconds; fewer networks: --configfile; fewer modes: --modes.", file=sys.stderr)
    decisive = [row for row in rows if row["trains"] in ("teacher", "BOOT", "sampling") and not row["changed"]]
    return int(any("failed" in row for row in rows) or any("late" in row for row in decisive))


if __name__ == "__main__":
    age = time.time() - psutil.Process().create_time()
    code = main(spent=min(60.0, max(0.0, age)))  # a clock that was set meanwhile does not end it at once
    sys.stdout.flush()
    os._exit(code)  # all is written, and after a compilation the interpreter takes many seconds to leave
