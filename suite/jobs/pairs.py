"""An offline set of noises and samples of the teacher."""

import argparse

from diffusion.distillation.pairs import PairsSettings, generate_pairs
from diffusion.runtime.device import default_device
from diffusion.teachers.stored_network import stored_picture_shape
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, write_provenance
from suite.stages.networks import checked_network, load_teacher
from suite.stages.training import training_run


def make_pairs(arguments: argparse.Namespace) -> None:
    """Makes an offline set of noises and samples of the teacher, for the methods that train on one."""
    settings = PairsSettings.model_validate_json(arguments.settings)
    inputs = checked_network("teacher", arguments.teacher)
    teacher = load_teacher(arguments.teacher, arguments.guidance_scale, default_device())
    with training_run(arguments, f"pairs-{settings.name}", 0, inputs, __name__) as run:
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
