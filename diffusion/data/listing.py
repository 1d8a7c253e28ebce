"""The files of a folder or a zip of pictures, by their paths inside.

Hidden files and what systems and file servers leave (``__MACOSX``, ``@eaDir``, ``Thumbs.db``, …) are skipped. A zip is
read in place. Names are in Unicode's form NFC.
"""

import hashlib
import io
import os
import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diffusion.data.decode import MAX_BYTES
from diffusion.data.store import MOST_LOOKED_AT
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import is_left_over

FOLDER_OR_ZIP = "Expected a folder or a zip of pictures; correct data.path."
EXTENSIONS = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class PictureFile:
    """A file of the folder or zip: its path inside in parts (NFC), its name for messages, where its bytes are."""

    parts: tuple[str, ...]
    name: str
    place: Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]

    def open(self) -> BinaryIO:
        """The bytes as a seekable file."""
        if isinstance(self.place, Path):
            if not self.place.is_file():  # a dangling link, or a pipe that would block for ever
                raise UserError(f"{self.name}: is not a file. {_MEND}")
            self._refuse_size(self.place.stat().st_size)
            return self.place.open("rb")
        archive, entry = self.place
        if entry.flag_bits & 0x1:
            raise UserError(f"{self.name}: is encrypted. Pack the zip again without a password.")
        self._refuse_size(entry.file_size)
        return io.BytesIO(archive.read(entry))

    def _refuse_size(self, size: int) -> None:
        if size > MAX_BYTES:
            raise UserError(
                f"{self.name}: is {size / 2**20:.0f} MiB large, expected a picture of at most "
                f"{MAX_BYTES / 2**20:.0f} MiB. Make it smaller, or take it out."
            )


_MEND = "Put the picture in its place, or take it out."


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def parts_of_entry(name: str) -> tuple[str, ...]:
    # Windows programs write backslashes. The names are never used as paths, so nothing can point outside.
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def composed(name: str) -> str:
    """A name as macOS stores it (é as e and an accent) and as others do is one name."""
    return unicodedata.normalize("NFC", name)


def list_folder(root: Path) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """All files and all folders below ``root``, without hidden ones. Links are followed, loops are not."""
    files: list[PictureFile] = []
    folders: set[tuple[str, ...]] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename or root}: cannot be listed ({error.strerror}).") from error

    for folder, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        inside[:] = [name for name in inside if not is_left_over(name)]
        here = Path(folder)
        chain = {os.path.realpath(place) for place in (here, *here.parents)}
        if loop := next((name for name in inside if os.path.realpath(here / name) in chain), None):
            raise UserError(f"{here / loop}: is a link to a folder above it. Take the link out of {root}.")
        above = tuple(map(composed, here.relative_to(root).parts))
        folders.update((*above, composed(name)) for name in inside)
        places = [(name, os.path.join(folder, name)) for name in names if not is_left_over(name)]
        files += [PictureFile((*above, composed(name)), place, Path(place)) for name, place in places]
    return files, folders


def list_zip(path: Path, stack: ExitStack) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """The same for the entries of a zip, which stays open until ``stack`` closes it."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found (looked for it in {Path.cwd()}). {FOLDER_OR_ZIP}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is neither a folder nor a whole zip ({error}). {FOLDER_OR_ZIP}") from error
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read ({error}). {FOLDER_OR_ZIP}") from error
    # By name, because a zip may hold a name twice: the later entry is the valid one.
    files: dict[tuple[str, ...], PictureFile] = {}
    folders: set[tuple[str, ...]] = set()
    for entry in archive.infolist():
        name, own_parts = entry.filename.replace("\\", "/"), parts_of_entry(entry.filename)
        if not own_parts or any(map(is_left_over, own_parts)):
            continue
        parts = tuple(map(composed, own_parts))
        above = parts if name.endswith("/") else parts[:-1]
        folders.update(above[:depth] for depth in range(1, len(above) + 1))
        if not name.endswith("/"):
            files[own_parts] = PictureFile(parts, f"{path}/{name}", (archive, entry))
    return list(files.values()), folders


def zip_holds_a_picture(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 2**16 - 22))
        end = handle.read()
    # The number of entries, which ends the zip: to read the list of a million takes seconds.
    (count,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if count > MOST_LOOKED_AT:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = [parts_of_entry(entry.filename) for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return True  # the job says what it is
    return any(parts and is_picture(parts[-1]) and not any(map(is_left_over, parts)) for parts in names)


def fingerprint_of(files: Iterable[tuple[PictureFile, int]], class_names: Sequence[str]) -> str:
    """Of names, sizes and times, not of the content; and of the labels where ``class_names`` are given."""
    digest = hashlib.sha256()
    for file, label in files:
        if isinstance(file.place, Path):
            exists = file.place.exists()  # a dangling link is refused when it is read
            status = file.place.stat() if exists else file.place.lstat()
            facts: tuple[int | str, ...] = (status.st_size, status.st_mtime_ns)
        else:
            facts = (file.place[1].CRC, file.place[1].file_size)
        digest.update(repr((file.parts, *facts, *class_names[label : label + 1])).encode())
    return digest.hexdigest()
