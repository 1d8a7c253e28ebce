"""Pickles, read without executing anything in them.

A pickle is a program that names functions and calls them. The reader here is given, by exact name, everything that a
kind of file needs; whatever else a file names is refused before it is looked up, so that no module is imported and no
code of the file runs.
"""

import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2


def _encode(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


# An array and a number are rebuilt by what NumPy itself names in a pickle of one.
NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(core, "_reconstruct"): np.empty(0).__reduce__()[0] for core in _CORES},
    **{(core, "scalar"): np.float64(0).__reduce__()[0] for core in _CORES},
}


class KnownOnly(pickle.Unpickler):
    """Knows the globals that it is given and refuses all others by name.

    Args:
        file: the pickle, opened in binary mode.
        known: (module, name) to what stands for it. What is callable there can be called by the file, with whatever it
            has built before.
        encoding: of strings of Python 2, as for ``pickle.Unpickler``.
    """

    def __init__(self, file: BinaryIO, known: Mapping[tuple[str, str], Any], encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        # Not `super().find_class`, which imports the module and follows dots in the name.
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._known[module, name]


def named_global(error: Exception) -> str | None:
    """What a file asks for that ``torch.load(weights_only=True)`` refuses, "module.name", where its error says so."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else None
