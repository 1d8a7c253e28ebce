"""A folder or a zip of pictures, with classes as subfolders.

Layout
    ``train`` and one of ``test``, ``val``, ``valid``, ``validation`` at the top (in any case; the first of
    these that exists) are the two parts, and the classes are the folders below them. Without them the
    classes are the folders at the top, and a part of every class is split off for testing. Pictures in no
    subfolder are one class, named ``all``, and so are all pictures with ``classes: false``. Pictures deeper
    down belong to the class folder above them. If everything lies in one folder that holds only folders, as
    in many zips, that folder is entered first.
    Classes and pictures are in the order of their names (by code point). Hidden files, ``__MACOSX`` and
    files that are not pictures by their extension are skipped and counted in the log. A zip is read in
    place.

Conversion of a picture, in this order
    1. The first frame of an animation is taken, whole: no reduced JPEG decoding.
    2. The EXIF orientation is applied. Colour profiles are ignored.
    3. Eight bits a channel: 16-bit grey (and 32-bit integers within 0…65535) is divided by 257 and rounded;
       of 16-bit colour Pillow reads the upper byte. Floating-point pictures are refused.
    4. Transparency is composited over white.
    5. Colour: palette, CMYK and YCbCr become RGB; grey becomes RGB by repetition; with ``channels: 1`` colour
       becomes luma (ITU-R 601, Pillow's ``L``).
    6. Size, in the way that ``crop`` names:
       ``adm``: the centre crop of ADM (Dhariwal and Nichol 2021, ``center_crop_arr`` of guided-diffusion; EDM's
       ``center-crop-dhariwal``): halve with a box filter while the shorter side is at least twice the resolution,
       resize with a bicubic filter until the shorter side is the resolution, cut out the middle;
       ``box``: resize with a box filter until the shorter side is the resolution, cut out the middle, as
       guided-diffusion prepares LSUN (``datasets/lsun_bedroom.py``);
       ``lanczos``: cut out the middle square, resize with Lanczos' filter, as EDM's ``dataset_tool.py`` does with
       ``center-crop``, and without a crop for pictures that are square, as FFHQ's.
       Smaller pictures are enlarged by the same filter.
"""

import hashlib
import io
import logging
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, Protocol

import numpy as np
import pydantic

from diffusion.data.store import Splits, stratified_split
from diffusion.errors import UserError, some_of
from diffusion.settings import DataSettings, UserPath

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Only these decoders are tried, whatever the extension says: Pillow's others include EPS, which runs
# Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow's own threshold against decompression bombs: a quarter of a GiB as RGB.
MAX_PIXELS = 89_478_485
# A compressed picture above this is not one; an entry of a zip may claim any size.
MAX_BYTES = 512 * 2**20
# A longer strip would be enlarged into gigabytes before its middle is cut out.
MAX_ASPECT = 50
# Pictures a worker thread takes at a time.
CHUNK = 32

TEST_NAMES = ("test", "val", "valid", "validation")

Crop = Literal["adm", "box", "lanczos"]

_log = logging.getLogger(__name__)


class CountedSettings(DataSettings):
    """How many pictures there must be."""

    # In all parts together; null takes what is there. Seen before a picture is read.
    num_pictures: int | None = pydantic.Field(default=None, ge=1)

    later: ClassVar[tuple[str, ...]] = (*DataSettings.later, "num_pictures", "num_classes", "classes")

    def refuse_other_number(self, where: str, parts: Mapping[str, int]) -> None:
        """Raises UserError where the pictures of all parts are not as many as there must be."""
        found = sum(parts.values())
        if self.num_pictures is not None and found != self.num_pictures:
            each = ", ".join(f"{part} {count:,}" for part, count in parts.items())
            raise UserError(
                f"{where}: found {found:,} pictures ({each}), expected {self.num_pictures:,} (data.num_pictures). "
                f"Unpack or fetch it again; or set data.num_pictures to null to take what is there."
            )


