"""Where networks run."""

import os
import platform
from pathlib import Path

import torch

from diffusion.runtime.errors import UserError
from diffusion.runtime.gpus import claim_cards, number_of_cards


def wanted_device() -> torch.device:
    """The kind of device that networks shall run on, found out without taking memory of a GPU.

    Raises:
        UserError: ``BOOT_DEVICE`` names a device that this machine does not have.
    """
    wanted = os.environ.get("BOOT_DEVICE")
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif (cards := number_of_cards()) <= (device.index or 0):
            raise RuntimeError(f"it has {cards} GPUs")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"BOOT_DEVICE: found {wanted!r}, expected a device of this machine ({error}).") from error
    return device


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU; the environment variable ``BOOT_DEVICE`` overrides ("cpu", "cuda:1").

    This process gets a GPU that no other job has, and the same one whenever it asks; it waits until one is free. So
    jobs that Snakemake starts beside each other on one GPU (``--resources gpu=3``) load their code while another
    computes, and none disturbs the time that another takes.

    Raises:
        UserError: ``BOOT_DEVICE`` names a device that this machine does not have, or the GPU cannot be used.
    """
    device = wanted_device()
    if device.type != "cuda":
        return device
    if not os.environ.get("BOOT_DEVICE"):
        if "LOCAL_RANK" in os.environ:
            # One of several processes that train together has a card of its own.
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        else:
            import diffusers  # noqa: F401  # takes seconds, for which no other job shall wait

            device = torch.device("cuda", claim_cards(1)[0])
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{device}: cannot be used ({error}). BOOT_DEVICE=cpu keeps off it.") from error
    if device.index is not None:
        torch.cuda.set_device(device)  # libraries that only know "cuda" take this one
    return device


def processor_name() -> str:
    """The processor's model, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
