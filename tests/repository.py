"""Where the repository's own files are, and its workflow on the tiny experiment."""

import atexit
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
TINY = ROOT / "tests" / "tiny.yaml"


@functools.cache
def warm():
    """What the environment has for commands of the suite and of Snakemake to be forked from a process that has imported
    what they import. It starts when this is first called, and ends with this one. Linux alone has what it takes."""
    if sys.platform != "linux":
        return {}
    place = tempfile.TemporaryDirectory()
    code = [str(ROOT / "tests" / "warm"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"BOOT_TEST_WARM": f"{place.name}/socket", "PYTHONPATH": os.pathsep.join(code)}
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "warm" / "server.py"), variables["BOOT_TEST_WARM"]],
        cwd=ROOT,
        env=os.environ | variables | {"GOMP_SPINCOUNT": "10000"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(place.cleanup)
    atexit.register(server.communicate)
    assert server.stdout.readline() == b"ready\n"
    return variables


def snakemake(folder, *arguments, config=TINY, check=True):
    """Runs the workflow in ``folder``, which gets the results and Snakemake's own state."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        # Targets go first: --configfile takes all that follows it.
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "2", *arguments),
        *("--configfile", str(config)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ | warm() | {"BOOT_DEVICE": "cpu"}
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def inputs_of(folder, config):
    """Rule to the rules whose results it reads; nothing runs."""
    dot = snakemake(folder, "--forceall", "--dag", "dot", config=config).stdout
    labels = {number: label.partition("\\n")[0] for number, label in re.findall(r'(\d+)\[label = "([^"]*)"', dot)}
    found = {rule: set() for rule in labels.values()}
    for one, other in re.findall(r"(\d+) -> (\d+)", dot):
        found[labels[other]].add(labels[one])
    return found


def tiny_experiment():
    """The tiny experiment's blocks, new each time."""
    return yaml.safe_load(TINY.read_text(encoding="utf-8"))
