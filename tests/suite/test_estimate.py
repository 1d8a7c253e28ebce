"""The estimate against the counts of real trainings, and against sums by hand."""

import gc
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import yaml
from methods import TRAINED, inputs_of
from repository import CONFIG, TINY
from test_experiments import PUBLISHED
from tiny import stored_data, tiny_denoiser
from tiny_text import write_encoder
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from boot.trajectory import trajectory_errors
from diffusion.conditions import Unconditional
from diffusion.distillation.distiller import finished_student
from diffusion.distillation.registry import method_class
from diffusion.family import Family
from diffusion.noise import initial_noise
from diffusion.student import NoiseStudent
from diffusion.training.loop import TrainingRun
from diffusion.training.steps import Trained
from suite.configuration.experiment import parse_experiment
from suite.estimate import CARDS, SHARE_OF_PEAK, estimate, table
from suite.jobs.pictures import images_of
from suite.jobs.trajectory import errors_of
from suite.network_cost import LiveBytes, network_activations, network_passing

CPU = torch.device("cpu")


def experiment_of(**methods):
    raw = yaml.safe_load(TINY.read_text())
    raw["methods"] = {"ddim": raw["methods"]["ddim"], **methods}
    del raw["comparison"]
    return parse_experiment(raw, look_at_files=False)


IN_TURN = {"fake_updates": 2, "training": {"steps": 3, "batch_size": 8, "gradient_accumulation_steps": 4}}


MORE_STAGES = {"progressive_distillation": {"start_steps": 8}, "tract": {"phases": [4, 2, 1]}}


class Weighed(TrainingRun):
    """A real run that notes what its device holds: the networks, gradients and moments when an optimiser is about to
    take the last step of each stage, and the activations that a loss keeps; in bytes.

    Collects no garbage: what only a collection would free counts. Of finished students, which leave the device, the
    CPU holds copies: they do not count.
    """

    def __init__(self, folder):
        super().__init__(folder, "k", 0, CPU)
        self.before = self.tensors()  # of other tests
        self.held, self.kept, self.stages = 0, 0, 0

    @staticmethod
    def tensors():
        return [part for part in gc.get_objects() if type(part) in (torch.Tensor, torch.nn.Parameter)]

    def alive(self):
        tensors = self.tensors()
        tensors += [part.grad for part in tensors if part.is_leaf and part.grad is not None]
        known = {part.untyped_storage().data_ptr() for part in self.before}
        sizes = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}
        return {place: size for place, size in sizes.items() if place not in known}

    def fit(self, stage, network, loss, settings, **others):
        def weigh(*_):
            copies = self.stages * sum(weight.nbytes for weight in network.parameters())
            self.held = max(self.held, sum(self.alive().values()) - copies)

        def kept_of(step):
            kept, held = {}, self.alive()

            def note(tensor):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            with saved_tensors_hooks(note, lambda tensor: tensor):
                value = loss(step)
            self.kept = max(self.kept, sum(one.nbytes() for place, one in kept.items() if place not in held))
            return value

        handle = register_optimizer_step_pre_hook(weigh)
        try:
            trained = super().fit(stage, network, kept_of, settings, **others)
        finally:
            handle.remove()
        self.stages += 1
        return trained


TRAININGS = [*((name, MORE_STAGES.get(name, {})) for name in TRAINED), ("sid", IN_TURN)]


def really_trained(experiment, folder, make_run, around=nullcontext):
    """The run of a tiny training of the variant "it"; nothing is collected meanwhile."""
    gc.collect()
    gc.disable()
    try:
        data = stored_data(folder / "data")
        run = make_run(folder / "run")  # before the teacher, which the device holds too
        method, teacher = experiment.methods["it"], tiny_denoiser()
        given = inputs_of(method, folder, data, teacher)
        with run, around():
            method.distil(teacher, run, given)
        return run
    finally:
        gc.enable()


def distilled(name, **changes):
    """An experiment whose variant "it" is of a method, its estimate, and the row of the training."""
    experiment = experiment_of(it={"method": name, **method_class(name).TINY, **changes})
    found = estimate(experiment, CPU, 0)
    return experiment, found, next(row for row in found.rows if row.rule == "distil")


