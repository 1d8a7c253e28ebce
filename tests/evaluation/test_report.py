"""The report: data, tables, figures, sentences, files, and the page in a real browser."""

import base64
import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from report_fixture import DDIM, FULL, NASTY, PART, fabricate

from diffusion.runtime.errors import UserError
from evaluation.columns import RANK_MARK
from evaluation.report import figures as plots
from evaluation.report import format, tables
from evaluation.report.format import Cell, Column, Table, format_value
from evaluation.report.page import captioned_samples, findings, flatten, load_results, render, sample_rows, standing
from evaluation.report.protocol_table import protocol_summary, protocol_table
from evaluation.report.published_texts import published_texts_table
from evaluation.report.spread import difference_table, spread_table
from evaluation.results import stored
from evaluation.results.stored import Method

BOOT = Method("boot", "boot-heun", 1)
TABLES = [
    *("main", "floor", "measures", "spread", "differences", "comparison", "comparison_steps", "comparison_reach"),
    *("ablation", "published", "ratios", "training_cost", "sampling_speed", "protocols", "wall_clock"),
]
FIGURES = [
    *("quality_vs_evaluations", "quality_vs_latency", "samples", "all_times", "interpolation", "neighbours"),
    *("learning_curves", "trajectory", "ablation", "training", "cost", "wall_clock"),
]
# Every file of a report, whatever the data.
FILES = [
    "index.html",
    *(f"{name}.csv" for name in ("metrics", "speed", "cost", "trajectory", "learning_curves")),
    *(f"tables/{name}.{suffix}" for name in TABLES for suffix in ("csv", "md", "tex")),
    *(f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def results(inputs):
    return load_results(inputs)


@pytest.fixture(scope="module")
def report(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered") / "report"
    render(inputs, folder)
    return folder


CAPTIONS = [f"a {name} to the left of <b>&_% {number}" for number, name in enumerate(("six", "nine") * 9)]


@pytest.fixture(scope="module")
def text_inputs(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("texts") / "results", captions=CAPTIONS)


@pytest.fixture(scope="module")
def text_report(text_inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered") / "report"
    render(text_inputs, folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn, which takes ten times as long as all else of a report."""

    def write_figure(_figure, folder, name):
        for kind in ("svg", "png"):
            (folder / f"{name}.{kind}").write_bytes(b"")

    monkeypatch.setattr(plots, "write_figure", write_figure)


def edited(path, which, **values):
    """Writes into the rows of a CSV file for which ``which`` of its frame is true."""
    frame = pd.read_csv(path)
    frame.loc[which(frame), list(values)] = list(values.values())
    frame.to_csv(path, index=False)


class _Page(HTMLParser):
    """Collects what the tests ask about a page."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


@pytest.fixture(scope="module")
def page(report):
    return _Page((report / "index.html").read_text(encoding="utf-8"))


# --- files -------------------------------------------------------------------------------------------------


def test_every_promised_file_is_there_and_no_other(report):
    found = sorted(str(path.relative_to(report)) for path in report.rglob("*") if path.is_file())
    assert found == sorted(FILES)
    assert all((report / name).stat().st_size > 0 for name in found)
    assert [path.name for path in report.parent.iterdir()] == ["report"]  # nothing temporary


def test_long_tables_have_their_columns_in_order(report):
    expected = {
        "metrics": "experiment,method,variant,nfe,train_seed,seed,metric,value,num_samples,protocol,features,"
        "reference,library",
        "speed": "experiment,method,variant,nfe,device,dtype,batch_size,images_per_second,latency_ms_median,"
        "latency_ms_p95,peak_memory_mb,rounds,median_precision,network_share,energy_j_per_image,"
        "text_encoder_ms,decoder_ms",
        "cost": "experiment,method,variant,steps,network_evaluations,real_images_seen,wall_clock_s,parameters,"
        "offline_bytes,cpu_s,gpu_s",
        "learning_curves": "variant,nfe,train_seed,step,network_evaluations,real_images_seen,wall_clock_s,metric,value",
    }
    for name, header in expected.items():
        assert (report / f"{name}.csv").read_text().splitlines()[0] == header


def test_long_tables_keep_every_value(inputs, report):
    before = pd.concat([pd.read_csv(path) for path in inputs.metrics], ignore_index=True)
    after = pd.read_csv(report / "metrics.csv")
    assert after["value"].tolist() == before["value"].tolist()
    assert after["variant"].tolist() == before["variant"].tolist()
    # Counts and seeds stay whole numbers where a column also has empty fields.
    line = (report / "metrics.csv").read_text().splitlines()[1].split(",")
    assert line[3:6] == ["1", "0", "0"]


def test_several_students_of_a_variant_get_their_own_cost_row(report):
    cost = pd.read_csv(report / "cost.csv")
    assert [v for v in cost["variant"] if v.startswith("progressive")] == [f"progressive@nfe-{n}" for n in (8, 4, 2, 1)]
    assert "boot-heun" in cost["variant"].tolist()
    assert cost["network_evaluations"].dtype.kind == "i"


def test_nothing_says_nan(report, page):
    word = re.compile(r"\b(nan|inf|none|null)\b", re.IGNORECASE)
    assert not word.search(page.text)
    for path in report.rglob("*"):
        if path.suffix in (".csv", ".md", ".tex"):
            assert not word.search(path.read_text(encoding="utf-8")), path.name


def test_an_existing_report_is_replaced_whole_and_the_same_inputs_give_the_same_bytes(inputs, report, tmp_path):
    again = tmp_path / "again"
    (again / "tables").mkdir(parents=True)
    (again / "tables" / "stale.csv").write_text("old")
    render(inputs, again)
    assert not (again / "tables" / "stale.csv").exists()
    for name in FILES:
        assert (again / name).read_bytes() == (report / name).read_bytes(), name


def test_a_broken_input_leaves_the_old_report(inputs, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("old")
    with pytest.raises(UserError, match=r"speed\.csv: not found"):
        render(dataclasses.replace(inputs, speed=tmp_path / "speed.csv"), folder)
    assert (folder / "index.html").read_text() == "old"


def test_an_experiment_without_boot_has_a_report(tmp_path):
    bare = fabricate(tmp_path / "results", boot={}, external=False)
    render(bare, tmp_path / "report")
    assert sorted(str(p.relative_to(tmp_path / "report")) for p in (tmp_path / "report").rglob("*.*")) == sorted(FILES)
    assert findings(load_results(bare)) == []
    assert "No BOOT student" in (tmp_path / "report" / "index.html").read_text()


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "high", ""])
def test_a_value_that_is_no_number_is_refused_and_an_empty_one_is_missing(inputs, tmp_path, value):
    lines = inputs.metrics[0].read_text(encoding="utf-8").splitlines()
    fields = lines[1].split(",")
    (tmp_path / "broken.csv").write_text("\n".join([lines[0], ",".join([*fields[:7], value, *fields[8:]]), *lines[2:]]))
    if value == "":
        assert stored.load_metrics([tmp_path / "broken.csv"])["value"].isna().sum() == 1
    else:
        with pytest.raises(UserError, match=r"broken\.csv: row 2, column 'value' holds"):
            stored.load_metrics([tmp_path / "broken.csv"])


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"foreign\.csv: the columns \['experiment'"):
        stored.load_metrics([tmp_path / "foreign.csv"])


def test_a_cost_file_without_its_keys_is_refused(tmp_path):
    (tmp_path / "cost.json").write_text(json.dumps({"students": [{"nfe": 1}]}))
    with pytest.raises(UserError, match=r"cost\.json: expected 'students'.*run Snakemake again"):
        stored.load_costs("digits", [stored.CostFile(tmp_path / "cost.json", "boot", "boot-heun")])


def test_a_training_log_without_its_columns_is_refused(inputs, tmp_path):
    (tmp_path / "training.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match=r"the columns \['stage'\] are missing"):
        render(dataclasses.replace(inputs, training={"x": tmp_path / "training.csv"}), tmp_path / "report")


# --- look-ups ----------------------------------------------------------------------------------------------


def test_mean_and_spread(results):
    """Over training seeds, each at its mean over sampling seeds; of a row without training over sampling seeds."""
    found = results.interval("frechet_distance", BOOT)
    assert found[::3] == pytest.approx((124, 1.5))
    assert found.n == 3
    sampler = results.interval("frechet_distance", Method("ddim", "ddim", 8))
    assert (sampler.mean, sampler.sd, sampler.n) == pytest.approx((88, 1.5, 3))


def test_counts(results):
    assert results.full_count == FULL
    assert results.floor_count == PART
    assert results.count(Method("external", "my-samples", None)) == 1000
    part = results.interval("frechet_distance", BOOT, PART)
    assert part.mean == pytest.approx(1.15 * 124 + 90)


def test_the_extractor_names_the_distance(tmp_path, results, report):
    """It is an FID on the Inception only."""
    header = (report / "tables" / "main.md").read_text().splitlines()[2]
    assert "FID" not in header
    assert "efficientnet-lite0@64px" in header
    assert results.frechet_name == "Fréchet distance (efficientnet-lite0@64px)"
    other = load_results(fabricate(tmp_path / "r", features="inception"))
    assert other.frechet_name == "FID"
    spread = other.interval("frechet_distance", BOOT)
    assert spread.mean == pytest.approx(124)


def test_protocols_are_not_mixed(inputs, tmp_path):
    """A value under another protocol than the teacher's does not enter a mean."""
    path = tmp_path / "other.csv"
    lines = (
        next(p for p in inputs.metrics if ",boot-heun," in Path(p).read_text(encoding="utf-8")).read_text().splitlines()
    )
    row = next(line for line in lines if ",frechet_distance," in line and f",{FULL}," in line).split(",")
    row[7], row[9] = "5.0", "another-resize"
    path.write_text("\n".join([lines[0], ",".join(row)]) + "\n")
    mixed = load_results(dataclasses.replace(inputs, metrics=[path, *inputs.metrics]))
    spread = mixed.interval("frechet_distance", BOOT)
    assert (spread.n, spread.mean) == (3, pytest.approx(124))


def test_rows_are_ordered_as_the_labels_and_externals_come_last(results):
    names = [(row.variant, row.nfe) for row in results.rows]
    assert names[:6] == [("ddim", n) for n in (50, 16, 8, 4, 2, 1)]
    assert names[-1] == ("my-samples", None)
    assert results.real == Method("real", "test", None)


def test_samples_of_ones_own_with_evaluations_stand_where_they_can(tmp_path):
    """With mean and spread over their seeds, and on the Pareto front; not ranked, timed, priced or called better."""
    own = load_results(fabricate(tmp_path / "r", external_nfe=1))
    mine = Method("external", "my-samples", 1)
    found = own.interval("frechet_distance", mine)
    assert (found.mean, found.sd, found.n) == pytest.approx((30, 1.5, 3))
    points = plots.quality_points(own, "evaluations")
    assert {p.row for p, on in zip(points, plots.front_of(points), strict=True) if on} == {mine}
    assert mine not in {point.row for point in plots.quality_points(own, "latency")}
    assert own.verdict("frechet_distance", mine, BOOT) == "none"

    def row(table):
        keys = [column.key for column in table.columns]
        rows = [dict(zip(keys, cells, strict=True)) for cells in table.rows]
        return next((row for row in rows if row[keys[0]].value == "my-samples"), None)

    cells = row(tables.main_table(own))
    assert cells["nfe"].value == 1
    assert cells["num_samples"] == Cell(FULL)
    assert not cells["frechet_distance"].best
    unknown = ("images_per_second", "speedup_over_teacher", "network_evaluations", "wall_clock_s", "data_free")
    assert [cells[key].value for key in (*unknown, "mse_to_teacher")] == [None] * 6
    cells = row(spread_table(own))
    assert cells["frechet_distance_sampling_low"].value == pytest.approx(30 - 1.5 * 4.30265 / 3**0.5, abs=1e-3)
    assert cells["frechet_distance_training_low"].value is None
    assert [row(table(own)) for table in (tables.speed_table, tables.cost_table, difference_table)] == [None] * 3


def test_cost_of_rows(results):
    assert results.cost_of(BOOT, "real_images_seen") == 0
    assert results.cost_of(Method("progressive_distillation", "progressive", 2), "real_images_seen") == 3 * 76_800
    assert results.cost_of(Method("ddim", "ddim", 4), "network_evaluations") == 0
    assert results.cost_of(Method("external", "my-samples", None), "network_evaluations") is None
    # A network whose cost file is missing must not look as if it were free.
    assert results.cost_of(Method("boot", "another", 1), "network_evaluations") is None


def test_speed_of_rows(results):
    assert results.speed_of(BOOT, "images_per_second") == pytest.approx(128_000 / (22 * 1.02))
    assert results.speed_of(BOOT, "latency_ms_median", "smallest") == pytest.approx(4 * 1.02)
    assert results.speed_of(Method("external", "my-samples", None), "images_per_second") is None


def test_benchmarks_are_summed_by_rule(results):
    table = results.benchmarks.set_index("rule")
    assert table.loc["train_student", "jobs"] == 2
    assert table.loc["train_student", "total_s"] == pytest.approx(382.9)
    assert np.isnan(table.loc["prepare_data", "peak_memory_mb"])
    assert results.benchmarks["total_s"].is_monotonic_decreasing


# --- comparing ---------------------------------------------------------------------------------------------


def test_bold_in_the_main_table(results, tmp_path):
    def bold(table):
        column = next(i for i, c in enumerate(table.columns) if c.key == "frechet_distance")
        return {(row[0].value, row[1].value) for row in table.rows if row[column].best}

    assert ("BOOT (Heun)", 1) in bold(tables.main_table(results))
    noisy = load_results(fabricate(tmp_path / "r", sd=40.0))
    assert not any(nfe == 1 for _, nfe in bold(tables.main_table(noisy)))


def test_pareto_front_against_the_definition():
    generator = np.random.default_rng(3)
    for _ in range(300):
        count = int(generator.integers(0, 12))
        # Few distinct values, so that ties of every kind occur.
        points = generator.integers(0, 5, size=(count, 2)).astype(float)
        points[generator.random(size=points.shape) < 0.05] = np.nan
        found = plots.pareto_front(points[:, 0].tolist(), points[:, 1].tolist())
        for index, (x, y) in enumerate(points):
            beaten = any((p <= x and q <= y) and (p < x or q < y) for p, q in points)
            assert found[index] == (bool(np.isfinite([x, y]).all()) and not beaten)


def test_values_within_their_precision_tie_on_the_front():
    cost, quality = [1.0, 2.0, 4.0], [10.0, 9.0, 3.0]
    assert plots.pareto_front(cost, quality).tolist() == [True] * 3
    # 10 ± 1.1 and 9 ± 1.1 hold each other: the dearer of two equal ones is beaten.
    assert plots.pareto_front(cost, quality, 0, 1.1).tolist() == [True, False, True]
    assert plots.pareto_front(cost, quality, 0, 0.9).tolist() == [True] * 3
    # One that is known to ± 20 alone is not as good as all.
    assert plots.pareto_front(cost, quality, 0, [20.0, 0.1, 0.1]).tolist() == [True] * 3
    assert plots.pareto_front([1.0, 1.0], [2.0, 15.0], 0, [0.1, 35.0]).tolist() == [True, False]
    # Costs that tie: the better quality beats.
    assert plots.pareto_front([10.0, 10.1], [300.0, 100.0], 0.2).tolist() == [False, True]
    # Equal in both: both stay.
    assert plots.pareto_front([1.0, 1.0], [2.0, 2.001], 0, 0.01).tolist() == [True, True]


def test_the_front_takes_the_intervals_or_the_printed_digits(tmp_path):
    def front(**changes):
        own = load_results(fabricate(tmp_path / str(len(list(tmp_path.iterdir()))), **changes))
        points = plots.quality_points(own, "evaluations")
        return {own.long_label(p.row) for p, on in zip(points, plots.front_of(points), strict=True) if on}

    assert {"DDIM, 50", "DDIM, 16"} <= front(boot={}, external=False, sd=0.5)
    # 59 and 66 with a deviation of 3 over three seeds: half an interval is 7.5.
    assert "DDIM, 50" not in front(boot={}, external=False, sd=3.0)
    close = load_results(fabricate(tmp_path / "close", boot={"boot-heun": 2.0}, sd=0.0))
    frame = close.metrics
    single = frame[(frame["seed"] == 0) & (frame["train_seed"] == 0) & (frame["metric"] == "frechet_distance")]
    ladder = single["value"].mask((single["variant"] == "ddim") & (single["nfe"] == 50), 1.999)
    tied = dataclasses.replace(close, metrics=single.assign(value=ladder))
    points = plots.quality_points(tied, "evaluations")
    on = {tied.long_label(p.row): bool(o) for p, o in zip(points, plots.front_of(points), strict=True)}
    assert on["BOOT (Heun), 1"]
    assert not on["DDIM, 50"]  # 1.999 and 2.000 are printed alike, and one evaluation is cheaper


# --- sentences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (124.0, "falls between DDIM with 4 and with 8 evaluations."),
        (75.0, "falls between DDIM with 8 and with 16 evaluations."),
        (89.0, "falls between DDIM with 4 and with 16 evaluations, level with 8 within the 95 % intervals."),
        (40.0, "is better than DDIM with every number of evaluations measured (1, 2, 4, 8, 16 and 50)."),
        (2500.0, "is worse than DDIM with every number of evaluations measured (1, 2, 4, 8, 16 and 50)."),
        (
            59.5,
            "is better than DDIM with 1, 2, 4 and 8 evaluations; level, within the 95 % intervals, with DDIM with 16 "
            "and 50",
        ),
    ],
)
def test_findings_agree_with_the_data(tmp_path, distance, text):
    own = load_results(fabricate(tmp_path / "r", boot={"boot-heun": distance}))
    sentences = [s for s in findings(own) if "the Fréchet distance (" in s and "DDIM" in s]
    assert len(sentences) == 1
    assert text in sentences[0]
    assert f"the Fréchet distance (efficientnet-lite0@64px) ({distance:,.1f} ± 1.5)" in sentences[0]


def test_standing_against_the_definition(results):
    place = standing(results, BOOT, "frechet_distance")
    assert place is not None
    assert place["better"] == [n for n, value in DDIM.items() if value > 124 + 2 * np.hypot(1.5, 1.5)]
    assert place["worse"] == [n for n, value in DDIM.items() if value < 124 - 2 * np.hypot(1.5, 1.5)]
    # The teacher's distance to itself is no achievement.
    mse = standing(results, BOOT, "mse_to_teacher")
    assert mse is not None
    assert all(50 not in counts for counts in mse.values())


def test_findings_on_speed_and_cost(results):
    text = " ".join(findings(results))
    assert "makes 5,704 images a second, 49.0× the speed of DDIM with 50 evaluations" in text
    assert (
        "Training BOOT (Heun) took 640 k network evaluations and no real images, Progressive distillation with one "
        "evaluation 922 k and 307 k real images." in text
    )
    assert "Beside Progressive distillation with one evaluation, BOOT (Heun) is better by each of 5 measures." in text


def test_findings_name_all_measures(results, tmp_path):
    names = ("the Fréchet distance (", "KID (", "precision (", "recall (", "the MSE to the teacher (")
    first = findings(results)[: -len(findings(results, without=("boot-heun",)))]
    assert all(any(name in sentence for sentence in first) for name in names)
    # Worse by one: it is said, and by which.
    frame = results.metrics
    mine = (frame["metric"] == "recall") & (frame["variant"] == "boot-heun")
    worse = dataclasses.replace(results, metrics=frame.assign(value=frame["value"].mask(mine, 0.1)))
    text = " ".join(findings(worse))
    assert "and the MSE to the teacher; worse by recall." in text


@pytest.mark.parametrize("train_seeds", [1, 2])
def test_too_few_training_seeds_give_no_verdict(tmp_path, train_seeds, undrawn):
    """In no sentence, no cell and no table; and it is said once on the page what is missing."""
    inputs = fabricate(tmp_path / "r", train_seeds=train_seeds, external=False)
    render(inputs, tmp_path / "report")
    few = load_results(inputs)
    text = " ".join(findings(few))
    assert not re.search(r"\b(better|worse|level)\b", text)
    assert re.search(r"the Fréchet distance \(efficientnet-lite0@64px\) 124(\.0)? ± ", text)
    assert "against 59.0 ± 1.5" in text
    missing = f"{('One', 'Two')[train_seeds - 1]} training seed{'s' * (train_seeds == 2)}: no verdict"
    assert text.count(missing) == 1
    assert _Page((tmp_path / "report" / "index.html").read_text()).text.count(missing) == 1
    students = {"BOOT (Heun)", NASTY, "Progressive distillation"}
    for name in ("main", "comparison", "ablation"):
        for line in (tmp_path / "report" / "tables" / f"{name}.md").read_text().splitlines():
            if line.startswith("| ") and any(format.escape_markdown(student) in line for student in students):
                assert "**" not in line
    verdicts = {row["verdict"] for row in _rows(tmp_path / "report", "differences")}
    assert verdicts == {format.MISSING}
    # The errors along the trajectory are of one student whatever the number of seeds: values alone.
    page = _Page((tmp_path / "report" / "index.html").read_text()).text
    assert "0.011 at t_min, where DDIM has 0.0027 with 4 evaluations; the largest share" in page


def test_too_few_samples_give_no_sentence_on_quality_and_a_mark_in_the_cell(tmp_path, undrawn):
    """1,437 samples: enough for 1,436 dimensions, and one too few for as many as samples."""
    enough = load_results(fabricate(tmp_path / "r", dimensions=FULL - 1))
    assert any("falls between" in sentence for sentence in findings(enough))
    inputs = fabricate(tmp_path / "few", dimensions=FULL)
    sentences = findings(load_results(inputs))
    assert f"{FULL:,} samples in the features' {FULL:,} dimensions are too few for a sentence" in sentences[0]
    assert not re.search(r"\b(better|worse|level|falls between)\b", " ".join(sentences))
    render(inputs, tmp_path / "report")
    for name in ("main", "floor", "measures", "spread", "differences", "comparison", "comparison_steps", "ablation"):
        lines = (tmp_path / "report" / "tables" / f"{name}.md").read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ") and re.search(r"BOOT|steps by halves|DDIM", line)]
        assert rows
        for row in rows:
            assert "§" in row or "KID" in row or "recision" in row or "ecall" in row or "MSE" in row, name
        assert sum(line.startswith("§ ") for line in lines) == 1, name
    assert "§" not in (tmp_path / "report" / "tables" / "sampling_speed.md").read_text()


def test_only_the_rows_whose_covariance_has_not_full_rank_are_marked(tmp_path):
    """The floor and what stands at its count: 360 images in 400 dimensions."""
    own = load_results(fabricate(tmp_path / "r", dimensions=400))
    main = tables.main_table(own)
    column = [c.key for c in main.columns].index("frechet_distance")
    assert {row[0].value: RANK_MARK in row[column].mark for row in main.rows} == {
        **dict.fromkeys(("DDIM", "BOOT (Heun)", NASTY, "Progressive distillation", "my-samples"), False),
        tables.FLOOR: True,
    }
    assert all(RANK_MARK in row[2].mark for row in tables.floor_table(own).rows if row[2].value is not None)
    # A reference of few images: every distance to it.
    few = dataclasses.replace(own, reference_count=400)
    assert all(RANK_MARK in row[column].mark for row in tables.main_table(few).rows)


def test_protocols_mark_their_own_rank(tmp_path):
    inputs = fabricate(tmp_path / "r")
    for name, dimensions in (("main", FULL - 1), ("clean-fid", FULL), ("test", FULL - 1)):
        path = inputs.protocols[name].with_suffix(".json")
        facts = json.loads(path.read_text())
        facts["extractor"]["dimensions"] = dimensions
        path.write_text(json.dumps(facts))
    table = protocol_table(load_results(inputs), inputs.protocols)
    column = [c.key for c in table.columns].index("boot-heun_1")
    assert [RANK_MARK in row[column].mark for row in table.rows] == [False, True, False]
    assert "53.1 under 'test' and 59 under 'main'" in protocol_summary(table)


def test_a_classifiers_accuracy_on_real_images_stands_at_its_own_count(tmp_path):
    """The floor is measured on as many images as there are samples; the classifier on the whole test part."""
    inputs = fabricate(tmp_path / "r")
    for count, text in ((PART, "0.970 ‡"), (500, "0.970 (of 500) ‡")):
        own = load_results(inputs)
        row = {**dict.fromkeys(own.metrics.columns), "experiment": "digits", "method": "real", "variant": "test"}
        row |= {"metric": "label_accuracy", "value": 0.97, "num_samples": count}
        row |= {"protocol": "main", "features": "classifier"}
        more = pd.DataFrame([row]).astype(own.metrics.dtypes.to_dict())
        own = dataclasses.replace(own, metrics=pd.concat([own.metrics, more], ignore_index=True))
        columns = [Column("method", "Method"), *tables.metric_columns(own, ["frechet_distance", "label_accuracy"])]
        (floor,) = tables.floor_row(own, columns)
        assert format.cell_text(floor[2], columns[2]) == text
        main = tables.main_table(own)  # which says the floor's own count in a column
        place = [c.key for c in main.columns].index("label_accuracy")
        assert format.cell_text(main.rows[-1][place], main.columns[place]) == text.removesuffix(" ‡")


def test_measures_of_captions_stand_where_they_were_taken(tmp_path):
    own = load_results(fabricate(tmp_path / "r"))
    names = ("caption_accuracy", "caption_accuracy_new", "caption_swapped", "caption_variance")
    taken = dict(zip(names, (0.875, 0.75, 0.0625, 0.125), strict=True))
    rows = own.metrics[(own.metrics["metric"] == "frechet_distance") & (own.metrics["num_samples"] == FULL)]
    more = [rows.assign(metric=name, value=value) for name, value in taken.items()]
    with_captions = dataclasses.replace(own, metrics=pd.concat([own.metrics, *more], ignore_index=True))

    def shown(table, names):
        """The cells of the first method under each of the names, which the table has all of."""
        places = [[column.key for column in table.columns].index(name) for name in names]
        method = next(row for number, row in enumerate(table.rows) if number not in table.aside)
        return {name: method[place].value for name, place in zip(names, places, strict=True)}

    accuracy, further = ["caption_accuracy"], list(taken)[1:]
    assert shown(tables.main_table(with_captions), accuracy) == {"caption_accuracy": 0.875}
    assert shown(tables.measures_table(with_captions), further) == {name: taken[name] for name in further}
    assert "captions" in " ".join(tables.measures_table(with_captions).notes)
    for table in (tables.main_table(own), tables.measures_table(own)):
        assert not {column.key for column in table.columns} & {*taken, "label_accuracy"}
        assert "caption" not in " ".join(table.notes)


def test_there_is_one_speed_up(results, report):
    """The quotient of the printed columns, in every table and sentence."""
    rows = _rows(report, "main")
    teacher = next(float(row["images_per_second"]) for row in rows if (row["method"], row["nfe"]) == ("DDIM", "50"))
    for row in rows:
        if row["images_per_second"]:
            assert float(row["speedup_over_teacher"]) == pytest.approx(float(row["images_per_second"]) / teacher)
    table = tables.ratio_table(results, stored.load_published())
    ratio = next(r for r in table.rows if r[0].value == "Images per second" and "with 50" in str(r[1].value))
    factor = ratio[[c.key for c in table.columns].index("here_boot-heun")].value
    assert factor == pytest.approx(results.speedup(BOOT))
    by_batch = _rows(report, "sampling_speed")
    teachers = {r["batch_size"]: float(r["latency_ms_median"]) for r in by_batch if r["nfe"] == "50"}
    for row in by_batch:
        quotient = teachers[row["batch_size"]] / float(row["latency_ms_median"])
        assert float(row["speedup"]) == pytest.approx(quotient)


def test_each_rows_best_batch_size_counts_for_its_speed_up(tmp_path):
    inputs = fabricate(tmp_path / "r")
    edited(inputs.speed, lambda row: (row.nfe == 50) & (row.batch_size == 1), images_per_second=1000.0)
    own = load_results(inputs)
    assert own.speedup(BOOT) == pytest.approx(128_000 / (22 * 1.02) / 1000)


def test_costs_from_before_processors_were_timed_are_shown_without(tmp_path, undrawn):
    inputs = fabricate(tmp_path / "r")
    for file in inputs.costs:
        content = json.loads(file.path.read_text())
        for student in content["students"]:
            del student["cpu_s"], student["gpu_s"]
        file.path.write_text(json.dumps(content))
    render(inputs, tmp_path / "report")
    assert "cpu_s" not in _rows(tmp_path / "report", "training_cost")[0]
    assert pd.read_csv(tmp_path / "report" / "cost.csv")["cpu_s"].isna().all()
    # One of them timed: the others' cells are empty.
    content["students"][0] |= {"cpu_s": 80.0, "gpu_s": 40.0}
    inputs.costs[-1].path.write_text(json.dumps(content))
    cells = [(row["cpu_s"], row["gpu_s"]) for row in _table(tables.cost_table(load_results(inputs)))]
    assert set(cells) == {("", ""), ("80", "40")}


def _table(table):
    return list(csv.DictReader(format.to_csv(table).splitlines()))


# --- tables ------------------------------------------------------------------------------------------------


def _rows(report, name):
    with (report / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


REAL = "Real pictures held out (floor)"
BOOT_HERE = {"method": "BOOT (Heun)"}
CELLS = [
    ("main", 0, {"method": "DDIM", "nfe": "50"}),  # the teacher's own figures come first
    ("main", BOOT_HERE, {"frechet_distance": 124, "frechet_distance_sd": 1.5, "frechet_distance_n": 3, "nfe": "1"}),
    ("main", BOOT_HERE, {"kid_sd": "0", "kid_n": "3", "data_free": "yes"}),
    ("main", {"method": "DDIM", "nfe": "1"}, {"kid_sd": "", "kid_n": "1", "data_free": "no training"}),
    ("main", {"method": "Progressive distillation", "nfe": "1"}, {"data_free": "no"}),
    ("main", {"method": "my-samples"}, {"nfe": "", "data_free": "", "mse_to_teacher": "", "num_samples": "1000"}),
    ("main", {"method": REAL}, {"nfe": "", "num_samples": str(PART)}),
    # At equal counts, the floor first.
    ("floor", 0, {"method": REAL, "frechet_distance": 130}),
    ("floor", BOOT_HERE, {"over_floor": (1.15 * 124 + 90) / 130}),
    ("measures", 0, {"method": REAL}),
    ("measures", BOOT_HERE, {"frechet_distance": 1.15 * 124 + 90, "frechet_distance_extrapolated": None}),
    ("measures", BOOT_HERE, {"density": 0.8 * (1 + 124 / 1e4), "classifier_score": 1.5 * (1 + 124 / 1e4)}),
    ("sampling_speed", BOOT_HERE, {"batch_size": "1", "latency_ms_median": 4 * 1.02, "energy_j_per_image": None}),
    ("sampling_speed", BOOT_HERE, {"median_precision": 1.3, "network_share": 97}),
    ("sampling_speed", BOOT_HERE | {"batch_size": "128"}, {}),
    ("training_cost", {"network": "BOOT (Heun)"}, {"wall_clock_s": 210, "cpu_s": 1.9 * 210, "gpu_s": None}),
    # One set of samples under every protocol.
    ("protocols", 0, {"protocol": "main", "boot-heun_1": 124, "floor": 130}),
    ("protocols", 0, {"floor_count": str(PART), "num_samples": str(FULL)}),
    ("protocols", 1, {"protocol": "clean-fid", "boot-heun_1": 186, "library": "clean-fid 1.2, clean"}),
    ("protocols", 1, {"resize": "299×299, bicubic, antialiased, as float (PIL); then 64x64"}),
    ("protocols", 2, {"protocol": "test", "boot-heun_1_kid": 0.9 * 2e-5 * 124, "reference": "test (1,437)"}),
    # With the digits that were published.
    ("published", {"dataset": "ImageNet 64×64", "method": "Progressive distillation", "nfe": "1"}, {"fid": "15.39"}),
    ("published", {"dataset": "FFHQ 64×64", "method": "DDIM", "nfe": "1"}, {"recall": "0.00"}),
    ("published", {"dataset": "FFHQ 64×64", "method": "BOOT", "nfe": "1"}, {"fid": "9.0"}),
]


@pytest.mark.parametrize(("name", "which", "cells"), CELLS)
def test_cells(report, name, which, cells):
    """The row of that number, or the first with these cells: numbers as numbers, text to the letter, None no column."""
    rows = _rows(report, name)
    row = rows[which] if isinstance(which, int) else next(row for row in rows if which.items() <= row.items())
    for key, expected in cells.items():
        if expected is None:
            assert key not in row
        else:
            assert (row[key] if isinstance(expected, str) else float(row[key])) == pytest.approx(expected)


def test_rows_and_columns_that_are_all_there_is(report):
    assert [row["protocol"] for row in _rows(report, "protocols")] == ["main", "clean-fid", "test"]
    assert [r["batch_size"] for r in _rows(report, "sampling_speed") if BOOT_HERE.items() <= r.items()] == ["1", "128"]
    assert pd.read_csv(report / "cost.csv")["cpu_s"].notna().all()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tables/training_cost.md", "6 min 39 s"),
        ("tables/published.md", "| 6.20 |"),
        ("", "Classifier score (efficientnet-lite0@64px)"),
        ("", "five samples a dimension of the features, which are not there"),
        ("", "53.1 under 'test' and 88.5 under 'clean-fid': the same samples, 1.67 times the figure"),
        ("", "is the same under all of them"),
        ("", "clean-fid 1.2, mode clean; features of efficientnet-lite0@64px (layer 7"),
        *(("", text) for text in ("2.13.0+cpu", "0123456789abcdef", "UNet2DModel", "0, 1, 2", "What was run")),
        ("", "how clean-fid measures."),
    ],
)
def test_what_is_said(report, page, name, text):
    assert text in ((report / name).read_text(encoding="utf-8") if name else page.text)


def test_missing_values_are_dashes(report):
    line = next(x for x in (report / "tables" / "main.md").read_text().splitlines() if "my-samples" in x)
    assert line.count(" – ") >= 8


def test_the_main_table_says_which_steps_are_not_those_of_diffusers(report, tmp_path, undrawn):
    assert "whole timesteps" not in (report / "tables" / "main.md").read_text()
    inputs = dataclasses.replace(fabricate(tmp_path / "r"), num_timesteps=1000, uneven_steps={"ddim": (3, 7, 16)})
    render(inputs, tmp_path / "report")
    table = (tmp_path / "report" / "tables" / "main.md").read_text()
    assert "DDIM with 3, 7 and 16 steps: no divisor of the teacher's 1000 timesteps." in table


def test_speeds_of_two_machines_are_not_set_side_by_side(tmp_path):
    inputs = fabricate(tmp_path / "r")
    edited(inputs.speed, lambda row: row.index == 3, device="another")
    with pytest.raises(UserError, match=r"several machines \(cpu; another\) cannot stand in one column"):
        load_results(inputs)


def test_throughput_is_that_of_the_best_batch_size(tmp_path):
    inputs = fabricate(tmp_path / "r")
    edited(inputs.speed, lambda row: (row.variant == "boot-heun") & (row.batch_size == 1), images_per_second=1e6)
    assert load_results(inputs).speed_of(BOOT, "images_per_second") == 1e6


def test_the_inception_score_has_its_name_on_inception_only(tmp_path):
    table = tables.measures_table(load_results(fabricate(tmp_path / "r", features="inception")))
    assert "Inception Score ↑" in [column.title for column in table.columns]


def test_figures_on_other_features_or_counts_are_not_set_in_proportion(tmp_path):
    inputs = fabricate(tmp_path / "r")
    edited(inputs.protocols["clean-fid"], lambda row: row.method != "real", num_samples=500)
    summary = protocol_summary(protocol_table(load_results(inputs), inputs.protocols))
    assert "53.1 under 'test' and 59 under 'main'" in summary


def test_a_table_without_the_floor_says_what_it_is(report):
    sentence = f"Floor: {PART} held-out real pictures have the Fréchet distance (efficientnet-lite0@64px) 130"
    assert sentence in (report / "tables" / "differences.md").read_text()


@pytest.mark.parametrize("name", ["main", "floor", "measures", "spread"])
def test_the_floor_is_a_row(report, name):
    table = pd.read_csv(report / "tables" / f"{name}.csv").set_index("method")
    assert table.frechet_distance[tables.FLOOR] == 130
    if name in ("main", "spread"):  # at its own count, not at the samples'
        assert table.num_samples[tables.FLOOR] == PART
        assert f"| {PART} ‡ |" in (report / "tables" / f"{name}.md").read_text()


def test_another_order_under_another_protocol_is_said(tmp_path):
    inputs = fabricate(tmp_path / "r")
    edited(inputs.protocols["test"], lambda row: row.variant == "boot-heun", value=1.0)
    summary = protocol_summary(protocol_table(load_results(inputs), inputs.protocols))
    assert "(DDIM, 50, BOOT (Heun), 1, <b>&_%, 1) is another under test." in summary


@pytest.mark.parametrize("name", ["main", "floor", "measures", "comparison", "ablation"])
def test_every_table_of_figures_names_its_protocol(report, name):
    words = "Protocol 'main': Pictures are resized to 64 pixels, then read by the extractor."
    assert words in (report / "tables" / f"{name}.md").read_text()


def test_published_figures_stand_alone_on_other_data(report, page):
    rows = _rows(report, "published")
    assert "reproduced" not in rows[0]
    assert all(row["source"] and row["certainty"] for row in rows)
    assert "its figures cannot be compared with these columns" in page.text


@pytest.mark.parametrize(("features", "filled"), [("inception", True), ("efficientnet-lite0@64px", False)])
def test_published_figures_beside_reproduced_ones(tmp_path, features, filled):
    own = load_results(fabricate(tmp_path / "r", dataset="cifar10", features=features))
    table = tables.published_table(own, stored.load_published())
    keys = [column.key for column in table.columns]
    assert table.rows[0][0].value == "CIFAR-10"
    cells = {(row[0].value, row[keys.index("method")].value): row[keys.index("reproduced")].value for row in table.rows}
    assert cells["CIFAR-10", "BOOT (trained with the LPIPS distance)"] == (pytest.approx(124) if filled else None)
    assert cells["ImageNet 64×64", "BOOT"] is None
    assert cells["CIFAR-10", "SiD"] is None


def test_ratios(results):
    table = tables.ratio_table(results, stored.load_published())
    keys = [column.key for column in table.columns]
    rows = {(row[0].value, row[1].value): row for row in table.rows}
    fid = rows["Fréchet distance", "BOOT with 1 ÷ DDIM with 50"]
    assert fid[keys.index("ffhq64")].value == pytest.approx(9.0 / 7.6)
    assert fid[keys.index("ffhq64")].mark == " †"
    assert fid[keys.index("here_boot-heun")].value == pytest.approx(124 / 59)
    # DDIM was not run at 10 evaluations here: its neighbours stand in, named.
    ten = rows["Fréchet distance", "BOOT with 1 ÷ DDIM with 10"][keys.index("here_boot-heun")].value
    assert ten == f"{124 / 88:.2f} (against 8); {124 / 66:.2f} (against 16)"
    progressive = rows["Fréchet distance", "BOOT with 1 ÷ progressive distillation with 1"]
    assert progressive[keys.index("cifar10")].value == pytest.approx(4.38 / 8.34)
    assert progressive[keys.index("cifar10")].mark == ""


@pytest.mark.parametrize(
    ("value", "kind", "sd", "text"),
    [
        (None, "number", None, "–"),
        (float("nan"), "number", None, "–"),
        (124.3456, "number", 1.234, "124.3 ± 1.2"),
        (124.3456, "number", 3.4, "124 ± 3"),
        (0.0161234, "number", 0.00032, "0.0161 ± 0.0003"),
        (59.0, "number", 0.0, "59.0 ± 0"),
        (0.00123456, "number", None, "0.00123"),
        (0.0000123, "number", None, "1.23e-05"),
        (0, "number", None, "0"),
        (1437, "count", None, "1,437"),
        (640_000, "count", None, "640 k"),
        (1_094_433, "count", None, "1.09 M"),
        (48.0512, "factor", None, "48.1×"),
        (1.5, "duration", None, "1.50 s"),
        (59.999, "duration", None, "60 s"),
        (212.9, "duration", None, "3 min 33 s"),
        (7322, "duration", None, "2 h 02 min"),
    ],
)
def test_digits_are_sensible(value, kind, sd, text):
    assert format_value(value, kind, sd) == text


def _nasty_table():
    columns = [Column("a", "100 % of x_y & z"), Column("b", "Value", "number", spread=True)]
    rows = [[Cell(NASTY), Cell(1.0, 0.1, 3, best=True)], [Cell("a|b `c` {d} #1 $x$ \\n ~ ^"), Cell(None)]]
    return Table("nasty", "A <title>", "50 % & more_", columns, rows)


def test_markdown_is_escaped():
    lines = format.to_markdown(_nasty_table()).splitlines()
    assert "| &lt;b&gt;&amp;\\_% | **1.00 ± 0.10** |" in lines
    assert "a\\|b \\`c\\`" in lines[5]
    unescaped = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:6]]
    assert unescaped == [3, 3, 3, 3]


