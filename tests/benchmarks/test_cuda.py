"""The suite on a GPU, against the same computations on the processor.

    pytest -m cuda tests/benchmarks/test_cuda.py                          on a machine with a GPU
    BOOT_TEST_DEVICE=cpu pytest -m cuda tests/benchmarks/test_cuda.py     a rehearsal: the processor in the GPU's place

In a rehearsal the processor stands for the GPU with other kernels than its usual ones (convolutions without oneDNN,
attention written out) and, where TF32 is meant, with factors cut to TF32's digits. What only a GPU can do is skipped.
"""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from draws import DrawnOnHost, Draws, HostGenerator
from methods import METHODS, TRAINED, build
from peak import peak_bytes
from repository import ROOT
from tiny import NETWORK, SCHEDULE, SMALLEST, stored_data, tiny_conditional, tiny_denoiser, tiny_splits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from boot.distillation import Boot, BootSettings
from diffusion.data.samples import to_uint8
from diffusion.data.store import load_split
from diffusion.denoiser import Denoiser
from diffusion.distillation.pairs import Pairs, generate_pairs
from diffusion.guidance import Guidance, guided
from diffusion.noise import initial_noise
from diffusion.runtime.errors import DeviceMemoryError
from diffusion.runtime.gpus import CLAIMED_BY_STARTER
from diffusion.runtime.memory import within_memory
from diffusion.runtime.precision import has_short_products
from diffusion.schedule import CosineSchedule
from diffusion.solvers import ddim_sample
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.thresholding import STATIC
from diffusion.training.loop import TrainingRun
from evaluation.measure import metrics
from evaluation.measure.features import load_extractor
from evaluation.measure.speed import measure_speed
from suite.configuration.experiment import parse_experiment
from suite.estimate import estimate

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at a process' first product, before any of them asks
CPU, DEVICE = torch.device("cpu"), torch.device(os.environ.get("BOOT_TEST_DEVICE", "cuda:0"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        ON_GPU and not torch.cuda.is_available(), reason="no CUDA device; BOOT_TEST_DEVICE=cpu rehearses without"
    ),
]
GUIDANCE = Guidance(2.0)
TRAININGS = ["teacher", *TRAINED]


def only_a_gpu(has):
    return pytest.mark.skipif(not ON_GPU, reason=f"a processor has no {has}")


class ShortFactors(TorchDispatchMode):
    """Cuts the factors of float32 products and convolutions to the 10 bits of mantissa that TF32 has."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.PRODUCTS:
            args = [self.cut(value) for value in args]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def cut(value):
        if not torch.is_tensor(value) or value.dtype != torch.float32:
            return value
        return (value.view(torch.int32) & ~0x1FFF).view(torch.float32)


@contextmanager
def other_kernels():
    """Makes a processor compute as another device would: the same up to the order of sums."""
    with ExitStack() as stack:
        if not ON_GPU:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def data(folder):
    return stored_data(folder / "data")


@pytest.fixture(scope="module")
def pairs(folder):
    """The offline sets of the methods that want one."""
    teacher = tiny_teacher(CPU)
    for name in TRAINED:
        if (settings := build(name).pairs()) is not None:
            (folder / "pairs" / name).mkdir(parents=True)
            with TrainingRun(folder / "pairs-state", "key", 0, CPU) as run:
                generate_pairs(settings, teacher, run, folder / "pairs" / name)
    return folder / "pairs"


class Children:
    """Jobs in processes of their own, which take long to start or to compile: beside the other tests on the machine of
    a GPU, which has many cores, and when their turn comes elsewhere."""

    JOBS = (
        *("killed-boot", "killed-teacher", "compiled-boot-cudagraphs", "compiled-boot-default"),
        *("compiled-teacher-cudagraphs", "compiled-teacher-default"),
    )

    def __init__(self, folder):
        self.folder, self.started = folder, {}
        if ON_GPU:
            for job in self.JOBS:
                self.start(job)

    def start(self, job):
        environment = os.environ | {"BOOT_TEST_DEVICE": str(DEVICE), CLAIMED_BY_STARTER: "1"}
        if job.startswith("compiled"):  # many at once; the others must have as many threads as the tests
            environment["OMP_NUM_THREADS"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
        with self.log(job).open("w") as log:
            command = [sys.executable, __file__, job, str(self.folder)]
            self.started[job] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def log(self, job):
        return self.folder / f"{job}.log"

    def wait(self, job, expected):
        """Until the job has ended as expected."""
        if job not in self.started:
            self.start(job)
        code = self.started[job].wait(timeout=80 if ON_GPU else 600)
        assert code == expected, self.log(job).read_text()

    def end(self):
        for process in self.started.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module", autouse=True)
def children(folder, data, pairs):
    children = Children(folder)
    yield children
    children.end()


def tiny_teacher(device):
    """Class-conditional and guided: every kind of input that a step has."""
    return guided(tiny_conditional(num_classes=2, thresholding=STATIC).to(device), GUIDANCE)


def fit(name, run, data, pairs, training, further=None):
    """Trains a teacher, or a method's students from one, as their jobs do; returns the networks."""
    if name == "teacher":
        common = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5}
        raw = {"network": NETWORK, "schedule": SCHEDULE, "labels": True, "training": common | training}
        return [train_teacher(TeacherSettings.model_validate(raw), data, run)[0].network]
    method, teacher = build(name, GUIDANCE, **training), tiny_teacher(run.device)
    method.settings = method.settings.model_copy(update=further or {})
    given = data if method.needs_data else None
    if method.pairs() is not None:
        given = Pairs(pairs / name, teacher.conditions)
    return [student.network for student in method.distil(teacher, run, given)]


