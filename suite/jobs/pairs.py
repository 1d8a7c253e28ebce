"""An offline set of noises and samples of the teacher."""

from pathlib import Path
from typing import Annotated

from diffusion.distillation.pairs import PairsSettings, generate_pairs
from diffusion.runtime.device import default_device
from suite.job import BatchSize, GuidanceScale, Key
from suite.jobs.networks import checked_network, checked_prompts, load_teacher
from suite.jobs.training import TrainingJob


class Make(TrainingJob):
    """Makes an offline set of noises and samples of the teacher, for the methods that train on one.

    Attributes:
        prompts: as of :class:`suite.jobs.distillation.Distil`.
    """

    settings: Annotated[PairsSettings, Key("methods.*.pairs")]
    teacher: Path
    prompts: Path | None = None
    guidance_scale: GuidanceScale = 1.0
    batch_size: BatchSize = 256

    def run(self) -> None:
        inputs = checked_network("teacher", self.teacher) | checked_prompts(self.prompts)
        teacher = load_teacher(self.teacher, self.guidance_scale, default_device(), self.prompts)
        with self.training_run(f"pairs-{self.settings.name}", 0, inputs, teacher.family) as run:
            with self.result_folder(run.processes) as folder:
                generate_pairs(self.settings, teacher, run, folder, self.batch_size)
                if not run.processes.is_main:
                    return
                self.write_record(folder, inputs)
            run.deliver(self.output)
