"""Checking what is right of a block though another part of it is wrong."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from diffusion.runtime.settings import problems_of

M = TypeVar("M", bound=pydantic.BaseModel)


def without_wrong(
    model: type[M], block: Mapping[str, Any], key: str, problems: list[str], stand_in: Mapping[str, Any] | None = None
) -> tuple[M | None, set[str]]:
    """A block less what is wrong with it, which is noted, so that the rest of it is checked further.

    Args:
        stand_in: for keys that are required.

    Returns:
        The block, None where it is wrong as a whole; and the dotted keys of what is wrong within it.
    """
    given, wrong = dict(block), set[str]()
    while True:
        try:
            return model.model_validate(given), wrong
        except pydantic.ValidationError as error:
            if not wrong:  # later ones may come of what has been left out
                problems += problems_of(error, model, key)
            kept, places = given, [problem["loc"] for problem in error.errors()]
        for place in places:
            wrong.add(".".join(map(str, place)))
            kept = _without(kept, place)
        kept = {**(stand_in or {}), **kept}
        if kept == given:
            return None, wrong
        given = kept


def _without(block: Mapping[Any, Any], place: Sequence[int | str]) -> dict[str, Any]:
    """``block`` less the innermost key at a place that it has."""
    if not place:
        return dict(block)
    key, *rest = place
    inner = block.get(key)
    less = _without(inner, rest) if isinstance(inner, Mapping) and rest and rest[0] in inner else None
    return {k: less if k == key else v for k, v in block.items() if k != key or less is not None}


def touched(wrong: Collection[str], *keys: str) -> bool:
    """Whether one of these keys is wrong, or something within it, or the block that it stands in."""
    return any(f"{a}.".startswith(f"{b}.") for one in wrong for key in keys for a, b in ((one, key), (key, one)))


def refused(check: Callable[..., Any], *arguments: Any) -> str | None:
    """What ``check`` objects to."""
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return None
