"""Measures against closed forms and against the libraries' own entry points; the rows of one variant."""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from diffusion.runtime.errors import NonFiniteError, UserError
from evaluation.measure.clean_fid import cleanfid_frechet_distance, cleanfid_kid
from evaluation.measure.features import load_extractor
from evaluation.measure.metric import FUNCTIONS, METRICS, Metric
from evaluation.measure.metric import metric as declares
from evaluation.measure.metrics import (
    KID_SEED,
    classifier_score,
    density_coverage,
    extrapolated_frechet_distance,
    frechet_distance,
    kid,
    leak_share,
    mean_squared_distance,
    precision_recall,
)
from evaluation.measure.moments import Moments, RankWarning, moments
from evaluation.measure.quality import COLUMNS, definitions, measure, measure_floor, measure_under
from evaluation.measure.reference import Reference, drawn

# isort: split
import torch
from cleanfid.fid import compute_fid, get_folder_features, kernel_distance
from PIL import Image
from scipy.linalg import sqrtm
from sklearn import config_context

needs_cleanfids_scipy = pytest.mark.skipif(
    "disp" not in inspect.signature(sqrtm).parameters, reason="clean-fid's Fréchet distance needs scipy<1.18"
)


def gaussian(count, mean=0.0, scale=1.0, dimensions=6, seed=0):
    return (mean + scale * np.random.default_rng(seed).standard_normal((count, dimensions))).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return load_extractor("efficientnet-lite0-32")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    ramp = (np.arange(48)[:, None, None, None] + 20 * np.arange(8)[None, :, None, None]) % 256
    return noise, np.broadcast_to(ramp, (48, 8, 8, 1)).astype(np.uint8)


@needs_cleanfids_scipy
def test_frechet_distance_between_gaussians_is_the_closed_form():
    a, b = gaussian(40_000, 0.0, 1.0, seed=1), gaussian(40_000, 0.5, 2.0, seed=2)
    closed_form = 6 * (0.5**2 + (2.0 - 1.0) ** 2)
    assert frechet_distance(a, b) == pytest.approx(closed_form, rel=0.03)
    assert cleanfid_frechet_distance(a, b) == pytest.approx(closed_form, rel=0.03)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@needs_cleanfids_scipy
def test_identical_sets_have_no_distance():
    a = gaussian(500)
    assert abs(frechet_distance(a, a)) < 1e-6
    assert abs(cleanfid_frechet_distance(a, a)) < 1e-6
    assert precision_recall(a, a) == (1.0, 1.0)
    assert abs(kid(a, gaussian(500, seed=5)).mean) < 0.02
    assert kid(a, gaussian(500, mean=2.0, seed=5)).mean > 1


def test_precision_and_recall_tell_the_two_sets_apart():
    real = gaussian(400, dimensions=2)
    narrow = gaussian(400, scale=0.05, dimensions=2, seed=3)
    precision, recall = precision_recall(narrow, real)
    assert precision > 0.9
    assert recall < 0.1


@needs_cleanfids_scipy
def test_shuffling_changes_nothing():
    a, b = gaussian(300, seed=1), gaussian(300, 0.3, seed=2)
    order = np.random.default_rng(0).permutation(300)
    assert frechet_distance(a[order], b) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert cleanfid_frechet_distance(a[order], b) == pytest.approx(cleanfid_frechet_distance(a, b), rel=1e-6)


def test_too_few_samples_warn_and_stay_finite_and_real():
    a, b = gaussian(20, dimensions=64, seed=1), gaussian(30, 0.3, dimensions=64, seed=2)
    with pytest.warns(RankWarning, match="needs at least 65 samples"):
        value = frechet_distance(a, b)
    assert isinstance(value, float)
    assert np.isfinite(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RankWarning)
        moments(gaussian(65, dimensions=64))


