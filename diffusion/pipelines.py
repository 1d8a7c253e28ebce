"""Denoisers as folders that `diffusers` loads: safetensors and JSON, no pickle."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion.conditions import ClassLabels, Conditions, Unconditional
from diffusion.denoiser import Denoiser, PredictionType
from diffusion.errors import CheckpointError, UserError
from diffusion.files import read_json, write_json
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule, Schedule, schedule_from_settings
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_EXACT_SCHEDULE = "schedule.json"
_EDM = "EDMEulerScheduler"
# Networks of published teachers that `diffusers` has not, and the modules of this package that hold them.
_OWN_NETWORKS = {"SongUNet": "song_unet", "TimeScaledUNet": "time_scaled_unet"}
_NO_MAXIMUM = 1e9  # of dynamic thresholding; `diffusers` wants a number
_VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)


def build_scheduler(denoiser: Denoiser) -> Any:
    """The `diffusers` scheduler of ``denoiser``: ``EDMEulerScheduler`` for EDM's schedule, else ``DDIMScheduler``.

    The latter samples as :func:`diffusion.solvers.ddim_sample` does, for step counts N that divide ``num_timesteps`` T.
    For others `diffusers` steps by ⌊T/N⌋ timesteps and begins the next step elsewhere (docs/methods.md, "Step counts").

    The betas are ours (``trained_betas``): `diffusers`' own cosine schedule ends at another α. Spacing is
    "trailing", because the others evaluate one step at timestep 0. ``DDIMPipeline`` must be called with
    ``use_clipped_model_output=True`` to take ε from the clipped x̂, as the closed form does; that flag is an argument
    of the call and cannot be stored.
    """
    from diffusers import DDIMScheduler, EDMEulerScheduler

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


def save_denoiser(folder: Path, denoiser: Denoiser, **facts: Any) -> None:
    """Writes a `diffusers` pipeline folder.

    Its class is ``DDIMPipeline`` where that draws the same samples: for an unconditional ``UNet2DModel`` with betas
    that is sampled by DDIM steps. All others get :class:`diffusion.student_pipeline.StudentPipeline`, with its code.

    Args:
        facts: further arguments of that class, for networks that DDIM steps do not sample.

    Raises:
        OSError: the weights could not be written, for instance on a full disk.
    """
    from diffusers import DDIMPipeline
    from safetensors import SafetensorError

    from diffusion.student_pipeline import StudentPipeline

    facts = pipeline_facts(denoiser) | facts
    stock = facts.keys() <= {"thresholding", "cosine"} and type(denoiser.network).__name__ not in _OWN_NETWORKS
    stock = stock and not isinstance(denoiser.schedule, EdmSchedule)
    parts = {"unet": denoiser.network, "scheduler": build_scheduler(denoiser)}
    pipeline = DDIMPipeline(**parts) if stock else StudentPipeline(**parts, **facts)
    try:
        pipeline.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # `diffusers` knows the schedule at integer timesteps only; this is what it is between them.
    # EDM's scheduler has no place for the thresholding.
    thresholding = {"thresholding": denoiser.thresholding.model_dump(mode="json")}
    write_json(folder / _EXACT_SCHEDULE, denoiser.schedule.settings() | thresholding)


def pipeline_facts(denoiser: Denoiser) -> dict[str, Any]:
    """What :class:`diffusion.student_pipeline.StudentPipeline` is told of a denoiser beside network and scheduler."""
    facts: dict[str, Any] = {"thresholding": denoiser.thresholding.model_dump(mode="json")}
    if isinstance(denoiser.conditions, ClassLabels):
        facts["num_classes"] = denoiser.conditions.num_classes
    if isinstance(denoiser.schedule, CosineSchedule):
        facts["cosine"] = {"t_min": denoiser.schedule.t_min, "t_max": denoiser.schedule.t_max}
    return facts


def load_denoiser(folder: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Reads the network and the schedule of any `diffusers` pipeline folder with a ``UNet2DModel``, or with one of this
    suite's own networks.

    Raises:
        CheckpointError: the weights are missing, truncated or belong to another network.
        UserError: the folder is not such a pipeline.
    """
    schedule, prediction_type, thresholding = load_schedule(folder)
    conditions = load_conditions(folder)
    denoiser = Denoiser(load_network(_part(folder, "unet")), schedule, prediction_type, thresholding, conditions)
    return denoiser.to(device).eval().requires_grad_(False)


def load_conditions(folder: Path, num_classes: int | None = None) -> Conditions:
    """What the network of a pipeline folder can be told.

    Args:
        num_classes: how many of its labels are classes; None reads it from model_index.json, and takes all labels for
            classes where that does not say.

    Raises:
        UserError: the network's class embedding is of another kind, or does not fit ``num_classes``.
    """
    stored = read_json(folder / "model_index.json").get("num_classes")
    try:
        return _conditions_of(network_configuration(folder), num_classes or stored)
    except ValueError as error:
        raise UserError(f"{_part(folder, 'unet') / 'config.json'}: {error}") from error


