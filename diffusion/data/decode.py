"""From encoded pictures to arrays of one size.

Conversion of a picture, in this order
    1. The first frame of an animation is taken, whole: no reduced JPEG decoding.
    2. The EXIF orientation is applied; one that cannot be read is none. Colour profiles are ignored.
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

Pictures that cannot be used are refused together, each with its reason, when all of them have been looked at.
"""

import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import numpy as np

from diffusion.data.settings import Crop
from diffusion.runtime.errors import UserError, first_line, some_of

if TYPE_CHECKING:
    from PIL import Image

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

# Bad pictures that an error names with their reasons.
MOST_NAMED = 20

# How files begin that are often called pictures: at which byte, with what, what they are.
_READABLE = (
    *((0, b"BM", "BMP"), (0, b"GIF8", "GIF"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG", "PNG")),
    *((0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (8, b"WEBP", "WEBP"), (0, b"P5", "PPM"), (0, b"P6", "PPM")),
)
_FOREIGN = (
    *((4, b"ftypavi", "AVIF"), (4, b"ftyphe", "HEIC"), (4, b"ftypmif1", "HEIC or AVIF"), (4, b"ftyp", "MP4 or MOV")),
    *((0, b"\xff\x0a", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"), (0, b"8BPS", "Photoshop's PSD")),
    *((0, b"\0\0\1\0", "ICO"), (0, b"%PDF", "PDF"), (0, b"%!PS", "PostScript"), (0, b"RIFF", "a file of RIFF")),
    *((0, b"<svg", "SVG"), (0, b"<?xml", "XML or SVG"), (0, b"<!doctype html", "HTML"), (0, b"<html", "HTML")),
    *((0, b"PK\3\4", "a zip"), (0, b"\x1f\x8b", "gzip"), (0, b"\x93NUMPY", "an array of NumPy")),
    (0, b"version https://git-lfs", "a pointer of Git LFS, for which `git lfs pull` fetches the file"),
)

_log = logging.getLogger(__name__)


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


def decoded_parts(
    train: Sequence[Encoded], test: Sequence[Encoded], size: Size, opened: ExitStack | None = None
) -> "tuple[DecodedPictures, DecodedPictures]":
    """The pictures of both parts, to be decoded when they are asked for.

    Args:
        train, test: in order.
        size: what becomes of them.
        opened: what has to stay open as long as they may be read; closed with the last reference.
    """
    decoder = _Decoder([*train, *test], size, opened)
    return DecodedPictures(decoder, 0, len(train)), DecodedPictures(decoder, len(train), len(test))


class DecodedPictures:
    """The pictures of a part, decoded on all cores when a slice of them is asked for: uint8 (N, H, W, C).

    Threads will do, because Pillow decodes and resizes outside Python's lock. Where a picture cannot be used, all that
    were not seen yet are looked at, of the other part, too, so that one error names all of them.
    """

    def __init__(self, decoder: "_Decoder", first: int, count: int) -> None:
        self._decoder, self._first = decoder, first
        self.shape = (count, decoder.size.resolution, decoder.size.resolution, decoder.size.channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        from PIL import Image

        Image.init()  # loads the decoders before threads would do so at the same time
        start, stop, _ = rows.indices(len(self))
        result = np.empty((stop - start, *self.shape[1:]), dtype=np.uint8)

        def work(first: int) -> None:
            for index in range(first, min(first + CHUNK, stop)):
                result[index - start] = self._decoder.decoded(self._first + index)

        with ThreadPoolExecutor(_cores()) as pool:
            try:
                for _ in pool.map(work, range(start, stop, CHUNK)):  # an error cancels what has not begun
                    pass
            except UserError as error:
                _log.warning(
                    "%s All other pictures are looked at, so that what cannot be used is named at once.", error
                )
                raise UserError(self._decoder.all_bad() or str(error)) from error
        if stop == len(self):
            self._decoder.warn_of_one_colour(self._first, self._first + stop)
        return result


class _Decoder:
    """The pictures of both parts, and what was seen of them."""

    def __init__(self, files: Sequence[Encoded], size: Size, opened: ExitStack | None) -> None:
        self.size, self._files, self._opened = size, files, opened
        # Of each picture: 0 not decoded yet, 1 decoded, 2 of one colour.
        self._seen = bytearray(len(files))

    def decoded(self, index: int) -> np.ndarray:
        pixels = read_picture(self._files[index], self.size)
        self._seen[index] = 2 if (pixels == pixels[0, 0]).all() else 1
        return pixels

    def all_bad(self) -> str:
        """A line a picture that cannot be used, up to :data:`MOST_NAMED`, and how many there are."""

        def work(index: int) -> str | None:
            try:
                self.decoded(index)
            except UserError as error:
                return str(error)
            return None

        lines: list[str] = []
        count = 0
        with ThreadPoolExecutor(_cores()) as pool:
            for start in range(0, len(self._files), 1024):  # of millions, what is to be done would fill the memory
                unseen = [index for index, seen in enumerate(self._seen[start : start + 1024], start) if not seen]
                bad = list(filter(None, pool.map(work, unseen)))
                lines += bad[: MOST_NAMED - len(lines)]
                count += len(bad)
        if count > len(lines):
            lines.append(
                f"… and {count - len(lines):,} more: {count:,} pictures of {len(self._files):,} cannot be used."
            )
        return "\n".join(lines)

    def warn_of_one_colour(self, start: int, stop: int) -> None:
        seen = self._seen[start:stop]
        plain = [self._files[index].name for index, what in enumerate(seen, start) if what == 2]
        if plain:
            read = len(seen) - seen.count(0)
            _log.warning("%d of %d pictures are of one colour throughout: %s", len(plain), read, some_of(plain))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_picture(file: Encoded, size: Size) -> np.ndarray:
    """Reads and converts one picture as the module's docstring says.

    Returns:
        uint8 array, shape (resolution, resolution, channels).

    Raises:
        UserError: the file is truncated, damaged, no picture, too large, or of a kind that is refused.
    """
    from PIL import Image, ImageOps

    try:
        with file.open() as handle, Image.open(handle, formats=FORMATS) as image:
            _refuse_sizes(file, image)
            image.load()  # before the EXIF orientation is looked at: Pillow turns TIFFs itself then, and drops the tag
            with suppress(Exception):  # whatever its reader of TIFF raises: the pixels are whole
                ImageOps.exif_transpose(image, in_place=True)
            picture = _to_mode(file, image, "RGB" if size.channels == 3 else "L")
            converted = resized(picture, size.resolution, size.crop)
    except Image.DecompressionBombError as error:
        raise UserError(f"{file.name}: has too many pixels ({error}). Make it smaller, or take it out.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{file.name}: {_what_it_is(file)}") from error
    except NotImplementedError as error:
        raise UserError(f"{file.name}: cannot be unpacked ({error}). Pack the zip by another method.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        RuntimeError,  # zipfile, too: passwords
        EOFError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file.name}: cannot be read ({error.strerror}).") from error
        raise UserError(f"{file.name}: cannot be read as a picture ({first_line(error)}). {_DAMAGED}") from error
    return np.asarray(converted).reshape(size.resolution, size.resolution, size.channels)


_DAMAGED = "It may be truncated or damaged; replace it, or take it out."


def _what_it_is(file: Encoded) -> str:
    """In words, of a file that is none of :data:`FORMATS`."""
    with file.open() as handle:
        head = handle.read(32)
    if not head:
        return f"cannot be read as a picture (it has 0 bytes). {_DAMAGED}"
    text = head.lstrip(b"\xef\xbb\xbf\r\n\t ").lower()
    names = [
        name for at, begin, name in (*_READABLE, *_FOREIGN) if head[at:].startswith(begin) or text.startswith(begin)
    ]
    if any(name == readable for name in names for *_, readable in _READABLE):
        return f"cannot be read as a picture (it begins like {names[0]}, and what follows is none). {_DAMAGED}"
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    begins = f"like {names[0]}" if names else f"with the bytes {head[:8].hex(' ')}"
    return f"is not a {formats} (it begins {begins}). Put it there in one of these formats, or take it out."


def _refuse_sizes(file: Encoded, image: "Image.Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected at most {MAX_PIXELS} in all (protection "
            f"against decompression bombs). Make it smaller, or take it out."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{file.name}: has {width}×{height} pixels, expected sides of at most {MAX_ASPECT} to 1. Crop it, or take "
            f"it out."
        )


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


def resized(image: "Image.Image", resolution: int, crop: Crop) -> "Image.Image":
    """An image as a square of so many pixels a side, with the roundings of the published code."""
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