@needs_cleanfids_scipy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_features_are_refused(bad):
    a, b = gaussian(50, seed=1), gaussian(50, seed=2)
    a[3, 2] = bad
    for measure_function in (frechet_distance, kid, precision_recall, density_coverage, cleanfid_frechet_distance):
        with pytest.raises(NonFiniteError, match="1 of 50"):
            measure_function(a, b)
        with pytest.raises(NonFiniteError, match="1 of 50"):
            measure_function(b, a)


def test_kid_fits_its_subsets_to_the_smaller_set_and_repeats_itself():
    a, b = gaussian(30, seed=1), gaussian(700, 0.5, seed=2)
    assert kid(a, b) == kid(a, b)
    assert kid(a, b, seed=1) != kid(a, b, seed=2)
    assert kid(a, b).sd > 0
    assert kid(a, a, subsets=2).sd == pytest.approx(0, abs=1e-6)  # every subset is the whole set


def test_density_and_coverage_are_counted_by_hand():
    """On a line: real pictures at 0, 1, 3, 7 with two neighbours have balls of radius 3, 2, 3 and 6."""
    real = np.array([[0.0], [1], [3], [7]], np.float32)
    generated = np.array([[0.5], [6.5], [-2.9]], np.float32)
    # 0.5 lies in the balls of 0, 1 and 3; 6.5 in that of 7; −2.9 in that of 0.
    assert density_coverage(generated, real, 2) == (5 / (2 * 3), 1.0)
    assert density_coverage(generated[[1, 1]], real, 2) == (1 / 2, 1 / 4)
    with pytest.raises(UserError, match="more than 4 real pictures; found 4"):
        density_coverage(generated, real, 4)


def test_density_and_coverage_of_equal_distributions_are_the_papers_expectations():
    real, generated = gaussian(600, dimensions=3, seed=1), gaussian(800, dimensions=3, seed=2)
    density, coverage = density_coverage(generated, real, 5)
    missed = np.prod([(600 - 1 - i) / (800 + 600 - 1 - i) for i in range(5)])
    # Deviations over seeds: 0.03 and 0.006.
    assert density == pytest.approx(1, abs=0.15)
    assert coverage == pytest.approx(1 - missed, abs=0.03)


def test_memory_of_density_and_coverage_is_bounded():
    with config_context(working_memory=0.01):
        chunked = density_coverage(gaussian(300, seed=1), gaussian(200, seed=2))
    assert chunked == density_coverage(gaussian(300, seed=1), gaussian(200, seed=2))


def test_the_classifier_score_is_the_exponential_of_a_mean_divergence():
    """Three classes told apart by the features: certain and even is 3, the same for every picture is 1."""
    classifier = np.eye(3, dtype=np.float32) * 100, np.zeros(3, np.float32)
    even = np.tile(np.eye(3, dtype=np.float32), (400, 1))
    assert classifier_score(even, classifier) == pytest.approx(3, rel=0.02)  # splits are shuffled, thus not quite even
    assert classifier_score(np.tile(even[:1], (30, 1)), classifier) == pytest.approx(1)
    biased = np.eye(3, dtype=np.float32) * 30, np.array([100, 0, 0], np.float32)
    assert classifier_score(even, biased) == pytest.approx(1)


def test_the_extrapolated_distance_is_nearer_to_the_closed_form():
    """Between N(0, 1) and N(0.2, 1) in 20 dimensions; the reference's moments are exact, as from infinitely many."""
    reference = Moments({"mu": np.full(20, 0.2, np.float32), "sigma": np.eye(20)})
    closed_form = 20 * 0.2**2
    plain, extrapolated = [], []
    for seed in range(10):
        features = gaussian(200, dimensions=20, seed=seed)
        plain.append(frechet_distance(features, reference) - closed_form)
        extrapolated.append(extrapolated_frechet_distance(features, reference) - closed_form)
    assert np.mean(plain) > 0.1
    assert abs(np.mean(extrapolated)) < 0.25 * np.mean(plain)


def test_extrapolation_is_refused_below_five_samples_a_dimension():
    reference = moments(gaussian(200, dimensions=20))
    with pytest.raises(UserError, match="99 samples in 20 dimensions; it needs 100 or more"):
        extrapolated_frechet_distance(gaussian(99, dimensions=20), reference)


