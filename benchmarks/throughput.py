"""Where the time of an experiment goes: training, sampling and features, in one run on one machine.

    python benchmarks/throughput.py [--config config/digits.yaml] [--threads 2] [--rounds 12]

Training: steps per second of the teacher and of every configured method that trains, with the network evaluations that
a step contains, those of them that gradients are kept for, and the time of a step over the bare sum of its forward and
backward passes (the optimiser, the averages and, where a loss has one, the backbone of a perceptual distance are what
else a step does; with --compile the bare passes are compiled too). Sampling: pictures per second against `diffusers`'
own pipeline on the same network, interleaved. Features: pictures per second of the extractor through torch-fidelity's
loop. Networks are untrained: speed does not depend on the weights. Medians over interleaved rounds; compare ratios of
one run only.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from diffusion.conditions import ClassLabels, Unconditional
from diffusion.data import load_split, prepare, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.device import default_device
from diffusion.guidance import guided
from diffusion.networks import build_network
from diffusion.noise import initial_noise
from diffusion.pairs import Pairs, PairsSettings, generate_pairs
from diffusion.pipelines import load_denoiser, save_denoiser
from diffusion.teacher import StoredTeacher, train_teacher
from diffusion.training import TrainingRun, TrainingSettings
from evaluation.features import load_extractor
from suite.configuration import Experiment, parse_experiment


def synchronised_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            start = synchronised_time(device)
            call()
            elapsed = synchronised_time(device) - start
            if index:
                times[name].append(elapsed)
    return {name: float(np.median(values)) for name, values in times.items()}


class CountingRun(TrainingRun):
    """A run that also counts the evaluations for which gradients are kept."""

    with_gradient = 0

    def count(self, network: torch.nn.Module) -> None:
        def add(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self.with_gradient += len(inputs[0]) * torch.is_grad_enabled()

        before = len(network._forward_pre_hooks)
        super().count(network)
        if len(network._forward_pre_hooks) > before:
            network.register_forward_pre_hook(add)


def untrained(experiment: Experiment, device: torch.device, classes: int) -> Denoiser:
    """The experiment's teacher without its training, not guided yet."""
    teacher = experiment.teacher
    if isinstance(teacher, StoredTeacher):
        return load_denoiser(Path(teacher.path), device)
    conditions = ClassLabels(classes, teacher.label_dropout > 0) if teacher.labels else Unconditional()
    labels = classes + (teacher.label_dropout > 0) if teacher.labels else None
    network = build_network(teacher.network, experiment.data.channels, experiment.data.resolution, labels)
    schedule = teacher.schedule.build()
    denoiser = Denoiser(network, schedule, teacher.prediction_type, teacher.thresholding, conditions)
    return denoiser.to(device).eval().requires_grad_(False)


def of_one_stage(method: Any, settings: TrainingSettings) -> Any:
    """The method with other settings of training and one student only, so that a step is a step of that student."""
    update: dict[str, Any] = {"training": settings}
    if hasattr(method.settings, "start_steps"):
        update |= {"start_steps": 2, "end_steps": 1, "last_stages_factor": 1}
    if hasattr(method.settings, "phases"):
        update |= {"start_steps": 2, "phases": (1,)}
    return type(method)(method.settings.model_copy(update=update), method.guidance)


