"""SiT (Ma et al. 2024, arXiv 2401.08740): class-conditional transformers of flow matching, on latents."""

from typing import Any

from diffusion.teachers.families.unet2d import UNet2D


class SiT(UNet2D):
    """Called and configured as a ``UNet2DModel`` with classes is."""

    networks = own_networks = ("SiTTransformer",)

    def network_class(self, name: str) -> Any:
        from diffusion.teachers.networks.sit_transformer import SiTTransformer  # imports `diffusers`

        return SiTTransformer


FAMILY = SiT()
