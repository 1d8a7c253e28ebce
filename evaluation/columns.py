"""Columns of the stored tables, and the marks beside figures."""

import math

METRICS_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "train_seed", "seed", "metric", "value"),
    *("num_samples", "protocol", "features", "reference", "library"),
)
SPEED_COLUMNS = (
    *("experiment", "method", "variant", "nfe", "device", "dtype", "batch_size", "images_per_second"),
    *("latency_ms_median", "latency_ms_p95", "peak_memory_mb"),
    *("rounds", "median_precision", "network_share", "energy_j_per_image"),
    *("text_encoder_ms", "decoder_ms"),
)
# What tables of earlier versions have not.
FURTHER_SPEED = ("text_encoder_ms", "decoder_ms")
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
