"""Losses and gradient norms on their way from the device to the log."""

from typing import Any

import torch


class Readings:
    """What the steps came to, kept on the device until the host waits for it anyway: a GPU must not be waited for."""

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.full((), -1, device=device)
        self._unread: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = []

    def note(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Looks whether the loss of a step and the norm of its gradient are finite."""
        is_first = (self._first_bad < 0) & ~torch.isfinite(loss + norm)
        self._first_bad = torch.where(is_first, torch.full_like(self._first_bad, step), self._first_bad)

    def keep(self, row: dict[str, Any], loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Keeps both for the log, for a row that has the rest of it."""
        self._unread.append((row, loss.clone(), norm.clone()))

    def first_bad(self) -> int | None:
        """The first step that was not finite; waits for the device."""
        step = int(self._first_bad)
        return step if step >= 0 else None

    def kept_rows(self) -> list[dict[str, Any]]:
        """The rows kept since the last call, with ``loss`` and ``gradient_norm``; waits for the device."""
        rows = [row | {"loss": float(loss), "gradient_norm": float(norm)} for row, loss, norm in self._unread]
        self._unread.clear()
        return rows
