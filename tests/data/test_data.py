"""Data sets: the contract that every kind keeps, the store, and the conversion of pictures."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import typing
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffusion.data import decode, listing, store
from diffusion.data import kinds as data
from diffusion.data.decode import read_picture
from diffusion.data.kinds import images as images_kind
from diffusion.data.listing import PictureFile
from diffusion.data.store import Shards, Splits, stratified_split
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file

RED, BLUE = (255, 0, 0), (0, 0, 255)


# The contract


@pytest.fixture(params=sorted(data.kinds()))
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "hub":
        pytest.importorskip("datasets")
    return request.param


def tiny(kind: str, folder: Path) -> typing.Any:
    return data.parse_settings(data.kinds()[kind].tiny_settings(folder))


def prepared(settings: typing.Any) -> Splits:
    """With every picture read."""
    splits = data.prepare(settings)
    return replace(splits, train_images=splits.train_images[:], test_images=splits.test_images[:])


def all_arrays(splits: Splits) -> list[np.ndarray]:
    return [splits.train_images, splits.train_labels, splits.test_images, splits.test_labels]


def test_settings_are_strict_and_describe_the_pictures(kind: str, tmp_path: Path) -> None:
    module = data.kinds()[kind]
    raw = module.tiny_settings(tmp_path / "source")
    settings: typing.Any = data.parse_settings(raw)
    assert module.Settings.model_fields["kind"].annotation == typing.Literal[kind]
    with pytest.raises(UserError, match=r"data\.no_such_key: unknown key"):
        data.parse_settings({**raw, "no_such_key": 1})
    with pytest.raises(Exception, match="frozen"):
        settings.kind = "other"
    # What a manifest records can be read back.
    assert data.parse_settings(settings.model_dump(mode="json")) == settings
    splits = prepared(settings)
    channels, height, width = settings.shape
    assert splits.train_images.shape[1:] == (height, width, channels)
    assert tuple(splits.attributes) == settings.attributes


def test_flips_change_nothing_that_is_stored(kind: str, tmp_path: Path) -> None:
    raw = data.kinds()[kind].tiny_settings(tmp_path / "source")
    if kind == "digit_pairs":
        with pytest.raises(UserError, match=r"data\.flip: found true, expected false: of a mirrored image its caption"):
            data.parse_settings(raw | {"flip": True})
        return
    plain, flipped = (data.parse_settings(raw | more) for more in ({}, {"flip": True}))
    assert (plain.flip, flipped.flip) == (False, True)
    # They are compared as text: a key that says nothing must not be in it.
    assert "flip" not in plain.model_dump(mode="json")
    assert data.parse_settings(flipped.model_dump(mode="json")) == flipped
    assert flipped.model_dump(mode="json", exclude={"flip"}) == plain.model_dump(mode="json")
    for one, other in zip(all_arrays(prepared(plain)), all_arrays(prepared(flipped)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_prepares_two_valid_and_disjoint_parts(kind: str, tmp_path: Path) -> None:
    splits = prepared(tiny(kind, tmp_path / "source"))
    for part in ("train", "test"):
        images, labels = getattr(splits, f"{part}_images"), getattr(splits, f"{part}_labels")
        assert images.dtype == np.uint8
        assert images.ndim == 4
        assert len(images) == len(labels) >= 2
        assert labels.dtype == np.int64
        assert set(labels) <= set(range(len(splits.class_names)))
        assert images.max() > 128, "the range is 0 to 255"
        assert images.min() < 128
    if splits.attributes:  # captions, of which evaluation may ask for new ones
        assert all(len(values) == len(splits.class_names) for values in splits.attributes.values())
    else:
        assert set(splits.train_labels) >= set(splits.test_labels)
    train = {image.tobytes() for image in splits.train_images}
    assert not train & {image.tobytes() for image in splits.test_images}


def test_is_the_same_twice(kind: str, tmp_path: Path) -> None:
    settings = tiny(kind, tmp_path / "source")
    first, second = prepared(settings), prepared(settings)
    for one, other in zip(all_arrays(first), all_arrays(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_written_and_loaded(kind: str, tmp_path: Path) -> None:
    settings = tiny(kind, tmp_path / "source")
    splits = prepared(settings)
    store.write_dataset(tmp_path / "data", splits, settings)
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert manifest["settings"] == settings.model_dump(mode="json")
    assert manifest["source"]
    for part in ("train", "test"):
        loaded = store.load_split(tmp_path / "data", part)
        np.testing.assert_array_equal(loaded.images, getattr(splits, f"{part}_images"))
        np.testing.assert_array_equal(loaded.labels, getattr(splits, f"{part}_labels"))
        assert isinstance(loaded.images, Shards)
        assert loaded.class_names == splits.class_names
        assert loaded.attributes == splits.attributes
        assert loaded.shape == settings.shape
        assert loaded.name == part
        entry = manifest["splits"][part]
        assert loaded.sha256 == entry["sha256"]["images"]
        assert entry["sha256"]["labels"] == sha256_file(tmp_path / f"data/{part}-labels.npy")
        hashes = [sha256_file(tmp_path / "data" / shard["file"]) for shard in entry["shards"]]
        assert [shard["sha256"] for shard in entry["shards"]] == hashes
        assert entry["sha256"]["images"] == hashlib.sha256("".join(hashes).encode()).hexdigest()
        assert entry["count"] == sum(entry["per_class"]) == len(loaded.images)
        assert [int((loaded.labels == c).sum()) for c in range(len(loaded.class_names))] == entry["per_class"]
    # The same content gives the same bytes, so that nothing downstream is made again.
    store.write_dataset(tmp_path / "again", prepared(settings), settings)
    assert (tmp_path / "again/manifest.json").read_bytes() == (tmp_path / "data/manifest.json").read_bytes()


def test_kinds_are_cheap_to_import() -> None:
    code = (
        "import sys; from diffusion.data.kinds import kinds; kinds(); "
        "print([name for name in ('sklearn', 'PIL.Image', 'diffusers', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Settings


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "imagenet"}, r"data\.kind: found 'imagenet', expected one of: cifar10, digit_pairs, digits, "),
        ({}, r"data\.kind: is missing, expected one of: cifar10, digit_pairs, digits, "),
        ({"kind": ["digits"]}, r"data\.kind: found \['digits'\]"),
        ("digits", r"data: found 'digits', expected a block"),
        ({"kind": "digits", "test_size": "many"}, r"data\.test_size: found 'many'"),
        ({"kind": "digits", "test_size": "true"}, r"data\.test_size: found 'true'"),
        ({"kind": "digits", "test_size": 36.5}, r"data\.test_size: found 36\.5"),
        ({"kind": "images", "path": 5, "resolution": 8}, r"data\.path: found 5"),
        ({"kind": "images", "path": "x", "resolution": "null"}, r"data\.resolution: found 'null'"),
        ({"kind": "cifar10", "whole": "null"}, r"data\.whole: found 'null'"),
        ({"kind": "digits", "test_size": 1797}, r"data\.test_size: found 1797"),
        ({"kind": "images", "path": "x"}, r"data\.resolution: missing"),
        ({"kind": "images", "path": "x", "resolution": True}, r"data\.resolution: found true, expected a number"),
        (
            {"kind": "images", "path": "x", "resolution": 8, "channels": True},
            r"data\.channels: found true, expected 1 or 3",
        ),
        ({"kind": "images", "path": "x", "resolution": 8, "channels": 4}, r"data\.channels: found 4"),
        (
            {"kind": "images", "path": "x", "resolution": 8, "test_fraction": 1.0},
            r"data\.test_fraction: found",
        ),
    ],
)
def test_bad_settings_are_refused(raw: typing.Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.parse_settings(raw)


@pytest.mark.parametrize(
    ("texts", "meant"),
    [
        (
            {"kind": "images", "path": "32", "resolution": "32", "channels": "1", "test_fraction": "0.1"},
            {"kind": "images", "path": "32", "resolution": 32, "channels": 1, "test_fraction": 0.1},
        ),
        ({"kind": "cifar10", "path": "null", "whole": "false"}, {"kind": "cifar10", "path": None, "whole": False}),
    ],
)
def test_the_texts_of_the_command_line_are_taken_for_what_they_say(
    texts: dict[str, str], meant: dict[str, typing.Any]
) -> None:
    assert data.parse_settings(texts).model_dump_json() == data.parse_settings(meant).model_dump_json()


# The split


def test_stratified_split_keeps_proportions_and_is_pinned() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    train, test = stratified_split(labels, 25, seed=0)
    assert sorted([*train, *test]) == list(range(100))
    assert sorted(np.bincount(labels[test]).tolist(), reverse=True) in ([13, 7, 5], [12, 8, 5])
    # The split must never change, on no platform and with no library: published figures hang on it.
    assert stratified_split(np.zeros(10, int), 3, seed=0)[1].tolist() == [0, 4, 6]
    assert stratified_split(np.zeros(10, int), 3, seed=1)[1].tolist() == [0, 1, 3]


def test_stratified_split_leaves_every_class_in_training() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    train, test = stratified_split(labels, 3, seed=0)
    assert set(labels[train]) == {0, 1, 2}
    assert len(test) == 3
    with pytest.raises(UserError, match="4 pictures cannot be taken from 6 pictures in 3 classes"):
        stratified_split(labels, 4, seed=0)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    splits = prepared(data.parse_settings({"kind": "digits"}))
    assert splits.train_images.shape == (1437, 8, 8, 1)
    assert splits.test_images.shape == (360, 8, 8, 1)
    assert splits.class_names == tuple("0123456789")
    shares = np.bincount(splits.test_labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(shares, 360 / 1797, atol=0.01)
    levels = {round(255 * count / 16) for count in range(17)}
    assert set(np.unique(splits.train_images)) == levels
    whole = np.concatenate([splits.train_images, splits.test_images])[..., 0]
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in whole) == sorted(image.tobytes() for image in original)
    other = prepared(data.parse_settings({"kind": "digits", "split_seed": 1, "test_size": 100}))
    assert len(other.test_images) == 100


# The store


def some_splits(**changes: typing.Any) -> Splits:
    parts = {
        "train_images": np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1),
        "train_labels": np.array([0, 1, 0]),
        "test_images": np.zeros((2, 2, 2, 1), np.uint8),
        "test_labels": np.array([1, 1]),
        "class_names": ("a", "b"),
        "source": "made for a test",
    }
    return Splits(**{**parts, **changes})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    store.write_dataset(tmp_path / "data", some_splits(), data.parse_settings({"kind": "digits"}))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "changes",
    [
        {"train_images": np.zeros((3, 2, 2, 1), np.float32)},
        {"train_images": np.zeros((3, 2, 3, 1), np.uint8)},
        {"train_images": np.zeros((3, 2, 2, 4), np.uint8)},
        {"test_images": np.zeros((2, 4, 4, 1), np.uint8)},
        {"test_images": np.zeros((0, 2, 2, 1), np.uint8), "test_labels": np.zeros(0, np.int64)},
        {"train_labels": np.array([0, 1])},
        {"train_labels": np.array([0, 1, 2])},
        {"train_labels": np.array([0, 1, -1])},
        {"train_labels": np.array([0.0, 1.0, 0.0])},
        {"class_names": ("a", "a")},
        {"attributes": {"left": [0]}},
        {"attributes": {"left": [0, 1, 2]}},
        {"attributes": {"left": [0, 1], "right": [0, -1]}},
        {"attributes": {"left": [0, 1.0]}},
        {"attributes": {"left": [0, True]}},
        {"attributes": {"left": np.array([0, 1])}},
        {"attributes": [[0, 1]]},
    ],
)
def test_store_refuses_splits_that_break_the_contract(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must"):
        store.write_dataset(tmp_path / "data", some_splits(**changes), data.parse_settings({"kind": "digits"}))
    assert not list(tmp_path.iterdir())


def test_store_replaces_a_data_set(stored: Path) -> None:
    (stored / "left-over").touch()
    store.write_dataset(stored, some_splits(), data.parse_settings({"kind": "digits"}))
    assert sorted(path.name for path in stored.iterdir()) == [
        "manifest.json",
        "test-00000.npy",
        "test-labels.npy",
        "train-00000.npy",
        "train-labels.npy",
    ]


def test_load_refuses_what_does_not_fit_the_manifest(stored: Path) -> None:
    def refuses(message: str) -> None:
        with pytest.raises(UserError, match=message):
            store.load_split(stored, "train")

    images, labels = stored / "train-00000.npy", stored / "train-labels.npy"
    whole_images, whole_labels = images.read_bytes(), labels.read_bytes()
    np.save(images, np.zeros((4, 2, 2, 1), np.uint8))
    refuses(r"train-00000\.npy: found uint8 \(4, 2, 2, 1\), expected uint8 \(3, 2, 2, 1\)")
    np.save(images, np.zeros((3, 2, 2, 1), np.int16))
    refuses("found int16")
    images.write_bytes(whole_images[:-1])
    refuses(r"train-00000\.npy: cannot be read as an array")
    images.write_bytes(b"")
    refuses("cannot be read as an array")
    images.unlink()
    refuses(r"train-00000\.npy: not found, though the manifest lists it")
    images.write_bytes(whole_images)
    np.save(labels, np.array([0, 1, 2]))
    refuses("labels reach from 0 to 2, expected 0 to 1")
    np.save(labels, np.array([0, 1, None], dtype=object), allow_pickle=True)
    refuses("cannot be read as an array .*Python objects")
    with labels.open("wb") as handle:
        np.savez(handle, labels=np.array([0, 1, 0]))
    refuses("found an archive")
    labels.write_bytes(whole_labels)
    store.load_split(stored, "train")
    (stored / "manifest.json").write_text("{}")
    refuses("is not a manifest")
    (stored / "manifest.json").unlink()
    refuses(r"manifest\.json: not found")


# Images that are not square, and attributes


WIDE = {
    "train_images": np.arange(3 * 8 * 16, dtype=np.int64).astype(np.uint8).reshape(3, 8, 16, 1),
    "test_images": np.full((2, 8, 16, 1), 7, np.uint8),
    "attributes": {"left": [3, 0], "right": (7, 12)},
}


@pytest.fixture
def stored_wide(tmp_path: Path) -> Path:
    store.write_dataset(tmp_path / "data", some_splits(**WIDE), data.parse_settings({"kind": "digits"}))
    return tmp_path / "data"


def test_images_need_not_be_square(stored_wide: Path) -> None:
    manifest = json.loads((stored_wide / "manifest.json").read_text())
    assert (manifest["resolution"], manifest["channels"]) == ([8, 16], 1)
    for part in store.PARTS:
        split = store.load_split(stored_wide, part)
        assert split.shape == (1, 8, 16)
        np.testing.assert_array_equal(split.images, WIDE[f"{part}_images"])
    assert [file.name for file in store.stored_files(stored_wide, "test")] == ["test-00000.npy", "test-labels.npy"]


def test_the_parts_have_one_height_and_width(tmp_path: Path) -> None:
    turned = some_splits(**{**WIDE, "test_images": np.zeros((2, 16, 8, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"one shape in both parts, found \(2, 16, 8, 1\)"):
        store.write_dataset(tmp_path / "data", turned, data.parse_settings({"kind": "digits"}))


def test_height_and_width_are_not_confused(stored_wide: Path) -> None:
    np.save(stored_wide / "test-00000.npy", np.zeros((2, 16, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"found uint8 \(2, 16, 8, 1\), expected uint8 \(2, 8, 16, 1\)"):
        store.load_split(stored_wide, "test")


def test_of_square_images_the_manifest_says_the_side(stored: Path) -> None:
    """As before there were others; and nothing of attributes that there are not."""
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["resolution"] == 2
    assert "attributes" not in manifest
    split = store.load_split(stored, "train")
    assert split.shape == (1, 2, 2)
    assert split.attributes == {}


def test_attributes_are_written_and_read(stored_wide: Path) -> None:
    expected = {"left": [3, 0], "right": [7, 12]}
    assert json.loads((stored_wide / "manifest.json").read_text())["attributes"] == expected
    for part in store.PARTS:
        assert store.load_split(stored_wide, part).attributes == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attributes", [[3, 0], [7, 12]], "attributes must be a mapping"),
        ("attributes", None, "attributes must be a mapping"),
        ("attributes", {"left": [3, 0], "right": [7]}, r"attributes\['right'\] must be a whole number"),
        ("attributes", {"left": [3, 0, 1]}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": [3, -1]}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": [3, 0.5]}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": [3, True]}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": "30"}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": {"a": 3, "b": 0}}, r"attributes\['left'\] must be a whole number"),
        ("attributes", {"left": 3}, r"attributes\['left'\] must be a whole number"),
        ("resolution", [8, 16, 1], "too many values"),
        ("resolution", None, "NoneType"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    key: str, value: typing.Any, message: str, stored_wide: Path
) -> None:
    file = stored_wide / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    for read in (store.load_split, store.stored_files):
        with pytest.raises(UserError, match=rf"manifest\.json: is not a manifest of a data set .*{message}"):
            read(stored_wide, "train")


# Layouts of folders and zips


def picture(path: Path, colour: typing.Any = RED, size: tuple[int, int] = (4, 4), **options: typing.Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path, **options)
    return path


def prepare(path: Path, **settings: typing.Any) -> Splits:
    return prepared(data.parse_settings({"kind": "images", "path": str(path), "resolution": 4, **settings}))


def zipped(folder: Path, target: Path, with_folders: bool = False) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file() or with_folders:
                archive.write(path, path.relative_to(folder).as_posix())
    return target


@pytest.fixture(params=["folder", "zip", "zip with folders"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> typing.Callable[[Path], Path]:
    """Leaves a folder as it is or packs it."""
    if request.param == "folder":
        return lambda folder: folder
    return lambda folder: zipped(folder, tmp_path / "pictures.zip", request.param == "zip with folders")


Packed = typing.Callable[[Path], Path]


def test_classes_at_the_top_are_split(tmp_path: Path, packed: Packed) -> None:
    for index in range(10):
        picture(tmp_path / "p" / "b" / f"{index}.png", (index, 0, 0))
        picture(tmp_path / "p" / "a" / "deeper" / f"{index}.png", (0, index, 0))
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.3)
    assert splits.class_names == ("a", "b")
    assert np.bincount(splits.train_labels).tolist() == [7, 7]
    assert np.bincount(splits.test_labels).tolist() == [3, 3]
    # In the order of names in each part, and with the right labels.
    for images, labels in (
        (splits.train_images, splits.train_labels),
        (splits.test_images, splits.test_labels),
    ):
        assert labels.tolist() == sorted(labels)
        assert (images[labels == 1][..., 0, 0, 0] == sorted(images[labels == 1][..., 0, 0, 0])).all()
        assert (images[labels == 0][..., 0] == 0).all()
        assert (images[labels == 1][..., 1] == 0).all()
    other = prepare(packed(tmp_path / "p"), test_fraction=0.3, split_seed=1)
    assert not np.array_equal(other.test_images, splits.test_images)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "test"), ("train", "val"), ("train", "valid"), ("train", "Validation"), ("Train", "DEV")),
        *(("Training", "Testing"), ("training", "validation"), ("TRAIN", "eval"), ("train", "Evaluation")),
        *(("training_set", "test_set"), ("trainset", "test-images"), ("TrainImages", "TestImages"), ("trn", "tst")),
        *(("train2017", "val2017"), ("train", "holdout"), ("train", "held-out"), ("train", "hold out")),
        *(
            ("seg_train/seg_train", "seg_test/seg_test"),
            ("asl alphabet train", "asl alphabet test"),
            ("x/train", "x/test"),
        ),
    ],
)
def test_a_split_in_the_folder_is_used(train: str, test: str, tmp_path: Path, packed: Packed) -> None:
    for index in range(2):
        for label in "ab":
            picture(tmp_path / "p" / train / label / f"{index}.png", RED)
        picture(tmp_path / "p" / test / "b" / f"{index}.png", BLUE)
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert splits.class_names == ("a", "b")
    assert splits.train_labels.tolist() == [0, 0, 1, 1]
    assert splits.test_labels.tolist() == [1, 1]
    assert (splits.train_images == RED).all()
    assert (splits.test_images == BLUE).all()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["bus", "car", "train"], "train may be a part or a class, and there is no test part beside bus, car"),
        (["cat", "dog", "Testing"], "Testing may be a part or a class, and there is no train part beside cat, dog"),
        (["Val", ""], "Val may be a part or a class, and there is no train part beside pictures in no folder"),
        (["cat", "val", "test"], "test, val are parts, and there is no train part beside cat"),
        (["val/a", "test/a"], "test, val are parts, and there is no train part. "),
        (["train/a", "Training/a", "test/a"], "the folders Training, train may each be the train part"),
        (["train/a", "val/a", "validation/a"], "the folders val, validation may each be the validation part"),
        (["trainA", "trainB", "testA", "testB"], "the folders trainA, trainB may each be the train part"),
        (["cat/train", "cat/test", "dog/train"], "the parts cat/train, cat/test lie below 'cat'"),
        (["images/train", "images/val", "labels"], "the parts images/train, images/val lie below 'images'"),
    ],
)
@pytest.mark.parametrize("classes", [True, False])
def test_what_may_be_a_part_or_a_class_is_refused(
    folders: list[str], message: str, classes: bool, tmp_path: Path, packed: Packed
) -> None:
    for folder in folders:
        for index in range(5):
            picture(tmp_path / "p" / folder / f"{index}.png")
    with pytest.raises(UserError, match=rf"^{packed(tmp_path / 'p')}: {message}"):
        prepare(packed(tmp_path / "p"), classes=classes)


@pytest.mark.parametrize("name", ["train_station", "contest", "Devon", "trainer", "valley", "testament", "evaluator 2"])
def test_classes_whose_names_hold_a_part_s_stay_classes(name: str, tmp_path: Path, packed: Packed) -> None:
    for label in ("a", name):
        for index in range(4):
            picture(tmp_path / "p" / label / f"{index}.png")
    assert set(prepare(packed(tmp_path / "p"), test_fraction=0.5).class_names) == {"a", name}


@pytest.mark.parametrize(("folder", "names"), [("train", ("all",)), ("Testing/a", ("a",)), ("x/train/train", ("all",))])
def test_a_part_alone_is_entered(folder: str, names: tuple[str, ...], tmp_path: Path, packed: Packed) -> None:
    for index in range(4):
        picture(tmp_path / "p" / folder / f"{index}.png")
    assert prepare(packed(tmp_path / "p"), test_fraction=0.5).class_names == names


LEFT_OVER = (
    *("__MACOSX/a/._0.png", ".hidden/0.png", "a/.0.png", ".ipynb_checkpoints/0-checkpoint.png", "a/.DS_Store"),
    *("@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/0.png", "@Recycle/0.png"),
    *("$RECYCLE.BIN/S-1-5/0.png", "System Volume Information/0.png", "Thumbs.db", "a/desktop.ini", "lost+found/0.png"),
    *("a/Icon\r", "Network Trash Folder/0.png", "Temporary Items/0.png", "LOST.DIR/0.png", "~snapshot/0.png"),
)


def test_what_systems_leave_is_no_class_and_no_picture(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    for label in "ab":
        for index in range(4):
            picture(tmp_path / "p" / label / f"{index}.png")
    for name in LEFT_OVER:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("not a picture")
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert len(splits.train_images) + len(splits.test_images) == 8
    assert splits.class_names == ("a", "b")
    assert "skipped" not in caplog.text


def test_unicode_s_forms_of_a_name_are_one_class(tmp_path: Path, packed: Packed) -> None:
    one, other = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    for part, names in (("train", (one, other, "dog")), ("test", (other, "dog"))):
        for name in names:
            for index in range(3):
                picture(tmp_path / "p" / part / name / f"{index}.png", RED if name == "dog" else BLUE)
    splits = prepare(packed(tmp_path / "p"))
    assert splits.class_names == (one, "dog")
    # Both forms in one part, with the same names of files: none of them is lost.
    assert splits.train_labels.tolist() == [0] * 6 + [1] * 3
    assert splits.test_labels.tolist() == [0] * 3 + [1] * 3
    assert (splits.train_images[:6] == BLUE).all()


# Labels in a table


def labelled(folder: Path, labels: typing.Any) -> Path:
    """Twelve pictures in numbered folders as EDM's ``dataset_tool.py`` writes them; the first pixel is the index."""
    for index in range(12):
        picture(folder / f"{index // 5:05}" / f"img{index:08}.png", (index, 0, 0))
    folder.mkdir(exist_ok=True)
    content = labels if isinstance(labels, str) else json.dumps({"labels": labels})
    (folder / "dataset.json").write_text(content)
    return folder


