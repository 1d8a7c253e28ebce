"""Whether a change of the code changes a bit: SHA-256 of all weights, pairs and samples of two small experiments.

    python benchmarks/bits.py /tmp/before    # of this checkout, in a folder that need not be there; two minutes
    python benchmarks/bits.py /tmp/after     # of the changed one
    diff /tmp/before/sha256.txt /tmp/after/sha256.txt

The experiments are tests/tiny.yaml and config/digits-baselines.yaml with few steps: teacher, BOOT with three solvers,
every distiller, every sampler. Other processors, or versions of torch, differ in the last bit: compare on one machine.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEACHER_STEPS, STUDENT_STEPS = 40, 30


def shortened(raw: dict[str, Any]) -> dict[str, Any]:
    """The same experiment with few steps, one training seed and few samples."""
    blocks = [raw["teacher"], *raw["methods"].values()]
    for block in blocks:
        if training := block.get("training"):
            training["steps"] = TEACHER_STEPS if block is raw["teacher"] else STUDENT_STEPS
            training |= {name: kept for name, kept in (("warmup_steps", 5), ("ema_decay", 0.5)) if name in training}
        if "pairs" in block:
            block["pairs"]["count"] = 64
        if block.get("method") in ("ddpm", "dpm_solver_pp", "unipc", "heun", "ddim"):
            block["num_inference_steps"] = [1, 2, 4]
    raw.pop("comparison")
    raw["evaluation"] |= {"num_samples": 64, "teacher": {"variant": "ddim", "nfe": 4}}
    return raw | {"experiment": "short", "train_seeds": [0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    tiny = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
    baselines = yaml.safe_load((ROOT / "config/digits-baselines.yaml").read_text(encoding="utf-8"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, raw in (("tiny", tiny), ("short", shortened(baselines))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        options = ["--workflow-profile", ROOT / "profiles/default", "--cores", "2", "--until", "sample"]
        command = [*snakemake, *options, "--quiet", "all", "--configfile", folder / f"{name}.yaml"]
        subprocess.run(command, check=True, cwd=folder, env=environment)
    made = folder / "results"
    files = sorted(
        path for kind in ("*.safetensors", "*.npz", "*.npy") for path in made.rglob(kind) if "state" not in path.parts
    )
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(made)}" for path in files]
    (folder / "sha256.txt").write_text("\n".join(sums) + "\n", encoding="utf-8")
    print(f"{len(sums)} files: {folder / 'sha256.txt'}")


if __name__ == "__main__":
    main()
