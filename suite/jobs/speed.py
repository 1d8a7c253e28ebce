"""Wall-clock speed of sampling."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch

from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.gpus import gpu_lock
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.stored_network import stored_picture_shape
from evaluation.measure import speed
from evaluation.measure.protocols import SpeedSettings
from suite.delivery import result_file
from suite.provenance import Input
from suite.stages.networks import checked_network, configured_method, network_folder


def time_sampling(arguments: argparse.Namespace) -> None:
    """Speed of every unit, interleaved on this machine; the job must have it to itself."""

    settings, device = SpeedSettings.model_validate_json(arguments.settings), default_device()
    samplers, networks, identities = {}, {}, {}
    inputs: dict[str, Input] = {}
    for variant, nfe, source, raw in json.loads(arguments.units):
        key, method = f"{variant}:{nfe}", configured_method(json.dumps(raw), arguments.guidance_scale)
        folder = network_folder(method, Path(source), nfe)
        inputs |= checked_network(key, folder)
        sampler, networks[key] = method.sampler(folder, nfe, device)
        conditions = load_conditions(folder)
        samplers[key] = lambda noise, sampler=sampler, conditions=conditions: sampler(
            noise, conditions.of_samples(range(len(noise)), device)
        )
        identities[key] = {"experiment": arguments.experiment, "method": method.name, "variant": variant, "nfe": nfe}
    shape = stored_picture_shape(folder)
    drawn = 0

    def make_noise(batch_size: int) -> torch.Tensor:
        nonlocal drawn
        drawn += batch_size
        return initial_noise(0, range(drawn - batch_size, drawn), shape).to(device)

    with gpu_lock(device) if device.type == "cuda" else nullcontext():
        result = speed.measure_speed(
            samplers,
            make_noise,
            settings.batch_sizes,
            device,
            networks=networks,
            seconds=settings.seconds,
            precision=settings.precision,
        )
    rows = [{**identities[row["key"]], **{name: row[name] for name in speed.COLUMNS}} for row in result.rows]
    about = {"settings": settings.model_dump(mode="json"), "timings": result.raw}
    with result_file(arguments, inputs, **about) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
