"""Errors that a user can mend."""

from collections.abc import Collection


class UserError(Exception):
    """Something outside the code is wrong: a file, a YAML value, the machine.

    The message names the file or the YAML key, what was found, what was expected and what to do; the command
    line prints it without a traceback.
    """


class CheckpointError(UserError):
    """A checkpoint cannot be used: truncated, foreign, or written under other conditions."""


class NonFiniteError(UserError):
    """A loss, a gradient or a picture contains NaN or infinity."""


class DeviceMemoryError(UserError):
    """A batch does not fit the device's memory; the message says which one does."""


def first_line(error: BaseException) -> str:
    """What to quote of an error: the first line of its message, or its class where it has none.

    NumPy and torch answer a file that holds Python objects with the advice to execute it: that is never quoted.
    """
    line = (str(error).splitlines() or [""])[0]
    if any(advice in str(error) for advice in ("allow_pickle", "weights_only")):
        return "it holds Python objects, or is no such file; nothing in it is executed"
    return line or type(error).__name__


def some_of(names: Collection[object], most: int = 5) -> str:
    """Names for a message, which is not to be a page long: "a, b, c, d, e and 994 more"."""
    shown = ", ".join(map(str, list(names)[:most]))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def brief(error: BaseException) -> str:
    """An error's message on one line of at most 200 characters, or its class where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
