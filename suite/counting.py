"""What trainings and samplers cost, counted on networks that do not compute."""

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from diffusion.conditions import ClassLabels, Condition, Conditions, Unconditional
from diffusion.data.store import Shards, Split
from diffusion.denoiser import Denoiser
from diffusion.distillation import distances
from diffusion.distillation.distances import LpipsDistance, squared_l2
from diffusion.distillation.distiller import Distiller
from diffusion.distillation.pairs import Pairs
from diffusion.guidance import guided
from diffusion.runtime.files import read_json
from diffusion.student import NoiseStudent
from diffusion.teachers.autoencoder import build_autoencoder
from diffusion.teachers.families import families
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.latents import Latents
from diffusion.teachers.lora import LoraSettings, num_adapter_weights
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.prompts import Embeddings, Prompts
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.stock import TextFamily
from diffusion.teachers.stored_network import stored_network
from diffusion.teachers.train import train_teacher
from diffusion.training.loop import TrainingRun
from diffusion.training.settings import TrainingSettings
from diffusion.training.steps import Stateful, Step, Trained
from suite.configuration.experiment import Experiment
from suite.jobs.pictures import images_of
from suite.jobs.trajectory import errors_of
from suite.network_cost import (
    NO_CODING,
    Coding,
    Kept,
    coding_cost,
    network_activations,
    network_operations,
    network_passing,
)
from suite.plan import Plan

Precision = Literal["fp32", "tf32", "bf16"]
# A pass with a gradient takes about three times as long as one without: forward, and twice that backward, once for the
# weights and once for the input; through frozen weights twice as long.
WITH_GRADIENT, THROUGH = 3, 2
_STAND_IN = NetworkSettings(block_out_channels=(4,), norm_num_groups=2, attention_head_dim=4)
_SIDE = 4
_CPU = torch.device("cpu")


def as_forward(forward: float, through: float, trained: float, *, recomputed: bool = False) -> float:
    """Evaluations without a gradient that take as long as these.

    Args:
        recomputed: whether those with a gradient compute their activations twice.
    """
    return forward + (THROUGH + recomputed) * through + (WITH_GRADIENT + recomputed) * trained


