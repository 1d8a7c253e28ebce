"""The methods of the suite, found by scanning ``boot/`` and ``baselines/``."""

import ast
import functools
import importlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.distillation.method import Method
from diffusion.runtime.errors import UserError, first_line

PACKAGES = ("boot", "baselines")
# What the report calls rows that are no method's; variants and methods cannot be called that.
RESERVED = ("real", "external", "teacher")
# By name: to list the methods, or to sample, no training loop is imported.
_ROOM = "diffusion.distillation"
_BASES = ("method.Method", "sampler.TeacherSampler", "distiller.Distiller", "one_step.OneStep", "staged.Staged")
_ROOTS = frozenset(f"{_ROOM}.{base}" for base in _BASES)


class _Class(NamedTuple):
    """A class as its file has it. ``name`` is what it declares as ``name = …``: None if nothing, "" if no text."""

    title: str
    module: str
    bases: tuple[str, ...]
    name: str | None


@dataclass
class _Module:
    """A file as its syntax tree has it.

    Attributes:
        names: what a name of the module stands for, as a dotted name, where it was imported or is another's alias.
        stars: modules that all names were imported from.
        imports: dotted names of all that is imported, anywhere in the file.
        broken: why the file cannot be read.
    """

    file: Path
    classes: dict[str, _Class] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    broken: str = ""

    def __str__(self) -> str:
        return f"{self.file.parent.name}/{self.file.name}"


class _Scan:
    """All files of the packages. They are parsed, not imported: listing the methods costs nothing, a method's imports
    are paid for only where it is used, and a file that cannot be read stops nobody who uses another."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        for package in PACKAGES:
            folder = Path(importlib.import_module(package).__path__[0])
            for file in sorted(folder.glob("[!.]*.py")):
                name = package if file.stem == "__init__" else f"{package}.{file.stem}"
                self.modules[name] = _read(file, package, name)
        self.methods: dict[str, list[_Class]] = {}
        for one in (one for module in self.modules.values() for one in module.classes.values()):
            if one.name and one.name not in RESERVED and self._is_method(one):
                self.methods.setdefault(one.name, []).append(one)

    def resolve(self, dotted: str, seen: frozenset[str] = frozenset()) -> str | None:
        """The dotted name under which a class is defined; None for what is no class of the packages, nor a root."""
        if dotted in _ROOTS:
            return dotted
        module = dotted
        while module and module not in self.modules:
            module = module.rpartition(".")[0]
        if not module or module == dotted or dotted in seen:
            return None
        about, (first, *rest) = self.modules[module], dotted[len(module) + 1 :].split(".")
        if first in about.classes and not rest:
            return dotted
        known = [about.names[first]] if first in about.names else [f"{star}.{first}" for star in about.stars]
        found = (self.resolve(".".join([name, *rest]), seen | {dotted}) for name in known)
        return next(filter(None, found), None)

    def _is_method(self, one: _Class, seen: frozenset[str] = frozenset()) -> bool:
        for base in filter(None, map(self.resolve, one.bases)):
            if base in _ROOTS:
                return True
            module, _, title = base.rpartition(".")
            if base not in seen and self._is_method(self.modules[module].classes[title], seen | {base}):
                return True
        return False

    def without_method(self, asked: Any) -> str:
        """Which files hold no method and why, as further clauses; not of files that are meant to help others."""
        made = {one.module for classes in self.methods.values() for one in classes}
        helpers = {name for module in self.modules.values() for name in module.imports}
        clauses = []
        for name, module in self.modules.items():
            if name in made:
                continue
            classes = module.classes.values()
            meant = any(one.name is not None or self._is_method(one) for one in classes) or module.file.stem == asked
            reasons = [f"its class {one.title} {self._why_none(one)}" for one in classes]
            if module.broken:
                clauses.append(f"; {module} cannot be read: {module.broken}")
            elif meant or (reasons and name not in helpers and not _is_of_boot(name)):
                clauses.append(f"; {module} holds no method: {', '.join(reasons) or 'it has no class'}")
        return "".join(clauses)

    def _why_none(self, one: _Class) -> str:
        if not self._is_method(one):
            return "has no base that is a method"
        if one.name in RESERVED:
            return f'has name = "{one.name}", which means something else'
        return 'has no name = "…"' if one.name is None else "has a name that is not a text in quotes"


def _is_of_boot(module: str) -> bool:
    return module.partition(".")[0] == "boot"


def _read(file: Path, package: str, name: str) -> _Module:
    module = _Module(file)
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        module.broken = f"line {error.lineno}: {error.msg}"
        return module
    except (OSError, ValueError) as error:
        module.broken = first_line(error)
        return module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package_of_it = alias.name.partition(".")[0]  # which `import a.b` binds
                module.imports.add(alias.name)
                module.names[alias.asname or package_of_it] = alias.name if alias.asname else package_of_it
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            for alias in node.names:
                module.imports |= {source, f"{source}.{alias.name}"}
                if alias.name == "*":
                    module.stars.append(source)
                else:
                    module.names[alias.asname or alias.name] = f"{source}.{alias.name}"
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ClassDef):
            bases = filter(None, map(_dotted, statement.bases))
            # A class may be called as the base that it was imported under.
            within = [module.names.get(base, base) if base == statement.name else f"{name}.{base}" for base in bases]
            module.classes[statement.name] = _Class(statement.name, name, tuple(within), _declared_name(statement))
        elif isinstance(statement, ast.Assign) and (base := _dotted(statement.value)):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    module.names[target.id] = f"{name}.{base}"
    return module


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """The statements of a module, those under ``if`` and ``try`` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(statement, part, ()))


