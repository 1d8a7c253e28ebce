"""Texts as what a teacher is told: embeddings of a frozen encoder, made once, stored, and drawn from.

A stored folder ``prompts`` has ``prompts.json`` (the texts, the index that is stored with samples of each, whether the
teacher knows the empty text) and ``embeddings.safetensors`` (:class:`Embeddings`, float16).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffusion.conditions import Condition, Conditions
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.runtime.files import read_json, write_json

PROMPTS, ENCODER, TOKENIZER = "prompts", "text_encoder", "tokenizer"
_TEXTS, _EMBEDDINGS = "prompts.json", "embeddings.safetensors"
# Tables up to that are held on the device that asks; of larger ones only the batch travels.
_HELD_BYTES = 2**30


class Embeddings(NamedTuple):
    """What an encoder makes of P texts, padded to L tokens.

    Attributes:
        text: its last hidden states, float16, shape (P, L, D).
        mask: where tokens are, bool, shape (P, L).
    """

    text: torch.Tensor
    mask: torch.Tensor

    def at(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """As a condition: ``text``, float32, (N, L, D), and ``text_mask``, (N, L), on the device of ``rows``."""
        found = (table[rows.to(table.device)].to(rows.device) for table in self)
        text, mask = found
        return {"text": text.float(), "text_mask": mask}


class Prompts(Conditions):
    """Some texts, each with its embedding; a condition is ``text``, ``text_mask`` and ``prompt``, an index each.

    Args:
        texts: P of them, distinct.
        indices: what is stored with samples of a text, int64, shape (P,), distinct: of captions of a data set their
            index in its ``class_names``.
        embeddings: of the texts.
        empty: of the empty text, shape (1, L, …): what stands in the place of a text in the unconditional input.
        knows_empty: whether the teacher was trained with the empty text, so that it can be guided.
        source: the pipeline's folder, with the encoder and the tokenizer.
    """

    told, num_classes = "text", None

    def __init__(
        self,
        texts: Sequence[str],
        indices: torch.Tensor,
        embeddings: Embeddings,
        empty: Embeddings,
        knows_empty: bool,
        source: Path,
    ) -> None:
        self.texts, self.indices, self.embeddings, self.empty = tuple(texts), indices, embeddings, empty
        self.knows_empty, self.source = knows_empty, source
        self._elsewhere: dict[torch.device, Prompts] = {}

    @property
    def can_be_guided(self) -> bool:
        return self.knows_empty

    @property
    def max_tokens(self) -> int:
        """L, the tokens that every text is padded to."""
        return self.embeddings.mask.shape[1]

    def _on(self, device: torch.device) -> "Prompts":
        """These texts with their tables on ``device``, where they are small enough."""
        if device == self.indices.device or self.embeddings.text.nbytes > _HELD_BYTES:
            return self
        if device not in self._elsewhere:
            texts, empty = (Embeddings(*(part.to(device) for part in one)) for one in (self.embeddings, self.empty))
            moved = Prompts(self.texts, self.indices.to(device), texts, empty, self.knows_empty, self.source)
            self._elsewhere[device] = moved
        return self._elsewhere[device]

    def _told(self, rows: torch.Tensor) -> Condition:
        held = self._on(rows.device)
        return {**held.embeddings.at(rows), "prompt": held.indices.to(rows.device)[rows]}

    def draw(self, count: int, generator: torch.Generator) -> Condition:
        """Uniform over the texts."""
        return self._told(torch.randint(len(self.texts), (count,), generator=generator, device=generator.device))

    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        """Sample i has text i mod P."""
        return self._told(torch.tensor([int(i) % len(self.texts) for i in indices], device=device))

    def labels(self, condition: Condition) -> torch.Tensor | None:
        return condition["prompt"] if condition else None

    @cached_property
    def _row_of(self) -> torch.Tensor:
        rows = torch.full((int(self.indices.max()) + 1,), -1, dtype=torch.int64, device=self.indices.device)
        rows[self.indices] = torch.arange(len(self.texts), device=self.indices.device)
        return rows

    def of_labels(self, labels: torch.Tensor) -> Condition:
        """The texts with these indices."""
        return self._told(self._on(labels.device)._row_of.to(labels.device)[labels])

    def without(self, condition: Condition) -> Condition:
        assert condition is not None
        if not self.knows_empty:
            raise ValueError("the network was trained with texts alone, and never with the empty one")
        count, device = len(condition["prompt"]), condition["prompt"].device
        none = self._on(device).empty.at(torch.zeros(1, dtype=torch.int64, device=device))
        return {**condition, **{name: value.expand(count, *value.shape[1:]) for name, value in none.items()}}

    def between(self, first: Condition, second: Condition, share: torch.Tensor) -> Condition:
        """The line between the embeddings of two texts. The network attends to the tokens of both, and at an end to
        those of the text there alone."""
        assert first is not None
        assert second is not None
        share = share.reshape(-1, 1)
        text = torch.lerp(first["text"], second["text"], share[:, :, None])
        mask = (first["text_mask"] & (share < 1)) | (second["text_mask"] & (share > 0))
        return {**first, "text": text, "text_mask": mask}


def normalised(text: str) -> str:
    """A text in Unicode's composed form, with single spaces between words and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextEncoder:
    """A frozen text encoder of `transformers` with its tokenizer.

    Args:
        encoder, tokenizer: folders that its ``AutoModel`` and ``AutoTokenizer`` read; the model answers with
            ``last_hidden_state``, as BERT's and CLIP's do.
        max_tokens: L, what every text is padded to.

    Raises:
        UserError: a folder is not there or cannot be read.
    """

    def __init__(self, encoder: Path, tokenizer: Path, max_tokens: int, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer  # seconds: where texts are encoded

        self.max_tokens, self.device = max_tokens, torch.device(device)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            model: Any = AutoModel.from_pretrained(encoder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{encoder}: no text encoder can be read ({' '.join(str(error).split())[:200]}); expected a folder of "
                f"`transformers` with its weights in safetensors, and its tokenizer."
            ) from error
        self.model = model.float().to(self.device).eval().requires_grad_(False)

    def __call__(self, texts: Sequence[str], at_once: int = 64) -> Embeddings:
        """Embeddings of texts, on the CPU.

        Args:
            at_once: the most that are encoded at a time.

        Raises:
            UserError: a text has no word, or more tokens than ``max_tokens``.
        """
        found = [self._encoded(texts[start : start + at_once]) for start in range(0, len(texts), at_once)]
        return Embeddings(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _encoded(self, texts: Sequence[str]) -> Embeddings:
        given = self.tokenizer(list(texts), padding="max_length", max_length=self.max_tokens, truncation=False)
        for text, tokens in zip(texts, given["input_ids"], strict=True):
            if len(tokens) > self.max_tokens:
                raise UserError(
                    f"teacher.text.max_tokens: found {self.max_tokens}, but a text has {len(tokens)} tokens: {text!r}. "
                    f"Raise it, or shorten the text."
                )
        tokens = {name: torch.tensor(rows, device=self.device) for name, rows in given.items()}
        with torch.inference_mode():
            text = self.model(**tokens).last_hidden_state
        return Embeddings(text.half().cpu(), tokens["attention_mask"].bool().cpu())

    def save(self, folder: Path) -> None:
        """Writes both into a pipeline's folder."""
        self.model.save_pretrained(folder / ENCODER, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / TOKENIZER)


def encoder_of(pipeline: Path, max_tokens: int, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder of a pipeline's folder; errors as :class:`TextEncoder`."""
    return TextEncoder(pipeline / ENCODER, pipeline / TOKENIZER, max_tokens, device)


def encode(
    encoder: TextEncoder, texts: Sequence[str], indices: Sequence[int], knows_empty: bool, source: Path
) -> Prompts:
    """The texts with their embeddings, and that of the empty one.

    Raises:
        UserError: a text has no word, or stands twice; or as :class:`TextEncoder`.
    """
    written = [normalised(text) for text in texts]
    if "" in written:
        raise UserError(f"prompts: text {written.index('')} of {len(written)} is empty; expected words in each.")
    if len(set(written)) < len(written):
        twice = next(text for number, text in enumerate(written) if text in written[:number])
        raise UserError(f"prompts: found {twice!r} twice; expected distinct texts.")
    embeddings, empty = encoder(written), encoder([""])
    return Prompts(written, torch.tensor(list(indices)), embeddings, empty, knows_empty, source)


def save_prompts(folder: Path, prompts: Prompts) -> None:
    """Writes what :func:`load_prompts` reads, into a new folder."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    about = {"texts": prompts.texts, "indices": prompts.indices.tolist(), "knows_empty": prompts.knows_empty}
    write_json(folder / _TEXTS, about)
    tables = {"text": prompts.embeddings.text, "mask": prompts.embeddings.mask}
    tables |= {"empty_text": prompts.empty.text, "empty_mask": prompts.empty.mask}
    save_file({name: table.cpu().contiguous() for name, table in tables.items()}, folder / _EMBEDDINGS)


def load_prompts(folder: Path) -> Prompts:
    """Reads a ``prompts`` folder beside its pipeline's encoder.

    Raises:
        CheckpointError: a file is missing or truncated, or they do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about, tables = read_json(folder / _TEXTS), load_file(folder / _EMBEDDINGS)
        embeddings = Embeddings(tables["text"], tables["mask"])
        empty = Embeddings(tables["empty_text"], tables["empty_mask"])
        texts, indices = about["texts"], torch.tensor(about["indices"], dtype=torch.int64)
        if not len(texts) == len(indices) == len(embeddings.text) == len(embeddings.mask) > 0:
            raise ValueError(f"{len(texts)} texts and {len(embeddings.text)} embeddings")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: no texts with embeddings can be read ({error}); make them again.") from error
    return Prompts(texts, indices, embeddings, empty, bool(about["knows_empty"]), folder.parent)


def prompts_files(pipeline: Path) -> list[Path]:
    """The files of a pipeline's folder that decide what its texts are; none where it has none."""
    return [file for name in (_TEXTS, _EMBEDDINGS) if (file := pipeline / PROMPTS / name).exists()]
