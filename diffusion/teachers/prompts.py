"""Texts as what a teacher is told: embeddings of a frozen encoder, made once, stored, and drawn from.

A stored folder ``prompts`` has ``prompts.json`` (the texts, the index that is stored with samples of each, whether the
teacher knows the empty text) and ``embeddings.safetensors`` (:class:`Embeddings`, float16). Many embeddings lie beside
it in shards, ``embeddings-00000.safetensors`` …; where texts are encoded in the loop, it has the unconditional input
alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from diffusion.conditions import Condition, Conditions
from diffusion.noise import initial_noise
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.runtime.files import link_or_copy, read_json, write_json
from diffusion.runtime.texts import normalised
from diffusion.teachers.embeddings import Embeddings, Fresh, Shards, Table, joined
from diffusion.teachers.latents import space_of
from diffusion.teachers.low_resolution import IMAGES, Enlarging
from diffusion.teachers.stock import TextFamily, encoding_pipeline
from diffusion.teachers.stored_network import stored_network

PROMPTS, ENCODER, TOKENIZER = "prompts", "text_encoder", "tokenizer"
_TEXTS, _EMBEDDINGS, _SHARDS = "prompts.json", "embeddings.safetensors", "embeddings-{:05d}.safetensors"
_EMPTY = "empty_"  # before the names of the unconditional input's tables
# Tables up to that are held on the device that asks; of larger ones only the batch travels.
_HELD_BYTES = 2**30
# The seed of the noise on images that samples enlarge; no sampling seed, so that it is none of a sample's own.
_ENLARGED = 2**53
# Of one file; what encoding holds in memory.
_SHARD_BYTES = 2**30


class Prompts(Conditions):
    """Some texts, each with its embedding; a condition is ``text``, ``text_mask`` and ``prompt``, an index each.

    Args:
        texts: P of them, distinct.
        indices: what is stored with samples of a text, int64, shape (P,), distinct: of captions of a data set their
            index in its ``class_names``.
        embeddings: of the texts.
        empty: of the empty text, or of a negative prompt, shape (1, L, …): what stands in the place of a text in the
            unconditional input.
        knows_empty: whether the teacher was trained with the empty text, so that it can be guided.
        source: the pipeline's folder, with the encoder and the tokenizer.
        stored: the folder that these texts were read from, if they were.
        enlarging: how the images that the network enlarges are given, one of each text; None where it enlarges none.
    """

    told, num_classes = "text", None

    def __init__(
        self,
        texts: Sequence[str],
        indices: torch.Tensor,
        embeddings: Table,
        empty: Embeddings,
        knows_empty: bool,
        source: Path,
        stored: Path | None = None,
        enlarging: Enlarging | None = None,
    ) -> None:
        self.enlarging = enlarging
        self.texts, self.indices, self.embeddings, self.empty = tuple(texts), indices, embeddings, empty
        self.knows_empty, self.source, self.stored = knows_empty, source, stored
        self._elsewhere: dict[torch.device, Prompts] = {}

    @property
    def can_be_guided(self) -> bool:
        return self.knows_empty

    @property
    def max_tokens(self) -> int:
        """L, the tokens that every text is padded to."""
        return self.embeddings.max_tokens

    @property
    def width(self) -> int:
        """D, the numbers in a token's embedding."""
        return self.empty.text.shape[-1]

    def with_empty(self, empty: Embeddings) -> "Prompts":
        """These texts with another unconditional input."""
        own = self.texts, self.indices, self.embeddings
        return Prompts(*own, empty, self.knows_empty, self.source, enlarging=self.enlarging)

    def _on(self, device: torch.device) -> "Prompts":
        """These texts with their tables on ``device``, where they are small enough."""
        if device == self.indices.device:
            return self
        if device not in self._elsewhere:
            table = self.embeddings
            if isinstance(table, Embeddings) and table.nbytes <= _HELD_BYTES:
                table = table.to(device)
            indices, empty = self.indices.to(device), self.empty.to(device)
            moved = Prompts(self.texts, indices, table, empty, self.knows_empty, self.source)
            self._elsewhere[device] = moved
        return self._elsewhere[device]

    def _told(self, rows: torch.Tensor) -> Condition:
        held = self._on(rows.device)
        return {**held.embeddings.at(rows), "prompt": held.indices[rows]}

    def draw(self, count: int, generator: torch.Generator) -> Condition:
        """Uniform over the texts."""
        device = generator.device
        told = self._told(torch.randint(len(self.texts), (count,), generator=generator, device=device))
        if self.enlarging is None:
            return told
        noise = torch.randn(count, *self.enlarging.shape, generator=generator, device=device)
        return self.enlarging.told(told, noise)

    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        """Sample i has text i mod P."""
        numbers = [int(i) for i in indices]
        told = self._told(torch.tensor([number % len(self.texts) for number in numbers], device=device))
        if self.enlarging is None:
            return told
        return self.enlarging.told(told, initial_noise(_ENLARGED, numbers, self.enlarging.shape).to(device))

    def labels(self, condition: Condition) -> torch.Tensor | None:
        return condition["prompt"] if condition else None

    @cached_property
    def _row_of(self) -> torch.Tensor:
        rows = torch.full((int(self.indices.max()) + 1,), -1, dtype=torch.int64, device=self.indices.device)
        rows[self.indices] = torch.arange(len(self.texts), device=self.indices.device)
        return rows

    def of_labels(self, labels: torch.Tensor) -> Condition:
        """The texts with these indices."""
        return self._told(self._on(labels.device)._row_of[labels])

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
        given = dict(first)
        for name, one in first.items():
            here = share.reshape(-1, *[1] * (one.ndim - 1))
            if one.is_floating_point():
                given[name] = torch.lerp(one, second[name], here)
            elif one.dtype == torch.bool:
                given[name] = (one & (here < 1)) | (second[name] & (here > 0))
        return given


