"""What is asked before an experiment runs: whether its configuration is right, and what it will cost."""

from pathlib import Path
from typing import Any

from pydantic import Field

from diffusion.runtime.device import default_device
from suite.configuration.experiment import parse_experiment
from suite.configuration.file import ConfigurationFiles
from suite.estimate import estimate, table
from suite.job import Task


class Estimate(Task):
    """Prints a table: evaluations, hours, memory and disk a rule."""

    config: dict[str, Any]

    def run(self) -> None:
        print(table(estimate(parse_experiment(self.config, look_at_files=False), default_device())))


class Check(Task):
    """Check configuration files, and say which line is wrong, and what is not run."""

    files: tuple[Path, ...] = Field(description="YAML; keys of later files replace earlier ones")

    def run(self) -> None:
        """Of a file that is not YAML at all Snakemake itself says no more than that.

        Raises:
            UserError: with file, line and column.
        """
        from snakemake.common.configfile import load_configfile
        from snakemake.utils import update_config

        files = ConfigurationFiles(self.files)
        raw: dict[str, Any] = {}
        for file in self.files:
            update_config(raw, load_configfile(file))
        experiment, notices = files.parse(raw)
        print("\n".join([*notices, f"{self.files[-1]}: can be used. Variants: {', '.join(experiment.methods)}."]))