class PictureSettings(CountedSettings):
    """What becomes of pictures that come encoded, and what is held out of them."""

    # Side of the square pictures that come out, in pixels.
    resolution: int = pydantic.Field(ge=2, le=4096)
    # 3 for RGB, 1 for grey.
    channels: Literal[1, 3] = 3
    # How a picture gets its size; see the head of this file.
    crop: Crop = "adm"
    # Share of the pictures for the test part; used where the source itself has no split.
    test_fraction: float = pydantic.Field(default=0.2, gt=0, le=0.5)
    split_seed: int = pydantic.Field(default=0, ge=0)
    # Classes there must be, each of them in both parts where the source itself has a split; null takes what is there.
    num_classes: int | None = pydantic.Field(default=None, ge=1)

    def refuse_other_classes(self, where: str, names: Collection[str]) -> None:
        """Raises UserError where the classes are not as many as there must be."""
        if self.num_classes is not None and len(names) != self.num_classes:
            raise UserError(
                f"{where}: found {len(names):,} classes ({some_of(names)}), expected {self.num_classes:,} "
                f"(data.num_classes). Unpack or fetch it again; or set data.num_classes to null to take what is there."
            )


class Settings(PictureSettings):
    """Where the pictures are."""

    kind: Literal["images"]
    # A folder or a zip; relative to the folder the workflow is started in, ~ is the home folder.
    path: UserPath = pydantic.Field(min_length=1)
    # Whether subfolders are classes; false where they only keep folders small, as FFHQ's 00000, 01000, … do.
    classes: bool = True


def prepare(settings: Settings) -> Splits:
    """Lists the pictures; they are read when they are asked for. The module's docstring has layout and conversion.

    Raises:
        UserError: the path or the layout cannot be used; and, when it is read, a picture. The message names the file.
    """
    path = Path(settings.path)
    with ExitStack() as stack:
        files, folders = _list_folder(path) if path.is_dir() else _list_zip(path, stack)
        _warn_of_skipped(path, files)
        pictures = sorted((file for file in files if _is_picture(file)), key=lambda file: file.parts)
        if not pictures:
            raise UserError(
                f"{path}: holds no pictures ({len(files)} other files). Expected files that end in one of "
                f"{' '.join(EXTENSIONS)}, with classes as subfolders."
            )
        train, test, class_names = _arrange(path, pictures, folders, settings)
        settings.refuse_other_number(str(path), {"train": len(train), "test": len(test)})
        for name, part in (("train", train), ("test", test)):
            if len(part) < 2:
                raise UserError(
                    f"{path}: the {name} part has {len(part)} picture(s), expected at least 2 (there are "
                    f"{len(pictures)} in all). Add pictures or change test_fraction."
                )
        opened = stack.pop_all()  # a zip stays open for as long as its pictures may be read
    return Splits(
        train_images=DecodedPictures([picture for picture, _ in train], settings, opened),
        train_labels=np.array([label for _, label in train], dtype=np.int64),
        test_images=DecodedPictures([picture for picture, _ in test], settings, opened),
        test_labels=np.array([label for _, label in test], dtype=np.int64),
        class_names=class_names,
        source=f"pictures in {path.name}",
        fingerprint=_fingerprint(picture for picture, _ in [*train, *test]),
    )


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests: three classes of five 6×5 pictures each, written to ``folder``."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return {"kind": "images", "path": str(folder), "resolution": 4}


# Listing and layout


@dataclass(frozen=True)
class PictureFile:
    """A file of the folder or zip: its path inside in parts, its name for messages, where its bytes are."""

    parts: tuple[str, ...]
    name: str
    place: Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]

    def open(self) -> BinaryIO:
        """The bytes as a seekable file."""
        if isinstance(self.place, Path):
            if not self.place.is_file():  # a dangling link, or a pipe that would block for ever
                raise UserError(f"{self.name}: is not a file. Replace or remove it.")
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
                f"{MAX_BYTES / 2**20:.0f} MiB. Make it smaller or remove it."
            )


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_picture(file: PictureFile) -> bool:
    return os.path.splitext(file.parts[-1])[1].lower() in EXTENSIONS