def test_csv_is_raw():
    assert next(csv.DictReader(format.to_csv(_nasty_table()).splitlines())) == {
        "a": NASTY,
        "b": "1",
        "b_sd": "0.1",
        "b_n": "3",
    }


def _check_tex(text):
    stripped = re.sub(r"\\[\\{}%&#$_]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    assert stripped.count("{") == stripped.count("}")
    assert not re.search(r"[_#%<>±×÷†↓↑–]", stripped.replace(r"\label", "")), "an unescaped character"
    assert stripped.count("$") % 2 == 0
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    places = [text.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert places == sorted(places)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns
    body = text[places[0] : places[2]].splitlines()
    cells = [line for line in body if line.endswith(r"\\")]
    assert cells
    for line in cells:
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns.group(1)) - 1


def test_tex_is_escaped():
    text = format.to_tex(_nasty_table())
    _check_tex(text)
    assert r"\textless{}b\textgreater{}\&\_\%" in text
    assert r"\textbf{1.00 $\pm$ 0.10}" in text
    assert r"\textbackslash{}n \textasciitilde{} \textasciicircum{}" in text


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_sound_latex(report, name):
    _check_tex((report / "tables" / f"{name}.tex").read_text(encoding="utf-8"))


# --- published.yaml ----------------------------------------------------------------------------------------


def test_published_figures_have_source_and_certainty():
    published = stored.load_published()
    for entry in published["entries"]:
        assert entry["source"] in published["sources"]
        assert entry["certainty"] in stored.CERTAINTIES
        assert entry["dataset"] in published["datasets"]
        assert set(entry) <= {
            *("method", "label", "dataset", "nfe", "fid", "precision", "recall", "images_per_second"),
            *("source", "certainty", "remark"),
        }
        assert isinstance(entry["nfe"], int)
        # Text, so that the digits are those that were published.
        figures = [entry[k] for k in ("fid", "precision", "recall", "images_per_second") if k in entry]
        assert all(isinstance(figure, str) for figure in figures)
        assert float(entry["fid"]) > 0
        assert all(0 <= float(entry[key]) <= 1 for key in ("precision", "recall") if key in entry)
    keys = [(e["method"], e["dataset"], e["nfe"]) for e in published["entries"]]
    assert len(keys) == len(set(keys))
    for cost in published["costs"]:
        assert set(cost) == {"what", "dataset", "hours", "card", "source", "certainty", "remark"}
        assert cost["hours"] > 0
    assert set(published["sources"]) == {
        e["source"] for block in ("entries", "costs", "texts") for e in published[block]
    }
    assert all(set(source) == {"short", "full"} for source in published["sources"].values())


def test_published_text_to_image_models_stand_in_a_table_of_their_own():
    published = stored.load_published()
    table = published_texts_table(published)
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, (cell.value for cell in row), strict=True)) for row in table.rows]
    (longest,) = (row for row in rows if row["method"] == "SiD-LSG (guidance 1.5, longer training)")
    assert (longest["fid"], longest["clip"], longest["anime"]) == ("8.15", "0.304", None)
    quoted = [row for row in rows if row["certainty"] == "quoted"]
    assert {row["method"]: row["photo"] for row in quoted}["SwiftBrush"] == "27.21"
    assert "arXiv 2406.01561" in table.notes[-1]
    for entry in published["texts"]:
        figures = {"fid", "clip", "anime", "photo", "concept_art", "paintings"} & set(entry)
        assert set(entry) - figures <= {"label", "teacher", "nfe", "source", "certainty", "remark"}
        assert figures
        assert all(isinstance(entry[key], str) and float(entry[key]) > 0 for key in figures)


