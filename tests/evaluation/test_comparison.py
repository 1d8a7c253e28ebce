"""Methods at the same cost: the block of YAML, the tables and the learning curves."""

import pandas as pd
import pytest
from report_fixture import results_of
from repository import tiny_experiment

from diffusion.runtime.errors import UserError
from evaluation.columns import CURVE_COLUMNS
from evaluation.report.comparison import (
    Comparison,
    comparison_summary,
    comparison_table,
    learning_curves_figure,
    load_learning_curves,
    mean_curves,
    reach_table,
    steps_table,
)
from suite.configuration.experiment import parse_experiment
from suite.plan import Plan

BLOCK = {
    "evaluations": {"boot-heun": {}, "progressive": {}},
    "wall-clock": {"boot-heun": {"training": {"steps": 5}}, "progressive": {}},
}


def experiment(block=BLOCK, **changes):
    return parse_experiment(tiny_experiment() | {"comparison": block} | changes)


def test_a_budget_takes_a_variant_as_it_is_or_changed():
    parsed = experiment()
    assert parsed.comparison == {
        "evaluations": {"boot-heun": "boot-heun", "progressive": "progressive"},
        "wall-clock": {"boot-heun-wall-clock": "boot-heun", "progressive": "progressive"},
    }
    base, changed = (parsed.methods[name].settings for name in ("boot-heun", "boot-heun-wall-clock"))
    assert changed == base.model_copy(update={"training": base.training.model_copy(update={"steps": 5})})
    assert parsed.derived == {"boot-heun-wall-clock"}
    assert "boot-heun-wall-clock" not in Plan(parsed).pictured_variants()
    assert parsed.plain_labels["progressive"] == "Progressive distillation"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"time": {"nothing": {}}}, r"comparison\.time\.nothing: found 'nothing', expected a variant under methods"),
        ({"time": {"ddim": {}}}, r"comparison\.time\.ddim: found a sampler of the teacher, expected a trained method"),
        ({"a b": {"boot-heun": {}}}, r"comparison: found the budget 'a b'"),
        ({"time": {"boot-heun": {"delta": 9.0}}}, r"comparison\.time\.boot-heun: .*\.delta: found 9"),
    ],
)
def test_a_broken_comparison_is_refused(block, expected):
    with pytest.raises(UserError, match=expected):
        experiment(block)


def test_a_selection_compares_what_it_keeps():
    kept = experiment(select=["ddim", "boot-heun"])
    assert kept.comparison == {
        "evaluations": {"boot-heun": "boot-heun"},
        "wall-clock": {"boot-heun-wall-clock": "boot-heun"},
    }
    assert list(kept.methods) == ["ddim", "boot-heun", "boot-heun-wall-clock"]
    nothing = experiment(select=["ddim", "boot-euler"])
    assert nothing.comparison is None
    assert list(nothing.methods) == ["ddim", "boot-euler"]


VALUES = {
    ("ddim", "ddim", 2): [20.0],
    ("ddim", "ddim", 4): [4.0],
    ("ddim", "ddim", 50): [1.0],
    ("boot", "boot", 1): [2.9, 3.0, 3.1],
    ("pd", "pd", 1): [5.9, 6.0, 6.1],
    ("pd", "pd", 2): [3.9, 4.0, 4.1],
    ("kd", "kd", 1): [1.9, 2.0, 2.1],
    ("other", "other", 1): [1.0, 3.0, 5.0],
}
COSTS = {
    "boot": {"offline_bytes": 0},
    "pd": {"real_images_seen": 500, "offline_bytes": 0},
    "kd": {"network_evaluations": 1100, "offline_bytes": 4096},
    "other": {"offline_bytes": 0},
}
RESULTS = results_of(VALUES, COSTS)
NAMES = {"boot": "BOOT", "pd": "PD", "kd": "KD", "other": "Other"}
COMPARISON = Comparison({"evaluations": {v: NAMES[v] for v in ("boot", "pd", "kd")}, "time": NAMES}, 1437)


def column(table, key):
    place = [c.key for c in table.columns].index(key)
    return [row[place] for row in table.rows]


