"""How well samples follow their captions: metrics against figures by hand, and the classifier that they read."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import stored_data

from diffusion.data.samples import save_samples
from diffusion.data.store import Splits, load_split
from diffusion.runtime.errors import UserError
from evaluation.measure import classifier as classifiers
from evaluation.measure.caption_metrics import (
    caption_accuracy,
    caption_accuracy_new,
    caption_diversity,
    caption_partly_right,
    caption_swapped,
    caption_swapped_new,
    caption_variance,
)
from evaluation.measure.captions import Attributes, Captions, distance_within, variance_within
from evaluation.measure.metric import METRICS, Given, TooFewSamplesError, taken_of
from evaluation.measure.protocols import Protocol
from evaluation.measure.quality import measure
from evaluation.measure.reference import Reference
from suite.jobs.classifier import Train
from suite.jobs.measuring import Measure, MeasureFloor
from suite.jobs.references import Extract

BY_HAND = Captions(
    asked=np.array([[1, 2], [1, 2], [3, 3], [4, 5], [4, 5], [6, 7]]),
    #                right   swapped  right   partly  wrong   swapped
    found=np.array([[1, 2], [2, 1], [3, 3], [4, 9], [8, 9], [7, 6]]),
    is_new=np.array([False, False, True, False, False, True]),
    exchangeable=True,
)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_shares_of_captions_are_counted_by_hand():
    assert BY_HAND.right.tolist() == [True, False, True, False, False, False]
    assert BY_HAND.swapped.tolist() == [False, True, False, False, False, True]
    assert caption_accuracy(BY_HAND) == 2 / 6
    assert caption_accuracy_new(BY_HAND) == 1 / 2
    assert caption_partly_right(BY_HAND) == 1 / 6
    assert caption_swapped(BY_HAND) == 2 / 6
    assert caption_swapped_new(BY_HAND) == 1 / 2


def test_swapped_values_are_counted_with_their_number():
    """Of three attributes one may be right in a swap; 1, 2, 2 is no order of 1, 1, 2."""
    asked = np.array([[1, 2, 3], [1, 1, 2], [1, 1, 2], [1, 1, 2]])
    found = np.array([[2, 3, 1], [2, 1, 1], [1, 2, 2], [1, 1, 2]])
    three = replace(BY_HAND, asked=asked, found=found)
    assert three.swapped.tolist() == [True, True, False, False]
    assert caption_partly_right(three) == 2 / 4


def test_a_metric_of_captions_is_left_out_where_it_says_nothing():
    shares = {"caption_accuracy", "caption_partly_right"}
    new, swapped = {"caption_accuracy_new"}, {"caption_swapped", "caption_swapped_new"}
    none_new = replace(BY_HAND, is_new=np.zeros(6, bool))
    assert set(taken_of(Given(captions=BY_HAND))) == shares | new | swapped
    assert set(taken_of(Given(captions=replace(BY_HAND, exchangeable=False)))) == shares | new
    assert set(taken_of(Given(captions=none_new))) == shares | {"caption_swapped"}
    images = np.zeros((6, 2, 2, 1), np.uint8)
    indices = np.array([4, 4, 0, 2, 2, 9])
    assert set(taken_of(Given(images=images, caption_indices=indices))) == {"caption_variance"}
    assert taken_of(Given(images=images, caption_indices=np.arange(6))) == {}
    assert taken_of(Given(images=images)) == {}
    for value in (caption_accuracy_new, caption_swapped_new):
        with pytest.raises(TooFewSamplesError, match="new combinations"):
            value(none_new)


def test_variance_within_a_caption_is_the_sum_by_hand():
    """Caption 4: a pixel of -1 and 1 has 2, one that stays has 0. Caption 0: -1, -0.6, -0.2 have 0.16. Caption 9 has
    one image."""
    images = np.array([[0, 7], [0, 0], [255, 7], [51, 51], [1, 200], [102, 102]], np.uint8).reshape(6, 1, 2, 1)
    indices = np.array([4, 0, 4, 0, 9, 0])
    assert caption_variance(images, indices) == pytest.approx((1 + 0.16) / 2, rel=1e-12)
    one_image_each = np.zeros((6, 1, 2, 1), np.uint8) + indices.astype(np.uint8)[:, None, None, None]
    assert caption_variance(one_image_each, indices) == 0
    with pytest.raises(TooFewSamplesError, match="two samples"):
        caption_variance(images, np.arange(6))
    assert METRICS["caption_variance"].better is None


def test_diversity_within_a_caption_is_the_mean_distance_by_hand():
    """Caption 4 has the corners (0, 0), (3, 0), (0, 4); caption 0 two at distance 1; caption 9 one alone."""
    features = np.array([[0, 0], [7, 7], [3, 0], [7, 8], [50, 50], [0, 4]], np.float32)
    indices = np.array([4, 0, 4, 0, 9, 4])
    assert caption_diversity((features, indices)) == ((3 + 4 + 5) / 3 + 1) / 2
    # Of many images the first are compared.
    assert distance_within(indices, features, most=2) == (3 + 1) / 2
    assert caption_diversity((np.zeros((6, 2)), indices)) == 0
    with pytest.raises(TooFewSamplesError, match="two samples"):
        caption_diversity((features, np.arange(6)))


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_diversity_is_taken_over_all_sampling_seeds_together():
    """One sample a caption and seed: no seed alone has two of a caption."""
    rng = np.random.default_rng(0)
    features = {seed: rng.standard_normal((6, 4)).astype(np.float32) for seed in (3, 5)}
    samples = {seed: np.zeros((6, 1, 1, 1), np.uint8) for seed in features}
    told = {seed: {"caption_indices": np.arange(6)} for seed in features}
    reference = Reference("train", rng.standard_normal((9, 4)).astype(np.float32))
    identity = dict.fromkeys(("experiment", "method", "variant", "nfe", "train_seed"))
    rows = pd.DataFrame(measure(identity, features, samples, reference, extractor="e", fewer=(), told=told))
    (row,) = rows[rows["metric"] == "caption_diversity"].to_dict("records")
    assert row["seed"] == 3
    assert row["value"] == pytest.approx(np.linalg.norm(features[3] - features[5], axis=1).mean(), rel=1e-6)
    assert "caption_variance" not in set(rows["metric"])
    # External samples of one seed without captions: no value of the others stands for all.
    rows = measure(identity, features, samples, reference, extractor="e", fewer=(), told={3: told[3]})
    assert "caption_diversity" not in {row["metric"] for row in rows}


# -- attributes --------------------------------------------------------------------------------------------------------


def split_of(labels, **attributes):
    """A data set with these labels in each part; its four classes are captions with these attributes."""
    part = np.zeros((len(labels), 8, 16, 1), np.uint8), np.array(labels)
    return Splits(*part, *part, tuple("abcd"), "made for a test", attributes=attributes)


def test_attributes_say_what_the_training_part_holds(tmp_path):
    # Classes 0 and 3 are two captions of one combination; class 2's is never trained on.
    train = stored_data(tmp_path / "data", split_of([0, 1, 1], left=[0, 1, 2, 0], right=[1, 0, 2, 1]))
    attributes = Attributes.of(train)
    assert attributes.names == ("left", "right")
    assert attributes.num_values == (3, 3)
    assert attributes.in_training.tolist() == [[0, 1], [1, 0]]
    found = np.array([[0, 1], [5, 5], [5, 5]])
    for known in (attributes, Attributes.from_json(json.loads(json.dumps(attributes.as_json())))):
        captions = known.captions(np.array([3, 2, 1]), found)
        assert captions.asked.tolist() == [[0, 1], [2, 2], [1, 0]]
        assert captions.found is found
        assert captions.is_new.tolist() == [False, True, False]
        assert captions.exchangeable


@pytest.mark.parametrize(
    "attributes", [{"digit": [0, 1, 2, 0]}, {"left": [0, 1, 2, 0], "colour": [0, 1, 1, 0]}], ids=["one", "other values"]
)
def test_attributes_that_cannot_stand_in_anothers_place(tmp_path, attributes):
    known = Attributes.of(stored_data(tmp_path / "data", split_of([0, 1, 2, 3], **attributes)))
    assert not known.captions(np.array([0]), known.of_class[:1]).exchangeable


def test_classes_that_are_no_captions_have_no_attributes(tmp_path):
    assert Attributes.of(stored_data(tmp_path / "data")) is None


# -- the classifier ----------------------------------------------------------------------------------------------------

VALUES = 4
PAIRS = [(left, right) for left in range(VALUES) for right in range(VALUES)]
NEW = [(value, (value + 1) % VALUES) for value in range(VALUES)]


def bands(pairs, seed):
    """8×16 images, a bright band in each half: value v has rows 2v and 2v + 1. uint8 (N, 8, 16, 1)."""
    images = np.random.default_rng(seed).integers(0, 60, (len(pairs), 8, 16, 1), dtype=np.uint8)
    for image, pair in zip(images, pairs, strict=True):
        for half, value in enumerate(pair):
            image[2 * value : 2 * value + 2, 8 * half : 8 * half + 8] += 150
    return images


def labels_of(captions):
    return np.array(captions, np.int64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, real features and classifier by their jobs: two captions a pair, some pairs never trained on."""
    root = tmp_path_factory.mktemp("captions")
    captions = [pair for pair in PAIRS for _ in range(2)]
    trained = labels_of([c for c, pair in enumerate(captions) if pair not in NEW] * 6)
    tested = labels_of([*range(len(captions))] * 2)
    splits = Splits(
        *(bands([captions[c] for c in trained], 1), trained),
        *(bands([captions[c] for c in tested], 2), tested),
        tuple(f"sentence {number} of {pair}" for number, pair in enumerate(captions)),
        "made for a test",
        attributes={"left": [left for left, _ in captions], "right": [right for _, right in captions]},
    )
    stored_data(root / "data", splits)
    training = {"steps": 50, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 5, "decay": "cosine"}
    settings = {"training": training}
    Train(settings=settings, data=root / "data", state=root / "state", output=root / "classifier").run()
    protocol = Protocol.model_validate({"features": "efficientnet-lite0-32"})
    Extract(protocol=protocol, data=root / "data", output=root / "real").run()
    return root