def _list_folder(root: Path) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """All files and all folders below ``root``, without hidden ones. Links are followed, loops are not."""
    files: list[PictureFile] = []
    folders: set[tuple[str, ...]] = set()

    def walk(folder: Path, parts: tuple[str, ...], above: frozenset[str]) -> None:
        here = os.path.realpath(folder)
        if here in above:
            raise UserError(f"{folder}: is a link to a folder above it. Remove the link.")
        for entry in os.scandir(folder):
            if _is_hidden(entry.name):
                continue
            inside = (*parts, entry.name)
            if entry.is_dir():
                folders.add(inside)
                walk(Path(entry.path), inside, above | {here})
            else:
                files.append(PictureFile(inside, entry.path, Path(entry.path)))

    try:
        walk(root, (), frozenset())
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be listed ({error.strerror}).") from error
    return files, folders


def _list_zip(path: Path, stack: ExitStack) -> tuple[list[PictureFile], set[tuple[str, ...]]]:
    """The same for the entries of a zip, which stays open until ``stack`` closes it."""
    expected = "expected a folder or a zip of pictures. Correct 'path' of the data set."
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found (looked for it in {Path.cwd()}), {expected}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is neither a folder nor a whole zip ({error}), {expected}") from error
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{path}: cannot be read ({error}), {expected}") from error
    # By name, because a zip may hold a name twice: the later entry is the valid one.
    files: dict[tuple[str, ...], PictureFile] = {}
    folders: set[tuple[str, ...]] = set()
    for entry in archive.infolist():
        # Windows programs write backslashes. The names are never used as paths, so nothing can point outside.
        name = entry.filename.replace("\\", "/")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if not parts or any(map(_is_hidden, parts)):
            continue
        above = parts if name.endswith("/") else parts[:-1]
        folders.update(above[:depth] for depth in range(1, len(above) + 1))
        if not name.endswith("/"):
            files[parts] = PictureFile(parts, f"{path}/{name}", (archive, entry))
    return list(files.values()), folders


def _warn_of_skipped(path: Path, files: Sequence[PictureFile]) -> None:
    skipped = Counter(
        os.path.splitext(file.parts[-1])[1].lower() or "no extension" for file in files if not _is_picture(file)
    )
    if skipped:
        detail = some_of([f"{count} × {extension}" for extension, count in sorted(skipped.items())])
        _log.warning("%s: skipped %d files that are not pictures (%s)", path, skipped.total(), detail)


_Part = list[tuple[PictureFile, int]]


def _arrange(
    path: Path, pictures: Sequence[PictureFile], folders: set[tuple[str, ...]], settings: Settings
) -> tuple[_Part, _Part, tuple[str, ...]]:
    """Train part, test part (pictures with labels, in the order of names) and the names of the classes."""
    root = _enter_wrappers(path, pictures, folders)
    # Lower-case names win where both `train` and `Train` exist, because they sort later.
    tops = {name.lower(): name for name in sorted(_children(root, folders))}
    found = [tops[name] for name in TEST_NAMES if name in tops]
    if "train" in tops and found:
        parts = {"train": (*root, tops["train"]), "test": (*root, found[0])}
        unused = sum(not any(_is_below(p, part) for part in parts.values()) for p in pictures)
        if unused:
            _log.warning(
                "%s: uses %s and %s; %d pictures elsewhere are left out",
                path,
                tops["train"],
                found[0],
                unused,
            )
        own = {"train": tops["train"], "test": found[0]}
        if settings.classes:
            _refuse_flat_part(path, {own[part]: folder for part, folder in parts.items()}, pictures, folders)
        train = _classes_below(path, parts["train"], pictures, folders, settings.classes)
        test = _classes_below(path, parts["test"], pictures, folders, settings.classes)
        names = tuple(sorted(train))
        if strange := sorted(set(test) - set(train)):
            raise UserError(
                f"{path}: the classes {some_of(strange)} of '{own['test']}' do not occur in '{own['train']}', which "
                f"has {some_of(names)}. Both need the same folders of classes."
            )
        settings.refuse_other_classes(f"{path}/{own['train']}", names)
        if settings.num_classes is not None and (absent := sorted(set(train) - set(test))):
            raise UserError(
                f"{path}/{own['test']}: found {len(test):,} folders of classes, expected {settings.num_classes:,} "
                f"(data.num_classes), those of '{own['train']}'; it lacks {some_of(absent)}. Unpack it again."
            )
        return _labelled(train, names), _labelled(test, names), names
    classes = _classes_below(path, root, pictures, folders, settings.classes)
    settings.refuse_other_classes(str(path), sorted(classes))
    names = tuple(sorted(classes))
    everything = _labelled(classes, names)
    try:
        indices = stratified_split(
            np.array([label for _, label in everything]),
            round(settings.test_fraction * len(everything)),
            settings.split_seed,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    train_part, test_part = ([everything[index] for index in part] for part in indices)
    return train_part, test_part, names


def _refuse_flat_part(
    path: Path, parts: dict[str, tuple[str, ...]], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]]
) -> None:
    """One part has folders of classes and the other has none, as ImageNet's `val` comes out of its archive."""
    classes = {name: sorted(_children(folder, folders)) for name, folder in parts.items()}
    for flat, other in (tuple(parts), tuple(parts)[::-1]):
        inside = sum(_is_below(file, parts[flat]) for file in pictures)
        if inside and not classes[flat] and classes[other]:
            raise UserError(
                f"{path}/{flat}: has {inside:,} pictures but no folders of classes, and '{other}' has "
                f"{len(classes[other]):,} ({some_of(classes[other])}). Sort the pictures into the same folders of "
                f"classes as those of '{other}', as torchvision wants them; or set data.classes to false."
            )


