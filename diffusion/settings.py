"""The base of every block of the configuration."""

from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

# What YAML takes for null.
_NULLS = ("null", "Null", "NULL", "~", "")


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
        if any(isinstance(item, bool) for item in items) and not _allows_bool(cls, info.field_name):
            raise ValueError(f"found {value!r}, expected no truth value (yes, no, on, off, true, false)")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_as_null_or_choice(cls, value: Any, info: ValidationInfo) -> Any:
        # Of numbers and truth values pydantic itself takes the text.
        if not isinstance(value, str) or info.field_name is None:
            return value
        annotation = cls.model_fields[info.field_name].annotation
        kinds = (annotation, *get_args(annotation))
        if NoneType in kinds and value in _NULLS:
            return None
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        return next((choice for choice in choices if isinstance(choice, int) and str(choice) == value), value)


class GrownSettings(Settings):
    """A block that has got keys since results were first made with it.

    Results are known by the text of their settings. The later keys are left out of it where they say nothing, so that
    what was made before they came stays valid.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _unused_later_keys_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, dumped = type(self).model_fields, dump(self)
        # A block may lack later keys that others with the same base have.
        unused = {key for key in self.later if key in fields and getattr(self, key) == fields[key].default}
        return {key: value for key, value in dumped.items() if key not in unused}


class DataSettings(GrownSettings):
    """What the settings of every kind of data set have.

    Attributes:
        flip: whether training draws each image mirrored left to right with probability 1/2. The stored data set is the
            same with and without: references, neighbours and the classifier that judges labels see no flip.
    """

    flip: bool = False

    later: ClassVar[tuple[str, ...]] = ("flip",)


def _allows_bool(model: type[BaseModel], name: str | None) -> bool:
    annotation = model.model_fields[name].annotation if name else None
    return bool in (annotation, *get_args(annotation))


def _positive_and_distinct(value: tuple[int, ...]) -> tuple[int, ...]:
    if min(value) < 1 or len(set(value)) != len(value):
        raise ValueError(f"expected different numbers ≥ 1, found {list(value)}")
    return value


# Numbers of steps to sample with.
StepCounts = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_positive_and_distinct)]


def _distinct_and_not_negative(value: tuple[int, ...]) -> tuple[int, ...]:
    if min(value) < 0 or max(value) >= 2**63 or len(set(value)) != len(value):
        raise ValueError(f"found {list(value)}, expected different numbers from 0 to 2^63 − 1")
    return value


Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct_and_not_negative)]