def found_in(made, images):
    folder = made / "classifier"
    heads = classifiers.load_attributes(folder).num_values
    return classifiers.classify(classifiers.load_classifier(folder), images, 64, heads)


def test_heads_keep_left_and_right_apart_also_in_pairs_never_trained_on(made):
    images = bands(PAIRS * 4, 3)
    found = found_in(made, images)
    assert found.dtype == np.int64
    assert found.shape == (64, 2)
    assert np.mean(found == PAIRS * 4) > 0.95
    mirrored = Captions(np.array(PAIRS * 4), found_in(made, images[:, :, ::-1]), np.zeros(64), True)
    unequal = np.array([left != right for left, right in PAIRS * 4])
    assert np.mean(mirrored.swapped[unequal]) > 0.9
    assert not mirrored.swapped[~unequal].any()


def test_the_classifiers_folder_says_what_it_knows(made):
    facts = json.loads((made / "classifier/classifier.json").read_text())
    assert facts["attributes"]["names"] == ["left", "right"]
    assert facts["attributes"]["num_values"] == [4, 4]
    assert facts["attributes"]["of_class"] == [list(pair) for pair in PAIRS for _ in range(2)]
    assert facts["attributes"]["in_training"] == [list(pair) for pair in PAIRS if pair not in NEW]
    assert facts["test_count"] == 64
    test = load_split(made / "data", "test")
    assert facts["test_accuracy"] == np.mean(right_of_test(facts, test)) > 0.85


