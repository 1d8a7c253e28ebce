"""The texts that samples are drawn of."""

import hashlib
from pathlib import Path

import numpy as np

from diffusion.data.store import load_split
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.teachers.folder import load_conditions
from diffusion.teachers.prompts import Prompts, encode, encoder_of, normalised, save_prompts
from suite.job import Job
from suite.jobs.inputs import checked_data
from suite.provenance import checked_folder


class Encode(Job):
    """Reads the captions of the data set's test part by the teacher's encoder; none of them is one of its training.

    They are ordered by their SHA-256, so that the first samples are of unlike captions.

    Attributes:
        data: whose test part has the captions.
    """

    teacher: Path
    data: Path

    def run(self) -> None:
        conditions = load_conditions(self.teacher)
        assert isinstance(conditions, Prompts)
        split = load_split(self.data, "test")
        inputs = checked_folder("teacher", self.teacher) | checked_data(self.data, "test")
        captions = {normalised(split.class_names[index]): index for index in np.unique(split.labels).tolist()}
        if known := sorted(captions.keys() & set(conditions.texts)):
            raise UserError(
                f"{self.data}: {len(known)} captions of the test part are in the training part too, e.g. {known[0]!r}; "
                f"expected others, for a teacher can repeat what it has seen."
            )
        texts = sorted(captions, key=lambda text: hashlib.sha256(text.encode()).digest())
        encoder = encoder_of(self.teacher, conditions.max_tokens, default_device())
        prompts = encode(encoder, texts, [captions[text] for text in texts], conditions.knows_empty, self.teacher)
        with self.result_folder() as folder:
            save_prompts(folder, prompts)
            self.write_record(folder, inputs)