@pytest.mark.parametrize("key", ["source", "certainty", "dataset"])
def test_a_published_figure_without_its_origin_is_refused(tmp_path, key):
    content = stored.load_published()
    del content["entries"][3][key]
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"entries\[3\]\.{key} is None"):
        stored.load_published(tmp_path / "published.yaml")


# --- figures -----------------------------------------------------------------------------------------------


def test_figures_carry_no_date(report):
    for path in (report / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "<dc:date>" not in text
        assert "matplotlib" not in text.lower() or "dc:creator" not in text


def test_small_pictures_are_enlarged_without_smoothing():
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    strip = plots.picture_strip(images, smallest=8, gap=3)
    assert strip.shape == (8, 2 * 8 + 3, 4)
    assert (strip[::2, :8:2, 0] == images[0, :, :, 0]).all()
    assert (strip[1::2, 1:8:2, 0] == images[0, :, :, 0]).all()
    assert (strip[::2, 11::2, 2] == images[1, :, :, 0]).all()
    assert (strip[:, 8:11, 3] == 0).all()
    assert (strip[:, :8, 3] == 255).all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), 16),
        ((32, 32), 16),
        ((33, 33), 8),
        ((64, 64), 8),
        ((8, 16), 8),
        ((16, 8), 16),
        ((64, 128), 4),
        ((4, 400), 1),
    ],
)
def test_a_row_is_about_as_wide_whatever_the_images_are(size, shown):
    assert plots.shown_in_row(*size) == shown


