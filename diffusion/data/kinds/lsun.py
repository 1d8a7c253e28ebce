"""LSUN (Yu et al. 2015, arXiv 1506.03365), one category, from the lmdb that its authors give out."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.decode import decoded_parts
from diffusion.data.settings import CountedSettings, Crop
from diffusion.data.store import Splits, stratified_split
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import UserPath

if TYPE_CHECKING:
    import lmdb


class Settings(CountedSettings):
    """Where the lmdb is and what becomes of its pictures."""

    channels: ClassVar[int] = 3

    kind: Literal["lsun"]
    # The folder with data.mdb, e.g. bedroom_train_lmdb.
    path: UserPath = pydantic.Field(min_length=1)
    resolution: int = pydantic.Field(default=256, ge=2, le=4096)
    # As guided-diffusion prepares LSUN; see diffusion/data/decode.py.
    crop: Crop = "box"
    # Pictures in the test part, drawn from the lmdb: LSUN's own validation part has 300 of a category.
    test_size: int = pydantic.Field(default=10_000, ge=2)
    split_seed: int = pydantic.Field(default=0, ge=0)


def prepare(settings: Settings) -> Splits:
    """Lists the lmdb's pictures, in the order of their keys; they are decoded when they are asked for.

    Raises:
        UserError: no lmdb, one that is damaged or empty; and, when it is read, a picture.
    """
    import lmdb

    path, database = Path(settings.path), _opened(settings)
    try:
        with database.begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise _unreadable(path, error) from error
    files = [_Entry(database, key, f"{path}/{key.decode(errors='replace')}") for key in keys]
    train, test = stratified_split(np.zeros(len(keys), np.int64), settings.test_size, settings.split_seed)
    train_images, test_images = decoded_parts([files[i] for i in train], [files[i] for i in test], settings)
    return Splits(
        *(train_images, np.zeros(len(train), np.int64), test_images, np.zeros(len(test), np.int64)),
        class_names=("all",),
        source=f"LSUN (Yu et al. 2015), {path.name}",
        fingerprint=hashlib.sha256(b"\n".join(keys)).hexdigest(),
    )


def problems(settings: Settings) -> list[str]:
    """What is wrong with ``data.path``, without a look at a picture."""
    _opened(settings).close()
    return []


def _opened(settings: Settings) -> "lmdb.Environment":
    """The lmdb, which is whole and has enough pictures."""
    import lmdb

    path = Path(settings.path)
    if not (path / "data.mdb").is_file():
        raise UserError(f"{path}: has no data.mdb. {_EXPECTED} (43 GB) and name its folder.")
    try:
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        _refuse_if_cut(path / "data.mdb", database)
        count = database.stat()["entries"]
    except lmdb.Error as error:
        raise _unreadable(path, error) from error
    settings.refuse_other_number(str(path), {"data.mdb": count})
    if count < settings.test_size + 2:
        raise UserError(
            f"{path}: holds {count} pictures, of which {settings.test_size} would be for testing (data.test_size). "
            f"The lmdb may be incomplete; LSUN's bedrooms are 3,033,042."
        )
    return database


_EXPECTED = (
    "Expected an LSUN lmdb, a folder with data.mdb; unzip e.g. http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip"
)


def _unreadable(path: Path, error: Exception) -> UserError:
    import lmdb

    # Of formats that it knows, but not to read, the package since version 2 says so with the general error.
    if isinstance(error, lmdb.VersionMismatchError) or "data format" in str(error):
        return UserError(
            f"{path / 'data.mdb'}: is of a version of LMDB that the package lmdb {lmdb.__version__} cannot read "
            f"({error}); expected that of LMDB 0.9, as of LSUN's own files. Update the package (pip install -U "
            f"lmdb), or write the file anew: mdb_dump of the version that it comes from, then mdb_load of 0.9."
        )
    return UserError(f"{path}: cannot be read as an lmdb ({error}); it may be truncated. {_EXPECTED}.")


def _refuse_if_cut(file: Path, database: "lmdb.Environment") -> None:
    """Before a page is read: LMDB maps its file, and what lies beyond the end of that kills the process (SIGBUS)."""
    found, expected = file.stat().st_size, (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    if found < expected:
        raise UserError(
            f"{file}: is truncated: found {found:,} bytes, expected at least {expected:,}. Unzip it again; if it comes "
            f"out as short, download the zip again."
        )


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: an lmdb of WebP pictures, 256 pixels high, as LSUN has them."""
    import lmdb
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
        for index in range(12):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((341, 256)).save(buffer, "WEBP")
            transaction.put(hashlib.sha1(bytes([index])).hexdigest().encode(), buffer.getvalue())
    return {"kind": "lsun", "path": str(folder), "resolution": 16, "test_size": 4}


@dataclass(frozen=True)
class _Entry:
    """A picture in the lmdb."""

    database: "lmdb.Environment"
    key: bytes
    name: str

    def open(self) -> BinaryIO:
        """Its bytes; threads may ask at the same time."""
        with self.database.begin() as transaction:
            return io.BytesIO(transaction.get(self.key) or b"")
