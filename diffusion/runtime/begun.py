"""Arrays that a job fills portion by portion, and that the next one goes on with where it was stopped."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.runtime.errors import CheckpointError
from diffusion.runtime.files import new_array, read_json, write_json

_ROWS_HASHED = 256 * 2**20  # bytes at a time


class BegunArray:
    """An array on disk and how far it is filled. Whoever fills it holds a lock on its folder.

    Args:
        path: of the ``.npy`` file; a ``.json`` of the same name beside it says how many rows are whole, and the SHA-256
            of their bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._facts = path, path.with_suffix(".json")

    @property
    def facts(self) -> dict[str, Any]:
        """``count``, the rows that are whole, and what else was noted with them; ``{"count": 0}`` of a new array."""
        return read_json(self._facts) if self.path.exists() and self._facts.exists() else {"count": 0}

    def fill(
        self,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        portions: Sequence[range],
        parts: Iterable[np.ndarray],
        note: Callable[[range], dict[str, Any]] = lambda _indices: {},
        every_s: float = 0,
    ) -> np.ndarray:
        """Writes the parts that come for the portions.

        Args:
            portions: of the rows from :attr:`facts`' count on.
            note: called once a portion; what it gives is stored with the count.
            every_s: seconds between two notes on disk; what came since the last is made again after a stop.

        Returns:
            The whole array, memory-mapped.

        Raises:
            CheckpointError: rows on disk are not those that were written.
            UserError: the disk is full.
        """
        facts = self.facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        array = self._begun(shape, dtype) if facts["count"] else new_array(self.path, shape, dtype)
        written = hashlib.sha256()
        _hash(written, array[: facts["count"]])
        self._compare(written, facts.get("sha256", written.hexdigest()))
        stored = time.monotonic()
        for indices, part in zip(portions, parts, strict=True):
            rows = np.ascontiguousarray(part, dtype)
            array[indices.start : indices.stop] = rows
            written.update(rows.data)
            facts = note(indices)
            if time.monotonic() - stored >= every_s:
                array.flush()
                write_json(self._facts, {"count": indices.stop, "sha256": written.hexdigest()} | facts)
                stored = time.monotonic()
        array.flush()
        whole = hashlib.sha256()
        _hash(whole, array)
        self._compare(whole, written.hexdigest())
        return array

    def _begun(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.memmap:
        try:
            array: np.memmap = np.lib.format.open_memmap(self.path, "r+")
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(f"{self.path}: cannot be read as an array. {self._remedy}") from error
        if array.shape != shape or array.dtype != dtype:
            raise CheckpointError(
                f"{self.path}: found {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}. {self._remedy}"
            )
        return array

    def _compare(self, found: Any, expected: str) -> None:
        if found.hexdigest() != expected:
            raise CheckpointError(
                f"{self.path}: its rows have SHA-256 {found.hexdigest()[:12]}…, but {expected[:12]}… was written: the "
                f"file was changed. {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return f"Delete {self.path.parent} and run Snakemake again: the job begins anew."

    def remove(self) -> None:
        """What was begun is done with."""
        self._facts.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _hash(into: Any, rows: np.ndarray) -> None:
    """Adds the bytes of rows to a hash, a portion at a time: they may be memory-mapped and many."""
    size = max(1, _ROWS_HASHED // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), size):
        into.update(np.ascontiguousarray(rows[start : start + size]).data)
