"""Teachers and students."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diffusion.conditions import ClassLabels
from diffusion.data import load_split
from diffusion.denoiser import Denoiser
from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.files import canonical_json, sha256_file, write_json
from diffusion.pipelines import deciding_files, load_conditions, load_denoiser, save_denoiser
from diffusion.teacher import TeacherSettings
from diffusion.teacher import train_teacher as fit_teacher
from diffusion.training import LOG_COLUMNS, TrainingRun
from suite.provenance import write_provenance
from suite.stages.common import configured_method, load_teacher, result_folder, weights_file

_TRAINING_CODE = ("diffusion", "boot", "baselines")


def train_teacher(arguments: argparse.Namespace) -> None:
    """Trains the teacher."""
    settings = TeacherSettings.model_validate_json(arguments.settings)
    split = load_split(arguments.data, "train")
    inputs = {"data": arguments.data / "manifest.json"}
    with training_run(arguments, "teacher", settings.seed, inputs) as run:
        denoiser, cost = fit_teacher(settings, split, run)
        with result_folder(arguments.output) as folder:
            save_denoiser(folder, denoiser)
            students = [{"nfe": None, **cost, "parameters": _parameters(denoiser.network)}]
            _write_training_facts(folder, "teacher", "teacher", students, run.log)
            write_provenance(
                folder / "provenance.json", inputs, settings=settings.model_dump(mode="json"), seed=settings.seed
            )
        run.deliver()


def import_teacher(arguments: argparse.Namespace) -> None:
    """Takes a stored teacher into the results. What its own training cost is unknown, so it has no cost file."""
    denoiser = load_denoiser(arguments.path)
    denoiser.conditions = load_conditions(arguments.path, arguments.num_classes)
    with result_folder(arguments.output) as folder:
        save_denoiser(folder, denoiser)
        write_provenance(
            folder / "provenance.json", {"weights": weights_file(arguments.path)}, stored=str(arguments.path)
        )


def distil(arguments: argparse.Namespace) -> None:
    """Trains the students of one variant with one seed. The data set is read only if the method says it needs it."""
    method = configured_method(arguments.settings, arguments.guidance_scale)
    if method.needs_data != (arguments.data is not None):
        needs = "needs" if method.needs_data else "must not see"
        raise UserError(f"--data: the method {method.name} {needs} the data set.")
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, default_device())
    inputs = {f"teacher, {file.name}": file for file in deciding_files(arguments.teacher)}
    split = None
    if arguments.data is not None:
        split = load_split(arguments.data, "train")
        inputs["data"] = arguments.data / "manifest.json"
        check_classes(teacher, arguments.data, len(split.class_names))
    with training_run(arguments, arguments.variant, arguments.seed, inputs) as run:
        students = method.distil(teacher, run, split)
        with result_folder(arguments.output) as folder:
            for student in students:
                method.save(folder / f"nfe-{student.nfe}", student.network, teacher)
            costs = [
                {"nfe": student.nfe, **student.cost, "parameters": _parameters(student.network)} for student in students
            ]
            _write_training_facts(folder, method.name, arguments.variant, costs, run.log)
            write_provenance(
                folder / "provenance.json",
                inputs,
                settings=json.loads(arguments.settings),
                guidance_scale=arguments.guidance_scale,
                seed=arguments.seed,
            )
        run.deliver()


def check_classes(teacher: Denoiser, data: Path, found: int) -> None:
    """Refuses a data set whose labels mean other classes than the teacher's.

    Raises:
        UserError: naming both numbers.
    """
    if isinstance(teacher.conditions, ClassLabels) and teacher.conditions.num_classes != found:
        raise UserError(
            f"{data / 'manifest.json'}: {found} classes, but the teacher is told one of "
            f"{teacher.conditions.num_classes}; expected the data set that the teacher was trained on (or "
            f"teacher.num_classes, where its last label stands for no class)."
        )


@contextmanager
def training_run(
    arguments: argparse.Namespace, name: str, seed: int, inputs: dict[str, Path], code: Sequence[Path] = ()
) -> Iterator[TrainingRun]:
    """A resumable run of the stage whose command line ``arguments`` is.

    Args:
        code: what decides the weights beside the packages that train.
    """
    # Keyed by all that decides the weights, code included, so that a change starts afresh instead of resuming.
    files = [file for module in _TRAINING_CODE for file in sorted((Path(__file__).parents[2] / module).glob("*.py"))]
    files += code
    identity = [
        name,
        arguments.settings,
        getattr(arguments, "guidance_scale", None),
        seed,
        {role: sha256_file(file) for role, file in inputs.items()},
        [sha256_file(file) for file in files],
    ]
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    folder = arguments.state / f"{name}-seed-{seed}-{key}"
    with TrainingRun(folder, key, seed, default_device(), arguments.checkpoint_seconds) as run:
        yield run


def _write_training_facts(
    folder: Path, method: str, variant: str, students: list[dict[str, Any]], log: list[dict[str, Any]]
) -> None:
    write_json(folder / "cost.json", {"method": method, "variant": variant, "students": students})
    pd.DataFrame(log, columns=list(LOG_COLUMNS)).to_csv(folder / "training.csv", index=False)


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
