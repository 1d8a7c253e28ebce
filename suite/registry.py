"""The methods of the suite, found by scanning ``boot/`` and ``baselines/``."""

import ast
import functools
import importlib
from pathlib import Path

from diffusion.errors import UserError
from diffusion.method import Method, TeacherSampler

PACKAGES = ("boot", "baselines")
_BASES = frozenset(base.__name__ for base in (Method, TeacherSampler))


@functools.cache
def method_modules() -> dict[str, str]:
    """Name of each method and the module that holds it, sorted by name.

    The files are parsed, not imported: listing the methods costs nothing, and a method's imports are paid for only
    where it is used. A method is a class with the base ``Method`` or ``TeacherSampler``, by that name, and an attribute
    ``name = "…"``.
    """
    found = {}
    for package in PACKAGES:
        folder = Path(importlib.import_module(package).__path__[0])
        for file in sorted(folder.glob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8"), filename=str(file)).body:
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(base, ast.Name) and base.id in _BASES for base in node.bases
                ):
                    found[_declared_name(node, file)] = f"{package}.{file.stem}"
    return dict(sorted(found.items()))


def _declared_name(node: ast.ClassDef, file: Path) -> str:
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "name" for target in statement.targets)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ):
            return statement.value.value
    raise UserError(f'{file}: the method {node.name} has no attribute name = "…"; expected one, for the YAML.')


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no such method.
    """
    modules = method_modules()
    if name not in modules:
        raise UserError(f"found method {name!r}, expected one of: {', '.join(modules)}.")
    module = importlib.import_module(modules[name])
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__dict__.get("name") == name:
            return value
    raise UserError(f"{modules[name]}: holds no method named {name!r}.")


def method_file(name: str) -> Path:
    """The source file of a method, so that the workflow reruns what depends on it."""
    package, module = method_modules()[name].split(".")
    return Path(importlib.import_module(package).__path__[0]) / f"{module}.py"
