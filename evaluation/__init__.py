"""Features, quality measures, speed, tables, plots and the report."""

import diffusion  # noqa: F401  # repairs torchvision, before anything here imports torch-fidelity or clean-fid
