"""Protocols as data, and what they are measured against."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from repository import TINY

from diffusion.data.samples import to_uint8
from diffusion.data.store import resolution_of
from diffusion.runtime.errors import UserError
from evaluation.measure.moments import Moments, moments, streamed_moments
from evaluation.measure.protocols import Protocol, in_words, resize_in_words
from evaluation.measure.reference import load_features, load_given, write_features, write_moments
from evaluation.report.protocol_table import protocol_summary, protocol_table
from evaluation.results.stored import load_metrics
from suite.configuration.experiment import parse_experiment
from suite.jobs.extraction import Extract
from suite.plan import Plan

# isort: split
from torch_fidelity.metric_fid import fid_features_to_statistics

EXTRACTOR = {
    "name": "toy", "library": "torch-fidelity", "library_version": "1", "layer": "5", "dimensions": 5,
    "resize": "none", "normalisation": "none", "weights_sha256": "ab" * 32, "mode": None,
}  # fmt: skip
FEATURES = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)


def extract(images):
    """The first five bytes of a picture."""
    return images.reshape(len(images), -1)[:, :5].astype(np.float32)


def load(path, resolution=8, extractor=EXTRACTOR, **options):
    return load_given(path, resolution, extractor, extract, **options)


def tiny(**evaluation):
    raw = yaml.safe_load(TINY.read_text())
    raw["evaluation"] |= evaluation
    return raw


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_mode_belongs_to_clean_fid():
    assert Protocol.model_validate({"library": "clean-fid"}).mode == "clean"
    assert Protocol.model_validate({}).mode is None
    with pytest.raises(ValueError, match="mode: found 'clean', expected none: it is a setting of clean-fid"):
        Protocol.model_validate({"mode": "clean"})


def test_moments_of_other_features_are_refused_before_anything_runs(tmp_path):
    file = tmp_path / "r.npz"
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    parse_experiment(tiny(protocols={"adm": {"reference": str(file), "features": "inception"}}))
    with pytest.raises(
        UserError, match=r"protocols\.adm\.reference: .*'mu' has the shape \(2048,\), expected \(1280,\)"
    ):
        parse_experiment(tiny(protocols={"adm": {"reference": str(file)}}))
    np.savez(file, mu=np.zeros((1, 1280)), sigma=np.eye(1280))
    with pytest.raises(UserError, match=r"'mu' has the shape \(1, 1280\), expected \(1280,\)"):
        parse_experiment(tiny(protocols={"adm": {"reference": str(file)}}))
    np.savez(file, mu=np.zeros(5), sigma=np.eye(5), arr_0=np.zeros((20, 8, 8, 1), np.uint8))  # its images count
    parse_experiment(tiny(protocols={"adm": {"reference": str(file)}}))


def test_a_protocol_takes_what_it_does_not_say_from_the_experiment():
    protocols = {"half": {"num_samples": 24}, "other": {"features": "efficientnet-lite0-32"}}
    experiment = parse_experiment(tiny(protocols=protocols))
    found = experiment.evaluation.all_protocols
    assert list(found) == ["main", "half", "other"]
    assert [one.features for one in found.values()] == ["efficientnet-lite0-64"] * 2 + ["efficientnet-lite0-32"]
    assert [one.num_samples for one in found.values()] == [48, 24, 48]
    plan = Plan(experiment)
    assert list(plan.extractions()) == ["torch-fidelity-efficientnet-lite0-64", "torch-fidelity-efficientnet-lite0-32"]


@pytest.mark.parametrize(
    ("protocols", "message"),
    [
        ({"main": {}}, r"evaluation\.protocols\.main: expected a name .* and not 'main'"),
        ({"a/b": {}}, r"evaluation\.protocols\.a/b: expected a name"),
        ({"x": {"reference": "none.npz"}}, r"protocols\.x\.reference: found 'none\.npz', expected train, test or an"),
        (
            {"x": {"reference_sha256": "0" * 8}},
            r"protocols\.x\.reference_sha256: given, but the reference is not a file",
        ),
        ({"x": {"num_samples": 49}}, r"protocols\.x\.num_samples: found 49, expected no more than .*\(48\)"),
        ({"x": {"library": "pytorch-fid"}}, r"protocols\.x\.library: found 'pytorch-fid'"),
        ({"x": {"library": "clean-fid", "mode": "tidy"}}, r"protocols\.x\.mode: found 'tidy'"),
        ({"x": {"mode": "clean"}}, r"protocols\.x: mode: found 'clean', expected none"),
        ({"x": {"filter": "bicubic"}}, r"protocols\.x\.filter: unknown key; expected one of: preset, library"),
        ({"x": {"preset": "coco"}}, r"protocols\.x\.preset: found 'coco', expected 'coco2014-30k'"),
        ({"x": {"preset": "coco2014-30k"}}, r"protocols\.x: reference: missing; coco2014-30k is measured against"),
        ({"x": {"preset": "coco2017-5k", "reference": "test"}}, r"protocols\.x\.num_samples: found 5000, .*\(48\)"),
        (
            {"x": {"preset": "coco2014-30k", "reference": "test", "resolution": 299}},
            r"protocols\.x: resolution: found 299, expected 256, as coco2014-30k has it",
        ),
    ],
)
def test_protocols_that_make_no_sense_are_refused(protocols, message):
    with pytest.raises(UserError, match=message):
        parse_experiment(tiny(protocols=protocols))


def test_a_preset_says_what_a_publication_has_fixed():
    """And is the same protocol as the block that spells it out, for the features are shared."""
    preset = Protocol.model_validate({"preset": "coco2014-30k", "reference": "coco.npz", "num_samples": "30000"})
    assert (preset.library, preset.mode, preset.features) == ("clean-fid", "clean", "inception")
    assert (preset.resolution, preset.num_samples) == (256, 30_000)
    assert Protocol.model_validate(preset.model_dump()) == preset
    assert preset.extraction == "clean-fid-clean-inception-256px"
    words = in_words(preset, EXTRACTOR, {"count": 40504, "sha256": "cd" * 32})
    assert words.startswith("coco2014-30k: clean-fid 1, mode clean")
    assert "resize: the middle square to 256×256, Lanczos (PIL); then 299×299, bicubic" in words


def test_keys_that_came_later_do_not_change_what_results_are_known_by():
    assert not {"preset", "resolution"} & set(Protocol().model_dump())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_protocols_resolution_is_that_of_the_middle_square(channels):
    """By hand: rows 0 to 11, columns 4 to 15 of a wide image, resized by PIL."""
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 20, channels), dtype=np.uint8)
    seen = []
    extractor = SimpleNamespace(extract_in=lambda mode, given, batch_size: seen.append((mode, given, batch_size)))
    Extract(protocol=Protocol(resolution=8), sets={}, output="none", batch_size=5).features(extractor, images)
    ((mode, given, batch_size),) = seen
    assert (mode, given.shape, given.dtype, batch_size) == (None, (3, 8, 8, channels), np.uint8, 5)
    for image, resized in zip(images, given, strict=True):
        for channel in range(channels):
            plane = Image.fromarray(image[:, 4:16, channel]).resize((8, 8), Image.Resampling.LANCZOS)
            assert np.array_equal(resized[..., channel], np.asarray(plane))
    Extract(protocol=Protocol(), sets={}, output="none").features(extractor, images)
    assert seen[1][1] is images


def test_words():
    clean = Protocol(library="clean-fid", mode="clean", features="efficientnet-lite0-64", num_samples=9)
    assert resize_in_words(clean, EXTRACTOR) == "299×299, bicubic, antialiased, as float (PIL); then none"
    words = in_words(clean, EXTRACTOR, {"count": None, "sha256": "cd" * 32, "note": "of old"})
    for part in (
        "clean-fid 1, mode clean",
        "ab" * 8,
        "cd" * 8,
        "an unknown number of pictures",
        "…; of old)",
        "round(",
    ):
        assert part in words, part


def test_clean_fid_is_looked_at_by_default_but_not_with_an_inception_of_its_own():
    raw = tiny()
    del raw["evaluation"]["protocols"]
    assert list(parse_experiment(raw).evaluation.all_protocols) == ["main", "clean-fid"]
    raw["evaluation"]["features"] = "inception"
    assert list(parse_experiment(raw).evaluation.all_protocols) == ["main"]


def test_features_are_shared_by_the_protocols_that_see_the_same_pictures_alike():
    protocols = {
        "half": {"num_samples": 24, "reference": "test"},
        "floor": {"quantiser": "truncate"},
        "clean": {"library": "clean-fid"},
        "clean-too": {"library": "clean-fid", "reference": "test"},
    }
    plan = Plan(parse_experiment(tiny(protocols=protocols)))
    unit = plan.teacher_unit()
    own = plan.features(unit.variant, unit.train_seed) / f"nfe-{unit.nfe}" / f"seed-{plan.first_seed}.npy"
    teacher = plan.shown()[0]
    assert teacher.own == unit
    assert plan.features_under(teacher, "main") == plan.features_under(teacher, "half") == own
    assert plan.features_under(teacher, "clean") == plan.features_under(teacher, "clean-too") != own
    further = plan.further_extractions()
    main, clean = "torch-fidelity-efficientnet-lite0-64", "clean-fid-clean-efficientnet-lite0-64"
    assert set(further) == {(main, "truncate"), (clean, "round")}
    for (extraction, quantiser), sets in further.items():
        name = "floor" if quantiser == "truncate" else "clean"
        folder = plan.root / "further_features" / extraction / quantiser
        made = {folder / f"{name}.npy" for name in sets}
        assert made == {plan.features_under(one, name) for one in plan.shown(name)}
    assert set(further[clean, "round"].values()) < set(plan.sets(unit.variant, unit.train_seed).values()) | {
        plan.samples(one)[plan.first_seed] for one in plan.units()
    }


# -- quantisers --------------------------------------------------------------------------------------------------------


def test_the_truncating_quantiser_takes_the_floor():
    values = torch.tensor([-2.0, -1.0, -0.9999, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 7)
    # 127.5 x + 127.5 is −127.5, 0, 0.01, 127.5, 254.9, 255, 510.
    assert to_uint8(values, "truncate").ravel().tolist() == [0, 0, 0, 127, 254, 255, 255]
    assert to_uint8(values).ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]


# -- references --------------------------------------------------------------------------------------------------------


def test_streamed_moments_are_the_whole_sets_and_lose_no_digits_to_a_large_mean():
    features = (1000 + np.random.default_rng(1).standard_normal((101, 6))).astype(np.float32)
    exact = features.astype(np.float64)
    for portion in (1, 7, 50, 101, 500):
        found = streamed_moments(features, portion).statistics
        np.testing.assert_allclose(found["mu"], exact.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(found["sigma"], np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-12)


def test_large_sets_are_streamed_and_small_ones_have_the_librarys_own_moments(tmp_path, monkeypatch):
    np.save(tmp_path / "f.npy", FEATURES)
    mapped = load_features(tmp_path / "f.npy")
    assert isinstance(mapped, np.memmap)
    library = fid_features_to_statistics(torch.from_numpy(FEATURES))
    found = moments(mapped).statistics
    assert all((library[name] == found[name]).all() for name in library)
    monkeypatch.setattr("evaluation.measure.moments._LARGEST_IN_MEMORY", 39)
    streamed = moments(mapped).statistics
    assert streamed["mu"].dtype == np.float64
    assert all(streamed[name] == pytest.approx(library[name], rel=1e-5, abs=1e-6) for name in library)


@pytest.mark.parametrize("content", [b"", b"something else", b"\x93NUMPY\x01\x00"], ids=["empty", "text", "cut"])
def test_features_that_cannot_be_read_name_their_file(tmp_path, content):
    with pytest.raises(UserError, match=r"f\.npy: no features can be read"):
        load_features(tmp_path / "f.npy")
    (tmp_path / "f.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"f\.npy: no features can be read"):
        load_features(tmp_path / "f.npy")


def test_features_are_written_a_portion_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.measure.reference._PORTION", 7)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    seen = []
    write_features(tmp_path / "f.npy", images, 5, lambda part: seen.append(len(part)) or extract(part))
    assert seen == [7] * 5 + [5]
    stored = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert isinstance(stored, np.memmap)
    assert (stored == extract(images)).all()


def test_a_reference_of_this_suite_is_read_as_it_was_written(tmp_path):
    write_moments(tmp_path / "r.npz", FEATURES, {"extractor": EXTRACTOR, "resolution": 8, "sha256": "ef"})
    found = load(tmp_path / "r.npz")
    own = moments(FEATURES).statistics
    assert all((own[name] == found.moments.statistics[name]).all() for name in own)
    assert found.features is None
    assert found.about["count"] == 40
    with pytest.raises(UserError, match="made of images of 8×8 pixels, but the samples have 16×16"):
        load(tmp_path / "r.npz", resolution=16)
    with pytest.raises(UserError, match=r"made with another extractor: resize is 'none' there and '64' of"):
        load(tmp_path / "r.npz", extractor=EXTRACTOR | {"resize": "64"})
    assert load(tmp_path / "r.npz", data={"ef", "00"}).about["data_sha256"] == "ef"
    with pytest.raises(UserError, match="made of other data"):
        load(tmp_path / "r.npz", data={"00"})
    with pytest.raises(UserError, match=r"sha256 .*, expected 00000000"):
        load(tmp_path / "r.npz", sha256="00000000")
    assert load(tmp_path / "r.npz", sha256=found.about["sha256"][:12]).about == found.about


@pytest.mark.parametrize("kind", ["images", "moments"])
def test_a_reference_has_the_samples_height_and_width(tmp_path, kind):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 16, 1), dtype=np.uint8)
    if kind == "images":
        np.savez(tmp_path / "r.npz", arr_0=images)
    else:
        facts = {"extractor": EXTRACTOR, "resolution": resolution_of(images.shape), "sha256": "ef"}
        write_moments(tmp_path / "r.npz", extract(images), facts)
    for resolution in ([8, 16], (8, 16)):
        found = load(tmp_path / "r.npz", resolution=resolution)
        assert (found.moments.statistics["mu"] == moments(extract(images)).statistics["mu"]).all()
    for resolution, said in ((8, "8×8"), (16, "16×16"), ([16, 8], "16×8")):
        with pytest.raises(UserError, match=f"made of images of 8×16 pixels, but the samples have {said}"):
            load(tmp_path / "r.npz", resolution=resolution)


def test_moments_from_elsewhere_are_taken(tmp_path):
    """As clean-fid's own statistics are: float64, and nothing beside them."""
    mu, sigma = FEATURES.mean(axis=0, dtype=np.float64), np.cov(FEATURES, rowvar=False)
    np.savez(tmp_path / "r.npz", mu=mu, sigma=sigma)
    found = load(tmp_path / "r.npz")
    assert isinstance(found.moments, Moments)
    assert (found.moments.statistics["mu"] == mu).all()
    assert found.about["count"] is None
    assert found.about["note"] == "its data, resolution and resize are not known"


