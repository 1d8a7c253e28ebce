"""One stage of a training: what is trained, how a step of it is taken, and what is stored of it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffusion.runtime.errors import UserError
from diffusion.training import sharding
from diffusion.training.average import MovingAverage
from diffusion.training.layout import match_layout
from diffusion.training.randomness import seed_dropout
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Loss, Stateful, Step
from diffusion.training.trained import TrainedWeights, frozen_weights

if TYPE_CHECKING:
    from diffusion.training.loop import TrainingRun


@dataclass(eq=False)
class Stage:
    """A network in training, its optimiser and its average; the fields are the arguments of :meth:`TrainingRun.fit`.

    Attributes:
        settings: resolved; with the number of steps in place of a time budget, once it is known.
        result: the network to keep: the average of the trained one's weights where there is one, or itself.

    Raises:
        UserError: the processes cannot share the micro-batches.
    """

    run: "TrainingRun"
    name: str
    network: nn.Module
    loss: Loss
    settings: TrainingSettings
    after_step: Callable[[Step], None] | None
    beside: Mapping[str, Stateful]
    before_step: Callable[[Sequence[Step]], None] | None

    def __post_init__(self) -> None:
        slices, processes = self.settings.gradient_accumulation_steps, self.run.processes.size
        if slices % processes:
            raise UserError(
                f"training.gradient_accumulation_steps: found {slices}, expected a multiple of the number of processes "
                f"({processes}), which share the slices."
            )
        decay = self.settings.ema_decay
        self._average = MovingAverage(self.network, decay) if decay is not None else None
        self.result: nn.Module = self.network if self._average is None else self._average.module.eval()
        frozen = frozen_weights(self.network)
        self._trained, self._kept = TrainedWeights(self.network, frozen), TrainedWeights(self.result, frozen)
        self._averaged = None if self._average is None else TrainedWeights(self._average, frozen)
        self._stored: dict[str, Any] = {
            name: TrainedWeights(part, frozen) if isinstance(part, nn.Module) else part
            for name, part in self.beside.items()
        }
        self._plain: nn.Module | None = None  # of a network whose weights are spread, one that has them whole

    def prepare(self) -> None:
        """Spreads the weights over the processes, where the settings say so, and makes the optimiser.

        Raises:
            UserError: what the method changes beside the network cannot be spread.
        """
        if self.settings.shard and self.run.processes.size > 1:
            if self.beside:
                raise UserError(
                    f"training.shard: found true, expected false: beside the network this method changes "
                    f"{', '.join(self.beside)}, which is not spread over processes."
                )
            self._plain = copy.deepcopy(self.network).cpu()
            sharding.shard(self.network, self.run.processes)
            if self.result is not self.network:
                sharding.shard(self.result, self.run.processes)
        self.optimiser = self.settings.optimiser_of(self.network)
        self.run.clear_gradients(self.network, self.settings)

    def take(
        self, step: int, settings: TrainingSettings, told: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | bool]:
        """One step of the optimiser.

        Args:
            settings: this stage's, with the number of steps that the learning rate follows.
            told: whether this process was told to stop.

        Returns:
            The loss, the norm of its gradient, and whether any process was told to stop.
        """
        run = self.run
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(step)
        slices, average = settings.gradient_accumulation_steps, None if self._average is None else self.result
        own_steps = [
            Step(run.generator(self.name, step, number), step / settings.num_steps, settings.slice_size, average)
            for number in range(run.processes.rank, slices, run.processes.size)
        ]
        if self.before_step is not None:
            with settings.autocast(run.device):
                self.before_step(own_steps)
        value = torch.zeros((), device=run.device)
        for this in own_steps:
            seed_dropout(this.generator)  # of each micro-batch anew
            with settings.autocast(run.device):
                share = self.loss(this) / slices
            share.backward()
            value += share.detach()
        # Several processes must leave after the same step: they tell one another with the gradients.
        tellings = [torch.full((), float(told), device=run.device)] if run.processes.size > 1 else []
        if self._plain is None:
            run.processes.sum_gradients(self.network, value, *tellings)
        else:
            run.processes.sum([value, *tellings])  # the gradients are summed already
        norm = sharding.whole(nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip))
        self.optimiser.step()
        run.clear_gradients(self.network, settings)
        if self._average is not None:
            self._average.update_parameters(self.network)
        if self.after_step is not None:
            with settings.autocast(run.device):
                self.after_step(this)
        return value, norm, tellings[0] if tellings else told

    def state(self, step: int) -> dict[str, Any]:
        """What :meth:`load` wants to go on with ``step``; all processes call it together."""
        state = {
            "stage": self.name,
            "step": step,
            "network": self._trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self._averaged is None else self._averaged.state_dict(),
            "beside": {name: part.state_dict() for name, part in self._stored.items()},
        }
        whole: dict[str, Any] = sharding.whole(state)
        return whole

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state` gave, of however many processes."""
        self._trained.load_state_dict(state["network"])
        sharding.load_whole_optimiser(self.optimiser, state["optimiser"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["average"])
        for name, part in self._stored.items():
            part.load_state_dict(state["beside"][name])
        for part in (self.optimiser, *self.beside.values()):
            if isinstance(part, torch.optim.Optimizer):
                match_layout(part)

    def weights(self) -> dict[str, torch.Tensor]:
        """The state of :attr:`result` but for frozen weights, whole; all processes call it together."""
        weights: dict[str, torch.Tensor] = sharding.whole(self._kept.state_dict())
        return weights

    def take_over(self, weights: dict[str, torch.Tensor]) -> None:
        """Puts what :meth:`weights` gave into :attr:`result`."""
        self._kept.load_state_dict(weights)

    def finish(self) -> dict[str, torch.Tensor]:
        """Lets the gradients go and makes :attr:`result` whole; returns its weights."""
        self.network.zero_grad(set_to_none=True)
        weights = self.weights()
        if self._plain is not None:
            self.result = self._plain.to(self.run.device)
            self.result.load_state_dict(weights)
        return weights
