"""Where a result comes from: the JSON beside every result, and what its readers check.

A result is a folder with a ``provenance.json`` in it, or files beside a ``.json`` of the same name. This record holds
the SHA-256 of every file of the result, of every file that it was made of, of the record itself, and the job: the
settings and the code that were asked for. So whoever reads a result can tell that it is what was delivered, and whoever
plans a run that it is what is wanted (:mod:`suite.reruns`).
"""

import datetime
import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from diffusion.runtime.device import processor_name
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import canonical_json, read_json, sha256_file, write_json
from diffusion.runtime.packages import version_of

RECORD = "provenance.json"
# Snakemake's own note of when a folder was made.
TIMESTAMP = ".snakemake_timestamp"

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "torch-fidelity",
    "clean-fid",
    "snakemake",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)


class Input(NamedTuple):
    """A file that goes into a result: its path as the job was given it, and the SHA-256 of what was read."""

    path: Path
    sha256: str


def record_of(file: Path) -> Path | None:
    """The record of the result that a file belongs to; None where there is none."""
    beside = file.with_suffix(".json")
    if file.suffix != ".json" and beside.exists() and file.name in files_of(beside):
        return beside
    # As deep as results are: further_features/<extraction>/<quantiser>/<variant>/train-0/nfe-1/seed-0.npy.
    folders = list(file.parents)[:5]
    return next((record for folder in folders if files_of(record := folder / RECORD)), None)


def checked(inputs: Mapping[str, Path]) -> dict[str, Input]:
    """Files that a job is about to read, by their role: each must be what its result was delivered with.

    Raises:
        UserError: a file is missing, was changed or was added since; the message says how it is made anew.
    """
    records = {role: record_of(file) for role, file in inputs.items()}
    found = {role: Input(file, _verified(file, records[role])) for role, file in inputs.items()}
    for record in filter(None, dict.fromkeys(records.values())):
        # What is missing would not be read, and perhaps not be missed.
        if lost := [name for name in files_of(record) if not (record.parent / name).exists()]:
            raise UserError(f"{record.parent / lost[0]}: not found, though {record} lists it. {_remedy(record)}")
    return found


def checked_folder(role: str, folder: Path, within: str = "") -> dict[str, Input]:
    """All files of a result that is a folder, as :func:`checked`; those that are there where there is no record.

    Args:
        within: a folder in it, where no other is read.
    """
    names = list(files_of(folder / RECORD)) or [
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name != TIMESTAMP
    ]
    return checked({f"{role}, {name}": folder / name for name in names if Path(within) in Path(name).parents})


def read_record(record: Path) -> dict[str, Any]:
    """What a record says of its result.

    Raises:
        UserError: there is none, it cannot be read, or it was changed.
    """
    if not (content := _content(record)):
        raise UserError(f"{record}: not found, or not the record of a result. {_remedy(record)}")
    return content


def _verified(file: Path, record: Path | None) -> str:
    """The file's SHA-256, which is the one that the record has."""
    try:
        found = sha256_file(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). {_remedy(record)}".rstrip()) from error
    if record is not None:
        about = files_of(record).get(os.path.relpath(file, record.parent))
        if about is None:
            raise UserError(f"{file}: is no part of the result, says {record}. {_remedy(record)}")
        if found != about["sha256"]:
            raise UserError(
                f"{file}: found SHA-256 {found[:12]}…, expected {about['sha256'][:12]}… as recorded in {record}: the "
                f"file was changed after it was delivered. {_remedy(record)}"
            )
    return found


def _remedy(record: Path | None) -> str:
    """How a damaged result is made anew."""
    if record is None:
        return ""
    result = record.parent if record.name == RECORD else record
    try:
        content = read_json(record)
        by_hand, output = content.get("job") is None, Path(content.get("output", result))
    except (UserError, AttributeError, TypeError):
        by_hand, output = False, result
    if by_hand:  # a teacher that the user has converted, for instance, and may have changed on purpose
        return f"If the change is yours, delete {record}; else make it again: {' '.join(content.get('command', []))}"
    if not result.absolute().with_suffix("").match(str(output.with_suffix(""))):
        # Snakemake makes nothing here.
        return f"If the change is yours, delete {record}; else copy the result again, from {output}."
    return f"Delete {result} and run Snakemake again, which makes the result anew."


def files_of(record: Path) -> dict[str, Any]:
    """The files that a record lists, with ``sha256`` and ``bytes`` of each; none where there is no record."""
    files: dict[str, Any] = _content(record).get("files", {})
    return files


def _content(record: Path) -> dict[str, Any]:
    """A record; empty where there is no file, or one that is no record."""
    try:
        status = record.stat()
    except OSError:
        return {}
    return _content_of(record, (status.st_mtime_ns, status.st_size))


@functools.cache
def _content_of(record: Path, _version: tuple[int, int]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(record)
        # Records of earlier versions of the suite list no files, nor do other JSON files.
        if content.get("files") and content["record_sha256"] != _sha256_of(content):
            raise ValueError("it was changed after it was written")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{record}: is not the record of a result ({error}). {_remedy(record)}") from error
    except UserError as error:
        raise UserError(f"{error} {_remedy(record)}") from error
    return content


def write_provenance(
    record: Path, inputs: Mapping[str, Input], job: Any, files: Iterable[Path] | None = None, **facts: Any
) -> None:
    """Writes the record of a result, last of all its files.

    Args:
        record: the JSON file.
        inputs: what went in, from :func:`checked`.
        job: what the workflow has asked for (:func:`suite.reruns.Reruns.ask`), None where a person called the command.
        files: of the result; all in the record's folder, if not given.
        facts: settings, seeds and whatever else made this result.
    """
    folder = record.parent
    if files is None:
        files = (file for file in folder.rglob("*") if file.is_file() and file.name not in (RECORD, TIMESTAMP))
    content = {
        "files": {
            str(file.relative_to(folder)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
            for file in sorted(files)
        },
        "inputs": {role: {"path": str(one.path), "sha256": one.sha256} for role, one in sorted(inputs.items())},
        "job": job,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        **facts,
    }
    write_json(record, content | {"record_sha256": _sha256_of(content)})


def _sha256_of(record: Mapping[str, Any]) -> str:
    """Of a record's content, but for the hash that stands in it."""
    content = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in _PACKAGES}


def hardware() -> dict[str, Any]:
    """Processor, memory and, where there is one, the GPU."""
    facts: dict[str, Any] = {
        "processor": processor_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


@functools.cache
def commit() -> str:
    """The git commit of the code, with "+changes" if the tree differs from it; "unknown" outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