def test_pictures_from_elsewhere_are_measured_by_the_samples_own_extractor(tmp_path):
    """As ADM's reference batches are: pictures, and beside them moments of another network."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "r.npz", arr_0=images, mu=np.zeros(2048), sigma=np.eye(2048))
    found = load(tmp_path / "r.npz")
    assert (found.features == extract(images)).all()
    assert (found.moments.statistics["mu"] == extract(images).mean(axis=0)).all()
    assert found.about["count"] == 30
    assert found.about["note"] == "the file's pictures, not its moments, which are of another network"
    with pytest.raises(UserError, match="images of 8×8 pixels, but the samples have 16×16"):
        load(tmp_path / "r.npz", resolution=16)


def test_on_the_inception_an_adm_references_own_moments_count(tmp_path):
    """They are of the whole data set, its pictures are some of it: ADM's FID is against the moments."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    mu = np.arange(5.0)
    np.savez(tmp_path / "r.npz", arr_0=images, mu=mu, sigma=np.eye(5))
    found = load(tmp_path / "r.npz", extractor=EXTRACTOR | {"name": "inception"})
    assert (found.moments.statistics["mu"] == mu).all()
    assert (found.features == extract(images)).all()
    assert "the file's own moments" in found.about["note"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "'toy' has 5 dimensions: they were made with another extractor"),
        ({"mu": np.zeros(5), "sigma": np.eye(4)}, "made with another extractor"),
        ({"mu": np.full(5, np.nan), "sigma": np.eye(5)}, "not finite"),
        ({"mu": np.zeros(5), "sigma": np.triu(np.ones((5, 5)))}, "not symmetric"),
        ({"mean": np.zeros(5)}, r"holds \['mean'\]; expected 'arr_0'"),
        ({"arr_0": np.zeros((3, 8, 8, 1))}, "is float64"),
    ],
    ids=["dimensions", "shape", "nan", "asymmetric", "names", "float pictures"],
)
def test_references_that_do_not_fit_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "r.npz", **content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "r.npz")


