"""Denoisers as folders that `diffusers` loads: safetensors and JSON, no pickle."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.conditions import Conditions
from diffusion.denoiser import Denoiser
from diffusion.prediction import PredictionType
from diffusion.runtime.errors import CheckpointError, UserError, some_of
from diffusion.runtime.files import link_or_copy, read_json, read_json_object, write_json
from diffusion.schedule import (
    CosineSchedule,
    DiscreteSchedule,
    EdmSchedule,
    FlowSchedule,
    Schedule,
    schedule_from_settings,
)
from diffusion.teachers.latents import AUTOENCODER, Latents, space_of
from diffusion.teachers.lora import is_adapted, merged
from diffusion.teachers.prompts import ENCODER, PROMPTS, TOKENIZER, Prompts, load_prompts, prompts_files, save_prompts
from diffusion.teachers.schedulers import (
    begun_at,
    build_scheduler,
    prediction_type_of,
    published_start,
    read_scheduler,
    schedule_of,
    thresholding_of,
)
from diffusion.teachers.stock import TextFamily, TextsToCome
from diffusion.teachers.stock_student import STUDENT, import_stock, save_stock
from diffusion.teachers.stored_network import NETWORK_PARTS, network_folder, pipeline_class, stored_network
from diffusion.teachers.weights import weights_files
from diffusion.thresholding import NO_THRESHOLD, Thresholding

_EXACT_SCHEDULE = "schedule.json"
# What a stored network is sampled by, of the arguments of `StudentPipeline`.
SAMPLING = ("told_timestep", "read_timestep", "signal_scale", "raw", "levels", "guidance_range", "epsilon_reading")
# Their networks answer with a sample, at once or in a few steps; none is a denoiser.
_STUDENTS = (
    "BootPipeline",
    "ConsistencyPipeline",
    "OneStepPipeline",
    "ConsistencyModelPipeline",
    "LatentConsistencyModelPipeline",
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

    if denoiser.family.pipelines:
        save_stock(folder, source_of(denoiser), denoiser, facts)
        write_json(folder / _EXACT_SCHEDULE, _exact_schedule(denoiser))
        return
    if is_adapted(denoiser.network):
        denoiser = denoiser.with_network(merged(denoiser.network))
    facts = pipeline_facts(denoiser) | facts
    stock = (
        facts.keys() <= {"thresholding", "cosine"}
        and not isinstance(denoiser.schedule, EdmSchedule | FlowSchedule)
        and not denoiser.space.is_latent
        and type(denoiser.network).__module__.startswith("diffusers.")
    )
    parts = {"unet": denoiser.network, "scheduler": build_scheduler(denoiser)}
    pipeline = DDIMPipeline(**parts) if stock else StudentPipeline(**parts, **facts)
    try:
        pipeline.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if isinstance(denoiser.conditions, Prompts):
        _carry_texts(folder, denoiser.conditions)
    if isinstance(denoiser.space, Latents):
        _carry(folder, {AUTOENCODER: (denoiser.space.folder, "diffusers", denoiser.space.config["_class_name"])})
    write_json(folder / _EXACT_SCHEDULE, _exact_schedule(denoiser))


def import_teacher(
    folder: Path, source: Path, num_classes: int | None = None, start_level: float | None = None
) -> None:
    """Takes a stored teacher, whose weights are looked at, into a new folder; a stock pipeline's files are linked.

    Args:
        num_classes: as of :func:`load_conditions`.
        start_level: as of :func:`load_schedule`.

    Raises:
        CheckpointError, UserError: as :func:`load_denoiser`.
    """
    denoiser = load_denoiser(source, start_level=start_level)
    denoiser.conditions = load_conditions(source, num_classes)
    if not denoiser.family.pipelines:
        save_denoiser(folder, denoiser)
        return
    import_stock(folder, source)
    write_json(folder / _EXACT_SCHEDULE, _exact_schedule(denoiser))


def _exact_schedule(denoiser: Denoiser) -> dict[str, Any]:
    """The schedule between integer timesteps, which `diffusers` does not know; and the thresholding, for which EDM's
    scheduler has no place."""
    return denoiser.schedule.settings() | {"thresholding": denoiser.thresholding.model_dump(mode="json")}


def source_of(denoiser: Denoiser) -> Path:
    """The folder of a stock pipeline whose network this is, or is a student of."""
    space, conditions = denoiser.space, denoiser.conditions
    if isinstance(conditions, Prompts | TextsToCome):
        return conditions.source
    assert isinstance(space, Latents)
    return space.folder.parent


def _carry_texts(folder: Path, prompts: Prompts) -> None:
    """Puts the texts, and the encoder with its tokenizer, into a pipeline's folder."""
    encoder, tokenizer = prompts.source / ENCODER, prompts.source / TOKENIZER
    named = read_json(encoder / "config.json")["architectures"][0]
    reads = read_json(tokenizer / "tokenizer_config.json")["tokenizer_class"]
    _carry(folder, {ENCODER: (encoder, "transformers", named), TOKENIZER: (tokenizer, "transformers", reads)})
    save_prompts(folder / PROMPTS, prompts)