def _is_below(file: PictureFile, folder: tuple[str, ...]) -> bool:
    return len(file.parts) > len(folder) and file.parts[: len(folder)] == folder


def _children(folder: tuple[str, ...], folders: set[tuple[str, ...]]) -> set[str]:
    return {other[-1] for other in folders if other[:-1] == folder}


def _enter_wrappers(path: Path, pictures: Sequence[PictureFile], folders: set[tuple[str, ...]]) -> tuple[str, ...]:
    """The folder where classes or parts begin: below single folders that hold only folders."""
    root: tuple[str, ...] = ()
    while len(children := _children(root, folders)) == 1:
        below = (*root, *children)
        if min(len(file.parts) for file in pictures) <= len(below) + 1:
            break  # pictures lie in the single folder, so it is a class, or beside it
        root = below
    if root:
        _log.info("%s: everything lies in %s", path, "/".join(root))
    return root


def _classes_below(
    path: Path, root: tuple[str, ...], pictures: Sequence[PictureFile], folders: set[tuple[str, ...]], has_classes: bool
) -> dict[str, list[PictureFile]]:
    """The pictures of every class folder in ``root``, or all as one class."""
    where = "/".join((str(path), *root))
    inside = [file for file in pictures if _is_below(file, root)]
    if not has_classes:
        return {"all": inside}
    names = _children(root, folders)
    loose = [file for file in inside if len(file.parts) == len(root) + 1]
    if not names and inside:
        return {"all": inside}
    if loose:
        raise UserError(
            f"{loose[0].name}: lies beside folders of classes ({some_of(sorted(names))}), so its "
            f"class is unclear. Move it into one of them, or put all pictures into one folder for a "
            f"single class."
        )
    classes: dict[str, list[PictureFile]] = {name: [] for name in names}
    for file in inside:
        classes[file.parts[len(root)]].append(file)
    empty = sorted(name for name, members in classes.items() if not members)
    if empty or not classes:
        culprit = f"{where}/{empty[0]}" if empty else where
        raise UserError(
            f"{culprit}: holds no pictures, though every folder in {where} is taken for a class. Fill it or remove it."
        )
    return classes


def _labelled(classes: dict[str, list[PictureFile]], names: Sequence[str]) -> _Part:
    return [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]


# Reading pictures


class Encoded(Protocol):
    """A picture as it is stored: its name for messages, and its bytes as a seekable file."""

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...


