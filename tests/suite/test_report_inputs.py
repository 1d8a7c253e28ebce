"""What the report is told of the data."""

import pytest
from tiny import stored_data

from diffusion.runtime.files import read_json
from suite.jobs.report import _data_facts


@pytest.mark.parametrize(("told_texts", "words"), [(False, "class"), (True, "caption")])
def test_classes_that_are_captions_are_called_so(tmp_path, told_texts, words):
    stored_data(tmp_path / "data")
    manifest = read_json(tmp_path / "data/manifest.json")
    facts = _data_facts(manifest, told_texts)
    assert facts["captions" if told_texts else "class_names"] == ["even", "odd"]
    assert facts["splits"]["train"][f"per_{words}"] == manifest["splits"]["train"]["per_class"]
    assert ("class_names" in facts) is not told_texts
    assert not any("shards" in part for part in facts["splits"].values())
    assert facts["source"] == manifest["source"]
