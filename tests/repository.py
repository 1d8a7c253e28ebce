"""Where the repository's own files are, and its workflow on the tiny experiment."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
TINY = ROOT / "tests" / "tiny.yaml"


def snakemake(folder, *arguments, config=TINY, check=True):
    """Runs the workflow in ``folder``, which gets the results and Snakemake's own state."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        # Targets go first: --configfile takes all that follows it.
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "2", *arguments),
        *("--configfile", str(config)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | {"BOOT_DEVICE": "cpu"})
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def tiny_experiment():
    """The tiny experiment's blocks, new each time."""
    return yaml.safe_load(TINY.read_text(encoding="utf-8"))
