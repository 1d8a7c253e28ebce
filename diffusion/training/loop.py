"""The one training loop: teacher, BOOT and baselines all run in it.

A method supplies the loss of one step. The loop supplies the optimiser, learning-rate schedule, clipping, EMA, mixed
precision, the log, the cost, checkpoints and resume. Every step draws its randomness from (seed, stage, step) alone,
so a run that was stopped anywhere and resumed ends with the same weights as one that was not: bit for bit on a CPU
at the same number of threads, and on a GPU with BOOT_DETERMINISTIC=1.
"""

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from diffusion.runtime.errors import NonFiniteError
from diffusion.runtime.files import only_one, remove_leftovers, writing
from diffusion.runtime.gpus import gpu_lock
from diffusion.runtime.memory import out_of_memory
from diffusion.runtime.precision import float32_products, repeatable
from diffusion.training.budget import fitting_steps
from diffusion.training.compiled import compile_counted
from diffusion.training.cost import Costs
from diffusion.training.delivered import mark_delivered
from diffusion.training.layout import lay_out
from diffusion.training.oversized import too_large
from diffusion.training.randomness import seed_of
from diffusion.training.readings import Readings
from diffusion.training.settings import TrainingSettings
from diffusion.training.signals import Signals
from diffusion.training.stage import Stage
from diffusion.training.state import StateFiles, use_threads
from diffusion.training.steps import Loss, Snapshot, Stateful, Step, Trained

# What a state holds of the run itself.
_TOTALS = ("evaluations", "real_images_seen", "arithmetic", "steps", "steps_done", "log")
_LOGGED_POINTS = 200  # of a stage, for the training curves
_SHARE_OF_SAVING = 0.05  # of the time, at most: large states are stored more seldom
_CHECK_EVERY_ON_GPU = 25  # steps between two looks at the loss: each look waits for the device


