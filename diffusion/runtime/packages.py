"""Which packages are installed."""

import importlib.metadata
import importlib.util

from diffusion.runtime.errors import UserError


def require(name: str, wanted_by: str) -> None:
    """Refuses to go on without a package that few want.

    Args:
        wanted_by: the key and its value.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        # Without what it asks for: a torch of its own choice would come in place of the pinned one.
        raise UserError(f"{wanted_by} needs the package {name}, which is not installed: pip install --no-deps {name}")


def version_of(name: str) -> str:
    """The version of an installed distribution, "not installed" where Python finds no metadata of that name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
