"""Files that are either whole or absent."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.errors import UserError

# None: libraries that write for us report a full disk in words alone.
_CANNOT_WRITE = (
    None,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path (file or folder) that becomes ``path`` when the block ends without an error.

    The temporary name lies in the same folder, so that the rename is atomic: a reader, or a run that is killed,
    sees the old content or the new one, never a part. A folder replaces an existing folder.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary / path.name
        _flush_to_disk(temporary / path.name)
        if path.is_dir() and not path.is_symlink():
            os.replace(path, temporary / "replaced")  # a kill in between leaves no folder, never a part of one
        os.replace(temporary / path.name, path)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise  # the block's own trouble, an input that is missing for instance
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}). "
            f"Free space on the device or choose another results folder; nothing partial was left behind."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut can leave the new name on old blocks.
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def write_json(path: Path | str, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically. NaN and infinity are refused by ``json`` itself."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}). Delete it and run the rule again.") from error


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(content: Any) -> str:
    """One text for one content: sorted keys, no spaces. Used for hashes and for Snakemake's params."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


# Above that many files of a folder their sizes and times are not looked at: every start of the workflow would wait.
MOST_FILES_LOOKED_AT = 20_000


def fingerprint(path: str | Path | None) -> str | None:
    """Changes when pictures are added, removed or changed: names, sizes and times of a folder's files, or of a zip.

    Of very many files, as ImageNet's, only the folders' times and numbers of files: a file that is changed in place
    goes unseen. None where there is nothing; the job says what is missing.
    """
    if path is None or not Path(path).expanduser().exists():
        return None
    root = Path(path).expanduser()
    counts: dict[Path, int] = {}
    # Only as many names as may be looked at: of a million, paths alone are seconds and hundreds of megabytes.
    kept: list[str] = [] if root.is_dir() else [str(root)]
    number = len(kept)
    for folder, _, names in os.walk(root):
        counts[Path(folder)] = len(names)
        number += len(names)
        if number > MOST_FILES_LOOKED_AT:
            kept.clear()
        else:
            kept += (os.path.join(folder, name) for name in names)
    facts: list[tuple[Any, ...]]
    if number > MOST_FILES_LOOKED_AT:
        facts = [(str(folder), folder.stat().st_mtime_ns, counts[folder]) for folder in sorted(counts)]
    else:
        files = sorted(map(Path, kept))
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()
