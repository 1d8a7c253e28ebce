"""The readers of published data sets, on made files of their true format (the contract of a kind is in test_data)."""

import gzip
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion.data import kinds as data
from diffusion.data import listing, store
from diffusion.data.decode import read_picture
from diffusion.data.kinds import cifar10, fashion_mnist, hub, imagenet64, images, lsun
from diffusion.data.listing import PictureFile
from diffusion.runtime.errors import UserError


def settings_of(kind, folder, **changes):
    return data.parse_settings({**kind.tiny_settings(folder), **changes})


# -- Fashion-MNIST and other idx files ---------------------------------------------------------------------------------


def idx(values):
    return (
        struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def test_idx_files_are_read_as_they_are_written(tmp_path):
    settings = settings_of(fashion_mnist, tmp_path / "f")
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    # Not gzipped, beside a gzipped one: what is unpacked is taken.
    (tmp_path / "f" / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "f" / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7, 0, 9], np.uint8)))
    splits = data.prepare(settings)
    np.testing.assert_array_equal(splits.train_images[:, :, :, 0], images)
    assert splits.train_labels.tolist() == [7, 0, 9]
    assert len(splits.class_names) == 10


def test_classes_of_idx_files_are_those_that_occur(tmp_path):
    """EMNIST's letters are from 1."""
    settings = settings_of(fashion_mnist, tmp_path / "f")
    for part, labels in (("train", [1, 12, 3] * 6 + [3, 12]), ("t10k", [12, 1] * 5)):
        (tmp_path / "f" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array(labels, np.uint8))))
    splits = data.prepare(settings)
    assert splits.class_names == ("1", "3", "12")
    assert splits.train_labels[:3].tolist() == [0, 2, 1]
    assert splits.test_labels[:2].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            None,
            "has neither train-images-idx3-ubyte nor .*dataset-fashion-mnist",
        ),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b broken", "cannot be read"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"PK\x03\x04 something else"), "expected 00 00 08 03"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(3, np.uint8))), "10 pictures and 3 labels"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(10, np.uint8))[:-1]), r"9 values, expected \(10,\)"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((10, 8, 8), np.uint8))), "8×8 pixels; expected 28"),
    ],
    ids=["missing", "no gzip", "another file", "labels", "truncated", "size"],
)
def test_idx_files_that_do_not_fit_are_refused(tmp_path, name, content, message):
    settings = settings_of(fashion_mnist, tmp_path / "f")
    (tmp_path / "f" / name).unlink()
    if content is not None:
        (tmp_path / "f" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.prepare(settings)


def test_fashion_mnist_is_fetched_only_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    settings = data.parse_settings({"kind": "fashion_mnist"})
    wanted = data.downloads(settings)
    assert sorted(one.name for one in wanted) == sorted(f"{name}.gz" for name in fashion_mnist._FILES.values())
    assert all(one.url.startswith("http") and len(one.md5) == 32 for one in wanted)
    given = settings_of(fashion_mnist, tmp_path / "f")
    assert data.downloads(given) == []
    splits = data.prepare(settings, tmp_path / "f")  # as if it had been fetched
    assert splits.class_names[0] == "T-shirt/top"
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "f")
    assert data.downloads(settings) == []
    np.testing.assert_array_equal(data.prepare(settings).train_images, data.prepare(given).train_images)


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


def test_every_form_of_cifar10_gives_the_same(tmp_path):
    folder = settings_of(cifar10, tmp_path / "root" / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder.path, "cifar-10-batches-bin")
    expected = data.prepare(folder)
    record = np.frombuffer((Path(folder.path) / "data_batch_1.bin").read_bytes(), np.uint8)[1 : cifar10._RECORD]
    np.testing.assert_array_equal(expected.train_images[0], record.reshape(3, 32, 32).transpose(1, 2, 0))
    found = [
        data.prepare(folder.model_copy(update={"path": str(tmp_path / path)}))
        for path in ("root", "cifar-10-binary.tar.gz")
    ]
    fetched = data.parse_settings({"kind": "cifar10", "whole": False})
    assert [one.name for one in data.downloads(fetched)] == ["cifar-10-binary.tar.gz"]
    for splits in (*found, data.prepare(fetched, tmp_path)):
        np.testing.assert_array_equal(splits.train_images, expected.train_images)
        np.testing.assert_array_equal(splits.test_images, expected.test_images)
        np.testing.assert_array_equal(splits.train_labels, expected.train_labels)


