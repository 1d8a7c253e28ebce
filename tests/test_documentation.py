"""What the documentation says in YAML is what the suite takes."""

import re
from pathlib import Path

import yaml

from suite.registry import method_class, method_modules

DOCUMENT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def test_every_published_block_is_a_methods_settings():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S)]
    found = {name: block for blocks_of in blocks for name, block in blocks_of.items() if "method" in block}
    assert {block["method"] for block in found.values()} == set(method_modules())
    for block in found.values():
        settings = method_class(block["method"]).Settings.model_validate(block)
        assert settings.model_dump(mode="json", include=block.keys()).keys() == block.keys()


def test_every_method_stands_in_the_table():
    rows = re.findall(r"^\| .* \| `(\w+)` \|", DOCUMENT, re.M)
    assert sorted(rows) == sorted(method_modules())
