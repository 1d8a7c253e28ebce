"""What is asked before an experiment runs: whether its configuration is right, and what it will cost."""

import argparse
import json
from typing import Any

from diffusion.runtime.device import default_device
from suite.configuration.experiment import parse_experiment
from suite.configuration.file import ConfigurationFiles
from suite.estimate import estimate, table


def print_estimate(arguments: argparse.Namespace) -> None:
    """Prints a table: evaluations, hours, memory and disk a rule."""
    print(table(estimate(parse_experiment(json.loads(arguments.config), look_at_files=False), default_device())))


def check(arguments: argparse.Namespace) -> None:
    """Says that a configuration is right, and what is not run; or raises UserError with file, line and column.

    Of a file that is not YAML at all Snakemake itself says no more than that.
    """
    from snakemake.common.configfile import load_configfile
    from snakemake.utils import update_config

    files = ConfigurationFiles(arguments.files)
    raw: dict[str, Any] = {}
    for file in arguments.files:
        update_config(raw, load_configfile(file))
    experiment, notices = files.parse(raw)
    print("\n".join([*notices, f"{arguments.files[-1]}: can be used. Variants: {', '.join(experiment.methods)}."]))
