"""Wall-clock speed of samplers, measured side by side.

The job that calls this needs the machine to itself. The samplers take turns, round by round and in a random order, so
that a slow moment of the machine hits all of them and none always follows the same neighbour; every call in a round
gets the same fresh noise, made beforehand; the further noise of stochastic samplers is drawn on the device, a batch at
once; the device is synchronised before each reading of the clock; a warm-up keeps lazy initialisation out of the
figures. Medians are reported, because a disturbance only ever makes a call slower; rounds go on until every median is
known well enough, or the time is used up.

What a call spends in its network, its peak memory and, where the card tells, its energy are taken in calls of their own
after the timing, which they would disturb.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy import stats

from diffusion.noise import drawn_by_batch
from diffusion.runtime.device import processor_name
from diffusion.runtime.errors import NonFiniteError, UserError
from diffusion.runtime.memory import within_memory
from evaluation.columns import SPEED_COLUMNS

Sampler = Callable[[torch.Tensor], Any]

COLUMNS = SPEED_COLUMNS[SPEED_COLUMNS.index("device") :]

_SPLIT_CALLS = 3  # in which the time within the network is taken
_ENERGY_SECONDS = 1.0  # a card's energy counter moves every some ten milliseconds


@dataclass(frozen=True)
class SpeedResult:
    """What :func:`measure_speed` found.

    Attributes:
        rows: one a sampler and batch size: ``key`` (the sampler), the columns of speed.csv from ``device`` on
            (:data:`COLUMNS`) and ``latency_ms_iqr`` (the spread: upper minus lower quartile). ``median_precision`` is
            half the width of the median's 95 % interval over the median, ``network_share`` the share of the time that
            passes within the network; ``text_encoder_ms`` and ``decoder_ms`` are medians of such a batch in a part of
            its own. None where a figure could not be taken, or there is no such part.
        raw: settings, the processor's clock and every single latency in milliseconds, for the JSON beside the table.
    """

    rows: list[dict[str, Any]]
    raw: dict[str, Any]


def measure_speed(
    samplers: Mapping[str, Sampler],
    make_noise: Callable[[int], torch.Tensor],
    batch_sizes: Sequence[int],
    device: str | torch.device,
    *,
    networks: Mapping[str, torch.nn.Module] | None = None,
    parts: Mapping[str, Sampler] | None = None,
    seconds: float = 60.0,
    precision: float = 0.02,
    warmup: int = 2,
    min_rounds: int = 6,  # the fewest that give a median an interval at 95 %
    max_rounds: int = 200,
    seed: int = 0,
) -> SpeedResult:
    """Times samplers in interleaved rounds.

    Peak memory is taken in one extra call after the timing. On CUDA it is torch's peak of allocated memory,
    models included; on a CPU it is the peak resident set of the whole process during the call, None where the
    system does not let a process reset that mark. One megabyte is 10⁶ bytes.

    Args:
        samplers: name to a function from noise (B, C, H, W) to pictures (B, C, H, W), both on ``device``.
        make_noise: batch size to fresh noise on ``device``.
        batch_sizes: for example (128, 1): throughput and single-picture latency.
        device: where the samplers run.
        networks: the network of each sampler, whose share of the time is taken; None leaves it out.
        parts: what is timed in turns with them, and is a column of every row: ``text_encoder``, which the samplers do
            not run, and ``decoder``, which they do. As many texts, or latents, as there is noise.
        seconds: time budget over all batch sizes. Rounds go on until it is used up or every median is precise, but at
            least ``min_rounds`` and at most ``max_rounds`` are made at each batch size.
        precision: a median is precise when half its 95 % interval (from order statistics) is within this share of it.
        warmup: untimed rounds at each batch size.
        seed: of the order of the samplers.

    Raises:
        UserError: no sampler, or a sampler that returns another number of pictures.
        NonFiniteError: a sampler returns NaN or infinity.
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    if not samplers or not batch_sizes:
        raise UserError("speed: nothing to measure; give at least one sampler and one batch size.")
    device, parts = torch.device(device), parts or {}
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "compile": "off",
        "further_noise": "drawn on the device, a batch at once",
        "clock_before": clocks(device),
        "seconds": seconds,
        "precision": precision,
        "warmup": warmup,
        "min_rounds": min_rounds,
        "max_rounds": max_rounds,
        "latency_ms": {},
    }
    with torch.no_grad(), drawn_by_batch(device):
        for batch_size in batch_sizes:
            noise = make_noise(batch_size)
            raw["dtype"] = arithmetic(noise.dtype, device)
            for name, sampler in samplers.items():

                def once(count: int, sampler: Sampler = sampler, noise: torch.Tensor = noise) -> torch.Tensor:
                    return sampler(noise[:count])

                _check_output(name, within_memory("speed.batch_sizes", once, batch_size, device), batch_size)
            order, limits = np.random.default_rng(seed), (warmup, min_rounds, max_rounds)
            latencies = _time_rounds(
                {**samplers, **parts}, make_noise, batch_size, device, seconds / len(batch_sizes), precision, *limits,
                order,
            )  # fmt: skip
            raw["latency_ms"][str(batch_size)] = {name: values.tolist() for name, values in latencies.items()}
            of_parts = {name: float(np.median(latencies[name])) for name in parts}
            for name in samplers:
                values = latencies[name]
                median = float(np.median(values))
                rows.append(
                    {
                        "key": name,
                        "device": raw["device"],
                        "dtype": raw["dtype"],
                        "batch_size": batch_size,
                        "images_per_second": 1000 * batch_size / median,
                        "latency_ms_median": median,
                        "latency_ms_p95": float(np.percentile(values, 95)),
                        "peak_memory_mb": peak_memory_mb(samplers[name], noise, device),
                        "rounds": len(values),
                        "median_precision": median_precision(values),
                        "network_share": (
                            network_share(samplers[name], networks[name], noise, device) if networks else None
                        ),
                        "energy_j_per_image": energy_per_image(samplers[name], noise, device),
                        "text_encoder_ms": of_parts.get("text_encoder"),
                        "decoder_ms": of_parts.get("decoder"),
                        "latency_ms_iqr": float(np.subtract(*np.percentile(values, [75, 25]))),
                    }
                )
    raw["clock_after"] = clocks(device)
    return SpeedResult(rows, raw)