@pytest.mark.parametrize(("name", "changes"), TRAININGS)
def test_what_is_counted_is_what_a_training_takes(name, changes, tmp_path):
    experiment, found, row = distilled(name, **changes)
    counter = FlopCounterMode(display=False)
    run = really_trained(experiment, tmp_path, lambda at: TrainingRun(at, "k", 0, CPU), lambda: counter)
    assert row.forward + row.through + row.trained == run.evaluations
    assert row.trained > 0
    # A backward pass as long as two: but for the first layer, whose input has no gradient, two in a hundred here.
    assert 0.975 * row.passes < counter.get_total_flops() / found.network.operations <= row.passes


@pytest.mark.parametrize(("name", "changes"), TRAININGS)
def test_what_is_held_is_what_a_training_holds(name, changes, tmp_path):
    experiment, found, row = distilled(name, **changes)
    run = really_trained(experiment, tmp_path, Weighed)
    # In networks; the images of a batch are a hundredth of such a small one.
    assert run.held / (4 * found.network.num_weights) == pytest.approx(
        row.memory / (4 * found.network.num_weights), abs=0.05
    )
    # Frozen layers keep less than those that learn, which the estimate does not tell apart.
    assert 0.93 * row.learning < run.kept / found.network.kept("fp32").per_image < 1.01 * row.learning


def test_a_finished_student_leaves_the_device_and_its_network_stays():
    class OnDevice(torch.nn.Linear):
        place = "device"

        def cpu(self):
            self.place = "cpu"
            return super().cpu()

    network = OnDevice(2, 2)
    student = finished_student(4, Trained(network, {"steps": 1}))
    assert (student.network.place, network.place) == ("cpu", "device")
    assert torch.equal(student.network.weight, network.weight)
    assert (student.nfe, student.cost) == (4, {"steps": 1})


LPIPS = {"backbone": "efficientnet-lite0", "resize": 64, "greyscale": "repeat"}


@pytest.mark.parametrize("name", ["boot", "consistency_distillation", "pid"])
def test_a_backbone_is_no_network_evaluation(name):
    """But it takes operations and memory. vgg's weights are not asked for."""
    blocks = ({}, {"distance": "lpips", "lpips": LPIPS}, {"distance": "lpips", "lpips": LPIPS | {"backbone": "vgg"}})
    pixels, lite, vgg = (distilled(name, **block)[2] for block in blocks)
    assert pixels.trained > 0
    assert replace(lite, compared=0, comparing=0) == replace(vgg, compared=0, comparing=0) == pixels
    # Of a pair one image has a gradient: three passes of the backbone, two of them forward. vgg's 13 convolutions.
    sizes = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512), *[(512, 512)] * 5]
    sides = [64, 64, 32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4]
    operations = 3 * sum(2 * 9 * one * other * side**2 for (one, other), side in zip(sizes, sides, strict=True))
    found = estimate(experiment_of(), CPU, 0)
    pairs = 6 * {"boot": 8 + 2, "consistency_distillation": 8, "pid": 8}[name]
    assert vgg.compared == pytest.approx(pairs * operations / found.network.operations, rel=0.01)
    weights = 4 * sum(9 * one * other + other for one, other in sizes)
    assert vgg.comparing > weights
    assert vgg.passes == pixels.passes + vgg.compared


@pytest.mark.parametrize("name", ["boot", "pid"])
def test_what_lpips_takes_is_what_a_training_with_it_takes(name, tmp_path):
    changes = {"distance": "lpips", "lpips": LPIPS, "training": {**method_class(name).TINY["training"], "steps": 2}}
    experiment, found, row = distilled(name, **changes)
    counter = FlopCounterMode(display=False)
    (tmp_path / "counted").mkdir()
    really_trained(experiment, tmp_path / "counted", lambda at: TrainingRun(at, "k", 0, CPU), lambda: counter)
    assert counter.get_total_flops() / found.network.operations == pytest.approx(row.passes, rel=0.02)
    assert row.compared > 0.1 * row.passes, "a backbone that does not matter"
    (tmp_path / "weighed").mkdir()
    run = really_trained(experiment, tmp_path / "weighed", Weighed)
    assert run.held + run.kept == pytest.approx(found.memory(row), rel=0.05)


