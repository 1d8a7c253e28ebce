"""The model card of a student: what it is, what it was measured to be, what it cost, and how it is loaded."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diffusion.data.store import size_of
from evaluation.report.format import format_value

# What the licences of data sets are known to be; of all others nothing is said but that.
_LICENCES = {
    "digits": "UCI's Optical Recognition of Handwritten Digits, CC BY 4.0",
    "fashion_mnist": "Fashion-MNIST, MIT",
}
_TASKS = {
    "nothing": "unconditional-image-generation",
    "class": "class-conditional-image-generation",
    "text": "text-to-image",
}
_UNKNOWN = "unknown to the suite: see where it comes from"


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        repo: name on the Hub, or the folder, that the card's example loads.
        method: the method, with its settings.
        variant, train_seed, nfe: which student.
        index: its model_index.json.
        told: what it is told beside the noise: nothing, a class, a text.
        prompt: an example of a text.
        of_diffusers: whether a pipeline of `diffusers` draws it as its teacher's.
        own_code: whether the folder has code that must be trusted.
        guidance_scale: of the teacher that it was distilled from; [low, high] of those that it is told.
        teacher: the ``provenance.json`` of the teacher: ``settings``, or ``stored`` and ``revision``.
        data: the data set's manifest.
        cost: of this student, from cost.json.
        record: of the training.
        measures: what was measured of this student, one value a row (columns of evaluation.measure.quality).
        definitions: what each measure is, in words.
        sha256: of the weights.
        licence: of the student, a name that the Hub knows, or "other".
    """

    repo: str
    method: Any
    variant: str
    train_seed: int
    nfe: int
    index: Mapping[str, Any]
    told: str
    prompt: str
    of_diffusers: bool
    own_code: bool
    guidance_scale: float | list[float]
    teacher: Mapping[str, Any]
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    record: Mapping[str, Any]
    measures: pd.DataFrame
    definitions: Mapping[str, str]
    sha256: str
    licence: str