def _time_rounds(
    samplers: Mapping[str, Sampler],
    make_noise: Callable[[int], torch.Tensor],
    batch_size: int,
    device: torch.device,
    seconds: float,
    precision: float,
    warmup: int,
    min_rounds: int,
    max_rounds: int,
    order: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Latencies in milliseconds, one a sampler and round, in the order of the rounds."""
    names = list(samplers)
    latencies: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of one call would be charged to that sampler alone
    try:
        for index in range(warmup + max_rounds):
            timed = index - warmup
            round_start = time.perf_counter()
            noise = make_noise(batch_size)
            for name in order.permutation(names).tolist():
                _synchronise(device)
                before = time.perf_counter()
                samplers[name](noise)
                _synchronise(device)
                elapsed = time.perf_counter() - before
                if timed >= 0:
                    latencies[name].append(1000 * elapsed)
            now = time.perf_counter()
            if timed + 1 < min_rounds:
                continue
            if (now - start) + (now - round_start) > seconds:
                break
            if all((found := median_precision(v)) is not None and found <= precision for v in latencies.values()):
                break
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in latencies.items()}


def median_precision(latencies: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the median's 95 % interval over the median; None for fewer than six values, which have none.

    From order statistics, whatever the latencies' distribution (`scipy.stats.quantile_test`).
    """
    interval = stats.quantile_test(latencies, p=0.5).confidence_interval(confidence_level=0.95)
    half, median = float(interval.high - interval.low) / 2, float(np.median(latencies))
    return half / median if np.isfinite(half) and median > 0 else None


def network_share(sampler: Sampler, network: torch.nn.Module, noise: torch.Tensor, device: torch.device) -> float:
    """The share of a call's time that passes within its network, the device synchronised at both of its ends.

    Synchronising keeps the device from running ahead: on a GPU the share is that of calls slower than the timed ones.
    """
    within, entered = 0.0, 0.0

    def enter(_module: torch.nn.Module, _inputs: Any) -> None:
        nonlocal entered
        _synchronise(device)
        entered = time.perf_counter()

    def leave(_module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        nonlocal within
        _synchronise(device)
        within += time.perf_counter() - entered

    hooks = [network.register_forward_pre_hook(enter), network.register_forward_hook(leave)]
    try:
        start = time.perf_counter()
        for _ in range(_SPLIT_CALLS):
            sampler(noise)
        _synchronise(device)
        return within / (time.perf_counter() - start)
    finally:
        for hook in hooks:
            hook.remove()


def energy_per_image(sampler: Sampler, noise: torch.Tensor, device: torch.device) -> float | None:
    """Joules a picture that the card takes, idling included; None without a card whose driver counts them (NVML).

    Needs the package nvidia-ml-py.
    """
    with _energy_counter(device) as counter:
        if counter is None:
            return None
        _synchronise(device)
        before, start, calls = counter(), time.perf_counter(), 0
        while time.perf_counter() - start < _ENERGY_SECONDS:
            sampler(noise)
            _synchronise(device)
            calls += 1
        return (counter() - before) / (calls * len(noise))


@contextmanager
def _energy_counter(device: torch.device) -> Iterator[Callable[[], float] | None]:
    """A function that tells the joules a card has taken so far, or None."""
    if device.type != "cuda":
        yield None
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, or no driver: pynvml's errors have no base but this where it is missing
        yield None
        return
    try:
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except pynvml.NVMLError:  # cards older than Volta do not count
        yield None
    else:
        yield lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000
    finally:
        pynvml.nvmlShutdown()


def clocks(device: torch.device) -> dict[str, float | None]:
    """The present clock of the processor and of the card in MHz, None where the system does not tell."""
    frequency = psutil.cpu_freq()
    found = {"processor_mhz": float(frequency.current) if frequency else None, "card_mhz": None}
    if device.type == "cuda":
        with suppress(Exception):  # torch asks NVML, whose errors are its own and which a virtual card may refuse
            found["card_mhz"] = float(torch.cuda.clock_rate(device))
    return found


def peak_memory_mb(sampler: Sampler, noise: torch.Tensor, device: torch.device) -> float | None:
    """Peak memory of one call in megabytes (10⁶ bytes), None if unknown; see :func:`measure_speed`."""
    if device.type == "cuda":
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        sampler(noise)
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not _reset_peak_resident_set():
        return None
    sampler(noise)
    peak = _status_kilobytes("VmHWM")
    return None if peak is None else peak * 1024 / 1e6


def _reset_peak_resident_set() -> bool:
    """Sets VmHWM back to the present resident set. False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    peak, present = _status_kilobytes("VmHWM"), _status_kilobytes("VmRSS")
    # Some container runtimes accept the write and ignore it: the old mark would then pass for this sampler's.
    return peak is not None and present is not None and peak <= 1.02 * present + 1024


def _status_kilobytes(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def device_name(device: torch.device) -> str:
    """The hardware in words: the card's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def arithmetic(dtype: torch.dtype, device: torch.device) -> str:
    """The numbers that the networks compute with, "float32 (TF32)" where a GPU may shorten their products."""
    name = str(dtype).removeprefix("torch.")
    shortened = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return f"{name} (TF32)" if device.type == "cuda" and dtype == torch.float32 and shortened else name


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_output(name: str, images: torch.Tensor, batch_size: int) -> None:
    if len(images) != batch_size:
        raise UserError(f"speed: sampler '{name}' returned {len(images)} pictures for a batch of {batch_size}.")
    if not torch.isfinite(images).all():
        raise NonFiniteError(f"speed: sampler '{name}' returned NaN or infinity at batch size {batch_size}.")