def test_the_table_has_the_nearest_to_the_data_first_in_each_budget_with_its_costs():
    table = comparison_table(RESULTS, COMPARISON)
    names = ["Teacher (ddim)", "KD", "BOOT", "PD", "KD", "BOOT", "Other", "PD"]
    assert [cell.value for cell in column(table, "method")] == names
    assert [cell.value for cell in column(table, "nfe")] == [50] + [1] * 7  # the fewest of each
    assert column(table, "frechet_distance")[0].value == 1.0
    assert [cell.value for cell in column(table, "train_size")][:4] == [None, 0, 0, 1437]
    assert [cell.value for cell in column(table, "offline_bytes")][:4] == [None, 4096, 0, 0]
    assert [cell.value for cell in column(table, "network_evaluations")][:4] == [None, 1100, 1000, 1000]
    # Best of its budget, unless another's seeds are spread so far that nothing can be said.
    assert [cell.best for cell in column(table, "frechet_distance")] == [False, True, *[False] * 6]


def test_the_sentence_says_how_boot_stands():
    summary = comparison_summary(RESULTS, COMPARISON)
    assert summary == (
        "At equal evaluations, BOOT beside KD: worse by the Fréchet distance. "
        "Beside PD: better by the Fréchet distance. "
        "At equal time, BOOT beside KD: worse by the Fréchet distance. Beside Other: level by the Fréchet distance. "
        "Beside PD: better by the Fréchet distance."
    )


def test_two_training_seeds_give_no_sentence_and_no_bold():
    few = results_of({row: values[:2] for row, values in VALUES.items()}, COSTS)
    assert comparison_summary(few, COMPARISON) == ""
    assert not any(cell.best for cell in column(comparison_table(few, COMPARISON), "frechet_distance"))


def test_the_steps_of_chains_and_samplers():
    table = steps_table(RESULTS, COMPARISON)
    assert [c.key for c in table.columns] == ["budget", "method", "nfe_1", "nfe_2", "nfe_4", "nfe_50"]
    rows = {(row[0].value, row[1].value): [cell.value for cell in row[2:]] for row in table.rows}
    assert rows == {
        ("evaluations", "PD"): [pytest.approx(6), pytest.approx(4), None, None],
        ("time", "PD"): [pytest.approx(6), pytest.approx(4), None, None],
        ("–", "ddim"): [None, 20.0, 4.0, 1.0],
    }


def curves():
    points = {"boot": ((100, 30.0), (200, 19.0), (400, 3.0)), "pd": ((300, 21.0), (600, 6.0))}
    rows = [
        {"variant": variant, "nfe": 1, "train_seed": seed, "step": cost, "network_evaluations": cost + seed}
        | {"real_images_seen": 0, "wall_clock_s": cost / 10, "metric": metric, "value": value + seed}
        for variant, by_cost in points.items()
        for cost, value in by_cost
        for seed in (0, 2)
        for metric in ("frechet_distance", "kid")
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def test_the_curves_are_averaged_over_training_seeds():
    frame = mean_curves(curves()).set_index(["variant", "step"])
    assert tuple(frame.loc[("boot", 200), ["network_evaluations", "wall_clock_s", "value"]]) == (201, 20, 20)
    assert frame.loc[("boot", 200), "sd"] == pytest.approx(2**0.5)
    assert len(frame) == 5


def test_the_cheapest_point_that_is_as_good_as_the_sampler():
    table = reach_table(RESULTS, COMPARISON, curves())
    rows = {row[0].value: [cell.value for cell in row[1:]] for row in table.rows}
    # Aims: 20 (two evaluations), 4 (four), 1 (fifty, which nobody reaches: no column).
    assert rows == {"BOOT": [201, 20, 401, 40], "PD": [601, 60, None, None]}


def test_curves_are_read_and_broken_ones_refused(tmp_path):
    file = tmp_path / "curve.csv"
    curves().replace({"metric": {"frechet_distance": "fid"}}).to_csv(file, index=False)
    assert set(load_learning_curves([file, file])["metric"]) == {"frechet_distance", "kid"}
    curves().drop(columns="step").to_csv(file, index=False)
    with pytest.raises(UserError, match=r"curve\.csv: the columns \['step'\] are missing"):
        load_learning_curves([file])
    curves().assign(value="inf").to_csv(file, index=False)
    with pytest.raises(UserError, match="finite"):
        load_learning_curves([file])


def test_without_a_comparison_the_files_are_there_and_empty():
    nothing = load_learning_curves([])
    assert comparison_table(RESULTS, None).rows == []
    assert steps_table(RESULTS, None).rows == []
    assert reach_table(RESULTS, None, nothing).rows == []
    assert learning_curves_figure(None, nothing, "FID") is not None
    assert len(learning_curves_figure(COMPARISON, curves(), "FID").axes) == 2