def model_card(facts: CardFacts) -> str:
    """The card in Markdown, with the front matter of the Hugging Face Hub."""
    parts = [
        _front_matter(facts),
        f"# {facts.method.title}, {facts.nfe} network evaluation{'s' * (facts.nfe != 1)} an image",
        f"A student of a diffusion model: the variant `{facts.variant}`, training seed {facts.train_seed}. "
        f"{_guided(facts)}",
        f"```python\n{_example(facts)}\n```",
        f"## Teacher and data\n\n{_origin(facts)}",
        f"## Method\n\n{_block({'method': facts.method.name, **facts.method.settings.model_dump(mode='json')})}",
        f"## Measures\n\n{_measures(facts)}",
        f"## Training cost\n\n{_cost(facts)}",
        f"## Licence\n\n{_licence(facts)}",
        f"## Reference\n\n{_reference(facts)}",
        f"Weights: SHA-256 `{facts.sha256}`. Code: commit `{facts.record['commit']}`. Versions: "
        + ", ".join(f"{name} {version}" for name, version in facts.record["versions"].items() if version)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    task = _TASKS[facts.told]
    tags = [task, "diffusion", "distillation", facts.method.name.replace("_", "-")]
    stored = _stored(facts) or ""
    lines = [
        "library_name: diffusers",
        f"license: {facts.licence}",
        *(["license_name: unknown"] if facts.licence == "other" else []),
        *([f"pipeline_tag: {task}"] if facts.told != "class" else []),  # of which the Hub has no name
        *([f"base_model: {stored}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", stored) else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _stored(facts: CardFacts) -> str | None:
    """The teacher's name on the Hub, or that of its folder, without where it lies on the author's machine."""
    stored = facts.teacher.get("stored")
    on_hub = stored is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", stored) and not Path(stored).exists()
    return stored if stored is None or on_hub else Path(stored).name


def _guided(facts: CardFacts) -> str:
    classes, scale = facts.index.get("num_classes"), facts.guidance_scale
    if isinstance(scale, list):
        guidance = f", under guidance of {scale[0]:g} to {scale[1]:g}, which it is told"
    else:
        guidance = f", under guidance {scale:g}, which it has learnt" if scale != 1 else ""
    if facts.told == "text":
        return f"It is conditional on a text{guidance}."
    if not classes:
        return "It is unconditional." if facts.told == "nothing" else f"It is conditional on a class{guidance}."
    names = ", ".join(f"{i} {name}" for i, name in enumerate(facts.data["class_names"][:classes][:20]))
    more = ", …" if classes > 20 else ""
    return f"It is conditional on one of {classes} classes{guidance}: {names}{more}."


def _example(facts: CardFacts) -> str:
    of_ddim = isinstance(facts.index["_class_name"], str) and not facts.of_diffusers
    told = {"nothing": "batch_size=16", "class": "class_labels=[0, 1]", "text": json.dumps(facts.prompt)}[facts.told]
    scale, given = facts.guidance_scale, [told]
    if facts.of_diffusers or of_ddim or facts.index.get("told_timestep") is None:
        given.append(f"num_inference_steps={facts.nfe}")
    if isinstance(scale, list):
        given.append(f"guidance_scale={scale[0]}")
    elif facts.of_diffusers:
        given.append("guidance_scale=1.0")
    if of_ddim:
        given.append("use_clipped_model_output=True")
    trust = ", trust_remote_code=True" if facts.own_code else ""
    return (
        "from diffusers import DiffusionPipeline\n\n"
        f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(facts.repo)}{trust})\n"
        f"images = pipeline({', '.join(given)}).images"
    )


def _origin(facts: CardFacts) -> str:
    if stored := _stored(facts):
        at = f", revision {facts.teacher['revision']}" if facts.teacher.get("revision") else ""
        teacher = f"Teacher: `{stored}`{at}."
    else:
        teacher = f"Teacher, trained with the suite:\n\n{_block(facts.teacher.get('settings'))}"
    data, channels = facts.data, facts.data["channels"]
    (height, width), count = size_of(data["resolution"]), data["splits"]["train"]["count"]
    used = "The student's training read it." if facts.method.needs_data else "The student's training read none of it."
    return (
        f"{teacher}\n\nData set: `{data['settings']['kind']}`, {count:,} training images of {height}×{width} pixels, "
        f"{channels} channel{'s' * (channels != 1)}, {len(data['class_names'])} classes ({data['source']}). {used}"
    )


def _measures(facts: CardFacts) -> str:
    if facts.measures.empty:
        return "Not measured."
    rows = ["| Measure | Value | Samples | Protocol | Features | Reference | Library |", "| --- " * 7 + "|"]
    # The same measure of fewer samples is another number.
    for (name, count), found in facts.measures.groupby(["metric", "num_samples"], sort=False):
        sd = float(found.value.std(ddof=1)) if len(found) > 1 else None
        value = format_value(float(found.value.mean()), sd=sd)
        first = found.iloc[0]
        rest = (first.protocol, first.features, first.reference, first.library)
        rows.append(f"| {name} | {value} | {count:,} | {' | '.join(map(str, rest))} |")
    seeds = facts.measures.seed.nunique()
    said = [
        f"- `{name}`: {facts.definitions[name]}" for name in facts.measures.metric.unique() if name in facts.definitions
    ]
    spread = f"Mean ± standard deviation over {seeds} sampling seeds" if seeds > 1 else "One sampling seed"
    return "\n".join([*rows, "", f"{spread}, of this one training.", "", *said])


def _cost(facts: CardFacts) -> str:
    cost = facts.cost
    real, offline = int(cost["real_images_seen"]), int(cost.get("offline_bytes") or 0)
    hardware = facts.record["hardware"]
    return (
        f"{int(cost['network_evaluations']):,} network evaluations (forward passes an image, teacher and student), "
        f"{real:,} real images seen, {format_value(cost['wall_clock_s'], 'duration')} of wall-clock"
        + (f", an offline set of {offline:,} bytes" if offline else "")
        + f", on {hardware.get('gpu') or hardware['processor']}. {int(cost['parameters']):,} parameters. "
        "The teacher's training is not counted."
    )


def _licence(facts: CardFacts) -> str:
    kind = facts.data["settings"]["kind"]
    own = "not stated" if facts.licence == "other" else f"`{facts.licence}`"
    teacher = _UNKNOWN if _stored(facts) else "trained with the suite"
    return f"Student: {own}. Teacher: {teacher}. Data: {_LICENCES.get(kind, _UNKNOWN)}."


def _reference(facts: CardFacts) -> str:
    about = (sys.modules[type(facts.method).__module__].__doc__ or facts.method.title).split("\n\n")[0]
    about = " ".join(about.split())
    number = re.search(r"arXiv (\d{4}\.\d{5})", about)
    return about + (f" https://arxiv.org/abs/{number[1]}" if number else "")


def _block(settings: Any) -> str:
    return f"```json\n{json.dumps(settings, indent=2, ensure_ascii=False)}\n```"
