"""Compiled steps, whose evaluations stay counted."""

from collections.abc import Callable
from typing import Any

import torch

from diffusion.runtime.errors import UserError
from diffusion.training.cost import Costs
from diffusion.training.settings import TrainingSettings


def compile_counted(
    run: Costs, function: Callable[..., torch.Tensor], settings: TrainingSettings
) -> Callable[..., torch.Tensor]:
    """``function`` of tensors alone, compiled as ``settings.compile`` says; ``run`` goes on counting its evaluations.

    Raises:
        UserError: CUDA graphs without a CUDA device.
    """
    if settings.compile == "off":
        return function
    if settings.compile == "cudagraphs" and run.device.type != "cuda":
        raise UserError(
            f"training.compile: found 'cudagraphs' on the device {run.device}, expected 'off' or 'default': CUDA "
            f"graphs need a CUDA device."
        )
    mode = "reduce-overhead" if settings.compile == "cudagraphs" else "default"
    # Stages share their code, and dynamo compiles one piece of code a few times only; earlier stages are done.
    torch._dynamo.reset()
    fast = torch.compile(function, mode=mode, dynamic=False)
    per_call: int | None = None

    def step(*arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal per_call
        if not run.compiles:
            return function(*arguments, **keywords)
        if per_call is None:
            before = run.evaluations
            devices = [run.device] if run.device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices=devices):  # dropout's draws are the step's
                function(*arguments, **keywords)  # only counted: a pass of every network, once a process
            per_call, run.evaluations = run.evaluations - before, before
        run.counting = False
        try:
            value: torch.Tensor = fast(*arguments, **keywords)
        finally:
            run.counting = True
        run.evaluations += per_call
        # The next replay of a graph overwrites its output.
        return value.clone() if settings.compile == "cudagraphs" else value

    return step
