"""The data set's two parts."""

import argparse
import json

from diffusion.data import parse_settings, prepare, write_dataset


def prepare_data(arguments: argparse.Namespace) -> None:
    """Writes the two parts of a data set."""
    settings = parse_settings(json.loads(arguments.settings))
    write_dataset(arguments.output, prepare(settings), settings)