class Encoder(ABC):
    """What reads texts, on its ``device``."""

    device: torch.device

    def __call__(self, texts: Sequence[str], at_once: int = 64, device: torch.device | str = "cpu") -> Embeddings:
        """Embeddings of texts.

        Args:
            at_once: the most that are encoded at a time.
            device: where they go.

        Raises:
            UserError: a text has more tokens than the encoder takes.
        """
        portions = [list(texts[start : start + at_once]) for start in range(0, len(texts), at_once)]
        with self._plainly():
            return joined([self._encoded(portion).to(device) for portion in portions])

    @abstractmethod
    def _encoded(self, texts: list[str]) -> Embeddings: ...

    def negative(self, text: str) -> Embeddings:
        """What stands in the place of a text in the unconditional input: of one other text, on the CPU."""
        return self([text])

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """In a loop that trains in bfloat16, too, embeddings are what a table of them would have."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield


class TextEncoder(Encoder):
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

    def _encoded(self, texts: list[str]) -> Embeddings:
        given = self.tokenizer(texts, padding="max_length", max_length=self.max_tokens, truncation=False)
        for text, tokens in zip(texts, given["input_ids"], strict=True):
            if len(tokens) > self.max_tokens:
                raise UserError(
                    f"teacher.text.max_tokens: found {self.max_tokens}, but a text has {len(tokens)} tokens: {text!r}. "
                    f"Raise it, or shorten the text."
                )
        tokens = {name: torch.tensor(rows, device=self.device) for name, rows in given.items()}
        text = self.model(**tokens).last_hidden_state
        return Embeddings({"text": text.half(), "text_mask": tokens["attention_mask"].bool()})

    def save(self, folder: Path) -> None:
        """Writes both into a pipeline's folder."""
        self.model.save_pretrained(folder / ENCODER, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / TOKENIZER)