def _conditions_of(config: Mapping[str, Any], num_classes: int | None) -> Conditions:
    labels = config.get("num_class_embeds")
    if config.get("class_embed_type") is not None:
        raise ValueError(f"found class_embed_type {config['class_embed_type']!r}, expected none")
    if labels is None:
        if num_classes is not None:
            raise ValueError(f"the network is not told any class, but num_classes is {num_classes}")
        return Unconditional()
    classes = labels if num_classes is None else num_classes
    if labels - classes not in (0, 1):
        raise ValueError(
            f"the network has {labels} labels; expected num_classes {labels}, or {labels - 1} and no class"
        )
    return ClassLabels(classes, has_null=labels == classes + 1)


def load_schedule(folder: Path) -> tuple[Schedule, PredictionType, Thresholding]:
    """The schedule of a pipeline folder, its prediction type, and how x̂ is bounded.

    The schedule is the stored continuous one where the folder has it, otherwise the scheduler's
    ``alphas_cumprod``, interpolated.

    Raises:
        UserError: the folder is not a pipeline with a network that this suite reads, or its two schedules differ.
    """
    scheduler_file = _part(folder, "scheduler") / "scheduler_config.json"
    for file in (folder / "model_index.json", scheduler_file, _part(folder, "unet") / "config.json"):
        if not file.exists():
            raise UserError(f"{file}: not found; expected a `diffusers` pipeline folder with a UNet2DModel.")
    network_configuration(folder)  # which refuses another network
    config = read_json(scheduler_file)
    _check_scheduler(config, scheduler_file)
    scheduler = _scheduler(config)
    schedule, prediction_type = schedule_of(scheduler), prediction_type_of(scheduler)
    thresholding = _thresholding_of(config)
    if (folder / _EXACT_SCHEDULE).exists():
        stored = read_json(folder / _EXACT_SCHEDULE)
        try:
            if "thresholding" in stored:
                thresholding = Thresholding.model_validate(stored.pop("thresholding"))
            exact = schedule_from_settings(stored)
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{folder / _EXACT_SCHEDULE}: cannot be read ({error}); expected what this suite writes, or no "
                f"such file, where the scheduler's own schedule is wanted."
            ) from error
        if not _same_schedule(exact, schedule):
            raise UserError(
                f"{folder / _EXACT_SCHEDULE}: is not the schedule of {folder / 'scheduler'}; expected both "
                f"alike, or no such file, where the scheduler's own is wanted."
            )
        schedule = exact
    if prediction_type == "epsilon" and schedule.alphas_cumprod()[-1] < 1e-12:
        raise UserError(
            f"{folder}: an epsilon teacher with zero terminal signal-to-noise ratio has no estimate of x at t_max; "
            f"expected another prediction type or schedule."
        )
    return schedule, prediction_type, thresholding


