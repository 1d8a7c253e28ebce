"""Small things that several tests share."""

import numpy as np
import torch

from diffusion.conditions import ClassLabels
from diffusion.data.kinds import parse_settings
from diffusion.data.store import Splits, load_split, size_of, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.schedule import CosineSchedule, EdmSchedule, FlowSchedule
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.thresholding import NO_THRESHOLD, STATIC

SCHEDULE = {"num_timesteps": 200}
NETWORK = {"block_out_channels": [16, 16], "norm_num_groups": 8, "attention_resolutions": [4]}
# One block down, one up: what is compiled takes its time by the layer.
SMALLEST = {"block_out_channels": [16], "norm_num_groups": 8, "layers_per_block": 1}
TEACHER = {
    "network": NETWORK,
    "schedule": SCHEDULE,
    "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5},
}


def tiny_denoiser(prediction_type="v_prediction", seed=0, clip=True, channels=1, network=NETWORK, size=(8, 8)):
    torch.manual_seed(seed)
    network = build_network(NetworkSettings.model_validate(network), (channels, *size))
    own = {"edm": EdmSchedule, "flow": FlowSchedule}
    schedule = own.get(prediction_type, CosineSchedule)(num_timesteps=200)
    denoiser = Denoiser(network, schedule, prediction_type, STATIC if clip else NO_THRESHOLD)
    return denoiser.eval().requires_grad_(False)


def tiny_conditional(num_classes=3, has_null=True, prediction_type="v_prediction", thresholding=NO_THRESHOLD):
    torch.manual_seed(0)
    network = build_network(NetworkSettings.model_validate(NETWORK), (1, 8, 8), num_classes + has_null)
    conditions = ClassLabels(num_classes, has_null)
    denoiser = Denoiser(network, CosineSchedule(num_timesteps=200), prediction_type, thresholding, conditions)
    return denoiser.eval().requires_grad_(False)


def tiny_splits(count=24, resolution=8, channels=1):
    """``resolution``: a side, or height and width."""
    images = np.random.default_rng(0).integers(0, 256, (count, *size_of(resolution), channels), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    half = count // 2
    return Splits(images[:half], labels[:half], images[half:], labels[half:], ("even", "odd"), "made for a test")


def stored_data(folder, splits=None):
    """Writes a data set; returns its training part."""
    write_dataset(folder, splits or tiny_splits(), parse_settings({"kind": "digits"}))
    return load_split(folder, "train")
