"""Where prompts come from, and the lists that they become."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import problems_of
from diffusion.teachers.prompt_sources import PromptSettings, PromptSource, TokenLimit, prompt_lists

WORDS = TokenLimit(3, lambda texts: [len(text.split()) for text in texts])
GRAMMAR = {
    "kind": "grammar",
    "templates": ["a {colour} {animal}", "{animal} on {animal}"],
    "slots": {"colour": ["red", "green"], "animal": ["fox", "owl", "cat"]},
}


def source(**keys):
    return PromptSource.model_validate(keys)


def written(folder: Path, content: str | bytes, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lists(train, limit=None, **keys):
    return prompt_lists(PromptSettings.model_validate({"train": train, **keys}), limit)


def trained(train, limit=None, **keys):
    """The training prompts where evaluation has two of its own."""
    own = {"kind": "grammar", "templates": ["{x} alone"], "slots": {"x": ["one", "two"]}}
    return lists(train, limit, **{"evaluation": own} | keys).train


def parquet(folder, **columns):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "prompts.parquet")
    return str(folder / "prompts.parquet")


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_file_has_one_prompt_a_line(tmp_path):
    """Normalised, each once, in its order; a byte-order mark and Windows' line ends are no part of them."""
    path = written(tmp_path, "\ufeffa  red fox\r\nse\u0301ance \r\n\ta red fox\r\nan owl\r\n")
    assert trained({"kind": "file", "path": path}) == ["a red fox", "s\u00e9ance", "an owl"]


def test_other_line_separators_of_unicode_are_within_a_prompt(tmp_path):
    path = written(tmp_path, "one\u2028fox\ntwo\n")
    assert trained({"kind": "file", "path": path}) == ["one fox", "two"]


def test_partiprompts_keep_their_quotation_marks(tmp_path):
    """As the published table has them: nothing is quoted, and a prompt may begin with a mark."""
    rows = ["Prompt\tCategory\tChallenge\tNote", '"G I G G L E" in paint\tWriting\tBasic\t', 'a sign "no"\tWords\tx\ty']
    path = written(tmp_path, "\n".join(rows) + "\n", "parti.tsv")
    assert trained({"kind": "partiprompts", "path": path}) == ['"G I G G L E" in paint', 'a sign "no"']


def test_a_column_of_a_parquet_file(tmp_path):
    path = parquet(tmp_path, text=["a fox", "an  owl", "a fox"], url=["x", "y", "z"])
    assert trained({"kind": "parquet", "path": path, "column": "text"}) == ["a fox", "an owl"]


def test_a_grammar_has_all_combinations_of_its_words():
    """The last slot changes fastest; one that stands twice has one word."""
    expected = [f"a {colour} {animal}" for colour in ("red", "green") for animal in ("fox", "owl", "cat")]
    assert trained(GRAMMAR) == [*expected, "fox on fox", "owl on owl", "cat on cat"]
    assert source(**GRAMMAR).combinations == 9


def test_a_sample_of_a_grammar_is_of_its_combinations_and_of_its_seed():
    everything = list(source(**GRAMMAR).sentences())
    drawn = [list(source(**GRAMMAR, sample=5, seed=seed).sentences()) for seed in (0, 0, 1)]
    assert all(len(set(one)) == 5 and set(one) <= set(everything) for one in drawn)
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(source(**GRAMMAR, sample=9).sentences()) == set(everything)


