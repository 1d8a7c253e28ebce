"""What several stages need."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.files import atomic_path
from suite.registry import method_class


@contextmanager
def result_folder(output: Path) -> Iterator[Path]:
    """A fresh folder that becomes ``output`` when the block ends without an error."""
    with atomic_path(output) as temporary:
        temporary.mkdir()
        yield temporary


def network_folder(method: Any, source: Path, nfe: int) -> Path:
    """The `diffusers` folder that a method samples from: one of its students, or the teacher."""
    return source / f"nfe-{nfe}" if method.trains else source


def weights_file(folder: Path) -> Path:
    """The weights of a `diffusers` folder."""
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def configured_method(settings: str) -> Any:
    """The method that a block of settings, as JSON, describes."""
    raw = json.loads(settings)
    method_type = method_class(raw["method"])
    return method_type(method_type.Settings.model_validate(raw))


def number_in(name: str) -> int:
    """5 of ``seed-5`` or ``nfe-5``."""
    return int(name.rpartition("-")[2])