NAMES = [f"{index // 5:05}/img{index:08}.png" for index in range(12)]
# Ten comes after three, and there is no class in between.
PAIRS = [[name, 10 if index % 2 else 3] for index, name in enumerate(NAMES)]


@pytest.mark.parametrize("pairs", [PAIRS, dict(PAIRS), [[f".\\{n}".replace("/", "\\"), label] for n, label in PAIRS]])
@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_labels_are_read_from_a_table(pairs: typing.Any, inside: str, tmp_path: Path, packed: Packed) -> None:
    labelled(tmp_path / "p" / inside, pairs)
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert splits.class_names == ("3", "10")
    for images, labels in ((splits.train_images, splits.train_labels), (splits.test_images, splits.test_labels)):
        assert labels.tolist() == (images[:, 0, 0, 0] % 2).tolist() == sorted(labels)
        assert len(labels) == 6


def test_a_table_without_labels_makes_one_class(tmp_path: Path, packed: Packed) -> None:
    labelled(tmp_path / "p", None)
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert splits.class_names == ("all",)
    assert len(splits.train_images) == 6
    labelled(tmp_path / "p", PAIRS)
    assert prepare(packed(tmp_path / "p"), test_fraction=0.5, classes=False).class_names == ("all",)


def test_parts_may_have_tables(tmp_path: Path, packed: Packed) -> None:
    labelled(tmp_path / "p" / "train", PAIRS)
    labelled(tmp_path / "p" / "val", [[name, 10] for name in NAMES])
    splits = prepare(packed(tmp_path / "p"))
    assert splits.class_names == ("3", "10")
    assert splits.test_labels.tolist() == [1] * 12
    # One for both, from where it lies.
    for part in ("train", "val"):
        (tmp_path / "p" / part / "dataset.json").unlink()
    both = [[f"{part}/{name}", label] for part in ("train", "val") for name, label in PAIRS]
    (tmp_path / "p" / "dataset.json").write_text(json.dumps({"labels": both}))
    splits = prepare(packed(tmp_path / "p"))
    assert sorted(splits.test_labels.tolist()) == [0] * 6 + [1] * 6
    assert splits.class_names == ("3", "10")


