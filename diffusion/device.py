"""Where networks run."""

import os
import platform
import sys
import tempfile
from pathlib import Path

import filelock
import torch

from diffusion.errors import UserError


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU; the environment variable ``BOOT_DEVICE`` overrides ("cpu", "cuda:1").

    Raises:
        UserError: the variable names a device that this machine does not have.
    """
    wanted = os.environ.get("BOOT_DEVICE")
    if not wanted and not torch.cuda.is_available():
        return torch.device("cpu")
    if not wanted:
        # One of several processes that train together has a card of its own.
        wanted = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"BOOT_DEVICE: found {wanted!r}, expected a device of this machine ({error}).") from error
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # libraries that only know "cuda" take this one
    return device


def gpu_lock(device: torch.device) -> filelock.BaseFileLock:
    """A lock on one card, to be entered by jobs whose wall-clock is reported; it waits for the job that holds it.

    Snakemake's ``gpu`` resource serialises the jobs of one run, but can be overridden away and knows nothing of a
    trainer that has outlived its run.
    """
    card = torch.cuda.get_device_properties(device).uuid
    path = Path(tempfile.gettempdir()) / f"boot-reproduction-{os.getuid()}-gpu-{card}.lock"
    print(f"waiting for the GPU ({path})", file=sys.stderr)
    return filelock.FileLock(path)


def processor_name() -> str:
    """The processor's model, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