# -- one step -------------------------------------------------------------------------------------------------------

# Largest relative deviations of the loss, and of each tensor's gradient in the L2 norm. A tensor whose gradient is less
# than a hundredth of all gradients' is held against that hundredth: an attention's keys have a bias whose gradient is
# rounding alone.
TOLERANCES = {"fp32": (1e-5, 1e-4), "tf32": (2e-2, 1e-1), "bf16": (5e-2, 3e-1)}
# SiD's loss is of the difference of two networks that are one before the fake score's first step; after a step as usual
# it would be rounding for the most part.
FURTHER = {"sid": {"fake_learning_rate": 0.01}}


class OneStep(TrainingRun):
    """One step a stage, with draws made on the host; keeps the gradients of every optimiser."""

    def __init__(self, folder, device):
        super().__init__(folder, "key", 0, device)
        self.gradients = []

    def generator(self, stage, step, number=0):
        return HostGenerator(self.device).manual_seed(super().generator(stage, step, number).initial_seed())

    def fit(self, stage, network, loss, settings, *arguments, **keywords):
        def keep(optimiser, *_):
            weights = [weight for group in optimiser.param_groups for weight in group["params"]]
            self.gradients.append([weight.grad.detach().to(CPU, copy=True) for weight in weights])

        handle = register_optimizer_step_pre_hook(keep)
        try:
            settings = settings.model_copy(update={"steps": 1})
            return super().fit(stage, network, loss, settings, *arguments, **keywords)
        finally:
            handle.remove()


def one_step(name, device, folder, data, pairs, **training):
    """Losses, one a stage, and gradients, one list an optimiser's step. The weights stay where they were, so that a
    later stage's loss does not depend on the signs of gradients that are next to nothing; nothing is clipped."""
    still = {"learning_rate": 1e-12, "gradient_clip": 1e9, "batch_size": 8}
    with OneStep(folder, device) as run, DrawnOnHost():
        fit(name, run, data, pairs, still | training, FURTHER.get(name))
    return [row["loss"] for row in run.log], run.gradients


@pytest.fixture(scope="module")
def exact(folder, data, pairs):
    """The step on the processor, in float32; computed once for each training."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = one_step(name, CPU, folder / f"exact-{name}", data, pairs, precision="fp32")
        return known[name]

    return of


def deviations(found, expected):
    """The largest relative deviation of a loss, and of a tensor's gradient."""
    (losses, gradients), (exact_losses, exact_gradients) = found, expected
    assert len(losses) == len(exact_losses) > 0
    assert len(gradients) >= len(losses)
    of_losses = max(abs(a - b) / abs(b) for a, b in zip(losses, exact_losses, strict=True))
    of_gradients = 0.0
    for step, exact_step in zip(gradients, exact_gradients, strict=True):
        floor = 0.01 * torch.stack([gradient.norm() for gradient in exact_step]).norm()
        assert floor > 0
        for one, other in zip(step, exact_step, strict=True):
            of_gradients = max(of_gradients, float((one - other).norm() / other.norm().clamp(min=floor)))
    return of_losses, of_gradients