def test_the_pickles_of_cifar10_are_refused_with_what_to_fetch(tmp_path):
    settings = settings_of(cifar10, tmp_path / "f")
    for file in list((tmp_path / "f").iterdir()):
        file.rename(file.with_suffix(""))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "f", "cifar-10-batches-py")
    for path in ("f", "cifar-10-python.tar.gz"):
        with pytest.raises(
            UserError, match=r"lacks data_batch_1\.bin, .*the Python version.* will not do\. Fetch https"
        ):
            data.prepare(settings.model_copy(update={"path": str(tmp_path / path)}))


def test_cifar10_that_is_not_whole_is_refused(tmp_path):
    settings = settings_of(cifar10, tmp_path / "f")
    with pytest.raises(UserError, match="50 pictures in the train part, expected 50,000"):
        data.prepare(settings.model_copy(update={"whole": True}))
    (tmp_path / "f" / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        data.prepare(settings)
    (tmp_path / "f" / "data_batch_3.bin").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"data_batch_3\.bin: 100 bytes, expected a multiple of 3073"):
        data.prepare(settings)
    (tmp_path / "f" / "data_batch_3.bin").write_bytes(b"\xff" * cifar10._RECORD)
    with pytest.raises(UserError, match="labels 255 to 255"):
        data.prepare(settings)
    for path, message in (("none", "not found"), ("bad.tar.gz", "cannot be read as a tar"), ("e", "lacks data_b")):
        (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b broken")
        (tmp_path / "e").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            data.prepare(settings.model_copy(update={"path": str(tmp_path / path)}))


# -- ImageNet at 64×64 -------------------------------------------------------------------------------------------------


def test_imagenet_batches_are_read_across_their_borders(tmp_path):
    settings = settings_of(imagenet64, tmp_path / "f")
    splits = data.prepare(settings)
    arrays = [np.load(tmp_path / "f" / f"train_data_batch_{n}.npz")["data"] for n in (1, 2)]
    expected = np.concatenate(arrays).reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1)
    assert splits.train_images.shape == expected.shape == (16, 64, 64, 3)
    for rows in (slice(0, 16), slice(7, 11), slice(9, 9), slice(12, 16), slice(None, 1)):
        np.testing.assert_array_equal(splits.train_images[rows], expected[rows])
    assert splits.train_labels[:4].tolist() == [0, 1, 2, 0]  # from 1 in the files


def test_imagenet_batches_are_taken_in_the_order_of_their_numbers(tmp_path):
    settings = settings_of(imagenet64, tmp_path / "f")
    shutil.move(tmp_path / "f" / "train_data_batch_1.npz", tmp_path / "f" / "train_data_batch_10.npz")
    assert len(data.prepare(settings).train_images[:7]) == 7
    ten = np.load(tmp_path / "f" / "train_data_batch_10.npz")["data"].reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(data.prepare(settings).train_images[7:], ten)


def test_imagenet_that_is_not_whole_is_refused(tmp_path):
    settings = settings_of(imagenet64, tmp_path / "f")
    names = r"train_data_batch_3\.npz, train_data_batch_4\.npz, .* and 3 more"
    with pytest.raises(UserError, match=rf"f: lacks {names}\. Unpack .*part2.*data\.whole"):
        data.prepare(settings.model_copy(update={"whole": True}))
    for number in range(3, 11):
        shutil.copy(tmp_path / "f" / "train_data_batch_2.npz", tmp_path / "f" / f"train_data_batch_{number}.npz")
    with pytest.raises(UserError, match=r"72 pictures in the train part, expected 1,281,167; class 4 and 996 more are"):
        data.prepare(settings.model_copy(update={"whole": True}))
    for number in range(3, 11):
        (tmp_path / "f" / f"train_data_batch_{number}.npz").unlink()
    whole = (tmp_path / "f" / "train_data_batch_2.npz").read_bytes()
    (tmp_path / "f" / "train_data_batch_2.npz").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"train_data_batch_2\.npz: cannot be read"):
        data.prepare(settings)
    np.savez(tmp_path / "f" / "train_data_batch_2.npz", data=np.zeros((2, 3072), np.uint8), labels=np.array([1, 2]))
    with pytest.raises(UserError, match=r"expected uint8 \(2, 12288\). It is not a batch of 64×64"):
        data.prepare(settings).train_images[:]
    (tmp_path / "f" / "val_data.npz").unlink()
    with pytest.raises(UserError, match=r"has no val_data\.npz\. .*image-net\.org.*Imagenet64_val_npz\.zip"):
        data.prepare(settings)