def training(experiment: Experiment, folder: Path, rounds: int, device: torch.device, compiled: str) -> None:
    write_dataset(folder / "data", prepare(experiment.data), experiment.data)
    split = load_split(folder / "data", "train")
    classes, guidance = len(split.class_names), experiment.teacher.guidance
    shape = (experiment.data.channels, experiment.data.resolution, experiment.data.resolution)

    def seconds_a_step(train: Callable[[TrainingRun, TrainingSettings], Any], settings: TrainingSettings) -> Any:
        # One-step and many-step runs through the real loop; the difference has no start-up in it.
        found = {}
        # A compiled step is compiled in every run; after the first from a cache, so that it cancels.
        for steps in (1, 1, rounds + 1) if compiled != "off" else (1, rounds + 1):
            short = settings.model_copy(update={"steps": steps, "warmup_steps": 0, "compile": compiled, "snapshots": 0})
            with TrainingRun(Path(tempfile.mkdtemp(dir=folder)), "benchmark", 0, device, 1e9) as run:
                start = synchronised_time(device)
                train(run, short)
                found[steps] = synchronised_time(device) - start
        # Counted in a step that is not compiled, whose networks call their hooks.
        plain = settings.model_copy(update={"steps": 1, "warmup_steps": 0, "compile": "off", "snapshots": 0})
        with CountingRun(Path(tempfile.mkdtemp(dir=folder)), "benchmark", 0, device, 1e9) as run:
            train(run, plain)
        return (found[rounds + 1] - found[1]) / rounds, run.evaluations, run.with_gradient

    def distiller(method: Any) -> Callable[[TrainingRun, TrainingSettings], Any]:
        def train(run: TrainingRun, settings: TrainingSettings) -> Any:
            short = of_one_stage(method, settings)
            teacher = guided(untrained(experiment, device, classes), guidance)
            data: Any = split if method.needs_data else None
            if method.pairs():
                data = Pairs(pairs, teacher.conditions)
            return short.distil(teacher, run, data)

        return train

    pairs = folder / "pairs"
    pairs.mkdir()
    with TrainingRun(Path(tempfile.mkdtemp(dir=folder)), "benchmark", 0, device, 1e9) as run:
        few = PairsSettings(count=256, num_inference_steps=1)
        generate_pairs(few, guided(untrained(experiment, device, classes), guidance), shape, run, pairs)

    jobs: dict[str, tuple[Callable[..., Any], TrainingSettings]] = {}
    if not isinstance(experiment.teacher, StoredTeacher):
        jobs["teacher"] = (
            lambda run, s: train_teacher(experiment.teacher.model_copy(update={"training": s}), split, run),
            experiment.teacher.training,
        )
    jobs |= {name: (distiller(m), m.settings.training) for name, m in experiment.methods.items() if m.trains}
    teacher = untrained(experiment, device, classes)
    student = copy.deepcopy(teacher.network).requires_grad_(True)
    trainable = Denoiser(student, teacher.schedule, "sample")
    mode = {"default": "default", "cudagraphs": "reduce-overhead"}.get(compiled)
    fast: Callable[..., Any] = (lambda call: torch.compile(call, mode=mode)) if mode else (lambda call: call)
    raw, trained_raw = fast(teacher.raw), fast(trainable.raw)
    print("\ntraining           batch  steps/s  evaluations/step  with gradient  step / bare passes")
    for name, (train, settings) in jobs.items():
        seconds, evaluations, trained = seconds_a_step(train, settings)
        batch = settings.batch_size
        forwards = evaluations - trained
        x = initial_noise(0, range(batch), shape).to(device)
        t = torch.full((batch,), 0.5, dtype=torch.float64, device=device)
        told = teacher.conditions.of_samples(range(batch), device)
        bare = medians(
            {
                "forward": torch.no_grad()(lambda x=x, t=t, told=told: raw(x, t, told)),
                "both": lambda x=x, t=t, told=told: trained_raw(x, t, told).square().mean().backward(),
            },
            rounds,
            device,
        )
        total = bare["both"] * trained / batch + bare["forward"] * forwards / batch
        print(f"{name:18s} {batch:5d} {1 / seconds:8.2f} {evaluations:17d} {trained:14d} {seconds / total:19.2f}")


def sampling(experiment: Experiment, folder: Path, rounds: int, device: torch.device, batch: int) -> None:
    from diffusers import DDIMPipeline

    from baselines.ddim import Ddim, DdimSettings

    teacher = untrained(experiment, device, 1)
    save_denoiser(folder / "teacher", teacher)
    pipeline = DDIMPipeline.from_pretrained(folder / "teacher").to(device)
    pipeline.set_progress_bar_config(disable=True)
    shape = (experiment.data.channels,) + (experiment.data.resolution,) * 2
    noise = initial_noise(0, range(batch), shape).to(device)
    print(f"\nsampling, batch {batch}   ours pictures/s   diffusers' DDIMPipeline   ratio")
    for steps in (1, 4, 16):
        sampler, _ = Ddim(DdimSettings()).sampler(folder / "teacher", steps, device)

        def theirs(steps: int = steps) -> Any:
            # Tensors out and no PIL pictures, so that both do the same work.
            return pipeline(
                batch_size=batch, num_inference_steps=steps, use_clipped_model_output=True, output_type="np"
            )

        found = medians(
            {
                "ours": torch.inference_mode()(lambda sampler=sampler: sampler(noise, None).cpu()),
                "diffusers": theirs,
            },
            rounds,
            device,
        )
        ours, other = batch / found["ours"], batch / found["diffusers"]
        print(f"DDIM, {steps:2d} steps        {ours:10.1f} {other:20.1f} {ours / other:16.2f}")


def features(experiment: Experiment, device: torch.device, rounds: int) -> None:
    extractor = load_extractor(experiment.evaluation.features, device, experiment.evaluation.inception_weights)
    size, channels = experiment.data.resolution, experiment.data.channels
    pictures = np.random.default_rng(0).integers(0, 256, (256, size, size, channels), dtype=np.uint8)
    found = medians(
        {
            "torch-fidelity": lambda: extractor.extract(pictures),
            "clean-fid": lambda: extractor.extract_cleanfid(pictures[:64]),
        },
        max(3, rounds // 4),
        device,
    )
    print(f"\nfeatures ({extractor.name})")
    print(f"torch-fidelity {256 / found['torch-fidelity']:8.1f} pictures/s")
    print(f"clean-fid      {64 / found['clean-fid']:8.1f} pictures/s")


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "config" / "digits.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128, help="of sampling")
    parser.add_argument("--compile", choices=("off", "default", "cudagraphs"), default="off", help="of training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    experiment = parse_experiment(yaml.safe_load(arguments.config.read_text()))
    print(f"{experiment.name} on {device}, {torch.get_num_threads()} threads, medians of {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        training(experiment, Path(folder), arguments.rounds, device, arguments.compile)
        if experiment.conditional:
            print("\nsampling: `diffusers` has no pipeline for a class-conditional UNet2DModel to compare with")
        else:
            sampling(experiment, Path(folder), arguments.rounds, device, arguments.batch_size)
    features(experiment, device, arguments.rounds)


if __name__ == "__main__":
    main()
