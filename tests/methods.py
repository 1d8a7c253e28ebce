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


def distil(method, folder, data, teacher, key="key", seed=0, stop_at=None):
    """Trains a method's students; may stop in the middle of a stage's step ``stop_at``."""
    given = inputs_of(method, folder.parent, data, teacher)
    # Only one that is stopped has to store every step.
    with TrainingRun(folder, key, seed, torch.device("cpu"), checkpoint_seconds=1e6 if stop_at is None else 0) as run:
        if stop_at is not None:
            draw = run.generator

            def interrupt(stage, step, number=0):
                if step == stop_at:
                    raise KeyboardInterrupt
                return draw(stage, step, number)

            run.generator = interrupt
        return method.distil(teacher, run, given)