def right_of_test(facts, test):
    asked = np.array(facts["attributes"]["of_class"])[test.labels]
    return np.array([one.tolist() == other for one, other in zip(asked, facts["test_found"], strict=True)])


def measured(made, folder, labels, pairs):
    """The rows of samples that show ``pairs`` and were asked for captions by their class."""
    images = bands(pairs, 4)
    save_samples(folder / "samples/nfe-1/seed-0.npz", [images], images.shape, labels)
    (folder / "features/nfe-1").mkdir(parents=True)
    features = np.random.default_rng(5).standard_normal((len(images), 1280)).astype(np.float32)
    np.save(folder / "features/nfe-1/seed-0.npy", features)
    Measure(
        **{"experiment": "e", "method": "boot", "variant": "boot", "teacher": "ddim", "teacher_nfe": 1},
        **{"real": made / "real", "classifier": made / "classifier"},
        **{"features": folder / "features", "samples": folder / "samples"},
        **{"teacher_features": folder / "features", "teacher_samples": folder / "samples"},
        output=folder / "measures.csv",
    ).run()
    return pd.read_csv(folder / "measures.csv")


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_rows_of_samples_that_were_asked_for_captions(made, tmp_path):
    """Two samples of each pair's first caption: one as asked, one the other way round."""
    labels = labels_of([2 * number for number in range(len(PAIRS))] * 2)
    rows = measured(made, tmp_path, labels, [*PAIRS, *(pair[::-1] for pair in PAIRS)])
    rows = rows[rows["reference"] == "captions"].set_index("metric")
    assert set(rows["num_samples"]) == {32}
    scores = {"clip_score", "pick_score"}  # which nobody has asked for
    assert set(rows.index) == {name for name, about in METRICS.items() if about.against == "captions"} - scores
    # Of 16 pairs 4 have equal sides. The classifier may be wrong about two images.
    assert rows.loc["caption_accuracy", "value"] == pytest.approx((16 + 4) / 32, abs=2 / 32)
    assert rows.loc["caption_swapped", "value"] == pytest.approx(12 / 32, abs=2 / 32)
    assert rows.loc["caption_accuracy_new", "value"] == pytest.approx(4 / 8, abs=2 / 8)
    assert rows.loc["caption_swapped_new", "value"] == pytest.approx(4 / 8, abs=2 / 8)
    assert rows.loc["caption_variance", "value"] > 0


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_classes_that_are_no_captions_of_the_data_set_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="classes 0 to 32, but the data set has 32"):
        measured(made, tmp_path, labels_of([0, 32, 1, 2]), PAIRS[:4])


