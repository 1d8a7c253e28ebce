"""Where the prompts of an experiment come from, and the two lists that they become: for training, for evaluation."""

import bisect
import csv
import hashlib
import importlib.util
import itertools
import math
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from diffusion.runtime.errors import UserError, brief, first_line
from diffusion.runtime.settings import Settings, UserPath
from diffusion.runtime.texts import normalised

# All combinations of a grammar, unless a sample is asked for.
_MOST_COMBINATIONS = 1_000_000
_PARTI = ("Prompt", "Category", "Challenge", "Note")
# The keys of each kind of source beside `kind`, those first that it must have.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "captions": ((), ()),
    "file": (("path",), ()),
    "parquet": (("path", "column"), ()),
    "partiprompts": (("path",), ()),
    "grammar": (("templates", "slots"), ("sample", "seed")),
}


class PromptSource(Settings):
    """Where prompts come from.

    Attributes:
        kind: "captions" of the data set; a text "file", one prompt a line; a column of a "parquet" file, which needs
            pyarrow; "partiprompts", the table of Yu et al. 2022 (arXiv 2206.10789) as they published it; a "grammar".
        path: of the file or table.
        column: of texts, of a parquet file.
        templates: of a grammar: sentences with {slots}.
        slots: the words of each slot. A slot that stands twice in a template has the same word twice.
        sample: how many of a grammar's combinations are drawn, without repetition; null takes all.
        seed: of that draw.
    """

    kind: Literal["captions", "file", "parquet", "partiprompts", "grammar"]
    path: UserPath | None = Field(None, min_length=1)
    column: str | None = None
    templates: tuple[str, ...] = ()
    slots: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    sample: int | None = Field(None, ge=2)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_the_keys_of_its_kind(self) -> "PromptSource":
        required, others = _KEYS[self.kind]
        for key in required:
            if not getattr(self, key):
                raise ValueError(f"{key}: missing; expected one with kind {self.kind}")
        for key, field in type(self).model_fields.items():
            # Not those that are said to be what they are anyway, as the records of results have them.
            said = getattr(self, key) != field.get_default(call_default_factory=True)
            if said and key not in ("kind", *required, *others):
                allowed = ", ".join([*required, *others]) or "none"
                raise ValueError(f"{key}: given with kind {self.kind}, expected of further keys: {allowed}")
        return self

    @model_validator(mode="after")
    def _is_a_grammar(self) -> "PromptSource":
        for slot, words in self.slots.items():
            if not words or not all(map(normalised, words)):
                raise ValueError(f"slots.{slot}: found {list(words)}, expected a list of words, none of them empty")
        used = {slot for _, slots in self._sentence_forms() for slot in slots}
        if unused := sorted(self.slots.keys() - used):
            raise ValueError(f"slots.{unused[0]}: stands in no template; remove it, or write {{{unused[0]}}} there")
        if self.kind == "grammar":
            if self.sample is None and self.combinations > _MOST_COMBINATIONS:
                raise ValueError(
                    f"sample: not given, and the grammar has {self.combinations} combinations, expected at most "
                    f"{_MOST_COMBINATIONS}; say how many to draw"
                )
            if (self.sample or 0) > self.combinations:
                raise ValueError(
                    f"sample: found {self.sample}, expected at most the grammar's {self.combinations} combinations"
                )
        return self

    def _slots_of(self, number: int, template: str) -> tuple[str, ...]:
        """The slots of a template, each once, in its order."""
        try:
            fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
        except ValueError as error:
            raise ValueError(f"templates.{number}: {template!r}: {error}; a brace itself is written twice") from error
        for _, slot, form, conversion in fields:
            if slot not in self.slots or form or conversion:
                known = ", ".join(f"{{{name}}}" for name in self.slots)
                raise ValueError(f"templates.{number}: found the slot {{{slot}}} in {template!r}, expected {known}")
        return tuple(dict.fromkeys(str(slot) for _, slot, _, _ in fields))

    @property
    def combinations(self) -> int:
        """How many sentences the grammar has; equal ones count."""
        return sum(math.prod(len(self.slots[slot]) for slot in slots) for _, slots in self._sentence_forms())

    def _sentence_forms(self) -> list[tuple[str, tuple[str, ...]]]:
        """The templates with their slots."""
        return [(template, self._slots_of(number, template)) for number, template in enumerate(self.templates)]

    def sentences(self) -> Iterator[str]:
        """Of the grammar, all or the sample, in its order or that of the draw."""
        chosen: Sequence[int] = range(self.combinations)
        if self.sample is not None:
            chosen = random.Random(self.seed).sample(chosen, self.sample)
        forms = self._sentence_forms()
        ends = list(itertools.accumulate(math.prod(len(self.slots[slot]) for slot in slots) for _, slots in forms))
        for number in chosen:
            which = bisect.bisect_right(ends, number)
            template, slots = forms[which]
            rest, words = number - (ends[which - 1] if which else 0), {}
            for slot in reversed(slots):  # the last changes fastest
                rest, word = divmod(rest, len(self.slots[slot]))
                words[slot] = self.slots[slot][word]
            yield template.format_map(words)


