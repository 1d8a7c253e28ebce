"""Samples of one's own: what the configuration takes and refuses, looking at the headers of the files alone."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from repository import tiny_experiment

from diffusion.data.samples import load_samples, samples_shape
from diffusion.runtime.errors import UserError
from evaluation.measure import metrics
from suite.configuration.experiment import parse_experiment
from suite.external import LEAST_SAMPLES, ExternalSamples, reference_problem
from suite.plan import Plan


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the paths of the configuration lead: whole files a.npz … d.npz, and those that something is wrong with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for seed, name in enumerate("abcd"):
        np.savez(f"{name}.npz", arr_0=images(6, 8, 8, 1, seed=seed))
    np.savez_compressed("compressed.npz", arr_0=images(6, 8, 8, 1))
    np.savez("other-size.npz", arr_0=images(6, 16, 16, 1))
    np.savez("rgb.npz", arr_0=images(6, 8, 8, 3))
    np.savez("channels-first.npz", arr_0=images(6, 1, 8, 8))
    np.savez("floats.npz", arr_0=images(6, 8, 8, 1) / 255)
    np.savez("one.npz", arr_0=images(8, 8, 1))
    np.savez("none.npz", arr_0=images(0, 8, 8, 1))
    np.savez("three.npz", arr_0=images(3, 8, 8, 1))
    np.savez("eight.npz", arr_0=images(8, 8, 8, 1))
    np.savez("named.npz", images=images(6, 8, 8, 1))
    np.savez("objects.npz", arr_0=np.array([[1], None], dtype=object))
    np.save("single.npy", images(6, 8, 8, 1))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[:-30])
    (tmp_path / "pointer.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    member = io.BytesIO()
    np.save(member, images(6, 8, 8, 1))
    with zipfile.ZipFile("short.npz", "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue()[:-64])
    os.symlink("a.npz", "link.npz")
    return tmp_path


def parse(external, **changes):
    raw = tiny_experiment() | changes
    raw["evaluation"]["external"] = external
    return parse_experiment(json.loads(json.dumps(raw)))


@pytest.mark.parametrize(
    ("given", "files", "nfe", "title"),
    [
        ("a.npz", {0: "a.npz"}, None, None),
        ("compressed.npz", {0: "compressed.npz"}, None, None),
        ({"path": "a.npz"}, {0: "a.npz"}, None, None),
        (["a.npz", "b.npz"], {0: "a.npz", 1: "b.npz"}, None, None),
        (
            {"path": ["a.npz", "b.npz"], "nfe": 1, "title": "Mine, it is", "seeds": [4, 2]},
            {2: "b.npz", 4: "a.npz"},
            1,
            "Mine, it is",
        ),
        # As `--config` gives them.
        ({"path": ["a.npz"], "nfe": "2", "seeds": ["7"]}, {7: "a.npz"}, 2, None),
    ],
)
def test_samples_of_ones_own_are_a_file_or_a_block(given, files, nfe, title, folder):
    samples = parse({"mine": given}).evaluation.external["mine"]
    assert {seed: str(file) for seed, file in samples.files.items()} == files
    assert list(samples.files) == sorted(files)
    assert (samples.nfe, samples.title) == (nfe, title)


def test_a_home_folder_is_expanded(folder):
    files = parse({"mine": ["~/a.npz", "b.npz"]}).evaluation.external["mine"].files
    assert files[0] == folder / "a.npz"


BROKEN = {
    "missing": ("nowhere.npz", r"mine: nowhere\.npz: not found; expected an \.npz whose 'arr_0' is uint8"),
    "one of several missing": (["a.npz", "nowhere.npz"], r"mine: nowhere\.npz: not found"),
    "other size": ("other-size.npz", r"mine: other-size\.npz: .* \(6, 16, 16, 1\), expected \(N, 8, 8, 1\)"),
    "other channels": ("rgb.npz", r"mine: rgb\.npz: .* \(6, 8, 8, 3\), expected \(N, 8, 8, 1\), as the data"),
    "channels first": ("channels-first.npz", r"mine: channels-first\.npz: 'arr_0' is uint8 of shape \(6, 1, 8, 8\)"),
    "floats": ("floats.npz", r"mine: floats\.npz: 'arr_0' is float64 of shape \(6, 8, 8, 1\)"),
    "three axes": ("one.npz", r"mine: one\.npz: 'arr_0' is uint8 of shape \(8, 8, 1\)"),
    "no images": ("none.npz", r"mine: none\.npz: 'arr_0' is uint8 of shape \(0, 8, 8, 1\)"),
    "too few": ("three.npz", r"mine: three\.npz: 3 images, expected 4 or more"),
    "other name": ("named.npz", r"mine: named\.npz: holds \['images'\]; expected"),
    "objects": ("objects.npz", r"mine: objects\.npz: cannot be read \('arr_0\.npy' holds Python objects\)"),
    "an .npy": ("single.npy", r"mine: single\.npy: cannot be read \(File is not a zip file, or it is truncated\)"),
    "truncated": (
        "truncated.npz",
        r"mine: truncated\.npz: cannot be read \(File is not a zip file, or it is truncated",
    ),
    "a pointer": ("pointer.npz", r"mine: pointer\.npz: cannot be read \(File is not a zip file"),
    "empty": ("empty.npz", r"mine: empty\.npz: cannot be read \(File is not a zip file"),
    "a folder": ("folder.npz", r"mine: folder\.npz: cannot be read \(.*Is a directory"),
    "short member": ("short.npz", r"mine: short\.npz: cannot be read \('arr_0\.npy' has 320 bytes, its header"),
    "unequal counts": (["a.npz", "eight.npz"], r"mine: found 6 in a\.npz, 8 in eight\.npz; expected as many images"),
    "same file twice": (["a.npz", "b.npz", "a.npz"], r"mine: found the same file twice \(a\.npz, a\.npz\)"),
    "a link to the same": (["a.npz", "link.npz"], r"mine: found the same file twice \(a\.npz, link\.npz\)"),
    "nothing": (None, r"mine\.path: found null, expected a list"),
    "no path": ({"nfe": 1}, r"mine\.path: missing; expected a value"),
    "an empty list": ([], r"mine\.path: found \[\]"),
    "a number": (5, r"mine\.path: found 5"),
    "more seeds": ({"path": ["a.npz"], "seeds": [0, 1]}, r"mine: found 1 files and 2 seeds, expected a seed for each"),
    "fewer seeds": ({"path": ["a.npz", "b.npz"], "seeds": [0]}, r"mine: found 2 files and 1 seeds"),
    "equal seeds": ({"path": ["a.npz", "b.npz"], "seeds": [1, 1]}, r"mine\.seeds: found \[1, 1\], expected different"),
    "a negative seed": ({"path": "a.npz", "seeds": [-1]}, r"mine\.seeds: found \[-1\], expected different"),
    "a text as seed": ({"path": ["a.npz", "b.npz"], "seeds": [0, "x"]}, r"mine\.seeds\.1: found 'x'"),
    "a half seed": ({"path": "a.npz", "seeds": [0.5]}, r"mine\.seeds\.0: found 0\.5"),
    "a truth value as seed": ({"path": "a.npz", "seeds": [True]}, r"mine\.seeds: found \[true\], expected a number"),
    "no evaluations": ({"path": "a.npz", "nfe": 0}, r"mine\.nfe: found 0"),
    "evaluations in words": ({"path": "a.npz", "nfe": "one"}, r"mine\.nfe: found 'one'"),
    "a truth value": ({"path": "a.npz", "nfe": True}, r"mine\.nfe: found true, expected a number"),
    "an unknown key": ({"path": "a.npz", "seed": 0}, r"mine\.seed: unknown key; expected one of: path, seeds"),
    "an empty title": ({"path": "a.npz", "title": " "}, r"mine\.title: found ' ', expected a line of text"),
    "two lines": ({"path": "a.npz", "title": "a\nb"}, r"mine\.title: found 'a\\nb', expected a line of text"),
    "a method's title": ({"path": "a.npz", "title": "DDIM"}, r"mine\.title: found 'DDIM', which is another row's"),
}


@pytest.mark.parametrize(("given", "message"), BROKEN.values(), ids=BROKEN)
def test_samples_that_cannot_be_measured_are_refused_while_the_configuration_is_read(given, message, folder):
    with pytest.raises(UserError, match=r"(?m)^evaluation\.external\." + message):
        parse({"mine": given, "sound": "d.npz"})


def test_samples_and_references_have_the_height_and_width_of_the_data(folder):
    np.savez("wide.npz", arr_0=images(6, 8, 16, 1))
    np.savez("tall.npz", arr_0=images(6, 16, 8, 1))
    data = {"kind": "digit_pairs"}
    assert parse({"mine": "wide.npz"}, data=data).evaluation.external["mine"].files[0].name == "wide.npz"
    for file, found in (("tall.npz", "16, 8"), ("a.npz", "8, 8")):
        message = rf"mine: {file[:-4]}\.npz: 'arr_0' has the shape \(6, {found}, 1\), expected \(N, 8, 16, 1\)"
        with pytest.raises(UserError, match=message):
            parse({"mine": file}, data=data)
    settings = parse({"mine": "wide.npz"}, data=data).data
    assert reference_problem(folder / "wide.npz", settings, "efficientnet-lite0-64") is None
    for file, found in (("tall.npz", "16×8"), ("a.npz", "8×8")):
        problem = reference_problem(folder / file, settings, "efficientnet-lite0-64")
        assert problem == f"{folder / file}: images of {found} pixels, expected 8×16."


def test_all_files_are_told_of_at_once_and_titles_are_told_apart(folder):
    external = {"one": ["nowhere.npz", "rgb.npz"], "two": "three.npz", "three": {"path": "a.npz", "title": "two"}}
    with pytest.raises(UserError) as caught:
        parse(external)
    starts = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert starts == [f"evaluation.external.{key}" for key in ("one", "one", "two", "three.title")]


@pytest.mark.parametrize("name", ["boot-heun", "boot-heun-longer", "real", "a b"])
def test_names_that_a_variant_has_are_refused_those_of_a_comparison_included(name, folder):
    comparison = {"longer": {"boot-heun": {"training": {"steps": 9}}}}
    with pytest.raises(UserError, match=rf"(?m)^evaluation\.external\.{name}: expected a name"):
        parse({name: "a.npz"}, comparison=comparison)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(6, np.int64), None),
        (np.zeros(5, np.int64), r"'arr_1' has the shape \(5,\), expected \(6,\): one class an image"),
        (np.zeros((6, 1), np.int64), r"'arr_1' has the shape \(6, 1\)"),
        (np.zeros(6), r"'arr_1' is float64 of shape \(6,\); expected one integer an image"),
    ],
)
def test_labels_are_looked_at_where_they_are_judged(labels, message, folder):
    np.savez("labelled.npz", arr_0=images(6, 8, 8, 1), arr_1=labels)
    assert parse({"mine": "labelled.npz"}).evaluation.external
    teacher = tiny_experiment()["teacher"] | {"labels": True}
    if message is None:
        assert parse({"mine": "labelled.npz"}, teacher=teacher).conditional
        return
    with pytest.raises(UserError, match=rf"evaluation\.external\.mine: labelled\.npz: {message}"):
        parse({"mine": "labelled.npz"}, teacher=teacher)


def test_the_header_tells_what_reading_finds_and_not_a_pixel_is_read(folder):
    for name in ("a.npz", "compressed.npz", "rgb.npz"):
        assert samples_shape(name) == load_samples(name).shape
    np.savez("damaged.npz", arr_0=images(1000, 8, 8, 1))
    content = bytearray((folder / "damaged.npz").read_bytes())
    content[32_000] ^= 255  # a pixel
    (folder / "damaged.npz").write_bytes(content)
    assert samples_shape("damaged.npz") == (1000, 8, 8, 1)
    with pytest.raises(UserError, match="CRC"):
        load_samples("damaged.npz")


def test_samples_of_ones_own_are_shown_and_measured_under_every_protocol_that_they_can(folder):
    """Of 24 images: not where 32 are taken, nor where another quantiser made them."""
    np.savez("few.npz", arr_0=images(24, 8, 8, 1))
    np.savez("many.npz", arr_0=images(48, 8, 8, 1))
    np.savez("more.npz", arr_0=images(48, 8, 8, 1, seed=1))
    many = {"path": ["many.npz", "more.npz"], "seeds": [5, 3], "nfe": 2, "title": "Many"}
    plan = Plan(parse({"few": "few.npz", "many": many}))
    under = {None: ["few", "many"], "main": ["many"], "clean": ["many"], "truncated": [], "few": ["many"]}
    found = {name: [row for row in plan.shown(name) if row.own is None] for name in under}
    assert {name: [row.identity[1] for row in rows] for name, rows in found.items()} == under
    few, row = found[None]
    assert (row.identity, row.label, row.seed) == (("external", "many", 2, None), "Many, NFE 2", 3)
    assert (few.label, str(row.samples)) == ("few", "more.npz")
    root = plan.root
    assert plan.features_under(row) == root / "features/external/many/seed-3.npy"
    assert plan.features_folder(row) == root / "features/external/many"
    clean = root / "further_features/clean-fid-clean-efficientnet-lite0-64/round"
    assert plan.features_folder(row, "clean") == clean
    assert plan.features_under(row, "clean") == clean / "external/many/seed-3.npy"
    for (extraction, quantiser), sets in plan.further_extractions().items():
        assert ("external/many/seed-3" in sets) == (quantiser == "round")
        assert len(sets) == len(Plan(parse({})).further_extractions()[extraction, quantiser]) + (quantiser == "round")


def test_the_fewest_samples_are_those_that_precision_and_recall_take():
    assert LEAST_SAMPLES == metrics.NEIGHBORHOOD + 1
    assert ExternalSamples.model_validate("a.npz") == ExternalSamples(path=("a.npz",))
