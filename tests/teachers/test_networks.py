"""Networks that are trained here: what a configuration makes of `diffusers`' ``UNet2DModel``."""

import json

import pytest
import torch
import yaml
from repository import CONFIG

import diffusion  # noqa: F401 - repairs torchvision before `diffusers` is imported

from diffusers import UNet2DModel  # isort: skip
from diffusion.teachers.conversion.weights import unet_configuration
from diffusion.teachers.networks.unet import NetworkSettings, build_network

ADM = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
SMALL = {
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "attention_resolutions": [4],
}
# Weights of the authors' networks without the outputs of the variance (test_conversion.py), and a label for no class.
PUBLISHED_SIZES = {
    "imagenet64": 295_904_454 - 3 * (9 * 192 + 1) + 4 * 192,
    "bedroom256": 552_814_086 - 3 * (9 * 256 + 1),
}


def weights(network):
    return sum(weight.numel() for weight in network.parameters())


def test_by_default_it_is_the_network_without_the_later_keys(tmp_path):
    settings = NetworkSettings.model_validate(SMALL)
    torch.manual_seed(0)
    network = build_network(settings, (3, 16, 16), 4)
    torch.manual_seed(0)
    plain = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=4,
    )
    for name, one in (("network", network), ("plain", plain)):
        one.save_config(tmp_path / name)
    assert (tmp_path / "network/config.json").read_text() == (tmp_path / "plain/config.json").read_text()
    mine, theirs = network.state_dict(), plain.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_text_of_settings_has_the_later_keys_only_where_they_are_used():
    """Stored results are known by it."""
    plain = NetworkSettings.model_validate(SMALL)
    assert not ADM.keys() & plain.model_dump(mode="json").keys()
    used = NetworkSettings.model_validate(SMALL | ADM)
    assert json.loads(used.model_dump_json()).items() >= ADM.items()
    for settings in (plain, used):
        assert NetworkSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_images_that_are_not_square_attend_by_their_height(tmp_path):
    settings = NetworkSettings.model_validate(SMALL | {"attention_resolutions": [8]})
    network = build_network(settings, (1, 8, 16))
    assert list(network.config.down_block_types) == ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    assert tuple(network.config.sample_size) == (8, 16)
    network.save_pretrained(tmp_path)
    assert tuple(UNet2DModel.from_pretrained(tmp_path).config.sample_size) == (8, 16)
    x = torch.randn(2, 1, 8, 16)
    assert network(x, torch.tensor([3.0, 700.5])).sample.shape == x.shape
    with pytest.raises(ValueError, match=r"16 is not one of the feature-map sizes \[8, 4, 2\]"):
        settings.model_copy(update={"attention_resolutions": (16,)}).check_size((8, 16))


@pytest.mark.parametrize("size", [(8, 18), (18, 8)])
def test_height_and_width_fit_the_levels(size):
    with pytest.raises(ValueError, match="3 levels, so the resolution must be a multiple of 4; found 18"):
        NetworkSettings.model_validate(SMALL).check_size(size)


@pytest.mark.parametrize("keys", [["resnet_time_scale_shift"], ["downsample_type"], ["upsample_type"], list(ADM)])
def test_each_of_adms_parts_makes_another_network_that_runs(keys):
    settings = NetworkSettings.model_validate(SMALL | {key: ADM[key] for key in keys})
    network = build_network(settings, (3, 16, 16), 4)
    assert weights(network) > weights(build_network(NetworkSettings.model_validate(SMALL), (3, 16, 16), 4))
    x, timestep = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.5])
    answer = network(x, timestep, torch.tensor([0, 3])).sample
    assert answer.shape == x.shape
    answer.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_the_published_experiments_have_adms_networks(name):
    raw = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    resolution, settings = raw["data"]["resolution"], NetworkSettings.model_validate(raw["teacher"]["network"])
    labels = 1001 if raw["teacher"].get("labels") else None
    with torch.device("meta"):
        network = build_network(settings, (3, resolution, resolution), labels)
    channels = settings.block_out_channels
    expected = unet_configuration(
        resolution=resolution,
        pictures=3,
        channels=channels,
        layers=settings.layers_per_block,
        attends=[resolution >> level in settings.attention_resolutions for level in range(len(channels))],
        scale_shift=True,
        labels=labels,
    )
    assert {key: network.config[key] for key in expected} == expected
    assert weights(network) == PUBLISHED_SIZES[name]
