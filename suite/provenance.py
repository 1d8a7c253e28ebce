"""Where a result comes from: the JSON beside every result."""

import datetime
import functools
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from diffusion.device import processor_name
from diffusion.files import sha256_file, write_json
from diffusion.packages import version_of

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "torch-fidelity",
    "clean-fid",
    "snakemake",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)


def write_provenance(path: Path, inputs: dict[str, Path], **facts: Any) -> None:
    """Writes what a result was made from.

    Args:
        path: the JSON file.
        inputs: files that went in, by role; their SHA-256 are recorded.
        facts: settings, seeds and whatever else made this result.
    """
    write_json(
        path,
        {
            "inputs": {role: {"path": str(file), "sha256": sha256_file(file)} for role, file in sorted(inputs.items())},
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(),
            "hardware": hardware(),
            "versions": versions(),
            "commit": commit(),
            **facts,
        },
    )


def versions() -> dict[str, str]:
    """Python and the packages that can change a number."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in _PACKAGES}


def hardware() -> dict[str, Any]:
    """Processor, memory and, where there is one, the GPU."""
    facts: dict[str, Any] = {
        "processor": processor_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


@functools.cache
def commit() -> str:
    """The git commit of the code, with "+changes" if the tree differs from it; "unknown" outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
