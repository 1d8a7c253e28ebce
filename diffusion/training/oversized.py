"""What to say of a micro-batch that does not fit: which one does, tried."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from diffusion.runtime.errors import DeviceMemoryError, first_line
from diffusion.runtime.memory import largest_fitting, memory_of
from diffusion.runtime.processes import ALONE
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Loss, Step
from diffusion.training.trained import with_frozen_shared

if TYPE_CHECKING:
    from diffusion.training.loop import TrainingRun


def too_large(
    run: "TrainingRun",
    stage: str,
    network: nn.Module,
    loss: Loss,
    settings: TrainingSettings,
    before_step: Callable[[Sequence[Step]], None] | None,
    error: BaseException,
) -> DeviceMemoryError:
    """What to say after ``error``: smaller slices have been tried, until one fitted the device's memory."""
    batch, slices = settings.batch_size, settings.gradient_accumulation_steps
    found = f"stage {stage}: {settings.slice_size} pictures at once are more than {memory_of(run.device)} can take. "
    if settings.shard and run.processes.size > 1:  # a process cannot try alone
        return DeviceMemoryError(
            f"{found}training.gradient_accumulation_steps: found {slices}, expected a larger divisor of {batch} or "
            "more processes."
        )
    others = range(slices + 1, batch + 1)
    sizes = [batch // n for n in others if batch % n == 0 and n % run.processes.size == 0]
    averages: list[nn.Module] = []

    def attempt(size: int) -> None:
        network.zero_grad(set_to_none=True)
        if settings.ema_decay is not None and not averages:
            averages.append(with_frozen_shared(network).requires_grad_(False).eval())
        # In place of the optimiser's two moments, which have gone with the loop.
        _moments = [torch.empty_like(p) for p in network.parameters() if p.requires_grad for _ in range(2)]
        # Two: from the second slice on there is a gradient beside the activations.
        steps = [Step(run.generator(stage, 0, number), 0.0, size, *averages) for number in range(2)]
        if before_step is not None:
            with settings.autocast(run.device):
                before_step(steps)
        for step in steps:
            with settings.autocast(run.device):
                value = loss(step)
            value.backward()

    run.compiles = False  # takes no less memory, and no minutes
    run.processes = ALONE  # the others wait in the step that failed, and take no part in these
    fitting = largest_fitting(error, attempt, sizes, run.device)
    if fitting is None:
        expected = (
            "Not one fits: another program may hold the memory (nvidia-smi), or the network is too large. torch "
            f"says: {first_line(error)}."
        )
    else:
        expected = (
            f"training.gradient_accumulation_steps: found {slices}, expected {batch // fitting.size}, in slices of "
            f"{fitting}; the batch of a step stays {batch}."
        )
    if not settings.activation_checkpointing:
        expected += " training.activation_checkpointing: true takes less memory and more time."
    return DeviceMemoryError(found + expected)
