"""Files that are either whole or absent."""

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from diffusion.runtime.errors import UserError

# None: libraries that write for us report a full disk in words alone.
_CANNOT_WRITE = (
    *(None, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says of errors of the file system in this block that ``path`` cannot be written.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise  # the block's own trouble, an input that is missing for instance
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}). Free space on the device, or choose a results "
            f"folder that this user may write to; nothing partial was left behind."
        ) from error


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
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            yield temporary / path.name
            _flush_to_disk(temporary / path.name)
            if path.is_dir() and not path.is_symlink():
                os.replace(path, temporary / "replaced")  # a kill in between leaves no folder, never a part of one
            os.replace(temporary / path.name, path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut can leave the new name on old blocks.
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes what :func:`atomic_path` left in ``folder`` when its process was killed.

    To be called by whoever holds the lock on what is written there: nobody else writes then.

    Args:
        name: of the path that was being written; any, if not given.
    """
    for temporary in folder.glob(f".{name}.*"):
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_one(lock: Path, what: str, wait_s: float = 0) -> Iterator[None]:
    """Holds the lock file ``lock`` (flock) while the block runs. The system releases it however the process ends.

    Args:
        what: what is locked, for the message.
        wait_s: how long to wait for another holder.

    Raises:
        UserError: another process holds it (the message names it), or the folder cannot be written or locked.
    """
    holder = lock.with_name(f"{lock.name}.holder")
    held = filelock.FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        try:
            who = holder.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            who = "another process"
        raise UserError(f"{what}: in use by {who} (lock {lock}). Wait until it ends, or end it.") from error
    except (OSError, NotImplementedError) as error:
        remedy = ""
        if getattr(error, "errno", None) in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, None):
            remedy = " The file system must support flock: two machines could write to one place otherwise."
        raise UserError(
            f"{what}: cannot be written or locked ({getattr(error, 'strerror', None) or error}, {lock}).{remedy}"
        ) from error
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder.write_text(f"process {os.getpid()} on {platform.node()}, since {since}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def new_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.memmap:
    """A new memory-mapped ``.npy`` file whose room on the disk is taken at once.

    Writing to a sparse mapped file on a full disk kills the process without a word (SIGBUS).

    Raises:
        UserError: the disk has no room for it, or the folder cannot be written.
    """
    with writing(path):
        path.unlink(missing_ok=True)  # never truncated: another process may have it mapped
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            try:
                with path.open("r+b") as handle:
                    os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
                    raise
    return array


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """``target`` as another name of the file ``source``, or as a copy where the file system has no second names.

    For files that are never written to again: those of results, which are replaced whole.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path | str, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically. NaN and infinity are refused by ``json`` itself."""
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from error


def read_json_object(path: Path | str) -> dict[str, Any]:
    """As :func:`read_json`, of a file that holds names with values.

    Raises:
        UserError: it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}, expected an object: names with values.")
    return content


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(content: Any) -> str:
    """One text for one content: sorted keys, no spaces. Used for hashes and for Snakemake's params."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


# Above that many files of a folder their sizes and times are not looked at: every start of the workflow would wait.
MOST_FILES_LOOKED_AT = 20_000
# What systems and file servers leave in folders, beside names that begin with a dot: macOS, Windows, Linux, Android,
# Synology, QNAP, NetApp; in lower case.
_LEFT_BY_SYSTEMS = {
    *("__macosx", "icon\r", "icon\uf00d", "network trash folder", "temporary items"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found", "lost.dir"),
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),
}


def is_left_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that systems and file servers leave behind."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def fingerprint(path: str | Path | None) -> str | None:
    """Changes when images are added, removed, moved or changed: names, sizes, times of a folder's files, or of a zip.

    Of very many files, as ImageNet's, only the folders' times and numbers of files, and those that label images
    (``dataset.json``, ``*.jsonl``): an image that is changed in place goes unseen. Where the folder lies is no part of
    it, nor is what systems leave in it. None where there is nothing; the job says what is missing.
    """
    if path is None or not os.path.exists(path):
        return None
    root = str(path)
    if not os.path.isdir(root):
        status = os.stat(root)
        return _digest([(os.path.basename(root), status.st_size, status.st_mtime_ns)])
    folders: list[tuple[str, int]] = []
    # Only as many names as may be looked at: of a million, the names alone are hundreds of megabytes.
    kept: list[str] = []
    tables: list[str] = []
    number = 0
    for folder, inside, names in os.walk(root, followlinks=True):
        here = Path(os.path.realpath(folder))
        inside[:] = [
            name
            for name in inside
            # A link to a folder above would be walked for ever.
            if not is_left_over(name) and not here.is_relative_to(os.path.realpath(os.path.join(folder, name)))
        ]
        names = [name for name in names if not is_left_over(name)]
        folders.append((folder, len(names)))
        tables += (os.path.join(folder, name) for name in names if name == "dataset.json" or name.endswith(".jsonl"))
        number += len(names)
        if number > MOST_FILES_LOOKED_AT:
            kept.clear()
        else:
            kept += (os.path.join(folder, name) for name in names)

    def facts(name: str) -> tuple[Any, ...]:
        status = os.stat(name)
        return os.path.relpath(name, root), status.st_size, status.st_mtime_ns

    if number > MOST_FILES_LOOKED_AT:
        times = [(os.path.relpath(name, root), os.stat(name).st_mtime_ns, count) for name, count in sorted(folders)]
        return _digest([*times, *map(facts, sorted(tables))])
    return _digest([facts(name) for name in sorted(kept) if os.path.isfile(name)])


def _digest(facts: list[tuple[Any, ...]]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
