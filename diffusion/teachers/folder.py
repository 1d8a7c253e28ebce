"""Denoisers as folders that `diffusers` loads: safetensors and JSON, no pickle."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion.conditions import ClassLabels, Conditions, Unconditional
from diffusion.denoiser import Denoiser
from diffusion.prediction import PredictionType
from diffusion.runtime.errors import CheckpointError, UserError, some_of
from diffusion.runtime.files import canonical_json, read_json, read_json_object, sha256_file, write_json
from diffusion.runtime.packages import version_of
from diffusion.schedule import CosineSchedule, DiscreteSchedule, EdmSchedule, Schedule, schedule_from_settings
from diffusion.teachers.weights import check_fit, described_weights, fill, load_weights, weights_files
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding

_EXACT_SCHEDULE = "schedule.json"
# Both precondition alike; they differ in how they sample.
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# Networks of published teachers that `diffusers` has not (diffusion/teachers/networks).
_OWN_NETWORKS = ("SongUNet", "TimeScaledUNet")
_CHANNELS = 3  # of `diffusers`' networks that do not say
_NO_MAXIMUM = 1e9  # of dynamic thresholding; `diffusers` wants a number
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
# Their networks answer with a sample, at once or in a few steps; none is a denoiser.
_STUDENTS = (
    "BootPipeline",
    "ConsistencyPipeline",
    "OneStepPipeline",
    "ConsistencyModelPipeline",
    "LatentConsistencyModelPipeline",
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
    that is sampled by DDIM steps. All others get :class:`diffusion.teachers.pipeline.StudentPipeline`, with its code.

    Args:
        facts: further arguments of that class, for networks that DDIM steps do not sample.

    Raises:
        OSError: the weights could not be written, for instance on a full disk.
    """
    from diffusers import DDIMPipeline
    from safetensors import SafetensorError

    from diffusion.teachers.pipeline import StudentPipeline

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
    """What :class:`diffusion.teachers.pipeline.StudentPipeline` is told of a denoiser beside network and scheduler."""
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
    stored = read_json_object(folder / "model_index.json").get("num_classes")
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