@pytest.mark.parametrize("arithmetic", ["fp32", "channels last", "tf32", "bf16"])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_agrees_with_the_processors(name, arithmetic, tmp_path, data, pairs, exact):
    """In float32, with another layout in memory, in TF32 and under bfloat16; all stages, all networks that learn."""
    precision = "fp32" if arithmetic == "channels last" else arithmetic
    training = {"precision": precision, "channels_last": arithmetic == "channels last"}
    if precision == "tf32" and ON_GPU and not has_short_products(DEVICE):
        pytest.skip("this GPU has no TF32")
    with ExitStack() as stack:
        stack.enter_context(other_kernels())
        if precision == "tf32" and not ON_GPU:
            training["precision"] = "fp32"
            stack.enter_context(ShortFactors())
        found = one_step(name, DEVICE, tmp_path, data, pairs, **training)
    of_losses, of_gradients = deviations(found, exact(name))
    print(f"{name}, {arithmetic}: losses {of_losses:.2g}, gradients {of_gradients:.2g}")
    loss_tolerance, gradient_tolerance = TOLERANCES[precision]
    assert of_losses < loss_tolerance
    assert of_gradients < gradient_tolerance
    if precision != "fp32":  # it was in force
        assert of_gradients > TOLERANCES["fp32"][1]


# -- a killed run ---------------------------------------------------------------------------------------------------

STOPPED_AT = LOOKS_EVERY = 2


def train(name, folder, data, pairs, stop=None):
    """Trains with the default arithmetic; ``stop`` is called in the middle of a stage."""
    with TrainingRun(folder, "key", 0, DEVICE, checkpoint_seconds=0) as run:
        draw = run.generator

        def generator(stage, step, number=0):
            if stop is not None and step == STOPPED_AT:
                stop()
            return draw(stage, step, number)

        run.generator = generator
        networks = fit(name, run, data, pairs, {"steps": STOPPED_AT + 1})
    return networks, run


def make_repeatable(monkeypatch):
    monkeypatch.setenv("BOOT_DETERMINISTIC", "1")
    monkeypatch.setattr("diffusion.training.loop._CHECK_EVERY_ON_GPU", LOOKS_EVERY)


@pytest.fixture
def repeatable(monkeypatch):
    make_repeatable(monkeypatch)


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", TRAININGS)
def test_an_interrupted_run_resumes_to_the_same_bits(name, tmp_path, data, pairs, children, repeatable, capfd):
    """With deterministic algorithms. Two of the runs were killed in a process of their own."""
    whole, run = train(name, tmp_path / "whole", data, pairs)
    assert all(words.endswith("deterministic") == ON_GPU for words in run.arithmetic.values())
    state = tmp_path / "stopped"
    if (job := f"killed-{name}") in children.JOBS:
        children.wait(job, -signal.SIGKILL)
        state = children.folder / job
    else:
        with pytest.raises(KeyboardInterrupt):
            train(name, state, data, pairs, interrupt)
    capfd.readouterr()
    resumed, _ = train(name, state, data, pairs)
    assert f"at step {STOPPED_AT} of" in capfd.readouterr().err
    for one, other in zip(whole, resumed, strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


# -- samples and measures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_samples_are_the_processors_within_one_grey_level(name, tmp_path):
    """Of 99.9 % of the pixels, with torch's own defaults: convolutions in TF32."""
    method, noise = build(name), initial_noise(0, range(128), (1, 8, 8))
    method.save(tmp_path, tiny_denoiser(seed=3).network, tiny_denoiser())
    for nfe in method.evaluations():
        found = []
        for device in (CPU, DEVICE):
            sampler, _network = method.sampler(tmp_path, nfe, device)
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                if device is DEVICE and not ON_GPU:
                    stack.enter_context(other_kernels())
                    stack.enter_context(ShortFactors())
                found.append(to_uint8(sampler(noise.to(device), None)).astype(int))
        expected, images = found
        unclipped = (expected > 0) & (expected < 255)  # the others agree by themselves
        assert unclipped.mean() > 0.1
        assert (abs(images - expected) <= 1)[unclipped].mean() >= 0.999, nfe


def test_features_and_measures_are_the_processors():
    """Features in the L2 norm of each image's, the measures of the same two sets."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    ramps = (np.arange(150)[:, None, None, None] + 7 * np.arange(32)[:, None, None] + noise[:1] // 8) % 256
    sets = [noise, ramps.astype(np.uint8)]
    found = {}
    for device in (CPU, DEVICE):
        extractor = load_extractor("efficientnet-lite0-64", device)
        with other_kernels() if device is DEVICE else ExitStack():
            found[device] = [extractor.extract(images) for images in sets]
            cleanfid = extractor.extract_cleanfid(noise[:8])
        found[device].append(cleanfid)
    for expected, features in zip(found[CPU], found[DEVICE], strict=True):
        norms = np.linalg.norm(expected, axis=1)
        assert (np.linalg.norm(features - expected, axis=1) < 1e-4 * norms).all()
    # A Fréchet distance of 1,280 features takes seconds.
    for measure in (
        lambda a, b: metrics.frechet_distance(a[:, ::5], b[:, ::5]),
        lambda a, b: metrics.kid(a, b).mean,
    ):
        expected, value = (measure(*found[device][:2]) for device in (CPU, DEVICE))
        assert expected > 0
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_noise_is_drawn_on_the_device_within_the_clock(name, tmp_path, monkeypatch):
    """And nothing of its size comes from the host."""
    monkeypatch.setattr("evaluation.measure.speed.energy_per_image", lambda *_: None)  # calls for a second
    method, noise = build(name), torch.randn(64, 1, 8, 8, device=DEVICE)
    method.save(tmp_path, tiny_denoiser().network, tiny_denoiser())
    sampler, _network = method.sampler(tmp_path, max(method.evaluations()), DEVICE)
    draws = []

    def watched(x):
        with Draws() as seen:
            images = sampler(x, None)
        draws.append(seen)
        return images

    measure_speed({"it": watched}, lambda _count: noise, [len(noise)], DEVICE, seconds=0)
    assert {place for seen in draws for _, place in seen.made} <= {DEVICE.type}
    assert {shape for seen in draws for shape, _ in seen.made} <= {tuple(noise.shape)}
    assert all(count < noise.numel() for seen in draws for count in seen.copied)


# -- memory ---------------------------------------------------------------------------------------------------------

# A network whose activations are most of a step's memory.
LARGER = {"block_out_channels": [64, 128], "layers_per_block": 2, "attention_resolutions": [16]}


def larger_denoiser(device):
    torch.manual_seed(0)
    network = build_network(NetworkSettings.model_validate(LARGER), (3, 32, 32))
    return Denoiser(network, CosineSchedule(num_timesteps=200), "v_prediction").to(device).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def larger_data(folder):
    return stored_data(folder / "larger", tiny_splits(resolution=32, channels=3))


def train_larger(name, folder, data, **training):
    chosen = {"steps": 2, "learning_rate": 1e-4, "ema_decay": 0.5} | training
    with TrainingRun(folder, "key", 0, DEVICE) as run:
        if name == "teacher":
            train_teacher(TeacherSettings.model_validate({"network": LARGER, "training": chosen}), data, run)
        else:
            method = Boot(BootSettings.model_validate({"training": chosen}))
            method.distil(larger_denoiser(DEVICE), run, None)


@pytest.fixture
def little_memory():
    """Two GiB of the GPU, beside what is held already."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    limit = 2 * 2**30
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + limit) / total, DEVICE)
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    torch.cuda.empty_cache()


