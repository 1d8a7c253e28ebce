"""Which pictures of a folder or a zip are for training and for testing, and of which class.

A folder for training (``train``, ``Training``, ``train_images``, ``train2017``, …) and one for testing at the
top are the two parts, and the classes are the folders below them. For testing serves the first that exists of
test, validation, hold-out, evaluation and development, each in the forms that people write. Names that share
what else they say (``seg_train`` and ``seg_test``) are parts, too. A folder of one kind beside folders that may
be classes is refused, and so are two folders of one kind, and parts below the classes.
Without parts the classes are the folders at the top, and a part of every class is split off for testing.
Pictures in no subfolder are one class, named ``all``, and so are all pictures with ``classes: false``. Pictures
deeper down belong to the class folder above them. If everything lies in one folder that holds only folders, as
in many zips, or in one part alone, that folder is entered first.
Where ``dataset.json`` of EDM and StyleGAN lies at the top or in a part, the labels are read from it, and folders
are no classes: ``{"labels": [["00000/img.png", 3], …]}``, with names from its own folder on; without labels
(``{"labels": null}``) all pictures are one class. The classes are the numbers that occur, in their order.
Classes and pictures are in the order of their names (by code point). Files that are not pictures by their extension are
skipped and counted in the log.
"""

import json
import logging
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.listing import EXTENSIONS, PictureFile, composed, is_picture, parts_of_entry
from diffusion.data.settings import PictureSettings
from diffusion.data.store import stratified_split
from diffusion.runtime.errors import UserError, first_line, some_of

# How people write the parts' names; those for testing are in the order in which they are taken.
_PART_WORDS = {
    "train": r"train(?:ing)?s?|trn",
    "test": r"test(?:ing)?s?|tst",
    "validation": r"val(?:id|idation)?s?",
    "hold-out": r"h[eo]ldouts?",
    "evaluation": r"eval(?:uation)?s?",
    "development": r"dev(?:elopment)?s?",
}
# What names of parts hold besides, and what says nothing.
_FILLERS = r"(?:data|sets?|datasets?|images?|imgs?|pictures?|photos?|splits?|parts?|folders?)"
# The labels' file of EDM and StyleGAN.
TABLE = "dataset.json"

