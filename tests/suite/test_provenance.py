"""The JSON beside a result, also on a machine that lacks a package."""

import importlib.metadata
import json
import shutil

import pytest
from corruptions import CORRUPTIONS, corrupted

from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import version_of
from suite.provenance import RECORD, checked, checked_folder, record_of, versions, write_provenance


def test_a_package_without_metadata_is_said_not_to_be_installed(monkeypatch):
    """As one that lies on PYTHONPATH alone."""
    known = versions()
    assert known["torch"] == importlib.metadata.version("torch")
    found = importlib.metadata.version

    def version(name):
        if name == "snakemake":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions() == known | {"snakemake": "not installed"}
    assert version_of("no such package") == "not installed"


@pytest.fixture
def result(tmp_path):
    """A result in a folder, made by the workflow."""
    (tmp_path / "features" / "nfe-1").mkdir(parents=True)
    for seed in (0, 1):
        (tmp_path / "features" / "nfe-1" / f"seed-{seed}.npy").write_bytes(bytes(range(seed, 60 + seed)))
    write_provenance(tmp_path / "features" / RECORD, {}, {"settings": {}}, seeds=[0, 1])
    return tmp_path / "features"


def test_readers_get_what_was_delivered(result):
    file = result / "nfe-1" / "seed-0.npy"
    assert record_of(file) == result / RECORD
    assert checked({"features": file})["features"].path == file
    assert set(checked_folder("x", result)) == {"x, nfe-1/seed-0.npy", "x, nfe-1/seed-1.npy"}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_changed_file_is_refused_with_the_way_to_make_it_anew(result, corruption):
    file = result / "nfe-1" / "seed-0.npy"
    with corrupted(file, corruption), pytest.raises(UserError) as refused:
        checked({"features": file})
    message = str(refused.value)
    assert message.startswith(f"{file}: found SHA-256 ")
    assert "expected " in message
    assert message.endswith(f"Delete {result} and run Snakemake again, which makes the result anew.")
    checked({"features": file})


def test_a_sibling_in_its_place_a_missing_and_an_added_file_are_refused(result):
    own, other = (result / "nfe-1" / f"seed-{seed}.npy" for seed in (0, 1))
    with corrupted(own, lambda _: other.read_bytes()), pytest.raises(UserError, match="found SHA-256"):
        checked({"features": own})
    with corrupted(other, None), pytest.raises(UserError, match=r"seed-1\.npy: not found, though"):
        checked({"features": own})
    (result / "nfe-1" / "seed-2.npy").write_bytes(own.read_bytes())
    with pytest.raises(UserError, match=r"seed-2\.npy: is no part of the result"):
        checked({"features": result / "nfe-1" / "seed-2.npy"})


@pytest.mark.parametrize("corruption", CORRUPTIONS[:3])
def test_a_changed_record_is_refused(result, corruption):
    record = result / RECORD
    content = json.dumps(json.loads(record.read_text()), sort_keys=True)
    changed = corruption(content.encode())
    with corrupted(record, lambda _: changed), pytest.raises(UserError, match=r"is not the record|is not valid JSON"):
        checked_folder("x", result)


def test_a_users_own_file_is_never_advised_to_be_deleted(tmp_path):
    """Nor a teacher that was converted by hand, which its owner may have changed on purpose."""
    with pytest.raises(UserError) as refused:
        checked({"mine": tmp_path / "mine.npz"})
    assert "Delete" not in str(refused.value)
    (tmp_path / "mine.npz").write_bytes(b"1")
    assert checked({"mine": tmp_path / "mine.npz"})["mine"].path == tmp_path / "mine.npz"
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "weights").write_bytes(b"1")
    write_provenance(tmp_path / "teacher" / RECORD, {}, None)
    (tmp_path / "teacher" / "weights").write_bytes(b"2")
    with pytest.raises(UserError, match=rf"If the change is yours, delete {tmp_path / 'teacher' / RECORD}"):
        checked({"weights": tmp_path / "teacher" / "weights"})


@pytest.mark.parametrize("output", ["results/digits/teacher", "{}/results/digits/teacher"])
def test_a_copy_of_a_result_is_its_owners(tmp_path, output):
    """Weights that were trained further in a copy of the teacher: no run of Snakemake makes that folder."""
    output = output.format(tmp_path)
    made = tmp_path / "results/digits/teacher"
    made.mkdir(parents=True)
    (made / "weights").write_bytes(b"1")
    write_provenance(made / RECORD, {}, {}, output=output)
    mine = shutil.copytree(made, tmp_path / "mine/teacher")
    for folder in (made, mine):
        (folder / "weights").write_bytes(b"2")
    with pytest.raises(UserError, match=rf"Delete {made} and run Snakemake again"):
        checked({"weights": made / "weights"})
    with pytest.raises(UserError) as refused:
        checked({"weights": mine / "weights"})
    assert str(refused.value).endswith(f"delete {mine / RECORD}; else copy the result again, from {output}.")


def test_files_beside_their_record(tmp_path):
    (tmp_path / "train-0.csv").write_text("metric,value\nkid,2.000\n")
    write_provenance(tmp_path / "train-0.json", {}, {}, [tmp_path / "train-0.csv"])
    (tmp_path / "train-1.csv").write_text("not listed")
    assert record_of(tmp_path / "train-0.csv") == tmp_path / "train-0.json"
    assert record_of(tmp_path / "train-1.csv") is None
    (tmp_path / "train-0.csv").write_text("metric,value\nkid,2.001\n")
    with pytest.raises(UserError, match=r"train-0\.csv: found SHA-256"):
        checked({"measures": tmp_path / "train-0.csv"})