def test_the_leak_share_is_one_of_hundred_by_chance_and_high_for_copies():
    train = gaussian(300, dimensions=3, seed=1)
    reference = Reference("train", train, held_out=gaussian(2000, dimensions=3, seed=2))
    held_out = reference.distance_of_held_out
    assert leak_share(gaussian(2000, dimensions=3, seed=3), train, held_out) == pytest.approx(0.01, abs=0.01)
    assert leak_share(train[:50] + np.float32(1e-6), train, held_out) == 1


def test_a_large_reference_is_drawn_from_where_all_are_compared_with_all(monkeypatch):
    """Precision, recall, density and coverage; not distances of moments, nor the search for copies."""
    real, held_out, generated = (gaussian(count, dimensions=4, seed=count) for count in (400, 150, 200))
    monkeypatch.setattr("evaluation.measure.reference.MOST_COMPARED", 100)

    def rows(reference):
        told = measure(IDENTITY, {0: generated}, {0: None}, reference, extractor="x", fewer=(200,))
        return {row["metric"]: row["value"] for row in told}

    large, whole = Reference("train", real, held_out), Reference("train", real, held_out)
    whole.compared = real
    few = Reference("train", drawn(real, 100), held_out)
    assert len(few.features) == len(np.unique(few.features, axis=0)) == 100
    assert not np.array_equal(few.features, real[:100])
    found, all_of_it, of_few = rows(large), rows(whole), rows(few)
    for metric in ("precision", "recall", "density", "coverage"):
        assert found[metric] == of_few[metric] != all_of_it[metric]
    for metric in found.keys() - {"precision", "recall", "density", "coverage"}:
        assert found[metric] == all_of_it[metric]
    monkeypatch.setattr("evaluation.measure.reference.MOST_COMPARED", 400)
    assert Reference("train", real).compared is real


def test_mean_squared_distance_is_on_the_decoded_range():
    black, white = np.zeros((2, 4, 4, 1), np.uint8), np.full((2, 4, 4, 1), 255, np.uint8)
    assert mean_squared_distance(black, black) == 0
    assert mean_squared_distance(black, white) == pytest.approx(4)
    half = black.copy()
    half[0] = 255
    assert mean_squared_distance(half, black) == pytest.approx(2)
    a, b = np.random.default_rng(0).integers(0, 256, (2, 700, 4, 4, 3), dtype=np.uint8)  # of several portions
    expected = np.mean((a / 127.5 - b / 127.5) ** 2)
    assert mean_squared_distance(a, b) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UserError, match="one shape"):
        mean_squared_distance(black, white[:1])
    with pytest.raises(UserError, match="uint8"):
        mean_squared_distance(black, white.astype(np.float32))


