"""A folder or a zip of pictures, with classes as subfolders, or with captions.

The layout is that of :mod:`diffusion.data.layout`, the conversion that of :mod:`diffusion.data.decode`, captions are
those of :mod:`diffusion.data.captions`.
"""

import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.captions import captioned, read_captions
from diffusion.data.decode import decoded_parts
from diffusion.data.layout import EXPECTED, FolderSettings, Layout, label_tables, warn_of_skipped
from diffusion.data.listing import FOLDER_OR_ZIP, fingerprint_of, is_picture, list_folder, list_zip, zip_holds_a_picture
from diffusion.data.store import Splits, holds
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import is_left_over
from diffusion.runtime.settings import UserPath


class Settings(FolderSettings):
    """Where the pictures are."""

    kind: Literal["images"]
    # A folder or a zip; relative to the folder the workflow is started in, ~ is the home folder.
    path: UserPath = pydantic.Field(min_length=1)
    # The name of a file of captions inside, at the top or in each part. With it captions are the classes, and folders
    # are none; null has none.
    captions: str | None = pydantic.Field(default=None, pattern=r"^[^/\\]+$")

    later: ClassVar[tuple[str, ...]] = ("captions",)

    @pydantic.model_validator(mode="after")
    def _captions_are_the_classes(self) -> "Settings":
        if self.captions is not None and self.num_classes is not None:
            raise ValueError("num_classes: given with captions, which are the classes then; remove one of the two")
        return self


def prepare(settings: Settings) -> Splits:
    """Lists the pictures; they are read when they are asked for. The module's docstring has layout and conversion.

    Raises:
        UserError: the path or the layout cannot be used; and, when it is read, a picture. The message names the file.
    """
    path = Path(settings.path)
    with ExitStack() as stack:
        files, folders = list_folder(path) if path.is_dir() else list_zip(path, stack)
        captions = None
        if settings.captions is not None:
            captions = read_captions(path, settings.captions, files)
            files = [file for file in files if file.parts[-1] != settings.captions]
            settings = settings.model_copy(update={"classes": False})
        tables = label_tables(files) if settings.classes else {}
        warn_of_skipped(path, files, tables)
        pictures = sorted((file for file in files if is_picture(file.parts[-1])), key=lambda f: (f.parts, f.name))
        if not pictures:
            raise UserError(f"{path}: holds no pictures ({len(files)} other files). {EXPECTED}")
        train, test, class_names = Layout(path, pictures, folders, tables, settings).arrange()
        if captions is not None:
            (train, test), class_names = captioned(path, captions, train, test)
        settings.refuse_other_number(str(path), {"train": len(train), "test": len(test)})
        for name, part in (("train", train), ("test", test)):
            if len(part) < 2:
                raise UserError(
                    f"{path}: the {name} part has {len(part)} picture(s), expected at least 2 (there are "
                    f"{len(pictures)} in all). Add pictures or change test_fraction."
                )
        opened = stack.pop_all()  # a zip stays open for as long as its pictures may be read
    train_images, test_images = decoded_parts([file for file, _ in train], [file for file, _ in test], settings, opened)
    train_labels, test_labels = (np.array([label for _, label in part], dtype=np.int64) for part in (train, test))
    return Splits(
        *(train_images, train_labels, test_images, test_labels, class_names),
        source=f"pictures in {path.name}",
        # Folders of classes are in the pictures' paths; a table or a caption is not.
        fingerprint=fingerprint_of([*train, *test], class_names if tables or captions else ()),
    )


def problems(settings: Settings) -> list[str]:
    """What is wrong with ``data.path`` as far as a moment shows; an answer of [] does not mean that all is right."""
    path = Path(settings.path)
    if not path.exists():
        raise UserError(f"{path}: not found (looked for it in {Path.cwd()}). {FOLDER_OR_ZIP}")
    if not path.is_dir() and not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is neither a folder nor a whole zip. {FOLDER_OR_ZIP}")
    if not (holds(path, is_picture, is_left_over) if path.is_dir() else zip_holds_a_picture(path)):
        raise UserError(f"{path}: holds no pictures. {EXPECTED}")
    if settings.captions and path.is_dir() and not holds(path, settings.captions.__eq__, is_left_over):
        return [f"data.captions: found {settings.captions!r}, expected the name of a file in {path}."]
    return []


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
