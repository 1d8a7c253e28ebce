"""The one training loop: teacher, BOOT and baselines all run in it.

A method supplies the loss of one step. The loop supplies the optimiser, learning-rate schedule, clipping, EMA, mixed
precision, the log, the cost, checkpoints and resume. Every step draws its randomness from (seed, stage, step) alone,
so a run that was stopped anywhere and resumed ends with the same weights as one that was not: bit for bit on a CPU
at the same number of threads, and on a GPU with BOOT_DETERMINISTIC=1.
"""

import copy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from diffusion.runtime.errors import NonFiniteError, UserError
from diffusion.runtime.files import only_one, remove_leftovers, writing
from diffusion.runtime.gpus import gpu_lock
from diffusion.runtime.memory import out_of_memory
from diffusion.runtime.precision import float32_products, repeatable
from diffusion.training import sharding
from diffusion.training.average import MovingAverage
from diffusion.training.budget import fitting_steps
from diffusion.training.cost import Costs
from diffusion.training.delivered import mark_delivered
from diffusion.training.layout import lay_out, match_layout
from diffusion.training.oversized import too_large
from diffusion.training.randomness import seed_dropout, seed_of
from diffusion.training.settings import TrainingSettings
from diffusion.training.signals import Signals
from diffusion.training.state import StateFiles, use_threads
from diffusion.training.steps import LOG_COLUMNS, Loss, Snapshot, Stateful, Step, Trained

# What a state holds of the run itself.
_TOTALS = ("evaluations", "real_images_seen", "arithmetic", "steps", "steps_done", "log")
_LOGGED_POINTS = 200  # of a stage, for the training curves
_CHECK_EVERY_ON_GPU = 25  # steps between two looks at the loss: each look waits for the device


