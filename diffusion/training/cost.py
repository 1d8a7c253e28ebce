"""What a training costs: evaluations, images, steps and seconds, counted over interruptions."""

import math
import time
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.runtime.errors import CheckpointError
from diffusion.runtime.files import atomic_path
from diffusion.runtime.processes import join


class _EvaluationCounter:
    """Forward hook that adds the batch size to a run's ``evaluations``."""

    def __init__(self, run: "Costs") -> None:
        self.run = run

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.run.counting:
            self.run.evaluations += len(arguments[0]) * self.run.processes.size  # all have equal shares

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_EvaluationCounter":
        return self  # the copy of a counted network is counted by the same run


class Costs:
    """A job's account.

    Attributes:
        evaluations: pictures that went forward through a counted network, each once a pass.
        real_images_seen: pictures of the data set that were trained on, with repetition.
        wall_clock_s: training time, accumulated over interruptions.
        cpu_s: seconds of all threads of this process in that time; of several processes each knows its own.
        steps_done: optimiser steps of all stages.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device, self.processes = folder, device, join(device)
        self.evaluations = 0
        self.counting = True  # off inside a compiled step, which would be compiled anew for every count
        self.real_images_seen = 0
        self.wall_clock_s = self.cpu_s = 0.0
        self.steps_done = 0
        self._networks: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # the counted ones, as long as they are used
        self.compiles = True  # off while memory is probed
        self._cleanup = ExitStack()
        self._clock: tuple[float, float] | None = None
        self._spent_file = folder / "seconds"

    @property
    def remedy(self) -> str:
        """What to do about a state that cannot be used."""
        return f"Delete {self.folder} and run Snakemake again: it trains from the beginning."

    def start_clock(self) -> None:
        """The seconds of a stopped attempt that came after its last checkpoint were spent all the same."""
        if self._spent_file.exists():
            try:
                spent = tuple(map(float, self._spent_file.read_text(encoding="utf-8").split()))
                self.wall_clock_s, self.cpu_s = spent
                if not all(0 <= seconds < math.inf for seconds in spent):
                    raise ValueError
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self._spent_file}: found no numbers of seconds. {self.remedy}") from error
        self._clock = time.perf_counter(), time.process_time()

    def count(self, network: nn.Module) -> None:
        """Counts the pictures that pass through ``network`` from now on, by a hook on its forward call.

        All networks that a loss evaluates are to be counted: those, and the trained one, are laid out as the settings
        say for as long as they train.
        """
        self._networks.add(network)
        # A student is a copy of its teacher, hooks included, and may be the next stage's teacher.
        if any(isinstance(hook, _EvaluationCounter) for hook in network._forward_pre_hooks.values()):
            return
        handle = network.register_forward_pre_hook(_EvaluationCounter(self))
        self._cleanup.callback(handle.remove)

    def cost(self) -> dict[str, float]:
        """The cost so far: steps of the optimiser, network_evaluations, real_images_seen, wall_clock_s, cpu_s, gpu_s.

        The seconds have all that was spent, the timed steps of a time budget included; the rest counts what the result
        was made of. ``cpu_s`` is of this process. ``gpu_s`` is the wall-clock times the GPUs that the run holds, one a
        process, whether they are busy or not; 0 on a CPU.
        """
        self.tick()
        return {
            "steps": self.steps_done,
            "network_evaluations": self.evaluations,
            "real_images_seen": self.real_images_seen,
            "wall_clock_s": round(self.wall_clock_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "gpu_s": round(self.wall_clock_s * self.processes.size, 3) if self.device.type == "cuda" else 0,
        }

    def tick(self) -> None:
        """Takes note of the seconds since the last note."""
        now = time.perf_counter(), time.process_time()
        assert self._clock is not None, "use the run as a context manager"
        self.wall_clock_s += now[0] - self._clock[0]
        self.cpu_s += now[1] - self._clock[1]
        self._clock = now

    def note_seconds(self) -> None:
        """Stores the time spent so far, which outlives the process."""
        self.tick()
        if not self.processes.is_main:
            return
        with atomic_path(self._spent_file) as temporary:
            temporary.write_text(f"{self.wall_clock_s:.3f} {self.cpu_s:.3f}", encoding="utf-8")
