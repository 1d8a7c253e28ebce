"""The data set's two parts, and what has to be fetched for them."""

import argparse
import json

from diffusion.conditions import ClassLabels
from diffusion.data import downloads, parse_settings, prepare, write_dataset
from diffusion.fetching import fetch as fetch_file
from suite.stages.common import check_classes


def prepare_data(arguments: argparse.Namespace) -> None:
    """Writes the two parts of a data set."""
    settings = parse_settings(json.loads(arguments.settings))
    splits = prepare(settings, arguments.downloads)
    if arguments.teacher_classes is not None:  # before pictures are decoded, and before anything is trained
        check_classes(ClassLabels(arguments.teacher_classes, False), f"data ({settings})", len(splits.class_names))
    write_dataset(arguments.output, splits, settings, arguments.state)


def fetch(arguments: argparse.Namespace) -> None:
    """Downloads one file of a data set."""
    wanted = {one.name: one for one in downloads(parse_settings(json.loads(arguments.settings)))}
    fetch_file(wanted[arguments.output.name], arguments.output)
