"""The texts that students are trained with, and that samples are drawn of."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from diffusion.data.samples import to_uint8
from diffusion.data.store import load_split
from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json, write_json
from diffusion.runtime.texts import normalised
from diffusion.teachers.embeddings import Embeddings
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.low_resolution import enlarging_of
from diffusion.teachers.prompt_sources import PromptSettings, Tokenizer, TokenLimit, prompt_lists
from diffusion.teachers.prompts import (
    Prompts,
    encoder_of,
    save_prompts,
    store_encoded,
    token_limit,
)
from diffusion.teachers.stock import TextsToCome
from diffusion.teachers.stored_network import stored_network
from suite.job import Job, Key
from suite.jobs.inputs import checked_data
from suite.jobs.networks import checked_network
from suite.provenance import checked, checked_folder

LISTS = "texts.json"
# What texts are for, and the part of a data set whose captions are for that.
_PARTS: dict[str, Literal["train", "test"]] = {"train": "train", "evaluation": "test"}
_DRAWN_AT_ONCE = 64


class Collect(Job):
    """Makes the lists of prompts: :func:`diffusion.teachers.prompt_sources.prompt_lists` as texts.json.

    Attributes:
        tokenizer, max_tokens: the teacher's, where it is not there yet.
    """

    settings: Annotated[PromptSettings, Key("prompts")]
    teacher: Path | None = None
    tokenizer: Path | None = None
    max_tokens: Annotated[int | None, Key("teacher.text.max_tokens")] = None

    def run(self) -> None:
        inputs = checked({key: path for key, path in self.settings.paths().items() if path.is_file()})
        tokenizer, max_tokens = self.tokenizer, self.max_tokens
        if self.teacher is not None:
            inputs |= checked_folder("teacher", self.teacher)
            tokenizer, max_tokens = token_limit(self.teacher)
        assert tokenizer is not None
        assert max_tokens is not None
        lists = prompt_lists(self.settings, TokenLimit(max_tokens, Tokenizer(tokenizer).count))
        for part, counts in lists.counts.items():
            print(f"{part}:", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
        with self.result_folder() as folder:
            content = {"train": lists.train, "evaluation": lists.evaluation, "negative": self.settings.negative}
            write_json(folder / LISTS, content)
            self.write_record(folder, inputs, counts=lists.counts)


class Encode(Job):
    """Reads texts by the teacher's encoder.

    None that samples are drawn of is one that students are trained with. Of captions they are ordered by their
    SHA-256, so that the first samples are of unlike ones.

    Attributes:
        data: whose test part has the captions to evaluate with; and whose training part those that students of a stock
            pipeline are trained with, under the numbers of its labels. None where there are none.
        texts: the lists, where there are some. Training without a list of its own is on captions: those that the
            teacher was trained with, where its folder holds them.
        part: what the texts are for.
        cache: as of :class:`diffusion.teachers.prompt_sources.PromptSettings`.
        low_resolution, noise_level: the student whose images the teacher enlarges, as of
            :class:`diffusion.teachers.low_resolution.LowResolutionSettings`.
    """

    teacher: Path
    data: Path | None = None
    texts: Path | None = None
    part: Literal["train", "evaluation"] = "evaluation"
    cache: Annotated[bool, Key("prompts.cache")] = True
    low_resolution: Annotated[Path | None, Key("teacher.low_resolution.path")] = None
    noise_level: Annotated[int, Key("teacher.low_resolution.noise_level")] = 250

    def run(self) -> None:
        conditions = load_conditions(self.teacher)
        assert isinstance(conditions, Prompts | TextsToCome)
        inputs = checked_folder("teacher", self.teacher)
        lists: dict[str, Any] = {}
        if self.texts is not None:
            inputs |= checked_folder("texts", self.texts)
            lists = read_json(self.texts / LISTS)
        found = {part: dict(zip(of, range(len(of)), strict=True)) for part in _PARTS if (of := lists.get(part))}
        # Evaluation leaves out what students are trained with, which a folder of this suite's own says.
        wanted = {self.part} if isinstance(conditions, Prompts) else {self.part, "train"}
        if self.data is not None:
            for part in sorted(wanted - found.keys()):
                inputs |= checked_data(self.data, _PARTS[part])
                found[part] = _captions(self.data, _PARTS[part])
        facts: dict[str, Any] = {}
        encoder = encoder_of(self.teacher, conditions.max_tokens, default_device())
        with self.result_folder() as folder:
            if self.part not in found:
                assert isinstance(conditions, Prompts)
                save_prompts(folder, conditions.with_empty(encoder.negative(lists["negative"])))
            else:
                texts = found[self.part]
                if self.part == "evaluation":
                    texts, facts = self._unseen(texts, found.get("train"), conditions)
                given = encoder, list(texts), list(texts.values()), conditions.knows_empty
                options: dict[str, Any] = {"negative": lists.get("negative", ""), "cache": self.cache}
                if self.low_resolution is not None:
                    inputs |= checked_network("low resolution", self.low_resolution)
                    shape = stored_network(self.teacher).shape
                    options["enlarging"] = enlarging_of(self.teacher, shape, self.noise_level)
                    options["images"] = _drawn_by(self.low_resolution)
                store_encoded(folder, *given, **options)
            self.write_record(folder, inputs, **facts)

    def _unseen(
        self, texts: dict[str, int], trained: Collection[str] | None, conditions: Prompts | TextsToCome
    ) -> tuple[dict[str, int], dict[str, Any]]:
        """The texts less those of training, and how many were left out and the teacher has seen."""
        known = sorted(texts.keys() & set(conditions.texts if trained is None else trained))
        if known and self.data is not None and trained is None:
            raise UserError(
                f"{self.data}: {len(known)} captions of the test part are in the training part too, e.g. {known[0]!r}; "
                f"expected others, for a teacher can repeat what it has seen."
            )
        kept = {text: index for text, index in texts.items() if text not in set(known)}
        if known:
            print(f"evaluation: {len(known):,} left out, which students are trained with")
        if len(kept) < 2:
            raise UserError(
                f"prompts.evaluation: found {len(texts)} prompts, of which {len(known)} are trained with, expected two "
                f"others at least. Bring more."
            )
        seen = len(kept.keys() & set(conditions.texts))
        says = self.texts is not None or trained is not None
        return kept, {"left_out": len(known), "seen_by_the_teacher": seen} if says else {}


def _drawn_by(student: Path) -> Callable[[Sequence[str], Embeddings], torch.Tensor]:
    """What draws an image of each text, uint8 (P, C, h, w): of noise that the text alone decides."""
    # Here: `diffusers`' pipelines take seconds to import.
    from diffusion.teachers.local_pipeline import LocalPipeline

    pipeline, shape = LocalPipeline.read(student, default_device()), stored_network(student).shape

    @torch.no_grad()
    def images(texts: Sequence[str], embeddings: Embeddings) -> torch.Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") for text in texts]
        found = []
        for rows in torch.arange(len(texts)).split(_DRAWN_AT_ONCE):
            noise = initial_noise(0, [seeds[row] for row in rows.tolist()], shape).to(pipeline.device)
            told = {name: value.to(noise) for name, value in embeddings.at(rows).items()}
            found.append(torch.from_numpy(to_uint8(pipeline.drawn(noise, 1, told))).permute(0, 3, 1, 2))
        return torch.cat(found)

    return images


def _captions(data: Path, part: Literal["train", "test"]) -> dict[str, int]:
    """The captions of a part with their indices."""
    split = load_split(data, part)
    captions = {normalised(split.class_names[index]): index for index in np.unique(split.labels).tolist()}
    return {text: captions[text] for text in sorted(captions, key=lambda text: hashlib.sha256(text.encode()).digest())}