def real_pair():
    """A teacher, and a BOOT student of its weights, with what passes through them, a batch each."""
    teacher, seen = tiny_denoiser(), []
    student = NoiseStudent(tiny_denoiser().network, teacher.schedule, teacher.prediction_type)
    for network in (teacher.network, student.network):
        network.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    return student, teacher, seen


@pytest.mark.parametrize("batch_size", [4, 64])
def test_pictures_and_trajectory_are_what_their_stages_take(batch_size):
    raw = yaml.safe_load(TINY.read_text())
    raw["evaluation"] |= {"trajectory_noises": 5, "batch_size": batch_size}
    found = estimate(parse_experiment(raw, look_at_files=False), CPU, 0)
    rows = {(row.rule, row.variant): row for row in found.rows}
    shape = (1, 8, 8)
    for rule, evaluate in (
        ("trajectory", lambda *pair: errors_of(*pair, 0, 5, shape, batch_size, CPU)),
        ("pictures", lambda *pair: images_of(*pair, 0, shape, batch_size, CPU)),
    ):
        student, teacher, seen = real_pair()
        with LiveBytes() as live:
            evaluate(student, teacher)
        row = rows[rule, "boot-heun"]
        assert row.forward == sum(seen)
        assert row.passing == max(seen) <= batch_size
        assert row.memory == 2 * 4 * found.network.num_weights
        # Beside what the network holds: some images, and the pictures themselves.
        assert 0.95 * found.activations(row) < live.most < 1.2 * found.activations(row)
    assert rows["trajectory", "boot-euler"] == replace(rows["trajectory", "boot-heun"], variant="boot-euler")


def test_what_a_trajectory_holds_does_not_grow_with_its_times():
    most = []
    for times in (3, 9):
        student, teacher, _ = real_pair()
        grid = torch.linspace(teacher.schedule.t_max, teacher.schedule.t_min, times, dtype=torch.float64)
        with LiveBytes() as live, torch.inference_mode():
            trajectory_errors(student, teacher, initial_noise(0, range(6), (1, 8, 8)), grid, (1, 2), 2)
        most.append(live.most)
    assert most[1] < most[0] + 1000  # numbers alone


def test_two_networks_in_turn():
    experiment = experiment_of(it={"method": "sid", **IN_TURN}, tract={"method": "tract", **method_class("tract").TINY})
    found = estimate(experiment, CPU, 0)
    rows = {row.variant: row for row in found.rows if row.rule == "distil"}
    images = 3 * 8
    # An update of the fake score: its own evaluation, and the generator's without a gradient. One of the generator: its
    # own evaluation, whose gradient comes through the teacher and the fake score.
    assert (rows["it"].forward, rows["it"].through, rows["it"].trained) == (2 * images, 2 * images, 3 * images)
    assert rows["it"].passes == (2 + 2 * 2 + 3 * 3) * images
    assert rows["it"].learning == 3 * 2, "a micro-batch of two in three networks"
    # Weights, gradient, two moments, average, teacher; the fake score and its moments; TRACT's self-teacher, and in
    # its second phase the first one's student, which is the teacher then.
    assert rows["it"].memory == pytest.approx(4 * 9 * found.network.num_weights)
    assert rows["tract"].memory == pytest.approx(4 * 8 * found.network.num_weights)


def test_the_teacher_and_the_sums_by_hand():
    raw = yaml.safe_load(TINY.read_text())
    experiment = parse_experiment(raw | {"train_seeds": [0, 1]}, look_at_files=False)
    found = estimate(experiment, CPU, 0)
    rows = {(row.rule, row.variant): row for row in found.rows}
    assert rows["teacher", ""].trained == 8 * 16
    assert rows["teacher", ""].forward == 0
    assert rows["pairs", experiment.methods["knowledge"].pairs().name].forward == 24 * 4
    # Two training seeds; a step's student sees 16 + 20 pictures, 20 of them with a gradient, the teacher 20.
    assert rows["distil", "boot-euler"].trained + rows["distil", "boot-euler"].forward == 2 * 8 * (16 + 20 + 20)
    assert rows["sample", "ddim"].forward == 2 * 48 * (1 + 2 + 4)
    assert rows["sample", "boot-heun"].forward == 2 * 2 * 48
    row = rows["distil", "boot-heun"]
    passes = row.forward + 3 * row.trained
    assert found.hours_here(row) == pytest.approx(passes / found.rates["tf32"] / 3600)
    expected = passes * found.network.operations / (CARDS["A100"]["tf32"] * SHARE_OF_PEAK) / 3600
    assert found.hours_on("A100", row) == pytest.approx(expected)
    teacher = rows["teacher", ""]
    assert teacher.precision == "bf16"
    expected = (
        (teacher.forward + 3 * teacher.trained)
        * found.network.operations
        / (CARDS["A100"]["bf16"] * SHARE_OF_PEAK)
        / 3600
    )
    assert found.hours_on("A100", teacher) == pytest.approx(expected)
    text = table(found)
    total = next(line for line in text.splitlines() if line.startswith("| all |")).split(" | ")
    assert float(total[5]) == pytest.approx(sum(found.hours_on("A100", row) for row in found.rows), rel=0.01)
    assert text.count("| distil |") == 4
    assert "| all |" in text


