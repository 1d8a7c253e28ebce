"""Teachers and students."""

import argparse
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from diffusion.data.store import Split, load_split
from diffusion.distillation.pairs import FILES as PAIRS_FILES
from diffusion.distillation.pairs import Pairs, PairsSettings, generate_pairs
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from diffusion.teachers.folder import (
    deciding_files,
    load_conditions,
    load_denoiser,
    pipeline_problems,
    save_denoiser,
    stored_picture_shape,
)
from diffusion.teachers.hub import model_folder
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher as fit_teacher
from diffusion.training.loop import LOG_COLUMNS, TrainingRun
from suite.provenance import RECORD, Input, checked, write_provenance
from suite.stages.common import (
    asked,
    check_classes,
    checked_data,
    checked_network,
    configured_method,
    load_teacher,
    result_folder,
    state_key,
)
from suite.trackers import Trackers


def train_teacher(arguments: argparse.Namespace) -> None:
    """Trains the teacher."""
    settings = TeacherSettings.model_validate_json(arguments.settings)
    split = load_split(arguments.data, "train", arguments.flip)
    inputs = checked_data(arguments.data, "train")
    with training_run(arguments, "teacher", settings.seed, inputs) as run:
        denoiser, cost = fit_teacher(settings, split, run)
        if not run.processes.is_main:
            return
        with result_folder(arguments) as folder:
            save_denoiser(folder, denoiser)
            students = [{"nfe": None, **cost, "parameters": _parameters(denoiser.network)}]
            write_json(folder / "cost.json", {"method": "teacher", "variant": "teacher", "students": students})
            _write_log(folder, run)
            write_provenance(
                folder / RECORD,
                inputs,
                asked(arguments),
                settings=settings.model_dump(mode="json"),
                flip=arguments.flip,
                seed=settings.seed,
                arithmetic=run.arithmetic,
                steps=run.steps,
            )
        run.deliver(arguments.output)


def import_teacher(arguments: argparse.Namespace) -> None:
    """Takes a stored teacher into the results. What its own training cost is unknown, so it has no cost file."""
    source = model_folder(arguments.path, arguments.revision, weights=True)
    if problems := pipeline_problems(source):
        raise UserError("\n".join(problems))
    inputs = checked({file.name: file for file in deciding_files(source)})
    denoiser = load_denoiser(source)
    denoiser.conditions = load_conditions(source, arguments.num_classes)
    with result_folder(arguments) as folder:
        save_denoiser(folder, denoiser)
        write_provenance(folder / RECORD, inputs, asked(arguments), stored=arguments.path, revision=arguments.revision)


def make_pairs(arguments: argparse.Namespace) -> None:
    """Makes an offline set of noises and samples of the teacher, for the methods that train on one."""
    settings = PairsSettings.model_validate_json(arguments.settings)
    inputs = checked_network("teacher", arguments.teacher)
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, default_device())
    with training_run(arguments, f"pairs-{settings.name}", 0, inputs) as run:
        with result_folder(arguments, run.processes) as folder:
            shape = stored_picture_shape(arguments.teacher)
            generate_pairs(settings, teacher, shape, run, folder, arguments.batch_size)
            if not run.processes.is_main:
                return
            write_provenance(
                folder / RECORD,
                inputs,
                asked(arguments),
                settings=settings.model_dump(mode="json"),
                guidance_scale=arguments.guidance_scale,
            )
        run.deliver(arguments.output)


def distil(arguments: argparse.Namespace) -> None:
    """Trains the students of one variant with one seed. What it trains on is read only if the method says so."""
    method = configured_method(arguments.settings, arguments.guidance_scale)
    for option, wanted in (("data", method.needs_data), ("pairs", method.pairs() is not None)):
        if wanted != (getattr(arguments, option) is not None):
            needs = "needs" if wanted else "must not see"
            raise UserError(f"--{option}: the method {method.name} {needs} it.")
    if arguments.flip and arguments.data is None:
        raise UserError(f"--flip: given without --data, and the method {method.name} draws no images of a data set.")
    inputs = checked_network("teacher", arguments.teacher)
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, default_device())
    given: Split | Pairs | None = None
    if arguments.data is not None:
        inputs |= checked_data(arguments.data, "train")
        given = load_split(arguments.data, "train", arguments.flip)
        check_classes(teacher.conditions, arguments.data / "manifest.json", len(given.class_names))
    if arguments.pairs is not None:
        inputs |= checked({f"pairs, {name}": arguments.pairs / name for name in PAIRS_FILES})
        given = Pairs(arguments.pairs, teacher.conditions)
    with training_run(arguments, arguments.variant, arguments.seed, inputs) as run:
        students = method.distil(teacher, run, given)
        if not run.processes.is_main:
            return
        last = min(students, key=lambda student: student.nfe)
        with result_folder(arguments) as folder:
            for student in students:
                method.save(folder / f"nfe-{student.nfe}", student.network, teacher)
            for snapshot in last.snapshots:
                earlier = copy.deepcopy(last.network)
                earlier.load_state_dict(snapshot.weights())
                method.save(folder / snapshot_name(snapshot.step), earlier, teacher)
            write_json(
                folder / "cost.json",
                {
                    "method": method.name,
                    "variant": arguments.variant,
                    "students": [
                        {"nfe": student.nfe, **student.cost, "parameters": _parameters(student.network)}
                        for student in students
                    ],
                    "snapshots": [{"step": snapshot.step, **snapshot.cost} for snapshot in last.snapshots],
                },
            )
            _write_log(folder, run)
            write_provenance(
                folder / RECORD,
                inputs,
                asked(arguments),
                settings=json.loads(arguments.settings),
                flip=arguments.flip,
                guidance_scale=arguments.guidance_scale,
                seed=arguments.seed,
                arithmetic=run.arithmetic,
                steps=run.steps,
            )
        run.deliver(arguments.output)


def snapshot_name(step: int) -> str:
    """The folder, below a variant's, of its last student as it was after ``step`` steps."""
    return f"snapshots/step-{step}"


@contextmanager
def training_run(
    arguments: argparse.Namespace, name: str, seed: int, inputs: Mapping[str, Input], code: Sequence[Path] = ()
) -> Iterator[TrainingRun]:
    """A resumable run of the stage whose command line ``arguments`` is.

    Args:
        code: what decides the weights beside the packages that train.
    """
    identity = [
        name,
        arguments.settings,
        getattr(arguments, "guidance_scale", None),
        getattr(arguments, "flip", False),
        seed,
        {role: one.sha256 for role, one in inputs.items()},
    ]
    key = state_key(identity, code)
    folder = arguments.state / f"{name}-seed-{seed}-{key}"
    with (
        Trackers(arguments.state.parent, f"{name}/train-{seed}", key[:8], json.loads(arguments.settings)) as trackers,
        TrainingRun(folder, key, seed, default_device(), arguments.checkpoint_seconds) as run,
    ):
        run.watch = trackers.log_row if trackers.names else None
        yield run


def _write_log(folder: Path, run: TrainingRun) -> None:
    pd.DataFrame(run.log, columns=list(LOG_COLUMNS)).to_csv(folder / "training.csv", index=False)


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
