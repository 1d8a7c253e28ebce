"""Intervals against textbook values, and what they say about rows."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from report_fixture import fabricate
from scipy import stats

from evaluation.report.format import MISSING
from evaluation.report.page import load_results
from evaluation.report.spread import NOT_SUPPORTED, difference_table, spread_table
from evaluation.results.intervals import (
    Difference,
    Interval,
    difference_of,
    interval_of,
    over_sampling_seeds,
    over_training_seeds,
    welch_interval,
)
from evaluation.results.stored import Method
from evaluation.results.verdicts import missing_seeds


def test_the_interval_is_students():
    """Three values: t is 4.3027 with two degrees of freedom."""
    found = interval_of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302653 * 1 / np.sqrt(3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert interval_of([5.0]) == Interval(5, None, None, None, 1)
    assert interval_of([4.0, 6.0]) == Interval(5, None, None, pytest.approx(np.sqrt(2)), 2)
    assert interval_of([5.0] * 3)[:3] == (5, 5, 5)


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
    assert welch_interval([1.0, 2.0], b)[1:3] == (None, None)
    assert welch_interval([1.0] * 3, [2.0] * 3)[:3] == (-1, -1, -1)


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
    ("sampling", "training", "verdict"),
    [
        (Interval(1, 0.5, 1.5, 1, 3), None, "worse"),
        (Interval(1, -0.5, 2.5, 1, 3), None, "level"),
        (Interval(-1, -1.5, -0.5, 1, 3), Interval(-1, -2, 0.1, None, 3), "level"),
        (Interval(-1, -2.5, 0.5, 1, 3), Interval(-1, -2, -0.1, None, 3), "level"),
        (Interval(-1, -1.5, -0.5, 1, 3), Interval(1, 0.5, 1.5, None, 3), "level"),  # of other sampling seeds
        (Interval(-1, None, None, None, 1), Interval(-1, -2, -0.1, None, 3), "better"),
        (Interval(-1, -1.5, -0.5, 1, 3), Interval(-1, None, None, None, 2), "none"),  # trained, by too few seeds
        (Interval(-1, None, None, None, 1), None, "none"),
    ],
)
def test_a_verdict_takes_every_interval_that_there_is(sampling, training, verdict):
    assert Difference(sampling, training).verdict(lower_is_better=True) == verdict
    other = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert Difference(sampling, training).verdict(lower_is_better=False) == other


def test_values_without_spread_differ_by_more_than_the_resolution_or_are_level():
    equal = interval_of([0.001] * 3)
    assert Difference(equal, equal, resolution=0.0005).verdict(True) == "worse"
    assert Difference(equal, equal, resolution=0.001).verdict(True) == "level"
    assert Difference(interval_of([0.0] * 3), None).verdict(True) == "level"


def test_the_resolution_of_a_share_is_one_image(results):
    """Recall of 1,437 images, the same in every seed."""
    frame = results.metrics
    for step, verdict in ((0.9, "level"), (1.1, "better")):
        value = 0.5 + step / 1437
        mine = (frame["metric"] == "recall") & (frame["variant"] == "boot-heun") & (frame["num_samples"] == 1437)
        theirs = (frame["metric"] == "recall") & (frame["variant"] == "progressive") & (frame["num_samples"] == 1437)
        changed = frame.assign(value=frame["value"].mask(mine, value).mask(theirs, 0.5))
        row = dataclasses.replace(results, metrics=changed)
        assert row.verdict("recall", BOOT, Method("progressive_distillation", "progressive", 1)) == verdict


# -- equal methods are told apart as often as the level says --------------------------------------------------------


def told_apart(trainings, samplings, trained=(True, True), between=1.0, within=0.3, draws=1000):
    """The share of draws in which two methods that are equal get a verdict.

    Args:
        between: deviation of what another training changes.
        within: deviation of what other noise changes, over what it does to both alike.
    """
    random = np.random.default_rng(0)

    def values(common, of):
        runs = trainings if of else 1
        table = random.normal(size=(runs, 1)) * between * of + random.normal(size=(runs, samplings)) * within + common
        return series(table.tolist())

    found = []
    for _ in range(draws):
        common = random.normal(size=samplings)
        verdict = difference_of(values(common, trained[0]), values(common, trained[1]), trained).verdict(True)
        found.append(verdict in ("better", "worse"))
    return np.mean(found)


@pytest.mark.parametrize(("between", "samplings"), [(0.5, 3), (2.0, 1), (10.0, 3)])
def test_equal_trained_methods_are_told_apart_in_one_draw_of_twenty(between, samplings):
    """Welch's test of three against three keeps a little below its level. Deviation of a share of 0.05: 0.007."""
    assert 0.02 < told_apart(3, samplings, between=between) < 0.065