@pytest.mark.filterwarnings("ignore::evaluation.measure.moments.RankWarning")
def test_the_floor_has_the_captions_of_the_real_test_images(made, tmp_path):
    common = {"experiment": "e", "real": made / "real", "classifier": made / "classifier", "num_samples": 20}
    MeasureFloor(**common, data=made / "data", output=tmp_path / "real.csv").run()
    rows = pd.read_csv(tmp_path / "real.csv").set_index("metric")
    facts = json.loads((made / "classifier/classifier.json").read_text())
    assert rows.loc["caption_accuracy", "value"] == facts["test_accuracy"]
    test = load_split(made / "data", "test")
    assert rows.loc["caption_variance", "value"] == variance_within(test.labels, np.asarray(test.images))
    assert rows.loc["caption_diversity", "value"] == distance_within(test.labels, np.load(made / "real" / "test.npy"))
    is_new = [tuple(facts["attributes"]["of_class"][c]) in NEW for c in test.labels]
    assert rows.loc["caption_accuracy_new", "value"] == np.mean(right_of_test(facts, test)[is_new])
    assert rows.loc["caption_accuracy", "num_samples"] == 64
    assert "label_accuracy" not in rows.index


def test_folders_of_classifiers_of_classes_are_as_they_were(tmp_path):
    """Without the keys of captions: nothing is written, and nothing missed, of them."""
    network = classifiers.build_classifier(3, 1).eval()
    classifiers.save_classifier(tmp_path, network, ("a", "b", "c"), 0.9, 360)
    facts = json.loads((tmp_path / "classifier.json").read_text())
    assert set(facts) == {"architecture", "class_names", "channels", "test_accuracy", "test_count"}
    images = bands(PAIRS[:5], 6)
    again = classifiers.load_classifier(tmp_path)
    assert classifiers.load_attributes(tmp_path) is None
    assert classifiers.classify(again, images).shape == (5,)
    assert np.array_equal(classifiers.classify(again, images), classifiers.classify(network, images))
