"""What an interrupted training has left: whole, of this suite, of these settings, or refused."""

import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion.runtime.errors import CheckpointError, first_line
from diffusion.runtime.files import atomic_path
from diffusion.runtime.memory import out_of_memory

_FORMAT = "boot-reproduction training state 1"


class StateFiles:
    """The files of one training, in its folder.

    Args:
        key: of the training; a file with another is refused.
        device: where tensors are read to.
        remedy: what to do about a file that is refused.
    """

    def __init__(self, folder: Path, key: str, device: torch.device, remedy: str) -> None:
        self.folder, self.key, self.device, self.remedy = folder, key, device, remedy
        self.checkpoint = folder / "checkpoint.pt"

    def finished(self, stage: str) -> Path:
        return self.folder / f"finished-{stage}.pt"

    def snapshot(self, stage: str, step: int) -> Path:
        return self.folder / f"snapshot-{stage}-{step}.pt"

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Writes a file whole, or not at all.

        Raises:
            OSError: the disk is full.
        """
        content |= {"format": _FORMAT, "key": self.key, "threads": torch.get_num_threads()}
        with atomic_path(path) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:
                # torch reports a full disk as a position that it did not expect.
                raise OSError(f"the state could not be written: {error}") from error

    def load(self, path: Path) -> dict[str, Any]:
        """Reads a file.

        Raises:
            CheckpointError: it is truncated, changed, or of another run.
        """
        try:
            with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not look at them
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {damaged} is another")
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (
            *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError),
            *(RuntimeError, EOFError, KeyError, ValueError, OSError),
        ) as error:
            raise CheckpointError(
                f"{path}: truncated, changed or not a training state ({first_line(error)}). {self.remedy}"
            ) from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a training state of this suite. {self.remedy}")
        if state.get("key") != self.key:
            raise CheckpointError(
                f"{path}: belongs to another run (key {state.get('key')}, expected {self.key}): other settings, seed "
                f"or inputs. {self.remedy}"
            )
        return state

    @contextmanager
    def reading(self, path: Path) -> Iterator[dict[str, Any]]:
        """The content of a file; while it is taken over, a part that it lacks, or has of another network, is refused.

        Raises:
            CheckpointError: as :meth:`load`, and instead of what torch raised.
        """
        state = self.load(path)
        try:
            yield state
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise CheckpointError(
                f"{path}: a part is missing or of another network ({first_line(error)}). {self.remedy}"
            ) from error


def use_threads(threads: int) -> None:
    """As many as the state was written with: a result must not depend on the interruption."""
    if threads != torch.get_num_threads():
        print(
            f"the state was written with {threads} threads; using as many again instead of "
            f"{torch.get_num_threads()}, so that the result does not depend on the interruption",
            file=sys.stderr,
        )
        torch.set_num_threads(threads)
