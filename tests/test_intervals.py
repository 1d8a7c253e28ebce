"""Intervals against textbook values, and what they say about rows."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from report_fixture import fabricate
from scipy import stats

from evaluation.intervals import (
    Difference,
    Interval,
    interval_of,
    over_sampling_seeds,
    over_training_seeds,
    welch_interval,
)
from evaluation.report import load_results
from evaluation.spread import NOT_SUPPORTED, difference_table, spread_table
from evaluation.tables import Method


def test_the_interval_is_students():
    """Three values: t is 4.3027 with two degrees of freedom."""
    found = interval_of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302653 * 1 / np.sqrt(3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert interval_of([5.0]) == Interval(5, None, None, None, 1)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [interval_of(random.normal(size=3)) for _ in range(2000)]
    # Deviation of the share: 0.005.
    assert np.mean([one.low < 0 < one.high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_welchs_interval_is_scipys():
    a, b = [1.0, 2.0, 4.0, 3.5], [2.0, 7.0, 9.0]
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = welch_interval(a, b)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    # One value on a side is taken as known.
    one = welch_interval(a, [2.0])
    assert (one.low, one.high) == pytest.approx([end - 2 for end in interval_of(a)[1:3]])
    assert welch_interval([1.0], [2.0]) == Interval(-1, None, None, None, 1)
    assert welch_interval([1.0, 1.0], [2.0]).high == -1


def series(table):
    """Rows are training seeds, columns sampling seeds."""
    index = pd.MultiIndex.from_product([range(len(table)), range(len(table[0]))], names=["train_seed", "seed"])
    return pd.Series(np.ravel(table), index=index)


def test_the_two_kinds_of_spread_are_kept_apart():
    trained_apart = series([[1.0, 1.1], [3.0, 3.1]])
    sampling, training = over_sampling_seeds(trained_apart), over_training_seeds(trained_apart)
    assert sampling.mean == training.mean == pytest.approx(2.05)
    assert sampling.sd == pytest.approx(0.1 / np.sqrt(2))
    assert training.sd == pytest.approx(2 / np.sqrt(2))
    assert (sampling.n, training.n) == (2, 2)


@pytest.mark.parametrize(
    ("sampling", "training", "supported"),
    [
        (Interval(1, 0.5, 1.5, 1, 3), None, True),
        (Interval(1, -0.5, 2.5, 1, 3), None, False),
        (Interval(-1, -1.5, -0.5, 1, 3), Interval(-1, -2, 0.1, 1, 3), False),
        (Interval(-1, None, None, None, 1), Interval(-1, -2, -0.1, 1, 3), True),
        (Interval(-1, None, None, None, 1), None, False),
    ],
)
def test_a_difference_is_supported_where_every_interval_leaves_out_zero(sampling, training, supported):
    assert Difference(sampling, training).supported == supported


@pytest.fixture
def results(tmp_path):
    return load_results(fabricate(tmp_path / "r"))


BOOT, DDIM_8 = Method("boot", "boot-heun", 1), Method("ddim", "ddim", 8)


def test_rows_that_share_noise_are_compared_seed_by_seed(results):
    """On the fabricated rows BOOT is above its mean where the others are below theirs, by 1.5."""
    found = results.difference("frechet_distance", BOOT, DDIM_8)
    assert found.sampling.mean == pytest.approx(124 - 88)
    assert found.sampling.sd == pytest.approx(3)
    assert results.difference("frechet_distance", DDIM_8, Method("ddim", "ddim", 4)).sampling.sd == pytest.approx(0)
    assert found.training.low is None  # one training seed
    ladder = results.difference("frechet_distance", DDIM_8, Method("ddim", "ddim", 4))
    assert ladder.training is None  # nothing was trained
    assert results.difference("no_such_measure", BOOT, DDIM_8) is None


def test_the_tables_say_what_the_intervals_support(results):
    table = difference_table(results)
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, (cell.value for cell in row), strict=True)) for row in table.rows]
    frechet = {row["b"]: row for row in rows if row["a"].startswith("BOOT (Heun)") and "Fréchet" in row["metric"]}
    assert frechet["DDIM, 8"]["verdict"] == "worse"
    assert frechet["DDIM, 4"]["verdict"] == "better"
    assert "Progressive distillation, 1" in frechet
    assert not [row for row in rows if row["b"] == "DDIM, 50" and "MSE" in row["metric"]]
    kid = next(row for row in rows if row["metric"] == "KID")
    assert kid["verdict"] == "one seed: nothing can be said"


def test_a_difference_within_the_noise_is_marked(tmp_path):
    inputs = fabricate(tmp_path / "r")
    for path in inputs.metrics:
        frame = pd.read_csv(path)
        rows = (
            (frame["variant"] == "boot-heun") & (frame["metric"] == "frechet_distance") & (frame["num_samples"] == 1437)
        )
        if rows.any():
            frame.loc[rows, "value"] = [60.0, 90.0, 110.0]
        frame.to_csv(path, index=False)
    table = difference_table(load_results(inputs))
    verdicts = {row[1].value: row[-1].value for row in table.rows if row[0].value == "BOOT (Heun), 1"}
    assert verdicts["DDIM, 8"] != verdicts["DDIM, 1"]
    marked = [row for row in table.rows if row[1].value == "DDIM, 8" and row[0].value == "BOOT (Heun), 1"]
    assert marked[0][-1].value == NOT_SUPPORTED


def test_the_spread_table_has_an_interval_only_where_there_are_several_seeds(results):
    table = spread_table(results)
    keys = [column.key for column in table.columns]
    row = dict(zip(keys, (cell.value for cell in table.rows[0]), strict=True))
    mean, low, high = (row[f"frechet_distance{end}"] for end in ("", "_sampling_low", "_sampling_high"))
    assert high - mean == pytest.approx(4.302653 * 1.5 / np.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)
    assert row["frechet_distance_training_low"] is None
    assert "sampling seeds: 1 to 3; training seeds: 1." in table.caption


def test_samples_of_ones_own_have_no_training(results):
    """Their training seed is not known; nothing is said of it, and nothing warns."""
    external = Method("external", "my-samples", None)
    assert over_training_seeds(results.values("frechet_distance", external)) is None
    table = spread_table(results)
    row = next(row for row in table.rows if row[0].value == "my-samples")
    keys = [column.key for column in table.columns]
    assert row[keys.index("frechet_distance_training_low")].value is None
    assert row[keys.index("num_samples")].mark == " ‡"


def test_an_ablations_changes_are_left_out_and_boot_meets_boot(results):
    pairs = {(row[0].value, row[1].value) for row in difference_table(results).rows}
    assert ("BOOT (Heun), 1", "<b>&_%, 1") in pairs
    assert ("<b>&_%, 1", "BOOT (Heun), 1") not in pairs
    alone = {row[0].value for row in difference_table(results, without=["<b>&_%"]).rows}
    assert alone == {"BOOT (Heun), 1"}


def test_several_training_seeds_give_intervals_over_them(results):
    frame = results.metrics
    again = pd.concat([frame, frame[frame["variant"] == "boot-heun"].assign(train_seed=1, value=frame["value"] * 1.01)])
    again["train_seed"] = again["train_seed"].astype("Int64")
    found = dataclasses.replace(results, metrics=again).difference("frechet_distance", BOOT, DDIM_8)
    assert found.training.low is not None
    assert found.training.mean == pytest.approx(1.005 * 124 - 88)
