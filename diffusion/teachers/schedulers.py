"""`diffusers` schedulers: what a stored one means, and the one of a denoiser."""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from diffusion.denoiser import Denoiser
from diffusion.prediction import PredictionType
from diffusion.runtime.errors import UserError, brief
from diffusion.runtime.files import read_json_object
from diffusion.schedule import DiscreteSchedule, EdmSchedule, FlowSchedule, Schedule
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding

# Both precondition alike; they differ in how they sample.
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# Keys of flows that are read at one value alone.
_PLAIN_FLOW = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
}
_NO_MAXIMUM = 1e9  # of dynamic thresholding; `diffusers` wants a number
# Of the others, those that can be told to step along a flow.
_ALONG_FLOWS = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
_VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)


def build_scheduler(denoiser: Denoiser) -> Any:
    """The `diffusers` scheduler of ``denoiser``: ``EDMEulerScheduler`` for EDM's schedule,
    ``FlowMatchEulerDiscreteScheduler`` for a flow's, else ``DDIMScheduler``.

    The last samples as :func:`diffusion.solvers.ddim_sample` does, for step counts N that divide ``num_timesteps`` T.
    For others `diffusers` steps by ⌊T/N⌋ timesteps and begins the next step elsewhere (docs/methods.md, "Step counts").

    The betas are ours (``trained_betas``): `diffusers`' own cosine schedule ends at another α. Spacing is
    "trailing", because the others evaluate one step at timestep 0. ``DDIMPipeline`` must be called with
    ``use_clipped_model_output=True`` to take ε from the clipped x̂, as the closed form does; that flag is an argument
    of the call and cannot be stored.
    """
    from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    schedule = denoiser.schedule
    if isinstance(schedule, EdmSchedule):
        return EDMEulerScheduler(
            sigma_min=schedule.sigma_min,
            sigma_max=schedule.sigma_max,
            sigma_data=schedule.sigma_data,
            rho=schedule.rho,
            num_train_timesteps=schedule.num_timesteps,
            prediction_type="epsilon",  # so `diffusers` calls the sign of c_out
        )
    if isinstance(schedule, FlowSchedule):
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.num_timesteps, shift=schedule.shift)
    return DDIMScheduler(
        num_train_timesteps=schedule.num_timesteps,
        trained_betas=schedule.betas().tolist(),
        prediction_type=denoiser.prediction_type,
        clip_sample=denoiser.thresholding.kind == "static",
        thresholding=denoiser.thresholding.kind == "dynamic",
        dynamic_thresholding_ratio=denoiser.thresholding.ratio,
        sample_max_value=denoiser.thresholding.maximum or _NO_MAXIMUM,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        steps_offset=0,
    )


def thresholding_of(scheduler: Any) -> Thresholding:
    # Keys that the class does not have may stand in a file that another scheduler wrote; it does nothing of the kind.
    known = inspect.signature(type(scheduler).__init__).parameters
    config = {key: value for key, value in scheduler.config.items() if key in known}
    # `diffusers` asks in this order.
    if config.get("thresholding"):
        maximum = config["sample_max_value"]
        return Thresholding(
            kind="dynamic",
            ratio=config["dynamic_thresholding_ratio"],
            maximum=None if maximum >= _NO_MAXIMUM else maximum,
        )
    return STATIC if config.get("clip_sample") else NO_THRESHOLD


def schedule_of(scheduler: Any, shape: tuple[int, int, int] | None = None) -> Schedule:
    """The schedule of a `diffusers` scheduler; one that is discrete is interpolated.

    Args:
        shape: (C, H, W) of the states, of a flow whose shift depends on it.
    """
    config = scheduler.config
    if type(scheduler).__name__ in _EDM:
        return EdmSchedule(
            config.sigma_min, config.sigma_max, config.sigma_data, config.rho, config.num_train_timesteps
        )
    if type(scheduler).__name__ in _FLOW:
        shift = _shift_at(config, shape) if shape and config.get("use_dynamic_shifting") else config.shift
        return FlowSchedule(shift, config.num_train_timesteps)
    if config.get("use_flow_sigmas"):
        return FlowSchedule(config.flow_shift, config.num_train_timesteps)
    return DiscreteSchedule(alphas_cumprod_of(scheduler))


def _shift_at(config: Mapping[str, Any], shape: tuple[int, int, int]) -> float:
    """The shift s = e^μ of FLUX's sizes: μ is linear in the number of tokens, of 2×2 latents each."""
    tokens, least, most = shape[1] * shape[2] // 4, config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (most - least)
    return math.exp(config["base_shift"] + slope * (tokens - least))


