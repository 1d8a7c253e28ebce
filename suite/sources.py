"""The source files that a job is made of: its module and all that this imports, however deep (HOUSE: never by hand)."""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def closure(*modules: str) -> frozenset[str]:
    """The modules of this checkout that ``modules`` import, imports inside functions and the packages above included.

    What is imported for types alone (``if TYPE_CHECKING:``) is none, nor is what is imported by a name in a variable:
    callers name that themselves.

    Args:
        modules: dotted names.

    Raises:
        ModuleNotFoundError: no such module in this checkout.
    """
    found: set[str] = set()
    waiting = list(modules)
    for name in modules:
        if file_of(name) is None:
            raise ModuleNotFoundError(f"{name}: no such module in {CHECKOUT}")
    while waiting:
        name = waiting.pop()
        if name in found or file_of(name) is None:
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0], *_imported(name)]
    return frozenset(found)


def files(modules: Iterable[str]) -> list[str]:
    """Their files, relative to the checkout, sorted."""
    return sorted(str(file.relative_to(CHECKOUT)) for name in modules if (file := file_of(name)))


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
