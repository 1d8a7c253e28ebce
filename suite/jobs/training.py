"""What the jobs that train have in common: a resumable run, its log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from diffusion.runtime.device import default_device
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import LOG_COLUMNS
from suite.job import Job
from suite.provenance import Input
from suite.sources import state_key
from suite.trackers import Trackers


class TrainingJob(Job):
    """A job whose training can be resumed.

    Attributes:
        settings: of what is trained.
        state: where interrupted runs are kept.
        checkpoint_seconds: between two stored states.
    """

    settings: Any
    state: Path
    checkpoint_seconds: float = Field(30.0, exclude=True)

    @contextmanager
    def training_run(self, name: str, seed: int, inputs: Mapping[str, Input], *parts: object) -> Iterator[TrainingRun]:
        """The run.

        Args:
            parts: objects whose modules the job's own does not import: the method, the teacher's family. A state of
                other code is never reused.
        """
        facts = self.facts()
        identity = [name, facts, seed, {role: one.sha256 for role, one in inputs.items()}]
        key = state_key(identity, *(type(part).__module__ for part in (self, *parts)))
        folder = self.state / f"{name}-seed-{seed}-{key}"
        with (
            Trackers(self.state.parent, f"{name}/train-{seed}", key[:8], facts["settings"]) as trackers,
            TrainingRun(folder, key, seed, default_device(), self.checkpoint_seconds) as run,
        ):
            run.watch = trackers.log_row if trackers.names else None
            yield run


def write_log(folder: Path, run: TrainingRun) -> None:
    pd.DataFrame(run.log, columns=list(LOG_COLUMNS)).to_csv(folder / "training.csv", index=False)