_CAPTIONS = PromptSource(kind="captions")


class PromptSettings(Settings):
    """The prompts of an experiment whose teacher is told texts.

    Attributes:
        train: what data-free students are trained with.
        evaluation: what samples are drawn of. Null holds out a share of ``train``; of captions, the captions of the
            data set's test part.
        negative: what stands in the place of the text in the unconditional input of guidance.
        share_held_out: of the prompts of ``train``, by the hash of each, where ``evaluation`` is null.
        too_long: whether prompts of more tokens than the teacher is told are left out, or refused.
        cache: whether the embeddings of ``train`` are made once and stored; else in every step, for encoders so wide
            that a table of them would fill a disk.
    """

    train: PromptSource = _CAPTIONS
    evaluation: PromptSource | None = None
    negative: str = ""
    share_held_out: float = Field(0.1, gt=0, lt=1)
    too_long: Literal["drop", "refuse"] = "drop"
    cache: bool = True

    @field_validator("negative")
    @classmethod
    def _normalised(cls, value: str) -> str:
        return normalised(value)

    @model_validator(mode="after")
    def _captions_are_cached(self) -> "PromptSettings":
        if not self.cache and self.train == _CAPTIONS:
            raise ValueError("cache: found false, expected true: the captions' embeddings are stored")
        return self

    @property
    def evaluates_captions(self) -> bool:
        """Whether samples are of the captions of the data set's test part."""
        return (self.evaluation or self.train) == _CAPTIONS

    @property
    def trains_on_captions(self) -> bool:
        """Whether data-free students are trained with the captions that the teacher was trained with."""
        return self.train == _CAPTIONS

    @property
    def only_captions(self) -> bool:
        """Whether the captions of the data set are all the texts there are."""
        return self.trains_on_captions and self.evaluates_captions and not self.negative

    def paths(self) -> dict[str, Path]:
        """Key to the file that it names."""
        sources = {"prompts.train": self.train, "prompts.evaluation": self.evaluation}
        return {f"{key}.path": Path(source.path) for key, source in sources.items() if source and source.path}


class PromptLists(NamedTuple):
    """The prompts of both parts, normalised and distinct, and no one in both.

    Attributes:
        train: in the order of their source; None of captions.
        evaluation: in the order of their SHA-256, so that the first samples are of unlike prompts; None of captions.
        counts: part to how many were ``given``, how many left out (``twice``, ``too_long``, of training those
            ``in_evaluation``), and ``kept``.
    """

    train: list[str] | None
    evaluation: list[str] | None
    counts: dict[str, dict[str, int]]