def test_a_sample_of_a_grammar_that_cannot_be_written_out():
    slots = {f"s{number}": [str(word) for word in range(100)] for number in range(8)}
    big = {"kind": "grammar", "templates": [" ".join(f"{{{slot}}}" for slot in slots)], "slots": slots}
    drawn = list(source(**big, sample=1000).sentences())
    assert len(set(drawn)) == 1000
    first = [int(sentence.split()[0]) for sentence in drawn]
    assert sum(first) / 1000 == pytest.approx(49.5, abs=4)  # over four standard errors
    with pytest.raises(ValidationError, match="sample: not given, and the grammar has 10000000000000000 combinations"):
        source(**big)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_prompts_that_are_too_long_are_left_out_and_counted():
    found = lists(
        GRAMMAR | {"templates": ["a {colour} {animal}", "{animal} on a {colour} {animal}"]}, WORDS, share_held_out=0.5
    )
    assert all(len(text.split()) == 3 for text in [*found.train, *found.evaluation])
    assert {key: found.counts["train"][key] for key in ("given", "twice", "too_long")} == {
        "given": 12,
        "twice": 0,
        "too_long": 6,
    }
    kept, held_out = found.counts["train"]["kept"], found.counts["train"]["held_out"]
    assert (kept, held_out) == (len(found.train), len(found.evaluation))
    assert kept + held_out == 6


def test_the_split_is_by_the_hash_of_the_text(tmp_path):
    """A prompt's part does not depend on the others; the share is kept within four standard deviations."""
    texts = [f"prompt {number}" for number in range(2000)]
    few, many = (lists({"kind": "file", "path": written(tmp_path, "\n".join(texts[:n]))}) for n in (1000, 2000))
    held_out = [text for text in texts if int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12 < 0.1]
    assert set(many.evaluation) == set(held_out)
    assert sorted([*many.train, *many.evaluation]) == sorted(texts)
    assert set(few.evaluation) == set(held_out) & set(texts[:1000])
    assert len(held_out) == pytest.approx(200, abs=54)
    assert many.evaluation == sorted(held_out, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def test_prompts_of_evaluation_are_left_out_of_training(tmp_path):
    train = written(tmp_path, "one\ntwo\nthr\u00e9e\nfour\n", "train.txt")
    evaluation = written(tmp_path, "thre\u0301e\nfive\n", "evaluation.txt")
    found = lists({"kind": "file", "path": train}, evaluation={"kind": "file", "path": evaluation})
    assert found.train == ["one", "two", "four"]
    assert sorted(found.evaluation) == ["five", "thr\u00e9e"]
    assert found.counts["train"]["in_evaluation"] == 1


def test_captions_are_no_list():
    assert prompt_lists(PromptSettings()) == (None, None, {})
    found = lists(GRAMMAR, evaluation={"kind": "captions"})
    assert (len(found.train), found.evaluation) == (9, None)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "empty": ("a\n\nb\n", r"prompts\.train: line 2 of .*prompts\.txt is empty"),
    "blank": ("a\n \t\nb\n", r"prompts\.train: line 2 of .* is empty"),
    "not UTF-8": ("caf\u00e9\n".encode("latin-1"), r"prompts\.train\.path: byte 3 of .* is no UTF-8 text"),
    "nothing": ("", r"prompts\.train: no prompt is left, expected two at least \(given 0, twice 0"),
    "one": ("a fox\na  fox\n", r"prompts\.train: one prompt is left, expected two at least \(given 2, twice 1"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_list_of_prompts_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        trained({"kind": "file", "path": written(tmp_path, content)})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"prompts\.evaluation\.path: found .*none\.txt', expected an existing file"):
        lists(GRAMMAR, evaluation={"kind": "file", "path": str(tmp_path / "none.txt")})


def test_a_list_of_which_nothing_is_held_out_is_refused(tmp_path):
    path = written(tmp_path, "a fox\nan owl\n")
    with pytest.raises(UserError, match=r"another prompts\.share_held_out than 0\.001, or prompts\.evaluation"):
        lists({"kind": "file", "path": path}, share_held_out=0.001)


def test_long_prompts_are_refused_where_so_wanted():
    with pytest.raises(
        UserError, match=r"prompts\.train: found 6 prompts of more than 3 tokens, the first has 4: 'fox"
    ):
        lists(GRAMMAR | {"templates": ["{animal} and a {colour}"]}, WORDS, too_long="refuse")


def test_a_list_of_long_prompts_alone_is_refused():
    with pytest.raises(UserError, match=r"no prompt is left.*too long 6"):
        lists(GRAMMAR | {"templates": ["{animal} and a {colour}"]}, WORDS)


def test_a_long_negative_prompt_is_refused():
    with pytest.raises(
        UserError, match=r"prompts\.negative: found 4 tokens, expected at most 3: 'blurred and too dark'"
    ):
        lists({"kind": "captions"}, WORDS, negative="blurred and  too dark")


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "a column": ("Prompt\tCategory\tNote\na\tb\tc\n", "has no column Challenge"),
        "a cell": ("Prompt\tCategory\tChallenge\tNote\na\tb\tc\n", "line 2 of .* has 3 columns"),
        "all": ("", "has no column Prompt"),
    }.values(),
)
def test_another_table_than_partiprompts_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        trained({"kind": "partiprompts", "path": written(tmp_path, content)})