def test_operations_and_weights_are_the_real_networks():
    found = estimate(experiment_of(), CPU, 0)
    # The first convolution alone has 2 · 9 · C_in · C_out · H · W; the whole network many times that.
    assert found.network.operations > 10 * 2 * 9 * 1 * 16 * 8 * 8
    assert found.network.num_weights == sum(weight.numel() for weight in tiny_denoiser().network.parameters())


def test_images_that_are_not_square_are_estimated_by_height_and_width():
    """Before they are made: twice the pixels, and twice the operations of every convolution."""
    raw = yaml.safe_load(TINY.read_text())
    raw["teacher"]["network"]["attention_resolutions"] = []
    wide = raw | {"data": {"kind": "digit_pairs", "train_per_pair": 5, "test_per_pair": 1}}
    one, two = (estimate(parse_experiment(found, look_at_files=False), CPU, 0) for found in (raw, wide))
    assert two.network.operations == pytest.approx(2 * one.network.operations, rel=0.01)
    assert two.network.num_weights == one.network.num_weights
    rows = {(row.rule, row.variant): row for row in two.rows}
    assert rows["data", ""].disk == (90 * 5 + 100) * 8 * 16
    assert rows["pairs", "24-ddim-4"].disk == 2 * 24 * 8 * 16
    assert rows["teacher", ""].trained == 8 * 16


def test_memory_is_that_of_weights_and_of_the_largest_slice():
    found = estimate(experiment_of(), CPU, 0)
    rows = {(row.rule, row.variant): row for row in found.rows}
    teacher = rows["teacher", ""]
    # Weights, gradients, two moments and the average; the batch is 16.
    assert teacher.memory == 4 * 5 * found.network.num_weights
    assert teacher.learning == 16
    kept = found.network.kept("bf16")
    assert teacher.precision == "bf16"
    assert found.memory(teacher) == teacher.memory + 16 * kept.per_image + kept.copies
    # 48 samples, at most 256 of which are evaluated at once.
    assert found.memory(rows["sample", "ddim"]) == 4 * found.network.num_weights + 48 * found.network.passing
    sliced = yaml.safe_load(TINY.read_text())
    sliced["teacher"]["training"] |= {"gradient_accumulation_steps": 4}
    found = estimate(parse_experiment(sliced, look_at_files=False), CPU, 0)
    assert next(row for row in found.rows if row.rule == "teacher").learning == 4
    # A step of BOOT has a gradient through the bootstrapped images and those at the boundary; beside is the teacher.
    boot, kept = next(row for row in found.rows if row.variant == "boot-euler"), found.network.kept("tf32")
    assert boot.learning == 20
    assert found.memory(boot) == 4 * 6 * found.network.num_weights + 20 * kept.per_image
    assert kept == found.network.kept("fp32")
    assert kept.copies == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_of_an_experiment_computes_its_losses_in_slices_that_fit_a_card(name, monkeypatch):
    """Of all methods that its file has, those that are not selected too."""
    monkeypatch.setattr("suite.estimate._rate", lambda *_: 1.0)
    raw = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    found = estimate(parse_experiment(raw | {"select": list(raw["methods"])}, look_at_files=False), CPU, 0)
    # What torch finds on cards that are sold as 80 and 40 GB is more: 78 GiB on an H100.
    room = 78 * 2**30 if name in ("imagenet64", "bedroom256") else 40e9
    # And what torch keeps beside: a fifth was seen.
    assert max(found.memory(row) for row in found.rows) < room / 1.2
    # Not that there was nothing to divide.
    assert all(row.learning >= 5 for row in found.rows if row.rule == "distil")