def test_another_table_is_another_source(tmp_path: Path, packed: Packed) -> None:
    def fingerprint() -> str:
        path = packed(tmp_path / "p")
        return data.prepare(data.parse_settings({"kind": "images", "path": str(path), "resolution": 4})).fingerprint

    labelled(tmp_path / "p", PAIRS)
    first = fingerprint()
    assert fingerprint() == first
    labelled_before = (tmp_path / "p" / "dataset.json").stat()
    # Of the same size, at the same time; the split is the same, too.
    (tmp_path / "p" / "dataset.json").write_text(json.dumps({"labels": PAIRS}).replace(", 3]", ", 4]"))
    os.utime(tmp_path / "p" / "dataset.json", ns=(labelled_before.st_atime_ns, labelled_before.st_mtime_ns))
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (PAIRS[:9], r"has no label of 3 pictures \(.*00001/img00000009\.png, .*11\.png\), of 12 there are"),
        ([*PAIRS, ["00000/x.png", 1]], r"labels 1 files that are no pictures in its folder \(00000/x\.png\)"),
        ([*PAIRS, [NAMES[0], 1]], r"has two labels of 00000/img00000000\.png"),
        ([[name, 0.5] for name in NAMES], r"the label of 00000/img00000000\.png is 0\.5\. Expected"),
        ([[name, [0, 1]] for name in NAMES], r"the label of 00000/img00000000\.png is \[0, 1\]\. Expected"),
        ([[name, "cat"] for name in NAMES], r"the label of 00000/img00000000\.png is \"cat\"\. Expected"),
        ([[name, True] for name in NAMES], r"the label of 00000/img00000000\.png is true\. Expected"),
        ([[name, -1] for name in NAMES[:2]] + PAIRS[2:], r"2 of 12 pictures have no label .*data\.classes to false"),
        ([[name, None] for name in NAMES], r"12 of 12 pictures have no label"),
        ([1, 2, 3], r"'labels' holds 1\. Expected"),
        ("x", r"cannot be read as JSON \(.*\); expected the labels of EDM and StyleGAN"),
        (3, r"'labels' is int\. Expected"),
    ],
)
def test_tables_that_do_not_fit_are_refused(labels: typing.Any, message: str, tmp_path: Path, packed: Packed) -> None:
    path = packed(labelled(tmp_path / "p", labels))
    with pytest.raises(UserError, match=rf"^{path}/dataset\.json: {message}"):
        prepare(path)


