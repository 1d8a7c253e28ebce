"""Every registered method, built with settings that take no time."""

import torch

from diffusion.distillation.pairs import Pairs, generate_pairs
from diffusion.distillation.registry import method_class, method_modules
from diffusion.training.loop import TrainingRun

METHODS = list(method_modules())
TRAINED = [name for name in METHODS if method_class(name).trains]


def build(name, guidance=None, **training):
    kind = method_class(name)
    raw = {"method": name, **kind.TINY}
    if training:
        raw["training"] = raw["training"] | training
    return kind(kind.Settings.model_validate(raw), guidance)


def inputs_of(method, folder, data, teacher):
    """What the workflow gives a method to train on: the data set, an offline set (made in the folder), or nothing."""
    if method.pairs() is None:
        return data if method.needs_data else None
    stored = folder / "pairs"
    if not stored.exists():
        stored.mkdir(parents=True)
        with TrainingRun(folder / "pairs-state", "key", 0, torch.device("cpu")) as run:
            generate_pairs(method.pairs(), teacher, run, stored)
    return Pairs(stored, teacher.conditions)
