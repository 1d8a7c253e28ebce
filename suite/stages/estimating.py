"""What an experiment will cost."""

import argparse
import json

from diffusion.device import default_device
from suite.configuration import parse_experiment
from suite.estimate import estimate, table


def print_estimate(arguments: argparse.Namespace) -> None:
    """Prints a table: evaluations, hours, memory and disk a rule."""
    print(table(estimate(parse_experiment(json.loads(arguments.config)), default_device())))