@pytest.mark.parametrize(
    ("columns", "message"),
    {
        "a column": ({"caption": ["a"]}, r"prompts\.train\.column: found 'text', expected a column of .*: caption"),
        "texts": ({"text": [1, 2]}, r"prompts\.train\.column: found 1 in row 0 of text, expected texts"),
        "a text": ({"text": ["a", None]}, r"prompts\.train: row 1 of .* is empty"),
    }.values(),
)
def test_another_parquet_file_is_refused(tmp_path, columns, message):
    path = parquet(tmp_path, **columns)
    with pytest.raises(UserError, match=message):
        trained({"kind": "parquet", "path": path, "column": "text"})


def test_what_is_no_parquet_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    with pytest.raises(UserError, match=r"prompts\.train\.path: .* cannot be read as parquet"):
        trained({"kind": "parquet", "path": written(tmp_path, "a\nb\n"), "column": "text"})


def test_parquet_without_its_library_is_refused_with_the_command(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    with pytest.raises(UserError, match=r"prompts\.train\.kind: 'parquet' needs .*: pip install pyarrow"):
        trained({"kind": "parquet", "path": written(tmp_path, ""), "column": "text"})


WRONG = {
    "kind": ({"kind": "csv"}, "train.kind: found 'csv', expected 'captions', 'file'"),
    "no path": ({"kind": "file"}, "train: path: missing; expected one with kind file"),
    "no column": ({"kind": "parquet", "path": "x"}, "train: column: missing"),
    "another's key": ({"kind": "file", "path": "x", "column": "y"}, "train: column: given with kind file"),
    "unknown slot": (GRAMMAR | {"templates": ["a {size} {animal}"]}, "found the slot {size} in"),
    "unused slot": (GRAMMAR | {"templates": ["an {animal}"]}, "slots.colour: stands in no template"),
    "no words": (GRAMMAR | {"slots": {"colour": [], "animal": ["fox"]}}, "slots.colour: found [], expected a list"),
    "an empty word": (GRAMMAR | {"slots": {"colour": [" "], "animal": ["fox"]}}, "slots.colour: found [' ']"),
    "a word that YAML reads": (GRAMMAR | {"slots": {"colour": [True], "animal": ["x"]}}, "train.slots.colour.0: found"),
    "a brace": (GRAMMAR | {"templates": ["a {colour {animal}"]}, "train: templates.0: "),
    "a form": (GRAMMAR | {"templates": ["{colour:>9} {animal}"]}, "train: templates.0: found the slot {colour}"),
    "too many": (GRAMMAR | {"sample": 10}, "sample: found 10, expected at most the grammar's 9"),
    "no template": ({"kind": "grammar", "slots": {"a": ["b"]}}, "train: templates: missing"),
}


@pytest.mark.parametrize(("train", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_source_is_refused_with_its_key(train, message):
    with pytest.raises(ValidationError) as caught:
        PromptSettings.model_validate({"train": train})
    assert message in "\n".join(problems_of(caught.value, PromptSettings))


def test_captions_are_always_cached():
    with pytest.raises(ValidationError, match="cache: found false, expected true"):
        PromptSettings.model_validate({"cache": False})


def test_settings_are_read_again_from_a_record():
    settings = PromptSettings.model_validate(
        {"train": GRAMMAR, "evaluation": {"kind": "captions"}, "negative": " a  b"}
    )
    assert PromptSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert settings.negative == "a b"
