"""Tables of text embeddings: in one tensor, in several that lie on a disk, or made where they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Table(Protocol):
    """Embeddings of P texts, padded to L tokens."""

    @property
    def num_texts(self) -> int:
        """P."""

    @property
    def max_tokens(self) -> int:
        """L."""

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As a condition: tensors of shape (N, …) on the device of ``rows``, numbers as float32.

        Args:
            rows: numbers of texts, int64, shape (N,).
        """


@dataclass(frozen=True)
class Embeddings:
    """What encoders make of P texts, padded to L tokens.

    Attributes:
        tables: ``text``, hidden states, float16, shape (P, L, D); ``text_mask``, where tokens are, bool, (P, L), unless
            the network attends to padding, too; and what else a family tells its network of a text, (P, …).
    """

    tables: Mapping[str, torch.Tensor]

    @property
    def text(self) -> torch.Tensor:
        """The hidden states."""
        return self.tables["text"]

    @property
    def num_texts(self) -> int:
        return len(self.text)

    @property
    def max_tokens(self) -> int:
        return self.text.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self.tables.values())

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {name: table[rows.to(table.device)].to(rows.device) for name, table in self.tables.items()}
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}

    def to(self, device: torch.device | str) -> "Embeddings":
        """The same on another device."""
        return Embeddings({name: table.to(device) for name, table in self.tables.items()})


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Those of several lists of texts, one after the other."""
    return Embeddings({name: torch.cat([part.tables[name] for part in parts]) for name in parts[0].tables})


class Shards:
    """Embeddings in several tables, one after the other; memory-mapped ones are read where they are asked for."""

    def __init__(self, parts: Sequence[Embeddings]) -> None:
        self.parts = tuple(parts)
        self._ends = torch.tensor([0, *(len(part.text) for part in parts)]).cumsum(0)[1:]

    @property
    def num_texts(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    @property
    def max_tokens(self) -> int:
        return self.parts[0].max_tokens

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        asked = rows.cpu()
        part_of = torch.bucketize(asked, self._ends, right=True)
        found: dict[str, torch.Tensor] = {}
        for number in part_of.unique().tolist():
            here = part_of == number
            start = int(self._ends[number]) - len(self.parts[number].text)
            for name, values in self.parts[number].at(asked[here] - start).items():
                if name not in found:
                    found[name] = values.new_empty(len(asked), *values.shape[1:])
                found[name][here] = values
        return {name: values.to(rows.device) for name, values in found.items()}


class Fresh:
    """Embeddings that the encoder makes whenever they are asked for, on the device that asks: of many texts of wide
    encoders a table would fill a disk.

    Args:
        texts: P of them, normalised.
        encoder_on: makes the encoder on a device (:class:`diffusion.teachers.prompts.Encoder`).
        max_tokens: L.
    """

    def __init__(self, texts: Sequence[str], encoder_on: Callable[[torch.device], Any], max_tokens: int) -> None:
        self.texts, self._encoder_on, self._max_tokens = texts, encoder_on, max_tokens
        self._encoders: dict[torch.device, Any] = {}

    @property
    def num_texts(self) -> int:
        return len(self.texts)

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        if rows.device not in self._encoders:
            self._encoders[rows.device] = self._encoder_on(rows.device)
        # Each text once: a batch of samples may have one prompt alone.
        asked, row_of = rows.unique(return_inverse=True)
        texts = [self.texts[row] for row in asked.tolist()]
        found: Embeddings = self._encoders[rows.device](texts, device=rows.device)
        return found.at(row_of)
