"""The ablation's block of YAML, its table and its sentences."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml
from report_fixture import results_of
from repository import tiny_experiment

from diffusion.runtime.errors import UserError
from evaluation.report.ablation import Ablation, ablation_figure, ablation_sentences, ablation_summary, ablation_table
from evaluation.results.stored import Method
from suite.configuration.experiment import parse_experiment
from suite.plan import Plan

BLOCK = yaml.safe_load("""
base: boot-heun
axes:
  delta: [{delta: 0.02}, {delta: 0.2}]
  lambda: [{delta_in: lambda, delta: 0.5}]
  length: [{training: {steps: 4}}]
""")


def experiment(**changes):
    raw = tiny_experiment() | {"ablation": copy.deepcopy(BLOCK) | changes}
    return parse_experiment(raw)


def test_every_change_becomes_a_variant_that_is_the_base_but_for_it():
    methods = experiment().methods
    base = methods["boot-heun"].settings
    assert methods["delta-0.02"].settings == base.model_copy(update={"delta": 0.02})
    assert methods["lambda-lambda_0.5"].settings == base.model_copy(update={"delta_in": "lambda", "delta": 0.5})
    longer = base.training.model_copy(update={"steps": 4})
    assert methods["length-4"].settings == base.model_copy(update={"training": longer})


def test_its_names_words_and_pictures():
    parsed = experiment()
    assert parsed.ablation == {
        "delta": {"delta-0.02": "delta 0.02", "delta-0.2": "delta 0.2"},
        "lambda": {"lambda-lambda_0.5": "delta_in lambda, delta 0.5"},
        "length": {"length-4": "steps 4"},
    }
    plan = Plan(parsed)
    assert "delta-0.2" in plan.signal_variants()
    assert "delta-0.2" not in plan.pictured_variants()
    assert "boot-heun" in plan.pictured_variants()


def test_a_selection_keeps_the_ablation():
    raw = tiny_experiment() | {"ablation": BLOCK, "select": ["ddim", "boot-heun"]}
    assert set(parse_experiment(raw).methods) == {
        "ddim", "boot-heun", "delta-0.02", "delta-0.2", "lambda-lambda_0.5", "length-4",
    }  # fmt: skip
    raw["select"] = ["ddim", "boot-euler"]
    with pytest.raises(UserError, match=r"ablation\.base: found 'boot-heun', expected a selected variant"):
        parse_experiment(raw)
    raw["select"] = ["ddim", "boot-heun"]  # with which the variants that a comparison makes of it are selected
    raw |= {"comparison": {"wide": {"boot-heun": {"delta": 0.3}}}, "ablation": BLOCK | {"base": "boot-heun-wide"}}
    assert parse_experiment(raw).ablation_base == "boot-heun-wide"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": "nothing"}, r"ablation\.base: found 'nothing', expected a variant under methods: .*boot-heun"),
        ({"axes": {"delta": [{"delta": 9.0}]}}, r"ablation\.axes\.delta\[0\]: methods\.delta-9\.0\.delta: found 9"),
        ({"axes": {"delta": [{"detla": 0.1}]}}, r"ablation\.axes\.delta\[0\]: .*detla: unknown key"),
        ({"axes": {"x": [{"delta": 0.1}, {"delta": 0.1}]}}, r"ablation\.axes\.x: two changes have the name 'x-0.1'"),
        ({"axes": {"x": [{}]}}, r"ablation\.axes\.x\[0\]: found \{\}, expected a change of "),
        ({"axes": {"x": []}}, r"ablation\.axes\.x: found \[\], expected a list of changes"),
        ({"axes": {}}, r"ablation\.axes"),
        ({"axes": {"boot": [{"solver": "heun"}]}}, r"ablation\.axes\.boot\[0\]: the name 'boot-heun' is taken"),
        ({"axis": {}}, r"ablation\.axis: unknown key; expected one of: base, axes"),
    ],
)
def test_a_broken_ablation_is_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        experiment(**changes)


def test_values_that_no_name_can_hold_name_variants():
    changes = [{"training": {"betas": [0.9, 0.99]}}, {"training": {"betas": [0.5, 0.999]}}]
    parsed = experiment(axes={"second moment": changes})
    assert parsed.ablation == {
        "second moment": {
            "second-moment-0.9-0.99": "betas [0.9, 0.99]",
            "second-moment-0.5-0.999": "betas [0.5, 0.999]",
        }
    }
    assert parsed.methods["second-moment-0.5-0.999"].settings.training.betas == (0.5, 0.999)


def results(values):
    """Variant to one Fréchet distance a training seed and sampling seed."""
    return results_of(
        {("boot", variant, 1): by_training for variant, by_training in values.items()}, {v: {} for v in values}
    )


VALUES = {
    "base": [[10.0, 12.0], [11.0, 13.0], [12.0, 14.0]],
    "good": [[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]],
    "same": [[11.0, 12.0], [11.0, 12.0], [12.0, 13.0]],
    "bad": [[30.0, 32.0], [31.0, 33.0], [32.0, 34.0]],
}
ABLATION = Ablation("base", {"knob": ["good", "same", "bad"]}, {"good": "knob 1", "same": "knob 2", "bad": "knob 3"})


def test_the_spread_is_that_over_training_seeds():
    found = results(VALUES).interval("frechet_distance", Method("boot", "base", 1))
    assert (found.mean, found.sd, found.n) == pytest.approx((12.0, 1.0, 3))  # of the means 11, 12, 13
    assert np.std([10, 12, 11, 13, 12, 14], ddof=1) > 1.4  # what pooling all six would have said


def test_the_table_marks_what_beats_the_base():
    table = ablation_table(results(VALUES), ABLATION)
    keys = [column.key for column in table.columns]
    cells = {row[1].value: row[keys.index("frechet_distance")] for row in table.rows}
    assert [row[0].value for row in table.rows] == ["base", "knob", "knob", "knob"]
    assert {change for change, cell in cells.items() if cell.best} == {"knob 1"}
    assert table.rows[1][keys.index("network_evaluations")].value == 1000


def test_the_sentence_says_what_the_data_say():
    first, note = ablation_sentences(results(VALUES), ABLATION)
    assert first == (
        "knob: knob 1: better by the Fréchet distance. knob 2: level by the Fréchet distance. "
        "knob 3: worse by the Fréchet distance."
    )
    assert note.startswith("Level: ")
    assert ablation_summary(results(VALUES), ABLATION) == (
        "Of 3 changes against the base: by the Fréchet distance 1 better, 1 level, 1 worse. "
        "No change is both cheaper than the base and worse by no measure."
    )


def test_sentences_name_all_measures():
    frame = results(VALUES).metrics
    recall = frame.assign(metric="recall", value=-frame["value"].where(frame["variant"] != "good", 50.0) / 100)
    both = dataclasses.replace(results(VALUES), metrics=pd.concat([frame, recall], ignore_index=True))
    first, _ = ablation_sentences(both, ABLATION)
    assert "knob 1: better by the Fréchet distance; worse by recall." in first
    summary = ablation_summary(both, ABLATION)
    assert "by the Fréchet distance 1 better, 1 level, 1 worse; by recall 0 better, 1 level, 2 worse" in summary


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_training_seeds_support_nothing(seeds):
    few = results({name: values[:seeds] for name, values in VALUES.items()})
    assert not any(cell.best for row in ablation_table(few, ABLATION).rows for cell in row)
    assert ablation_sentences(few, ABLATION) == []
    assert ablation_summary(few, ABLATION) == ""


def test_without_an_ablation_the_files_are_there_and_empty():
    assert ablation_table(results(VALUES), None).rows == []
    assert ablation_figure(results(VALUES), None) is not None
    assert ablation_figure(results(VALUES), ABLATION) is not None
