"""The teacher: trained, or taken from a folder."""

import argparse

from diffusion.data.store import load_split
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from diffusion.teachers.folder import (
    deciding_files,
    load_conditions,
    load_denoiser,
    pipeline_problems,
    save_denoiser,
)
from diffusion.teachers.hub import model_folder
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher as fit_teacher
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, checked, write_provenance
from suite.stages.inputs import checked_data
from suite.stages.training import parameters_of, training_run, write_log


def train_teacher(arguments: argparse.Namespace) -> None:
    """Trains the teacher."""
    settings = TeacherSettings.model_validate_json(arguments.settings)
    split = load_split(arguments.data, "train", arguments.flip)
    inputs = checked_data(arguments.data, "train")
    with training_run(arguments, "teacher", settings.seed, inputs, __name__) as run:
        denoiser, cost = fit_teacher(settings, split, run)
        if not run.processes.is_main:
            return
        with result_folder(arguments) as folder:
            save_denoiser(folder, denoiser)
            students = [{"nfe": None, **cost, "parameters": parameters_of(denoiser.network)}]
            write_json(folder / "cost.json", {"method": "teacher", "variant": "teacher", "students": students})
            write_log(folder, run)
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
