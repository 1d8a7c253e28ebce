"""Captions of one's own images: which image has which, how the parts share them, what is refused with its line."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion.data.kinds import parse_settings
from diffusion.data.kinds import prepare as prepared
from diffusion.data.kinds import problems as problems_of
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import fingerprint

TEXTS = ["a red fox", "an owl", "a hen", "a red fox", "a café", "one  more\tfox ", "an owl", "a cat"]
NAMES = [f"{number % 2}/{number}.png" for number in range(8)]
LINES = [{"file_name": name, "text": text} for name, text in zip(NAMES, TEXTS, strict=True)]


def image(path, value):
    """Of one grey, which tells it from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path)


def written(folder, lines=LINES, name="metadata.jsonl"):
    """Image number n of the folder is of the grey n."""
    for number, file in enumerate(NAMES):
        image(folder / file, number)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    return folder


def settings(path, **further):
    raw = {"kind": "images", "path": str(path), "resolution": 4, "captions": "metadata.jsonl", "test_fraction": 0.25}
    return parse_settings(raw | further)


def captions_of(splits, part):
    """Grey of each image of a part to its caption."""
    images, labels = getattr(splits, f"{part}_images")[:], getattr(splits, f"{part}_labels")
    names = [splits.class_names[label] for label in labels]
    return dict(zip(images[:, 0, 0, 0].tolist(), names, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_every_image_has_the_caption_of_its_line(tmp_path, packed):
    """Whatever the order of the lines and the further keys; subfolders are no classes, and captions are normalised."""
    lines = [line | {"license": 3} for line in reversed(LINES)]
    path = written(tmp_path / "p", [*lines[:3], "", *lines[3:]])
    if packed:
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for file in sorted(path.rglob("*.*")):
                archive.write(file, file.relative_to(path).as_posix())
        path = tmp_path / "p.zip"
    splits = prepared(settings(path))
    assert splits.class_names == ("a café", "a cat", "a hen", "a red fox", "an owl", "one more fox")
    train, test = captions_of(splits, "train"), captions_of(splits, "test")
    assert (len(train), len(test)) == (6, 2)
    assert train | test == dict(enumerate([*TEXTS[:4], "a café", "one more fox", *TEXTS[6:]]))


def test_the_split_is_that_of_images_without_classes(tmp_path):
    path = written(tmp_path / "p")
    with_captions, without = prepared(settings(path)), prepared(settings(path, captions=None, classes=False))
    for part in ("train", "test"):
        images = [getattr(splits, f"{part}_images")[:] for splits in (with_captions, without)]
        np.testing.assert_array_equal(*images)


def test_each_part_may_have_a_file_and_captions_of_its_own(tmp_path):
    for part, texts in (("train", TEXTS[:6]), ("val", TEXTS[6:])):
        lines = [{"file_name": f"x/{number}.png", "text": text} for number, text in enumerate(texts)]
        for number in range(len(texts)):
            image(tmp_path / part / "x" / f"{number}.png", number)
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    splits = prepared(settings(tmp_path))
    assert captions_of(splits, "test") == {0: "an owl", 1: "a cat"}
    assert captions_of(splits, "train")[1] == "an owl"
    assert "a cat" not in captions_of(splits, "train").values()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES[:2], '{"file_name": ', *LINES[3:]], r"/metadata\.jsonl, line 3: is not JSON \(.*Expected a line such"),
        ([*LINES[:7], "[]"], r"line 8: found no text under 'file_name'"),
        ([{"text": "a fox"}], r"line 1: found no text under 'file_name'\. Expected a line such"),
        ([LINES[0], {"file_name": NAMES[1]}], r"line 2: found no text under 'text'\. Expected a line such"),
        ([LINES[0], {"file_name": NAMES[1], "text": 3}], r"line 2: found no text under 'text'"),
        ([{"file_name": NAMES[0], "text": " \t"}], r"line 1: found no text under 'text'"),
        ([*LINES, {"file_name": "0/9.png", "text": "a fox"}], r"line 9: '0/9\.png' is no image .*remove the line"),
        ([*LINES, {"file_name": "./0/0.png", "text": "a"}], r"line 9: '\./0/0\.png' has a caption already"),
        ([LINES[0], *LINES[2:7]], r"p: 2 images have no caption \(.*1/1\.png, .*1/7\.png\)\. .*or take them out"),
    ],
)
def test_what_is_no_caption_of_an_image_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        prepared(settings(written(tmp_path / "p", lines)))


def test_a_missing_file_is_refused_before_anything_runs_and_by_the_job(tmp_path):
    path = written(tmp_path / "p", name="other.jsonl")
    found = f"data.captions: found 'metadata.jsonl', expected the name of a file in {path}."
    assert problems_of(settings(path)) == [found]
    assert problems_of(settings(path, captions="other.jsonl")) == []
    with pytest.raises(UserError, match=r"p: has no metadata\.jsonl \(data\.captions\)\. .*correct data\.captions"):
        prepared(settings(path))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"num_classes": 3}, r"data: num_classes: given with captions, which are the classes"),
        ({"captions": "train/metadata.jsonl"}, r"data\.captions: found 'train/metadata\.jsonl', expected text of the"),
    ],
)
def test_keys_that_do_not_go_with_captions_are_refused(further, message):
    with pytest.raises(UserError, match=message):
        settings("x", **further)


def test_an_edited_caption_is_another_source_and_no_captions_are_not_a_key(tmp_path, monkeypatch):
    path = written(tmp_path / "p")
    sources = [prepared(settings(path)).fingerprint]
    monkeypatch.setattr("diffusion.runtime.files.MOST_FILES_LOOKED_AT", 3)
    places = [fingerprint(path)]
    (path / "metadata.jsonl").write_text((path / "metadata.jsonl").read_text().replace("a cat", "a toad"))
    assert prepared(settings(path)).fingerprint not in sources
    assert fingerprint(path) not in places
    assert "captions" not in settings(path, captions=None).model_dump()
    assert settings(path).model_dump()["captions"] == "metadata.jsonl"
