"""Makes ``import torchvision`` work beside a build of torch that its compiled operators do not fit.

A CPU build of torch next to the ordinary torchvision wheel fails with ``operator torchvision::nms does not exist``
and takes diffusers, torch-fidelity and clean-fid down with it, although nothing here calls those operators. Where
the compiled library really does not load, declaring the two schemas is enough for the Python part to import.
Call :func:`repair_torchvision` before the first import of any of those packages.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[Any] = []  # keeps the library object alive: its schemas vanish with it


@functools.cache
def repair_torchvision() -> bool:
    """Declares torchvision's ``nms`` and ``qnms`` if, and only if, its compiled operators fail to load.

    Returns:
        whether the declaration was needed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    compiled = sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd"))
    for library in compiled:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return False
    declared = torch.library.Library("torchvision", "DEF")
    declared.define("nms" + _SCHEMA)
    declared.define("qnms" + _SCHEMA)
    _declared.append(declared)
    return True