@only_a_gpu("memory that a test may fill")
@pytest.mark.parametrize("name", ["teacher", "boot"])
def test_a_batch_that_is_too_large_ends_with_one_that_does_fit(name, tmp_path, larger_data, little_memory):
    with pytest.raises(DeviceMemoryError) as caught:
        train_larger(name, tmp_path / "large", larger_data, batch_size=256)
    said = re.search(
        r"found 1, expected (\d+), in slices of (\d+) \(tried: ([\d.]+) GiB at the peak\)", str(caught.value)
    )
    assert said, caught.value
    count, size, peak = int(said[1]), int(said[2]), float(said[3])
    assert count * size == 256
    assert little_memory / 2**30 / 6 < peak < little_memory / 2**30 + 1  # no smaller than need be
    train_larger(name, tmp_path / "fits", larger_data, batch_size=256, gradient_accumulation_steps=count)


@only_a_gpu("memory that a test may fill")
def test_a_batch_of_samples_that_is_too_large_ends_with_one_that_does_fit(little_memory):
    denoiser = larger_denoiser(DEVICE)

    def draw(size):
        with torch.inference_mode():
            return ddim_sample(denoiser, torch.randn(size, 3, 32, 32, device=DEVICE), 2)

    with pytest.raises(DeviceMemoryError) as caught:
        within_memory("evaluation.batch_size", draw, 2**14, DEVICE)
    said = re.search(r"evaluation\.batch_size: found 16384, .* expected at most (\d+) \(tried", str(caught.value))
    assert said, caught.value
    assert len(within_memory("evaluation.batch_size", draw, int(said[1]), DEVICE)) == int(said[1])


