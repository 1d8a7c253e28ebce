"""The one training loop: teacher, BOOT and baselines all run in it.

A method supplies the loss of one step. The loop supplies the optimiser, learning-rate schedule, clipping, EMA, mixed
precision, the log, the cost, checkpoints and resume. Every step draws its randomness from (seed, stage, step) alone,
so a run that was stopped anywhere and resumed ends with the same weights as one that was not: bit for bit on a CPU
at the same number of threads, and on a GPU with BOOT_DETERMINISTIC=1.
"""

import copy
import math
import pickle
import signal
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from diffusion.runtime.errors import CheckpointError, DeviceMemoryError, NonFiniteError, UserError, first_line
from diffusion.runtime.files import atomic_path, only_one, remove_leftovers, writing
from diffusion.runtime.gpus import gpu_lock
from diffusion.runtime.memory import largest_fitting, memory_of, out_of_memory
from diffusion.runtime.precision import float32_products, repeatable
from diffusion.runtime.processes import ALONE, join
from diffusion.training import sharding
from diffusion.training.average import MovingAverage
from diffusion.training.delivered import mark_delivered
from diffusion.training.randomness import seed_dropout, seed_of
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import LOG_COLUMNS, Loss, Snapshot, Stateful, Step, Trained

_FORMAT = "boot-reproduction training state 1"
_LOGGED_POINTS = 200  # of a stage, for the training curves
_CHECK_EVERY_ON_GPU = 25  # steps between two looks at the loss: each look waits for the device

# How a time budget becomes a number of steps: the first few are not timed (one compiles, the next records CUDA graphs),
# then at least so many are, for at least that share of the budget. The limits are the shares of it after which a slow
# device is timed by fewer.
_UNTIMED_STEPS, _TIMED_STEPS = 5, 10
_TIMED_SHARE, _UNTIMED_LIMIT, _TIMED_LIMIT = 0.03, 0.15, 0.25


class _EvaluationCounter:
    """Forward hook that adds the batch size to a run's ``evaluations``."""

    def __init__(self, run: "TrainingRun") -> None:
        self.run = run

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.run.counting:
            self.run.evaluations += len(arguments[0]) * self.run.processes.size  # all have equal shares

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_EvaluationCounter":
        return self  # the copy of a counted network is counted by the same run


