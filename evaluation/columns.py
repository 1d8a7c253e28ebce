"""What measures are called: columns of the stored tables, names, directions, resolutions."""

import math
from collections.abc import Callable

METRICS_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "train_seed", "seed", "metric", "value"),
    *("num_samples", "protocol", "features", "reference", "library"),
)
SPEED_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "device", "dtype", "batch_size", "images_per_second"),
    *("latency_ms_median", "latency_ms_p95", "peak_memory_mb"),
    *("rounds", "median_precision", "network_share", "energy_j_per_image"),
)
COSTS = ("steps", "network_evaluations", "real_images_seen", "wall_clock_s", "parameters")
# What not every cost file has, and what stands for it: only some methods have a set; older files have no such seconds.
FURTHER_COSTS = {"offline_bytes": 0.0, "cpu_s": math.nan, "gpu_s": math.nan}
COST_COLUMNS = ("experiment", "method", "variant", *COSTS, *FURTHER_COSTS)
CURVE_COLUMNS = (
    *("variant", "nfe", "train_seed", "step", "network_evaluations", "real_images_seen", "wall_clock_s"),
    *("metric", "value"),
)
TRAJECTORY_COLUMNS = ("quantity", "nfe", "t", "value")
TRAJECTORY_TABLE_COLUMNS = ("variant", *TRAJECTORY_COLUMNS)
# What measures are called on the FID Inception, and there alone.
INCEPTION_NAMES = {
    "frechet_distance": "fid",
    "frechet_distance_extrapolated": "fid_extrapolated",
    "classifier_score": "inception_score",
}
# Back again: tables and figures call a measure the same on any features, and say which in its title.
PLAIN_NAMES = {theirs: ours for ours, theirs in INCEPTION_NAMES.items()}
# Which way is better, for every measure that the report ranks.
LOWER_IS_BETTER = {
    "frechet_distance": True,
    "kid": True,
    "precision": False,
    "recall": False,
    "mse_to_teacher": True,
    "label_accuracy": False,
}
# The smallest difference that a measure of N images can show; where it knows none, any difference is one. Shares count
# images (recall the real ones, about as many). Rounding both images to 256 grey levels adds (2 / 255)² / 6 to an MSE.
RESOLUTION: dict[str, Callable[[int], float]] = {
    **dict.fromkeys(("precision", "recall", "label_accuracy"), lambda count: 1 / count),
    "mse_to_teacher": lambda _count: (2 / 255) ** 2 / 6,
}
COUNT_MARK, RANK_MARK = " ‡", " §"
MARKS = {
    COUNT_MARK: "‡ Another number of samples than the other rows. A Fréchet distance grows as samples get fewer, so "
    "compare such a row only in the floor table, at equal counts.",
    RANK_MARK: "§ The samples or the reference have no more images than the features have dimensions: the covariance "
    "has not full rank, and the distance is biased upwards. Compare it at the same count only.",
}


def without_rank(dimensions: int | None, count: int | None) -> bool:
    """Whether so many feature vectors span less than their dimensions about their mean; False where not known."""
    return dimensions is not None and count is not None and count <= dimensions


def rank_mark(dimensions: int | None, *counts: int | None) -> str:
    """What stands beside a distance between covariances of so many feature vectors of which one has not full rank."""
    return RANK_MARK if any(without_rank(dimensions, count) for count in counts) else ""
