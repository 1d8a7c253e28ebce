"""The strict reading of configuration files: what Snakemake, which reads them first, passes over without a word."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusion.runtime.errors import UserError, some_of
from suite.configuration.experiment import Experiment, parse_experiment

# By YAML 1.1, which Snakemake reads, 010 is 8 and 1:30 is 90.
_MISREAD = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
# Marks that look like others, and are not those that YAML means: what text processors and web pages put in.
_LOOK_ALIKE = re.compile("[\u00a0\u2000-\u200f\u2018-\u201f\u202f\u2060\u3000\ufeff\uff0c\uff1a]")
# What to look for where the parser says no more than what it cannot take.
_ADVICE = {
    "mapping values are not allowed here": "look here and in the line above for a colon without a space behind it, "
    "for wrong indentation, and for a text that needs quotes",
    "found character '\\t'": "write spaces in place of the tab",
    "found character": "a text that begins so needs quotes",
    "expected alphabetic or numeric character": "a text that begins with * or & needs quotes",
}
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class ConfigurationFiles:
    """The files of one experiment, checked as texts, and where each of their keys stands.

    Args:
        paths: in the order in which their keys replace one another.
        given: the keys of the command line (``--config``), which replace those of the files.

    Attributes:
        replaced: what a file replaces of another, a sentence each.

    Raises:
        UserError: listing, with file, line and column, what is not YAML, keys that stand twice in one block (YAML keeps
            the last without a word), and keys and numbers that YAML reads as something else than they look like.
    """

    def __init__(self, paths: Sequence[Path | str], given: Mapping[str, Any] | None = None) -> None:
        files = [_File(Path(path)) for path in paths]
        if problems := [problem for file in files for problem in file.problems]:
            raise UserError("\n".join(problems))
        self.replaced: list[str] = []
        self._places: dict[str, str] = {}
        # What is missing altogether has no place in them.
        self._whole = str(files[-1].path) if files else ""
        for file in files:
            if again := [key for key in file.values if key in self._places]:
                self.replaced.append(f"{file.path} replaces {some_of(again, 12)} of what was read before it.")
            self._places |= file.places
        self._places |= {key: "--config" for key in _values(given or {})}

    def parse(self, raw: Mapping[str, Any], look_at_files: bool = True) -> tuple[Experiment, list[str]]:
        """The checked experiment, and what a user should know of it before anything runs.

        Args:
            raw: what Snakemake has made of the files and the command line.
            look_at_files: as in :func:`suite.configuration.experiment.parse_experiment`.

        Raises:
            UserError: listing every problem behind the place of its key.
        """
        try:
            experiment = parse_experiment(raw, look_at_files)
        except UserError as error:
            raise UserError(self.located(str(error))) from error
        unselected = some_of(experiment.unselected)
        return experiment, [*self.replaced, *([f"Not selected, and not run: {unselected}."] if unselected else [])]

    def located(self, problems: str) -> str:
        """``problems``, each a line that begins with a key path, behind the places of these keys."""
        return "\n".join(map(self._located, problems.splitlines()))

    def _located(self, problem: str) -> str:
        key = re.sub(r"\[(\d+)\]", r".\1", problem.partition(": ")[0])
        # The key itself, or the block that lacks it. Names may hold dots, as `delta-0.5` does.
        while key and key not in self._places:
            key = key.rpartition(".")[0]
        place = self._places[key] if key else self._whole
        return f"{place}: {problem}" if place else problem


class _File:
    """One file: its ``problems``, the ``places`` of its keys ("file:line:column"), and those that hold ``values``.

    Keys are dotted; entries of lists go by their number.
    """

    def __init__(self, path: Path) -> None:
        # Snakemake gives whole paths.
        self.path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        self.problems: list[str] = []
        self.places: dict[str, str] = {}
        self.values: list[str] = []
        try:
            text = path.read_text(encoding="utf-8-sig")
            self._loader = yaml.FullLoader(text)  # as Snakemake
            root = self._loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                self.problems.append(f"{self.path}: holds no block of keys; expected experiment, data, teacher, ….")
            elif not self._within_itself(root, []):
                self._walk(root, "")
                if not self.problems:
                    self._loader.construct_document(root)  # which a tag that nobody knows stops
        except OSError as error:
            self.problems.append(f"{self.path}: cannot be read ({error.strerror}).")
        except UnicodeDecodeError as error:
            self.problems.append(
                f"{self.path}: byte {error.start} is no UTF-8 text ({error.reason}); save the file as UTF-8."
            )
        except yaml.MarkedYAMLError as error:
            if not _is_json(text):
                line, begun = error.problem_mark.line, error.context_mark
                within = f", {error.context}" if error.context else ""
                within += f" that begins in line {begun.line + 1}" if begun and begun.line != line else ""
                advice = next((f"; {what}" for start, what in _ADVICE.items() if error.problem.startswith(start)), "")
                advice += _look_alikes("".join(text.splitlines()[max(line - 1, 0) : line + 1]))
                self.problems.append(
                    f"{self._place(error.problem_mark)}: is not YAML: {error.problem}{within}{advice}."
                )
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.problems.append(
                f"{self.path}:{line}: is not YAML: the character {chr(error.character)!r} cannot stand in it."
            )

    def _within_itself(self, node: yaml.Node, above: list[yaml.Node]) -> bool:
        """Whether an alias leads back to a block that it stands in, which is noted."""
        if any(node is one for one in above):
            self.problems.append(f"{self._place(node.start_mark)}: this block is an alias for itself; write it out.")
            return True
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        return any(self._within_itself(one, [*above, node]) for one in inner)

    def _place(self, mark: Any) -> str:
        return f"{self.path}:{mark.line + 1}:{mark.column + 1}"

    def _walk(self, node: yaml.Node, above: str) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, yaml.Mark] = {}
            for key, value in node.value:
                self._enter(key, value, above, seen)
        elif isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                self.places[f"{above}.{number}"] = self._place(entry.start_mark)
                self._walk(entry, f"{above}.{number}")
        elif node.tag != _TEXT and _MISREAD.fullmatch(node.value):
            self.problems.append(
                f"{self._place(node.start_mark)}: {above}: found {node.value}, which YAML reads as "
                f"{yaml.safe_load(node.value)}; write that number, or quotes around a text."
            )
        else:
            try:
                self._loader.construct_object(node)
            except ValueError as error:  # such as a date that is none
                self.problems.append(
                    f"{self._place(node.start_mark)}: {above}: found {node.value}, which YAML cannot read ({error}); "
                    f"put it in quotes."
                )

    def _enter(self, key: yaml.Node, value: yaml.Node, above: str, seen: dict[str, yaml.Mark]) -> None:
        place = self._place(key.start_mark)
        if key.tag == _MERGE:
            return
        if key.tag != _TEXT:
            read = yaml.safe_load(key.value) if isinstance(key, yaml.ScalarNode) else "a block"
            self.problems.append(
                f"{place}: {above or 'a key'}: found a key that YAML reads as {read!r}; put it in quotes."
            )
            return
        path = f"{above}.{key.value}".removeprefix(".")
        if key.value in seen:
            self.problems.append(
                f"{place}: {path}: stands in line {seen[key.value].line + 1} too, and YAML takes the last; keep one."
            )
        if alike := _look_alikes(key.value):
            self.problems.append(f"{place}: {path}: found a key with{alike.removeprefix('; there is')}.")
        seen[key.value] = key.start_mark
        self.places[path] = place
        if not isinstance(value, yaml.MappingNode):
            self.values.append(path)
        self._walk(value, path)


def _look_alikes(text: str) -> str:
    """The marks in a text that look like others, as a further clause."""
    found = sorted(set(_LOOK_ALIKE.findall(text)))
    names = ", ".join(f"U+{ord(mark):04X} ({unicodedata.name(mark, '')})" for mark in found)
    return f"; there is {names}, which only looks like a plain mark: type it anew" if found else ""


def _is_json(text: str) -> bool:
    """Snakemake takes JSON as well, of which YAML reads almost all."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _values(block: Mapping[str, Any], above: str = "") -> list[str]:
    """The dotted keys of all that is no block."""
    return [
        path
        for key, value in block.items()
        for path in (_values(value, f"{above}{key}.") if isinstance(value, Mapping) else [f"{above}{key}"])
    ]