class CountingRun(TrainingRun):
    """A run that computes one loss a stage and counts what all its steps would take.

    Attributes:
        adapts: whether adapters are trained: nearly all weights that a gradient passes through are frozen then.
        frozen: the weights that are the teacher's all along.
        held: what the device holds beside these in the stage that needs most, in multiples of what is trained of a
            network: all networks that are in use by then, the gradient of the one that is trained, its average, and
            what is changed beside it.
        moments: the same of optimisers.
        compared: pairs of images that LPIPS compares, each as long as ``a_pair`` evaluations without a gradient.
        compared_at_once: the most of them in a step.
    """

    def __init__(self, folder: Path, a_pair: float = 0.0) -> None:
        super().__init__(folder, "estimate", 0, _CPU)
        self.adapts = False
        self.forward = self.through = self.trained = self.held = self.moments = 0.0
        self.frozen: set[int] = set()
        self.a_pair, self.compared, self.compared_at_once, self._pairs = a_pair, 0, 0, 0
        self.budget_s = self.timed_steps = 0.0
        self.timed = [0.0, 0.0, 0.0]
        self.learning = 0
        self._passed = [0, 0, 0]

    def count(self, network: nn.Module) -> None:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            learns = any(weight.requires_grad for weight in module.parameters())
            of_learning = 1 if self.adapts else 2
            kind = (of_learning if learns else int(arguments[0].requires_grad)) if torch.is_grad_enabled() else 0
            self._passed[kind] += len(arguments[0])

        self._networks.add(network)
        # A student is a copy of its teacher, hooks included, and may be the next stage's teacher.
        if not network._forward_pre_hooks:
            self._cleanup.callback(network.register_forward_pre_hook(hook).remove)

    def compare(self, count: int) -> None:
        """Notes so many pairs of images."""
        self._pairs += count

    def fit(
        self,
        stage: str,
        network: nn.Module,
        loss: Callable[[Step], torch.Tensor],
        settings: TrainingSettings,
        *_arguments: Any,
        before_step: Callable[[Sequence[Step]], None] | None = None,
        beside: Mapping[str, Stateful] | None = None,
        **_keywords: Any,
    ) -> Trained:
        self._passed, self._pairs = [0, 0, 0], 0
        average = copy.deepcopy(network).requires_grad_(False)
        step = Step(self.generator(stage, 0), 0.5, settings.slice_size, average)
        if before_step is not None:
            before_step([step])
        before = sum(self._passed[1:])  # held no longer: the backward passes of before_step are its own
        loss(step)
        self.learning = max(self.learning, sum(self._passed[1:]) - before)
        self.compared_at_once = max(self.compared_at_once, self._pairs)
        each = [settings.gradient_accumulation_steps * passed for passed in self._passed]
        if settings.minutes is None:
            self.forward += settings.num_steps * each[0]
            self.through += settings.num_steps * each[1]
            self.trained += settings.num_steps * each[2]
            self.compared += settings.num_steps * settings.gradient_accumulation_steps * self._pairs
        else:  # at most, where there are steps too
            compared = settings.gradient_accumulation_steps * self._pairs * self.a_pair
            steps = 60 * settings.minutes / (as_forward(*each, recomputed=settings.activation_checkpointing) + compared)
            self.budget_s += 60 * settings.minutes
            self.timed_steps += steps
            self.timed = [sum_ + steps * passed for sum_, passed in zip(self.timed, each, strict=True)]
        averages = [] if settings.ema_decay is None else [average]
        others = list((beside or {}).values())
        optimisers = [part for part in others if isinstance(part, torch.optim.Optimizer)]
        of_one = sum(weight.numel() for weight in network.parameters())

        def multiple(parts: Sequence[Any]) -> float:
            tensors = tree_leaves([part.state_dict() for part in parts])
            numbers = {part.data_ptr(): part.numel() for part in tensors if torch.is_tensor(part) and part.ndim}
            return sum(number for place, number in numbers.items() if place not in self.frozen) / of_one

        parts = [part for part in others if part not in optimisers]
        # Of the network that is trained, the gradient and two moments too.
        held = multiple([*self._networks, network, *averages, *parts]) + 1
        moments = multiple(optimisers) + 2
        if held + moments > self.held + self.moments:
            self.held, self.moments = held, moments
        return Trained(averages[0] if averages else network, {})


class _Comparing(nn.Module):
    """Stands for LPIPS's network."""

    def __init__(self, run: CountingRun) -> None:
        super().__init__()
        self.run = run

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        self.run.compare(len(one))
        return squared_l2(one, other)


class _MadePairs(Pairs):
    """An offline set that needs no file."""

    def __init__(self, conditions: Conditions, shape: tuple[int, ...]) -> None:
        self.cost, self._conditions, self._shape = {}, conditions, shape

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        noise = torch.randn((count, *self._shape), generator=generator)
        return noise, noise, self._conditions.of_samples(range(count), "cpu")


