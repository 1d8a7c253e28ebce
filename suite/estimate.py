"""What an experiment will cost, before anything runs: network evaluations, hours, memory, disk, downloads.

Evaluations of training are counted, not assumed: one loss of every stage is computed with a stand-in network of a few
weights, by the method's own code, and what passed through it is multiplied by steps and slices. Times come from the
real network, with random weights: its rate on the present machine, measured for some seconds, and its floating-point
operations, counted without computing, at an assumed share of a stated card's peak.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.conditions import Conditions
from diffusion.data.kinds import downloads
from diffusion.runtime.precision import float32_products
from diffusion.teachers.settings import StoredTeacher, TeacherSettings
from evaluation.measure.protocols import DIMENSIONS
from evaluation.results.stored import load_published
from suite.configuration.experiment import Experiment
from suite.counting import (
    THROUGH,
    WITH_GRADIENT,
    CountingRun,
    Made,
    Precision,
    RealNetwork,
    as_forward,
    coding_of,
    conditions_of,
    pictures_of,
)
from suite.network_cost import (
    NO_COMPARISON,
    Comparison,
    evaluate,
    lpips_comparison,
)
from suite.plan import Plan

# Peak of dense products in operations a second, from the maker's data sheets (of the SXM cards), by precision; and the
# share of it that networks are assumed to reach.
CARDS = {
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "H100": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
}
SHARE_OF_PEAK = 0.3
# Of a weight's moment: itself, and a float32 for each block of 256.
_BYTES_OF_8_BIT = 1 + 4 / 256
# Weights of extractors that no package brings.
_TRANSFERS = {"inception": 96e6, "clip-vit-l-14": 1.7e9, "dinov2-vit-l-14": 1.2e9}


@dataclass(frozen=True)
class Row:
    """What one rule costs for one variant, all its training seeds together.

    Attributes:
        forward: network evaluations without a gradient.
        trained: those with one.
        memory: bytes of all networks, gradients, moments and averages that a job holds on the device; activations come
            on top.
        disk: bytes that stay.
        recomputed: whether a step computes its activations twice, and keeps less of them.
        learning: pictures whose activations a step of training holds at once, in its largest stage; one that passes
            through several networks counts in each.
        precision: of the networks on a GPU, and so of what they keep.
        transfer: bytes from the network.
        through: evaluations whose gradient passes through frozen weights to the input.
        passing: images that are evaluated at once where nothing learns.
        compared: evaluations without a gradient that take as many operations as LPIPS, or an autoencoder, does beside
            those counted here.
        comparing: bytes that LPIPS holds in a step of training: its weights, and what it keeps of the images.
        budget_s: seconds of trainings that end by time; the evaluations above are without theirs.
        timed: the evaluations of those trainings, in the order of :meth:`evaluations`, at a rate of one a second.
        timed_steps: their optimiser steps, likewise.
    """

    rule: str
    variant: str
    forward: float = 0
    trained: float = 0
    memory: float = 0
    disk: float = 0
    learning: int = 0
    precision: Precision = "tf32"
    transfer: float = 0
    through: float = 0
    passing: int = 0
    compared: float = 0
    comparing: float = 0
    budget_s: float = 0
    timed: tuple[float, float, float] = (0, 0, 0)
    timed_steps: float = 0
    recomputed: bool = False

    @property
    def passes(self) -> float:
        """Evaluations without a gradient that take as long, without those of trainings that end by time."""
        return as_forward(self.forward, self.through, self.trained, recomputed=self.recomputed) + self.compared

    def hours(self, rate: float) -> float:
        """At so many evaluations without a gradient a second."""
        return (self.passes / rate + self.budget_s) / 3600

    def evaluations(self, rate: float) -> tuple[float, ...]:
        """Those without a gradient, with one that passes through, and with one of the weights, at a rate."""
        counted = (self.forward, self.through, self.trained)
        return tuple(number + rate * timed for number, timed in zip(counted, self.timed, strict=True))


@dataclass(frozen=True)
class Estimate:
    """The rows, and what turns evaluations into hours.

    Attributes:
        network: the teacher's.
        rates: evaluations without a gradient a second on ``device``, by precision.
        published: what others' trainings on the same data set took: ``costs`` of evaluation/results/published.yaml.
    """

    rows: list[Row]
    network: RealNetwork
    rates: Mapping[str, float]
    device: str
    published: Sequence[Mapping[str, Any]] = ()

    def memory(self, row: Row) -> float:
        """Bytes that a job holds, the activations included."""
        return row.memory + self.activations(row)

    def activations(self, row: Row) -> float:
        """Bytes that a step of training keeps for its backward pass, in the row's precision; where nothing learns, what
        an evaluation holds at the most."""
        learning = 0.0
        if row.learning:
            kept = self.network.kept(row.precision, row.recomputed)
            learning = row.learning * kept.per_image + kept.copies
        return learning + row.comparing + row.passing * self.network.passing

    def rate_on(self, card: str, row: Row) -> float:
        """Evaluations without a gradient a second at the assumed share of a card's peak in the row's precision."""
        return CARDS[card][row.precision] * SHARE_OF_PEAK / self.network.operations

    def hours_here(self, row: Row) -> float:
        """At the measured rate."""
        return row.hours(self.rates[row.precision])

    def hours_on(self, card: str, row: Row) -> float:
        """At :meth:`rate_on`."""
        return row.hours(self.rate_on(card, row))


def estimate(experiment: Experiment, device: torch.device, seconds: float = 5.0) -> Estimate:
    """Counts and measures. Reads no picture, and nothing that it makes stays.

    Args:
        seconds: for how long the rate of the real network is measured, one pass at least.
    """
    plan, data = Plan(experiment), experiment.data
    picture = math.prod(data.shape)
    conditions = conditions_of(experiment, plan)
    network = RealNetwork(experiment, conditions)
    weights, operations = 4 * network.num_weights, network.operations
    rows = []
    fetched = sum(one.size or 0 for one in downloads(data))
    if fetched:
        rows.append(Row("fetch", "", disk=fetched, transfer=fetched))
    pictures = pictures_of(experiment, plan)
    rows.append(Row("data", "", disk=pictures * picture))
    made, coding, state = Made(experiment, conditions), coding_of(experiment), math.prod(experiment.state_shape)
    if isinstance(experiment.teacher, TeacherSettings):
        if own := experiment.teacher.autoencoder:
            seen = WITH_GRADIENT * own.training.num_steps * own.training.batch_size
            passes = seen * (coding.encoder + coding.decoder) / operations
            # Gradient, two moments and the average.
            held = (4 + (own.training.ema_decay is not None)) * coding.weights
            rows.append(Row("autoencoder", "", compared=passes, memory=held, disk=coding.weights))
        rows.append(_trained("teacher", "", made.teacher_cost(), experiment.teacher, network, 1, 1))
    if experiment.is_latent and (experiment.trains_teacher or plan.trained("data")):
        kept = pictures * (1 + getattr(data, "flip", False))
        passes = kept * coding.encoder / operations
        rows.append(Row("latents", "", compared=passes, memory=coding.weights, disk=2 * kept * state))
    batch, twice = experiment.evaluation.batch_size, experiment.teacher.guidance.evaluations
    for name, pairs in plan.pairs().items():
        evaluations, at_once = pairs.count * pairs.num_inference_steps * twice, min(batch, pairs.count) * twice
        rows.append(Row("pairs", name, evaluations, memory=weights, disk=2 * pairs.count * state, passing=at_once))
    for variant in plan.trained_variants():
        settings = experiment.methods[variant].settings
        students, seeds = len(experiment.methods[variant].students()), len(plan.train_seeds(variant))
        comparison = NO_COMPARISON
        if getattr(settings, "distance", None) == "lpips":
            comparison = lpips_comparison(settings.lpips, data.shape)
        cost = made.cost_of(variant, comparison.operations / operations)
        rows.append(_trained("distil", variant, cost, settings, network, students, seeds, comparison))
    if isinstance(experiment.teacher, StoredTeacher):
        transfer = 0 if Path(experiment.teacher.path).is_dir() else weights
        rows.append(Row("teacher", "stored", disk=weights, transfer=transfer))
    samples = experiment.evaluation.num_samples * len(experiment.evaluation.seeds)
    at_once = min(batch, experiment.evaluation.num_samples)
    for variant, method in experiment.methods.items():
        units = [unit for unit in plan.units() if unit.variant == variant]
        evaluations, disk = samples * sum(unit.nfe for unit in units), samples * len(units) * picture
        passing = at_once * (1 if method.trains else method.guidance.evaluations)
        decoded = samples * len(units) * coding.decoder / operations
        held = weights + coding.weights
        rows.append(Row("sample", variant, evaluations, compared=decoded, memory=held, disk=disk, passing=passing))
    for variant in plan.curve_variants():
        method = experiment.methods[variant]
        points = (method.settings.training.snapshots + 1) * len(plan.train_seeds(variant))
        evaluations = points * experiment.evaluation.num_samples * min(method.evaluations())
        rows.append(Row("learning_curve", variant, evaluations, memory=weights, passing=at_once))
    # Of the first training seed; student and teacher.
    for variant in plan.pictured_variants():
        evaluations, passing = made.pictures_cost(variant, batch)
        rows.append(Row("pictures", variant, evaluations, memory=2 * weights, passing=passing))
    noises = experiment.evaluation.trajectory_noises
    for variant in plan.boot_variants():
        evaluations, passing = made.trajectory_cost(variant)
        passing *= min(batch, noises)
        rows.append(Row("trajectory", variant, noises * evaluations, memory=2 * weights, passing=passing))
    kept = 4 * DIMENSIONS[experiment.evaluation.features]
    rows.append(Row("reference", "", disk=pictures * kept, transfer=_TRANSFERS.get(experiment.evaluation.features, 0)))
    for variant in experiment.methods:
        units = [unit for unit in plan.units() if unit.variant == variant]
        rows.append(Row("features", variant, disk=samples * len(units) * kept))
    published = [cost for cost in load_published()["costs"] if cost["dataset"] == experiment.published_as]
    real = network.build().to(device).eval()
    rates = _rates(real, made, conditions, device, seconds, sorted({row.precision for row in rows}))
    return Estimate(rows, network, rates, str(device), published)


def _trained(
    rule: str,
    variant: str,
    run: CountingRun,
    settings: Any,
    network: RealNetwork,
    students: int,
    seeds: int,
    comparison: Comparison = NO_COMPARISON,
) -> Row:
    """The row of a training, of as many seeds."""
    training, lora = settings.training, getattr(settings, "lora", None)
    precision = training.precision_where(True, bf16=rule == "teacher")
    trained_weights = network.num_trained(lora)
    frozen = network.num_weights if run.frozen else 0
    memory: float = frozen * (2 if getattr(settings, "frozen_precision", "fp32") == "bf16" else 4)
    of_moment = _BYTES_OF_8_BIT if training.optimiser == "adamw_8bit" else 4
    memory += trained_weights * (4 * run.held + of_moment * run.moments)
    forward, through, trained = (seeds * sum_ for sum_ in run.timed)
    return Row(
        rule,
        variant,
        forward=seeds * run.forward,
        through=seeds * run.through,
        trained=seeds * run.trained,
        memory=memory,
        disk=seeds * students * 4 * network.num_weights,
        learning=run.learning,
        precision=precision,
        compared=seeds * run.compared * run.a_pair,
        comparing=comparison.weights + run.compared_at_once * comparison.kept,
        budget_s=seeds * run.budget_s,
        timed=(forward, through, trained),
        timed_steps=run.timed_steps,
        recomputed=training.activation_checkpointing,
    )


def _rates(
    network: nn.Module,
    made: Made,
    conditions: Conditions,
    device: torch.device,
    seconds: float,
    precisions: Sequence[Precision],
) -> dict[str, float]:
    """Evaluations a second without a gradient, in each of the precisions: on a processor the same for all."""
    if device.type != "cuda":
        return dict.fromkeys(precisions, _rate(network, made, conditions, device, seconds, "fp32"))
    return {one: _rate(network, made, conditions, device, seconds / len(precisions), one) for one in precisions}


def _rate(
    network: nn.Module, made: Made, conditions: Conditions, device: torch.device, seconds: float, precision: str
) -> float:
    """Evaluations a second without a gradient, at a batch that a card is filled by."""
    count = 64 if device.type == "cuda" else 4
    x = torch.randn(count, *made.experiment.state_shape, device=device)

    def once() -> None:
        evaluate(made.experiment.teacher.family, network, x, conditions)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with (
        torch.inference_mode(),
        float32_products(device, tf32=precision != "fp32"),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        once()
        done, start = 0, time.perf_counter()
        while not done or time.perf_counter() - start < seconds:
            once()
            done += count
        return done / (time.perf_counter() - start)


def table(found: Estimate) -> str:
    """The estimate in Markdown."""
    by_precision = ", ".join(f"{rate:.3g} ({precision})" for precision, rate in found.rates.items())
    rates = by_precision if len(set(found.rates.values())) > 1 else f"{max(found.rates.values()):.3g}"
    lines = [
        f"The teacher's network: {found.network.num_weights / 1e6:.1f} M weights, "
        f"{found.network.operations / 1e9:.3g} GFLOP an "
        f"evaluation; {rates} evaluations a second on {found.device}.",
        "",
        "| Rule | Variant | Evaluations | with gradient | Hours here | "
        + " | ".join(f"{card} hours" for card in CARDS)
        + " | Weights | Activations | Disk | Transfer |",
        "|---|---|---:|---:|---:|" + "---:|" * len(CARDS) + "---:|---:|---:|---:|",
    ]
    largest = max(found.rows, key=found.memory)
    for first, second, rows in [*((row.rule, row.variant, [row]) for row in found.rows), ("all", "", found.rows)]:
        passed = [row.evaluations(found.rates[row.precision]) for row in rows]
        hours = [sum(map(found.hours_here, rows))]
        hours += [sum(found.hours_on(card, row) for row in rows) for card in CARDS]
        most = rows[0] if len(rows) == 1 else largest
        learnt = sum(through + trained for _, through, trained in passed)
        cells = [first, second, f"{learnt + sum(forward for forward, *_ in passed):.3g}", f"{learnt:.3g}"]
        cells += [f"{number:.3g}" for number in hours]
        cells += [_bytes(most.memory), _bytes(found.activations(most))]
        cells += [_bytes(sum(getattr(row, key) for row in rows)) for key in ("disk", "transfer")]
        lines.append("| " + " | ".join(cells) + " |")
    kept, less = found.network.kept, ""
    if any(row.recomputed for row in found.rows):
        less = f" ({_bytes(kept('bf16', True).per_image)} with training.activation_checkpointing)"
    lines += [
        "",
        f"Hours on a card: {SHARE_OF_PEAK:.0%} of its peak in the precision of the settings (training.precision: auto "
        "means bfloat16 for a teacher and TF32 for the rest), an assumption. An evaluation with a gradient "
        f"counts {WITH_GRADIENT} times, or {THROUGH} where the weights are frozen. Weights: memory for them, their "
        "gradients, moments and averages. Activations: "
        f"of the images that a training step holds at once, {_bytes(kept('tf32').per_image)} each in float32 "
        f"and TF32, {_bytes(kept('bf16').per_image)} in bfloat16 and {_bytes(kept('bf16').copies)} for its "
        f"copies of the weights{less}; training.gradient_accumulation_steps or several processes divide them. Where "
        f"nothing learns, {_bytes(found.network.passing)} of each of evaluation.batch_size images. LPIPS counts in "
        "hours, by its operations, and in activations; an autoencoder in hours alone. Transfer: bytes from the "
        "network, where no cache has them. Not counted: the time of features, measures and speed, further protocols, "
        "and the disk of sets whose size is not known yet.",
    ]
    if timed := [row for row in found.rows if row.timed_steps]:
        lines += ["", "| Ends by time | Minutes | Steps here | " + " | ".join(f"{card} steps" for card in CARDS) + " |"]
        lines.append("|---|---:|---:|" + "---:|" * len(CARDS))
        for row in timed:
            each = [found.rates[row.precision], *(found.rate_on(card, row) for card in CARDS)]
            steps = " | ".join(f"{rate * row.timed_steps:,.0f}" for rate in each)
            lines.append(f"| {row.variant or row.rule} | {row.budget_s / 60:.3g} | {steps} |")
        lines += ["", "Steps of one training, by the evaluations alone; evaluations in the first table are those here."]
    if found.published:
        sources = load_published()["sources"]
        lines += ["", "| Published | Hours of one | | Source |", "|---|---:|---|---|"]
        for cost in found.published:
            source = sources[cost["source"]]["short"] + (" †" if cost["certainty"] == "unchecked" else "")
            lines.append(f"| {cost['what']} | {cost['hours']:,} | {cost['card']} ({cost['remark']}) | {source} |")
        lines += ["", "Of the same data set, not of these settings; kinds of cards differ. †: not yet checked."]
    return "\n".join(lines)


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB" if number else "–"
