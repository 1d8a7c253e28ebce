"""Verdicts in words: how one row stands beside another by every measure, and what is missing for a verdict."""

from collections.abc import Collection, Sequence

from evaluation.measure.metrics import METRICS, RANKED
from evaluation.results.intervals import LEAST, Verdict
from evaluation.results.results import Results
from evaluation.results.stored import Method

_COUNTS = {1: "One", 2: "Two"}


def joined(items: Sequence[object]) -> str:
    """Words as a list: "a, b and c"."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def measure_name(results: Results, metric: str) -> str:
    """What a measure is called within a sentence."""
    if metric == "frechet_distance" and results.frechet_name == "FID":
        return "FID"
    return METRICS[metric].words.format(frechet=results.frechet_name)


def verdicts(results: Results, a: Method, b: Method) -> dict[Verdict, list[str]]:
    """The measures by their verdict on row a beside row b: better first, worse last.

    Empty where none can be said: too few seeds, or no more samples than the features have dimensions.
    """
    found: dict[Verdict, list[str]] = {"better": [], "level": [], "worse": []}
    if results.without_rank(results.count(a)):
        return {}
    for metric in RANKED:
        verdict = results.verdict(metric, a, b)
        if verdict is not None and verdict != "none":
            found[verdict].append(metric)
    return {verdict: metrics for verdict, metrics in found.items() if metrics}


def in_words(results: Results, found: dict[Verdict, list[str]]) -> str:
    """Verdicts as "better by KID and recall; level by precision"."""
    if len(found) == 1:
        ((verdict, metrics),) = found.items()
        if len(metrics) > 2:
            return f"{verdict} by each of {len(metrics)} measures"
    return "; ".join(
        f"{verdict} by {joined([measure_name(results, metric) for metric in metrics])}"
        for verdict, metrics in found.items()
    )


def missing_seeds(results: Results, without: Collection[str] = ()) -> str:
    """Which seeds a verdict would need, in a sentence or two; empty where all rows have enough.

    Args:
        without: variants to pass over.
    """
    rows = {row.variant: row for row in results.rows if row.method != "external" and row.variant not in without}
    frame = results.metrics[results.metrics["variant"].isin(rows)]
    seeds = frame.groupby("variant")[["train_seed", "seed"]].nunique()
    sentences = []
    for trained, column, kind in ((True, "train_seed", "training"), (False, "seed", "sampling")):
        counts = {name: int(seeds.loc[name, column]) for name in rows if (name not in results.untrained) == trained}
        few = {name: count for name, count in counts.items() if count < LEAST}
        if not few:
            continue
        fewest = min(few.values())
        of = "" if len(few) == len(counts) else f" of {joined([results.label(rows[name]) for name in few])}"
        on = "on what was trained" if trained else "between samplers of the teacher"
        sentences.append(
            f"{_COUNTS[max(fewest, 1)]} {kind} seed{'s' if fewest > 1 else ''}{of}: no verdict {on} ({LEAST} needed)."
        )
    return " ".join(sentences)
