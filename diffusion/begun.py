"""Arrays that a job fills portion by portion, and that the next one goes on with where it was stopped."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.files import read_json, write_json


class BegunArray:
    """An array on disk and how far it is filled.

    Args:
        path: of the ``.npy`` file; a ``.json`` of the same name beside it says how many rows are whole.
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
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mode: Any = "r+" if self.facts["count"] else "w+"
        array = np.lib.format.open_memmap(self.path, mode, dtype, shape)
        stored = time.monotonic()
        for indices, part in zip(portions, parts, strict=True):
            array[indices.start : indices.stop] = part
            facts = note(indices)
            if time.monotonic() - stored >= every_s:
                array.flush()
                write_json(self._facts, {"count": indices.stop} | facts)
                stored = time.monotonic()
        array.flush()
        return array

    def remove(self) -> None:
        """What was begun is done with."""
        self._facts.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