# -- LSUN --------------------------------------------------------------------------------------------------------------


def test_lsun_is_resized_as_guided_diffusion_does(tmp_path):
    """A box filter to the shorter side, then the middle."""
    import lmdb

    settings = settings_of(lsun, tmp_path / "f")
    with lmdb.open(str(tmp_path / "f"), readonly=True, lock=False) as database, database.begin() as transaction:
        stored = [Image.open(io.BytesIO(value)).convert("RGB") for _key, value in transaction.cursor()]
    splits = data.prepare(settings)
    found = {picture.tobytes() for part in (splits.train_images, splits.test_images) for picture in part[:]}
    expected = set()
    for image in stored:
        small = np.asarray(image.resize((round(341 * 16 / 256), 16), Image.Resampling.BOX))
        left = (small.shape[1] - 16) // 2
        expected.add(np.ascontiguousarray(small[:, left : left + 16]).tobytes())
    assert found == expected
    assert len(splits.test_images) == 4


def test_an_lmdb_that_does_not_fit_is_refused(tmp_path):
    settings = settings_of(lsun, tmp_path / "f")
    with pytest.raises(UserError, match=r"holds 12 pictures, of which 11 would be for testing"):
        data.prepare(settings.model_copy(update={"test_size": 11}))
    with pytest.raises(UserError, match=r"found 12 pictures .* expected 3,033,042 \(data\.num_pictures\)"):
        data.prepare(settings.model_copy(update={"num_pictures": 3_033_042}))
    with pytest.raises(UserError, match=r"has no data\.mdb\. .*bedroom_train_lmdb\.zip"):
        data.prepare(settings.model_copy(update={"path": str(tmp_path)}))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"\x00" * 8192)
    with pytest.raises(UserError, match="cannot be read as an lmdb"):
        data.prepare(settings.model_copy(update={"path": str(tmp_path / "bad")}))
    import lmdb

    with lmdb.open(str(tmp_path / "f")) as database, database.begin(write=True) as transaction:
        transaction.put(b"0000", b"RIFF broken")
    splits = data.prepare(settings)
    with pytest.raises(UserError, match=r"f/0000: is not a BMP, .* \(it begins like a file of RIFF\)"):
        [part[:] for part in (splits.train_images, splits.test_images)]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_truncated_lmdb_is_refused(tmp_path, share):
    """Not in this process: what is missing of a mapped file kills its reader."""
    import lmdb

    random = np.random.default_rng(0)
    (tmp_path / "cut").mkdir()
    with lmdb.open(str(tmp_path / "cut"), map_size=2**24) as database:
        for start in range(0, 200, 20):
            with database.begin(write=True) as transaction:
                for index in range(start, start + 20):
                    transaction.put(b"%04d" % index, random.bytes(9000))
    file = tmp_path / "cut" / "data.mdb"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(int(share * size))
    code = (
        "import sys; from diffusion.data import kinds as data; from diffusion.runtime.errors import UserError\n"
        "try: data.prepare(data.parse_settings({'kind': 'lsun', 'path': sys.argv[1], 'test_size': 4}))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        f"data.mdb: is truncated: found {int(share * size):,} bytes, expected at least {size:,}. Unzip" in done.stdout
    )


@pytest.mark.parametrize("version", [2, 999])
def test_an_lmdb_of_another_version_is_refused_as_such(tmp_path, version):
    settings = settings_of(lsun, tmp_path / "f")
    with (tmp_path / "f" / "data.mdb").open("r+b") as handle:
        for page in (0, 4096):  # the two pages that say what the file is
            handle.seek(page + 16)
            assert handle.read(4) == bytes.fromhex("dec0efbe")
            handle.write(version.to_bytes(4, "little"))
    with pytest.raises(UserError, match=r"data\.mdb: is of a version of LMDB that .* cannot read .*mdb_load") as caught:
        data.prepare(settings)
    assert "truncated" not in str(caught.value)


