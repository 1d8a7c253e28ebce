"""Wall-clock speed of sampling."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch

from diffusion.conditions import Condition, Conditions
from diffusion.guidance import Guidance
from diffusion.noise import initial_noise
from diffusion.runtime.device import default_device
from diffusion.runtime.gpus import gpu_lock
from diffusion.runtime.settings import Settings
from diffusion.space import Space
from diffusion.teachers.latents import space_of
from diffusion.teachers.prompts import Prompts, encoder_of
from diffusion.teachers.stored_network import stored_network
from evaluation.measure import speed
from evaluation.measure.protocols import SpeedSettings
from suite.job import GuidanceScale, Job, Key
from suite.jobs.networks import (
    checked_network,
    checked_prompts,
    conditions_of_samples,
    configured_method,
    network_folder,
)
from suite.provenance import Input


class TimedUnit(Settings):
    """A variant at one number of evaluations, with the variant's block."""

    variant: str
    nfe: int
    train_seed: int
    settings: dict[str, Any]


class Time(Job):
    """Speed of every unit, interleaved on this machine; the job must have it to itself.

    Attributes:
        sources: of each variant the folder of its students, or the teacher.
        prompts: as of :class:`suite.jobs.sampling.Sample`.
    """

    experiment: str
    units: tuple[TimedUnit, ...]
    sources: dict[str, Path]
    prompts: Path | None = None
    settings: Annotated[SpeedSettings, Key("speed")]
    guidance_scale: GuidanceScale = 1.0
    guidance_embedded: bool = False

    def run(self) -> None:
        settings, device = self.settings, default_device()
        samplers, networks, identities = {}, {}, {}
        inputs: dict[str, Input] = checked_prompts(self.prompts)
        guidance = Guidance(self.guidance_scale, self.guidance_embedded)

        # The same for all; made before the clock starts, for that of a cascade takes noise.
        @lru_cache(maxsize=1)
        def condition(count: int) -> Condition:
            return conditions.of_samples(range(count), device)

        for unit in self.units:
            key, nfe = f"{unit.variant}:{unit.nfe}", unit.nfe
            method = configured_method(unit.variant, unit.settings, guidance)
            folder = network_folder(method, self.sources[unit.variant], nfe)
            inputs |= checked_network(key, folder)
            conditions, space = conditions_of_samples(folder, self.prompts), space_of(folder)
            sampler, networks[key] = method.sampler(folder, nfe, device, conditions)
            # From noise to images: latents are decoded.
            samplers[key] = lambda noise, sampler=sampler, space=space: space.decode(
                sampler(noise, condition(len(noise)))
            )
            identities[key] = {"experiment": self.experiment, "method": method.name}
            identities[key] |= {"variant": unit.variant, "nfe": nfe}
        shape, parts = stored_network(folder).shape, _parts(folder, conditions, space, device)
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
                parts=parts,
                seconds=settings.seconds,
                precision=settings.precision,
            )
        rows = [{**identities[row["key"]], **{name: row[name] for name in speed.COLUMNS}} for row in result.rows]
        with self.result_file(inputs, timings=result.raw) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def _parts(
    folder: Path, conditions: Conditions, space: Space, device: torch.device
) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What makes images of a pipeline beside its network, for as many of them as there is noise."""
    parts: dict[str, Callable[[torch.Tensor], Any]] = {}
    if space.is_latent:
        parts["decoder"] = space.decode
    if isinstance(conditions, Prompts):
        encoder, texts = encoder_of(folder, conditions.max_tokens, device), conditions.texts

        def encode(noise: torch.Tensor) -> Any:
            asked = [texts[number % len(texts)] for number in range(len(noise))]
            return encoder(asked, at_once=len(asked), device=device)

        parts["text_encoder"] = encode
    return parts
