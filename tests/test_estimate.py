"""The estimate against the counts of real trainings, and against sums by hand."""

import pytest
import torch
import yaml
from test_experiments import CONFIG
from test_workflow import TINY
from tiny import tiny_denoiser, tiny_splits

from diffusion.data import load_split, parse_settings, write_dataset
from diffusion.pairs import Pairs, generate_pairs
from diffusion.training import TrainingRun
from suite.configuration import parse_experiment
from suite.estimate import CARDS, SHARE_OF_PEAK, estimate, table
from suite.registry import method_class, method_modules

CPU = torch.device("cpu")
TRAINED = [name for name in method_modules() if method_class(name).trains]


def experiment_of(**methods):
    raw = yaml.safe_load(TINY.read_text())
    raw["methods"] = {"ddim": raw["methods"]["ddim"], **methods}
    del raw["comparison"]
    return parse_experiment(raw)


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_counted_is_what_a_training_takes(name, tmp_path):
    experiment = experiment_of(it={"method": name, **method_class(name).TINY})
    row = next(row for row in estimate(experiment, CPU, 0).rows if row.rule == "distil")
    method, teacher = experiment.methods["it"], tiny_denoiser()
    write_dataset(tmp_path / "data", tiny_splits(), parse_settings({"kind": "digits"}))
    given = load_split(tmp_path / "data", "train") if method.needs_data else None
    if (settings := method.pairs()) is not None:
        (tmp_path / "pairs").mkdir()
        with TrainingRun(tmp_path / "p", "k", 0, CPU) as run:
            generate_pairs(settings, teacher, (1, 8, 8), run, tmp_path / "pairs")
        given = Pairs(tmp_path / "pairs", teacher.conditions)
    with TrainingRun(tmp_path / "run", "k", 0, CPU) as run:
        method.distil(teacher, run, given)
        assert row.forward + row.trained == run.evaluations
    assert row.trained > 0


def test_the_teacher_and_the_sums_by_hand():
    raw = yaml.safe_load(TINY.read_text())
    experiment = parse_experiment(raw | {"train_seeds": [0, 1]})
    found = estimate(experiment, CPU, 0)
    rows = {(row.rule, row.variant): row for row in found.rows}
    assert rows["teacher", ""].trained == 8 * 16
    assert rows["teacher", ""].forward == 0
    assert rows["pairs", experiment.methods["knowledge"].pairs().name].forward == 24 * 4
    # Two training seeds; a step's student sees 16 + 20 pictures, 20 of them with a gradient, the teacher 20.
    assert rows["distil", "boot-euler"].trained + rows["distil", "boot-euler"].forward == 2 * 8 * (16 + 20 + 20)
    assert rows["sample", "ddim"].forward == 2 * 48 * (1 + 2 + 4)
    assert rows["sample", "boot-heun"].forward == 2 * 2 * 48
    row = rows["distil", "boot-heun"]
    assert row.passes == row.forward + 3 * row.trained
    assert found.hours_here(row) == pytest.approx(row.passes / found.rate / 3600)
    expected = row.passes * found.operations / (CARDS["A100"] * SHARE_OF_PEAK) / 3600
    assert found.hours_on("A100", row) == pytest.approx(expected)
    text = table(found)
    assert text.count("| distil |") == 4
    assert "| all |" in text


def test_operations_and_weights_are_the_real_networks():
    found = estimate(experiment_of(), CPU, 0)
    # The first convolution alone has 2 · 9 · C_in · C_out · H · W; the whole network many times that.
    assert found.operations > 10 * 2 * 9 * 1 * 16 * 8 * 8
    assert found.parameters == sum(weight.numel() for weight in tiny_denoiser().network.parameters())


def test_a_published_experiment_is_estimated_without_its_data(monkeypatch):
    monkeypatch.setattr("suite.estimate._rate", lambda *_: 1.0)
    found = estimate(parse_experiment(yaml.safe_load((CONFIG / "cifar10.yaml").read_text())), CPU, 0)
    assert found.download == 170_052_171
    text = table(found)
    assert "| EDM's teacher (DDPM++, 200 M pictures) | 384 | V100 (about 2 days on 8) | EDM, README |" in text
    assert "DDPM, appendix B †" in text
    assert "9,984" not in text, "of another data set"
    rows = {(row.rule, row.variant): row for row in found.rows}
    assert rows["teacher", ""].trained == 800_000 * 128
    # 13 halvings of 50,000 steps, the last two twice as long: two evaluations of the teacher, one of the student.
    progressive = rows["distil", "progressive"]
    assert progressive.trained == 15 * 50_000 * 128
    assert progressive.forward == 2 * progressive.trained
