"""A `diffusers` pipeline for BOOT students: ``BootPipeline.from_pretrained(folder)(batch_size=16).images``."""

from diffusion.teachers.local_pipeline import LocalPipeline


class BootPipeline(LocalPipeline):
    """Draws images with one network evaluation; ``timestep`` reads the trajectory elsewhere than at its end."""
