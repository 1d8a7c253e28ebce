"""SIGTERM and Ctrl-C, which end a training after the present step, not at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class Signals:
    """Which signal came; several may: a scheduler signals each process, and a process that is signalled passes it on.

    Attributes:
        came: its number; 0 for none.
    """

    came = 0

    def leave(self, folder: Path | None = None, stored: str = "") -> NoReturn:
        """Ends the process as the signal would, SIGTERM where only another process was told; says what is stored."""
        number = self.came or signal.SIGTERM
        if stored:
            print(f"{folder}: {signal.Signals(number).name}; {stored}", file=sys.stderr)
        sys.exit(128 + number)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Takes note of signals in place of what they do otherwise."""

        def note(number: int, _frame: FrameType | None) -> None:
            self.came = self.came or number

        if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