def _carry(folder: Path, parts: Mapping[str, tuple[Path, str, str]]) -> None:
    """Puts further parts into a pipeline's folder, and names them in its index; their files are linked.

    Args:
        parts: name to folder, library and class.
    """
    unread = shutil.ignore_patterns("*.bin", ".*")  # pickles, and what downloads leave
    for name, (source, _, _) in parts.items():
        shutil.copytree(source, folder / name, copy_function=link_or_copy, ignore=unread)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", index | {name: list(kind) for name, (_, *kind) in parts.items()})


def pipeline_facts(denoiser: Denoiser) -> dict[str, Any]:
    """What :class:`diffusion.teachers.pipeline.StudentPipeline` is told of a denoiser beside network and scheduler."""
    facts: dict[str, Any] = {"thresholding": denoiser.thresholding.model_dump(mode="json")}
    if denoiser.conditions.num_classes is not None:
        facts["num_classes"] = denoiser.conditions.num_classes
    if isinstance(denoiser.conditions, Prompts):
        facts["max_tokens"] = denoiser.conditions.max_tokens
    if isinstance(denoiser.schedule, CosineSchedule):
        facts["cosine"] = {"t_min": denoiser.schedule.t_min, "t_max": denoiser.schedule.t_max}
    return facts


def sampling_facts(folder: Path) -> dict[str, Any]:
    """How a stored network is sampled, as arguments of the pipeline; none for DDIM steps."""
    stock = folder / STUDENT
    index = read_json(stock if stock.exists() else folder / "model_index.json")
    facts = {name: index[name] for name in SAMPLING if index.get(name) is not None}
    # Folders of BOOT students had no such key, for they had a class of their own.
    return {"told_timestep": 0.0} | facts if index.get("_class_name") == "BootPipeline" else facts


def load_denoiser(folder: Path, device: torch.device | str = "cpu", start_level: float | None = None) -> Denoiser:
    """Reads the network and the schedule of any `diffusers` pipeline folder of a known family.

    Args:
        start_level: as of :func:`load_schedule`.

    Raises:
        CheckpointError: the weights are missing, truncated or belong to another network.
        UserError: the folder is not such a pipeline.
    """
    schedule, prediction_type, thresholding = load_schedule(folder, start_level)
    conditions = load_conditions(folder)
    stored = stored_network(folder)
    space, family = space_of(folder), stored.family
    denoiser = Denoiser(stored.load(), schedule, prediction_type, thresholding, conditions, family, space)
    return denoiser.to(device).eval().requires_grad_(False)


def load_conditions(folder: Path, num_classes: int | None = None) -> Conditions:
    """What the network of a pipeline folder can be told.

    Args:
        num_classes: how many of its labels are classes; None reads it from model_index.json, and takes all labels for
            classes where that does not say.

    Raises:
        UserError: the network's class embedding is of another kind, or does not fit ``num_classes``.
    """
    if (folder / PROMPTS).is_dir():
        return load_prompts(folder / PROMPTS)
    stored = stored_network(folder)
    if isinstance(stored.family, TextFamily):
        return TextsToCome(folder)
    known = num_classes or read_json_object(folder / "model_index.json").get("num_classes")
    try:
        return stored.family.conditions(stored.config, known)
    except ValueError as error:
        raise UserError(f"{stored.folder / 'config.json'}: {error}") from error


def pipeline_problems(folder: Path, weights: bool = True) -> list[str]:
    """What is wrong with a pipeline folder that is to be a teacher, one line each; none where nothing is.

    Args:
        weights: whether they are there to be looked at. Their headers alone are read.
    """
    checks: list[Callable[[Path], Any]] = [_check_parts, lambda folder: stored_network(folder).check(), load_schedule]
    if weights:
        checks.append(lambda folder: stored_network(folder).check_weights())
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
    files = [
        folder / "model_index.json",
        network_folder(folder) / "config.json",
        _scheduler_file(folder),
    ]
    return [
        f"{file}: not found; expected a `diffusers` pipeline folder with a UNet2DModel."
        for file in files
        if not file.exists()
    ]


def _scheduler_file(folder: Path) -> Path:
    scheduler = folder / "scheduler"  # in the Hub's oldest folders it lies in the pipeline's own
    return (scheduler if scheduler.is_dir() else folder) / "scheduler_config.json"


