"""BOOT: data-free distillation by bootstrapping (Gu et al., arXiv 2306.05544)."""

import diffusion  # noqa: F401 - repairs torchvision before anything here imports `diffusers`
