"""Two digits beside each other: which images there are, and that their captions say what is in them."""

import hashlib
import re

import numpy as np
import pytest

from diffusion.data import kinds
from diffusion.data.store import load_split, stratified_split, write_dataset

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NEVER_TRAINED = {(0, 4), (1, 7), (2, 0), (3, 3), (4, 6), (5, 9), (6, 2), (7, 5), (8, 8), (9, 1)}
PARTS = ("train", "test")


def settings_of(**changes):
    return kinds.parse_settings({"kind": "digit_pairs", **changes})


@pytest.fixture(scope="module")
def splits():
    return kinds.prepare(settings_of())


@pytest.fixture(scope="module")
def single_digits():
    """Of scikit-learn: images as stored, which digit each is, and the indices of both parts."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test = stratified_split(digits.target, 360, seed=0)
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target, {"train": train, "test": test}


def read(caption):
    """(left, right): the digits that a sentence puts left and right, found by its words alone."""
    words = re.findall("|".join(DIGITS), caption.removeprefix("two digits"))
    first, second = map(DIGITS.index, words)
    starts_on_the_right = re.search("to the right of|on the right and", caption)
    return (second, first) if starts_on_the_right else (first, second)


def pairs_of(splits, part):
    left, right = (np.array(splits.attributes[name]) for name in ("left", "right"))
    labels = getattr(splits, f"{part}_labels")
    return list(zip(left[labels].tolist(), right[labels].tolist(), strict=True))


def test_settings_tell_shape_and_number():
    settings = settings_of()
    assert settings.model_dump() == {
        **{"kind": "digit_pairs", "test_size": 360, "split_seed": 0},
        **{"train_per_pair": 160, "test_per_pair": 16},
    }
    assert settings.shape == (1, 8, 16)
    assert settings.num_pictures == 90 * 160 + 100 * 16
    assert settings_of(train_per_pair=5, test_per_pair=2).num_pictures == 90 * 5 + 100 * 2


def test_sizes_and_counts(splits):
    assert splits.train_images.shape == (14_400, 8, 16, 1)
    assert splits.test_images.shape == (1_600, 8, 16, 1)
    assert splits.train_images.dtype == splits.test_images.dtype == np.uint8
    for part, each, number in (("train", 160, 90), ("test", 16, 100)):
        pairs = pairs_of(splits, part)
        assert {pairs.count(pair) for pair in set(pairs)} == {each}
        assert len(set(pairs)) == number
    assert "scikit-learn" in splits.source


def test_ten_pairs_are_never_trained(splits):
    assert not NEVER_TRAINED & set(pairs_of(splits, "train"))
    assert set(pairs_of(splits, "test")) == set(pairs_of(splits, "train")) | NEVER_TRAINED


def test_captions_are_six_sentences_a_pair(splits):
    assert splits.class_names[6 * 37 : 6 * 37 + 6] == (
        "a three to the left of a seven",
        "a seven to the right of a three",
        "the digit three, then the digit seven",
        "three on the left and seven on the right",
        "two digits: three and seven",
        "seven on the right and three on the left",
    )
    assert splits.class_names[6 * 88] == "an eight to the left of an eight"
    assert len(set(splits.class_names)) == len(splits.class_names) == 600


def test_attributes_are_what_the_sentences_say(splits):
    assert list(splits.attributes) == ["left", "right"]
    named = [read(caption) for caption in splits.class_names]
    assert named == list(zip(splits.attributes["left"], splits.attributes["right"], strict=True))
    assert named[6 * 37] == (3, 7)


def test_one_wording_a_pair_is_kept_for_evaluation(splits):
    """That with the smallest hash; and the others are trained on alike."""
    tested = set(splits.test_labels.tolist())
    counts = np.bincount(splits.train_labels, minlength=600)
    for pair in range(100):
        numbers = range(6 * pair, 6 * pair + 6)
        kept = min(numbers, key=lambda number: hashlib.sha256(splits.class_names[number].encode()).hexdigest())
        assert tested & set(numbers) == {kept}
        expected = 0 if divmod(pair, 10) in NEVER_TRAINED else 160 // 5
        assert [counts[number] for number in numbers if number != kept] == [expected] * 5
        assert counts[kept] == 0


def test_wordings_are_even_where_the_number_is_no_multiple_of_five():
    counts = np.bincount(kinds.prepare(settings_of(train_per_pair=7)).train_labels, minlength=600).reshape(100, 6)
    assert all(sorted(row) == [0, 1, 1, 1, 2, 2] for row in counts.tolist() if any(row))
    # Which are said twice differs from pair to pair.
    assert (counts == 2).any(axis=0).all()


@pytest.mark.parametrize("part", PARTS)
def test_halves_are_the_named_digits_of_the_part(splits, single_digits, part):
    singles, digits, parts = single_digits
    members = [{singles[row].tobytes() for row in parts[part] if digits[row] == digit} for digit in range(10)]
    images = getattr(splits, f"{part}_images")[..., 0]
    for image, (left, right) in zip(images, pairs_of(splits, part), strict=True):
        assert image[:, :8].tobytes() in members[left]
        assert image[:, 8:].tobytes() in members[right]


def test_no_test_digit_is_in_a_training_image(splits, single_digits):
    singles, _, parts = single_digits
    tested = {singles[row].tobytes() for row in parts["test"]}
    halves = splits.train_images[..., 0].reshape(-1, 8, 2, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    assert len(halves) == 2 * 14_400
    assert not tested & {half.tobytes() for half in halves}
    # Of those that training may use, nearly all are used.
    assert len({half.tobytes() for half in halves}) > 0.99 * len(parts["train"])


def test_is_the_same_for_ever(splits):
    """Published numbers hang on it."""
    hashes = {
        name: hashlib.sha256(np.ascontiguousarray(getattr(splits, name)).tobytes()).hexdigest()[:16]
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    assert hashes == {
        "train_images": "da009bd3776d6b3c",
        "train_labels": "03bc5afd483df7ad",
        "test_images": "6a9c2263be8c24c0",
        "test_labels": "58c19987fa695793",
    }


def test_another_seed_makes_other_images():
    one, other = (kinds.prepare(settings_of(split_seed=seed, train_per_pair=5, test_per_pair=1)) for seed in (0, 1))
    for part in PARTS:
        images, others = getattr(one, f"{part}_images"), getattr(other, f"{part}_images")
        assert images.shape == others.shape
        assert (images != others).any(axis=(1, 2, 3)).mean() > 0.9
    assert not np.array_equal(one.train_labels, other.train_labels)
    assert np.array_equal(one.test_labels, other.test_labels)  # what evaluation asks for stays


def test_more_images_begin_with_the_same():
    few, many = (kinds.prepare(settings_of(train_per_pair=number, test_per_pair=number)) for number in (3, 7))
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        first = getattr(many, name).reshape(-1, 7, *getattr(many, name).shape[1:])[:, :3]
        np.testing.assert_array_equal(first.reshape(getattr(few, name).shape), getattr(few, name))


@pytest.mark.parametrize("test_size", [10, 1787])
def test_every_pair_can_be_made_of_the_smallest_parts(test_size):
    splits = kinds.prepare(settings_of(test_size=test_size, train_per_pair=1, test_per_pair=1))
    assert (len(splits.train_images), len(splits.test_images)) == (90, 100)


def test_is_stored_with_its_attributes(tmp_path):
    settings = settings_of(train_per_pair=1, test_per_pair=1)
    splits = kinds.prepare(settings)
    write_dataset(tmp_path / "data", splits, settings)
    for part in PARTS:
        stored = load_split(tmp_path / "data", part)
        assert stored.shape == (1, 8, 16)
        assert stored.attributes == splits.attributes