# -- crops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (8, 8), (9, 40)])
def test_lanczos_is_a_centre_square_and_one_resize(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    raw = {"kind": "images", "path": "x", "resolution": 8, "crop": "lanczos"}
    found = read_picture(PictureFile(("p.png",), "p.png", tmp_path / "p.png"), data.parse_settings(raw))
    side = min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    np.testing.assert_array_equal(found, np.asarray(square.resize((8, 8), Image.Resampling.LANCZOS)))


# -- the Hub -----------------------------------------------------------------------------------------------------------


def test_the_hub_says_what_it_needs(tmp_path, monkeypatch):
    settings = settings_of(hub, tmp_path / "f")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        data.prepare(settings)


def test_the_hub_refuses_what_does_not_fit(tmp_path):
    pytest.importorskip("datasets")
    settings = settings_of(hub, tmp_path / "f")
    splits = data.prepare(settings)
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train_images), len(splits.test_images)) == (8, 4)
    assert len(data.prepare(settings.model_copy(update={"num_classes": 2, "num_pictures": 12})).train_images) == 8
    held_out = data.prepare(settings.model_copy(update={"test": None, "test_fraction": 0.5}))
    assert (len(held_out.train_images), len(held_out.test_images)) == (4, 4)
    for change, message in (
        ({"image": "picture"}, r"data\.image: no column 'picture'; it has image, label"),
        ({"image": "label"}, "does not hold pictures"),
        ({"label": "class"}, r"data\.label: no column 'class'"),
        ({"train": "nothing"}, r"part 'nothing': cannot be loaded"),
        ({"num_classes": 3}, r"found 2 classes \(cat, dog\), expected 3 \(data\.num_classes\)"),
        ({"num_pictures": 13}, r"found 12 pictures \(train 8, test 4\), expected 13 \(data\.num_pictures\)"),
        ({"name": "nobody/nothing"}, r"nobody/nothing \(data\.name\), part 'train': cannot be loaded .*network"),
    ):
        with pytest.raises(UserError, match=message):
            data.prepare(settings.model_copy(update=change))


def hub_set(folder, column, **parts):
    """Parquet files as `datasets` writes them, with a label a row; settings that name them."""
    datasets = pytest.importorskip("datasets")
    folder.mkdir(parents=True)
    for part, labels in parts.items():
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        features = datasets.Features({"image": datasets.Image(), "label": column})
        content = {"image": [Image.fromarray(one) for one in pixels], "label": labels}
        datasets.Dataset.from_dict(content, features=features).to_parquet(folder / f"{part}-0.parquet")
    test = "test" if "test" in parts else None
    return data.parse_settings(
        {"kind": "hub", "name": str(folder), "test": test, "label": "label", "resolution": 8, "test_fraction": 0.5}
    )


def column(kind):
    datasets = pytest.importorskip("datasets")
    if kind == "list":
        return datasets.Sequence(datasets.Value("int64"))
    return datasets.ClassLabel(names=kind) if isinstance(kind, list) else datasets.Value(kind)


class Part:
    """What is asked of a part of the library's for its labels."""

    def __init__(self, kind, labels):
        named = isinstance(kind, list)
        self.features = {"label": SimpleNamespace(names=kind) if named else SimpleNamespace(dtype=kind)}
        self.labels = labels

    def __getitem__(self, name):
        assert name == "label"
        return self.labels


