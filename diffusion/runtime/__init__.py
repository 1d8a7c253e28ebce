"""What knows nothing of diffusion: files, processes, devices, downloads, settings, errors."""
