"""The source files that a job's result depends on: what its stage imports, however deep; never a list by hand."""

import ast
import functools
import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from diffusion.runtime.files import canonical_json, sha256_file
from suite.reruns import CHECKOUT

# What decides where, when and by whom a result is made, and what is noted of it, but not what is in it. It computes
# nothing (tests/suite/test_sources.py); an edit of it makes nothing again.
FRAME = frozenset(f"suite.{name}" for name in ("job", "provenance", "reruns", "sources", "trackers"))


def closure(*modules: str, shallow: Collection[str] = ()) -> frozenset[str]:
    """The modules of this checkout that ``modules`` import: imports inside functions, and packages above, included.

    Imports for types alone (``if TYPE_CHECKING:``) are none, and neither are those of a name in a variable: callers
    name these modules themselves.

    Args:
        modules: dotted names.
        shallow: modules whose own imports do not count.

    Raises:
        ModuleNotFoundError: one of ``modules`` is not of this checkout.
    """
    for name in modules:
        if file_of(name) is None:
            raise ModuleNotFoundError(f"{name}: no such module in {CHECKOUT}")
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name in FRAME or file_of(name) is None:
            continue
        found.add(name)
        waiting.append(name.rpartition(".")[0])
        if name not in shallow:
            waiting += _imported(name)
    return frozenset(found)


def files(modules: Iterable[str]) -> list[str]:
    """Their files, relative to the checkout, sorted."""
    return sorted(str(file.relative_to(CHECKOUT)) for name in modules if (file := file_of(name)))


def state_key(identity: Any, *modules: str) -> str:
    """Names what an interrupted job has left: by all that decides its result, the code of ``modules`` included, so that
    a change starts afresh instead of going on."""
    hashes = [sha256_file(CHECKOUT / file) for file in files(closure(*modules))]
    return hashlib.sha256(canonical_json([identity, hashes]).encode()).hexdigest()[:16]


@functools.cache
def file_of(module: str) -> Path | None:
    """The file of a module or package of this checkout; None for any other."""
    path = CHECKOUT.joinpath(*module.split(".")) if module else CHECKOUT / "."
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if module and file.is_file():
            return file
    return None


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    file = file_of(module)
    assert file is not None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []

    class Imports(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.extend(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names.extend([source, *(f"{source}.{alias.name}" for alias in node.names)])

    Imports().visit(ast.parse(file.read_bytes(), filename=str(file)))
    return tuple(dict.fromkeys(names))