class TrainingRun(Costs):
    """One resumable training job of one or several stages; use as a context manager.

    The folder holds the state of an unfinished job until :mod:`diffusion.training.delivered` removes it. Its lock makes
    a second trainer on the same state refuse to start. ``key`` identifies what is being trained (configuration, seed,
    inputs): a state with another key is refused.

    Attributes:
        arithmetic: what the networks of each stage were computed in, in words: what "auto" came to.
        steps: the optimiser steps of each stage: those of the settings, or what a time budget came to.
        log: one row a logged step, with the keys :data:`LOG_COLUMNS`.
        watch: is handed ``log`` after every new row, of the main process; it must change nothing.
    """

    def __init__(
        self, folder: Path, key: str, seed: int, device: torch.device, checkpoint_seconds: float = 30.0
    ) -> None:
        super().__init__(folder, device)
        self.seed, self.checkpoint_seconds = seed, checkpoint_seconds
        self.arithmetic: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.log: list[dict[str, Any]] = []
        self.watch: Callable[[list[dict[str, Any]]], None] | None = None
        self._files = StateFiles(key, device, self.remedy)
        self._signals = Signals()

    def __enter__(self) -> "TrainingRun":
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.processes.is_main:
            self._cleanup.enter_context(only_one(self.folder / "lock", f"{self.folder} (a training's state)"))
            remove_leftovers(self.folder)
        if self.device.type == "cuda":
            self._cleanup.enter_context(gpu_lock(self.device))
            self._cleanup.enter_context(repeatable(self.device))
        self.start_clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def deliver(self, result: Path) -> None:
        """Notes that the result is stored (:func:`diffusion.training.delivered.mark_delivered`)."""
        if self.processes.is_main:
            mark_delivered(self.folder, result)

    # -- training -----------------------------------------------------------------------------------------------

    def fit(
        self,
        stage: str,
        network: nn.Module,
        loss: Loss,
        settings: TrainingSettings,
        real_images: bool = False,
        bf16: bool = False,
        after_step: Callable[[Step], None] | None = None,
        beside: Mapping[str, Stateful] | None = None,
        before_step: Callable[[Sequence[Step]], None] | None = None,
    ) -> Trained:
        """Trains ``network`` in place.

        Args:
            stage: name of the stage, unique within the run; a finished stage is loaded, not trained again.
            loss: the loss of one slice of a step's batch (``step.batch_size``), a scalar tensor; the step's loss is the
                mean over its slices.
            real_images: whether each step sees ``batch_size`` real pictures.
            bf16: whether precision "auto" means bfloat16 on a card that has it.
            after_step: called after each step of the optimiser, with the same :class:`Step` as the loss, whose average
                is up to date by then; for whatever else the method updates.
            beside: what the loss, ``before_step`` or ``after_step`` changes beside the network, under names; stored and
                restored with it.
            before_step: called before the losses of each step, with the :class:`Step` of every micro-batch that this
                process owns, in order; each goes on to the loss, so draws made here come first. For a second network
                that is trained in turn: its gradients are to be summed over micro-batches and processes.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing of that step is stored.
            CheckpointError: the stored state is truncated, or belongs to another run.
            DeviceMemoryError: a slice does not fit the device's memory; the message names a number of slices that does.
            UserError: the settings ask for what the device or the network does not have.
            SystemExit: SIGTERM came, which schedulers send some seconds before they kill, or Ctrl-C; the state is
                stored.
        """
        settings = settings.resolved(self.device, bf16)
        networks = [network, *(other for other in self._networks if other is not network)]
        lay_out(networks, settings, on=True)
        try:
            with float32_products(self.device, tf32=settings.precision != "fp32"), self._signals.noted():
                trained = self._fit(stage, network, loss, settings, real_images, after_step, beside or {}, before_step)
                networks.append(trained.network)  # the average is a copy of the network as it is now
                return trained
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise too_large(self, stage, network, loss, settings, before_step, error) from error
        finally:
            lay_out(networks, settings, on=False)

    def _fit(
        self,
        stage: str,
        network: nn.Module,
        loss: Loss,
        settings: TrainingSettings,
        real_images: bool,
        after_step: Callable[[Step], None] | None,
        beside: Mapping[str, Stateful],
        before_step: Callable[[Sequence[Step]], None] | None,
    ) -> Trained:
        """:meth:`fit` with resolved settings."""
        began = time.perf_counter()
        slices = settings.gradient_accumulation_steps
        if slices % self.processes.size:
            raise UserError(
                f"training.gradient_accumulation_steps: found {slices}, expected a multiple of the number of processes "
                f"({self.processes.size}), which share the slices."
            )
        own_slices = range(self.processes.rank, slices, self.processes.size)
        self.processes.wait()  # until the one that writes has stored what the others look for
        average = None
        if settings.ema_decay is not None:
            average = MovingAverage(network, settings.ema_decay)
        averaged = None if average is None else average.module.eval()
        result = network if averaged is None else averaged

        finished = self.folder / f"finished-{stage}.pt"
        if finished.exists():
            state = self._files.load(finished)
            with self._files.reading(finished):
                self._restore_totals(state)
                use_threads(state["threads"])
                result.load_state_dict(state["result"])
                settings = self._with_known_steps(stage, settings)
                return Trained(result.eval(), state["cost"], self._snapshots(stage, settings))

        plain = None
        if settings.shard and self.processes.size > 1:
            if beside:
                raise UserError(
                    f"training.shard: found true, expected false: beside the network this method changes "
                    f"{', '.join(beside)}, which is not spread over processes."
                )
            plain = copy.deepcopy(network).cpu()
            for module in (network, *([] if averaged is None else [averaged])):
                sharding.shard(module, self.processes)
        optimiser = settings.optimiser_of(network)
        checkpoint = self.folder / "checkpoint.pt"
        self.clear_gradients(network, settings)

        def save(step: int) -> None:
            self._save(
                checkpoint,
                sharding.whole(
                    {
                        "stage": stage,
                        "step": step,
                        "network": network.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "average": None if average is None else average.state_dict(),
                        "beside": {name: part.state_dict() for name, part in beside.items()},
                    }
                ),
            )

        def restore() -> int:
            """Loads what was stored of this stage; returns the step that it goes on with, 0 where nothing was."""
            if not checkpoint.exists():
                return 0
            state = self._files.load(checkpoint)
            if state["stage"] != stage:
                return 0
            with self._files.reading(checkpoint):
                self._restore_totals(state)
                sharding.load_whole(network, state["network"])
                sharding.load_whole_optimiser(optimiser, state["optimiser"])
                if average is not None:
                    sharding.load_whole(average, state["average"])
                for name, part in beside.items():
                    part.load_state_dict(state["beside"][name])
                for part in (optimiser, *beside.values()):
                    if isinstance(part, torch.optim.Optimizer):
                        match_layout(part)
                use_threads(state["threads"])
                first = int(state["step"])
            return first

        alone = self.processes.size == 1

        def take(step: int, settings: TrainingSettings, told: bool) -> tuple[torch.Tensor, torch.Tensor, Any]:
            """One step of the optimiser: the loss, the norm of its gradient, and whether a process was told to stop."""
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step)
            value = torch.zeros((), device=self.device)
            # Several must leave after the same step: they tell one another with the gradients.
            tellings = [] if alone else [torch.full((), float(told), device=self.device)]
            own_steps = [
                Step(self.generator(stage, step, number), step / settings.num_steps, settings.slice_size, averaged)
                for number in own_slices
            ]
            if before_step is not None:
                with self.autocast(settings):
                    before_step(own_steps)
            for this in own_steps:
                seed_dropout(this.generator)  # of each micro-batch anew
                with self.autocast(settings):
                    share = loss(this) / slices
                share.backward()
                value += share.detach()
            if plain is None:
                self.processes.sum_gradients(network, value, *tellings)
            else:
                self.processes.sum([value, *tellings])  # the gradients are summed already
            norm = sharding.whole(nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip))
            optimiser.step()
            self.clear_gradients(network, settings)
            if average is not None:
                average.update_parameters(network)
            if after_step is not None:
                with self.autocast(settings):
                    after_step(this)
            return value, norm, told if alone else tellings[0]

        first = restore()
        if settings.minutes is not None and stage not in self.steps:
            network.train()
            save(0)  # what the timed steps change is taken back
            self.processes.wait()  # until it is stored
            steps = fitting_steps(
                self, self._signals, stage, settings, lambda step, long: take(step, long, told=False), began
            )
            restore()
            self.steps[stage] = steps
            save(0)
        settings = self._with_known_steps(stage, settings)
        if first:
            print(f"{self.folder}: resuming stage {stage} at step {first} of {settings.steps}", file=sys.stderr)
        # An interrupted run may go on on another device.
        known = self.arithmetic[stage].split("; then ") if stage in self.arithmetic else []
        arithmetic = settings.arithmetic + ", deterministic" * torch.are_deterministic_algorithms_enabled()
        if known[-1:] != [arithmetic]:
            self.arithmetic[stage] = "; then ".join([*known, arithmetic])

        steps = settings.num_steps
        log_every = max(1, steps // _LOGGED_POINTS)
        check_every = _CHECK_EVERY_ON_GPU if self.device.type == "cuda" else 1
        kept_at = set(settings.snapshot_steps())
        unread: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = []
        first_bad = torch.full((), -1, device=self.device)
        good_step = first  # the step of the last checkpoint
        saved_at = noted_at = time.perf_counter()
        network.train()
        for step in (bar := tqdm(range(first, steps), stage, total=steps, initial=first, mininterval=5, unit="step")):
            told = bool(self._signals.came)
            value, norm, all_told = take(step, settings, told)
            first_bad = torch.where(
                (first_bad < 0) & ~torch.isfinite(value + norm), torch.full_like(first_bad, step), first_bad
            )
            last = step + 1 == steps
            looks = last or (alone and told) or step % check_every == check_every - 1
            if looks and (bad := int(first_bad)) >= 0:
                self.note_seconds()
                where = f"{checkpoint} (step {good_step})" if good_step else "none yet"
                raise NonFiniteError(
                    f"stage {stage}: the loss or its gradient became non-finite at step {bad}, learning rate "
                    f"{settings.rate(bad):.3g}; last good checkpoint: {where}. Lower the learning rate or the "
                    f"precision's risk (training.precision: fp32)."
                )
            self.steps_done += 1
            if real_images:
                self.real_images_seen += settings.batch_size
            if last or step % log_every == 0:
                self.tick()
                seen = {"learning_rate": settings.rate(step), "wall_clock_s": round(self.wall_clock_s, 3)}
                unread.append(({"stage": stage, "step": step + 1, **seen}, value.clone(), norm.clone()))
            # Numbers are read where the host waits for the device anyway.
            if unread and looks:
                for row, loss_value, norm_value in unread:
                    values = {"loss": float(loss_value), "gradient_norm": float(norm_value)}
                    self.log.append({column: (row | values)[column] for column in LOG_COLUMNS})
                    if self.watch is not None and self.processes.is_main:
                        self.watch(self.log)
                unread.clear()
                bar.set_postfix(loss=f"{self.log[-1]['loss']:.3g}", refresh=False)
            if step + 1 in kept_at:
                content = {"result": sharding.whole(result.state_dict()), "cost": self.cost()}
                self._save(self._snapshot_file(stage, step + 1), content)
            now = time.perf_counter()
            if now - noted_at > min(5.0, self.checkpoint_seconds):
                self.note_seconds()
                noted_at = now
            # A GPU's state is only stored right after a look at the loss, so that it is never a broken one.
            leaves = looks and not last and bool(all_told)
            due = now - saved_at > self.checkpoint_seconds
            if leaves or (looks and not last and self.processes.as_main_says(due)):
                save(step + 1)
                good_step, saved_at = step + 1, time.perf_counter()
            if leaves:
                self.processes.wait()  # until the state is stored
                name = signal.Signals(self._signals.exit_code - 128).name
                print(f"{self.folder}: {name}; stage {stage} is stored at step {step + 1}", file=sys.stderr)
                sys.exit(self._signals.exit_code)
        network.zero_grad(set_to_none=True)
        cost = self.cost()
        weights = sharding.whole(result.state_dict())
        if plain is not None:
            result = plain.to(self.device)
            result.load_state_dict(weights)
        self._save(finished, {"stage": stage, "result": weights, "cost": cost})
        if self.processes.is_main:
            checkpoint.unlink(missing_ok=True)
        self.processes.wait()
        return Trained(result.eval(), cost, self._snapshots(stage, settings))

    def _with_known_steps(self, stage: str, settings: TrainingSettings) -> TrainingSettings:
        """The settings with the stage's number of steps in place of a time budget."""
        steps = self.steps.setdefault(stage, settings.steps or 0)
        return settings.model_copy(update={"steps": steps, "minutes": None})

    def clear_gradients(self, network: nn.Module, settings: TrainingSettings) -> None:
        """Makes a network ready for the gradients of a step's micro-batches."""
        # Those that a CUDA graph makes are overwritten by its next replay: several are added up elsewhere.
        several = settings.gradient_accumulation_steps > self.processes.size
        adds_up = settings.compile == "cudagraphs" and several
        for weight in network.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight) if adds_up else None

    def autocast(self, settings: TrainingSettings) -> torch.autocast:
        """The precision of the settings, around what computes a loss."""
        # Uncached: some versions of torch lose the gradient of weights that were first cast where there was none.
        bf16 = settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)

    def _snapshot_file(self, stage: str, step: int) -> Path:
        return self.folder / f"snapshot-{stage}-{step}.pt"

    def _snapshots(self, stage: str, settings: TrainingSettings) -> tuple[Snapshot, ...]:
        files = {step: self._snapshot_file(stage, step) for step in settings.snapshot_steps()}
        return tuple(Snapshot(step, self._files.load(file)["cost"], file) for step, file in files.items())

    def generator(self, stage: str, step: int, number: int = 0) -> torch.Generator:
        """The random generator of one micro-batch of a step."""
        text = f"{self.seed}/{stage}/{step}" + (f"/{number}" if number else "")
        return torch.Generator(self.device).manual_seed(seed_of(text))

    def seed_initialisation(self, stream: str) -> None:
        """Seeds the global generator, from which torch draws the weights of a new network.

        Args:
            stream: a name. Two networks of one architecture start apart at the same seed if their streams differ.
        """
        torch.manual_seed(seed_of(f"{self.seed}/{stream}/0"))

    # -- the state ----------------------------------------------------------------------------------------------

    def _save(self, path: Path, content: dict[str, Any]) -> None:
        self.note_seconds()
        if self.processes.is_main:
            self._files.write(path, content | {name: copy.deepcopy(getattr(self, name)) for name in _TOTALS})

    def _restore_totals(self, state: dict[str, Any]) -> None:
        for name in _TOTALS:
            setattr(self, name, state[name])
