"""The JSON beside a result, also on a machine that lacks a package."""

import importlib.metadata

from diffusion.packages import version_of
from suite.provenance import versions


def test_a_package_without_metadata_is_said_not_to_be_installed(monkeypatch):
    """As one that lies on PYTHONPATH alone."""
    known = versions()
    assert known["torch"] == importlib.metadata.version("torch")
    found = importlib.metadata.version

    def version(name):
        if name == "snakemake":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions() == known | {"snakemake": "not installed"}
    assert version_of("no such package") == "not installed"