def test_a_file_of_that_name_without_labels_is_no_table(tmp_path: Path, packed: Packed) -> None:
    labelled(tmp_path / "p" / "x", '{"title": "mine"}')
    assert prepare(packed(tmp_path / "p"), test_fraction=0.5).class_names == ("00000", "00001", "00002")


def test_test_comes_before_val_and_the_rest_is_logged(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    for part, colour in (("train", RED), ("val", RED), ("test", BLUE)):
        for index in range(2):
            picture(tmp_path / "p" / part / f"{index}.png", colour)
    splits = prepare(packed(tmp_path / "p"))
    assert splits.class_names == ("all",)
    assert (splits.test_images == BLUE).all()
    assert "2 pictures elsewhere are left out" in caplog.text


def test_no_subfolders_are_one_class(tmp_path: Path, packed: Packed) -> None:
    for index in range(4):
        picture(tmp_path / "p" / f"{index}.png")
    splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert splits.class_names == ("all",)
    assert len(splits.train_images) == len(splits.test_images) == 2


def test_a_single_outer_folder_is_entered(tmp_path: Path, packed: Packed) -> None:
    for index in range(4):
        for label in "ab":
            picture(tmp_path / "p" / "my-pictures" / label / f"{index}.png")
    assert prepare(packed(tmp_path / "p"), test_fraction=0.5).class_names == ("a", "b")


def test_a_single_class_folder_is_a_class(tmp_path: Path, packed: Packed) -> None:
    for index in range(4):
        picture(tmp_path / "p" / "cats" / f"{index}.png")
    assert prepare(packed(tmp_path / "p"), test_fraction=0.5).class_names == ("cats",)


def test_hidden_files_and_other_files_are_skipped(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(4):
        picture(tmp_path / "p" / "a" / f"{index}.png")
    for name in ("__MACOSX/a/._0.png", ".hidden/0.png", "a/.0.png", "a/notes.txt", "labels.csv", "a/x.heic"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("not a picture")
    with caplog.at_level(logging.WARNING):
        splits = prepare(packed(tmp_path / "p"), test_fraction=0.5)
    assert len(splits.train_images) + len(splits.test_images) == 4
    assert splits.class_names == ("a",)
    assert "skipped 3 files that are not pictures (1 × .csv, 1 × .heic, 1 × .txt)" in caplog.text


def test_names_of_windows_zips(tmp_path: Path) -> None:
    source = picture(tmp_path / "0.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a\\0.png", "a\\1.png", "b\\0.png", "b\\1.png"):
            archive.writestr(name, source)
    assert prepare(tmp_path / "p.zip", test_fraction=0.5).class_names == ("a", "b")


def test_names_that_point_outside_a_zip_do_no_harm(tmp_path: Path) -> None:
    source = picture(tmp_path / "0.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("../../x/0.png", "/etc/1.png", "/etc/2.png", "a/3.png", "a/4.png"):
            archive.writestr(name, source)
    before = sorted(tmp_path.rglob("*"))
    splits = prepare(tmp_path / "p.zip", test_fraction=0.5)
    assert splits.class_names == ("a", "etc")
    assert sorted(tmp_path.rglob("*")) == before


# Layouts that are refused


def refuses(path: Path, message: str, **settings: typing.Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(path, **settings)
    assert str(path) in str(caught.value)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "nowhere: not found .* Expected a folder or a zip")
    picture(tmp_path / "one.png")
    refuses(tmp_path / "one.png", r"one\.png: is neither a folder nor a whole zip")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 but nothing more")
    refuses(tmp_path / "cut.zip", r"cut\.zip: is neither a folder nor a whole zip")


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    refuses(tmp_path / "p", "holds no pictures")
    with zipfile.ZipFile(tmp_path / "p.zip", "w"):
        pass
    refuses(tmp_path / "p.zip", "holds no pictures")
    for index in range(4):
        picture(tmp_path / "p" / "a" / f"{index}.png")
    (tmp_path / "p" / "b").mkdir()
    refuses(tmp_path / "p", "p/b: holds no pictures, though every folder")
    refuses(zipped(tmp_path / "p", tmp_path / "p.zip", with_folders=True), "b: holds no pictures, though")


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / "p" / "a" / f"{index}.png")
    refuses(tmp_path / "p", r"the test part has 1 picture\(s\), expected at least 2 \(there are 4 in all\)")
    for index in range(4):
        picture(tmp_path / "single" / f"class-{index}" / "0.png")
    refuses(tmp_path / "single", "every class keeps one picture for training", test_fraction=0.5)
    picture(tmp_path / "parts" / "train" / "0.png")
    for index in range(2):
        picture(tmp_path / "parts" / "test" / f"{index}.png")
    refuses(tmp_path / "parts", "the train part has 1")


def test_unclear_classes_are_refused(tmp_path: Path) -> None:
    for label in "ab":
        picture(tmp_path / "p" / label / "0.png")
    picture(tmp_path / "p" / "loose.png")
    refuses(tmp_path / "p", r"loose\.png: lies beside folders of classes \(a, b\)")
    for part, label in (("train", "a"), ("train", "b"), ("test", "c")):
        picture(tmp_path / "parts" / part / label / "0.png")
    refuses(tmp_path / "parts", "the classes c of 'test' do not occur in 'train', which has a, b")
    picture(tmp_path / "half" / "train" / "a" / "0.png")
    (tmp_path / "half" / "test").mkdir()
    refuses(tmp_path / "half", "half/test: holds no pictures")


@pytest.mark.parametrize(("flat", "other"), [("val", "train"), ("train", "val")])
def test_a_part_without_class_folders_is_refused_as_that(flat: str, other: str, tmp_path: Path, packed: Packed) -> None:
    """As ImageNet's validation pictures come out of their archive."""
    for index in range(8):
        picture(tmp_path / "p" / other / f"n{index:08}" / "0.png")
        picture(tmp_path / "p" / flat / f"{index}.png")
    few = "n00000000, n00000001, n00000002, n00000003, n00000004 and 3 more"
    with pytest.raises(UserError, match=rf"/{flat}: has 8 pictures but no folders of classes") as caught:
        prepare(packed(tmp_path / "p"))
    assert f"'{other}' has 8 ({few}). Sort the pictures into the same folders" in str(caught.value)


def test_of_many_names_a_few_are_shown(tmp_path: Path) -> None:
    for index in range(1000):
        for part in ("train", "test"):
            folder = tmp_path / "p" / part / f"{part}-{index:03}"
            folder.mkdir(parents=True)
            (folder / "0.png").touch()
    with pytest.raises(UserError, match=r"test-004 and 995 more of 'test' .* train-004 and 995 more") as caught:
        prepare(tmp_path / "p")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_missing_classes_and_pictures_are_refused_before_any_is_read(tmp_path: Path, packed: Packed) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for label in "abc":
            for index in range(count):
                (tmp_path / "p" / part / label).mkdir(parents=True, exist_ok=True)
                (tmp_path / "p" / part / label / f"{index}.png").write_bytes(b"never read")

    def refused(message: str, **settings: typing.Any) -> None:
        path = packed(tmp_path / "p")
        with pytest.raises(UserError, match=message):
            data.prepare(data.parse_settings({"kind": "images", "path": str(path), "resolution": 4, **settings}))

    whole = {"kind": "images", "path": str(packed(tmp_path / "p")), "resolution": 4, "num_classes": 3}
    assert len(data.prepare(data.parse_settings(whole | {"num_pictures": 15})).train_images) == 9
    refused(r"/train: found 3 classes \(a, b, c\), expected 1,000 \(data\.num_classes\)", num_classes=1000)
    refused(r"found 15 pictures \(train 9, test 6\), expected 16 \(data\.num_pictures\)", num_pictures=16)
    shutil.rmtree(tmp_path / "p" / "val" / "b")
    refused(r"/val: found 2 folders of classes, expected 3 .* those of 'train'; it lacks b\. Unpack", num_classes=3)
    shutil.rmtree(tmp_path / "p" / "val")  # and without a part of its own for testing
    refused(r"found 3 classes \(a, b, c\), expected 4", num_classes=4)
    refused(r"found 9 pictures \(train 7, test 2\), expected 15", num_pictures=15)


@pytest.mark.parametrize("kind", ["images", "lsun", "hub"])
def test_what_is_not_asked_for_leaves_the_settings_as_they_were(kind: str, tmp_path: Path) -> None:
    """They are compared as text: a new key would prepare, and train, everything again."""
    settings = tiny(kind, tmp_path / "source")
    assert not {"num_pictures", "num_classes", "classes"} & set(settings.model_dump(mode="json"))
    asked = data.parse_settings(settings.model_dump(mode="json") | {"num_pictures": 12})
    assert asked.model_dump(mode="json") == settings.model_dump(mode="json") | {"num_pictures": 12}
    assert data.parse_settings(json.loads(asked.model_dump_json())) == asked


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_subfolders_need_not_be_classes(tmp_path: Path, packed: Packed, parts: tuple[str, ...]) -> None:
    """FFHQ has a folder for every thousand pictures."""
    for part in parts:
        for index in range(8):
            picture(tmp_path / "p" / part / f"0{index // 3}000" / f"{index}.png", (index, 0, 0))
    (tmp_path / "p" / "09000").mkdir()
    loose = picture(tmp_path / "p" / parts[0] / "loose.png", (9, 0, 0))
    splits = prepare(packed(tmp_path / "p"), classes=False)
    assert splits.class_names == ("all",)
    assert set(splits.train_labels) == set(splits.test_labels) == {0}
    assert len(splits.train_images) + len(splits.test_images) == 8 * len(parts) + 1
    if parts == ("",):  # the split is that of the same pictures in one folder
        loose.unlink()
        (tmp_path / "flat").mkdir()
        for file in (tmp_path / "p").rglob("*.png"):
            shutil.copy(file, tmp_path / "flat")
        for one, other in zip(
            all_arrays(prepare(tmp_path / "p", classes=False)), all_arrays(prepare(tmp_path / "flat")), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "a" / "0.png")
    (tmp_path / "p" / "a" / "loop").symlink_to(tmp_path / "p")
    refuses(tmp_path / "p", "loop: is a link to a folder above it")
    (tmp_path / "p" / "a" / "loop").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p" / "a" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "p")
    refuses(tmp_path / "p", "out/back: is a link to a folder above it")


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / "elsewhere" / f"{index}.png")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p" / "b").symlink_to(tmp_path / "elsewhere")
    assert prepare(tmp_path / "p", test_fraction=0.5).class_names == ("a", "b")


# Pictures that are refused


def with_bad(tmp_path: Path, name: str, content: bytes | None) -> Path:
    """A folder of nine good pictures and a bad one."""
    for index in range(9):
        picture(tmp_path / "p" / f"{index}.png")
    if content is not None:
        (tmp_path / "p" / name).write_bytes(content)
    return tmp_path / "p"


def encoded(image: Image.Image, suffix: str, **options: typing.Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm"])
def test_truncated_pictures_are_refused(suffix: str, tmp_path: Path, packed: Packed) -> None:
    whole = encoded(noise(), suffix)
    for index, size in enumerate((0, 20, len(whole) // 2, len(whole) * 9 // 10)):
        folder = with_bad(tmp_path / str(index), f"bad.{suffix}", whole[:size])
        refuses(packed(folder), rf"/bad\.{suffix}: cannot be read as a picture .* truncated or damaged")


def test_all_bad_pictures_are_named_each_with_its_reason(tmp_path: Path, packed: Packed) -> None:
    whole = encoded(noise(), "jpeg")
    contents = {
        "train/1.jpg": (b"\0\0\0 ftypavif\0\0\0\0avif", "is not a BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP .*like AVIF"),
        "train/2.png": (b"\n<!DOCTYPE html><p>404", "is not a BMP, .*like HTML"),
        "train/3.png": (b"version https://git-lfs.github.com/spec/v1", "is not a BMP, .*Git LFS, .*git lfs pull"),
        "train/4.gif": (b"bad", "is not a BMP, .*with the bytes 62 61 64"),
        "train/5.png": (b"", "cannot be read as a picture .*0 bytes"),
        "test/1.jpg": (whole[:20], "cannot be read as a picture .*begins like JPEG, .*truncated or damaged"),
        "test/2.jpg": (whole[:500], "cannot be read as a picture .*truncated or damaged"),
        "test/3.jpg": (b"\0\0\0 ftypheic\0\0\0\0", "is not a BMP, .*like HEIC"),
    }
    for part in ("train", "test"):
        for index in range(300):
            picture(tmp_path / "p" / part / f"good-{index}.png")
    for name, (content, _) in contents.items():
        (tmp_path / "p" / name).write_bytes(content)
    path = packed(tmp_path / "p")
    splits = data.prepare(data.parse_settings({"kind": "images", "path": str(path), "resolution": 4}))
    # In whichever order the parts are read.
    for images in (splits.test_images, splits.train_images):
        with pytest.raises(UserError) as caught:
            images[:]
        lines = str(caught.value).splitlines()
        assert len(lines) == len(contents)
        for line, (name, (_, reason)) in zip(lines, contents.items(), strict=True):
            assert re.match(rf"{path}/{name}: {reason}", line)
            assert "<_io" not in line


def test_of_very_many_bad_pictures_some_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_NAMED", 3)
    folder = with_bad(tmp_path, "x", None)
    for index in range(200):
        (folder / f"b{index:03}.png").write_bytes(b"bad")
    with pytest.raises(UserError) as caught:
        prepare(folder, test_fraction=0.5)
    *named, last = str(caught.value).splitlines()
    assert len(named) == 3
    assert last == "… and 197 more: 200 pictures of 209 cannot be used."


def test_pictures_are_counted_by_class_and_those_of_one_colour_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part, count in (("train", 4), ("test", 2)):
        for label in ("a", "b") if part == "train" else ("a",):
            for index in range(count):
                path = picture(tmp_path / "p" / part / label / f"{index}.png")
                noise((4, 4)).save(path)
    picture(tmp_path / "p/train/b/1.png", (9, 9, 9))
    picture(tmp_path / "p/train/b/2.png", 7)
    with caplog.at_level(logging.INFO):
        prepare(tmp_path / "p")
    assert "train part: 8 images, 2 class(es): a 4, b 4" in caplog.text
    assert "test part: 2 images, 2 class(es): a 2, b 0" in caplog.text
    plain = [record for record in caplog.records if "of one colour" in record.message]
    names = f"{tmp_path}/p/train/b/1.png, {tmp_path}/p/train/b/2.png"
    assert [record.getMessage() for record in plain] == [f"2 of 8 pictures are of one colour throughout: {names}"]
    assert plain[0].levelno == logging.WARNING


def test_other_contents_under_a_picture_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def ghostscript(*arguments: typing.Any, **options: typing.Any) -> typing.Any:
        started.append(arguments)
        return noise().im

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    for index, content in enumerate((b"<html></html>", b"\x80\x04K\x01.", program)):
        folder = with_bad(tmp_path / str(index), "bad.png", content)
        refuses(folder, r"bad\.png: is not a BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP")
    assert not started, "PostScript is a program and must never run"


def test_a_wrong_extension_does_no_harm(tmp_path: Path) -> None:
    assert (converted(tmp_path, encoded(Image.new("L", (8, 8), 9), "jpeg"), "png") == 9).all()


def test_decompression_bombs_are_refused(tmp_path: Path, packed: Packed) -> None:
    # The header claims 30,000 × 30,000 pixels; nothing of it is ever allocated.
    folder = with_bad(tmp_path, "bomb.png", png(np.zeros((1, 1), np.uint8), 0, 8, size=(30000, 30000)))
    refuses(packed(folder), r"bomb\.png: ")


def test_pictures_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_bad(tmp_path, "large.png", encoded(noise(), "png"))
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    refuses(folder, r"large\.png: has 32×32 pixels, expected at most 1000 in all")
    monkeypatch.setattr(listing, "MAX_BYTES", 1000)
    refuses(folder, r"large\.png: is 0 MiB large")
    refuses(zipped(folder, tmp_path / "p.zip"), r"large\.png: is 0 MiB large")


def test_long_strips_are_refused(tmp_path: Path) -> None:
    folder = with_bad(tmp_path, "strip.png", encoded(Image.new("L", (51, 1)), "png"))
    refuses(folder, r"strip\.png: has 51×1 pixels, expected sides of at most 50 to 1")


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "tiff")
    refuses(with_bad(tmp_path, "float.tiff", content), r"float\.tiff: its pixels are of Pillow's mode F")


def test_integers_beyond_16_bit_are_refused(tmp_path: Path) -> None:
    for index, value in enumerate((-1, 65536)):
        content = encoded(Image.fromarray(np.full((4, 4), value, np.int32)), "tiff")
        folder = with_bad(tmp_path / str(index), "deep.tiff", content)
        refuses(folder, rf"deep\.tiff: has values from {value} to {value}, expected integers from 0 to 65535")


def test_encrypted_and_damaged_entries_of_a_zip_are_refused(tmp_path: Path) -> None:
    archive = zipped(with_bad(tmp_path, "x", None), tmp_path / "p.zip")
    content = bytearray(archive.read_bytes())
    first = content.index(b"PK\x01\x02")
    content[first + 8] |= 1
    archive.write_bytes(content)
    refuses(archive, r"8\.png: is encrypted")
    content[first + 8] &= ~1
    content[content.index(b"IDAT") + 6] ^= 0xFF
    archive.write_bytes(content)
    refuses(archive, r"8\.png: cannot be read as a picture \(Bad CRC-32")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_dangling_links_are_refused(tmp_path: Path) -> None:
    folder = with_bad(tmp_path, "x", None)
    os.mkfifo(folder / "pipe.png")
    refuses(folder, r"pipe\.png: is not a file")
    (folder / "pipe.png").unlink()
    (folder / "link.png").symlink_to(tmp_path / "nowhere")
    refuses(folder, r"link\.png: is not a file")


# Conversions, by pixel values


def png(pixels: np.ndarray, colour: int, bits: int, size: tuple[int, int] | None = None, **chunks: bytes) -> bytes:
    """A PNG of big-endian samples, for what Pillow cannot write. ``colour`` is PNG's colour type."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def converted(tmp_path: Path, content: bytes, suffix: str, resolution: int = 2, channels: int = 3) -> np.ndarray:
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(content)
    file = PictureFile((path.name,), str(path), path)
    size = data.parse_settings({"kind": "images", "path": "x", "resolution": resolution, "channels": channels})
    result = read_picture(file, size)
    assert result.dtype == np.uint8
    assert result.shape == (resolution, resolution, channels)
    return result


QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], dtype=np.uint8)
LUMA = np.array([[76, 150], [29, 18]], dtype=np.uint8)[..., None]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_rgb_is_kept(suffix: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(QUADRANTS), suffix)
    np.testing.assert_array_equal(converted(tmp_path, content, suffix), QUADRANTS)


def test_rgb_becomes_luma(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(QUADRANTS), "png")
    np.testing.assert_array_equal(converted(tmp_path, content, "png", channels=1), LUMA)


def test_grey_is_kept_or_repeated(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(LUMA[..., 0]), "png")
    np.testing.assert_array_equal(converted(tmp_path, content, "png", channels=1), LUMA)
    np.testing.assert_array_equal(converted(tmp_path, content, "png"), LUMA.repeat(3, axis=2))


def test_black_and_white(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(np.array([[True, False], [False, True]])), "png")
    expected = np.array([[255, 0], [0, 255]])[..., None]
    np.testing.assert_array_equal(converted(tmp_path, content, "png", channels=1), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_palettes(channels: int, tmp_path: Path) -> None:
    image = Image.fromarray(QUADRANTS).quantize(4)
    assert image.mode == "P"
    expected = QUADRANTS if channels == 3 else LUMA
    for suffix in ("png", "gif"):
        result = converted(tmp_path, encoded(image, suffix), suffix, channels=channels)
        np.testing.assert_array_equal(result, expected)


def test_cmyk(tmp_path: Path) -> None:
    # Full cyan is no red, full black is no light, no ink is white.
    pixels = np.array([[[255, 0, 0, 0], [0, 0, 0, 255]], [[0, 0, 0, 0], [0, 255, 255, 0]]], dtype=np.uint8)
    expected = [[[0, 255, 255], [0, 0, 0]], [[255, 255, 255], [255, 0, 0]]]
    content = encoded(Image.fromarray(pixels, "CMYK"), "tiff")
    np.testing.assert_array_equal(converted(tmp_path, content, "tiff"), expected)
    large = Image.fromarray(pixels.repeat(16, 0).repeat(16, 1), "CMYK")
    result = converted(tmp_path, encoded(large, "jpeg", quality=100), "jpg")
    np.testing.assert_allclose(result, expected, atol=3)


def test_16_bit_grey_is_rounded(tmp_path: Path) -> None:
    pixels = np.array([[0, 65535], [128, 129]], dtype=np.uint16)  # 128.5 / 257 is one half
    expected = np.array([[0, 255], [0, 1]])[..., None]
    for content, suffix in (
        (png(pixels, 0, 16), "png"),
        (encoded(Image.fromarray(pixels), "tiff"), "tiff"),
        (encoded(Image.fromarray(pixels.astype(np.int32)), "tiff"), "tiff"),
        (b"P5 2 2 65535\n" + pixels.astype(">u2").tobytes(), "pgm"),
    ):
        np.testing.assert_array_equal(converted(tmp_path, content, suffix, channels=1), expected)
        np.testing.assert_array_equal(converted(tmp_path, content, suffix), expected.repeat(3, axis=2))


def test_16_bit_colour_keeps_the_upper_byte(tmp_path: Path) -> None:
    pixels = QUADRANTS.astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(converted(tmp_path, png(pixels, 2, 16), "png"), QUADRANTS)


def test_transparency_shows_white(tmp_path: Path) -> None:
    alpha = np.array([[255, 0], [128, 51]], dtype=np.uint8)[..., None]
    share = alpha / 255
    expected = np.round(QUADRANTS * share + 255 * (1 - share))
    rgba = np.concatenate([QUADRANTS, alpha], axis=2)
    for content, suffix in (
        (encoded(Image.fromarray(rgba), "png"), "png"),
        (encoded(Image.fromarray(rgba), "tiff"), "tiff"),
        (encoded(Image.fromarray(rgba), "webp", lossless=True, exact=True), "webp"),
    ):
        result = converted(tmp_path, content, suffix)
        np.testing.assert_allclose(result, expected, atol=1)
        np.testing.assert_array_equal(result[0], [[255, 0, 0], [255, 255, 255]])
    grey = np.concatenate([np.zeros_like(alpha), alpha], axis=2)
    result = converted(tmp_path, encoded(Image.fromarray(grey, "LA"), "png"), "png", channels=1)
    np.testing.assert_allclose(result, np.round(255 * (1 - share)), atol=1)


def test_transparent_colours_of_png_and_gif_show_white(tmp_path: Path) -> None:
    white = np.array([255, 255, 255])
    expected = QUADRANTS.copy()
    expected[0, 1] = white
    keyed = png(QUADRANTS, 2, 8, tRNS=struct.pack(">HHH", 0, 255, 0))
    np.testing.assert_array_equal(converted(tmp_path, keyed, "png"), expected)
    palette = Image.fromarray(QUADRANTS).quantize(4)
    green = palette.getpixel((1, 0))
    for suffix in ("png", "gif"):
        content = encoded(palette, suffix, transparency=green)
        np.testing.assert_array_equal(converted(tmp_path, content, suffix), expected)
    deep = png(np.array([[0, 1000], [2000, 3000]]), 0, 16, tRNS=struct.pack(">H", 1000))
    result = converted(tmp_path, deep, "png", channels=1)
    np.testing.assert_array_equal(result[..., 0], [[0, 255], [8, 12]])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_is_taken(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    content = encoded(frames[0], suffix, save_all=True, append_images=frames[1:], **options)
    assert (converted(tmp_path, content, suffix) == RED).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    # What is stored for each orientation so that the shown picture is QUADRANTS (EXIF 2.3, tag 274).
    shown = QUADRANTS.repeat(16, 0).repeat(16, 1)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, dict[str, typing.Any]] = {
        "webp": {"lossless": True},
        "jpeg": {"quality": 100, "subsampling": 0},
    }
    options = lossless.get(suffix, {})
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), suffix, exif=exif, **options)
    np.testing.assert_allclose(converted(tmp_path, content, suffix), QUADRANTS, atol=3)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"no EXIF",
        b"Exif\0\0",
        b"\0\x08\0\x02\x01\x12\0\x03",  # without the header of TIFF
        b"II*\0\xff\xff\xff\xff",  # a directory beyond the end
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\0\0\0",  # a fraction that is not there
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # a text
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # 99
    ],
)
def test_an_orientation_that_cannot_be_read_is_none(exif: bytes, tmp_path: Path) -> None:
    np.testing.assert_array_equal(converted(tmp_path, png(QUADRANTS, 2, 8, eXIf=exif), "png"), QUADRANTS)


def test_an_orientation_beside_a_tag_that_cannot_be_written_again_is_applied(tmp_path: Path) -> None:
    rotated = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    float_as_text = b"\x0e\x01\x0b\0\x01\0\0\0\xff\xff\xff\xff"
    content = png(np.rot90(QUADRANTS), 2, 8, eXIf=b"II*\0\x08\0\0\0\x02\0" + float_as_text + rotated + b"\0\0\0\0")
    np.testing.assert_array_equal(converted(tmp_path, content, "png"), QUADRANTS)


def test_colour_profiles_are_ignored(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(QUADRANTS), "png", icc_profile=b"no profile")
    np.testing.assert_array_equal(converted(tmp_path, content, "png"), QUADRANTS)


def adm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """``center_crop_arr`` of guided-diffusion (Dhariwal and Nichol 2021), line by line."""
    while min(*image.size) >= 2 * size:
        image = image.resize([x // 2 for x in image.size], resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize([round(x * scale) for x in image.size], resample=Image.Resampling.BICUBIC)
    arr = np.array(image)
    crop_y = (arr.shape[0] - size) // 2
    crop_x = (arr.shape[1] - size) // 2
    return arr[crop_y : crop_y + size, crop_x : crop_x + size]


@pytest.mark.parametrize("size", [(16, 16), (33, 70), (70, 33), (31, 17), (129, 64), (5, 9), (1, 3), (1, 50)])
def test_size_follows_adm(size: tuple[int, int], tmp_path: Path) -> None:
    image = noise(size)
    result = converted(tmp_path, encoded(image, "png"), "png", resolution=16)
    np.testing.assert_array_equal(result, adm_center_crop(image, 16))


def test_crop_takes_the_middle_and_box_halving_the_mean(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 100
    pixels[:2, 4:6] = [[[0], [80]], [[120], [200]]]
    result = converted(tmp_path, encoded(Image.fromarray(pixels), "png"), "png", resolution=2)
    assert result[..., 0].tolist() == [[100, 100], [100, 100]]


def test_jpeg_is_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draft(*arguments: typing.Any) -> None:
        raise AssertionError("reduced decoding would change the pixels")

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", draft)
    content = encoded(noise((64, 64)), "jpeg")
    expected = adm_center_crop(Image.open(io.BytesIO(content)), 8)
    np.testing.assert_array_equal(converted(tmp_path, content, "jpg", resolution=8), expected)


def test_zip_and_folder_give_the_same(tmp_path: Path) -> None:
    settings = images_kind.tiny_settings(tmp_path / "p")
    archive = zipped(tmp_path / "p", tmp_path / "p.zip")
    from_folder = prepared(data.parse_settings(settings))
    from_zip = prepared(data.parse_settings({**settings, "path": str(archive)}))
    for one, other in zip(all_arrays(from_folder), all_arrays(from_zip), strict=True):
        np.testing.assert_array_equal(one, other)


# Shards, and preparations that are stopped


class Counted:
    """Pictures that say which were asked for, and stop at one."""

    def __init__(self, images: np.ndarray, stop_at: int | None = None) -> None:
        self.images, self.stop_at, self.asked = images, stop_at, []
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        if rows != slice(None, 1):  # which is how the store looks at their type
            self.asked += list(range(*rows.indices(len(self))))
            if self.stop_at in self.asked:
                raise KeyboardInterrupt
        return self.images[rows]


DIGITS = {"kind": "digits"}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of 2×2 a shard, two at a time."""
    monkeypatch.setattr(store, "SHARD_BYTES", 12)
    monkeypatch.setattr(store, "_PORTION_BYTES", 8)


def many(count: int = 11) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), dtype=np.uint8)


@pytest.mark.usefixtures("small_shards")
def test_shards_read_like_one_array(tmp_path: Path) -> None:
    images = many()
    splits = replace(some_splits(), train_images=images, train_labels=np.zeros(11, np.int64))
    store.write_dataset(tmp_path / "data", splits, data.parse_settings(DIGITS))
    assert len(list((tmp_path / "data").glob("train-0*.npy"))) == 4
    shards = store.load_split(tmp_path / "data", "train").images
    assert shards.shape == images.shape
    assert len(shards) == 11
    assert shards.nbytes == images.nbytes
    assert shards.dtype == images.dtype
    random = np.random.default_rng(1)
    for rows in (
        *(slice(None), slice(2, 9), slice(3, 6), slice(-4, None), slice(None, None, -1), slice(1, 10, 3), slice(5, 5)),
        *(0, 2, 3, 10, -1, -11, np.int64(4)),
        *([0, 10, 3, 3], random.integers(-11, 11, 40), random.integers(0, 11, (3, 4)), np.array([], np.int64)),
    ):
        np.testing.assert_array_equal(shards[rows], images[rows])
    np.testing.assert_array_equal(np.asarray(shards), images)
    np.testing.assert_array_equal(np.stack(list(shards)), images)
    for outside in (11, -12, [0, 11], [-12]):
        with pytest.raises(IndexError):
            shards[outside]


@pytest.mark.usefixtures("small_shards")
def test_a_preparation_that_was_stopped_goes_on(tmp_path: Path) -> None:
    settings, folder, state = data.parse_settings(DIGITS), tmp_path / "data", tmp_path / "state"
    splits = replace(some_splits(), train_labels=np.zeros(11, np.int64), fingerprint="one")
    first = Counted(many(), stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        store.write_dataset(folder, replace(splits, train_images=first), settings, state)
    assert not folder.exists()
    second = Counted(many())
    store.write_dataset(folder, replace(splits, train_images=second), settings, state)
    assert second.asked == list(range(6, 11))  # two shards of three were there
    np.testing.assert_array_equal(store.load_split(folder, "train").images, many())
    assert [path.name for path in state.iterdir() if path.is_dir()] == []
    # From the beginning to the end in one go: the same bytes.
    store.write_dataset(tmp_path / "again", replace(splits, train_images=many()), settings)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_another_source_starts_anew(tmp_path: Path) -> None:
    settings, state = data.parse_settings(DIGITS), tmp_path / "state"
    splits = replace(some_splits(), train_labels=np.zeros(11, np.int64), fingerprint="one")
    with pytest.raises(KeyboardInterrupt):
        store.write_dataset(tmp_path / "a", replace(splits, train_images=Counted(many(), 7)), settings, state)
    other = Counted(255 - many())
    store.write_dataset(tmp_path / "b", replace(splits, train_images=other, fingerprint="two"), settings, state)
    np.testing.assert_array_equal(store.load_split(tmp_path / "b", "train").images, 255 - many())


def test_two_preparations_of_one_set_at_a_time_are_refused(tmp_path: Path) -> None:
    settings, splits = data.parse_settings(DIGITS), some_splits()

    class Meanwhile(Counted):
        def __getitem__(self, rows: slice) -> np.ndarray:
            if rows != slice(None, 1):
                with pytest.raises(UserError, match=r"being prepared\): in use by process \d+ on"):
                    store.write_dataset(tmp_path / "b", splits, settings, tmp_path / "state")
            return self.images[rows]

    images = Meanwhile(np.asarray(splits.train_images))
    store.write_dataset(tmp_path / "a", replace(splits, train_images=images), settings, tmp_path / "state")
    assert (tmp_path / "a/manifest.json").is_file()


def test_too_little_room_is_seen_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _path: usage._replace(free=11))
    images = Counted(many())
    splits = replace(some_splits(), train_images=images, train_labels=np.zeros(11, np.int64))
    with pytest.raises(UserError, match=r"cannot be written: the pictures need .* MiB more, 0\.0 MiB are free"):
        store.write_dataset(tmp_path / "data", splits, data.parse_settings(DIGITS))
    assert images.asked == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_that_fills_up_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: typing.Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"train-00000\.npy.*No space left"):
        store.write_dataset(tmp_path / "data", some_splits(), data.parse_settings(DIGITS))
    assert not (tmp_path / "data").exists()


def test_pillow_is_left_as_strict_as_it_is() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
