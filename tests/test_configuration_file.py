"""Configuration files as texts: what Snakemake's own reading passes over, and where what is wrong stands."""

import argparse
from pathlib import Path

import pytest

from diffusion.runtime.errors import UserError
from suite.configuration_file import ConfigurationFiles
from suite.stages.estimating import check

ROOT = Path(__file__).parents[1]
GOOD = "experiment: x\ndata: {kind: digits}\nteacher:\n  training: {steps: 8, batch_size: 16}\n"


def problems(path, text, read=ConfigurationFiles):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read([path])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "a: stands in line 1 too"),
        ("a:\n  b: {c: 1, c: 2}\n", "2:13", "a.b.c: stands in line 2 too"),
        ("a:\n- {b: 1}\n- b: 1\n  b: 2\n", "4:3", "a.1.b: stands in line 3 too"),
        ("a: 1\n'a': 2\n", "2:1", "a: stands in line 1 too"),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2, b: 3}\n", "2:19", "c.b: stands in line 2 too"),
        ("a: {b: 010}\n", "1:8", "a.b: found 010, which YAML reads as 8"),
        ("a: [0, -007]\n", "1:8", "a.1: found -007, which YAML reads as -7"),
        ("a: 1:30\n", "1:4", "a: found 1:30, which YAML reads as 90"),
        ("a: {no: 1}\n", "1:5", "a: found a key that YAML reads as False; put it in quotes"),
        ("1: 2\n", "1:1", "a key: found a key that YAML reads as 1; put it in quotes"),
        ("2024-01-01: 2\n", "1:1", "found a key that YAML reads as datetime.date"),
        ("{[a]: 2}\n", "1:2", "found a key that YAML reads as 'a block'"),
        ("a: {b: 1\nc: 2\n", "2:2", "is not YAML: expected ',' or '}'"),
        ("a:\n\tb: 1\n", "2:1", "is not YAML: found character '\\t'"),
        ("a: b: c\n", "1:5", "is not YAML: mapping values are not allowed here"),
        ("a: 'b\nc: 1\n", "3:1", "is not YAML: found unexpected end of stream"),
        ("a: *b\n", "1:4", "is not YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "2:1", "is not YAML: but found another document"),
        ("a: 1\nb: \x07\n", "2", "is not YAML: the character '\\x07' cannot stand in it"),
        ("- a\n", None, "holds no block of keys"),
        ("", None, "holds no block of keys"),
        (b"a: \xe4\n", None, "byte 3 is no UTF-8 text"),
    ],
)
def test_every_mistake_is_named_with_its_place(tmp_path, text, place, said):
    file = tmp_path / "mine.yaml"
    (problem,) = problems(file, text)
    assert problem.startswith(f"{file}:{place}: " if place else f"{file}: ")
    assert said in problem


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read \(No such file or directory\)"):
        ConfigurationFiles([tmp_path / "nowhere.yaml"])


@pytest.mark.parametrize(
    "text",
    [
        *("a: 0\n", "a: 0.5\n", "a: 10\n", "a: -1\n", "a: 1.0e-3\n", "a: 0x10\n", "a: '010'\n", 'a: "1:30"\n'),
        "\ufeffa: 1\n",
        '{"a":\t1}',
        "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n",
    ],
)
def test_what_is_read_as_it_looks_is_taken(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    ConfigurationFiles([tmp_path / "mine.yaml"])


def test_the_files_of_the_repository_are_strict():
    files = [*ROOT.glob("config/*.yaml"), *ROOT.glob("tests/*.yaml")]
    assert files
    for file in files:
        ConfigurationFiles([file])


def test_all_problems_come_at_once_each_with_the_place_of_its_key(tmp_path):
    file = tmp_path / "mine.yaml"
    text = (
        "experiment: a/b\n"
        "data:\n  kind: digits\n  size: 3\n"
        "teacher:\n  training: {steps: 1e3, batch_size: 16}\n"
        "methods:\n  ddim: {method: ddim}\n  boot:\n    method: boot\n    solver: rk4\n"
        "  mine: [boot]\n  b0.5: {method: bot}\n"
        "evaluation: {seeds: 3}\n"
        "speed: {batch_sizes: [1, 0]}\n"
        "select: [ddim, bot]\n"
    )
    found = problems(file, text, lambda paths: ConfigurationFiles(paths).parse(_loaded(file)))
    expected = {
        "1:1: experiment: found 'a/b'",
        "4:3: data.size: unknown key; expected one of: flip, kind, test_size",
        "6:14: teacher.training.steps: found '1e3', expected a whole number; write 1000.",
        "11:5: methods.boot.solver: found 'rk4', expected 'euler'",
        '12:3: methods.mine: found ["boot"], expected a block of keys.',
        "13:10: methods.b0.5.method: found 'bot', expected one of: boot",
        "14:14: evaluation.seeds: found 3, expected a list such as [0, 1].",
        "15:9: speed.batch_sizes: found [1, 0], expected different numbers",
        "16:1: select: found 'bot', expected names under methods: ddim, boot, mine, b0.5.",
    }
    assert len(found) == len(expected), "\n".join(found)
    for beginning in expected:
        assert sum(line.startswith(f"{file}:{beginning}") for line in found) == 1, f"{beginning}\n" + "\n".join(found)


def _loaded(file):
    import yaml

    return yaml.safe_load(file.read_text())


def test_a_value_of_the_command_line_is_placed_there(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    raw = _loaded(tmp_path / "mine.yaml")
    raw["teacher"]["training"]["steps"] = "many"
    files = ConfigurationFiles([tmp_path / "mine.yaml"], {"teacher": {"training": {"steps": "many"}}})
    with pytest.raises(UserError, match=r"^--config: teacher\.training\.steps: found 'many'"):
        files.parse(raw)


def test_what_a_second_file_replaces_is_said(tmp_path):
    (tmp_path / "one.yaml").write_text(GOOD)
    (tmp_path / "two.yaml").write_text("teacher: {training: {steps: 9}}\nspeed: {seconds: 1}\n")
    raw = _loaded(tmp_path / "one.yaml")
    _, notices = ConfigurationFiles([tmp_path / "one.yaml", tmp_path / "two.yaml"]).parse(raw)
    assert notices == [f"{tmp_path / 'two.yaml'} replaces teacher.training.steps of what was read before it."]


def test_variants_that_are_not_selected_are_said():
    file = ROOT / "config/digits.yaml"
    experiment, notices = ConfigurationFiles([file]).parse(_loaded(file))
    assert notices == ["Not selected, and not run: boot-euler."]
    assert "boot-euler" not in experiment.methods


def test_the_command_says_that_a_file_can_be_used(capsys, tmp_path):
    check(argparse.Namespace(files=[ROOT / "config/digits.yaml"]))
    assert capsys.readouterr().out.endswith("can be used. Variants: boot-heun, ddim, progressive.\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"broken\.yaml:2:1: is not YAML"):
        check(argparse.Namespace(files=[tmp_path / "broken.yaml"]))