def _dotted(node: ast.AST) -> str:
    """``a.b.C`` of an expression, of ``a.b.C[…]`` too; empty where it is something else."""
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    if isinstance(node, ast.Attribute) and (value := _dotted(node.value)):
        return f"{value}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _declared_name(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        if any(isinstance(target, ast.Name) and target.id == "name" for target in targets):
            value = statement.value  # type: ignore[attr-defined]  # of an assignment
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return None


_scan = functools.cache(_Scan)


def method_modules() -> dict[str, str]:
    """Name of each method and the module that holds it, sorted by name.

    A method is a class with a ``name = "…"`` of its own and a base that is ``OneStep``, ``Staged``, ``Distiller``,
    ``TeacherSampler``, ``Method`` or, however far up, a class of ``boot/`` or ``baselines/`` with such a base. A base
    without a name is none itself.
    """
    return {name: classes[0].module for name, classes in sorted(_scan().methods.items())}


def method_class(name: Any) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no such method, several of that name, or one that cannot be imported or lacks something.
    """
    scan = _scan()
    found = scan.methods.get(name, []) if isinstance(name, str) else []
    if not found:
        raise UserError(
            f"found {name!r}, expected one of: {', '.join(method_modules())}{scan.without_method(str(name))}."
        )
    if len(found) > 1:
        where = " and ".join(f"{scan.modules[one.module]} (class {one.title})" for one in found)
        raise UserError(f"found {name!r}, which is the name of several methods, in {where}; rename all but one.")
    (one,) = found
    file = scan.modules[one.module]
    try:
        method = getattr(importlib.import_module(one.module), one.title)
    except Exception as error:  # whatever the user's file raises
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.file)
        ]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(
            f"found {name!r}, but {file} cannot be imported: {type(error).__name__}{where}: {first_line(error)}."
        ) from error
    if hasattr(method, "distil") and not method.trains:  # it would be sampled as if it were the teacher
        raise UserError(
            f"found {name!r}, but its class {one.title} in {file} trains, and its base is no Distiller; derive it from "
            f"diffusion.distillation.distiller.Distiller or .one_step.OneStep."
        )
    lacking = [part for part in ("title", "Settings") if not hasattr(method, part)]
    if lacking := sorted([*lacking, *method.__abstractmethods__]):
        raise UserError(f"found {name!r}, but its class {one.title} in {file} lacks: {', '.join(lacking)}.")
    return method