def test_rows_of_wide_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 16, 1), dtype=np.uint8)
    files = {name: tmp_path / f"{name}.npz" for name in ("one", "other", "turned")}
    for name, file in files.items():
        np.savez(file, arr_0=images.transpose(0, 2, 1, 3) if name == "turned" else images)
    strips = sample_rows({name: files[name] for name in ("one", "other")})
    assert [strip.images.shape for strip in strips] == [(8, 8, 16, 1)] * 2
    row = plots.picture_strip(strips[0].images)
    assert row.shape == (32, 8 * 64 + 7 * 2, 4)  # each is enlarged four times
    np.testing.assert_array_equal(row[::4, 66 : 66 + 64 : 4, 0], images[1, :, :, 0])
    figure = plots.grid_figure([(strip.label, strip.images) for strip in strips])
    (drawn,) = figure.axes[0].get_images()
    assert drawn.get_array().shape == (2 * 32 + 2, row.shape[1], 4)
    with pytest.raises(UserError, match=r"turned\.npz: images of 16×8 pixels; the other methods have 8×16\."):
        sample_rows({name: files[name] for name in ("one", "turned")})


# --- captions ----------------------------------------------------------------------------------------------


def test_every_method_stands_under_the_same_captions(text_inputs):
    group = captioned_samples(text_inputs.samples, text_inputs.captions)
    # What a user brought has no captions here.
    assert group.columns == tuple(name for name in text_inputs.samples if name != "my-samples")
    # Sample i is of caption 2 i: the first eight are of eight captions.
    assert [strip.label for strip in group.strips] == [CAPTIONS[2 * number] for number in range(8)]
    for column, name in enumerate(group.columns):
        with np.load(text_inputs.samples[name]) as archive:
            for row, strip in enumerate(group.strips):
                assert np.array_equal(strip.images[column], archive["arr_0"][row])


