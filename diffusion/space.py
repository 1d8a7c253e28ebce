"""What the states of a diffusion are: images, or an autoencoder's latents (Rombach et al. 2022, arXiv 2112.10752).

Losses, students, samplers and trajectories see states alone. Images are made of them where they are stored, shown or
judged, and states are made of images once, for whoever trains on real ones.
"""

import torch


class Space:
    """States are images in [−1, 1], of shape (N, C, H, W).

    Attributes:
        deviation: about that of the states' numbers; 0.5 is what EDM and consistency models take of images.
    """

    is_latent = False
    deviation = 0.5

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images that states of ``shape`` stand for."""
        return shape

    def state_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the states that stand for images of ``shape``."""
        return shape

    def decode(self, states: torch.Tensor) -> torch.Tensor:
        """Images in [−1, 1], not clipped, of states, both of shape (N, C, H, W)."""
        return states

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """States of images in [−1, 1], both of shape (N, C, H, W)."""
        return images


PIXELS = Space()
