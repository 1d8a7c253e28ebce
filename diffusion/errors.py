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


def some_of(names: Collection[str], most: int = 5) -> str:
    """Names for a message, which is not to be a page long: "a, b, c, d, e and 994 more"."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
