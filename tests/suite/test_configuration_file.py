"""Configuration files as texts: what Snakemake's own reading passes over, and where what is wrong stands."""

import pytest
from repository import ROOT

from diffusion.runtime.errors import UserError
from suite.configuration.file import ConfigurationFiles
from suite.jobs.estimating import Check

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
        ("a:\n  b:1\n  c: 2\n", "3:4", "the line above for a colon without a space behind it"),
        ("a:\n\tb: 1\n", "2:1", "; write spaces in place of the tab."),
        ("a: @b\n", "1:4", "; a text that begins so needs quotes."),
        ("a: [*]\n", "1:6", "; a text that begins with * or & needs quotes."),
        ("a: 'b\nc: 1\n", "3:1", "a quoted scalar that begins in line 1."),
        ("a:\u00a01\nb: 2\n", "2:2", "there is U+00A0 (NO-BREAK SPACE), which only looks like a plain mark"),
        ("{a: 1,\u00a0b: 2}\n", "1:7", "found a key with U+00A0 (NO-BREAK SPACE)"),
        ("a: {“b”: 2}\n", "1:5", "a.“b”: found a key with U+201C (LEFT DOUBLE QUOTATION MARK), U+201D"),
        ("a: &x {b: {c: *x}}\n", "1:4", "this block is an alias for itself; write it out"),
        ("a: {<<: 3}\n", "1:9", "is not YAML: expected a mapping or list of mappings for merging"),
        ("a: !include b.yaml\n", "1:4", "could not determine a constructor for the tag '!include'"),
        ("a: {b: 2024-13-45}\n", "1:8", "a.b: found 2024-13-45, which YAML cannot read (month must be in 1..12)"),
        ("404 page not found\n", None, "holds no block of keys"),
        ("a: 1\n".encode("utf-16"), None, "byte 0 is no UTF-8 text"),
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


def assert_each_is_told_once(found, file, expected):
    """Every line that is expected, by its beginning, and no other."""
    assert len(found) == len(expected), "\n".join(found)
    for beginning in expected:
        assert sum(line.startswith(f"{file}:{beginning}") for line in found) == 1, f"{beginning}\n" + "\n".join(found)


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
        "a: &x {b: 1}\nd: {<<: [*x, {c: 2}]}\ne: *x\n",
        "%YAML 1.1\n---\na: !!python/tuple [1, 2]\n...\n",
        "a: “b” # “c”\r\n",
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
    assert_each_is_told_once(found, file, expected)


def test_what_is_right_of_a_broken_block_is_checked_in_the_same_turn(tmp_path):
    """Against whatever else is right, of other blocks as well."""
    file = tmp_path / "mine.yaml"
    text = (
        "experiment: x\n"
        "data: {kind: digits}\n"
        "teacher:\n"
        "  network: {block_out_channels: [16, 16], norm_num_groups: 8, attention_resolutions: [16]}\n"
        "  schedule: {num_timesteps: 3}\n"
        "  training: {steps: 10k, warmup_steps: 50}\n"
        "methods:\n"
        "  ddim: {method: ddim, num_inference_steps: [1, 4], delta: 1}\n"
        "  boot: {method: boot, delta: 2, solvr: heun}\n"
        "comparison:\n"
        "  few: {boot: {stepz: 5}, progresive: {}}\n"
        "  a b: {boot: {}}\n"
        "evaluation:\n"
        "  num_samples: many\n"
        "  weights: {vgg: x, inception: nowhere}\n"
        "  protocols: {a: {library: cleanfid}, b: {num_samples: 5000}, c: {reference: nowhere.npz}}\n"
    )
    found = problems(file, text, lambda paths: ConfigurationFiles(paths).parse(_loaded(file)))
    expected = [
        "4:3: teacher.network: attention_resolutions: 16 is not one of",
        "6:14: teacher.training.steps: found '10k', expected a whole number.",
        "8:24: methods.ddim.num_inference_steps: found 4, expected at most the teacher's num_timesteps (3)",
        "8:53: methods.ddim.delta: unknown key",
        "9:24: methods.boot.delta: found 2.0, expected less than the teacher's whole interval",
        "9:34: methods.boot.solvr: unknown key",
        "11:9: comparison.few.boot: methods.boot-few.stepz: unknown key",
        "11:27: comparison.few.progresive: found 'progresive', expected a variant under methods",
        "10:1: comparison: found the budget 'a b'",
        "14:3: evaluation.num_samples: found 'many', expected a whole number.",
        "15:13: evaluation.weights.vgg: found 'vgg', expected 'inception', ",
        "15:21: evaluation.weights.inception: found 'nowhere', expected an existing file.",
        "16:19: evaluation.protocols.a.library: found 'cleanfid'",
        "16:67: evaluation.protocols.c.reference: found 'nowhere.npz'",
    ]
    assert_each_is_told_once(found, file, expected)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("methods: [{method: boot}]\nablation: {base: boot, axes: {a: [{delta: 0.1}]}}", "methods: found"),
        ("methods: {ddim: {method: ddim, num_inference_steps: 5}}", "methods.ddim.num_inference_steps: found 5"),
        ("evaluation:", "evaluation: found null, expected a block of keys."),
        ("evaluation: {teacher: {nfe: few}}", "evaluation.teacher.nfe: found 'few'"),
        ("evaluation: {num_samples: 5k, protocols: {a: {num_samples: 5000}}}", "evaluation.num_samples: found '5k'"),
        ("evaluation: {features: vit, weights: {inception: setup}}", "evaluation.features: found 'vit'"),
        ("ablation: {base: bot, axes: {a: [{delta: 0.1}]}}", "ablation.base: found 'bot', expected a variant"),
        ("comparison: {boot: {}}", "comparison.boot: found no variant, expected a budget's name"),
        ("comparison: {time: {boot: {delta: small}}}", "comparison.time.boot: methods.boot-time.delta: found 'small'"),
    ],
)
def test_one_mistake_is_one_line(tmp_path, block, said):
    """Of the defaults that stand in for what is wrong nothing is said."""
    file = tmp_path / "mine.yaml"
    (tmp_path / "setup").touch()
    text = GOOD + block.replace(": setup", f": {tmp_path / 'setup'}") + "\n"
    (problem,) = problems(file, text, lambda paths: ConfigurationFiles(paths).parse(_loaded(file)))
    assert said in problem


def test_what_is_missing_altogether_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    found = problems(file, "experiment: x\n", lambda paths: ConfigurationFiles(paths).parse(_loaded(file)))
    assert found == [f"{file}: {key}: missing; expected a value." for key in ("data", "teacher")]


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
    Check(files=[ROOT / "config/digits.yaml"]).run()
    assert capsys.readouterr().out.endswith("can be used. Variants: boot-heun, ddim, progressive.\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"broken\.yaml:2:1: is not YAML"):
        Check(files=[tmp_path / "broken.yaml"]).run()