def begun_at(schedule: Schedule, level: float | None) -> Schedule:
    """A discrete schedule without its levels of more noise than ``level``, the largest σ/α; None leaves it whole.

    An ε teacher's error is multiplied by σ/α: where next to no signal is left it says nothing of the image.

    Raises:
        UserError: it is not discrete, or not two levels are left.
    """
    if level is None:
        return schedule
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError(f"found {level:g}, expected null: the teacher's schedule is not one of betas")
    kept = schedule.alphas_cumprod()
    kept = kept[(1 - kept) <= level**2 * kept]
    if len(kept) < 2:
        raise UserError(f"found {level:g}, expected a larger one: of the teacher's levels {len(kept)} have less noise")
    return DiscreteSchedule(kept)


def published_start(config: Mapping[str, Any]) -> float | None:
    """The largest σ/α that a scheduler's file says to begin at (``lambda_min_clipped``, of log α/σ), where it does."""
    clipped = config.get("lambda_min_clipped")
    return math.exp(-clipped) if isinstance(clipped, float | int) and math.isfinite(clipped) else None


def prediction_type_of(scheduler: Any) -> PredictionType:
    """What the output of a network with this `diffusers` scheduler means."""
    name = type(scheduler).__name__
    flow = name in _FLOW or scheduler.config.get("use_flow_sigmas")
    own: PredictionType | None = "edm" if name in _EDM else "flow" if flow else None
    return own or scheduler.config.prediction_type


def read_scheduler(path: Path) -> Any:
    """The scheduler that a file configures, of the class that it names: defaults differ between them."""
    import diffusers  # 3 seconds: not at import

    config = read_json_object(path)
    if problems := _scheduler_problems(config):
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    try:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    except ImportError as error:
        raise UserError(
            f"{path}: {config['_class_name']} needs a package that is not installed ({brief(error)}); install it, or "
            f"name another scheduler with the same betas."
        ) from error
    except Exception as error:  # of a class that is not ours, at what a user's file says
        raise UserError(
            f"{path}: {config['_class_name']} of `diffusers` refuses these settings ({brief(error)})."
        ) from error


def alphas_cumprod_of(scheduler: Any) -> np.ndarray:
    """ᾱ of a `diffusers` scheduler in float64; its own cumulative product is float32."""
    betas = scheduler.config.get("trained_betas")
    if betas is None or scheduler.config.get("rescale_betas_zero_snr"):
        # Not `alphas_cumprod`, which is the same but where a sampler cannot divide by zero: 2⁻²⁴ in place of it.
        return np.asarray(torch.cumprod(1.0 - scheduler.betas, dim=0).double().numpy())
    return np.cumprod(1 - np.asarray(betas, dtype=np.float64))


def _scheduler_problems(config: Mapping[str, Any]) -> list[str]:
    # Another family (variance exploding) would be read as a linear DDPM schedule without a word.
    name = config.get("_class_name")
    if name not in (*_EDM, *_FLOW, *_VARIANCE_PRESERVING):
        return [
            f"found the scheduler {name!r}, expected one with betas, EDM's preconditioning, or flow matching: "
            f"{', '.join((*_VARIANCE_PRESERVING, *_EDM, *_FLOW))}."
        ]
    if name in _FLOW:
        return [
            f"found {key} {config[key]!r}, expected {default!r}: of flows the shift is read, and no other grid."
            for key, default in _PLAIN_FLOW.items()
            if config.get(key, default) != default
        ]
    problems = []
    if config.get("use_flow_sigmas"):
        kind = config.get("prediction_type")
        if name not in _ALONG_FLOWS:
            return [f"found use_flow_sigmas True with {name}, expected it with {', '.join(_ALONG_FLOWS)} alone."]
        if kind != "flow_prediction":
            return [f"found prediction_type {kind!r} with use_flow_sigmas, expected 'flow_prediction'."]
        return []
    with_betas = tuple(kind for kind in get_args(PredictionType) if kind not in ("edm", "flow"))
    known = ("epsilon",) if name in _EDM else with_betas
    kind = config.get("prediction_type", "epsilon")
    if kind not in known:
        problems.append(f"found prediction_type {kind!r}, expected one of {', '.join(known)}.")
    if name in _EDM and config.get("sigma_schedule", "karras") != "karras":
        problems.append(f"found sigma_schedule {config['sigma_schedule']!r}, expected 'karras'.")
    if (name, kind, config.get("timestep_type")) == ("EulerDiscreteScheduler", "v_prediction", "continuous"):
        problems.append(
            f"found timestep_type 'continuous' with v_prediction, expected 'discrete': the network would be given "
            f"¼ log σ in place of a timestep. Networks with EDM's preconditioning want {_EDM[0]}."
        )
    if config.get("clip_sample_range", 1.0) != 1.0:
        problems.append(f"found clip_sample_range {config['clip_sample_range']}, expected 1: images are in [-1, 1].")
    return problems