class StockEncoder(Encoder):
    """The text encoders of a stock pipeline of `diffusers`, used as that uses them.

    Args:
        folder: of the pipeline.

    Raises:
        UserError: they are not there, or cannot be read.
    """

    def __init__(self, folder: Path, family: TextFamily, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._pipeline, self._family = encoding_pipeline(folder, self.device), family
        _, *self._size = space_of(folder).image_shape(stored_network(folder).shape)

    def _encoded(self, texts: list[str]) -> Embeddings:
        return self._stored(self._family.encoded(self._pipeline, texts, self._size))

    def negative(self, text: str) -> Embeddings:
        with self._plainly():
            return self._stored(self._family.negative(self._pipeline, text, self._size)).to("cpu")

    @staticmethod
    def _stored(tables: Mapping[str, torch.Tensor]) -> Embeddings:
        return Embeddings(
            {name: value.half() if value.is_floating_point() else value for name, value in tables.items()}
        )


def encoder_of(pipeline: Path, max_tokens: int | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a pipeline's folder; errors as :class:`TextEncoder` and :class:`StockEncoder`.

    Args:
        max_tokens: of a folder of this suite's own.
    """
    if family := _stock_family(pipeline):
        return StockEncoder(pipeline, family, device)
    assert max_tokens is not None
    return TextEncoder(pipeline / ENCODER, pipeline / TOKENIZER, max_tokens, device)


def _stock_family(pipeline: Path) -> TextFamily | None:
    """The family of a folder that is a stock pipeline's; an encoder may lie in a folder without a network."""
    family = stored_network(pipeline).family if (pipeline / "model_index.json").exists() else None
    return family if isinstance(family, TextFamily) else None


def token_limit(pipeline: Path) -> tuple[Path, int]:
    """The tokenizer of a pipeline's folder that reads the longest texts, and the most tokens that it may give."""
    if family := _stock_family(pipeline):
        return family.token_limit(pipeline)
    return pipeline / TOKENIZER, load_prompts(pipeline / PROMPTS).max_tokens


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
    """Writes what :func:`load_prompts` reads, into a new folder; linked where it is stored already."""
    folder.mkdir(exist_ok=True)
    if prompts.stored is not None:
        for file in _files(prompts.stored):
            link_or_copy(file, folder / file.name)
        return
    table = prompts.embeddings
    shards = [table] if isinstance(table, Embeddings) else table.parts if isinstance(table, Shards) else None
    listed = prompts.texts, prompts.indices.tolist(), prompts.knows_empty, prompts.empty
    _write(folder, *listed, shards, prompts.enlarging)


def store_encoded(
    folder: Path,
    encoder: Encoder,
    texts: Sequence[str],
    indices: Sequence[int],
    knows_empty: bool,
    negative: str = "",
    cache: bool = True,
    enlarging: Enlarging | None = None,
    images: Callable[[Sequence[str], Embeddings], torch.Tensor] | None = None,
) -> None:
    """As :func:`encode` and :func:`save_prompts`, with no more than one file's embeddings in memory.

    Args:
        texts: normalised and distinct.
        negative: what stands in the place of a text in the unconditional input.
        cache: whether embeddings are stored; else the texts are encoded whenever they are asked for.
        enlarging, images: of a network that enlarges images: how, and what draws them of texts and their embeddings,
            uint8, shape (P, C, h, w).
    """
    empty = encoder.negative(normalised(negative))
    size = max(1, _SHARD_BYTES // empty.nbytes)

    def encoded(some: Sequence[str]) -> Embeddings:
        found = encoder(some)
        return found if images is None else Embeddings({**found.tables, IMAGES: images(some, found)})

    shards = (encoded(texts[start : start + size]) for start in range(0, len(texts), size))
    _write(folder, texts, indices, knows_empty, empty, shards if cache else None, enlarging)


def _write(
    folder: Path,
    texts: Sequence[str],
    indices: Sequence[int],
    knows_empty: bool,
    empty: Embeddings,
    shards: Iterable[Embeddings] | None,
    enlarging: Enlarging | None = None,
) -> None:
    """One shard stands in one file with the unconditional input; of several each has a file of its own."""
    from safetensors.torch import save_file

    def save(name: str, tables: Mapping[str, torch.Tensor]) -> None:
        save_file({name: table.cpu().contiguous() for name, table in tables.items()}, folder / name)

    about = {"texts": list(texts), "indices": list(indices), "knows_empty": knows_empty}
    further: dict[str, Any] = {} if enlarging is None else {"enlarging": asdict(enlarging)}
    write_json(folder / _TEXTS, about | further | ({"cached": False} if shards is None else {}))
    tables = {f"{_EMPTY}{name}": table for name, table in empty.tables.items()}
    for number, shard in enumerate(shards or ()):
        if shard.num_texts == len(texts):
            tables |= shard.tables
        else:
            save(_SHARDS.format(number), shard.tables)
    save(_EMBEDDINGS, tables)


def load_prompts(folder: Path, source: Path | None = None) -> Prompts:
    """Reads a ``prompts`` folder; embeddings stay on the disk until they are asked for.

    Args:
        source: the pipeline's folder with the encoder; the folder above, if not given.

    Raises:
        CheckpointError: a file is missing or truncated, or they do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # which maps the file into memory

    source = source or folder.parent
    try:
        about, tables = read_json(folder / _TEXTS), load_file(folder / _EMBEDDINGS)
        empty = Embeddings(
            {name.removeprefix(_EMPTY): tables.pop(name) for name in [*tables] if name.startswith(_EMPTY)}
        )
        texts, indices = about["texts"], torch.tensor(about["indices"], dtype=torch.int64)
        embeddings: Table
        if not about.get("cached", True):
            embeddings = Fresh(texts, partial(encoder_of, source, empty.max_tokens), empty.max_tokens)
        elif "text" in tables:
            embeddings = Embeddings(tables)
        else:
            embeddings = Shards([Embeddings(load_file(file)) for file in _shards(folder)])
        if not len(texts) == len(indices) == embeddings.num_texts > 0:
            raise ValueError(f"{len(texts)} texts and {embeddings.num_texts} embeddings")
        how = about.get("enlarging")
        enlarging = None if how is None else Enlarging(**{**how, "shape": tuple(how["shape"])})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: no texts with embeddings can be read ({error}); make them again.") from error
    return Prompts(texts, indices, embeddings, empty, bool(about["knows_empty"]), source, folder, enlarging)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(_SHARDS.replace("{:05d}", "*")))


def _files(folder: Path) -> list[Path]:
    """The files of a stored ``prompts``; none where there is none."""
    return [*(file for name in (_TEXTS, _EMBEDDINGS) if (file := folder / name).exists()), *_shards(folder)]


def prompts_files(pipeline: Path) -> list[Path]:
    """The files of a pipeline's folder that decide what its texts are; none where it has none."""
    return _files(pipeline / PROMPTS)
