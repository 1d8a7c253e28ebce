"""Arrays that one job begins and another ends."""

import json

import numpy as np
import pytest

from diffusion.runtime.begun import BegunArray
from diffusion.runtime.errors import CheckpointError, UserError
from diffusion.runtime.files import new_array
from diffusion.runtime.processes import portions_of

ROWS = np.arange(40, dtype=np.uint8).reshape(10, 4)


def parts(first, stop_at=None):
    for portion in portions_of(10, 2, first):
        if portion.start == stop_at:
            raise KeyboardInterrupt
        yield ROWS[portion.start : portion.stop]


def begun(folder):
    """An array that was stopped before its seventh row."""
    array = BegunArray(folder / "images.npy")
    with pytest.raises(KeyboardInterrupt):
        array.fill(ROWS.shape, np.uint8, portions_of(10, 2), parts(0, stop_at=6))
    return array


def go_on(array):
    first = array.facts["count"]
    return array.fill(ROWS.shape, np.uint8, portions_of(10, 2, first), parts(first))


def test_what_was_begun_is_ended(tmp_path):
    array = begun(tmp_path)
    assert array.facts["count"] == 6
    np.testing.assert_array_equal(go_on(array), ROWS)


@pytest.mark.parametrize("row", [0, 5])
def test_changed_rows_are_refused(tmp_path, row):
    array = begun(tmp_path)
    stored = np.lib.format.open_memmap(array.path, "r+")
    stored[row, 1] ^= 1
    stored.flush()
    with pytest.raises(CheckpointError, match=r"its rows have SHA-256 .* was written: the file was changed"):
        go_on(array)


def test_rows_that_another_process_has_taken_away_are_noticed(tmp_path):
    """Two jobs on one array: the second begins with an empty one while the first writes on."""
    array = BegunArray(tmp_path / "images.npy")

    def disturbed():
        for number, rows in enumerate(parts(0)):
            if number == 3:
                np.lib.format.open_memmap(array.path, "r+")[:4] = 0
            yield rows

    with pytest.raises(CheckpointError, match="the file was changed"):
        array.fill(ROWS.shape, np.uint8, portions_of(10, 2), disturbed())


def test_a_new_array_leaves_the_old_file_to_those_who_read_it(tmp_path):
    old = new_array(tmp_path / "a.npy", (4,), np.uint8)
    old[:] = 7
    new_array(tmp_path / "a.npy", (4,), np.uint8)
    assert old.tolist() == [7] * 4


@pytest.mark.parametrize("damage", ["cut", "other shape", "count"])
def test_a_damaged_array_is_refused(tmp_path, damage):
    array = begun(tmp_path)
    if damage == "cut":
        array.path.write_bytes(array.path.read_bytes()[:100])
    elif damage == "other shape":
        np.save(array.path, ROWS[:, :3])
    else:
        facts = array.path.with_suffix(".json")
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"count": 4}))
    with pytest.raises(CheckpointError, match=r"Delete .* and run Snakemake again"):
        go_on(array)


def test_a_lock_names_its_holder(tmp_path):
    from diffusion.runtime.files import only_one

    with (
        only_one(tmp_path / "lock", "samples"),
        pytest.raises(UserError, match=r"samples: in use by process \d+ on \S+, since 20"),
        only_one(tmp_path / "lock", "samples"),
    ):
        pass
    with only_one(tmp_path / "lock", "samples"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
