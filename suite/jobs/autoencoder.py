"""The autoencoder of a latent teacher, and the latents of the data set."""

from pathlib import Path
from typing import Annotated

import numpy as np

from diffusion.data.latents import make_latents
from diffusion.data.store import LATENTS, load_split
from diffusion.runtime.begun import BegunArray
from diffusion.runtime.device import default_device
from diffusion.runtime.files import only_one, remove_leftovers, write_json
from diffusion.teachers.autoencoder import AutoencoderSettings, train_autoencoder
from diffusion.teachers.latents import AUTOENCODER, space_of
from diffusion.teachers.lora import num_weights
from diffusion.training.delivered import mark_delivered
from suite.job import BatchSize, Job, Key
from suite.jobs.inputs import checked_data
from suite.jobs.training import TrainingJob, write_log
from suite.provenance import checked_folder
from suite.sources import state_key


class Train(TrainingJob):
    """Trains the autoencoder; ``flip`` mirrors half of the images that are drawn."""

    settings: Annotated[AutoencoderSettings, Key("teacher.autoencoder")]
    data: Path
    flip: Annotated[bool, Key("data.flip")] = False

    def run(self) -> None:
        inputs = checked_data(self.data, "train")
        with self.training_run("autoencoder", 0, inputs) as run:
            autoencoder, cost = train_autoencoder(self.settings, load_split(self.data, "train", self.flip), run)
            if not run.processes.is_main:
                return
            with self.result_folder() as folder:
                autoencoder.save_pretrained(folder / AUTOENCODER)
                write_json(folder / "cost.json", {**cost, "parameters": num_weights(autoencoder)})
                write_log(folder, run)
                self.write_record(folder, inputs, arithmetic=run.arithmetic, steps=run.steps)
            run.deliver(self.output)


class Encode(Job):
    """Encodes the training images, once for all that train on them. A job that was stopped goes on.

    Attributes:
        autoencoder: a folder that has one as a part: that of the job above, or a stored pipeline's.
        flip: whether the mirrored images are encoded too.
        state: where an interrupted run is kept.
    """

    autoencoder: Path
    data: Path
    flip: Annotated[bool, Key("data.flip")] = False
    batch_size: BatchSize
    state: Path

    def run(self) -> None:
        split, space, device = load_split(self.data, "train", self.flip), space_of(self.autoencoder), default_device()
        inputs = checked_data(self.data, "train") | checked_folder("autoencoder", self.autoencoder / AUTOENCODER)
        key = state_key((self.facts(), {name: one.sha256 for name, one in inputs.items()}), __name__)
        state = self.state / f"latents-{key}"
        with only_one(state / "lock", f"{state} (latents that are being made)"):
            remove_leftovers(state)
            begun = BegunArray(state / LATENTS)
            latents = make_latents(split, space.encode, space.state_shape(split.shape), begun, self.batch_size, device)
            with self.result_folder() as folder:
                np.save(folder / LATENTS, latents)
                self.write_record(folder, inputs)
            mark_delivered(state, self.output)