class Made:
    """Stand-ins of an experiment's teacher and data, of a few weights and numbers."""

    def __init__(self, experiment: Experiment, conditions: Conditions) -> None:
        self.experiment, self.conditions = experiment, conditions
        if experiment.teacher.family.pipelines and isinstance(conditions, Prompts):
            self.conditions = _blank({"text": (2, 4), "text_mask": (2,)})
        channels, _, _ = experiment.state_shape
        self.shape = (channels, _SIDE, _SIDE)
        self.split = Split(
            Shards([np.zeros((8, _SIDE, _SIDE, channels), np.uint8)]),
            np.zeros(8, np.int64),
            tuple(map(str, range(conditions.num_classes or 1))),
            "",
            "train",
        )

    def teacher_cost(self) -> CountingRun:
        """What the teacher's training takes."""
        settings = self.experiment.teacher
        assert isinstance(settings, TeacherSettings)
        small = settings.model_copy(update={"network": _STAND_IN, "training": _uncompiled(settings.training)})
        return self._counted(lambda run: train_teacher(small, self.split, run, _captions(self.conditions)))

    def cost_of(self, variant: str, a_pair: float) -> CountingRun:
        """The same of a method that trains, without its offline set.

        Args:
            a_pair: how many evaluations without a gradient take as long as LPIPS does for a pair of images.
        """
        method = copy.copy(self.experiment.methods[variant])
        assert isinstance(method, Distiller)
        settings: Any = method.settings
        method.settings = settings.model_copy(update={"training": _uncompiled(settings.training), "lora": None})
        data: Split | Pairs | None = self.split if method.needs_data else None
        if method.pairs() is not None:
            data = _MadePairs(self.conditions, self.shape)
        teacher = guided(self._teacher(), method.guidance)

        def distil(run: CountingRun) -> None:
            run.adapts = getattr(settings, "lora", None) is not None
            run.frozen = {weight.data_ptr() for weight in teacher.network.parameters()}
            run.count(teacher.network)  # the device holds it, whether it is evaluated or not
            # Its own network wants weights, and is none of those that are counted.
            with mock.patch.object(distances, "load_lpips", return_value=LpipsDistance(_Comparing(run))):
                method.distil(teacher, run, data)

        return self._counted(distil, a_pair)

    def pictures_cost(self, variant: str, batch_size: int) -> tuple[int, int]:
        """Evaluations of a BOOT student's pictures, and how many images are evaluated at once."""
        return self._passed(
            variant, lambda student, teacher: images_of(student, teacher, 0, self.shape, batch_size, _CPU)
        )

    def trajectory_cost(self, variant: str) -> tuple[int, int]:
        """The same of one noise of a BOOT student's errors along the trajectory."""
        return self._passed(variant, lambda student, teacher: errors_of(student, teacher, 0, 1, self.shape, 1, _CPU))

    def _passed(self, variant: str, evaluate: Callable[[NoiseStudent, Denoiser], Any]) -> tuple[int, int]:
        method = self.experiment.methods[variant]
        drawn = method.guidance.drawn
        teacher = guided(self._teacher(), method.guidance.at(method.sampled_at) if drawn else method.guidance)
        network = copy.deepcopy(teacher.network)
        seen: list[int] = []
        for counted in (network, teacher.network):
            counted.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
        evaluate(NoiseStudent.of(teacher, network), teacher)
        return sum(seen), max(seen)

    def _teacher(self) -> Denoiser:
        teacher = self.experiment.teacher
        if isinstance(teacher, TeacherSettings):
            schedule, prediction, thresholding = teacher.schedule.build(), teacher.prediction_type, teacher.thresholding
        else:
            schedule, prediction, thresholding = teacher.schedule
        conditions = self.conditions
        network = build_network(_STAND_IN, self.shape, _labels(conditions), _text_width(conditions))
        network.requires_grad_(False)
        # The stand-in is a U-Net, whatever the teacher is.
        family = families()["unet2d_condition" if isinstance(conditions, Prompts) else "unet2d"]
        return Denoiser(network, schedule, prediction, thresholding, conditions, family).eval()

    @staticmethod
    def _counted(train: Callable[[CountingRun], Any], a_pair: float = 0.0) -> CountingRun:
        with tempfile.TemporaryDirectory() as folder:
            counting = CountingRun(Path(folder), a_pair)
            with counting:
                train(counting)
            return counting


def _uncompiled(settings: TrainingSettings) -> TrainingSettings:
    return settings.model_copy(update={"compile": "off", "optimiser": "adamw"})


def pictures_of(experiment: Experiment, plan: Plan) -> Any:
    """How many pictures the data set has: as prepared, as the settings say, or as its kind always has; 0 if unknown."""
    if (manifest := plan.root / "data" / "manifest.json").exists():
        return sum(part["count"] for part in read_json(manifest)["splits"].values())
    return getattr(experiment.data, "num_pictures", None) or 0


