"""The distances of losses; LPIPS with a stand-in network, and with weights that are made here."""

import hashlib
from urllib.error import URLError

import pytest
import torch
from tiny import stored_data, tiny_denoiser

from baselines.consistency_distillation import ConsistencyDistillation, ConsistencySettings
from baselines.pid import Pid, PidSettings
from boot.distillation import Boot, BootSettings
from diffusion.distillation import distances
from diffusion.distillation.distances import SMALLEST, LpipsDistance, LpipsSettings, load_lpips, squared_l2
from diffusion.runtime.errors import UserError
from diffusion.training.loop import TrainingRun

CPU = torch.device("cpu")
A, B = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class StandIn(torch.nn.Module):
    """A perceptual network in small: squared differences of a fixed convolution's features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Conv2d(3, 4, 3)
        self.seen = []

    def forward(self, a, b):
        self.seen.append(a.shape)
        return (self.features(a) - self.features(b)).square().mean(dim=(1, 2, 3), keepdim=True)


def test_squared_l2_by_hand():
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[0.0, 2.0]]]])
    assert squared_l2(a, b).tolist() == [5.0, 2.0]


def test_lpips_hands_three_channels_of_the_right_size_to_its_network():
    network = StandIn()
    distance = LpipsDistance(network, resize=24)
    values = distance(A, B)
    assert values.shape == (5,)
    assert network.seen == [(5, 3, 24, 24)]
    assert float(distance(A, A).abs().max()) == 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    LpipsDistance(network)(A, B)
    assert network.seen[-1] == (5, 3, 8, 8)


@pytest.mark.parametrize(("size", "resized"), [((8, 16), (24, 48)), ((16, 8), (48, 24)), ((8, 11), (24, 33))])
def test_images_that_are_not_square_are_not_distorted(size, resized):
    network = StandIn()
    images = torch.zeros(2, 1, *size)
    LpipsDistance(network, resize=24)(images, images)
    assert network.seen == [(2, 3, *resized)]


def test_gradients_reach_the_pictures_and_not_the_network():
    distance, a = LpipsDistance(StandIn()), A.clone().requires_grad_(True)
    distance(a, B).sum().backward()
    assert float(a.grad.abs().max()) > 0
    assert distance.network.features.weight.grad is None


@pytest.mark.parametrize(
    ("method", "settings", "compared"),
    # BOOT compares a quarter of its noises a second time, at the boundary.
    [(Boot, BootSettings, 5), (ConsistencyDistillation, ConsistencySettings, 4), (Pid, PidSettings, 4)],
)
def test_a_student_trains_with_it_in_micro_batches(method, settings, compared, tmp_path, monkeypatch):
    network = StandIn()
    monkeypatch.setattr("diffusion.distillation.distances.load_lpips", lambda settings, device: LpipsDistance(network))
    data = stored_data(tmp_path / "data") if method.needs_data else None

    def student(folder, **options):
        training = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5, "optimiser": "adamw"}
        with TrainingRun(folder, "key", 0, CPU) as run:
            chosen = settings.model_validate({"training": training | {"gradient_accumulation_steps": 2}, **options})
            (trained,) = method(chosen).distil(tiny_denoiser(), run, data)
            return list(trained.network.parameters()), trained.cost["network_evaluations"]

    pixels, cost = student(tmp_path / "l2")
    assert network.seen == []
    perceived, cost_perceived = student(tmp_path / "lpips", distance="lpips")
    assert network.seen == 6 * [(compared, 3, 8, 8)]
    assert cost_perceived == cost
    assert all(torch.isfinite(p).all() for p in perceived)
    assert any(not torch.equal(a, b) for a, b in zip(pixels, perceived, strict=True))


@pytest.mark.parametrize("settings", [BootSettings, ConsistencySettings, PidSettings])
def test_settings_of_lpips_are_refused_with_another_distance(settings):
    with pytest.raises(ValueError, match="lpips: given, but distance is 'l2'; remove one"):
        settings.model_validate({"lpips": {"resize": 224}})
    settings.model_validate({"distance": "lpips", "lpips": {"resize": 224}})


def test_what_is_left_at_its_default_is_no_part_of_the_settings_text():
    """Results made before a key came stay valid."""
    assert "pooling" not in BootSettings().model_dump()["lpips"]
    assert "lpips" not in ConsistencySettings().model_dump()
    assert not {"lpips", "distance"} & set(PidSettings().model_dump())
    chosen = {"distance": "lpips", "lpips": {"resize": 224, "pooling": "average"}}
    for settings in (BootSettings, ConsistencySettings, PidSettings):
        given = settings.model_validate(chosen)
        dumped = given.model_dump(mode="json")
        assert dumped["distance"] == "lpips"
        assert dumped["lpips"]["pooling"] == "average"
        assert settings.model_validate(dumped) == given


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("backbone", list(distances._FILES))
def test_missing_weights_are_named_with_where_to_get_them(backbone):
    with pytest.raises(UserError) as caught:
        load_lpips(LpipsSettings(backbone=backbone), CPU)
    for part in ("https://download.pytorch.org/models/", "lpips.weights", "distance to 'l2'", "download failed"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_other_weights_are_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="expected 397923af"):
        load_lpips(LpipsSettings(weights=str(tmp_path / "x.pth")), CPU)


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
def test_the_package_runs_on_weights_from_a_file(backbone, tmp_path, monkeypatch):
    """Random weights in torchvision's own layout: what is loaded is what the file says, backbone and all."""
    import torchvision

    torch.manual_seed(1)
    model = {"alex": torchvision.models.alexnet, "squeeze": torchvision.models.squeezenet1_1}[backbone](weights=None)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(distances._FILES, backbone, ("weights.pth", digits))
    distance = load_lpips(LpipsSettings(backbone=backbone, weights=str(path), resize=SMALLEST[backbone]), CPU)
    first = distance.network.net.slice1[0].weight
    assert torch.equal(first, model.features[0].weight)
    a = A.clone().requires_grad_(True)
    values = distance(a, B)
    values.sum().backward()
    assert values.shape == (5,)
    assert (values > 0).all()
    assert torch.isfinite(a.grad).all()
    assert float(distance(A, A).abs().max()) == 0


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_vgg_by_the_published_formula(pooling, tmp_path, monkeypatch):
    """Images in [0, 1] enlarged by plain bilinear interpolation, ImageNet's mean and deviation, torchvision's VGG with
    its pools or averages in their place, activations of unit length, and the package's layer weights."""
    import lpips
    import torchvision

    torch.manual_seed(1)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    path = tmp_path / "weights.pth"
    torch.save({f"features.{name}": weight for name, weight in layers.state_dict().items()}, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(distances._FILES, "vgg", ("weights.pth", digits))
    found = load_lpips(LpipsSettings(weights=str(path), resize=28, pooling=pooling), CPU)
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    fitted = [weight for name, weight in package.named_parameters() if "lin" in name]

    def activations(images):
        x = torch.nn.functional.interpolate((images + 1) / 2, size=28, mode="bilinear")
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
        x, kept = (x - mean) / deviation, []
        for number, layer in enumerate(layers[:30]):
            if isinstance(layer, torch.nn.MaxPool2d) and pooling == "average":
                x = torch.nn.functional.avg_pool2d(x, 2)
            else:
                x = layer(x)
            if number in (3, 8, 15, 22, 29):
                kept.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return kept

    a, b = A.expand(-1, 3, -1, -1), B.expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = sum(
            (weight * (one - other).square()).sum(dim=1).mean(dim=(1, 2))
            for weight, one, other in zip(fitted, activations(a), activations(b), strict=True)
        )
        torch.testing.assert_close(found(a, b), expected, rtol=1e-4, atol=1e-7)


def test_averages_replace_the_pools_of_vgg_alone():
    with pytest.raises(ValueError, match=r"lpips\.pooling: found 'average' with the backbone 'alex', expected 'max'"):
        LpipsSettings(backbone="alex", pooling="average").check((3, 64, 64))
    LpipsSettings(pooling="average").check((3, 64, 64))


@pytest.mark.parametrize("backbone", list(distances._FILES))
def test_the_smallest_sizes_pass_through_the_backbones(backbone):
    import lpips

    network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    side = SMALLEST[backbone]
    x = torch.zeros(1, 3, side, side)
    assert torch.isfinite(network(x, x + 0.5)).all()


def test_the_installed_backbone_sees_structure():
    """A shifted picture is nearer to its original than noise of the same squared difference; gradients are finite."""
    distance = load_lpips(LpipsSettings(backbone="efficientnet-lite0", resize=64), CPU)
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images[:16]).float()[:, None] / 8 - 1
    brighter = digits + 0.2
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    noisy = digits + 0.2 * noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(squared_l2(brighter, digits), squared_l2(noisy, digits))
    assert float(distance(digits, digits).abs().max()) == 0
    assert (distance(brighter, digits) < distance(noisy, digits)).all()
    a = digits.clone().requires_grad_(True)
    distance(a, noisy).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert float(a.grad.abs().max()) > 0


def test_the_installed_backbone_is_the_networks_own_forward_pass():
    network = distances.UncalibratedLpips()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    last = network._activations(images)[-1]
    seen = []
    network.backbone._blocks[15].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network.backbone.extract_features(((images * 127.5 + 127.5) - 127) / 128)
    torch.testing.assert_close(last, torch.nn.functional.normalize(seen[0], dim=1), rtol=1e-4, atol=1e-5)


def test_the_installed_backbone_takes_no_file():
    with pytest.raises(ValueError, match="are installed"):
        LpipsSettings(backbone="efficientnet-lite0", weights="x.pth").check((3, 64, 64))
