"""The data set's two parts, and what has to be fetched for them."""

import argparse
import json
import logging
from pathlib import Path

from diffusion.conditions import ClassLabels
from diffusion.data.kinds import downloads, parse_settings, prepare
from diffusion.data.store import write_dataset
from diffusion.runtime.errors import UserError
from diffusion.runtime.fetching import fetch as fetch_file
from suite.delivery import asked
from suite.provenance import RECORD, checked, write_provenance
from suite.stages.inputs import check_classes

# A picture and its three nearest neighbours (evaluation.measure.metrics.precision_recall).
_FEWEST_HELD_OUT = 4


def prepare_data(arguments: argparse.Namespace) -> None:
    """Writes the two parts of a data set."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("diffusion.data").setLevel(logging.INFO)  # which classes there are, and how many images of each
    settings = parse_settings(json.loads(arguments.settings))
    splits = prepare(settings, arguments.downloads)
    if len(splits.test_images) < _FEWEST_HELD_OUT:
        raise UserError(
            f"data ({settings}): {len(splits.test_images)} pictures held out, expected {_FEWEST_HELD_OUT} or more: "
            f"precision and recall are measured at their count too. Hold out a larger share, or bring more pictures."
        )
    if arguments.teacher_classes is not None:  # before pictures are decoded, and before anything is trained
        check_classes(ClassLabels(arguments.teacher_classes, False), f"data ({settings})", len(splits.class_names))
    downloads = sorted(arguments.downloads.iterdir()) if arguments.downloads else []
    inputs = checked({file.name: file for file in downloads if file.is_file()})

    def finish(folder: Path) -> None:
        write_provenance(folder / RECORD, inputs, asked(arguments), source=splits.source)

    write_dataset(arguments.output, splits, settings, arguments.state, finish)


def fetch(arguments: argparse.Namespace) -> None:
    """Downloads one file of a data set."""
    wanted = {one.name: one for one in downloads(parse_settings(json.loads(arguments.settings)))}
    fetch_file(wanted[arguments.output.name], arguments.output)