def pipeline_problems(folder: Path, weights: bool = True) -> list[str]:
    """What is wrong with a pipeline folder that is to be a teacher, one line each; none where nothing is.

    Args:
        weights: whether they are there to be looked at. Their headers alone are read.
    """
    checks: list[Callable[[Path], Any]] = [_check_parts, _check_network, load_schedule]
    if weights:
        checks.append(_check_weights)
    if problems := missing_files(folder):
        return problems
    for check in checks:
        try:
            check(folder)
        except UserError as error:
            problems += str(error).splitlines()
    return list(dict.fromkeys(problems))


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be a pipeline, one line each."""
    parts = {"unet": "config.json", "scheduler": "scheduler_config.json"}
    files = [folder / "model_index.json", *(_part(folder, part) / name for part, name in parts.items())]
    return [
        f"{file}: not found; expected a `diffusers` pipeline folder with a UNet2DModel."
        for file in files
        if not file.exists()
    ]


def _check_parts(folder: Path) -> None:
    path, problems = folder / "model_index.json", []
    index = read_json_object(path)
    # A part is [library, class]; [null, null] is one that was left out.
    parts = [name for name, value in index.items() if isinstance(value, list) and value and isinstance(value[0], str)]
    if unread := [name for name in parts if name not in ("unet", "scheduler") and not name.startswith("_")]:
        problems.append(
            f"found the parts {some_of(unread)}, expected unet and scheduler alone: nothing else is read. Pipelines "
            f"with an autoencoder draw latents, those with a text encoder want a text; neither is supported."
        )
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    # A StudentPipeline is a teacher's, too, where `diffusers` has no pipeline that samples it.
    distilled = index.get("told_timestep") is not None or index.get("levels") is not None
    if name in _STUDENTS or (name == "StudentPipeline" and distilled):
        problems.append(f"found a {name}, a distilled student; expected a teacher, which estimates the clean image.")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _check_network(folder: Path) -> None:
    path, problems = _part(folder, "unet") / "config.json", []
    config = network_configuration(folder)
    inputs, outputs = (config.get(key, _CHANNELS) for key in ("in_channels", "out_channels"))
    if inputs != outputs:
        found = f"found in_channels {inputs} and out_channels {outputs}, expected both alike"
        problems.append(
            f"{found}: the second half is a learnt variance, which is not read. Store the network with the first half "
            f"of conv_out alone (of its weight and bias) and out_channels {inputs}."
            if outputs == 2 * inputs
            else f"{found}: the network must estimate the image that it is given, and nothing be given beside it."
        )
    side = config.get("sample_size")
    if isinstance(side, (list, tuple)) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    levels = len(config["block_out_channels"]) if isinstance(config.get("block_out_channels"), (list, tuple)) else 1
    if type(side) is not int or side < 1:
        problems.append(
            f"found sample_size {config.get('sample_size')!r}, expected the side of the square images that the network "
            f"was trained on, such as 32; write it into the file."
        )
    elif side % 2 ** (levels - 1):
        problems.append(
            f"found sample_size {side} with {levels} block_out_channels, expected a multiple of {2 ** (levels - 1)}: "
            f"every level halves the image."
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        reasons = {
            "learned": ": it knows whole timesteps only, and methods ask between them",
            "fourier": ": it takes the logarithm of a noise level, and is given timesteps from 0 on here",
        }
        problems.append(f"found time_embedding_type {embedding!r}, expected 'positional'{reasons.get(embedding, '')}.")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _check_weights(folder: Path) -> None:
    network, configuration = _part(folder, "unet"), network_configuration(folder)
    weights = described_weights(network)
    own = configuration.get("_class_name") in _OWN_NETWORKS
    code = [sha256_file(file) for file in sorted(Path(__file__).with_name("networks").glob("*.py"))] if own else None
    key = canonical_json([version_of("diffusers"), code, configuration])
    with _of_this_network(network):
        check_fit(lambda: _build(network), weights, key)


def load_schedule(folder: Path) -> tuple[Schedule, PredictionType, Thresholding]:
    """The schedule of a pipeline folder, its prediction type, and how x̂ is bounded.

    The schedule is the stored continuous one where the folder has it, otherwise the scheduler's
    ``alphas_cumprod``, interpolated.

    Raises:
        UserError: the folder is not a pipeline with a network that this suite reads, or its two schedules differ.
    """
    if missing := missing_files(folder):
        raise UserError("\n".join(missing))
    network_configuration(folder)  # which refuses another network
    scheduler_file = _part(folder, "scheduler") / "scheduler_config.json"
    scheduler = _scheduler(scheduler_file)
    try:
        schedule, prediction_type = schedule_of(scheduler), prediction_type_of(scheduler)
    except UserError as error:
        raise UserError(f"{scheduler_file}: {error}") from error
    thresholding = _thresholding_of(scheduler)
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


def _thresholding_of(scheduler: Any) -> Thresholding:
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


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a `diffusers` scheduler; one that is discrete is interpolated."""
    config = scheduler.config
    if type(scheduler).__name__ in _EDM:
        return EdmSchedule(
            config.sigma_min, config.sigma_max, config.sigma_data, config.rho, config.num_train_timesteps
        )
    return DiscreteSchedule(alphas_cumprod_of(scheduler))


def prediction_type_of(scheduler: Any) -> PredictionType:
    """What the output of a network with this `diffusers` scheduler means."""
    kind: PredictionType = "edm" if type(scheduler).__name__ in _EDM else scheduler.config.prediction_type
    return kind