def peak_of(function):
    """The most memory that torch's allocator handed out at a time within ``function``, beyond what was there."""
    gc.collect()
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)
        torch.cuda.reset_peak_memory_stats(DEVICE)
        before = torch.cuda.memory_allocated(DEVICE)
        function()
        return torch.cuda.max_memory_allocated(DEVICE) - before
    return peak_bytes(function)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("teacher", "fp32"),
        ("boot", "fp32"),
        pytest.param("teacher", "bf16", marks=only_a_gpu("autocast that normalises in float32")),
        pytest.param("boot", "tf32", marks=only_a_gpu("TF32")),
    ],
)
def test_the_peak_of_memory_is_what_the_estimate_says(name, precision, tmp_path, larger_data, monkeypatch):
    """Within 25 %."""
    monkeypatch.setattr("suite.estimate._rate", lambda *_: 1.0)
    training = {"steps": 2, "batch_size": 256 if ON_GPU else 8, "precision": precision}
    experiment = {
        "experiment": "peak",
        "data": {"kind": "cifar10"},
        "teacher": {"network": LARGER, "training": {"learning_rate": 1e-4, "ema_decay": 0.5, **training}},
        "methods": {"ddim": {"method": "ddim"}, "boot": {"method": "boot", "training": training}},
    }
    found = estimate(parse_experiment(experiment), CPU, 0)
    row = next(row for row in found.rows if row.rule == ("teacher" if name == "teacher" else "distil"))
    assert row.precision == precision
    assert found.activations(row) > row.memory, "a network on which the activations do not matter"
    peak = peak_of(lambda: train_larger(name, tmp_path, larger_data, **training))
    print(f"{name}, {precision}: {peak / 1e6:.0f} MB, estimated {found.memory(row) / 1e6:.0f} MB")
    assert peak == pytest.approx(found.memory(row), rel=0.25)


@only_a_gpu("memory of its own")
def test_the_speed_table_has_the_peak_of_memory():
    (row,) = measure_speed(
        {"it": lambda x: (x.expand(100, -1, -1, -1) * 2).sum(0, keepdim=True).expand(2, -1, -1, -1)},
        lambda _count: torch.ones(1, 3, 256, 256, device=DEVICE), [2], DEVICE, seconds=0,
    ).rows  # fmt: skip
    assert row["peak_memory_mb"] > 100 * 4 * 3 * 256**2 / 1e6


# -- compiled: last, for it takes longest ---------------------------------------------------------------------------

needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="torch.compile needs a C compiler"
)


def smallest_losses(name, folder, data, compiled, micro_batches):
    """Losses and evaluations of four steps; the third is the first that replays a CUDA graph. Micro-batches are as
    large as a whole batch, so that what was compiled for one serves."""
    chosen = {"steps": 4, "batch_size": 8 * micro_batches, "learning_rate": 1e-3}
    chosen |= {"gradient_accumulation_steps": micro_batches, "precision": "fp32", "compile": compiled}
    with TrainingRun(folder, "key", 0, DEVICE) as run:
        if name == "teacher":
            train_teacher(TeacherSettings.model_validate({"network": SMALLEST, "training": chosen}), data, run)
        else:
            settings = BootSettings.model_validate({"solver": "euler", "training": chosen})
            Boot(settings).distil(tiny_denoiser(clip=False, network=SMALLEST).to(DEVICE), run, None)
    return [row["loss"] for row in run.log], run.evaluations


def micro_batches_of(compiled):
    return (1, 2) if compiled == "cudagraphs" else (1,)


@needs_a_compiler
@pytest.mark.parametrize("compiled", ["default", pytest.param("cudagraphs", marks=only_a_gpu("CUDA graphs"))])
@pytest.mark.parametrize("name", ["teacher", "boot"])
def test_compiled_steps_have_the_plain_losses(name, compiled, children):
    """The first to 1e-5; the later ones, after steps of the optimiser, to 1e-3. Also with several micro-batches a
    step, whose gradients are added up."""
    job = f"compiled-{name}-{compiled}"
    children.wait(job, 0)
    found = json.loads((children.folder / f"{job}.json").read_text())
    assert len(found) == len(micro_batches_of(compiled))
    for (plain, evaluations), (losses, counted) in found:
        assert losses[0] == pytest.approx(plain[0], rel=1e-5)
        assert losses == pytest.approx(plain, rel=1e-3)
        assert len(set(losses)) == 4
        assert counted == evaluations > 0


# -- what the children do -------------------------------------------------------------------------------------------


def do(job, folder):
    kind, name, *compiled = job.split("-")
    split = load_split(folder / "data", "train")
    if kind == "killed":
        with pytest.MonkeyPatch.context() as patch:
            make_repeatable(patch)
            train(name, folder / job, split, folder / "pairs", kill_oneself)
    found = []
    for count in micro_batches_of(*compiled):
        modes = [(mode, folder / f"{job}-{count}-{mode}") for mode in ("off", *compiled)]
        found.append([smallest_losses(name, where, split, mode, count) for mode, where in modes])
        (folder / f"{job}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    do(sys.argv[1], Path(sys.argv[2]))