def _captions(conditions: Conditions) -> Prompts | None:
    return conditions if isinstance(conditions, Prompts) else None


def _text_width(conditions: Conditions) -> int | None:
    return conditions.width if isinstance(conditions, Prompts) else None


def _labels(conditions: Conditions) -> int | None:
    return conditions.num_classes + conditions.has_null if isinstance(conditions, ClassLabels) else None


def conditions_of(experiment: Experiment, plan: Plan) -> Conditions:
    """What the teacher is told. Of a data set that is not prepared the number of classes is not known, and costs
    nothing: ten."""
    teacher = experiment.teacher
    if not isinstance(teacher, TeacherSettings):
        if isinstance(teacher.family, TextFamily):
            return _blank(teacher.family.told_shapes(stored_network(teacher.folder).config))
        return load_conditions(teacher.folder, teacher.num_classes)
    if teacher.text is not None:
        width, length = teacher.text.width(), teacher.text.max_tokens
        return _blank({"text": (length, width), "text_mask": (length,)})
    if not teacher.labels:
        return Unconditional()
    manifest = plan.root / "data" / "manifest.json"
    classes = len(read_json(manifest)["class_names"]) if manifest.exists() else 10
    return ClassLabels(classes, teacher.label_dropout > 0)


def _blank(shapes: Mapping[str, tuple[int, ...]]) -> Prompts:
    """One text with embeddings of these shapes, whose numbers do not matter."""
    types = {name: torch.bool if name.endswith("mask") else torch.float16 for name in shapes}
    tables = Embeddings({name: torch.ones(1, *shape, dtype=types[name]) for name, shape in shapes.items()})
    return Prompts(["a text"], torch.zeros(1, dtype=torch.int64), tables, tables, True, Path())


class RealNetwork:
    """The teacher's network with random weights.

    Attributes:
        operations: floating-point operations of an evaluation.
        passing: bytes of an image that one without a gradient holds at the most, in float32.
        num_weights: of it.
    """

    def __init__(self, experiment: Experiment, conditions: Conditions) -> None:
        self._experiment, self._conditions = experiment, conditions
        self._counted = experiment.state_shape, conditions
        self.family = experiment.teacher.family
        self.operations = network_operations(self.build, *self._counted, self.family)
        self.passing = network_passing(self.build, *self._counted, self.family)
        with torch.device("meta"):
            self._described = self.build()
        self.num_weights = sum(weight.numel() for weight in self._described.parameters())

    def build(self) -> nn.Module:
        """A new one."""
        teacher = self._experiment.teacher
        if isinstance(teacher, TeacherSettings):
            told = _labels(self._conditions), _text_width(self._conditions)
            return build_network(teacher.network, self._experiment.state_shape, *told)
        return stored_network(teacher.folder).build()

    def kept(self, precision: Precision, recomputed: bool = False) -> Kept:
        """What an evaluation keeps for a backward pass."""
        return self._kept(precision == "bf16", recomputed)

    @functools.cache  # noqa: B019
    def _kept(self, bf16: bool, recomputed: bool) -> Kept:
        return network_activations(self.build, *self._counted, bf16, self.family, recomputed)

    def num_trained(self, lora: LoraSettings | None) -> int:
        """How many weights a student of it trains."""
        return self.num_weights if lora is None else num_adapter_weights(self._described, lora)


def coding_of(experiment: Experiment) -> Coding:
    """What the autoencoder of a latent teacher takes; nothing of another's."""
    if not experiment.is_latent:
        return NO_CODING
    teacher, images = experiment.teacher, experiment.data.shape

    def build() -> Any:
        if isinstance(teacher, TeacherSettings):
            assert teacher.autoencoder is not None
            return build_autoencoder(teacher.autoencoder, images[0])
        assert isinstance(teacher.space, Latents)
        return teacher.space.build()

    return coding_cost(build, images, experiment.state_shape)