def as_png(folder, pictures):
    for name, images in zip(("generated", "real"), pictures, strict=True):
        (folder / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(folder / name / f"{index:03d}.png")
    return str(folder / "generated"), str(folder / "real")


def test_values_are_those_of_torch_fidelitys_command_line_to_the_last_digit(extractor, pictures, tmp_path):
    # The first import registers the extractor.
    program = "import evaluation.measure.features; from torch_fidelity.fidelity import main; main()"
    generated, real = as_png(tmp_path, pictures)
    command = [sys.executable, "-c", program, "--input1", generated, "--input2", real]
    command += [
        "--feature-extractor",
        extractor.name,
        "--cpu",
        "--fid",
        "--kid",
        "--prc",
        "--no-cache",
        "--save-cpu-ram",
    ]
    command += ["--kid-subsets", "10", "--kid-subset-size", "40", "--silent"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    printed = dict(re.findall(r"^(\w+): (\S+)$", done.stdout, re.M))
    a, b = (extractor.extract(images, 64) for images in pictures)
    kernel = kid(a, b)
    precision, recall = precision_recall(a, b)
    own = {
        "frechet_inception_distance": frechet_distance(moments(a, warn=False), moments(b, warn=False)),
        "kernel_inception_distance_mean": kernel.mean,
        "kernel_inception_distance_std": kernel.sd,
        "precision": precision,
        "recall": recall,
    }
    assert {name: f"{value:.7g}" for name, value in own.items()} == {
        name: f"{float(printed[name]):.7g}" for name in own
    }


@needs_cleanfids_scipy
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch", "legacy_tensorflow"])
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_values_are_those_of_clean_fids_own_functions(extractor, pictures, tmp_path, mode):
    generated, real = as_png(tmp_path, pictures)
    model = extractor._cleanfid_model(mode)
    options = {"num_workers": 0, "batch_size": 16, "device": torch.device("cpu"), "verbose": False}
    theirs = compute_fid(generated, real, mode=mode, custom_feat_extractor=model, **options)
    found = [extractor.extract_cleanfid(images, 16, mode) for images in pictures]
    assert cleanfid_frechet_distance(*found) == pytest.approx(theirs, rel=1e-6)
    np.random.seed(KID_SEED)  # noqa: NPY002 - where clean-fid draws from
    folders = [get_folder_features(folder, model, mode=mode, **options) for folder in (generated, real)]
    assert cleanfid_kid(*found) == pytest.approx(kernel_distance(*folders), rel=1e-4)


def test_clean_fid_leaves_warnings_and_random_numbers_alone(extractor, pictures):
    """Its resizer turns all warnings off, its kernel distance draws from the global generator."""
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    features = extractor.extract_cleanfid(pictures[0][:4], 4, "legacy_pytorch")
    cleanfid_kid(features, features)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    with pytest.warns(RankWarning):
        moments(features)


@needs_cleanfids_scipy
def test_measures_under_a_library(extractor, pictures):
    a, b = gaussian(60, seed=1), gaussian(90, 0.5, seed=2)
    known = Reference("train", b)
    assert measure_under("torch-fidelity", a, known) == {
        "frechet_distance": frechet_distance(a, b),
        "kid": kid(a, b).mean,
    }
    assert measure_under("clean-fid", a, known) == {
        "frechet_distance": cleanfid_frechet_distance(a, b),
        "kid": cleanfid_kid(a, b),
    }
    # Moments alone, of a type that torch-fidelity does not compare with its own.
    statistics = known.moments.statistics
    given = Reference("file", None, stored_moments=Moments.given(statistics["mu"].astype(float), statistics["sigma"]))
    for library in ("torch-fidelity", "clean-fid"):
        found = measure_under(library, a, given)
        assert set(found) == {"frechet_distance"}
        assert found["frechet_distance"] == pytest.approx(frechet_distance(a, b), rel=1e-5)
    bad = Moments.given(np.full(6, np.nan), np.eye(6))
    for library in ("torch-fidelity", "clean-fid"):
        with pytest.raises(NonFiniteError):
            measure_under(library, a, Reference("file", None, stored_moments=bad))
    with pytest.raises(UserError, match="5 and 6 dimensions"):
        frechet_distance(a[:, :5], b)


def test_clean_fid_leaves_its_frechet_distance_out_where_scipy_no_longer_has_its_root(monkeypatch):
    """As SciPy 1.18: `sqrtm` has no `disp`. All else is measured."""
    a, b = gaussian(60, seed=1), gaussian(90, 0.5, seed=2)
    known, kernel = Reference("train", b), cleanfid_kid(a, b)
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda A: A)
    monkeypatch.setattr(
        "evaluation.measure.clean_fid.version_of", lambda name: {"scipy": "1.18.0", "clean-fid": "0.1.35"}[name]
    )
    sentence = (
        r"clean-fid 0\.1\.35 calls scipy\.linalg\.sqrtm\(…, disp=False\), which SciPy 1\.18\.0 does not take\. Its "
        r"Fréchet distance needs 'scipy<1\.18'; nothing else does\."
    )
    with pytest.raises(UserError, match=sentence):
        cleanfid_frechet_distance(a, b)
    with pytest.warns(RankWarning, match=sentence):
        assert measure_under("clean-fid", a, known, warn=False) == {"kid": kernel}
    assert set(measure_under("torch-fidelity", a, known)) == {"frechet_distance", "kid"}


def test_batch_size_and_order_of_pictures_change_no_distance(pictures):
    extractor = load_extractor("efficientnet-lite0-64")
    generated, real = pictures
    reference = moments(extractor.extract(real), warn=False)
    order = np.random.default_rng(0).permutation(len(generated))
    values = [
        frechet_distance(moments(extractor.extract(images, batch_size), warn=False), reference)
        for images, batch_size in ((generated, 32), (generated, 7), (generated[order], 32))
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


PLAIN = {"frechet_distance", "kid", "kid_subset_sd", "precision", "recall", "density", "coverage"}
IDENTITY = {"experiment": "toy", "method": "boot", "variant": "boot-heun", "nfe": 1, "train_seed": 0}


def toy(seeds=(0, 1, 2), shift=0.0, count=60):
    features = {seed: gaussian(count, shift, seed=10 + seed) for seed in seeds}
    samples = {seed: np.full((count, 2, 2, 1), 100 + seed, np.uint8) for seed in seeds}
    return features, samples


def select(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_rows_of_a_variant():
    features, samples = toy(shift=0.2)
    teacher_features, teacher_samples = toy()
    rows = measure(
        IDENTITY,
        features,
        samples,
        Reference("train", gaussian(90, seed=30)),
        extractor="efficientnet-lite0-64",
        fewer=(25,),
        teacher_features=teacher_features,
        teacher_samples=teacher_samples,
    )
    assert all(tuple(row) == COLUMNS for row in rows)
    json.dumps(rows, allow_nan=False)
    for metric in ("frechet_distance", "kid", "precision", "recall"):
        found = select(rows, metric=metric)
        assert sorted((row["seed"], row["num_samples"]) for row in found) == [
            (seed, count) for seed in (0, 1, 2) for count in (25, 60)
        ]
        assert {row["reference"] for row in found} == {"train"}
    assert [row["value"] for row in select(rows, metric="mse_to_teacher")] == [0, 0, 0]
    assert len(select(rows, metric="frechet_distance_to_teacher", reference="teacher-50")) == 1
    assert not select(rows, metric="fid")
    assert {row["metric"] for row in rows} <= set(definitions("efficientnet-lite0-64"))
    assert {row["protocol"] for row in rows} == {"main"}

    small = select(rows, metric="frechet_distance", seed=1, num_samples=25)[0]["value"]
    assert small == frechet_distance(features[1][:25], gaussian(90, seed=30))


def test_a_frechet_distance_is_called_fid_on_inception_only():
    features, samples = toy()
    rows = measure(IDENTITY, features, samples, Reference("train", gaussian(90)), extractor="inception", fewer=(25,))
    assert len(select(rows, metric="fid")) == 6
    assert not select(rows, metric="frechet_distance")


def test_the_teachers_own_row_is_its_floor_and_not_zero():
    features, samples = toy()
    teacher = {**IDENTITY, "method": "ddim", "variant": "ddim", "nfe": 50}

    def rows_with(seeds):
        return measure(
            teacher,
            {seed: features[seed] for seed in seeds},
            {seed: samples[seed] for seed in seeds},
            Reference("train", gaussian(90)),
            extractor="efficientnet-lite0-64",
            fewer=(25,),
            teacher_features={seed: features[seed] for seed in seeds},
            teacher_samples=samples,
        )

    rows = rows_with([0, 1, 2])
    (own,) = select(rows, metric="frechet_distance_to_teacher")
    assert own["seed"] == 0
    assert own["value"] == frechet_distance(features[0], np.concatenate([features[1], features[2]]))
    assert own["value"] > 0.01
    assert [row["value"] for row in select(rows, metric="mse_to_teacher")] == [0, 0, 0]
    assert not select(rows_with([1]), metric="frechet_distance_to_teacher")


def test_stochastic_methods_have_no_distance_to_the_teachers_pictures():
    features, samples = toy()
    rows = measure(IDENTITY, features, samples, Reference("train", gaussian(90)), extractor="x", fewer=(25,))
    assert {row["metric"] for row in rows} == PLAIN


def test_the_classifier_score_and_the_leak_check_need_their_inputs():
    features, samples = toy()
    classifier = np.eye(6, dtype=np.float32), np.zeros(6, np.float32)
    reference = Reference("train", gaussian(90), held_out=gaussian(40, seed=9), classifier=classifier)
    rows = measure(IDENTITY, features, samples, reference, extractor="inception", fewer=(25,))
    assert {row["metric"] for row in rows} == PLAIN - {"frechet_distance"} | {
        "fid", "fid_extrapolated", "inception_score", "leak_share"
    }  # fmt: skip
    # 25 samples in 6 dimensions are fewer than five a dimension; of the others the first seed.
    assert [(r["num_samples"], r["seed"]) for r in rows if r["metric"] == "fid_extrapolated"] == [(60, 0)]
    assert {row["metric"] for row in rows} <= set(definitions("inception"))


def test_a_metric_is_one_function(monkeypatch):
    """Rows, footnotes and titles follow from it; without what its parameters name it is left out."""

    def width(features, teacher_images):
        return float(np.ptp(features)), float(np.ptp(teacher_images))

    values = [Metric(name, name.title(), "How far it reaches.", library="numpy") for name in ("width", "range")]
    monkeypatch.setitem(FUNCTIONS, width, ())
    for value in values:
        monkeypatch.setitem(METRICS, value.name, value)
    declared = declares(*values)(width)
    features, samples = toy(seeds=(0,))
    options = {"extractor": "x", "fewer": (25,)}
    rows = measure(IDENTITY, features, samples, Reference("train", gaussian(90)), teacher_samples=samples, **options)
    found = {row["metric"]: row["value"] for row in rows if row["metric"] in ("width", "range")}
    assert tuple(found.values()) == declared(features[0], samples[0])
    assert definitions("x")["width"] == "How far it reaches."
    rows = measure(IDENTITY, features, samples, Reference("train", gaussian(90)), **options)
    assert {row["metric"] for row in rows} == PLAIN
    monkeypatch.setitem(FUNCTIONS, lambda misspelt: 0.0, ("width",))
    with pytest.raises(AttributeError, match="no attribute 'misspelt'"):
        measure(IDENTITY, features, samples, Reference("train", gaussian(90)), **options)


def test_inputs_that_do_not_fit_are_refused():
    features, samples = toy()
    reference = Reference("train", gaussian(90))
    with pytest.raises(UserError, match="boot-heun"):
        measure(IDENTITY, features, {0: samples[0]}, reference, extractor="x", fewer=(25,))
    with pytest.raises(UserError, match="sampling seed 1"):
        measure(IDENTITY, features, samples, reference, extractor="x", fewer=(25,), teacher_samples={0: samples[0]})


def test_the_reference_is_averaged_once(monkeypatch):
    from torch_fidelity import metric_fid

    counted = []
    original = metric_fid.fid_features_to_statistics
    monkeypatch.setattr(metric_fid, "fid_features_to_statistics", lambda x: counted.append(len(x)) or original(x))
    features, samples = toy()
    measure(IDENTITY, features, samples, Reference("train", gaussian(91)), extractor="x", fewer=(25,))
    assert counted.count(91) == 1


def test_rows_of_the_floor():
    test, train = gaussian(40, seed=1), Reference("train", gaussian(90, seed=2))
    rows = measure_floor("toy", test, train, extractor="x")
    assert {row["metric"] for row in rows} == PLAIN
    assert {(r["method"], r["variant"], r["nfe"], r["seed"], r["num_samples"]) for r in rows} == {
        ("real", "test", None, None, 40)
    }