@pytest.mark.parametrize("trainings", [1, 2])
@pytest.mark.parametrize("samplings", [1, 10])
def test_equal_trained_methods_are_never_told_apart_by_fewer_training_seeds(trainings, samplings):
    for trained in ((True, True), (True, False), (False, True)):
        assert told_apart(trainings, samplings, trained, draws=100) == 0


def test_equal_samplers_are_told_apart_in_one_draw_of_twenty():
    assert 0.03 < told_apart(1, 3, trained=(False, False)) < 0.07


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_a_student_that_is_as_good_as_a_sampler_is_told_from_it_in_one_draw_of_twenty(trained):
    assert 0.02 < told_apart(3, 3, trained, between=2.0) < 0.065


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
    assert found.training.high - found.training.mean == pytest.approx(4.302653 * 1.5 / np.sqrt(3), rel=1e-6)
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
    assert not any(row["verdict"] == MISSING for row in rows)


def test_one_training_seed_gives_no_verdict(tmp_path):
    one = load_results(fabricate(tmp_path / "r", train_seeds=1))
    table = difference_table(one)
    verdicts = {(row[0].value, row[1].value): row[-1].value for row in table.rows}
    assert {"BOOT (Heun), 1", "<b>&_%, 1"} == {a for a, _ in verdicts}
    assert set(verdicts.values()) == {MISSING}
    assert f"'{MISSING}': too few training seeds" in table.caption
    assert one.verdict("frechet_distance", DDIM_8, Method("ddim", "ddim", 4)) == "better"  # nothing was trained
    assert missing_seeds(one) == "One training seed: no verdict on what was trained (3 needed)."


def test_what_is_missing_is_said_of_whom_it_is_missing(results):
    assert missing_seeds(results) == ""
    frame = results.metrics
    fewer = frame[(frame["train_seed"] != 2) | (frame["variant"] != "boot-heun")]
    fewer = fewer[(fewer["seed"] != 2) | (fewer["variant"] != "ddim")]
    assert missing_seeds(dataclasses.replace(results, metrics=fewer)) == (
        "Two training seeds of BOOT (Heun): no verdict on what was trained (3 needed). "
        "Two sampling seeds: no verdict between samplers of the teacher (3 needed)."
    )


def test_a_difference_within_the_noise_is_marked(tmp_path):
    inputs = fabricate(tmp_path / "r")
    for path in inputs.metrics:
        frame = pd.read_csv(path)
        rows = (
            (frame["variant"] == "boot-heun") & (frame["metric"] == "frechet_distance") & (frame["num_samples"] == 1437)
        )
        if rows.any():
            frame.loc[rows, "value"] = [60.0, 90.0, 110.0] * 3
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
    assert "sampling seeds: 1 to 3; training seeds: 3." in table.caption


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


def test_training_seeds_are_compared_at_the_sampling_seeds_that_both_have(results):
    frame = results.metrics
    fewer = frame[(frame["variant"] != "ddim") | (frame["seed"] != 2)]
    found = dataclasses.replace(results, metrics=fewer).difference("frechet_distance", BOOT, DDIM_8)
    # Of seeds 0 and 1 BOOT lies half a deviation above its mean, DDIM half a one below.
    assert found.sampling.mean == found.training.mean == pytest.approx(124 - 88 + 1.5)
    assert found.training.n == 3


def test_rows_of_other_counts_are_not_compared(results):
    frame = results.metrics
    other = frame.assign(num_samples=frame["num_samples"].mask(frame["variant"] == "ddim", frame["num_samples"] + 1))
    changed = dataclasses.replace(results, metrics=other, teacher=("progressive", 8))
    assert changed.difference("frechet_distance", BOOT, DDIM_8) is None
    assert results.difference("frechet_distance", BOOT, DDIM_8) is not None
