"""Latents as the states of a diffusion: an autoencoder of `diffusers` in a pipeline's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.runtime.errors import CheckpointError, UserError, brief
from diffusion.runtime.files import read_json_object
from diffusion.space import PIXELS, Space

AUTOENCODER = "vae"  # what `diffusers` calls it among a pipeline's parts
# With the scaling factor of a file that says none, as those from before `diffusers` had that key: its default.
_CLASSES = {"AutoencoderKL": 0.18215, "AutoencoderDC": 1.0}
# The most pixels that are decoded or encoded at a time: at 512×512 an autoencoder of Stable Diffusion's size holds 3 GB
# for 16 images.
_PIXELS_AT_ONCE = 2**22


class Latents(Space):
    """States are z = (E(x) − shift) · scale with the mean E(x) of an autoencoder's posterior; x = D(z / scale + shift).

    Shift and scale are one number each (``shift_factor``, ``scaling_factor`` of its configuration), or one a channel
    (``latents_mean``, and ``scaling_factor`` over ``latents_std``), as `diffusers`' pipelines read them.

    Args:
        folder: of the autoencoder, a part of a pipeline's folder. Its weights are read where images are made or read.

    Raises:
        UserError: it is of a class that is not known, or says nothing of its latents' scale.
    """

    is_latent = True
    deviation = 1.0  # to which autoencoders' latents are scaled

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_json_object(folder / "config.json")
        if (found := self.config.get("_class_name")) not in _CLASSES:
            raise UserError(
                f"{folder / 'config.json'}: found the autoencoder {found!r}, expected one of {', '.join(_CLASSES)}."
            )
        self.shift, self.scale = _shift_and_scale(self.config, folder)
        self._loaded: dict[torch.device, Any] = {}

    @property
    def factor(self) -> int:
        """Pixels to a latent, along a side."""
        widths = self.config.get("block_out_channels") or self.config.get("encoder_block_out_channels")
        return int(2 ** (len(widths or ()) - 1))

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels = self.config.get("in_channels", 3)
        return channels, shape[1] * self.factor, shape[2] * self.factor

    def state_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.config["latent_channels"], shape[1] // self.factor, shape[2] // self.factor

    def decode(self, states: torch.Tensor) -> torch.Tensor:
        shift, scale = self.shift.to(states), self.scale.to(states)
        autoencoder = self.autoencoder(states.device)
        size = max(1, _PIXELS_AT_ONCE // (states[0, 0].numel() * self.factor**2))
        with torch.no_grad():
            decoded = [autoencoder.decode(part, return_dict=False)[0] for part in (states / scale + shift).split(size)]
        return torch.cat(decoded).float()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        autoencoder = self.autoencoder(images.device)
        size = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
        with torch.no_grad():
            encoded = torch.cat([posterior_mean(autoencoder, part) for part in images.split(size)]).float()
        return (encoded - self.shift.to(encoded)) * self.scale.to(encoded)

    def build(self) -> Any:
        """The autoencoder with random weights."""
        import diffusers  # 3 seconds: not at import

        return getattr(diffusers, self.config["_class_name"]).from_config(self.config)

    def autoencoder(self, device: torch.device) -> Any:
        """The autoencoder in float32 and evaluation mode.

        Raises:
            CheckpointError: its weights are missing or are of another network.
        """
        if device not in self._loaded:
            import diffusers  # 3 seconds: not at import

            try:
                made = getattr(diffusers, self.config["_class_name"]).from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True
                )
            except Exception as error:  # of a class that is not ours, at what a user's folder holds
                raise CheckpointError(f"{self.folder}: no autoencoder can be read ({brief(error)}).") from error
            self._loaded[device] = made.float().to(device).eval().requires_grad_(False)
        return self._loaded[device]


def posterior_mean(autoencoder: Any, images: torch.Tensor) -> torch.Tensor:
    """What an autoencoder of `diffusers` makes of images, without noise, before shift and scale."""
    encoded = autoencoder.encode(images)
    found: torch.Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    return found


def _shift_and_scale(config: Mapping[str, Any], folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Each of shape (1, 1, 1) or (C, 1, 1)."""
    scaling = config.get("scaling_factor", _CLASSES[config["_class_name"]])
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if not scaling:
        raise UserError(f"{folder / 'config.json'}: found scaling_factor {scaling!r}, expected a number above 0.")
    if mean is not None and deviation is not None:
        shift, scale = torch.tensor(mean, dtype=torch.float64), scaling / torch.tensor(deviation, dtype=torch.float64)
    else:
        shift = torch.tensor([config.get("shift_factor") or 0.0], dtype=torch.float64)
        scale = torch.tensor([float(scaling)], dtype=torch.float64)
    return shift.reshape(-1, 1, 1), scale.reshape(-1, 1, 1)


def space_of(pipeline: Path) -> Space:
    """The space of a pipeline's folder: latents where it has an autoencoder.

    Raises:
        UserError: as :class:`Latents`.
    """
    folder = pipeline / AUTOENCODER
    return Latents(folder) if folder.is_dir() else PIXELS
