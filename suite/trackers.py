"""Losses and learning curves in TensorBoard and in Weights & Biases, while they are measured.

``BOOT_LOGGERS=tensorboard,wandb`` asks for them. An environment variable and no key of the configuration, because it
decides no result: nothing is made anew where it is set, and weights are the same bit for bit.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from diffusion.runtime.errors import UserError, first_line

VARIABLE = "BOOT_LOGGERS"
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes numbers at steps that grow; ``is_new`` unless it goes on with a curve of an earlier attempt."""

    is_new: bool

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def wanted_trackers() -> tuple[str, ...]:
    """The names in ``BOOT_LOGGERS``.

    Raises:
        UserError: an unknown one, or one whose package is not installed.
    """
    names = tuple(dict.fromkeys(filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(",")))))
    for name in names:
        if name not in _PACKAGES:
            raise UserError(f"{VARIABLE}: found {name!r}, expected {', '.join(_PACKAGES)}, or several with a comma.")
        try:
            found = importlib.util.find_spec(_PACKAGES[name]) is not None
        except ValueError:  # a module without a specification stands under that name
            found = True
        if not found:
            raise UserError(
                f"{VARIABLE}: found {name!r}, but its package is not installed; "
                f"`pip install {_PACKAGES[name]}`, or leave it out."
            )
    return names


class Trackers:
    """All trackers that are wanted, of one training or of one learning curve; use as a context manager.

    What one of them fails with ends that one, and never the training.

    Args:
        root: the results of the experiment.
        name: of the curve, as a path such as "boot-heun/train-0".
        key: of what is trained: a stopped run goes on under the same one, other settings get a curve of their own.
        settings: what Weights & Biases shows as the configuration.
    """

    def __init__(self, root: Path, name: str, key: str, settings: Any = None) -> None:
        self.root, self.name, self.key, self.settings = root, name, key, settings
        self.names = wanted_trackers()
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._attempt(name, lambda tracker: tracker.close())

    def log(
        self, values: Mapping[str, float], step: int, earlier: Iterable[tuple[Mapping[str, float], int]] = ()
    ) -> None:
        """Hands ``values`` on.

        Args:
            step: of all stages together.
            earlier: what was logged before a stop, for a tracker that has not seen it.
        """
        for name in self.names:
            if name not in self._open:
                self._begin(name, step, earlier)
            self._attempt(name, lambda tracker: tracker.log(values, step))

    def log_row(self, log: list[dict[str, Any]]) -> None:
        """Hands the last row of a training's log on (:attr:`diffusion.training.loop.TrainingRun.log`)."""
        rows = list(_along_all_stages(log))
        self.log(*rows[-1], earlier=rows[:-1])

    def _begin(self, name: str, step: int, earlier: Iterable[tuple[Mapping[str, float], int]]) -> None:
        try:
            tracker: Tracker = _TensorBoard(self, step) if name == "tensorboard" else _WeightsAndBiases(self)
            self._open[name] = tracker
            for values, at in earlier if tracker.is_new else ():
                tracker.log(values, at)
        except Exception as error:  # whatever a tracker fails with, hours of training must not end with it
            self._give_up(name, error)

    def _attempt(self, name: str, do: Any) -> None:
        if name in self._open:
            try:
                do(self._open[name])
            except Exception as error:  # as above
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        said = f"{type(error).__name__}: {first_line(error)}"
        print(f"{VARIABLE}: {name} failed ({said}); the training goes on without it", file=sys.stderr)
        self.names = tuple(other for other in self.names if other != name)
        self._open.pop(name, None)


def _along_all_stages(log: list[dict[str, Any]]) -> Iterable[tuple[dict[str, float], int]]:
    """Rows of a log with one axis for all stages: the last row of a stage is its last step."""
    before, done, stage = 0, 0, None
    for row in log:
        if row["stage"] != stage:
            before, stage = done, row["stage"]
        done = before + row["step"]
        yield {f"{stage}/{name}": row[name] for name in ("loss", "learning_rate", "gradient_norm")}, done


class _TensorBoard:
    """Event files under ``tensorboard/`` of the results. Those of a stopped run stay; what it logged after its last
    state, which is trained again, is superseded."""

    def __init__(self, trackers: Trackers, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = trackers.root / "tensorboard" / f"{trackers.name}-{trackers.key}"
        self.is_new = not folder.exists()
        self._writer: Any = SummaryWriter(str(folder), purge_step=None if self.is_new else step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a job may be killed at any moment

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the project ``WANDB_PROJECT`` (else the experiment's name), continued under the same id."""

    def __init__(self, trackers: Trackers) -> None:
        import wandb

        folder = trackers.root / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        place = trackers.name.replace("/", "-")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", trackers.root.name),
            name=trackers.name,
            id=f"{trackers.root.name}-{place}-{trackers.key}",
            resume="allow",
            dir=str(folder),
            config=trackers.settings,
        )
        self.is_new = not self._run.resumed

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
