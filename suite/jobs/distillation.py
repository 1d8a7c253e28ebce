"""The students of one variant with one seed."""

import argparse
import copy
import json

from diffusion.data.store import Split, load_split
from diffusion.distillation.pairs import FILES as PAIRS_FILES
from diffusion.distillation.pairs import Pairs
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, checked, write_provenance
from suite.stages.inputs import check_classes, checked_data, snapshot_name
from suite.stages.networks import checked_network, configured_method, load_teacher
from suite.stages.training import parameters_of, training_run, write_log


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
    with training_run(arguments, arguments.variant, arguments.seed, inputs, __name__, type(method).__module__) as run:
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
                        {"nfe": student.nfe, **student.cost, "parameters": parameters_of(student.network)}
                        for student in students
                    ],
                    "snapshots": [{"step": snapshot.step, **snapshot.cost} for snapshot in last.snapshots],
                },
            )
            write_log(folder, run)
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
