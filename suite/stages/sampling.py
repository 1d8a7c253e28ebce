"""Samples."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.images import Quantiser, save_samples, to_uint8
from diffusion.memory import within_memory
from diffusion.noise import initial_noise
from diffusion.pipelines import deciding_files, load_conditions, stored_picture_shape
from diffusion.processes import ALONE, Processes, drain, join, portions_of
from suite.provenance import write_provenance
from suite.stages.common import configured_method, network_folder, result_folder


def sample(arguments: argparse.Namespace) -> None:
    """Draws the samples of a variant: every number of evaluations, every sampling seed."""
    method, device = configured_method(arguments.settings, arguments.guidance_scale), default_device()
    processes = join(device)
    wanted = arguments.nfe or method.evaluations()
    sources = {nfe: network_folder(method, arguments.source, nfe) for nfe in wanted}
    with result_folder(arguments.output, processes) as folder:
        for nfe, source in sources.items():
            for seed in arguments.seeds:
                batches = draw_samples(
                    method,
                    source,
                    nfe,
                    seed,
                    arguments.num_samples,
                    arguments.batch_size,
                    device,
                    arguments.quantiser,
                    processes,
                )
                if not processes.is_main:
                    drain(batches)
                    continue
                channels, height, width = stored_picture_shape(source)
                told = load_conditions(source).of_samples(range(arguments.num_samples), "cpu") or {}
                save_samples(
                    folder / f"nfe-{nfe}" / f"seed-{seed}.npz",
                    batches,
                    (arguments.num_samples, height, width, channels),
                    told.get("class_labels"),
                )
        if not processes.is_main:
            return
        write_provenance(
            folder / "provenance.json",
            {f"{file.name}, nfe {nfe}": file for nfe, source in sources.items() for file in deciding_files(source)},
            settings=json.loads(arguments.settings),
            seeds=arguments.seeds,
            num_samples=arguments.num_samples,
            quantiser=arguments.quantiser,
            network_evaluations_per_sample=list(sources),
            device=str(device),
        )


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
) -> Iterator[np.ndarray]:
    """Samples of one stored network in batches, uint8, each of shape (n, H, W, C).

    Several processes share the batches; the samples do not depend on how many they are.

    Raises:
        UserError: the sampler did not evaluate its network ``nfe`` times a sample.
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    evaluated = 0

    def count(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    sampler, network = method.sampler(source, nfe, device)
    network.register_forward_pre_hook(count)
    shape, conditions = stored_picture_shape(source), load_conditions(source)

    def draw(indices: range) -> np.ndarray:
        noise = initial_noise(seed, indices, shape).to(device)
        with torch.inference_mode():
            return to_uint8(sampler(noise, conditions.of_samples(indices, device)), quantiser)

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

    portions = portions_of(num_samples, batch_size)
    return (drawn.numpy() for drawn in processes.spread(portions, portion))
