"""CLIP and DINOv2 as extractors: small made models, against the `transformers` way from a picture to a vector."""

import re

import numpy as np
import pytest

from diffusion.data.store import size_of
from diffusion.runtime.errors import UserError
from evaluation.measure.features import load_extractor
from evaluation.measure.metrics import frechet_distance, kid

# isort: split
import torch
import transformers
from PIL import Image
from transformers import image_utils

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def clip():
    small = transformers.CLIPVisionConfig(**SMALL, projection_dim=24, image_size=224, patch_size=32)
    text = transformers.CLIPTextConfig(**SMALL, projection_dim=24, vocab_size=99)
    # A whole CLIP, text half included, as the Hub's folders are.
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=small.to_dict(), projection_dim=24)
    )


def dinov2():
    # Its positions are those of 518 pixels, and are interpolated for 224, as the published model's are.
    return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=518, patch_size=14))


MADE = {"clip-vit-l-14": clip, "dinov2-vit-l-14": dinov2}
DIMENSIONS = {"clip-vit-l-14": 24, "dinov2-vit-l-14": 32}


@pytest.fixture(params=MADE)
def made(request, tmp_path):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MADE[request.param]().eval()
    model.save_pretrained(tmp_path / "model")
    return request.param, tmp_path / "model", model


def pictures(count, size):
    """``size``: a side, or height and width."""
    height, width = size_of(size)
    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in coarse]
    )


def expected_features(name, model, images):
    """By the processors of `transformers`, whose resize rounds to uint8."""
    constants = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 3}
    if name == "clip-vit-l-14":
        processor = transformers.CLIPImageProcessor(**constants)
    else:
        mean, std = image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD
        processor = transformers.BitImageProcessor(**constants, image_mean=mean, image_std=std)
    inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        if name == "clip-vit-l-14":
            return model.visual_projection(model.vision_model(**inputs).pooler_output).numpy()
        return model(**inputs).last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize("size", [224, 64, (64, 128)])
def test_features_are_those_of_the_library(made, size):
    name, folder, model = made
    images = pictures(5, size)
    extractor = load_extractor(name, weights={name: folder})
    found = extractor.extract(images, 2)
    assert found.shape == (5, DIMENSIONS[name])
    expected = expected_features(name, model, images)
    spread = np.linalg.norm(expected - expected.mean(axis=0))
    # At its own size nothing is resized; otherwise the processors round to whole grey levels, and this suite does not.
    assert np.linalg.norm(found - expected) / spread < (1e-4 if size == 224 else 0.05)


def test_it_serves_the_measures_and_describes_itself(made):
    name, folder, _model = made
    extractor = load_extractor(name, weights={name: folder})
    images = pictures(60, 16)
    one, two = extractor.extract(images[:30]), extractor.extract(255 - images[30:])
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, two) > 0
    assert kid(one, two).mean > kid(one, one).mean
    assert extractor.classifier() is None
    assert extractor.extract_cleanfid(images[:2]).shape == (2, DIMENSIONS[name])
    description = extractor.describe()
    assert description["name"] == name
    assert re.fullmatch("[0-9a-f]{64}", description["weights_sha256"])
    assert description["resize"] == "224x224, bicubic, antialiased, as float"
    assert description["dimensions"] == DIMENSIONS[name]


def test_other_content_is_refused(made, tmp_path):
    name, folder, _model = made
    other = next(one for one in MADE if one != name)
    with pytest.raises(UserError, match=rf"evaluation\.weights\.{other}.*(lacks|cannot be loaded)"):
        load_extractor(other, weights={other: folder})
    with pytest.raises(UserError, match=r"expected a folder of `transformers` with config\.json"):
        load_extractor(name, weights={name: tmp_path / "none"})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_extractor(name, weights={name: folder})
    # A pickle is not looked at, whatever it is called.
    weights.unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_extractor(name, weights={name: folder})


def test_without_a_network_the_message_says_what_to_fetch(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"huggingface\.co/facebook/dinov2-large .* evaluation\.weights\.dinov2-vit-l-14"
    ):
        load_extractor("dinov2-vit-l-14")
