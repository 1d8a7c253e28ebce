"""Students of stock pipelines, stored as pipelines of the same class: `diffusers` samples them as they are."""

import math
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.denoiser import Denoiser
from diffusion.prediction import Sample
from diffusion.runtime.files import link_or_copy, read_json_object, write_json
from diffusion.teachers.lora import is_adapted, merged, save_lora
from diffusion.teachers.schedulers import build_scheduler
from diffusion.teachers.stock import StockFamily
from diffusion.teachers.stored_network import network_folder

# How a network is sampled that answers otherwise than its teacher, beside the parts that `diffusers` reads.
STUDENT = "student.json"


def save_stock(folder: Path, source: Path, denoiser: Denoiser, sampled: Mapping[str, Any]) -> None:
    """Writes a student, or a teacher of its own training, as a pipeline of its teacher's class.

    ``DiffusionPipeline.from_pretrained(folder)`` reads it. Text encoders, tokenizers and the autoencoder are linked.
    Adapters are within the network's weights, and lie beside them for pipelines of the teacher.

    Args:
        source: the teacher's folder.
        sampled: as the arguments of :class:`diffusion.teachers.pipeline.StudentPipeline`; none of DDIM steps.
    """
    network = network_folder(source).name
    index = _linked(folder, source, but=(network, "scheduler"))
    trained: Any = denoiser.network
    if is_adapted(trained):
        save_lora(folder, index["_class_name"], network, trained)
        trained = merged(trained)
    trained.save_pretrained(folder / network, safe_serialization=True)
    scheduler = build_scheduler(denoiser)
    if sampled:
        write_json(folder / STUDENT, {**sampled, "prediction_type": denoiser.prediction_type})
    if "told_timestep" in sampled:
        scheduler = one_step_scheduler(denoiser, sampled)
    if sampled.get("levels", {}).get("boundary") == "lcm" and denoiser.prediction_type != "flow":
        scheduler = lcm_scheduler(denoiser, sampled["levels"])
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if not type(scheduler).__module__.startswith("diffusers."):
        code = Path(sys.modules[type(scheduler).__module__].__file__ or "")
        shutil.copyfile(code, folder / "scheduler" / code.name)
        index["scheduler"] = [code.stem, type(scheduler).__name__]
    write_json(folder / "model_index.json", index)


def lcm_scheduler(denoiser: Denoiser, levels: Mapping[str, Any]) -> Any:
    """`diffusers`' own scheduler of latent consistency models; of many steps some levels are 20 timesteps off."""
    from diffusers import LCMScheduler

    return LCMScheduler(
        num_train_timesteps=denoiser.schedule.num_timesteps,
        trained_betas=denoiser.schedule.betas().tolist(),
        prediction_type=denoiser.prediction_type,
        original_inference_steps=len(levels["timesteps"]) - 1,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def import_stock(folder: Path, source: Path) -> None:
    """Takes a teacher that is a stock pipeline as it is; all its files are linked, for they may be many gigabytes."""
    write_json(folder / "model_index.json", _linked(folder, source))


def _linked(folder: Path, source: Path, but: Collection[str] = ()) -> dict[str, Any]:
    """Links the parts of a pipeline into another folder; what the index of that is to say."""
    folder.mkdir(parents=True, exist_ok=True)
    index = read_json_object(source / "model_index.json")
    for name, value in index.items():
        if not isinstance(value, list) or value[0] is None or name in but:
            continue
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, copy_function=link_or_copy)
        else:  # a safety checker, which was never fetched
            index[name] = [None, None]
    return index


def one_step_scheduler(denoiser: Denoiser, sampled: Mapping[str, Any]) -> Any:
    """The scheduler by which a stock pipeline makes a student's sample of its network's one output.

    `diffusers`' own where it is exact: of flow matching and of v and x prediction, read at t_max.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from diffusion.teachers.one_step_scheduler import OneStepScheduler

    schedule, kind, family = denoiser.schedule, denoiser.prediction_type, denoiser.family
    assert isinstance(family, StockFamily)
    timestep = torch.tensor(float(sampled["told_timestep"]), dtype=torch.float64)
    told = float(schedule.network_time(schedule.time(timestep)))
    at_end, raw, scale = sampled.get("read_timestep") is None, bool(sampled.get("raw")), sampled.get("signal_scale", 1)
    at = schedule.at(schedule.t_max if at_end else schedule.time(torch.tensor(float(sampled["read_timestep"]))))
    if at_end and not raw and scale == 1:
        # The times that these tell a network in their one step.
        if kind == "flow" and math.isclose(told, 1):
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
        if kind in ("v_prediction", "sample") and told == 0:
            return DDIMScheduler(
                num_train_timesteps=1,
                trained_betas=[1 - float(at.alpha.value) ** 2],
                prediction_type=kind,
                clip_sample=False,
                set_alpha_to_one=True,
                # Stable Diffusion's pipelines want an offset of 1, which moves no trailing step.
                timestep_spacing="trailing",
                steps_offset=1,
            )
    reading = Sample() if raw else denoiser.prediction
    undivided = at_end and sampled.get("epsilon_reading") != "exact"

    def read(output: torch.Tensor, noise: torch.Tensor) -> float:
        start = schedule.start(noise) if at_end else at.sigma * noise
        found = reading.read_from_noise(output, start, noise, at) if undivided else reading.read(output, start, at)
        return scale * float(found)

    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    fed = 1.0 if at_end else float(at.sigma.value)
    return OneStepScheduler(
        told=told,
        of_state=read(zero, one) / fed,
        of_output=read(one, zero),
        noise_scale=fed,
        num_train_timesteps=schedule.num_timesteps,
        scaled_by_pipeline=at_end or family.scales_noise,
    )
