"""The teacher: trained, or taken from a folder."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from diffusion.data.latents import with_latents
from diffusion.data.store import load_split
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import write_json
from diffusion.space import PIXELS
from diffusion.teachers.folder import deciding_files, import_teacher, pipeline_problems, save_denoiser
from diffusion.teachers.hub import model_folder
from diffusion.teachers.latents import AUTOENCODER, space_of
from diffusion.teachers.lora import num_weights
from diffusion.teachers.settings import TeacherSettings
from diffusion.teachers.train import captions_of, train_teacher
from suite.job import Job, Key
from suite.jobs.inputs import checked_data, checked_latents
from suite.jobs.training import TrainingJob, write_log
from suite.provenance import checked, checked_folder


class Train(TrainingJob):
    """Trains the teacher.

    Attributes:
        flip: whether half of the images that are drawn are mirrored; of latents, those of mirrored images are stored.
        autoencoder, latents: of a latent teacher, the folder that has its autoencoder, and what that made of the data.
    """

    settings: Annotated[TeacherSettings, Key("teacher")]
    data: Path
    autoencoder: Path | None = None
    latents: Path | None = None
    flip: Annotated[bool, Key("data.flip")] = False

    def run(self) -> None:
        settings, split = self.settings, with_latents(load_split(self.data, "train", self.flip), self.latents)
        inputs, space = checked_data(self.data, "train"), PIXELS
        if self.autoencoder is not None:
            inputs |= checked_folder("autoencoder", self.autoencoder / AUTOENCODER)
            space = space_of(self.autoencoder)
        inputs |= checked_latents(self.latents)
        if settings.text is not None:
            inputs |= checked({"text encoder": settings.text.folder() / "model.safetensors"})
        with (
            TemporaryDirectory() as place,
            self.training_run("teacher", settings.seed, inputs, settings.family) as run,
        ):
            captions = captions_of(settings, split, Path(place), run.device) if settings.text else None
            denoiser, cost = train_teacher(settings, split, run, captions, space)
            if not run.processes.is_main:
                return
            with self.result_folder() as folder:
                save_denoiser(folder, denoiser)
                students = [{"nfe": None, **cost, "parameters": num_weights(denoiser.network)}]
                write_json(folder / "cost.json", {"method": "teacher", "variant": "teacher", "students": students})
                write_log(folder, run)
                self.write_record(folder, inputs, arithmetic=run.arithmetic, steps=run.steps)
            run.deliver(self.output)


class Import(Job):
    """Takes a stored teacher into the results. What its own training cost is unknown, so it has no cost file.

    Attributes:
        stored: a folder, or a model of the Hub.
        revision: of the Hub's model.
        num_classes: how many of the network's labels are classes.
        start_level: the largest σ/α of its schedule that is used.
    """

    stored: Annotated[str, Key("teacher.path")]
    revision: Annotated[str | None, Key("teacher.revision")] = None
    num_classes: Annotated[int | None, Key("teacher.num_classes")] = None
    start_level: Annotated[float | None, Key("teacher.start_level")] = None

    def run(self) -> None:
        source = model_folder(self.stored, self.revision, weights=True)
        if problems := pipeline_problems(source):
            raise UserError("\n".join(problems))
        inputs = checked({file.name: file for file in deciding_files(source)})
        with self.result_folder() as folder:
            import_teacher(folder, source, self.num_classes, self.start_level)
            self.write_record(folder, inputs)