class TrainingRun(Costs):
    """One resumable training job of one or several stages; use as a context manager.

    The folder holds the state of an unfinished job until :mod:`diffusion.training.delivered` removes it. Its lock makes
    a second trainer on the same state refuse to start. ``key`` identifies what is being trained (configuration, seed,
    inputs): a state with another key is refused. It is stored every ``checkpoint_seconds``, but with a large state so
    seldom that this takes a twentieth of the time at most; with 0 after every step.

    Attributes:
        arithmetic: what the networks of each stage were computed in, in words: what "auto" came to.
        steps: the optimiser steps of each stage: those of the settings, or what a time budget came to.
        log: one row a logged step, with the keys :data:`diffusion.training.steps.LOG_COLUMNS`.
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
        self._files = StateFiles(folder, key, device, self.remedy)
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

    def __exit__(self, *_error: object) -> None:
        self._cleanup.close()

    def deliver(self, result: Path) -> None:
        """Notes that the result is stored (:func:`diffusion.training.delivered.mark_delivered`)."""
        if self.processes.is_main:
            mark_delivered(self.folder, result)

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
            before_step: called before the losses of each step, with the :class:`Step` of each of this process's
                micro-batches, in order; draws made here come before those of the loss. For a second network that is
                trained in turn: its gradients are to be summed over micro-batches and processes.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing of that step is stored.
            CheckpointError: the stored state is truncated, or belongs to another run.
            DeviceMemoryError: a slice does not fit the device's memory; the message names a number of slices that does.
            UserError: the settings ask for what the device or the network does not have.
            SystemExit: SIGTERM, which schedulers send some seconds before they kill, or Ctrl-C; the state is stored.
        """
        settings = settings.resolved(self.device, bf16)
        networks = [network, *(other for other in self._networks if other is not network)]
        lay_out(networks, settings, on=True)
        try:
            with float32_products(self.device, tf32=settings.precision != "fp32"), self._signals.noted():
                # What is handed over is let go when an error leaves it: the memory is needed to try what fits.
                trained = self._fit(
                    Stage(self, stage, network, loss, settings, after_step, beside or {}, before_step), real_images
                )
                networks.append(trained.network)  # the average is a copy of the network as it is now
                return trained
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise too_large(self, stage, network, loss, settings, before_step, error) from error
        finally:
            lay_out(networks, settings, on=False)

    def _fit(self, stage: Stage, real_images: bool) -> Trained:
        """The stage to its end: from its beginning, or from where it was stopped."""
        began = time.perf_counter()
        self.processes.wait()  # until the one that writes has stored what the others look for
        if self._files.finished(stage.name).exists():
            return self._load_finished(stage)
        stage.prepare()
        first = self._restore(stage)
        if stage.settings.minutes is not None and stage.name not in self.steps:
            self._find_steps(stage, began)
        self._set_steps(stage)
        self._note_arithmetic(stage)
        settings, steps = stage.settings, stage.settings.num_steps
        if first:
            print(f"{self.folder}: resuming stage {stage.name} at step {first} of {steps}", file=sys.stderr)

        log_every, kept_at = max(1, steps // _LOGGED_POINTS), settings.snapshot_steps()
        check_every = _CHECK_EVERY_ON_GPU if self.device.type == "cuda" else 1
        readings = Readings(self.device)
        good_step = first  # the step of the last checkpoint
        saved_at = noted_at = time.perf_counter()
        saving = 0.0  # seconds that the last checkpoint took
        bar = tqdm(range(first, steps), stage.name, total=steps, initial=first, mininterval=5, unit="step")
        stage.network.train()
        for step in bar:
            told = bool(self._signals.came)
            loss, norm, all_told = stage.take(step, settings, told)
            self.steps_done += 1
            self.real_images_seen += settings.batch_size if real_images else 0
            last = step + 1 == steps
            readings.note(step, loss, norm)
            if last or step % log_every == 0:
                self.tick()
                seen = {"learning_rate": settings.rate(step), "wall_clock_s": round(self.wall_clock_s, 3)}
                readings.keep({"stage": stage.name, "step": step + 1, **seen}, loss, norm)
            # Numbers are read where the host waits for the device anyway.
            looks = last or (told and self.processes.size == 1) or step % check_every == check_every - 1
            if looks:
                if (bad := readings.first_bad()) is not None:
                    raise self._non_finite(stage, bad, good_step)
                for row in readings.kept_rows():
                    self.log.append(row)
                    if self.watch is not None and self.processes.is_main:
                        self.watch(self.log)
                    bar.set_postfix(loss=f"{row['loss']:.3g}", refresh=False)
            if step + 1 in kept_at:
                self._save(self._files.snapshot(stage.name, step + 1), {"result": stage.weights(), "cost": self.cost()})
            now = time.perf_counter()
            if now - noted_at > min(5.0, self.checkpoint_seconds):
                self.note_seconds()
                noted_at = now
            # A GPU's state is only stored right after a look at the loss, so that it is never a broken one.
            leaves = looks and not last and bool(all_told)
            seldom = saving / _SHARE_OF_SAVING if self.checkpoint_seconds else 0.0
            due = now - saved_at > max(self.checkpoint_seconds, seldom)
            if leaves or (looks and not last and self.processes.as_main_says(due)):
                self._save(self._files.checkpoint, stage.state(step + 1))
                good_step, saved_at = step + 1, time.perf_counter()
                saving = saved_at - now
            if leaves:
                self.processes.wait()  # until the state is stored
                self._signals.leave(self.folder, f"stage {stage.name} is stored at step {step + 1}")
        cost, weights = self.cost(), stage.finish()
        self._save(self._files.finished(stage.name), {"stage": stage.name, "result": weights, "cost": cost})
        if self.processes.is_main:
            self._files.checkpoint.unlink(missing_ok=True)
        self.processes.wait()
        return Trained(stage.result.eval(), cost, self._snapshots(stage))

    def _find_steps(self, stage: Stage, began: float) -> None:
        """How many steps fit into the time budget, found by steps that are taken back."""
        stage.network.train()
        self._save(self._files.checkpoint, stage.state(0))
        self.processes.wait()  # until it is stored
        steps = fitting_steps(self, self._signals, stage.name, stage.settings, stage.take, began)
        self._restore(stage)
        self.steps[stage.name] = steps
        self._save(self._files.checkpoint, stage.state(0))

    def _set_steps(self, stage: Stage) -> None:
        """Puts the stage's number of steps in place of a time budget."""
        steps = self.steps.setdefault(stage.name, stage.settings.steps or 0)
        stage.settings = stage.settings.model_copy(update={"steps": steps, "minutes": None})

    def _note_arithmetic(self, stage: Stage) -> None:
        # An interrupted run may go on on another device.
        known = self.arithmetic[stage.name].split("; then ") if stage.name in self.arithmetic else []
        arithmetic = stage.settings.arithmetic + ", deterministic" * torch.are_deterministic_algorithms_enabled()
        if known[-1:] != [arithmetic]:
            self.arithmetic[stage.name] = "; then ".join([*known, arithmetic])

    def _non_finite(self, stage: Stage, bad: int, good_step: int) -> NonFiniteError:
        self.note_seconds()
        where = f"{self._files.checkpoint} (step {good_step})" if good_step else "none yet"
        return NonFiniteError(
            f"stage {stage.name}: the loss or its gradient became non-finite at step {bad}, learning rate "
            f"{stage.settings.rate(bad):.3g}; last good checkpoint: {where}. Lower the learning rate or the "
            f"precision's risk (training.precision: fp32)."
        )

    def compiled(
        self, function: Callable[..., torch.Tensor], settings: TrainingSettings
    ) -> Callable[..., torch.Tensor]:
        """:func:`diffusion.training.compiled.compile_counted` for this run."""
        return compile_counted(self, function, settings)

    def clear_gradients(self, network: nn.Module, settings: TrainingSettings) -> None:
        """Makes a network ready for the gradients of a step's micro-batches."""
        # Those that a CUDA graph makes are overwritten by its next replay: several are added up elsewhere.
        several = settings.gradient_accumulation_steps > self.processes.size
        adds_up = settings.compile == "cudagraphs" and several
        for weight in network.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight) if adds_up else None

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

    def _save(self, path: Path, content: dict[str, Any]) -> None:
        self.note_seconds()
        if self.processes.is_main:
            self._files.write(path, content | {name: copy.deepcopy(getattr(self, name)) for name in _TOTALS})

    def _take_over(self, state: dict[str, Any]) -> None:
        for name in _TOTALS:
            setattr(self, name, state[name])
        use_threads(state["threads"])

    def _restore(self, stage: Stage) -> int:
        """Loads what was stored of the stage; returns the step that it goes on with, 0 where nothing was."""
        first = 0
        if self._files.checkpoint.exists():
            with self._files.reading(self._files.checkpoint) as state:
                if state["stage"] == stage.name:
                    self._take_over(state)
                    stage.load(state)
                    first = int(state["step"])
        return first

    def _load_finished(self, stage: Stage) -> Trained:
        """The stage as an earlier attempt has trained it."""
        with self._files.reading(self._files.finished(stage.name)) as state:
            self._take_over(state)
            self._set_steps(stage)
            stage.take_over(state["result"])
        return Trained(stage.result.eval(), state["cost"], self._snapshots(stage))

    def _snapshots(self, stage: Stage) -> tuple[Snapshot, ...]:
        files = {step: self._files.snapshot(stage.name, step) for step in stage.settings.snapshot_steps()}
        return tuple(Snapshot(step, self._files.load(file)["cost"], file) for step, file in files.items())
