"""Which results are what is wanted: decided by content, where Snakemake has only times.

For every job of an experiment the workflow writes what it asks for (settings, and the SHA-256 of the code and of the
files that the user brings) to ``jobs/`` in the results folder. The file is an input of the job's rule, and the job
copies it into the record of its result (:mod:`suite.provenance`). A result is current if its record holds what is asked
for now, its files are there, and its inputs are those that are there now. Snakemake is told by the times that it looks
at: those of current results are all the same, and what is asked for of another result is newer. So results can be
copied, unpacked, put into another checkout, or come from a clock that is ahead. What was made of other settings, code
or inputs is made again, and nothing else.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import canonical_json, only_one, read_json, sha256_file, write_json
from suite.provenance import RECORD, TIMESTAMP, files_of, read_record, record_of

CHECKOUT = Path(__file__).parents[1]

# The time of everything that is current: older than whatever is made, and within what archives can store.
_SETTLED = 315_619_200  # 1980-01-02


class RunLock:
    """The lock on a results folder that a run of the workflow holds until its process ends.

    Args:
        root: the results folder.
        is_main: whether this process runs the workflow; the others leave the lock alone.

    Attributes:
        is_held: whether this process has it.
    """

    def __init__(self, root: Path, is_main: bool) -> None:
        self._refused: UserError | None = None
        self._stack = ExitStack()
        self.is_held = False
        if not is_main:
            return
        try:
            self._stack.enter_context(only_one(root / "jobs" / "run.lock", f"{root} (a run of the workflow)"))
            self.is_held = True
        except UserError as error:
            self._refused = error

    def require(self) -> None:
        """To be called before the first job starts; a dry run may look at the results of a run that goes on.

        Raises:
            UserError: another run uses the results folder, or it cannot be written.
        """
        if self._refused is not None:
            raise self._refused


class Reruns:
    """What is asked for of an experiment's jobs, and which results are that.

    Args:
        root: the results folder.
        checkout: the folder that the paths of code are relative to.
        may_change: whether files may be changed that another run may be reading.
        say: is told, once a result, why one that is there is made again.
    """

    def __init__(self, root: Path, checkout: Path, may_change: bool, say: Callable[[str], None]) -> None:
        self._root, self._checkout, self._may_change, self._say = root, checkout, may_change, say

    def ask(self, record: Path, settings: Mapping[str, Any], code: Iterable[str], files: Collection[str]) -> Path:
        """Writes what is asked for of a job, and sets the times by whether its result is that.

        Args:
            record: of the job's result, in the results folder.
            settings: all that decides the result beside code and inputs; as JSON they are compared.
            code: files that decide it, relative to the checkout.
            files: that the user brings.

        Returns:
            The file, to be an input of the job's rule.
        """
        within = record.relative_to(self._root)
        path = self._root / "jobs" / (within.parent.with_suffix(".json") if within.name == RECORD else within)
        known = _stored(path)
        asked = {
            "results": str(self._root),
            "settings": settings,
            "code": {file: _sha256_of_code(self._checkout / file) for file in sorted(code)},
            "files": {file: _sha256_of_given(Path(file), known) for file in sorted(files)},
        }
        asked = {name: _as_json(part) for name, part in asked.items()}
        # What is not there at all is Snakemake's to miss: it makes it only if somebody needs it.
        is_there = record.parent.exists() if record.name == RECORD else record.exists()
        stale = self._why_stale(record, asked) if is_there else None
        if stale:
            self._say(f"{record.parent if record.name == RECORD else record}: made again, {stale}")
        content = asked | {"seen": {file: _status(Path(file)) for file in sorted(files)}}
        if stale:
            # Snakemake knows the content of inputs, and takes one that is newer and the same for no reason.
            content["because"] = f"{stale} ({time.time_ns()})"
        if not path.exists() or (self._may_change and known != content):
            write_json(path, content)
        if self._may_change:
            if stale:
                _set_time(path, None)
            else:
                _set_time(path, _SETTLED)
                for output in _outputs(record) if is_there else []:
                    _set_time(output, _SETTLED)
        return path

    def _why_stale(self, record: Path, asked: Mapping[str, Any]) -> str | None:
        """In what a result differs from what is asked for; None if in nothing."""
        try:
            stored = read_record(record)
            made = stored["job"] or {}
            for part in ("settings", "code", "files"):
                if (difference := _difference(made.get(part, {}), asked[part], part)) is not None:
                    return difference
            for name, about in stored["files"].items():
                file = record.parent / name
                if not file.exists() or file.stat().st_size != about["bytes"]:
                    return f"because {file} is missing or of another size"
            for one in stored["inputs"].values():
                within = os.path.relpath(one["path"], made["results"])
                if within.startswith(os.pardir):
                    continue  # the user's, compared above
                file = self._root / within
                of = record_of(file)
                if of is None and not file.exists():
                    continue  # removed; made again only where somebody needs it
                if of is None or files_of(of).get(os.path.relpath(file, of.parent), {}).get("sha256") != one["sha256"]:
                    return f"because {file} is not what it was made of"
        except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
            return "because its record is missing or cannot be read"
        return None


def asked_in(path: Path, checkout: Path = CHECKOUT) -> dict[str, Any]:
    """What is asked for of a job, for its record, with the code as it is now: it may have been edited since.

    Args:
        path: the file that :meth:`Reruns.ask` wrote.
        checkout: that the paths of code are relative to.

    Raises:
        UserError: the file is missing or is not what :meth:`Reruns.ask` writes.
    """
    content = read_json(path)
    try:
        code = {file: sha256_file(checkout / file) for file in content["code"]}
        return {name: content[name] for name in ("results", "settings", "files")} | {"code": code}
    except (KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: is not what a job is asked for ({error}). Run Snakemake again.") from error


def _difference(made: Any, asked: Any, where: str) -> str | None:
    """The first difference of two JSON values, in words."""
    if isinstance(made, dict) and isinstance(asked, dict):
        for key in [*asked, *(key for key in made if key not in asked)]:
            if key not in made or key not in asked:
                return f"{where}: {key} {'is new' if key in asked else 'is no more'}"
            if (difference := _difference(made[key], asked[key], f"{where}.{key}")) is not None:
                return difference
        return None
    if made == asked:
        return None
    if where.startswith(("code.", "files.")):
        return f"{where.partition('.')[2]} has changed"
    short = [text if len(text := canonical_json(value)) <= 60 else text[:57] + "…" for value in (made, asked)]
    return f"{where}: made with {short[0]}, asked for is {short[1]}"


def _stored(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _as_json(content: Any) -> Any:
    return json.loads(canonical_json(content))


@cache
def _sha256_of_code(file: Path) -> str:
    return sha256_file(file)


def _status(file: Path) -> list[int] | None:
    """Size and time, by which a file that was read before is known again; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _sha256_of_given(file: Path, known: Mapping[str, Any]) -> str | None:
    """Read again only where size or time have changed; None where there is no such file, as its reader will say."""
    name, status = str(file), _status(file)
    if status is None:
        return None
    if known.get("seen", {}).get(name) == status and known.get("files", {}).get(name):
        return str(known["files"][name])
    return sha256_file(file)


def _outputs(record: Path) -> list[Path]:
    """What Snakemake looks at the time of."""
    if record.name == RECORD:
        timestamp = record.parent / TIMESTAMP
        with suppress(OSError):
            timestamp.touch()
        return [timestamp]
    return [record, *(record.parent / name for name in files_of(record))]


def _set_time(file: Path, seconds: int | None) -> None:
    with suppress(OSError):  # a folder of somebody else: the times stay as they are
        os.utime(file, None if seconds is None else (seconds, seconds))