EXPECTED = f"Expected files that end in one of {' '.join(EXTENSIONS)}, with classes as subfolders."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A ``dataset.json``: the classes' numbers by the pictures' parts, None where it says that there are no labels."""

    name: str
    labels: dict[tuple[str, ...], int] | None


# By the folder in which they lie.
Tables = dict[tuple[str, ...], Table]


def label_tables(files: Sequence[PictureFile]) -> Tables:
    found = {}
    for file in files:
        if file.parts[-1] != TABLE:
            continue
        try:
            with file.open() as handle:
                content = json.load(handle)
        except (OSError, ValueError, RuntimeError, RecursionError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{file.name}: cannot be read as JSON ({first_line(error)}); expected the labels of EDM and StyleGAN. "
                f"Write it anew, or rename it if it has nothing to do with labels."
            ) from error
        if isinstance(content, dict) and "labels" in content:
            folder = file.parts[:-1]
            found[folder] = Table(file.name, _table_labels(file.name, folder, content["labels"]))
    return found


def _table_labels(name: str, folder: tuple[str, ...], pairs: Any) -> dict[tuple[str, ...], int] | None:
    """Checked as far as they can be without the pictures."""
    if pairs is None:
        return None
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    form = 'Expected {"labels": [["00000/img.png", 3], …]} with one class number a picture, or {"labels": null}'
    if not isinstance(pairs, list):
        raise UserError(f"{name}: 'labels' is {type(pairs).__name__}. {form}.")
    labels: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"{name}: 'labels' holds {some_of([json.dumps(pair)])[:80]}. {form}.")
        parts = (*folder, *map(composed, parts_of_entry(pair[0])))
        if parts in labels:
            raise UserError(f"{name}: has two labels of {pair[0]}. {form}.")
        # A label that is null is none, as -1 is.
        labels[parts] = -1 if pair[1] is None else pair[1]
        if type(labels[parts]) is not int:
            raise UserError(f"{name}: the label of {pair[0]} is {json.dumps(pair[1])[:80]}. {form}.")
    if unlabelled := sum(number < 0 for number in labels.values()):
        raise UserError(
            f"{name}: {unlabelled:,} of {len(labels):,} pictures have no label (null, or a number below 0). Label them "
            f"or leave them out; or set data.classes to false, so that all pictures are one class."
        )
    return labels


def warn_of_skipped(path: Path, files: Sequence[PictureFile], tables: "Tables") -> None:
    skipped = Counter(
        os.path.splitext(file.parts[-1])[1].lower() or "no extension"
        for file in files
        if not is_picture(file.parts[-1]) and not (file.parts[-1] == TABLE and file.parts[:-1] in tables)
    )
    if skipped:
        detail = some_of([f"{count} × {extension}" for extension, count in sorted(skipped.items())])
        _log.warning("%s: skipped %d files that are not pictures (%s)", path, skipped.total(), detail)


class FolderSettings(PictureSettings):
    """How a folder or a zip is read."""

    # Whether subfolders are classes; false where they only keep folders small, as FFHQ's 00000, 01000, … do.
    classes: bool = True


_Part = list[tuple[PictureFile, int]]


def _part_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Which part a folder of this name is, and what else the name says; None where it names no part, or several.

    ``Train``, ``training_set`` and ``trainImages2017`` are ("train", ()), ``seg_test`` is ("test", ("seg",)).
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = re.findall(r"[^\W\d_]+", re.sub(r"\b(h[eo]ld)[ _-]*(outs?)", r"\1\2", apart))
    found: list[str] = []
    others: list[str] = []
    for word in words:
        part = next((p for p, form in _PART_WORDS.items() if re.fullmatch(f"(?:{form}){_FILLERS}?", word)), None)
        if part is not None:
            found.append(part)
        elif not re.fullmatch(_FILLERS, word):
            others.append(word)
    return (found[0], tuple(others)) if len(found) == 1 else None


def _parts_among(names: Collection[str]) -> dict[str, list[str]]:
    """The folders that are parts, by the part, in the order of :data:`_PART_WORDS`."""
    grouped: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in sorted(names):
        if known := _part_of(name):
            grouped.setdefault(known[1], {}).setdefault(known[0], []).append(name)
    # A name that says more, as "train_station" does, is a part only beside one for testing that says the same.
    sure = [parts for others, parts in grouped.items() if not others or ("train" in parts and len(parts) > 1)]
    found = {part: [name for parts in sure for name in parts.get(part, [])] for part in _PART_WORDS}
    return {part: folders for part, folders in found.items() if folders}


@dataclass(frozen=True)
class Layout:
    """The pictures of a folder or a zip, the folders in it, the tables that label them, and how they are to be read."""

    path: Path
    pictures: Sequence[PictureFile]
    folders: set[tuple[str, ...]]
    tables: Tables
    settings: FolderSettings

    def arrange(self) -> tuple[_Part, _Part, tuple[str, ...]]:
        """Train part, test part (pictures with labels, in the order of names) and the names of the classes.

        Raises:
            UserError: what are parts and what are classes is unclear, or what the settings ask for is not there.
        """
        root = self._enter_wrappers()
        if (parts := self._find_parts(root)) is not None:
            return self._arrange_parts(root, parts)
        classes = self._classes_in(root)
        names = tuple(classes)
        self.settings.refuse_other_classes(str(self.path), names)
        everything = _labelled(classes, names)
        labels = np.array([label for _, label in everything])
        held_out = round(self.settings.test_fraction * len(everything))
        try:
            indices = stratified_split(labels, held_out, self.settings.split_seed)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        train, test = ([everything[index] for index in part] for part in indices)
        return train, test, names

    def _arrange_parts(
        self, root: tuple[str, ...], parts: dict[str, tuple[str, ...]]
    ) -> tuple[_Part, _Part, tuple[str, ...]]:
        where, own = self._where(root), {part: folder[-1] for part, folder in parts.items()}
        if unused := len(self.pictures) - sum(len(self._below(part)) for part in parts.values()):
            _log.warning(
                "%s: uses %s and %s; %d pictures elsewhere are left out", self.path, own["train"], own["test"], unused
            )
        inner = {part: self._enter_repeated(folder) for part, folder in parts.items()}
        if self.settings.classes and not any(self._table_of(folder) for folder in inner.values()):
            self._refuse_flat_part(where, {own[part]: folder for part, folder in inner.items()})
        train, test = self._classes_in(inner["train"]), self._classes_in(inner["test"])
        names = tuple(train)
        if strange := [name for name in test if name not in train]:
            raise UserError(
                f"{where}: the classes {some_of(strange)} of '{own['test']}' do not occur in '{own['train']}', which "
                f"has {some_of(names)}. Both need the same classes."
            )
        self.settings.refuse_other_classes(f"{where}/{own['train']}", names)
        wanted = self.settings.num_classes
        if wanted is not None and (absent := [name for name in train if name not in test]):
            raise UserError(
                f"{where}/{own['test']}: found {len(test):,} folders of classes, expected {wanted:,} "
                f"(data.num_classes), those of '{own['train']}'; it lacks {some_of(absent)}. Unpack it again."
            )
        return _labelled(train, names), _labelled(test, names), names

    def _where(self, folder: tuple[str, ...]) -> str:
        return "/".join((str(self.path), *folder))

    def _below(self, folder: tuple[str, ...]) -> list[PictureFile]:
        """The pictures in a folder, at any depth."""
        return [file for file in self.pictures if file.parts[:-1][: len(folder)] == folder]

    @cached_property
    def _by_parent(self) -> dict[tuple[str, ...], set[str]]:
        found: dict[tuple[str, ...], set[str]] = {}
        for folder in self.folders:
            found.setdefault(folder[:-1], set()).add(folder[-1])
        return found

    def _children(self, folder: tuple[str, ...]) -> set[str]:
        return self._by_parent.get(folder, set())

    def _table_of(self, folder: tuple[str, ...]) -> Table | None:
        """The table that labels what is in a folder: its own, or that of the nearest folder above."""
        above = (folder[:depth] for depth in range(len(folder), -1, -1))
        return next((self.tables[one] for one in above if one in self.tables), None)

    def _enter_wrappers(self) -> tuple[str, ...]:
        """Where classes or parts begin: below single folders that hold only folders, and below a part alone."""
        root: tuple[str, ...] = ()
        while root not in self.tables and len(children := self._children(root)) == 1:
            below = (*root, *children)
            # With pictures beside the folder it is a class; so it is with pictures in it, unless it is known otherwise.
            is_class = not _parts_among(children) and below not in self.tables
            if min(len(file.parts) for file in self.pictures) <= len(below) + is_class:
                break
            root = below
        if root:
            _log.info("%s: everything lies in %s", self.path, "/".join(root))
        return root

    def _enter_repeated(self, part: tuple[str, ...]) -> tuple[str, ...]:
        """A part's folder, or the one of the same name in it, as archives that are unpacked into themselves have."""
        again = (*part, part[-1])
        alone = self._children(part) == {part[-1]} and len(self._below(part)) == len(self._below(again))
        return again if alone else part

    def _find_parts(self, root: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
        """The folders of the train and the test part; None where the pictures are in no parts.

        Raises:
            UserError: what are parts and what are classes is unclear.
        """
        where, names = self._where(root), self._children(root)
        parts = _parts_among(names)
        for part, several in parts.items():
            if len(several) > 1:
                raise UserError(
                    f"{where}: the folders {some_of(several)} may each be the {part} part. Rename what is not, so that "
                    f"no name says '{part}', or keep it elsewhere."
                )
        training, testing = parts.pop("train", None), [name for several in parts.values() for name in several]
        if training and testing:
            return {"train": (*root, training[0]), "test": (*root, testing[0])}
        others = sorted(names - {*(training or []), *testing})
        if any(file.parts[:-1] == root for file in self.pictures):
            others.append("pictures in no folder")
        if (training or testing) and (others or len(testing) > 1):
            found = some_of([*(training or []), *testing])
            raise UserError(
                f"{where}: {found} {'are parts' if len(testing) > 1 else 'may be a part or a class'}, and there is no "
                f"{'test' if training else 'train'} part{f' beside {some_of(others)}' if others else ''}. Name the two "
                f"parts train and test, with the classes below them; or rename a class that is called so."
            )
        for name in sorted(names):
            below = _parts_among(self._children((*root, name)))
            if "train" in below and len(below) > 1:
                inside = [f"{name}/{folder}" for several in below.values() for folder in several]
                raise UserError(
                    f"{where}: the parts {some_of(inside)} lie below '{name}', so that pictures for testing would be "
                    f"trained on. Move the parts to the top, with the classes below them; or name {where}/{name} as "
                    f"data.path."
                )
        return None

    def _refuse_flat_part(self, where: str, parts: dict[str, tuple[str, ...]]) -> None:
        """One part has folders of classes and the other has none, as ImageNet's `val` comes out of its archive."""
        classes = {name: sorted(self._children(folder)) for name, folder in parts.items()}
        for flat, other in (tuple(parts), tuple(parts)[::-1]):
            inside = len(self._below(parts[flat]))
            if inside and not classes[flat] and classes[other]:
                raise UserError(
                    f"{where}/{flat}: has {inside:,} pictures but no folders of classes, and '{other}' has "
                    f"{len(classes[other]):,} ({some_of(classes[other])}). Sort the pictures into the same folders of "
                    f"classes as those of '{other}', as torchvision wants them; or set data.classes to false."
                )

    def _classes_in(self, folder: tuple[str, ...]) -> dict[str, list[PictureFile]]:
        """The pictures of every class in a folder, in the order of the names or numbers, or all as one class."""
        if (table := self._table_of(folder)) is not None:
            return self._classes_of_table(table, folder)
        inside, names = self._below(folder), sorted(self._children(folder))
        if not self.settings.classes or (inside and not names):
            return {"all": inside}
        if loose := next((file for file in inside if file.parts[:-1] == folder), None):
            raise UserError(
                f"{loose.name}: lies beside folders of classes ({some_of(names)}), so its class is unclear. Move it "
                f"into one of them, or put all pictures into one folder for a single class."
            )
        classes: dict[str, list[PictureFile]] = {name: [] for name in names}
        for file in inside:
            classes[file.parts[len(folder)]].append(file)
        empty = [name for name, members in classes.items() if not members]
        if empty or not classes:
            where = self._where(folder)
            raise UserError(
                f"{'/'.join([where, *empty[:1]])}: holds no pictures, though every folder in {where} is taken for a "
                f"class. Fill it, or keep it elsewhere."
            )
        return classes

    def _classes_of_table(self, table: Table, folder: tuple[str, ...]) -> dict[str, list[PictureFile]]:
        """The pictures in a folder by the numbers that a table gives them, in the order of the numbers."""
        inside = self._below(folder)
        if table.labels is None:
            _log.info("%s: has no labels, so that all pictures are one class", table.name)
            return {"all": inside}
        _log.info("%s: the labels are read from it", table.name)
        known = {file.parts for file in inside}
        labelled = [parts for parts in table.labels if parts[: len(folder)] == folder]
        for names, what in (
            ([file.name for file in inside if file.parts not in table.labels], "has no label of {} pictures"),
            (
                ["/".join(parts) for parts in labelled if parts not in known],
                "labels {} files that are no pictures in its folder",
            ),
        ):
            if names:
                raise UserError(
                    f"{table.name}: {what.format(f'{len(names):,}')} ({some_of(names)}), of {len(inside):,} there are. "
                    f"Expected each picture's name from the folder of {TABLE} on, with its label. Write it anew."
                )
        classes: dict[str, list[PictureFile]] = {str(n): [] for n in sorted({table.labels[one] for one in known})}
        for file in inside:
            classes[str(table.labels[file.parts])].append(file)
        return classes


def _labelled(classes: dict[str, list[PictureFile]], names: Sequence[str]) -> _Part:
    return [(file, label) for label, name in enumerate(names) for file in classes.get(name, [])]
