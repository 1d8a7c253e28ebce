"""A teacher's training step with two threads that wait for each other in different ways, on quiet and on busy cores.

``python benchmarks/waiting.py --rounds 5 --steps 4 --busy``: the variants take turns, so that all see the same machine;
with ``--busy`` a process spins on each core meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = {
    "libgomp's own (300,000 spins)": {},
    **{f"GOMP_SPINCOUNT={spins}": {"GOMP_SPINCOUNT": str(spins)} for spins in (30_000, 10_000, 1000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def work(configuration: str) -> None:
    """Reads numbers of steps, line by line, takes them, and prints the seconds that each took."""
    import torch
    import yaml
    from harness import untrained

    from diffusion.denoiser import denoising_loss
    from diffusion.times import uniform_times
    from suite.configuration.experiment import parse_experiment

    experiment = parse_experiment(yaml.safe_load(Path(configuration).read_text(encoding="utf-8")), look_at_files=False)
    teacher, data = experiment.teacher, experiment.data
    denoiser = untrained(experiment, torch.device("cpu"), 1).train().requires_grad_(True)
    schedule, optimiser = denoiser.schedule, teacher.training.optimiser_of(denoiser.network)
    generator, batch = torch.Generator().manual_seed(0), teacher.training.batch_size
    shape = (2, batch, *data.shape)

    def step() -> float:
        began = time.perf_counter()
        x, noise = torch.randn(shape, generator=generator)
        denoising_loss(denoiser, x, noise, uniform_times(batch, schedule.t_min, schedule.t_max, generator)).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([step() for _ in range(int(line))]), flush=True)


def main() -> None:
    """Prints, for each variant, milliseconds a step and the median ratio to the first one, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", default="config/digits.yaml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each variant in a round")
    parser.add_argument("--busy", action="store_true", help="a process spins on each core meanwhile")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.configfile)
        return
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    plain["OMP_NUM_THREADS"] = str(options.threads)
    command = [sys.executable, __file__, "--work", "--configfile", options.configfile]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {name: subprocess.Popen(command, env=plain | own, **pipes) for name, own in VARIANTS.items()}  # type: ignore[call-overload]
    for worker in workers.values():
        worker.stdout.readline()
    spin = "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
    cores = sorted(os.sched_getaffinity(0)) if options.busy else []
    others = [subprocess.Popen([sys.executable, "-c", spin, str(core)]) for core in cores]
    try:
        rounds: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
        for _ in range(options.rounds):
            for name, worker in workers.items():
                print(options.steps, file=worker.stdin, flush=True)
                rounds[name].append(json.loads(worker.stdout.readline()))
    finally:
        for process in (*others, *workers.values()):
            process.kill()
    first = [statistics.median(one) for one in rounds[next(iter(VARIANTS))]]
    print(f"{'busy' if options.busy else 'as it is'}, load {os.getloadavg()[0]:.1f}, {options.threads} threads")
    for name, taken in rounds.items():
        every = [1e3 * seconds for one in taken for seconds in one]
        ratio = statistics.median(statistics.median(one) / base for one, base in zip(taken, first, strict=True))
        print(
            f"{name:30s} median {statistics.median(every):7.1f} ms, mean {statistics.mean(every):7.1f}, "
            f"largest {max(every):7.1f}, ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
