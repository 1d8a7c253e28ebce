"""Starts a job and stays beside it: ``python -m suite.launch 1 suite '{…}'``.

The job is one process, or several that share their batches (``python -m suite.launch 4 …``, one a GPU where the machine
has GPUs). This one says in the job's log why the job was killed, ends it when the Snakemake that started it has gone,
and passes signals on, so that a training stores its state.
"""

import ctypes
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# The process that runs the workflow, on this machine (workflow/rules/common.smk).
WORKFLOW = "BOOT_WORKFLOW_PROCESS"
_LOOK_EVERY_S = 1.0
# Where several processes are started, by the child of this one.
_SEVERAL = "--several"


def print_anything(*streams: object) -> None:
    """Lets text pass that the locale's encoding has no signs for, as ``\\u2265``; of stderr Python does so itself."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def visible(cards: list[int]) -> str:
    """``CUDA_VISIBLE_DEVICES`` for processes that shall see these of the cards that this process sees."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = own.split(",") if own else [str(card) for card in range(max(cards) + 1)]
    return ",".join(names[card] for card in cards)


def start_several(processes: int, command: list[str]) -> None:
    """Claims the GPUs, which stay claimed as long as this process lives, and starts the processes."""
    import torch
    from torch.distributed.run import main as run_distributed

    from diffusion.runtime.device import wanted_device
    from diffusion.runtime.errors import UserError
    from diffusion.runtime.gpus import CLAIMED_BY_STARTER, claim_cards

    try:
        if wanted_device() == torch.device("cuda"):
            cards = claim_cards(processes)
            os.environ.update({"CUDA_VISIBLE_DEVICES": visible(cards), CLAIMED_BY_STARTER: "1"})
    except UserError as error:
        sys.exit(f"error: {error}")
    run_distributed(["--standalone", "--nproc_per_node", str(processes), "-m", *command])


def threads_environment() -> dict[str, str]:
    """How a job's threads wait for each other: variables of its environment, read when torch loads its OpenMP, libgomp.

    By default libgomp's threads spin for milliseconds at every barrier. That is right for a thread whose partner
    computes; where another process has the partner's core, it keeps both from computing (docs/scale.md, "Threads that
    wait"). Nothing, if the user has chosen.
    """
    if any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        return {}
    return {"GOMP_SPINCOUNT": "10000"}


def supervise(command: Sequence[str]) -> int:
    """Runs a command to its end.

    SIGTERM, SIGINT and SIGHUP are passed on to it. It gets SIGTERM, too, when the workflow's process has gone: its
    result would meet those of the next run.

    Returns:
        its exit status, 128 + n if the signal n ended it.
    """
    workflow = os.environ.get(WORKFLOW)
    began, kills_before = time.monotonic(), _kills_for_memory()
    environment = os.environ | threads_environment()
    job = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)
    passed_on: set[int] = set()

    def pass_on(number: int, _frame: object = None) -> None:
        # Ctrl-C reaches all processes of the terminal, the job among them.
        if number != signal.SIGINT:
            passed_on.add(number)
            job.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    told = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            status = job.wait(_LOOK_EVERY_S)
            break
        if workflow is not None and not told and not _is_alive(int(workflow)):
            told = True
            _say(f"the Snakemake that started this job (process {workflow}) has gone; the job is told to end (SIGTERM)")
            pass_on(signal.SIGTERM)
    if status >= 0:
        return status
    _say(_why_killed(-status, time.monotonic() - began, _kills_for_memory() - kills_before, passed_on))
    return 128 - status


def _why_killed(number: int, seconds: float, kills_for_memory: int, passed_on: set[int]) -> str:
    name = signal.Signals(number).name
    if kills_for_memory > 0:
        cause = "the system ended a process for want of memory meanwhile, most likely this one. Take smaller batches"
        cause += " (evaluation.batch_size, training.gradient_accumulation_steps), or fewer jobs at once (--cores)"
    elif number in passed_on:
        cause = "the signal came from outside: a person, a scheduler whose time was over, or Snakemake that ended"
    elif number == signal.SIGKILL:
        cause = "a person or a scheduler; or want of memory, which this machine does not tell of (see dmesg)"
    elif number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE):
        cause = "a fault in a library, a file that shrank while it was read, or a full disk"
    else:
        cause = "a person or a scheduler"
    return (
        f"the job was ended by {name} after {seconds:.0f} s: {cause}. The next run goes on where it was stored; "
        f"nothing that was delivered is lost."
    )


def _say(words: str) -> None:
    print(f"error: {words}", file=sys.stderr, flush=True)


def _kills_for_memory() -> int:
    """How many processes the kernel has ended for want of memory, as far as it tells."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_with_parent() -> None:
    # Should this process be killed, the job gets SIGTERM (PR_SET_PDEATHSIG of Linux).
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def main() -> None:
    """See the module."""
    if sys.argv[1] == _SEVERAL:
        start_several(int(sys.argv[2]), sys.argv[3:])
        return
    processes, command = int(sys.argv[1]), sys.argv[2:]
    several = ["suite.launch", _SEVERAL, str(processes)] if processes > 1 else []
    sys.exit(supervise([sys.executable, "-m", *several, *command]))


if __name__ == "__main__":
    main()
