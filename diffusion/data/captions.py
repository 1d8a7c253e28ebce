"""Captions of the images of a folder or a zip, in the form of ``datasets``' imagefolder.

``metadata.jsonl`` has a JSON object a line, ``{"file_name": "0001.png", "text": "a red fox"}``; further keys are not
read. Names count from its own folder on, so that one at the top will do, or one in each part. Captions are normalised,
and images of one caption are of one class; the classes are in the order of the captions (by code point).
"""

import json
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.data.listing import PictureFile, composed, is_picture, parts_of_entry
from diffusion.runtime.errors import UserError, first_line, some_of
from diffusion.runtime.texts import normalised

_FORM = 'Expected a line such as {"file_name": "0001.png", "text": "a red fox"}'
# A path inside in parts, to its caption.
Captions = Mapping[tuple[str, ...], str]


class _Entry(NamedTuple):
    file_name: str
    text: str


def read_captions(path: Path, name: str, files: Sequence[PictureFile]) -> Captions:
    """The captions in all files of this name.

    Args:
        path: the folder or the zip, whose ``files`` these are.

    Raises:
        UserError: there is no such file; or, with file and line, a line that is no caption of an image in its folder.
    """
    tables = [file for file in files if file.parts[-1] == name]
    if not tables:
        raise UserError(f"{path}: has no {name} (data.captions). {_FORM} for each image; or correct data.captions.")
    pictures = {file.parts for file in files if is_picture(file.parts[-1])}
    captions: dict[tuple[str, ...], str] = {}
    for table in tables:
        try:
            with table.open() as handle:
                lines = handle.read().splitlines()
        except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{table.name}: cannot be read ({first_line(error)}). Write it anew.") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{table.name}, line {number}"
                entry = _entry(where, line)
                picture = (*table.parts[:-1], *map(composed, parts_of_entry(entry.file_name)))
                if picture not in pictures:
                    raise UserError(
                        f"{where}: {entry.file_name!r} is no image in its folder. Put the image there, or remove the "
                        f"line; names count from the folder of {name} on."
                    )
                if picture in captions:
                    raise UserError(f"{where}: {entry.file_name!r} has a caption already. Keep one line of each image.")
                captions[picture] = entry.text
    return captions


def _entry(where: str, line: bytes) -> _Entry:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({first_line(error)}). {_FORM}.") from error
    for key in _Entry._fields:
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: found no text under {key!r}. {_FORM}, neither of them empty.")
    return _Entry(found["file_name"], normalised(found["text"]))


def captioned(
    path: Path, captions: Captions, *parts: Collection[tuple[PictureFile, int]]
) -> tuple[list[list[tuple[PictureFile, int]]], tuple[str, ...]]:
    """The images of each part with the numbers of their captions; and the captions.

    Raises:
        UserError: images have no caption.
    """
    if bare := sorted(file.name for part in parts for file, _ in part if file.parts not in captions):
        raise UserError(
            f"{path}: {len(bare):,} images have no caption ({some_of(bare)}). {_FORM} for each; or take them out."
        )
    texts = sorted({captions[file.parts] for part in parts for file, _ in part})
    number = {text: index for index, text in enumerate(texts)}
    return [[(file, number[captions[file.parts]]) for file, _ in part] for part in parts], tuple(texts)
