"""What can happen to a stored file, and which commands must notice it."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.__main__ import main


def flipped(content: bytes) -> bytes:
    """One bit of the byte in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def digit_changed(content: bytes) -> bytes:
    """The first digit of the last fifth."""
    for index in range(4 * len(content) // 5, len(content)):
        if content[index] in b"0123456789":
            return content[:index] + str((int(chr(content[index])) + 1) % 10).encode() + content[index + 1 :]
    return flipped(content)


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def longer(content: bytes) -> bytes:
    return content + content[-7:]


CORRUPTIONS = (flipped, digit_changed, halved, emptied, longer)


@contextmanager
def corrupted(file: Path, corruption) -> Iterator[None]:
    """The file with other content, or away where ``corruption`` is None; as it was in the end."""
    kept = file.with_name(f"{file.name}.kept")
    shutil.copy2(file, kept)
    try:
        if corruption is None:
            file.unlink()
        else:
            file.write_bytes(corruption(kept.read_bytes()))
        yield
    finally:
        shutil.move(kept, file)


def records(root: Path) -> dict[Path, dict]:
    """The records of all results below a results folder."""
    files = [file for file in root.rglob("*.json") if not {"jobs", "state"} & set(file.relative_to(root).parts)]
    contents = {file: json.loads(file.read_text()) for file in files}
    return {file: content for file, content in contents.items() if "record_sha256" in content}


def consumers(root: Path, folder: Path) -> dict[Path, list[str]]:
    """A command that reads it, for every file of every result. Paths are relative to ``folder``."""
    found: dict[Path, list[str]] = {}
    for record in records(root).values():
        for one in record["inputs"].values():
            found.setdefault(folder / one["path"], record["command"])
    return found


def result_files(root: Path) -> set[Path]:
    """Every file that a record lists."""
    return {record.parent / name for record, content in records(root).items() for name in content["files"]}


def refusal(command: list[str], monkeypatch) -> str:
    """What a command, run in this process, says before it ends; "" if it goes through."""
    monkeypatch.setattr(sys, "argv", command)
    try:
        main()
    except SystemExit as error:
        return str(error)
    return ""
