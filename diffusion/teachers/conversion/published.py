"""The checkpoints that their authors publish and this suite can take for teachers."""

from dataclasses import dataclass
from typing import Literal

from diffusion.teachers.conversion.adm import Betas, Order

Kind = Literal["edm", "guided-diffusion", "consistency", "sit"]
_NVLABS = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_OPENAI = "https://openaipublic.blob.core.windows.net"
_SIT = "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt"


@dataclass(frozen=True)
class Published:
    """What is known of a checkpoint without its weights, from its authors' pages and scripts.

    Attributes:
        address: where it is fetched.
        kind: the family, which decides how it is read.
        resolution, classes: of its pictures; classes is None where it is not told any.
        attention: see :data:`diffusion.teachers.conversion.adm.Order`; None where the file says it.
        schedule: of guided-diffusion.
    """

    address: str
    kind: Kind
    resolution: int
    classes: int | None = None
    attention: Order | None = None
    schedule: Betas | None = None


def _edm(name: str, resolution: int, classes: int | None = None) -> dict[str, Published]:
    return {name: Published(f"{_NVLABS}/{name}", "edm", resolution, classes)}


def _guided(
    name: str, resolution: int, classes: int | None = None, attention: Order = "heads-first", betas: Betas = "linear"
) -> dict[str, Published]:
    address = f"{_OPENAI}/diffusion/jul-2021/{name}"
    return {name: Published(address, "guided-diffusion", resolution, classes, attention, betas)}


def _consistency(name: str, resolution: int, classes: int | None = None) -> dict[str, Published]:
    # Trained with flash attention, whose projections are split qkv first (QKVFlashAttention in cm/unet.py).
    address = f"{_OPENAI}/consistency/{name}"
    return {name: Published(address, "consistency", resolution, classes, "qkv-first")}


PUBLISHED: dict[str, Published] = {
    **_edm("edm-cifar10-32x32-uncond-vp.pkl", 32),
    **_edm("edm-cifar10-32x32-uncond-ve.pkl", 32),
    **_edm("edm-cifar10-32x32-cond-vp.pkl", 32, 10),
    **_edm("edm-cifar10-32x32-cond-ve.pkl", 32, 10),
    **_edm("edm-ffhq-64x64-uncond-vp.pkl", 64),
    **_edm("edm-ffhq-64x64-uncond-ve.pkl", 64),
    **_edm("edm-afhqv2-64x64-uncond-vp.pkl", 64),
    **_edm("edm-afhqv2-64x64-uncond-ve.pkl", 64),
    **_edm("edm-imagenet-64x64-cond-adm.pkl", 64, 1000),
    **_guided("64x64_diffusion.pt", 64, 1000, "qkv-first", "cosine"),
    **_guided("256x256_diffusion.pt", 256, 1000),
    **_guided("256x256_diffusion_uncond.pt", 256),
    **_guided("lsun_bedroom.pt", 256),
    **_guided("lsun_cat.pt", 256),
    **_guided("lsun_horse.pt", 256),
    **_guided("lsun_horse_nodropout.pt", 256),
    **_consistency("edm_imagenet64_ema.pt", 64, 1000),
    **_consistency("edm_bedroom256_ema.pt", 256),
    **_consistency("edm_cat256_ema.pt", 256),
    # The name that the authors' sample.py gives it.
    "SiT-XL-2-256x256.pt": Published(f"{_SIT}?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0", "sit", 256, 1000),
}

# What cannot be told from the weights either, and cannot be used.
UNUSABLE = {
    "128x128_diffusion.pt": "its attention has four heads at every level, of another width each, which `diffusers`' "
    "UNet2DModel cannot have",
    **{
        f"{how}_{data}{metric}.pt": "it is a consistency model, a student, which no denoiser is"
        for data in ("imagenet64", "bedroom256", "cat256")
        for how, metric in (("cd", "_l2"), ("cd", "_lpips"), ("ct", ""))
    },
}
