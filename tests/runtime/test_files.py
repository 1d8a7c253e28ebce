"""Files are whole or absent, and pictures pass one quantiser."""

import errno
import gc
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser

from diffusion.data.samples import from_uint8, load_labels, load_samples, save_samples, to_uint8
from diffusion.runtime import files
from diffusion.runtime.errors import NonFiniteError, UserError
from diffusion.runtime.files import atomic_path, canonical_json, fingerprint, new_array, read_json, write_json
from diffusion.teachers.folder import save_denoiser
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    write_json(target, {"a": 1})

    def interrupted():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert read_json(target) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_trouble_with_an_input_is_not_blamed_on_the_output(tmp_path):
    def copies():
        with atomic_path(tmp_path / "result") as temporary:
            temporary.write_text((tmp_path / "missing").read_text())

    with pytest.raises(FileNotFoundError):
        copies()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_full_disk_is_a_clear_message(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"result\.json: cannot be written \(No space left on device\)"):
        write_json(tmp_path / "result.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_device(tmp_path):
    """A file system with 56 KiB left."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    (mount / "filler").write_bytes(b"0" * 200_000)
    yield mount
    gc.collect()  # an exception keeps its frames, and they the files that are mapped
    subprocess.run(["umount", str(mount)], check=True)


def test_a_rule_on_a_full_device(small_device):
    """A message, an exit code, no half result."""
    job = {"stage": "data.Prepare", "settings": {"kind": "digits"}, "output": str(small_device / "data")}
    done = subprocess.run([sys.executable, "-m", "suite", json.dumps(job)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "data: cannot be written" in done.stderr
    assert "Free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in small_device.iterdir()] == ["filler"]


def test_an_array_on_a_full_device(small_device):
    """Its room is taken before anything is written to it: later, the process would be killed by SIGBUS."""
    with pytest.raises(UserError, match=r"features\.npy: cannot be written \(No space left on device\)"):
        new_array(small_device / "features.npy", (200, 1000), np.float32)


def test_weights_and_states_on_a_full_device(small_device):
    with (
        pytest.raises(UserError, match="teacher: cannot be written"),
        atomic_path(small_device / "teacher") as temporary,
    ):
        save_denoiser(temporary, tiny_denoiser())
    network = tiny_denoiser().network.requires_grad_(True)
    settings = TrainingSettings(steps=1, batch_size=1)
    with (
        TrainingRun(small_device / "state", "key", 0, torch.device("cpu")) as run,
        pytest.raises(UserError, match=r"finished-only\.pt: cannot be written"),
    ):
        run.fit("only", network, lambda _: sum(p.sum() for p in network.parameters()), settings)
    assert {path.name for path in (small_device / "state").iterdir()} == {"lock", "seconds"}


def test_an_unwritable_place_is_a_clear_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / "file" / "result.json", {})


def test_nan_never_reaches_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("inf"))


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json: is not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"y\.json: not found"):
        read_json(tmp_path / "y.json")


def test_the_quantiser_by_hand():
    # 127.5·x + 127.5: −1 → 0, 0 → 127.5 → 128 (ties to even), 1 → 255; beyond the range it clamps.
    values = torch.tensor([-1.0, 0.0, 1.0, -3.0, 3.0, 1 / 255, -1 / 255, 0.5]).view(1, 1, 2, 4)
    assert to_uint8(values).ravel().tolist() == [0, 128, 255, 0, 255, 128, 127, 191]


def test_the_quantiser_undoes_the_decoding_for_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(images)), images)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_pictures_stop_the_run(bad):
    images = torch.zeros(5, 1, 2, 2)
    images[3, 0, 1, 1] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 5 pictures .* index 3"):
        to_uint8(images)


def test_samples_round_trip(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    save_samples(tmp_path / "s.npz", iter([images[:2], images[2:]]), images.shape, torch.tensor([5, 0, 7]))
    np.testing.assert_array_equal(load_samples(tmp_path / "s.npz"), images)
    np.testing.assert_array_equal(load_labels(tmp_path / "s.npz"), [5, 0, 7])
    with np.load(tmp_path / "s.npz") as as_others_read_it:
        np.testing.assert_array_equal(as_others_read_it["arr_0"], images)
        np.testing.assert_array_equal(as_others_read_it["arr_1"], [5, 0, 7])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_samples_of_others_are_read(tmp_path, save, order):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    save(tmp_path / "s.npz", other=np.zeros(7), arr_0=np.asarray(images, order=order), arr_1=np.arange(3))
    np.testing.assert_array_equal(load_samples(tmp_path / "s.npz"), images)
    np.testing.assert_array_equal(load_labels(tmp_path / "s.npz"), [0, 1, 2])


def test_samples_larger_than_memory_are_written_and_read_in_parts(tmp_path):
    batch = np.full((64, 64, 64, 3), 7, np.uint8)
    tracemalloc.start()
    save_samples(tmp_path / "s.npz", (batch for _ in range(64)), (64 * 64, 64, 64, 3))
    images = load_samples(tmp_path / "s.npz")
    assert images[-1, -1, -1, -1] == 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(images, np.memmap)
    assert images.nbytes > 40e6
    assert peak < images.nbytes / 4


def test_other_batches_than_announced_are_refused_and_nothing_stays(tmp_path):
    batch = np.zeros((2, 4, 4, 1), np.uint8)
    for batches, shape in (([batch], (3, 4, 4, 1)), ([batch], (2, 4, 4, 3)), ([batch.astype(np.int8)], batch.shape)):
        with pytest.raises(ValueError, match="expected"):
            save_samples(tmp_path / "s.npz", batches, shape)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_samples_are_refused(tmp_path, save):
    save(tmp_path / "s.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8))
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.npz: cannot be read"):
        load_samples(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, "holds"),
        ({"arr_0": np.zeros((2, 4, 4, 1), np.float32)}, "float32"),
        ({"arr_0": np.zeros((2, 1, 4, 4), np.uint8)}, "shape"),
        ({"arr_0": np.zeros((0, 4, 4, 1), np.uint8)}, "shape"),
        ({"arr_0": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_unfit_samples_are_refused_by_name(tmp_path, arrays, expected):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=rf"s\.npz.*{expected}"):
        load_samples(tmp_path / "s.npz")


def test_truncated_and_missing_samples_are_refused(tmp_path):
    save_samples(tmp_path / "s.npz", [np.zeros((3, 4, 4, 1), np.uint8)], (3, 4, 4, 1))
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be read"):
        load_samples(tmp_path / "s.npz")
    with pytest.raises(UserError, match="not found"):
        load_samples(tmp_path / "other.npz")


# -- fingerprints of pictures ------------------------------------------------------------------------------------------


def facts_of(path):
    return path.stat().st_size, path.stat().st_mtime_ns


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Five files in three folders, whose names sort otherwise as texts than as paths."""
    for name in ("a/1", "a/2", "a/b/3", "a-b/4", "a-b/5"):
        (tmp_path / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return Path("many")


def test_a_fingerprint_is_of_names_sizes_and_times(many, tmp_path):
    found = fingerprint("many")
    (many / "a" / "1").write_text("longer")
    assert (longer := fingerprint("many")) != found
    # Moved into another folder, an image is of another class: its name, size and time are what they were.
    (many / "a" / "2").rename(many / "a-b" / "2")
    assert fingerprint("many") != longer
    (many / "a-b" / "2").rename(many / "a" / "2")
    assert fingerprint("many") == longer
    many.rename(tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == longer
    (tmp_path / "elsewhere").rename(many)
    (tmp_path / "one.zip").write_bytes(b"x")
    only = [("one.zip", *facts_of(tmp_path / "one.zip"))]
    assert fingerprint("one.zip") == hashlib.sha256(repr(only).encode()).hexdigest()
    assert fingerprint(None) is None
    assert fingerprint("nowhere") is None


def test_what_systems_leave_in_a_folder_is_no_part_of_its_fingerprint(many):
    found = fingerprint("many")
    for name in (".DS_Store", "a/Thumbs.db", "__MACOSX/._1", "@eaDir/1"):
        (many / name).parent.mkdir(exist_ok=True)
        (many / name).write_text("left")
    assert fingerprint("many") == found


def test_a_fingerprint_follows_links_to_folders(many, tmp_path):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "6").write_text("6")
    (many / "c").symlink_to(tmp_path / "shelf")
    (many / "a" / "up").symlink_to(many.resolve())  # for ever
    found = fingerprint("many")
    (tmp_path / "shelf" / "6").write_text("six")
    assert fingerprint("many") != found


@pytest.mark.parametrize("root", [".", "many"])
def test_of_too_many_files_a_fingerprint_looks_at_the_folders_alone(many, monkeypatch, root):
    monkeypatch.setattr(files, "MOST_FILES_LOOKED_AT", 3)
    made = []
    monkeypatch.setattr(files, "Path", lambda path: made.append(path) or Path(path))
    found = fingerprint(root)
    folders = sorted([Path(root), *(path for path in Path(root).rglob("*") if path.is_dir())], key=str)
    assert len(made) <= 2 + len(folders), "no path is made of a file"
    expected = [
        (os.path.relpath(folder, root), folder.stat().st_mtime_ns, sum(path.is_file() for path in folder.iterdir()))
        for folder in folders
    ]
    assert found == hashlib.sha256(repr(expected).encode()).hexdigest()
    (many / "a" / "1").unlink()
    assert fingerprint(root) != found
    # What labels pictures counts all the same: it is changed in place.
    (many / "dataset.json").write_text("[]")
    found = fingerprint(root)
    (many / "dataset.json").write_text("[1]")
    assert fingerprint(root) != found
