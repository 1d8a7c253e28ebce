"""Kinds of data sets: every module of this folder, except names with a leading underscore, is one.

A kind is one file. Its name is the value of ``kind`` in the YAML, and it holds

- ``Settings``, derived from :class:`diffusion.data.settings.DataSettings`, with ``kind: Literal["<file name>"]``,
  and from which the images' ``shape`` can be read before anything is prepared: by ``resolution`` and ``channels``, or,
  of images that are not square, by a ``shape`` of its own; where classes are captions it names their ``attributes``, or
  the file that they are in (``captions``);
- ``prepare(settings) -> Splits``, which makes the two parts, or gives objects that decode a slice when it is asked for;
- where something can be fetched, ``downloads(settings) -> list[Download]``, empty where the user has it already; and
  ``prepare(settings, downloaded)`` is then told the folder that holds it;
- where the user's files are named, ``problems(settings) -> list[str]``: what can be known to be wrong with them in
  much less than a second, one line each with the key first, for the check of the configuration; a ``UserError`` is
  taken for what is wrong with ``data.path``;
- ``tiny_settings(folder) -> dict``, settings of a small case for the contract tests, with whatever it needs
  written under ``folder``.

``prepare`` need not know of ``flip``, which the base class brings: images are stored as they are, and flipped when
training draws them. The import of a kind must be cheap, because the workflow imports it to check a configuration: heavy
packages are imported inside its functions.
"""

import functools
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydantic

from diffusion.data.store import PARTS, Splits
from diffusion.runtime.downloads import Download
from diffusion.runtime.errors import UserError, some_of
from diffusion.runtime.settings import problems_of

_log = logging.getLogger(__name__)


@functools.cache
def kinds() -> dict[str, ModuleType]:
    """The registered kinds of data sets: name to module, sorted by name."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in sorted(names) if not name.startswith("_")}


def parse_settings(raw: Mapping[str, Any], key: str = "data") -> pydantic.BaseModel:
    """Checks the settings of a data set and fills in the defaults.

    Args:
        raw: the block of the YAML; ``kind`` chooses the model that the rest is checked against.
        key: the block's key path, for messages.

    Raises:
        UserError: not a mapping, an unknown kind, or unknown, missing or ill-typed keys.
    """
    allowed = ", ".join(kinds())
    if not isinstance(raw, Mapping):
        raise UserError(f"{key}: found {raw!r}, expected a block with the key 'kind' (one of: {allowed}).")
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in kinds():
        found = f"found {kind!r}" if "kind" in raw else "is missing"
        raise UserError(f"{key}.kind: {found}, expected one of: {allowed}.")
    model: type[pydantic.BaseModel] = kinds()[kind].Settings
    try:
        return model.model_validate(dict(raw))
    except pydantic.ValidationError as error:
        raise UserError("\n".join(problems_of(error, model, key))) from error


def _of(settings: pydantic.BaseModel, name: str) -> Any:
    """What a kind's module has under a name, None where it leaves that out."""
    return getattr(kinds()[settings.kind], name, None)  # type: ignore[attr-defined]


def downloads(settings: pydantic.BaseModel) -> list[Download]:
    """The files that have to be fetched before the data set can be prepared."""
    listed = _of(settings, "downloads")
    return list(listed(settings)) if listed else []


def problems(settings: pydantic.BaseModel) -> list[str]:
    """What can be known at once to be wrong with the user's files: a line each, with the key first."""
    listed = _of(settings, "problems")
    try:
        return list(listed(settings)) if listed else []
    except UserError as error:
        return [f"data.path: {error}"]
    except OSError as error:
        return [f"data.path: {error.filename}: cannot be read ({error.strerror})."]


def prepare(settings: pydantic.BaseModel, downloaded: Path | None = None) -> Splits:
    """The two parts of the data set that ``settings`` (from :func:`parse_settings`) describe.

    Args:
        downloaded: the folder that holds what :func:`downloads` names.

    Raises:
        UserError: the source is missing or cannot be used.
    """
    splits: Splits = _of(settings, "prepare")(settings, *([downloaded] if downloads(settings) else []))
    for part in PARTS:
        counts = np.bincount(getattr(splits, f"{part}_labels"), minlength=len(splits.class_names))
        each = some_of([f"{name} {count:,}" for name, count in zip(splits.class_names, counts, strict=True)])
        _log.info("%s part: %d images, %d class(es): %s", part, counts.sum(), len(counts), each)
    return splits
