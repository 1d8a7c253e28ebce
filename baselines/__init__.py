"""The methods that BOOT is compared with: one file a distiller, and one for the samplers of the teacher."""

import diffusion  # noqa: F401 - repairs torchvision before anything here imports `diffusers`
