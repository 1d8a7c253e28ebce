"""The methods that BOOT is compared with, one file each."""

import diffusion  # noqa: F401 - repairs torchvision before anything here imports `diffusers`
