"""How exactly a GPU multiplies, and whether it repeats itself."""

import os
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


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it a GPU computes the same bits again from the same inputs, where ``BOOT_DETERMINISTIC`` is set to 1.

    cuDNN's and cuBLAS' fastest algorithms, and the backward pass of attention, add up in an order that is another one
    each time. A processor is left alone: at the same number of threads it repeats itself anyway.

    Raises:
        RuntimeError: (torch) an operation within has no such algorithm, as the antialiased resizing before LPIPS.
    """
    if device.type != "cuda" or os.environ.get("BOOT_DETERMINISTIC") != "1":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product of the process
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