class Bare(Family):
    def call(self, network, x, told, condition):
        return network(x, told)


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)


def test_activations_are_what_autograd_keeps():
    """A chain by hand: a convolution keeps its input, a SiLU too, and the sum of squares its factor."""

    class Chain(Convolutions):
        def forward(self, x, _timestep):
            return self.b(silu(self.a(x))).square()

    picture, hidden = 3 * 16 * 16, 8 * 16 * 16
    expected = 4 * (picture + hidden + hidden + picture)
    assert network_activations(Chain, (3, 16, 16), Unconditional(), family=Bare()) == (expected, 0)


def test_without_a_gradient_a_network_holds_what_lives_at_once():
    """A chain by hand."""

    class Chain(Convolutions):
        def forward(self, x, _timestep):
            hidden = self.a(x)
            return self.b(silu(hidden))

    image, hidden = 3 * 16 * 16, 8 * 16 * 16
    # In the second convolution: the network's input, both sides of the SiLU (its input has a name), the output; and the
    # time.
    expected = 4 * (image + hidden + hidden + image + 1)
    assert network_passing(Chain, (3, 16, 16), Unconditional(), Bare()) == expected


def test_activations_of_bfloat16_are_those_of_a_gpus_autocast():
    """By hand, for what torch's list says of CUDA: convolutions take copies in bfloat16, of their weights too;
    normalisation and resizing compute in float32, from a copy in float32."""

    class Chain(Convolutions):
        def forward(self, x, _timestep):
            hidden = torch.nn.functional.interpolate(self.a(x), scale_factor=2.0)
            return self.b(silu(self.norm(hidden)))

    image, hidden = 3 * 8 * 8, 8 * 16 * 16
    # The first convolution's input; what is normalised, and two moments of a group; the SiLU's input; the second's.
    expected = 2 * image + 4 * hidden + 4 * 2 * 2 + 4 * hidden + 2 * hidden
    weights = 2 * 9 * 3 * 8
    assert network_activations(Chain, (3, 8, 8), Unconditional(), bf16=True, family=Bare()) == (expected, 2 * weights)


def test_a_published_experiment_is_estimated_without_its_data(monkeypatch):
    monkeypatch.setattr("suite.estimate._rate", lambda *_: 1.0)
    found = estimate(
        parse_experiment(yaml.safe_load((CONFIG / "cifar10.yaml").read_text()), look_at_files=False), CPU, 0
    )
    text = table(found)
    assert "| EDM's teacher (DDPM++, 200 M pictures) | 384 | V100 (about 2 days on 8) | EDM, README |" in text
    assert "DDPM, appendix B †" in text
    assert "9,984" not in text, "of another data set"
    rows = {(row.rule, row.variant): row for row in found.rows}
    assert rows["fetch", ""].transfer == rows["fetch", ""].disk == 170_052_171
    assert rows["data", ""].disk == 60_000 * 32 * 32 * 3
    assert rows["reference", ""].disk == 60_000 * 2048 * 4
    assert rows["features", "ddim"].disk == 7 * 50_000 * 2048 * 4
    assert rows["teacher", ""].trained == 800_000 * 128
    # 13 halvings of 50,000 steps, the last two twice as long: two evaluations of the teacher, one of the student.
    progressive = rows["distil", "progressive"]
    assert progressive.trained == 15 * 50_000 * 128
    assert progressive.forward == 2 * progressive.trained