def _thresholding_of(config: Mapping[str, Any]) -> Thresholding:
    # `diffusers` asks in this order. Schedulers without the keys (PNDM, DPM-Solver) do not clip.
    if config.get("thresholding"):
        maximum = config.get("sample_max_value", 1.0)
        return Thresholding(
            kind="dynamic",
            ratio=config.get("dynamic_thresholding_ratio", 0.995),
            maximum=None if maximum >= _NO_MAXIMUM else maximum,
        )
    return STATIC if config.get("clip_sample", False) else NO_THRESHOLD


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a `diffusers` scheduler; one that is discrete is interpolated."""
    config = scheduler.config
    if type(scheduler).__name__ == _EDM:
        return EdmSchedule(
            config.sigma_min, config.sigma_max, config.sigma_data, config.rho, config.num_train_timesteps
        )
    return DiscreteSchedule(alphas_cumprod_of(scheduler))


def prediction_type_of(scheduler: Any) -> PredictionType:
    """What the output of a network with this `diffusers` scheduler means."""
    kind: PredictionType = "edm" if type(scheduler).__name__ == _EDM else scheduler.config.prediction_type
    return kind


def _scheduler(config: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, EDMEulerScheduler

    # Every scheduler with betas reads as DDIM's, which keeps the keys that matter here.
    return (EDMEulerScheduler if config["_class_name"] == _EDM else DDIMScheduler).from_config(config)


def _same_schedule(one: Schedule, other: Schedule) -> bool:
    if isinstance(one, EdmSchedule) or isinstance(other, EdmSchedule):
        return one.settings() == other.settings()
    return one.num_timesteps == other.num_timesteps and np.allclose(
        one.alphas_cumprod(), other.alphas_cumprod(), rtol=1e-6, atol=1e-12
    )


def alphas_cumprod_of(scheduler: Any) -> np.ndarray:
    """ᾱ of a `diffusers` scheduler in float64; its own cumulative product is float32."""
    betas = scheduler.config.get("trained_betas")
    if betas is None or scheduler.config.get("rescale_betas_zero_snr"):
        return np.asarray(scheduler.alphas_cumprod.double().numpy())
    return np.cumprod(1 - np.asarray(betas, dtype=np.float64))


def _check_scheduler(config: dict[str, Any], path: Path) -> None:
    # Another family (variance exploding, flow matching) would be read as a linear DDPM schedule without a word.
    name = config.get("_class_name")
    if name != _EDM and name not in _VARIANCE_PRESERVING:
        raise UserError(
            f"{path}: found the scheduler {name!r}, expected one with betas or {_EDM}: "
            f"{', '.join(_VARIANCE_PRESERVING)}."
        )
    known = ("epsilon",) if name == _EDM else ("epsilon", "v_prediction", "sample")
    if config.get("prediction_type", "epsilon") not in known:
        raise UserError(
            f"{path}: found prediction_type {config['prediction_type']!r}, expected one of {', '.join(known)}."
        )
    if name == _EDM and config.get("sigma_schedule", "karras") != "karras":
        raise UserError(f"{path}: found sigma_schedule {config['sigma_schedule']!r}, expected 'karras'.")
    if config.get("clip_sample_range", 1.0) != 1.0:
        raise UserError(
            f"{path}: found clip_sample_range {config['clip_sample_range']}, expected 1: pictures are in [-1, 1]."
        )


def network_class(config: Mapping[str, Any]) -> Any:
    """The class of a stored network's configuration: ``UNet2DModel``, or one of this suite's own.

    The configuration comes from :func:`network_configuration`, which has refused all others.
    """
    import diffusers  # 3 seconds: not at import

    name = config.get("_class_name", "")
    if name not in _OWN_NETWORKS:
        return diffusers.UNet2DModel
    return getattr(importlib.import_module(f"diffusion.{_OWN_NETWORKS[name]}"), name)


def own_network_file(folder: Path) -> str | None:
    """The file in ``diffusion/`` that holds the network of a pipeline folder; None where it is of `diffusers`."""
    module = _OWN_NETWORKS.get(network_configuration(folder).get("_class_name", ""))
    return f"{module}.py" if module else None


def load_network(folder: Path) -> nn.Module:
    """Reads a network's folder from safetensors, strictly.

    Raises:
        CheckpointError: the weights are missing, truncated or belong to another network.
        UserError: it is a network that this suite does not read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = folder / _WEIGHTS
    if not weights.exists():
        raise CheckpointError(
            f"{weights}: not found. Only safetensors are read, never a pickle; convert the weights first "
            f"(`diffusers`' save_pretrained(..., safe_serialization=True))."
        )
    config = _read_network_configuration(folder / "config.json")
    try:
        network: nn.Module = network_class(config).from_config(config)
        network.load_state_dict(_with_todays_names(load_file(weights), network), strict=True)
    except (SafetensorError, RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{weights}: truncated, or weights of another network than {folder / 'config.json'} ({reason})."
        ) from error
    broken = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{weights}: {len(broken)} tensors contain NaN or infinity, e.g. {broken[0]}.")
    return network


def _with_todays_names(weights: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of `diffusers` before 0.14, as the Hub's first teachers are, had other names in their attention."""
    names = network.state_dict()
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def renamed(name: str) -> str:
        parts = name.split(".")
        other = ".".join([*parts[:-2], today.get(parts[-2], parts[-2]), parts[-1]]) if len(parts) > 1 else name
        return other if name not in names and other in names else name

    return {renamed(name): tensor for name, tensor in weights.items()}


def picture_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that a network of this configuration makes."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["out_channels"], height, width


def network_configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a pipeline folder's network.

    Raises:
        UserError: it is a network that this suite does not read.
    """
    return _read_network_configuration(_part(folder, "unet") / "config.json")


def _read_network_configuration(path: Path) -> dict[str, Any]:
    configuration: dict[str, Any] = read_json(path)
    # The Hub's oldest folders do not say; whatever else does would be built as a UNet2DModel of default sizes.
    name = configuration.get("_class_name")
    known = ("UNet2DModel", *_OWN_NETWORKS)
    if name is not None and name not in known:
        raise UserError(
            f"{path}: found the network {name!r} (_class_name), expected one of {', '.join(known)}. Name a folder with "
            f"one of these, or convert the checkpoint (docs/teachers.md)."
        )
    return configuration


def stored_picture_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of a pipeline folder's pictures, without loading its weights."""
    return picture_shape(network_configuration(folder))


def _part(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is: its own folder, or the pipeline's, as in the Hub's oldest ones."""
    return folder / name if (folder / name).is_dir() else folder


def weights_file(folder: Path) -> Path:
    """The weights of a pipeline folder."""
    return _part(folder, "unet") / _WEIGHTS


def deciding_files(folder: Path) -> list[Path]:
    """The files of a pipeline folder that decide what it computes: weights, their configuration, the schedule, the
    number of classes."""
    files = [
        weights_file(folder),
        _part(folder, "unet") / "config.json",
        _part(folder, "scheduler") / "scheduler_config.json",
        folder / "model_index.json",
        folder / _EXACT_SCHEDULE,
    ]
    return [file for file in files if file.exists()]
