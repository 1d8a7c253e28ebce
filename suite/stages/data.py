"""The data set's two parts, and what has to be fetched for them."""

import argparse
import json

from diffusion.data import downloads, parse_settings, prepare, write_dataset
from diffusion.fetching import fetch as fetch_file


def prepare_data(arguments: argparse.Namespace) -> None:
    """Writes the two parts of a data set."""
    settings = parse_settings(json.loads(arguments.settings))
    write_dataset(arguments.output, prepare(settings, arguments.downloads), settings, arguments.state)


def fetch(arguments: argparse.Namespace) -> None:
    """Downloads one file of a data set."""
    wanted = {one.name: one for one in downloads(parse_settings(json.loads(arguments.settings)))}
    fetch_file(wanted[arguments.output.name], arguments.output)