def test_a_teacher_that_is_told_texts_is_estimated(tmp_path):
    """Its guided evaluations are two; the tables of embeddings are no part of what an evaluation holds."""
    raw = yaml.safe_load((CONFIG / "digits-text.yaml").read_text())
    raw["teacher"]["text"] = {"encoder": str(write_encoder(tmp_path / "encoder")), "max_tokens": 40}
    raw["results"] = str(tmp_path)
    experiment = parse_experiment(raw)
    found = estimate(experiment, CPU, 0.01)
    rows = {(row.rule, row.variant): row for row in found.rows}
    samples = experiment.evaluation.num_samples * len(experiment.evaluation.seeds)
    assert rows["sample", "ddim"].forward == samples * 2 * (1 + 2 + 4 + 16 + 32)
    assert rows["sample", "boot"].forward == samples
    training = experiment.methods["boot"].settings.training
    # Of a step of N noises, B of them at the boundary: (N + B) and N estimates of the guided teacher by Heun's rule, N
    # of the student without a gradient, and N + B with.
    noises, boundary = training.batch_size, training.batch_size // 16
    assert rows["distil", "boot"].trained == training.steps * (noises + boundary)
    assert rows["distil", "boot"].forward == training.steps * (2 * (2 * noises + boundary) + noises)
    assert rows["distil", "boot"].learning > 0


# -- large teachers ----------------------------------------------------------------------------------------------------


def changed_boot(**changes):
    """The estimate of the tiny experiment, and its row of BOOT, whose block is changed."""
    raw = yaml.safe_load(TINY.read_text())
    block = raw["methods"]["boot-euler"]
    training = block["training"] | changes.pop("training", {})
    raw["methods"]["boot-euler"] = block | changes | {"training": training}
    found = estimate(parse_experiment(raw, look_at_files=False), CPU, 0)
    return found, next(row for row in found.rows if row.variant == "boot-euler" and row.rule == "distil")


def test_adapters_take_little_memory_and_the_teacher_is_held_once():
    found, row = changed_boot(lora={"rank": 4, "targets": "attention"}, frozen_precision="bf16")
    network = tiny_denoiser().network
    layers = [module for name, module in network.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    adapters = sum(4 * sum(layer.weight.shape) for layer in layers)
    assert adapters > 0
    # Weights, gradients, two moments and the average of the adapters; all else in two bytes.
    assert row.memory == 4 * 5 * adapters + 2 * found.network.num_weights
    assert row.disk == 4 * found.network.num_weights
    # Frozen weights have no gradient: the backward pass is as long as the forward.
    plain = changed_boot()[1]
    assert (row.trained, row.through) == (0, plain.through + plain.trained)
    assert row.forward == plain.forward


def test_moments_of_a_byte_are_estimated():
    found, row = changed_boot(training={"optimiser": "adamw_8bit"})
    # The teacher; weights, gradient and average; two moments, and a number for each 256 of those.
    weights = found.network.num_weights
    assert row.memory == pytest.approx(4 * weights + 4 * 3 * weights + 2 * weights * (1 + 4 / 256))


def test_a_time_budget_ends_where_the_evaluations_do():
    """However many of them have a gradient, and compute their activations twice."""
    for changes in ({}, {"lora": {"rank": 4}}, {"training": {"activation_checkpointing": True}}):
        training = changes.get("training", {}) | {"steps": None, "minutes": 1}
        row = changed_boot(**changes | {"training": training})[1]
        forward, through, trained = row.timed
        assert replace(row, forward=forward, through=through, trained=trained).passes == pytest.approx(60)


class Chain(torch.nn.Module):
    """Two blocks of two linear layers, of which the first keeps its input and what its SiLU is given."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)) for _ in range(2)
        )
        self.checkpoint = None

    def enable_gradient_checkpointing(self, function):
        self.checkpoint = function

    def forward(self, x, told):
        for block in self.blocks:
            x = block(x) if self.checkpoint is None else self.checkpoint(block, x)
        return x


def test_of_blocks_that_are_computed_again_the_inputs_stay_and_one_is_kept_whole():
    kept, less = (
        network_activations(Chain, (3, 2, 2), Unconditional(), family=Bare(), recomputed=recomputed)
        for recomputed in (False, True)
    )
    rows = 4 * 3 * 2  # bytes of a number, and rows of an image
    # Of a block the input, the first layer's output and the SiLU's.
    assert kept.per_image == 2 * rows * (2 + 8 + 8)
    assert less.per_image == rows * (2 + 2) + rows * (8 + 8)


def test_activation_checkpointing_is_estimated():
    found, row = changed_boot(training={"activation_checkpointing": True})
    plain = changed_boot()[1]
    assert row.passes == plain.passes + plain.trained + plain.through
    assert found.activations(row) < 0.8 * found.activations(plain)
    assert "with training.activation_checkpointing" in table(found)