def labels_of(folder, library, kind, parts):
    """Names of the classes, and each part's labels; by the library or by what stands for it."""
    if library:
        splits = data.prepare(hub_set(folder, column(kind), **parts))
        return splits.class_names, splits.train_labels.tolist(), splits.test_labels.tolist()
    raw = {"kind": "hub", "name": str(folder), "resolution": 8, "label": "label", "test": "test"}
    labels, names = hub._labels(data.parse_settings(raw), {name: Part(kind, found) for name, found in parts.items()})
    return names, labels["train"].tolist(), labels["test"].tolist()


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize(
    ("kind", "train", "test", "names", "train_labels", "test_labels"),
    [
        ("int64", [1, 2, 3] * 2, [1, 2, 3], ("1", "2", "3"), [0, 1, 2] * 2, [0, 1, 2]),
        ("uint8", [0, 10, 9] * 2, [9, 0], ("0", "9", "10"), [0, 2, 1] * 2, [1, 0]),
        ("int64", [0, 1, 2] * 2, [0, 1], ("0", "1", "2"), [0, 1, 2] * 2, [0, 1]),
        ("float32", [1.0, 2.0] * 2, [2.0, 2.0], ("1", "2"), [0, 1] * 2, [1, 1]),
        ("bool", [True, False] * 2, [True, True], ("False", "True"), [1, 0] * 2, [1, 1]),
        ("string", ["b", "a"] * 2, ["a", "a"], ("a", "b"), [1, 0] * 2, [0, 0]),
        ("string", ["e\u0301", "\u00e9", "a"] * 2, ["\u00e9", "e\u0301"], ("a", "\u00e9"), [1, 1, 0] * 2, [1, 1]),
        # Declared classes keep their numbers.
        (["c", "b", "a"], [2, 0] * 2, [0, 0], ("c", "b", "a"), [2, 0] * 2, [0, 0]),
    ],
)
def test_classes_of_the_hub_are_those_that_occur(
    tmp_path, library, kind, train, test, names, train_labels, test_labels
):
    found = labels_of(tmp_path / "f", library, kind, {"train": train, "test": test})
    assert found == (names, train_labels, test_labels)


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize(
    ("kind", "train", "test", "message"),
    [
        (
            "int64",
            [0, 1] * 3,
            [-1] * 4,
            r"part 'test': .*\(data\.label\) has no label in all 4 rows.*Choose another part",
        ),
        (["a", "b"], [0, 1] * 3, [-1] * 4, r"part 'test': .*has no label in all 4 rows"),
        ("int64", [0, 1, -1] * 3, None, r"part 'train': .*has no label in 3 of 9 rows .*Leave these rows out, or set"),
        ("int64", [0, 1, None] * 3, None, r"part 'train': .*has no label in 3 of 9 rows"),
        ("float64", [0.0, 1.0, float("nan")] * 3, None, r"part 'train': .*has no label in 3 of 9 rows"),
        ("string", ["a", "b", ""] * 3, None, r"part 'train': .*has no label in 3 of 9 rows"),
        ("int64", [-1] * 8, None, r"part 'train': .*has no label in all 8 rows .*data\.label to null"),
        ("int64", [0, 1] * 3, [2, 2, 0], r"the classes 2 of 'test' do not occur in 'train', which has 0, 1"),
        ("float32", [0.5, 1.5] * 3, None, r"holds numbers with fractions, as 0\.5\. Expected one class a row"),
        ("list", [[0, 1], [1]] * 3, None, r"holds several values a row, as \[0, 1\]\. Expected one class a row"),
        ("list", [[0, 1], [1, 2]] * 3, None, r"holds several values a row, as \[0, 1\]"),
        ("string", list("abcdef"), None, r"holds 6 different values in 6 rows, as 'a': names or captions, not classes"),
        ("binary", [b"a", b"b"] * 3, None, r"holds binary\. Expected one class a row"),
    ],
)
def test_columns_of_the_hub_that_hold_no_classes_are_refused_as_what_they_are(
    tmp_path, library, kind, train, test, message
):
    parts = {"train": train} | ({"test": test} if test else {})
    with pytest.raises(UserError, match=rf"^{tmp_path}/f.*{message}"):
        labels_of(tmp_path / "f", library, kind, parts)


def test_all_bad_pictures_of_the_hub_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    settings = hub_set(tmp_path / "f", column("int64"), train=[0, 1] * 4, test=[0, 1] * 2)
    for part, bad in (("train", (2, 5)), ("test", (0,))):
        path = tmp_path / "f" / f"{part}-0.parquet"
        rows = datasets.Dataset.from_parquet(str(path)).cast_column("image", datasets.Image(decode=False))
        rows = rows.map(
            lambda row, index, bad=bad: {"image": {"bytes": b"bad", "path": None}} if index in bad else row, True
        )
        rows.to_parquet(path)
    splits = data.prepare(settings)
    with pytest.raises(UserError) as caught:
        splits.train_images[:]
    lines = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    where = [("train", 2), ("train", 5), ("test", 0)]
    assert lines == [f"{tmp_path}/f, part '{part}', picture {row}" for part, row in where]


# -- before the jobs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [cifar10, fashion_mnist, imagenet64, lsun, images])
def test_what_is_right_has_no_problems(tmp_path, kind):
    assert data.problems(settings_of(kind, tmp_path / "f")) == []
    assert data.problems(data.parse_settings({"kind": "digits"})) == []
    assert data.problems(data.parse_settings({"kind": "cifar10"})) == []


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_folder(folder):
    shutil.rmtree(folder)


def a_text(folder):
    shutil.rmtree(folder)
    folder.write_text("no archive")


