"""Samples."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch

from diffusion.conditions import Conditions
from diffusion.data.samples import Quantiser, load_labels, load_samples, save_samples, to_uint8
from diffusion.noise import initial_noise
from diffusion.runtime.begun import BegunArray
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import link_or_copy, only_one, remove_leftovers
from diffusion.runtime.memory import within_memory
from diffusion.runtime.processes import ALONE, Processes, drain, join, portions_of
from diffusion.teachers.folder import deciding_files, load_conditions
from diffusion.teachers.latents import space_of
from diffusion.teachers.stored_network import stored_network
from diffusion.training.delivered import mark_delivered
from suite.job import BatchSize, Key, NumSamples
from suite.jobs.networks import VariantJob, checked_prompts, conditions_of_samples, network_folder
from suite.provenance import Input, checked
from suite.sources import state_key

# What a stopped job repeats at most.
_NOTED_EVERY_S = 60.0


class Sample(VariantJob):
    """Draws the samples of a variant: every number of evaluations, every sampling seed.

    Sets that are whole, and batches of one that is not, are kept until all are there: a job that was stopped goes on.

    Attributes:
        source: the teacher, or the folder of the variant's students.
        nfe: evaluations to sample with; all that the method has, if none is named.
        quantiser: how samples become uint8.
        state: where interrupted sampling is kept; None starts anew.
        prompts: the texts that samples are drawn of; None where the teacher is told none.
    """

    source: Path
    prompts: Path | None = None
    num_samples: NumSamples
    batch_size: BatchSize
    seeds: Annotated[tuple[int, ...], Key("evaluation.seeds")]
    nfe: Annotated[tuple[int, ...], Key("evaluation.nfe.{variant}")] = ()
    quantiser: Quantiser = "round"
    state: Path | None = None

    def run(self) -> None:
        method, device = self.method, default_device()
        processes = join(device)
        sources = {nfe: network_folder(method, self.source, nfe) for nfe in self.nfe or method.evaluations()}
        inputs = checked(
            {f"{file.name}, nfe {nfe}": file for nfe, source in sources.items() for file in deciding_files(source)}
        )
        inputs |= checked_prompts(self.prompts)
        with self._kept(sources.values(), inputs, processes) as state:
            for nfe, source in sources.items():
                conditions = conditions_of_samples(source, self.prompts)
                for seed in self.seeds:
                    path = state / f"nfe-{nfe}" / f"seed-{seed}.npz"
                    is_there = path.exists() and _is_whole(path)
                    processes.wait()  # until all have looked
                    if not is_there:
                        count, size = self.num_samples, self.batch_size
                        told = (method, source, nfe, seed, count, size, device, self.quantiser, processes, conditions)
                        _store(path, source, conditions, count, size, partial(draw_samples, *told), processes)
            if not processes.is_main:
                return
            with self.result_folder() as folder:
                for nfe in sources:  # not moved: a job that is stopped here has them still
                    shutil.copytree(state / f"nfe-{nfe}", folder / f"nfe-{nfe}", copy_function=link_or_copy)
                facts = {"network_evaluations_per_sample": list(sources), "device": str(device)}
                self.write_record(folder, inputs, **facts)
            mark_delivered(state, self.output)

    @contextmanager
    def _kept(self, sources: Iterable[Path], inputs: Mapping[str, Input], processes: Processes) -> Iterator[Path]:
        """The folder of what a stopped job has left, or a fresh one, for this job alone."""
        if self.state is None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".samples-", dir=self.output.parent, ignore_cleanup_errors=True) as passing:
                yield Path(passing)
            return
        # Which sets are wanted is no part of it: those that are there are what they were.
        facts = {name: fact for name, fact in self.facts().items() if name not in ("seeds", "nfe")}
        identity = facts, {name: one.sha256 for name, one in inputs.items()}
        parts = self.method, *(stored_network(source).family for source in sources)
        folder = self.state / f"samples-{state_key(identity, __name__, *(type(part).__module__ for part in parts))}"
        if not processes.is_main:
            yield folder
            return
        with only_one(folder / "lock", f"{folder} (samples that are being drawn)"):
            remove_leftovers(folder)
            yield folder


def _store(
    path: Path,
    source: Path,
    conditions: Conditions,
    count: int,
    size: int,
    draw: Callable[..., Iterator[np.ndarray]],
    processes: Processes,
) -> None:
    """Writes ``count`` samples of the network ``source`` to ``path``, and goes on with those that were begun there.

    Args:
        size: of a batch.
        draw: :func:`draw_samples` but for its last argument.
    """
    begun = BegunArray(path.with_suffix(".npy"))
    first = begun.facts["count"]
    processes.wait()  # until all have read it
    batches = draw(first=first)
    if not processes.is_main:
        drain(batches)
        return
    channels, height, width = space_of(source).image_shape(stored_network(source).shape)
    images = begun.fill(
        (count, height, width, channels),
        np.uint8,
        portions_of(count, size, first),
        batches,
        every_s=_NOTED_EVERY_S,
    )
    labels = conditions.labels(conditions.of_samples(range(count), "cpu"))
    parts = (images[part.start : part.stop] for part in portions_of(count, size))
    save_samples(path, parts, images.shape, labels)
    begun.remove()


def _is_whole(path: Path) -> bool:
    """Whether a set that an earlier job has stored is what it stored, by the checksums in it; else it is drawn anew."""
    try:
        load_samples(path)
        load_labels(path)
    except UserError as error:
        print(f"{error} Drawn anew.", file=sys.stderr)
        return False
    return True


def draw_samples(
    method: Any,
    source: Path,
    nfe: int,
    seed: int,
    num_samples: int,
    batch_size: int,
    device: torch.device,
    quantiser: Quantiser = "round",
    processes: Processes = ALONE,
    conditions: Conditions | None = None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Samples of one stored network in batches, uint8, each of shape (n, H, W, C).

    Several processes share the batches; the samples do not depend on how many they are.

    Args:
        conditions: of the samples; those of the network's own folder, if not given.
        first: the sample to go on with, where a batch begins.

    Raises:
        UserError: the sampler did not evaluate its network ``nfe`` times a sample.
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    evaluated = 0

    def count(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    sampler, network = method.sampler(source, nfe, device, conditions)
    network.register_forward_pre_hook(count)
    shape, told, space = stored_network(source).shape, conditions or load_conditions(source), space_of(source)

    def draw(indices: range) -> np.ndarray:
        noise = initial_noise(seed, indices, shape).to(device)
        with torch.inference_mode():
            return to_uint8(space.decode(sampler(noise, told.of_samples(indices, device))), quantiser)

    def portion(indices: range) -> torch.Tensor:
        nonlocal evaluated
        evaluated = 0
        drawn = within_memory("evaluation.batch_size", lambda size: draw(indices[:size]), len(indices), device)
        if evaluated != nfe * len(indices):
            raise UserError(
                f"{method.name}: {evaluated} network evaluations for {len(indices)} samples, expected {nfe} a sample. "
                f"The method's evaluations() or sampler() is wrong."
            )
        return torch.from_numpy(drawn)

    portions = portions_of(num_samples, batch_size, first)
    return (drawn.numpy() for drawn in processes.spread(portions, portion))
