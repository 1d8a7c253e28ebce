"""Which packages are installed."""

import importlib.metadata


def version_of(name: str) -> str:
    """The version of an installed distribution, "not installed" where Python finds no metadata of that name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
