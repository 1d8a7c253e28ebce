"""Where networks run."""

import os

import torch

from diffusion.errors import UserError


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU; the environment variable ``BOOT_DEVICE`` overrides ("cpu", "cuda:1").

    Raises:
        UserError: the variable names a device that this machine does not have.
    """
    wanted = os.environ.get("BOOT_DEVICE")
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"BOOT_DEVICE: found {wanted!r}, expected a device of this machine ({error}).") from error
    return device