class Tokenizer:
    """What cuts texts into tokens, of `transformers`.

    Args:
        folder: that its ``AutoTokenizer`` reads.

    Raises:
        UserError: it is not there or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # seconds

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no tokenizer of `transformers` can be read ({brief(error)}).") from error

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, those at its ends included."""
        return [len(tokens) for tokens in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


class TokenLimit(NamedTuple):
    """The most tokens that a text may have, and what counts them."""

    most: int
    counted: Callable[[Sequence[str]], list[int]]


def prompt_lists(settings: PromptSettings, limit: TokenLimit | None = None) -> PromptLists:
    """Reads the sources and makes the lists of them.

    Args:
        limit: of tokens; None does not count them.

    Raises:
        UserError: a source cannot be read or has an empty prompt; a prompt is too long and refused; fewer than two are
            left. With the key, and what to do.
    """
    if limit and limit.counted([settings.negative])[0] > limit.most:
        raise UserError(
            f"prompts.negative: found {limit.counted([settings.negative])[0]} tokens, expected at most {limit.most}: "
            f"{settings.negative!r}. Shorten it."
        )
    counts: dict[str, dict[str, int]] = {}
    train = evaluation = None
    if not settings.trains_on_captions:
        train = _kept("train", settings.train, settings.too_long, limit, counts)
    if settings.evaluation and not settings.evaluates_captions:
        evaluation = _kept("evaluation", settings.evaluation, settings.too_long, limit, counts)
        train = train and _without(train, evaluation, counts)
    elif train and settings.evaluation is None:
        evaluation = [text for text in train if _position(text) < settings.share_held_out]
        train = [text for text in train if _position(text) >= settings.share_held_out]
        counts["train"]["held_out"] = len(evaluation)
        counts["evaluation"] = {}
    for part, texts in (("train", train), ("evaluation", evaluation)):
        if texts is not None:
            counts[part]["kept"] = len(texts)
            _check_enough(part, settings, counts)
    return PromptLists(train, evaluation and sorted(evaluation, key=_sha256), counts)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _position(text: str) -> float:
    """A text's place in [0, 1) by its hash, uniform over texts; it is the same whatever texts there are beside it."""
    return int.from_bytes(_sha256(text)[:6], "big") / 2**48


def _kept(
    part: str, source: PromptSource, too_long: str, limit: TokenLimit | None, counts: dict[str, dict[str, int]]
) -> list[str]:
    """The prompts of a source: normalised, each once, none too long."""
    key = f"prompts.{part}"
    given = 0
    texts: dict[str, None] = {}
    for where, raw in _READERS[source.kind](source, key):
        text, given = normalised(raw), given + 1
        if not text:
            raise UserError(f"{key}: {where} is empty; expected words in each prompt. Remove it.")
        texts[text] = None
    kept = list(texts)
    counts[part] = {"given": given, "twice": given - len(kept)}
    if limit is not None:
        numbers = limit.counted(kept) if kept else []
        long = {text: number for text, number in zip(kept, numbers, strict=True) if number > limit.most}
        if long and too_long == "refuse":
            text, number = next(iter(long.items()))
            raise UserError(
                f"{key}: found {len(long)} prompts of more than {limit.most} tokens, the first has {number}: "
                f"{text!r}. Shorten them, or say prompts.too_long: drop."
            )
        kept = [text for text in kept if text not in long]
        counts[part]["too_long"] = len(long)
    return kept


def _without(train: list[str], evaluation: Sequence[str], counts: dict[str, dict[str, int]]) -> list[str]:
    known = set(evaluation)
    kept = [text for text in train if text not in known]
    counts["train"]["in_evaluation"] = len(train) - len(kept)
    return kept


def _check_enough(part: str, settings: PromptSettings, counts: Mapping[str, Mapping[str, int]]) -> None:
    if counts[part]["kept"] >= 2:
        return
    # What is held out comes of the training source.
    held_out = settings.evaluation is None
    found = counts["train" if held_out else part]
    left = "no prompt is" if not counts[part]["kept"] else "one prompt is"
    of = ", ".join(f"{key.replace('_', ' ')} {number}" for key, number in found.items() if key != "kept")
    remedy = "Bring more"
    if held_out:
        remedy += f", or another prompts.share_held_out than {settings.share_held_out:g}, or prompts.evaluation"
    raise UserError(f"prompts.{part}: {left} left, expected two at least ({of}). {remedy}.")


# -- what each source has, with the place where it stands --------------------------------------------------------------

_Read = Iterator[tuple[str, str]]


def _existing(source: PromptSource, key: str) -> Path:
    path = Path(source.path or "")
    if not path.is_file():
        raise UserError(f"{key}.path: found {source.path!r}, expected an existing file.")
    return path


def _lines(source: PromptSource, key: str) -> list[str]:
    path = _existing(source, key)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}.path: byte {error.start} of {path} is no UTF-8 text ({error.reason}); save the file as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{key}.path: {path} cannot be read ({error.strerror}).") from error
    return lines if lines[-1] else lines[:-1]  # behind the last line break


def _of_file(source: PromptSource, key: str) -> _Read:
    for number, line in enumerate(_lines(source, key), 1):
        yield f"line {number} of {source.path}", line


def _of_partiprompts(source: PromptSource, key: str) -> _Read:
    # Quotation marks are the prompt's own, at its beginning, too.
    header, *rows = csv.reader(_lines(source, key) or [""], delimiter="\t", quoting=csv.QUOTE_NONE)
    expected = f"expected {', '.join(_PARTI)}, separated by tabs, as PartiPrompts.tsv has it"
    if missing := [name for name in _PARTI if name not in header]:
        raise UserError(f"{key}.path: {source.path} has no column {missing[0]}; {expected}.")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{key}.path: line {number} of {source.path} has {len(row)} columns; {expected}.")
        yield f"line {number} of {source.path}", row[header.index("Prompt")]


def _of_parquet(source: PromptSource, key: str) -> _Read:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{key}.kind: 'parquet' needs the library `pyarrow`: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    path = _existing(source, key)
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if source.column not in names:
            raise UserError(f"{key}.column: found {source.column!r}, expected a column of {path}: {', '.join(names)}.")
        values: list[Any] = file.read([source.column]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{key}.path: {path} cannot be read as parquet ({first_line(error)}).") from error
    for number, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise UserError(f"{key}.column: found {value!r} in row {number} of {source.column}, expected texts.")
        yield f"row {number} of {path}", value or ""


def _of_grammar(source: PromptSource, key: str) -> _Read:
    for number, sentence in enumerate(source.sentences()):
        yield f"sentence {number} of the grammar", sentence


_READERS: dict[str, Callable[[PromptSource, str], _Read]] = {
    "file": _of_file,
    "parquet": _of_parquet,
    "partiprompts": _of_partiprompts,
    "grammar": _of_grammar,
}
