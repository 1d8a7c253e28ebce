"""The base of every block of the configuration, and what is said of a block that does not fit."""

import errno
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

# What YAML takes for null.
_NULLS = ("null", "Null", "NULL", "~", "")

# What a key wants, by the beginning of pydantic's name for the mistake.
_EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_type": "text (in quotes, where YAML takes it for something else)",
    "string_too_short": "some text",
    "string_pattern": "text of the form {pattern}",
    "tuple_type": "a list such as [{example}]",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "dict_type": "a block of keys",
    "model_": "a block of keys",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


class Settings(BaseModel):
    """A block of YAML with known keys and types; an unknown key is an error, and so is `yes` where a number belongs.

    Texts that say a number, a truth value or null are taken for it where the key wants one: Snakemake's `--config`
    leaves every value inside a block a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1: `steps: yes` would train for one step.
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if any(isinstance(item, bool) for item in items) and not _takes(cls, info.field_name, bool):
            choices = _choices(cls, info.field_name)
            wanted = _EXPECTED["string_type"] if _takes(cls, info.field_name, str) else "a number"
            raise ValueError(f"found {quoted(value)}, expected {' or '.join(map(repr, choices)) or wanted}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_as_null_or_choice(cls, value: Any, info: ValidationInfo) -> Any:
        # Of numbers and truth values pydantic itself takes the text.
        if not isinstance(value, str) or info.field_name is None:
            return value
        if _takes(cls, info.field_name, NoneType) and value in _NULLS:
            return None
        choices = _choices(cls, info.field_name)
        return next((choice for choice in choices if isinstance(choice, int) and str(choice) == value), value)


class GrownSettings(Settings):
    """A block that has got keys since results were first made with it.

    Results are known by the text of their settings. The later keys, a class's own and its bases', are left out of it
    where they say nothing, so that what was made before they came stays valid.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _unused_later_keys_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, dumped = type(self).model_fields, dump(self)
        later = {key for kind in type(self).__mro__ for key in getattr(kind, "later", ())}
        # A block may lack later keys that others with the same base have.
        unused = {key for key in later if key in fields and getattr(self, key) == fields[key].default}
        return {key: value for key, value in dumped.items() if key not in unused}


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """What is wrong with a block, a sentence each: key path, what was found, what is expected.

    Args:
        model: that the block was checked against.
        prefix: key path of the block; empty for the whole configuration.
    """
    problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
    # Of a list whose entries are wrong pydantic says that it is too short as well.
    inside = {problem["loc"][:-1] for problem in problems}
    return [_problem(one, model, prefix) for one in problems if one["type"] != "too_short" or one["loc"] not in inside]


def _problem(problem: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    location, kind, value = problem["loc"], problem["type"], problem["input"]
    # Pydantic names a wrong key of a mapping once more; and kinds of values have names of ours.
    keys = [key for key in location if not str(key).startswith("[")]
    path = ".".join(filter(None, [prefix, *map(str, keys)])) or "the configuration"
    if kind == "extra_forbidden":
        return f"{path}: unknown key; expected one of: {', '.join(_block_at(model, location[:-1]).model_fields)}."
    if kind == "missing":
        return f"{path}: missing; expected a value."
    if kind == "value_error":
        return f"{path}: {problem['msg'].removeprefix('Value error, ')}."
    expected = next((words for start, words in _EXPECTED.items() if kind.startswith(start)), None)
    if expected is None:
        return f"{path}: found {quoted(value)}; {problem['msg']}."
    numbers = any(map(str.isdecimal, str(value)))
    example = "{key: value}" if isinstance(value, Mapping) else "0, 1" if numbers else "a, b"
    expected = expected.format_map({"example": example, **problem.get("ctx", {})})
    if kind == "int_parsing" and (whole := _whole(value)) is not None:
        expected += f"; write {whole}"
    if isinstance(value, str) and value.startswith(("[", "{")):  # which Snakemake keeps as a text
        expected += "; this text is not YAML: look at its brackets, and for a space behind each colon"
    return f"{path}: found {quoted(value)}, expected {expected}."


def quoted(value: Any) -> str:
    """A value of the configuration as a message quotes it: text in quotes, the rest as YAML writes it."""
    return (
        repr(value)
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else json.dumps(value, ensure_ascii=False, default=str)
    )


def _whole(text: str) -> int | None:
    """The whole number that a text says in another way, as 1e3."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _block_at(model: Any, location: Sequence[int | str]) -> Any:
    """The model of the block at a key path in ``model``."""
    keys = iter(location)
    for key in keys:
        kinds = [model.model_fields[key].annotation]
        for kind in kinds:  # which grows: `Block | None`, `dict[str, Block] | None`
            kinds += get_args(kind)
        model = next(kind for kind in kinds if hasattr(kind, "model_fields"))
        if any(get_origin(kind) is dict for kind in kinds):
            next(keys)  # the name that the user has given the block
    return model


def _kinds(model: type[BaseModel], name: str | None) -> tuple[Any, ...]:
    """What a key takes: its annotation and the parts of it."""
    annotation = model.model_fields[name].annotation if name else None
    return (annotation, *get_args(annotation))


def _takes(model: type[BaseModel], name: str | None, kind: type) -> bool:
    return kind in _kinds(model, name)


def _choices(model: type[BaseModel], name: str | None) -> list[Any]:
    """The values of a key that takes one of several."""
    return [choice for kind in _kinds(model, name) if get_origin(kind) is Literal for choice in get_args(kind)]


def _positive_and_distinct(value: tuple[int, ...]) -> tuple[int, ...]:
    if min(value) < 1 or len(set(value)) != len(value):
        raise ValueError(f"expected different numbers ≥ 1, found {list(value)}")
    return value


# Numbers of steps to sample with.
StepCounts = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_positive_and_distinct)]


def user_path(value: str) -> str:
    """A path as a user writes it, with ``~`` and ``~name`` expanded; others are returned as they are.

    Raises:
        ValueError: the home folder is not known; the system or Snakemake cannot take the path.
    """
    path = os.path.expanduser(value)
    found = f"found {value!r}, expected"
    if path.startswith("~"):
        user = path.partition("/")[0].removeprefix("~") or "this user"
        raise ValueError(f"{found} the whole path: no home folder of {user} is known here")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path):
        raise ValueError(f"{found} a path without line breaks and other control characters")
    if "{" in path or "}" in path:
        raise ValueError(f"{found} a path without {{ and }}, which Snakemake takes for a wildcard; rename it")
    # "./" in front of it would be lost on the way to a command.
    if (first := str(PurePath(path))[0]) in "-~":
        raise ValueError(f"{found} the whole path, from / on: {first} in front has a meaning of its own")
    if (encoding := sys.getfilesystemencoding()) != "utf-8" and not path.isascii():  # safetensors takes UTF-8 alone
        raise ValueError(f"{found} ASCII, since this locale's encoding is {encoding}; set PYTHONUTF8=1 for UTF-8")
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise ValueError(f"{found} a path that can be looked at ({error.strerror})") from error
    return path


# Every path in the configuration.
UserPath = Annotated[str, AfterValidator(user_path)]


def _distinct_and_not_negative(value: tuple[int, ...]) -> tuple[int, ...]:
    # Tables are read as float64, which has no odd numbers beyond.
    if min(value) < 0 or max(value) >= 2**53 or len(set(value)) != len(value):
        raise ValueError(f"found {list(value)}, expected different numbers from 0 to 2^53 − 1")
    return value


Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct_and_not_negative)]