def _scheduler(path: Path) -> Any:
    """The scheduler that a file configures, of the class that it names: defaults differ between them."""
    import diffusers  # 3 seconds: not at import

    config = read_json_object(path)
    if problems := _scheduler_problems(config):
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    try:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    except ImportError as error:
        raise UserError(
            f"{path}: {config['_class_name']} needs a package that is not installed ({_brief(error)}); install it, or "
            f"name another scheduler with the same betas."
        ) from error
    except Exception as error:  # of a class that is not ours, at what a user's file says
        raise UserError(
            f"{path}: {config['_class_name']} of `diffusers` refuses these settings ({_brief(error)})."
        ) from error


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
        # Not `alphas_cumprod`, which is the same but where a sampler cannot divide by zero: 2⁻²⁴ in place of it.
        return np.asarray(torch.cumprod(1.0 - scheduler.betas, dim=0).double().numpy())
    return np.cumprod(1 - np.asarray(betas, dtype=np.float64))


def _scheduler_problems(config: Mapping[str, Any]) -> list[str]:
    # Another family (variance exploding, flow matching) would be read as a linear DDPM schedule without a word.
    name = config.get("_class_name")
    if name not in (*_EDM, *_VARIANCE_PRESERVING):
        return [
            f"found the scheduler {name!r}, expected one with betas or EDM's preconditioning: "
            f"{', '.join((*_VARIANCE_PRESERVING, *_EDM))}."
        ]
    problems = []
    if config.get("use_flow_sigmas"):
        problems.append(
            "found use_flow_sigmas true, expected false: flow matching is not supported, and its networks read with "
            "betas give wrong images."
        )
    known = ("epsilon",) if name in _EDM else ("epsilon", "v_prediction", "sample")
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


def network_class(config: Mapping[str, Any]) -> Any:
    """The class of a stored network's configuration: ``UNet2DModel``, or one of this suite's own.

    The configuration comes from :func:`network_configuration`, which has refused all others.
    """
    import diffusers  # 3 seconds: not at import

    name = config.get("_class_name", "")
    if name not in _OWN_NETWORKS:
        return diffusers.UNet2DModel
    from diffusion.teachers.networks.song_unet import SongUNet
    from diffusion.teachers.networks.time_scaled_unet import TimeScaledUNet

    return {"SongUNet": SongUNet, "TimeScaledUNet": TimeScaledUNet}[name]


def load_network(folder: Path) -> nn.Module:
    """Reads a network's folder from safetensors, strictly.

    Raises:
        CheckpointError: the weights are missing, truncated or belong to another network.
        UserError: it is a network that this suite does not read.
    """
    network = _build(folder)
    weights = load_weights(folder)
    with _of_this_network(folder):
        fill(network, weights)
    broken = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{weights_files(folder)[0]}: {len(broken)} tensors contain NaN or infinity, e.g. {broken[0]}."
        )
    return network


def _build(folder: Path) -> nn.Module:
    """The network of a folder's configuration, with random weights."""
    path = folder / "config.json"
    config = _read_network_configuration(path)
    try:
        network: nn.Module = network_class(config).from_config(config)
    except Exception as error:  # of a class that is not ours, at what a user's file says
        raise UserError(f"{path}: no network can be built from it ({_brief(error)}).") from error
    return network


@contextmanager
def _of_this_network(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights_files(folder)[0]}: weights of another network than {folder / 'config.json'} ({_brief(error)})."
        ) from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def picture_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that a network of this configuration makes."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config.get("out_channels", _CHANNELS), height, width


def network_configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a pipeline folder's network.

    Raises:
        UserError: it is a network that this suite does not read.
    """
    return _read_network_configuration(_part(folder, "unet") / "config.json")


def _read_network_configuration(path: Path) -> dict[str, Any]:
    configuration = read_json_object(path)
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


def deciding_files(folder: Path) -> list[Path]:
    """The files of a pipeline folder that decide what it computes: weights, their configuration, the schedule, the
    number of classes."""
    try:
        weights = weights_files(_part(folder, "unet"))
    except CheckpointError:
        weights = []
    files = [
        *weights,
        _part(folder, "unet") / "config.json",
        _part(folder, "scheduler") / "scheduler_config.json",
        folder / "model_index.json",
        folder / _EXACT_SCHEDULE,
    ]
    return [file for file in files if file.exists()]
