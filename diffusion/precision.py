"""How exactly a card multiplies."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_short_products(device: torch.device) -> bool:
    """Whether it is a card that multiplies matrices of bfloat16 and TF32 in hardware (compute capability 8.0, Ampere,
    or later). Older cards emulate bfloat16, slowly, and have no TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def float32_products(device: torch.device, tf32: bool, tf32_convolutions: bool | None = None) -> Iterator[None]:
    """Within it a card multiplies float32 matrices, and convolves, in TF32 (10 bits of mantissa), or exactly.

    torch's own default is exact matrix products and convolutions in TF32. A processor is left alone: it always computes
    exactly, and torch's switch could make it take bfloat16.

    Args:
        tf32_convolutions: whether it convolves so; None as it multiplies.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32 if tf32_convolutions is None else tf32_convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