def test_files_that_are_no_reference_are_refused(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load(tmp_path / "none.npz")
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "r.npz")
    np.savez(tmp_path / "pickle.npz", mu=np.array([object()], dtype=object), sigma=np.eye(5))
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "pickle.npz")


# -- a protocol's job --------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """Runs the three jobs of a protocol on made pictures, as the rules do."""
    from tiny import stored_data

    from suite.jobs import extraction, protocols, references

    stored_data(tmp_path / "data")
    images = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images)

    def run(raw, *further):
        protocol = Protocol.model_validate({"features": "efficientnet-lite0-32", **raw})
        reference, output = tmp_path / "reference", tmp_path / "out.csv"
        references.Extract(protocol=protocol, data=tmp_path / "data", output=reference).run()
        sets = {"boot/a": tmp_path / "samples.npz"}
        extraction.Extract(protocol=protocol, sets=sets, output=tmp_path / "features").run()
        features = tmp_path / "features" / "boot" / "a.npy"
        rows = [["boot", "boot", 1, 0, 0, features], *([*row, features] for row in further)]
        about = {"experiment": "e", "name": "p", "rows": rows, "seed": 0}
        protocols.Measure(protocol=protocol, reference=reference, output=output, **about).run()
        return output

    return run


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
@pytest.mark.parametrize("nfe", [None, 2])
def test_samples_of_ones_own_have_a_column_of_the_protocols_and_no_part_in_its_sentence(job, nfe):
    path = job({}, ["external", "mine", nfe, None, 4])
    rows = load_metrics([path]).set_index(["method", "metric"])
    assert rows.loc[("external", "frechet_distance"), "seed"] == 4
    assert rows.loc[("boot", "frechet_distance"), "seed"] == 0
    table = protocol_table(SimpleNamespace(long_label=str), {"main": path})
    bare = protocol_table(SimpleNamespace(long_label=str), {"main": job({})})
    keys = [column.key for column in table.columns]
    cells = dict(zip(keys, table.rows[0], strict=True))
    assert cells["external:mine"].value == cells["boot_1"].value is not None
    assert [key for key in keys if not key.startswith("external:")] == [column.key for column in bare.columns]
    assert protocol_summary(table) == protocol_summary(bare)
    assert "Samples that a user brought" in table.notes[0]
    assert not any("user" in note for note in bare.notes)


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_a_protocol_that_wants_more_samples_than_there_are_stops(job):
    with pytest.raises(UserError, match="12 samples, but the protocol 'p' measures 13"):
        job({"num_samples": 13})


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_the_reference_of_one_run_serves_another(job, tmp_path):
    """Moments alone: the Fréchet distance is the same, KID cannot be taken; and another extractor is refused."""
    import pandas as pd

    whole = pd.read_csv(job({})).set_index(["method", "metric"]).value
    (tmp_path / "reference" / "train.npz").rename(tmp_path / "given.npz")
    given = {"reference": str(tmp_path / "given.npz")}
    alone = pd.read_csv(job(given)).set_index(["method", "metric"]).value
    assert alone["boot", "frechet_distance"] == pytest.approx(whole["boot", "frechet_distance"], rel=1e-9)
    assert ("boot", "kid") in whole.index
    assert ("boot", "kid") not in alone.index
    with pytest.raises(UserError, match="made with another extractor"):
        job(given | {"features": "efficientnet-lite0-64"})


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
@pytest.mark.parametrize("reference", ["train", "file"])
def test_a_clean_fid_protocol_ends_with_an_empty_cell_where_its_scipy_is_missing(job, tmp_path, monkeypatch, reference):
    """And not with an error: against moments alone there is not even a kernel distance."""
    clean = {"library": "clean-fid"}
    if reference == "file":
        job(clean)
        (tmp_path / "reference" / "train.npz").rename(tmp_path / "given.npz")
        clean["reference"] = str(tmp_path / "given.npz")
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda A: A)
    path = job(clean)
    assert set(load_metrics([path]).metric) == ({"kid"} if reference == "train" else set())
    table = protocol_table(SimpleNamespace(long_label=str), {"p": path})
    assert [row[0].value for row in table.rows] == ["p"]
    assert "cannot look for one (it needs SciPy before 1.18)" in table.caption
