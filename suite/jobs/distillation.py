"""The students of one variant with one seed."""

import copy
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from diffusion.conditions import Conditions
from diffusion.data.latents import with_latents
from diffusion.data.store import Split, load_split
from diffusion.distillation.pairs import FILES as PAIRS_FILES
from diffusion.distillation.pairs import Pairs
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from diffusion.runtime.texts import normalised
from diffusion.teachers.lora import load_trained, num_weights
from diffusion.teachers.prompts import Prompts
from suite.job import Key, TrainingSeed
from suite.jobs.inputs import check_classes, checked_data, checked_latents, snapshot_name
from suite.jobs.networks import VariantJob, checked_network, checked_prompts, load_teacher
from suite.jobs.training import TrainingJob, write_log
from suite.provenance import checked


class Distil(VariantJob, TrainingJob):
    """Trains the students of one variant with one seed.

    Attributes:
        prompts: the texts that students are trained with, where they are not those of the teacher's own training; of
            methods that need data their unconditional input alone.
        data: only for methods that need it; what a student trains on is read only if its method says so.
        latents: of ``data``, where the teacher is a diffusion of latents.
        flip: whether half of the images that are drawn from ``data`` are mirrored.
        pairs: only for methods that train on an offline set.
    """

    teacher: Path
    train_seed: TrainingSeed
    prompts: Path | None = None
    data: Path | None = None
    latents: Path | None = None
    flip: Annotated[bool, Key("data.flip")] = False
    pairs: Path | None = None

    def run(self) -> None:
        method = self.method
        for name, wanted in (("data", method.needs_data), ("pairs", method.pairs() is not None)):
            if wanted != (getattr(self, name) is not None):
                needs = "needs" if wanted else "must not see"
                raise UserError(f"methods.{self.variant}: the method {method.name} {needs} {name}.")
        if self.flip and self.data is None:
            raise UserError(f"data.flip: given, but the method {method.name} draws no images of a data set.")
        inputs = checked_network("teacher", self.teacher) | checked_prompts(self.prompts)
        teacher = load_teacher(
            self.teacher, self.guidance_scale, default_device(), self.prompts, captions=self.data is not None
        )
        given: Split | Pairs | None = None
        if self.data is not None:
            inputs |= checked_data(self.data, "train") | checked_latents(self.latents)
            given = with_latents(load_split(self.data, "train", self.flip), self.latents)
            _check_labels(teacher.conditions, self.data / "manifest.json", given)
        if self.pairs is not None:
            inputs |= checked({f"pairs, {name}": self.pairs / name for name in PAIRS_FILES})
            given = Pairs(self.pairs, teacher.conditions)
        if method.settings.frozen_precision == "bf16":
            teacher.network.to(torch.bfloat16)
        with self.training_run(self.variant, self.train_seed, inputs, method, teacher.family) as run:
            students = method.distil(teacher, run, given)
            if not run.processes.is_main:
                return
            last = min(students, key=lambda student: student.nfe)
            with self.result_folder() as folder:
                for student in students:
                    method.save(folder / f"nfe-{student.nfe}", student.network, teacher)
                for snapshot in last.snapshots:
                    earlier = copy.deepcopy(last.network)
                    load_trained(earlier, snapshot.weights())
                    method.save(folder / snapshot_name(snapshot.step), earlier, teacher)
                costs = [
                    {"nfe": student.nfe, **student.cost, "parameters": num_weights(student.network)}
                    for student in students
                ]
                snapshots = [{"step": snapshot.step, **snapshot.cost} for snapshot in last.snapshots]
                facts = {"method": method.name, "variant": self.variant, "students": costs, "snapshots": snapshots}
                write_json(folder / "cost.json", facts)
                write_log(folder, run)
                self.write_record(folder, inputs, arithmetic=run.arithmetic, steps=run.steps)
            run.deliver(self.output)


def _check_labels(conditions: Conditions, where: Path | str, split: Split) -> None:
    """Refuses a data set whose labels mean other classes, or other captions, than the teacher's.

    Raises:
        UserError: naming both numbers, or a caption.
    """
    if not isinstance(conditions, Prompts):
        check_classes(conditions, where, len(split.class_names))
        return
    known = dict(zip(conditions.indices.tolist(), conditions.texts, strict=True))
    for label in np.unique(split.labels).tolist():
        caption = normalised(split.class_names[label])
        if known.get(label) != caption:
            raise UserError(
                f"{where}: the caption {caption!r} is not the teacher's ({known.get(label)!r} of number {label}); "
                f"expected the data set that the teacher was trained on."
            )