class Size(Protocol):
    """What becomes of a picture; settings with these keys are one."""

    @property
    def resolution(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def crop(self) -> Crop: ...


class DecodedPictures:
    """Pictures that are decoded, on all cores, when a slice of them is asked for: uint8 (N, H, W, C).

    Threads will do, because Pillow decodes and resizes outside Python's lock.

    Args:
        files: in order.
        size: what becomes of them.
        opened: what has to stay open as long as they may be read; closed with the last reference.
    """

    def __init__(self, files: Sequence[Encoded], size: Size, opened: ExitStack | None = None) -> None:
        self._files, self._size, self._opened = files, size, opened
        self.shape = (len(files), size.resolution, size.resolution, size.channels)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: slice) -> np.ndarray:
        from PIL import Image

        Image.init()  # loads the decoders before threads would do so at the same time
        files = self._files[rows]
        result = np.empty((len(files), *self.shape[1:]), dtype=np.uint8)

        def work(start: int) -> None:
            for index in range(start, min(start + CHUNK, len(files))):
                result[index] = read_picture(files[index], self._size)

        with ThreadPoolExecutor(_cores()) as pool:
            jobs = [pool.submit(work, start) for start in range(0, len(files), CHUNK)]
            try:
                for job in jobs:  # in order, so that of several bad files the first is named
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return result


def _fingerprint(files: Iterable[PictureFile]) -> str:
    """Of names, sizes and times, not of the content."""
    digest = hashlib.sha256()
    for file in files:
        if isinstance(file.place, Path):
            exists = file.place.exists()  # a dangling link is refused when it is read
            status = file.place.stat() if exists else file.place.lstat()
            facts: tuple[int, ...] = (status.st_size, status.st_mtime_ns)
        else:
            facts = (file.place[1].CRC, file.place[1].file_size)
        digest.update(repr((file.parts, *facts)).encode())
    return digest.hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_picture(file: Encoded, size: Size) -> np.ndarray:
    """Reads and converts one picture as the module's docstring says.

    Returns:
        uint8 array, shape (resolution, resolution, channels).

    Raises:
        UserError: the file is truncated, damaged, no picture, too large, or of a kind that is refused.
    """
    from PIL import Image

    try:
        with file.open() as handle, Image.open(handle, formats=FORMATS) as image:
            _refuse_sizes(file, image)
            image.load()
            picture = _to_mode(file, _upright(image), "RGB" if size.channels == 3 else "L")
            converted = _resized(picture, size.resolution, size.crop)
    except (
        OSError,
        SyntaxError,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        RuntimeError,  # zipfile, too: passwords and unknown compression
        EOFError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"{file.name}: cannot be read as a picture ({error}). It may be truncated or damaged; replace or remove it."
        ) from error
    return np.asarray(converted).reshape(size.resolution, size.resolution, size.channels)


def _refuse_sizes(file: Encoded, image: "Image.Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected at most {MAX_PIXELS} in all (protection "
            f"against decompression bombs). Make it smaller or remove it."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected sides of at most {MAX_ASPECT} to 1. Crop or remove it."
        )


def _upright(image: "Image.Image") -> "Image.Image":
    """Applies the EXIF orientation.

    Called after decoding, because Pillow turns TIFFs itself then, and drops the tag.
    """
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _to_mode(file: Encoded, image: "Image.Image", mode: Literal["L", "RGB"]) -> "Image.Image":
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(file, image)
    if image.has_transparency_data:
        if image.mode == "La":  # grey with premultiplied alpha, for which Pillow knows only this step
            image = image.convert("LA")
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise UserError(
            f"{file.name}: its pixels are of Pillow's mode {image.mode}, for which there is no defined "
            f"conversion to eight bits. Convert it to an 8-bit PNG."
        )
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def _from_16_bit(file: Encoded, image: "Image.Image") -> "Image.Image":
    from PIL import Image

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{file.name}: has values from {values.min()} to {values.max()}, expected integers from 0 to "
            f"65535. Convert it to a PNG."
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    # A PNG may name one 16-bit value as transparent, that is white after compositing.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _resized(image: "Image.Image", resolution: int, crop: Crop) -> "Image.Image":
    """With the roundings of the published code."""
    from PIL import Image

    if crop == "lanczos":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    if crop == "adm":
        while min(image.size) >= 2 * resolution:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    filter_of = Image.Resampling.BICUBIC if crop == "adm" else Image.Resampling.BOX
    image = image.resize((round(image.width * scale), round(image.height * scale)), filter_of)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))
