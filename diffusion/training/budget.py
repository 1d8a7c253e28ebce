"""How a time budget becomes a number of steps."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from diffusion.runtime.errors import UserError
from diffusion.training.cost import Costs
from diffusion.training.settings import TrainingSettings
from diffusion.training.signals import Signals

# The first few are not timed (one compiles, the next records CUDA graphs), then at least so many are, for at least that
# share of the budget. The limits are the shares of it after which a slow device is timed by fewer.
_UNTIMED_STEPS, _TIMED_STEPS = 5, 10
_TIMED_SHARE, _UNTIMED_LIMIT, _TIMED_LIMIT = 0.03, 0.15, 0.25


def fitting_steps(
    run: Costs,
    signals: Signals,
    stage: str,
    settings: TrainingSettings,
    take: Callable[[int, TrainingSettings], Any],
    began: float,
) -> int:
    """How many steps fit into the time budget, by the rate of the first ones; all processes get the same number.

    Args:
        take: takes a step of the number, at settings whose end is far away.
        began: when the stage did, by ``time.perf_counter``.

    Raises:
        UserError: no step fits, or no more than those of the warm-up.
    """
    assert settings.minutes is not None
    budget, far = 60 * settings.minutes, settings.model_copy(update={"steps": settings.steps or sys.maxsize})
    on_gpu = run.device.type == "cuda"

    def spent() -> float:
        if on_gpu:
            torch.cuda.synchronize(run.device)
        return time.perf_counter() - began

    def over(done: bool) -> bool:
        if run.processes.as_main_says(bool(signals.came)):
            signals.leave()  # nothing is lost that a later attempt could use
        return run.processes.as_main_says(done)

    step = 0
    while step == 0 or not over(step >= _UNTIMED_STEPS or spent() > _UNTIMED_LIMIT * budget):
        take(step, far)
        step += 1
    start = now = spent()
    timed = 0
    while timed == 0 or not over(
        now > _TIMED_LIMIT * budget or (timed >= _TIMED_STEPS and now - start >= _TIMED_SHARE * budget)
    ):
        # A GPU is waited for rarely: it must not run dry, as it would not in training.
        for _ in range(_TIMED_STEPS if on_gpu else 1):
            take(step + timed, far)
            timed += 1
        now = spent()
    rate = (now - start) / timed
    fitting = int(run.processes.as_main_says((budget - now) / rate))
    key, expected = max(((key, n) for key, (n, _) in settings.fewest_steps().items()), key=lambda need: need[1])
    if fitting < expected:
        raise UserError(
            f"stage {stage}: training.minutes: found {settings.minutes:.3g}, expected more: {max(fitting, 0)} "
            f"steps of {rate:.3g} s fit beside the {now:.3g} s that compiling and timing took, and at least "
            f"{expected} are needed (training.{key})."
        )
    print(f"stage {stage}: {fitting} steps of {rate:.3g} s fit into {settings.minutes:.3g} min", file=sys.stderr)
    return min(fitting, settings.steps or fitting)
