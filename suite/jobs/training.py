"""What the stages that train have in common: a resumable run, its log."""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from diffusion.runtime.device import default_device
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import LOG_COLUMNS
from suite.provenance import Input
from suite.sources import state_key
from suite.trackers import Trackers


@contextmanager
def training_run(
    arguments: argparse.Namespace, name: str, seed: int, inputs: Mapping[str, Input], *modules: str
) -> Iterator[TrainingRun]:
    """A resumable run of the stage whose command line ``arguments`` is.

    Args:
        modules: of the stage and of what it trains; a state from other code is never reused.
    """
    identity = [
        name,
        arguments.settings,
        getattr(arguments, "guidance_scale", None),
        getattr(arguments, "flip", False),
        seed,
        {role: one.sha256 for role, one in inputs.items()},
    ]
    key = state_key(identity, *modules)
    folder = arguments.state / f"{name}-seed-{seed}-{key}"
    with (
        Trackers(arguments.state.parent, f"{name}/train-{seed}", key[:8], json.loads(arguments.settings)) as trackers,
        TrainingRun(folder, key, seed, default_device(), arguments.checkpoint_seconds) as run,
    ):
        run.watch = trackers.log_row if trackers.names else None
        yield run


def write_log(folder: Path, run: TrainingRun) -> None:
    pd.DataFrame(run.log, columns=list(LOG_COLUMNS)).to_csv(folder / "training.csv", index=False)


def parameters_of(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