def _check_parts(folder: Path) -> None:
    path, problems = folder / "model_index.json", []
    index = read_json_object(path)
    # A part is [library, class]; [null, null] is one that was left out.
    parts = [name for name, value in index.items() if isinstance(value, list) and value and isinstance(value[0], str)]
    stock = bool(stored_network(folder).family.pipelines)
    read = (*NETWORK_PARTS, "scheduler", AUTOENCODER, *((ENCODER, TOKENIZER) if (folder / PROMPTS).is_dir() else ()))
    if unread := [name for name in parts if name not in read and not name.startswith("_") and not stock]:
        problems.append(
            f"found the parts {some_of(unread)}, expected unet, scheduler and {AUTOENCODER} alone: nothing else is "
            f"read. Of pipelines with a text encoder the ones that this suite wrote are read, for they hold the texts "
            f"of the teacher's training ({PROMPTS})."
        )
    if AUTOENCODER in parts and not (folder / AUTOENCODER).is_dir():
        problems.append(f"names the part {AUTOENCODER}, but there is no folder {folder / AUTOENCODER}.")
    name = pipeline_class(index)
    # A StudentPipeline is a teacher's, too, where `diffusers` has no pipeline that samples it.
    distilled = index.get("told_timestep") is not None or index.get("levels") is not None or (folder / STUDENT).exists()
    if name in _STUDENTS or ((name == "StudentPipeline" or stock) and distilled):
        problems.append(f"found a {name}, a distilled student; expected a teacher, which estimates the clean image.")
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def load_schedule(folder: Path, start_level: float | None = None) -> tuple[Schedule, PredictionType, Thresholding]:
    """The schedule of a pipeline folder, its prediction type, and how x̂ is bounded.

    The schedule is the stored continuous one where the folder has it, otherwise the scheduler's
    ``alphas_cumprod``, interpolated, from the level on that its file says to begin at.

    Args:
        start_level: as of :class:`diffusion.teachers.settings.StoredTeacher`.

    Raises:
        UserError: the folder is not a pipeline with a network that this suite reads, or its two schedules differ.
    """
    if missing := missing_files(folder):
        raise UserError("\n".join(missing))
    network = stored_network(folder)  # which refuses another
    if (folder / STUDENT).exists():  # whose scheduler is of its one step
        return _stored_schedule(folder, NO_THRESHOLD, read_json(folder / STUDENT)["prediction_type"])
    scheduler_file = _scheduler_file(folder)
    scheduler = read_scheduler(scheduler_file)
    try:
        shape = network.shape if scheduler.config.get("use_dynamic_shifting") else None
        schedule, prediction_type = schedule_of(scheduler, shape), prediction_type_of(scheduler)
    except UserError as error:
        raise UserError(f"{scheduler_file}: {error}") from error
    thresholding = thresholding_of(scheduler)
    if (folder / _EXACT_SCHEDULE).exists():
        exact, _, thresholding = _stored_schedule(folder, thresholding, prediction_type)
        if not _same_schedule(exact, schedule):
            raise UserError(
                f"{folder / _EXACT_SCHEDULE}: is not the schedule of {folder / 'scheduler'}; expected both "
                f"alike, or no such file, where the scheduler's own is wanted."
            )
        schedule = exact
    elif start_level is None and isinstance(schedule, DiscreteSchedule):
        start_level = published_start(scheduler.config)
    try:
        schedule = begun_at(schedule, start_level)
    except UserError as error:
        raise UserError(f"start_level: {error}") from error
    if prediction_type == "epsilon" and schedule.alphas_cumprod()[-1] < 1e-12:
        raise UserError(
            f"{folder}: an epsilon teacher with zero terminal signal-to-noise ratio has no estimate of x at t_max; "
            f"expected another prediction type or schedule."
        )
    return schedule, prediction_type, thresholding


def _stored_schedule(
    folder: Path, thresholding: Thresholding, prediction_type: PredictionType
) -> tuple[Schedule, PredictionType, Thresholding]:
    """What :func:`save_denoiser` wrote of a schedule beside its scheduler.

    Args:
        thresholding: what a file of an earlier version does not say.
    """
    stored = read_json(folder / _EXACT_SCHEDULE)
    try:
        if "thresholding" in stored:
            thresholding = Thresholding.model_validate(stored.pop("thresholding"))
        return schedule_from_settings(stored), prediction_type, thresholding
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder / _EXACT_SCHEDULE}: cannot be read ({error}); expected what this suite writes, or no "
            f"such file, where the scheduler's own schedule is wanted."
        ) from error


def _same_schedule(one: Schedule, other: Schedule) -> bool:
    if isinstance(one, EdmSchedule | FlowSchedule) or isinstance(other, EdmSchedule | FlowSchedule):
        return one.settings() == other.settings()
    # A stored one may begin at less noise.
    count = one.num_timesteps
    whole = count == other.num_timesteps or (isinstance(one, DiscreteSchedule) and count < other.num_timesteps)
    return whole and np.allclose(one.alphas_cumprod(), other.alphas_cumprod()[:count], rtol=1e-6, atol=1e-12)


def deciding_files(folder: Path) -> list[Path]:
    """The files of a pipeline folder that decide what it computes: weights, their configuration, the schedule, the
    number of classes."""
    try:
        weights = weights_files(network_folder(folder))
    except CheckpointError:
        weights = []
    files = [
        *weights,
        network_folder(folder) / "config.json",
        _scheduler_file(folder),
        folder / "model_index.json",
        folder / _EXACT_SCHEDULE,
        folder / STUDENT,
        *prompts_files(folder),
        *sorted((folder / AUTOENCODER).glob("*.json")),
        *sorted((folder / AUTOENCODER).glob("*.safetensors")),
    ]
    return [file for file in files if file.exists()]
