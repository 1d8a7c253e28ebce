"""How fast an experiment trains as it is configured, and how fast its features are extracted.

    python benchmarks/throughput.py [--config config/digits.yaml] [--threads 2] [--rounds 12]

Training: steps per second, eagerly, of the teacher and of every configured method that trains, and the network
evaluations of a step. Features: images per second of the extractor through torch-fidelity's loop. Networks are
untrained: speed does not depend on the weights. Compare ratios of one run only. benchmarks/training.py compares steps
with their bare evaluations, and sampling with `diffusers`' own pipeline.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from diffusion.conditions import ClassLabels, Unconditional
from diffusion.data.kinds import prepare
from diffusion.data.store import load_split, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.distillation.pairs import Pairs, PairsSettings, generate_pairs
from diffusion.guidance import guided
from diffusion.runtime.device import default_device
from diffusion.teachers.folder import load_denoiser
from diffusion.teachers.networks.unet import build_network
from diffusion.teachers.settings import StoredTeacher
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from suite.configuration.experiment import Experiment, parse_experiment


def synchronised_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = synchronised_time(device)
            call()
            times[name].append(synchronised_time(device) - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


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


def training(experiment: Experiment, folder: Path, rounds: int, device: torch.device) -> None:
    write_dataset(folder / "data", prepare(experiment.data), experiment.data)
    split = load_split(folder / "data", "train")
    classes, guidance = len(split.class_names), experiment.teacher.guidance
    shape = (experiment.data.channels, experiment.data.resolution, experiment.data.resolution)

    def seconds_a_step(train: Callable[[TrainingRun, TrainingSettings], Any], settings: TrainingSettings) -> Any:
        # One-step and many-step runs through the real loop; the difference has no start-up in it.
        found = {}
        for steps in (1, rounds + 1):
            short = settings.model_copy(update={"steps": steps, "warmup_steps": 0, "compile": "off", "snapshots": 0})
            with TrainingRun(Path(tempfile.mkdtemp(dir=folder)), "benchmark", 0, device, 1e9) as run:
                start = synchronised_time(device)
                train(run, short)
                found[steps] = np.array([synchronised_time(device) - start, run.evaluations])
        return (found[rounds + 1] - found[1]) / rounds

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
    print("\ntraining           batch  steps/s  evaluations/step")
    for name, (train, settings) in jobs.items():
        seconds, evaluations = seconds_a_step(train, settings)
        print(f"{name:18s} {settings.batch_size:5d} {1 / seconds:8.2f} {evaluations:17.0f}")


def features(experiment: Experiment, device: torch.device, rounds: int) -> None:
    from evaluation.measure.features import load_extractor  # packages and seconds that only this part needs

    extractor = load_extractor(experiment.evaluation.features, device, experiment.evaluation.weights)
    size, channels = experiment.data.resolution, experiment.data.channels
    pictures = np.random.default_rng(0).integers(0, 256, (256, size, size, channels), dtype=np.uint8)
    calls = {
        "torch-fidelity": lambda: extractor.extract(pictures),
        "clean-fid": lambda: extractor.extract_cleanfid(pictures[:64]),
    }
    found = medians(calls, max(3, rounds // 4), device)
    print(f"\nfeatures ({extractor.name})")
    print(f"torch-fidelity {256 / found['torch-fidelity']:8.1f} pictures/s")
    print(f"clean-fid      {64 / found['clean-fid']:8.1f} pictures/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "config" / "digits.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    experiment = parse_experiment(yaml.safe_load(arguments.config.read_text(encoding="utf-8")), look_at_files=False)
    print(f"{experiment.name} on {device}, {torch.get_num_threads()} threads, medians of {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        training(experiment, Path(folder), arguments.rounds, device)
    features(experiment, device, arguments.rounds)


if __name__ == "__main__":
    main()
