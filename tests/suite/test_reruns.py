"""Which results are what is asked for: by content, never by time."""

import json
import os
import shutil
from pathlib import Path

import pytest

from diffusion.runtime.errors import UserError
from suite.provenance import RECORD, checked, write_provenance
from suite.reruns import Reruns, RunLock, asked_in

SETTINGS = {"training": {"steps": 5, "learning_rate": 1e-3}, "seed": 0}


class Results:
    """A results folder with a teacher, and a student that is made of it and of a file of the user's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "results"
        self.told: list[str] = []
        (folder / "code").mkdir()
        (folder / "code" / "loss.py").write_text("a formula")
        (folder / "mine.npz").write_bytes(b"pictures")

    @property
    def reruns(self) -> Reruns:
        return Reruns(self.root, self.folder / "code", True, self.told.append)

    def ask(self, name: str, **changes) -> Path:
        files = [str(self.folder / "mine.npz")] if name == "student" else []
        return self.reruns.ask(self.root / name / RECORD, SETTINGS | changes, ["loss.py"], files)

    def make(self, name: str, content: str, inputs: dict[str, Path] | None = None) -> None:
        job = self.ask(name)
        asked = json.loads(job.read_text())
        asked = {part: asked[part] for part in ("results", "settings", "code", "files")}
        (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / name / "weights").write_text(content)
        write_provenance(self.root / name / RECORD, checked(inputs or {}), asked)

    def is_current(self, name: str, **changes) -> bool:
        """By the times that Snakemake compares."""
        job = self.ask(name, **changes)
        timestamp = self.root / name / ".snakemake_timestamp"
        return job.stat().st_mtime <= timestamp.stat().st_mtime if timestamp.exists() else False


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path)
    made.make("teacher", "teacher's weights")
    inputs = {"teacher": made.root / "teacher" / "weights", "mine": tmp_path / "mine.npz"}
    made.make("student", "student's weights", inputs)
    return made


def test_what_is_asked_for_is_current_and_nothing_is_told(results):
    assert results.is_current("teacher")
    assert results.is_current("student")
    assert results.told == []


def test_other_settings_are_noticed_and_told_by_their_key(results):
    assert not results.is_current("teacher", training={"steps": 6, "learning_rate": 1e-3})
    assert results.told == [
        f"{results.root / 'teacher'}: made again, settings.training.steps: made with 5, asked for is 6"
    ]
    assert not results.is_current("teacher", flip=True)
    assert results.told[-1].endswith("settings: flip is new")
    assert results.is_current("teacher")


def test_edited_code_is_noticed(results):
    (results.folder / "code" / "loss.py").write_text("another formula")
    import suite.reruns

    suite.reruns._sha256_of_code.cache_clear()
    assert not results.is_current("teacher")
    assert results.told == [f"{results.root / 'teacher'}: made again, loss.py has changed"]


@pytest.mark.parametrize("when", [1_000_000_000, 4_000_000_000])
def test_times_do_not_matter(results, when):
    for file in results.folder.rglob("*"):
        os.utime(file, (when, when))
    assert results.is_current("teacher")
    assert results.is_current("student")


def test_results_that_were_moved_are_what_they_were(results):
    shutil.copytree(results.root, results.folder / "elsewhere" / "results")
    shutil.rmtree(results.root)
    results.root = results.folder / "elsewhere" / "results"
    assert results.is_current("student")
    assert not results.is_current("student", seed=1)


def test_another_input_is_noticed(results):
    before = (results.root / "teacher" / RECORD).read_bytes()
    results.make("teacher", "a teacher of another training")
    assert results.is_current("teacher")
    assert not results.is_current("student")
    assert results.told[-1].endswith("teacher/weights is not what it was made of")
    (results.root / "teacher" / "weights").write_text("teacher's weights")
    (results.root / "teacher" / RECORD).write_bytes(before)
    assert results.is_current("student")
    shutil.rmtree(results.root / "teacher")  # nobody needs it
    assert results.is_current("student")


def test_a_users_file_is_known_by_its_content(results):
    os.utime(results.folder / "mine.npz", (1, 1))
    assert results.is_current("student")
    (results.folder / "mine.npz").write_bytes(b"PICTURES")
    assert not results.is_current("student")
    assert results.told[-1].endswith("mine.npz has changed")


@pytest.mark.parametrize("damage", ["missing", "shorter", "record", "no record", "torn record"])
def test_a_damaged_result_is_made_again(results, damage):
    weights, record = results.root / "teacher" / "weights", results.root / "teacher" / RECORD
    assert results.is_current("teacher")
    if damage == "missing":
        weights.unlink()
    elif damage == "shorter":
        weights.write_text("teach")
    elif damage == "record":
        record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:100])
    assert not results.is_current("teacher")


def test_what_is_stale_is_asked_for_in_other_words_each_time(results):
    """Snakemake ignores an input that is newer but has the content that it had."""
    job = results.ask("teacher")
    settled = job.read_text()
    (results.root / "teacher" / "weights").unlink()
    stale = [results.ask("teacher").read_text() for _ in range(2)]
    assert len({settled, *stale}) == 3
    (results.root / "teacher" / "weights").write_text("teacher's weights")
    assert results.ask("teacher").read_text() == settled


def test_what_is_not_there_is_not_asked_for_anew(results):
    """Else a data set that was deleted would be prepared again, though nobody needs it."""
    settled = results.ask("teacher").stat().st_mtime
    shutil.rmtree(results.root / "teacher")
    job = results.ask("teacher")
    assert job.stat().st_mtime == settled
    assert "because" not in json.loads(job.read_text())
    assert results.told == []


def test_a_job_copies_what_is_asked_for_with_the_code_as_it_is_when_it_begins(results):
    job = results.ask("teacher")
    assert asked_in(job, results.folder / "code")["settings"] == SETTINGS
    before = asked_in(job, results.folder / "code")["code"]
    (results.folder / "code" / "loss.py").write_text("edited after the run was planned")
    assert asked_in(job, results.folder / "code")["code"] != before
    job.write_text("{}")
    with pytest.raises(UserError, match="is not what a job is asked for"):
        asked_in(job)


def test_one_run_a_results_folder(tmp_path):
    first = RunLock(tmp_path, True)
    first.require()
    second = RunLock(tmp_path, True)
    assert first.is_held
    assert not second.is_held
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on "):
        second.require()
    RunLock(tmp_path, False).require()  # a job's own process
