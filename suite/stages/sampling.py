"""Samples."""

import argparse
import json
from typing import Any

import numpy as np
import torch

from diffusion.device import default_device
from diffusion.errors import UserError
from diffusion.images import save_samples, to_uint8
from diffusion.noise import initial_noise
from diffusion.pipelines import deciding_files, load_conditions, stored_picture_shape
from suite.provenance import write_provenance
from suite.stages.common import configured_method, network_folder, result_folder


def sample(arguments: argparse.Namespace) -> None:
    """Draws the samples of a variant: every number of evaluations, every sampling seed."""
    method, device = configured_method(arguments.settings, arguments.guidance_scale), default_device()
    evaluated = 0

    def count(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    sources = {nfe: network_folder(method, arguments.source, nfe) for nfe in method.evaluations()}
    with result_folder(arguments.output) as folder:
        for nfe, source in sources.items():
            sampler, network = method.sampler(source, nfe, device)
            network.register_forward_pre_hook(count)
            shape, conditions = stored_picture_shape(source), load_conditions(source)
            evaluated = 0
            for seed in arguments.seeds:
                images = []
                told = conditions.of_samples(range(arguments.num_samples), "cpu") or {}
                for start in range(0, arguments.num_samples, arguments.batch_size):
                    indices = range(start, min(start + arguments.batch_size, arguments.num_samples))
                    noise = initial_noise(seed, indices, shape).to(device)
                    with torch.inference_mode():
                        images.append(to_uint8(sampler(noise, conditions.of_samples(indices, device))))
                file = folder / f"nfe-{nfe}" / f"seed-{seed}.npz"
                save_samples(file, np.concatenate(images), told.get("class_labels"))
            drawn = arguments.num_samples * len(arguments.seeds)
            if evaluated != nfe * drawn:
                raise UserError(
                    f"{method.name}: {evaluated} network evaluations for {drawn} samples, expected {nfe} a sample. "
                    f"The method's evaluations() or sampler() is wrong."
                )
        write_provenance(
            folder / "provenance.json",
            {f"{file.name}, nfe {nfe}": file for nfe, source in sources.items() for file in deciding_files(source)},
            settings=json.loads(arguments.settings),
            seeds=arguments.seeds,
            num_samples=arguments.num_samples,
            network_evaluations_per_sample=list(sources),
            device=str(device),
        )