def test_rows_of_captions_are_the_first_samples_of_different_ones(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    asked = {"one": [1, 1, 0, 1, 2, 0], "other": [1, 1, 0, 2, 2, 0], "turned": [0, 1, 1, 1, 2, 0], "few": [1, 1, 0]}
    samples = {name: tmp_path / f"{name}.npz" for name in (*asked, "untold")}
    for name, file in samples.items():
        labels = {"arr_1": np.array(asked[name])} if name in asked else {}
        np.savez(file, arr_0=(images + len(name))[: len(asked.get(name, images))], **labels)
    found = captioned_samples(samples, ["a", "b", "c"])
    # In "other" the fourth sample alone is of another caption, and not shown; "few" has no fifth, and "turned" starts
    # with other captions.
    assert found.columns == ("one", "other")
    assert [strip.label for strip in found.strips] == ["b", "a", "c"]
    for strip, index in zip(found.strips, (0, 2, 4), strict=True):
        assert np.array_equal(strip.images, np.stack([images[index] + len(name) for name in found.columns]))
    without = captioned_samples({"untold": samples["untold"]}, ["a"])
    assert without.strips == []


def test_a_report_of_texts_has_the_sentences_and_a_column_a_method(text_inputs, text_report):
    text = (text_report / "index.html").read_text(encoding="utf-8")
    page = _Page(text)
    columns = len(text_inputs.samples) - 1
    assert f"--columns: {columns}" in text
    rows = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert rows.count(f"{CAPTIONS[14]}: {columns} samples, one a method") == 1
    for number in range(0, 16, 2):
        assert CAPTIONS[number] in page.text
    for first, last in itertools.pairwise(CAPTIONS[:5]):
        assert f"from: {first}\nto: {last}" in page.text
    assert page.text.count("one noise a column, one text a row") == len(text_inputs.pictures)
    assert "<b>" not in text
    assert "two classes" not in page.text
    assert "told the same" in page.text
    found = {str(path.relative_to(text_report)) for path in text_report.rglob("*") if path.is_file()}
    published = {f"tables/published_texts.{suffix}" for suffix in ("csv", "md", "tex")}
    assert found == {*FILES, *published, "figures/captions.svg", "figures/captions.png"}
    assert "SiD-LSG (guidance 1.5, longer training)" in page.text


def test_classes_are_spoken_of_without_texts(page):
    assert "BOOT (Heun), classes 2 to 0" in page.text
    assert "between two classes at one noise" in page.text
    assert "text a row" not in page.text
    assert "caption" not in page.text.lower()


def test_grids_have_upright_heads_where_they_are_names():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    rows = [("a sentence that is longer than what fits beside a row of images", images), ("short", images)]
    named, timed = (plots.grid_figure(rows, columns) for columns in (("DDIM, NFE 50", "BOOT, NFE 1"), ("0.9", "0.1")))
    for figure, rotation in ((named, 90), (timed, 0)):
        axis = figure.axes[0]
        assert {label.get_rotation() for label in axis.get_xticklabels()} == {rotation}
        assert [label.get_text().count("\n") for label in axis.get_yticklabels()] == [1, 0]
    assert named.get_figheight() > timed.get_figheight()


@pytest.mark.parametrize("restart", [True, False])
def test_steps_run_through_all_stages(restart):
    steps = [0, 10, 20] * 2 if restart else [0, 10, 20, 30, 40, 50]
    curve = pd.DataFrame({"stage": ["8"] * 3 + ["4"] * 3, "step": steps, "loss": 1.0})
    running, starts = plots.running_steps(curve)
    assert (np.diff(running) >= 0).all()
    assert starts == [0.0, running[3]]
    assert running[-1] == (40 if restart else 50)


def test_a_training_curve_with_odd_losses_is_drawn():
    curve = pd.DataFrame({"stage": "a", "step": range(4), "loss": [0.0, np.nan, 1.0, 2.0]})
    figure = plots.training_figure({"one": curve, "empty": curve.iloc[:0], "bad": curve.iloc[:2]})
    assert len(figure.axes) == 2


# --- page --------------------------------------------------------------------------------------------------


def test_names_from_the_yaml_cannot_become_markup(report, page):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert NASTY in page.text
    assert "<b>" not in text
    assert not any(tag == "b" for tag, _ in page.tags)


def test_the_page_is_one_file(page):
    links = set()
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            if target and not target.startswith(("data:", "#")):
                # A file too large to travel inside the page may be linked, but never loaded.
                assert tag == "a"
                links.add(target)
    assert links <= set(FILES)
    assert not any(tag in ("script", "iframe", "object") for tag, _ in page.tags)


def test_downloads_in_the_page_are_the_files(report, page):
    names = {Path(name).name: report / name for name in FILES}
    seen = set()
    for tag, attributes in page.tags:
        name, target = attributes.get("download"), attributes.get("href") or ""
        if tag == "a" and name:
            seen.add(name)
            if target.startswith("data:"):
                assert base64.b64decode(target.split(",", 1)[1]) == names[name].read_bytes()
    assert seen == {Path(name).name for name in FILES} - {"index.html"}


def test_the_page_is_accessible(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    anchors = {a["href"] for tag, a in page.tags if tag == "a" and (a.get("href") or "").startswith("#")}
    assert anchors == {f"#{a['id']}" for tag, a in page.tags if a.get("id")}
    assert ("html", {"lang": "en"}) in page.tags


def test_provenance_is_flattened():
    content = {"a_b": {"c": [1, 2], "d": None}, "e": [{"f": True}], "g": list(range(30)), "h": []}
    assert flatten(content) == [
        ("a b · c", "1, 2"),
        ("a b · d", "–"),
        ("e 1 · f", "yes"),
        ("g", ", ".join(map(str, range(20))) + ", … (30 in all)"),
        ("h", "–"),
    ]


# --- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        missing = "chromedriver" if binary else "Chromium"
        message = f"{missing} is not installed (Debian: apt install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def _open(browser, report, width, dark=False):
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get((report / "index.html").as_uri())


def test_the_page_opens_without_errors_and_without_the_network(browser, report):
    _open(browser, report, 1200)
    assert browser.title == "BOOT reproduction: digits"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requested = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            requested.append(message["params"]["request"]["url"])
    assert any(url.startswith("file://") for url in requested)
    assert [url for url in requested if not url.startswith(("file://", "data:"))] == []
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)"
    assert browser.execute_script(broken) == []


@pytest.mark.parametrize("told", ["nothing", "texts"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(browser, report, text_report, width, told):
    _open(browser, text_report if told == "texts" else report, width)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.body.scrollWidth") <= width
    # Wide tables scroll inside their own container, which the keyboard can reach too.
    wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    if width == 360:
        assert browser.execute_script(wide) > 0
    assert browser.execute_script("return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")


def test_the_page_has_a_dark_form(browser, report):
    colour = "return getComputedStyle(document.body).backgroundColor"
    _open(browser, report, 360)
    light = browser.execute_script(colour)
    _open(browser, report, 360, dark=True)
    assert browser.execute_script(colour) != light


def test_an_ablations_changes_are_not_findings(results):
    others = " ".join(findings(results, without=("boot-heun",)))
    assert "BOOT (Heun)" in " ".join(findings(results))
    assert "BOOT (Heun)" not in others
    assert "one evaluation of" in others