def no_images(folder):
    shutil.rmtree(folder)
    (folder / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/0.png", ".0.png", "notes.txt"):
        (folder / name).touch()


def zip_without_images(folder):
    no_images(folder)
    path = shutil.make_archive(str(folder) + "-packed", "zip", folder)
    shutil.rmtree(folder)
    shutil.move(path, folder)


def cut_zip(folder):
    path = Path(shutil.make_archive(str(folder) + "-packed", "zip", folder))
    shutil.rmtree(folder)
    folder.write_bytes(path.read_bytes()[:-30])


def cut(name):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])

    return change


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("kind", "break_it", "message"),
    [
        (images, no_folder, r"not found \(looked for it in .*\)\. Expected a folder or a zip of pictures"),
        (images, a_text, r"is neither a folder nor a whole zip\. Expected a folder or a zip"),
        (images, cut_zip, r"is neither a folder nor a whole zip"),
        (images, empty, r"holds no pictures\. Expected files that end in one of \.apng "),
        (images, no_images, r"holds no pictures\. Expected files that end in one of \.apng "),
        (images, zip_without_images, r"holds no pictures\. Expected files that end in one of \.apng "),
        (lsun, no_folder, r"has no data\.mdb\. Expected an LSUN lmdb"),
        (lsun, cut("data.mdb"), r"is truncated: found .* bytes, expected at least"),
        (imagenet64, no_folder, r"has no train_data_batch_<n>\.npz\. Log in at"),
        (imagenet64, without("val_data.npz"), r"has no val_data\.npz\. Log in at"),
        (imagenet64, cut("train_data_batch_2.npz"), r"is not a whole \.npz file; it may be truncated"),
        (cifar10, no_folder, r"not found\. Fetch https"),
        (cifar10, empty, r"lacks data_batch_1\.bin, .* Expected cifar-10-binary\.tar\.gz"),
        (cifar10, a_text, r"is not a tar archive\. Fetch https"),
        (fashion_mnist, no_folder, r"has neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"),
        (fashion_mnist, without("t10k-labels-idx1-ubyte.gz"), r"has neither t10k-labels-idx1-ubyte nor"),
    ],
)
def test_what_is_wrong_with_the_files_is_known_before_a_job_runs(tmp_path, kind, break_it, message):
    settings = settings_of(kind, tmp_path / "f")
    break_it(tmp_path / "f")
    (problem,) = data.problems(settings)
    assert re.match(rf"data\.path: {tmp_path}/f[^ ]*: {message}", problem)
    assert "\n" not in problem
    with pytest.raises(UserError):  # and it is wrong indeed
        [part[:] for part in (data.prepare(settings).train_images, data.prepare(settings).test_images)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/nowhere", r"nowhere: not found .*, and no name of the Hub"),
        ("./nowhere", r"nowhere: not found"),
        ("a/b/c", r"a/b/c: not found"),
        ("{}/empty", r"empty: holds no files"),
        ("{}/file.parquet", r"file\.parquet: is a file, expected a folder"),
        ("uoft-cs/cifar10", None),
        ("mnist", None),
        ("{}", None),
    ],
)
def test_a_folder_of_the_hub_is_looked_for(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _name: True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.parquet").touch()
    settings = data.parse_settings({"kind": "hub", "name": name.format(tmp_path), "resolution": 8})
    found = data.problems(settings)
    assert len(found) == (message is not None)
    assert not found or re.match(rf"data\.name: .*{message}", found[0])
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _name: None)
    assert any("pip install datasets" in problem for problem in data.problems(settings))


def test_the_home_folder_may_be_named_by_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in (cifar10, fashion_mnist, imagenet64, lsun, images):
        name = kind.__name__.rsplit(".", 1)[-1]
        settings = data.parse_settings({**kind.tiny_settings(tmp_path / name), "path": f"~/{name}"})
        assert data.problems(settings) == []
    assert data.parse_settings({"kind": "hub", "name": "~/set", "resolution": 8}).name == f"{tmp_path}/set"


def test_very_many_files_are_not_looked_through(tmp_path, monkeypatch):
    """Then the job says what is there."""
    monkeypatch.setattr(store, "MOST_LOOKED_AT", 3)
    monkeypatch.setattr(listing, "MOST_LOOKED_AT", 3)
    settings = settings_of(images, tmp_path / "f")
    no_images(tmp_path / "f")
    assert len(data.problems(settings)) == 1
    for index in range(4):
        (tmp_path / "f" / f"{index}.txt").touch()
    assert data.problems(settings) == []
    path = shutil.make_archive(str(tmp_path / "many"), "zip", tmp_path / "f")
    assert data.problems(settings.model_copy(update={"path": path})) == []
