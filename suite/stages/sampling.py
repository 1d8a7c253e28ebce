"""Samples."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.images import Quantiser, save_samples, to_uint8
from diffusion.noise import initial_noise
from diffusion.pipelines import deciding_files, load_conditions, stored_picture_shape
from suite.provenance import write_provenance
from suite.stages.common import configured_method, network_folder, result_folder


def sample(arguments: argparse.Namespace) -> None:
    """Draws the samples of a variant: every number of evaluations, every sampling seed."""
    method, device = configured_method(arguments.settings, arguments.guidance_scale), default_device()
    sources = {nfe: network_folder(method, arguments.source, nfe) for nfe in method.evaluations()}
    with result_folder(arguments.output) as folder:
        for nfe, source in sources.items():
            for seed in arguments.seeds:
                # Protocols are compared on the first seed.
                quantisers: list[Quantiser] = arguments.quantisers if seed == min(arguments.seeds) else ["round"]
                images, labels = draw_samples(
                    method, source, nfe, seed, arguments.num_samples, arguments.batch_size, device, quantisers
                )
                for quantiser, drawn in images.items():
                    place = folder / f"nfe-{nfe}" / ("" if quantiser == "round" else quantiser)
                    save_samples(place / f"seed-{seed}.npz", drawn, labels)
        write_provenance(
            folder / "provenance.json",
            {f"{file.name}, nfe {nfe}": file for nfe, source in sources.items() for file in deciding_files(source)},
            settings=json.loads(arguments.settings),
            seeds=arguments.seeds,
            num_samples=arguments.num_samples,
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
    quantisers: Sequence[Quantiser] = ("round",),
) -> tuple[dict[Quantiser, np.ndarray], torch.Tensor | None]:
    """Samples of one stored network, uint8, shape (num_samples, H, W, C), by how they were quantised; and the classes
    they were asked for, if any.

    Raises:
        UserError: the sampler did not evaluate its network ``nfe`` times a sample.
    """
    evaluated = 0

    def count(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    sampler, network = method.sampler(source, nfe, device)
    network.register_forward_pre_hook(count)
    shape, conditions = stored_picture_shape(source), load_conditions(source)
    told = conditions.of_samples(range(num_samples), "cpu") or {}
    images: dict[Quantiser, list[np.ndarray]] = {quantiser: [] for quantiser in quantisers}
    for start in range(0, num_samples, batch_size):
        indices = range(start, min(start + batch_size, num_samples))
        noise = initial_noise(seed, indices, shape).to(device)
        with torch.inference_mode():
            drawn = sampler(noise, conditions.of_samples(indices, device))
        for quantiser, batches in images.items():
            batches.append(to_uint8(drawn, quantiser))
    if evaluated != nfe * num_samples:
        raise UserError(
            f"{method.name}: {evaluated} network evaluations for {num_samples} samples, expected {nfe} a sample. "
            f"The method's evaluations() or sampler() is wrong."
        )
    whole = {quantiser: np.concatenate(batches) for quantiser, batches in images.items()}
    return whole, told.get("class_labels")
