"""Pipeline folders: drawn from without this project, and as earlier versions of it wrote them."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers

from diffusion.noise import initial_noise

NOISE = initial_noise(0, range(4), (1, 8, 8))
ALONE = Path(__file__).with_name("alone.py")
TRUSTED = {"trust_remote_code": True}
EARLIER = {
    "boot-song": ("BootPipeline", ["told_timestep", "read_timestep", "signal_scale", "raw", "levels", "cosine"]),
    "boot-classes": ("BootPipeline", ["told_timestep", "read_timestep", "signal_scale", "raw", "levels", "cosine"]),
    "knowledge": ("OneStepPipeline", ["raw", "levels", "cosine"]),
    "pid-network": ("OneStepPipeline", ["levels", "cosine"]),
    "consistency": ("ConsistencyPipeline", ["told_timestep", "read_timestep", "signal_scale", "raw", "cosine"]),
    "progressive-edm": ("EdmPipeline", ["told_timestep", "signal_scale", "raw", "levels", "thresholding", "cosine"]),
    "teacher-classes": ("ClassConditionalPipeline", ["told_timestep", "signal_scale", "raw", "levels", "cosine"]),
}


def alone(folder, entries, **further):
    """Runs tests/alone.py; its standard output, by source."""
    (folder / "job.json").write_text(json.dumps(entries))
    site_packages = str(Path(diffusers.__file__).parents[1])
    environment = {"HF_HOME": str(folder / "hf"), "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ALONE), site_packages, str(folder / "job.json")],
        cwd=folder,
        env=environment | further,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines()), done.stderr


def entry_of(folder, source, name, trusted=True, **call):
    return {
        "source": str(source),
        "load": TRUSTED if trusted else {},
        "call": call,
        "latents": str(folder / "latents.npy"),
        "images": str(folder / f"{name}.npy"),
    }


def as_earlier(folder, name):
    """Makes the folder of a case what an earlier version of the suite would have written."""
    class_name, without = EARLIER[name]
    index = json.loads((folder / "model_index.json").read_text())
    index = {key: value for key, value in index.items() if key not in without} | {"_class_name": class_name}
    if index["unet"][0] != "diffusers":
        (folder / "unet" / f"{index['unet'][0]}.py").unlink()
        index["unet"][0] = f"diffusion.{index['unet'][0]}"
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").unlink()
