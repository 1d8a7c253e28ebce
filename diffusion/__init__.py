"""What every method shares: schedules, denoisers, networks, data, solvers, the training loop, checkpoints."""

from diffusion.runtime.torchvision_repair import repair_torchvision

# Before anything here imports diffusers, torch-fidelity or clean-fid.
repair_torchvision()