class TrainingRun:
    """One resumable training job of one or several stages; use as a context manager.

    The folder holds the state of an unfinished job until :mod:`diffusion.training.delivered` removes it. Its lock makes
    a second trainer on the same state refuse to start. ``key`` identifies what is being trained (configuration, seed,
    inputs): a state with another key is refused.

    Attributes:
        evaluations: pictures that went forward through a counted network, each once a pass.
        real_images_seen: pictures of the data set that were trained on, with repetition.
        wall_clock_s: training time, accumulated over interruptions.
        cpu_s: seconds of all threads of this process in that time; of several processes each knows its own.
        arithmetic: what the networks of each stage were computed in, in words: what "auto" came to.
        steps: the optimiser steps of each stage: those of the settings, or what a time budget came to.
        log: one row a logged step, with the keys :data:`LOG_COLUMNS`.
        watch: is handed ``log`` after every new row, of the main process; it must change nothing.
    """

    def __init__(
        self, folder: Path, key: str, seed: int, device: torch.device, checkpoint_seconds: float = 30.0
    ) -> None:
        self.folder, self.key, self.seed, self.device = folder, key, seed, device
        self.processes = join(device)
        self.checkpoint_seconds = checkpoint_seconds
        self.evaluations = 0
        self.counting = True  # off inside a compiled step, which would be compiled anew for every count
        self.real_images_seen = 0
        self.wall_clock_s = self.cpu_s = 0.0
        self.arithmetic: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.steps_done = 0
        self.log: list[dict[str, Any]] = []
        self.watch: Callable[[list[dict[str, Any]]], None] | None = None
        self._networks: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # the counted ones, as long as they are used
        self._compiles = True
        self._cleanup = ExitStack()
        self._clock: tuple[float, float] | None = None
        self._told_to_stop = 0  # the signal that came

    # -- the lock -----------------------------------------------------------------------------------------------

    def __enter__(self) -> "TrainingRun":
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.processes.is_main:
            self._cleanup.enter_context(only_one(self.folder / "lock", f"{self.folder} (a training's state)"))
            remove_leftovers(self.folder)
        if self.device.type == "cuda":
            self._cleanup.enter_context(gpu_lock(self.device))
            self._cleanup.enter_context(repeatable(self.device))
        # The seconds of a stopped attempt that came after its last checkpoint were spent all the same.
        self._spent_file = self.folder / "seconds"
        if self._spent_file.exists():
            self.wall_clock_s, self.cpu_s = self._seconds_spent()
        self._clock = time.perf_counter(), time.process_time()
        return self

    def _seconds_spent(self) -> tuple[float, float]:
        try:
            wall_clock, cpu = map(float, self._spent_file.read_text(encoding="utf-8").split())
            if not (0 <= wall_clock < math.inf and 0 <= cpu < math.inf):
                raise ValueError
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._spent_file}: found no numbers of seconds. {self._remedy}") from error
        return wall_clock, cpu

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def deliver(self, result: Path) -> None:
        """Notes that the result is stored (:func:`diffusion.training.delivered.mark_delivered`)."""
        if self.processes.is_main:
            mark_delivered(self.folder, result)

    # -- cost ---------------------------------------------------------------------------------------------------

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
        self._tick()
        return {
            "steps": self.steps_done,
            "network_evaluations": self.evaluations,
            "real_images_seen": self.real_images_seen,
            "wall_clock_s": round(self.wall_clock_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "gpu_s": round(self.wall_clock_s * self.processes.size, 3) if self.device.type == "cuda" else 0,
        }

    def _tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        assert self._clock is not None, "use the run as a context manager"
        self.wall_clock_s += now[0] - self._clock[0]
        self.cpu_s += now[1] - self._clock[1]
        self._clock = now

    def note_seconds(self) -> None:
        """Stores the time spent so far, which outlives the process."""
        self._tick()
        if not self.processes.is_main:
            return
        with atomic_path(self._spent_file) as temporary:
            temporary.write_text(f"{self.wall_clock_s:.3f} {self.cpu_s:.3f}", encoding="utf-8")

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
        _lay_out(networks, settings, on=True)
        try:
            with float32_products(self.device, tf32=settings.precision != "fp32"), self._noting_signals():
                trained = self._fit(stage, network, loss, settings, real_images, after_step, beside or {}, before_step)
                networks.append(trained.network)  # the average is a copy of the network as it is now
                return trained
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise self._too_large(stage, network, loss, settings, before_step, error) from error
        finally:
            _lay_out(networks, settings, on=False)

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
            state = self._load(finished)
            with self._reading(finished):
                self._restore_totals(state)
                self._use_threads(state["threads"])
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
            state = self._load(checkpoint)
            if state["stage"] != stage:
                return 0
            with self._reading(checkpoint):
                self._restore_totals(state)
                sharding.load_whole(network, state["network"])
                sharding.load_whole_optimiser(optimiser, state["optimiser"])
                if average is not None:
                    sharding.load_whole(average, state["average"])
                for name, part in beside.items():
                    part.load_state_dict(state["beside"][name])
                for part in (optimiser, *beside.values()):
                    if isinstance(part, torch.optim.Optimizer):
                        _match_layout(part)
                self._use_threads(state["threads"])
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
                with self._autocast(settings):
                    before_step(own_steps)
            for this in own_steps:
                seed_dropout(this.generator)  # of each micro-batch anew
                with self._autocast(settings):
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
                with self._autocast(settings):
                    after_step(this)
            return value, norm, told if alone else tellings[0]

        first = restore()
        if settings.minutes is not None and stage not in self.steps:
            network.train()
            save(0)  # what the timed steps change is taken back
            self.processes.wait()  # until it is stored
            steps = self._fitting_steps(stage, settings, lambda step, long: take(step, long, told=False), began)
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
            told = bool(self._told_to_stop)
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
                self._tick()
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
                number = self._told_to_stop or signal.SIGTERM  # perhaps only another process was told
                name = signal.Signals(number).name
                print(f"{self.folder}: {name}; stage {stage} is stored at step {step + 1}", file=sys.stderr)
                sys.exit(128 + number)
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

    def _fitting_steps(
        self,
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
        on_gpu = self.device.type == "cuda"

        def spent() -> float:
            if on_gpu:
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - began

        def over(done: bool) -> bool:
            if self.processes.as_main_says(bool(self._told_to_stop)):
                sys.exit(128 + (self._told_to_stop or signal.SIGTERM))  # nothing is lost that a later attempt could use
            return self.processes.as_main_says(done)

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
        fitting = int(self.processes.as_main_says((budget - now) / rate))
        key, expected = max(((key, n) for key, (n, _) in settings.fewest_steps().items()), key=lambda need: need[1])
        if fitting < expected:
            raise UserError(
                f"stage {stage}: training.minutes: found {settings.minutes:.3g}, expected more: {max(fitting, 0)} "
                f"steps of {rate:.3g} s fit beside the {now:.3g} s that compiling and timing took, and at least "
                f"{expected} are needed (training.{key})."
            )
        print(f"stage {stage}: {fitting} steps of {rate:.3g} s fit into {settings.minutes:.3g} min", file=sys.stderr)
        return min(fitting, settings.steps or fitting)

    def clear_gradients(self, network: nn.Module, settings: TrainingSettings) -> None:
        """Makes a network ready for the gradients of a step's micro-batches."""
        # Those that a CUDA graph makes are overwritten by its next replay: several are added up elsewhere.
        several = settings.gradient_accumulation_steps > self.processes.size
        adds_up = settings.compile == "cudagraphs" and several
        for weight in network.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight) if adds_up else None

    def _autocast(self, settings: TrainingSettings) -> torch.autocast:
        # Uncached: some versions of torch lose the gradient of weights that were first cast where there was none.
        bf16 = settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)

    def _too_large(
        self,
        stage: str,
        network: nn.Module,
        loss: Loss,
        settings: TrainingSettings,
        before_step: Callable[[Sequence[Step]], None] | None,
        error: BaseException,
    ) -> DeviceMemoryError:
        """What to say after ``error``: smaller slices have been tried, until one fitted the device's memory."""
        batch, slices = settings.batch_size, settings.gradient_accumulation_steps
        found = (
            f"stage {stage}: {settings.slice_size} pictures at once are more than {memory_of(self.device)} can take. "
        )
        if settings.shard and self.processes.size > 1:  # a process cannot try alone
            return DeviceMemoryError(
                f"{found}training.gradient_accumulation_steps: found {slices}, expected a larger divisor of {batch} or "
                "more processes."
            )
        others = range(slices + 1, batch + 1)
        sizes = [batch // n for n in others if batch % n == 0 and n % self.processes.size == 0]
        averages: list[nn.Module] = []

        def attempt(size: int) -> None:
            network.zero_grad(set_to_none=True)
            if settings.ema_decay is not None and not averages:
                averages.append(copy.deepcopy(network).requires_grad_(False).eval())
            # In place of the optimiser's two moments, which have gone with the loop.
            _moments = [torch.empty_like(p) for p in network.parameters() if p.requires_grad for _ in range(2)]
            # Two: from the second slice on there is a gradient beside the activations.
            steps = [Step(self.generator(stage, 0, number), 0.0, size, *averages) for number in range(2)]
            if before_step is not None:
                with self._autocast(settings):
                    before_step(steps)
            for step in steps:
                with self._autocast(settings):
                    value = loss(step)
                value.backward()

        self._compiles = False  # takes no less memory, and no minutes
        self.processes = ALONE  # the others wait in the step that failed, and take no part in these
        fitting = largest_fitting(error, attempt, sizes, self.device)
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

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the training after the present step, not at once. Several may come: a scheduler
        signals each process, and a process that is signalled passes it on."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._told_to_stop = self._told_to_stop or number

        if threading.current_thread() is not threading.main_thread():  # only the main one may handle signals
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _snapshot_file(self, stage: str, step: int) -> Path:
        return self.folder / f"snapshot-{stage}-{step}.pt"

    def _snapshots(self, stage: str, settings: TrainingSettings) -> tuple[Snapshot, ...]:
        files = {step: self._snapshot_file(stage, step) for step in settings.snapshot_steps()}
        return tuple(Snapshot(step, self._load(file)["cost"], file) for step, file in files.items())

    def compiled(
        self, function: Callable[..., torch.Tensor], settings: TrainingSettings
    ) -> Callable[..., torch.Tensor]:
        """``function`` of tensors alone, compiled as ``settings.compile`` says; the evaluations in it stay counted.

        Raises:
            UserError: CUDA graphs without a CUDA device.
        """
        if settings.compile == "off":
            return function
        if settings.compile == "cudagraphs" and self.device.type != "cuda":
            raise UserError(
                f"training.compile: found 'cudagraphs' on the device {self.device}, expected 'off' or 'default': CUDA "
                f"graphs need a CUDA device."
            )
        mode = "reduce-overhead" if settings.compile == "cudagraphs" else "default"
        # Stages share their code, and dynamo compiles one piece of code a few times only; earlier stages are done.
        torch._dynamo.reset()
        fast = torch.compile(function, mode=mode, dynamic=False)
        per_call: int | None = None

        def step(*arguments: Any, **keywords: Any) -> torch.Tensor:
            nonlocal per_call
            if not self._compiles:
                return function(*arguments, **keywords)
            if per_call is None:
                before = self.evaluations
                devices = [self.device] if self.device.type == "cuda" else []
                with torch.no_grad(), torch.random.fork_rng(devices=devices):  # dropout's draws are the step's
                    function(*arguments, **keywords)  # only counted: a pass of every network, once a process
                per_call, self.evaluations = self.evaluations - before, before
            self.counting = False
            try:
                value: torch.Tensor = fast(*arguments, **keywords)
            finally:
                self.counting = True
            self.evaluations += per_call
            # The next replay of a graph overwrites its output.
            return value.clone() if settings.compile == "cudagraphs" else value

        return step

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
        if not self.processes.is_main:
            return
        content |= {
            "format": _FORMAT,
            "key": self.key,
            "threads": torch.get_num_threads(),
            "evaluations": self.evaluations,
            "real_images_seen": self.real_images_seen,
            "arithmetic": self.arithmetic,
            "steps": self.steps,
            "steps_done": self.steps_done,
            "log": copy.deepcopy(self.log),
        }
        with atomic_path(path) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:
                # torch reports a full disk as a position that it did not expect.
                raise OSError(f"the state could not be written: {error}") from error

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not look at them
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {damaged} is another")
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (
            *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError),
            *(RuntimeError, EOFError, KeyError, ValueError, OSError),
        ) as error:
            raise CheckpointError(
                f"{path}: truncated, changed or not a training state ({first_line(error)}). {self._remedy}"
            ) from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a training state of this suite. {self._remedy}")
        if state.get("key") != self.key:
            raise CheckpointError(
                f"{path}: belongs to another run (key {state.get('key')}, expected {self.key}): other settings, seed "
                f"or inputs. {self._remedy}"
            )
        return state

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Says of a state that lacks a part, or has one of another network, that it does.

        Raises:
            CheckpointError: instead of what torch raised.
        """
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise CheckpointError(
                f"{path}: a part is missing or of another network ({first_line(error)}). {self._remedy}"
            ) from error

    @property
    def _remedy(self) -> str:
        return f"Delete {self.folder} and run Snakemake again: it trains from the beginning."

    def _restore_totals(self, state: dict[str, Any]) -> None:
        self.evaluations, self.real_images_seen = state["evaluations"], state["real_images_seen"]
        self.log, self.arithmetic = state["log"], state["arithmetic"]
        self.steps, self.steps_done = state["steps"], state["steps_done"]

    @staticmethod
    def _use_threads(threads: int) -> None:
        if threads != torch.get_num_threads():
            print(
                f"the state was written with {threads} threads; using as many again instead of "
                f"{torch.get_num_threads()}, so that the result does not depend on the interruption",
                file=sys.stderr,
            )
            torch.set_num_threads(threads)


def _lay_out(networks: list[Any], settings: TrainingSettings, on: bool) -> None:
    """Makes networks as the settings want them for training, or takes it back.

    Raises:
        UserError: a network cannot compute its activations again.
    """
    for network in networks:
        if settings.activation_checkpointing:
            name = ("enable" if on else "disable") + "_gradient_checkpointing"
            if not hasattr(network, name):
                raise UserError(
                    f"training.activation_checkpointing: found true, expected false: a {type(network).__name__} cannot "
                    f"compute its activations again."
                )
            getattr(network, name)()
        if settings.channels_last:
            network.to(memory_format=torch.channels_last if on else torch.contiguous_format)


def _match_layout(optimiser: torch.optim.Optimizer) -> None:
    """Lays the optimiser's moments out in memory as its weights are: fused optimisers take that for granted, and a
    stored state may come from a device where "auto" meant another layout."""
    for weight, state in optimiser.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight).copy_(value)
