"""What the jobs that look into a BOOT student have in common."""

from pathlib import Path

from boot.trajectory import load_student
from diffusion.denoiser import Denoiser
from diffusion.runtime.device import default_device
from diffusion.student import NoiseStudent
from diffusion.teachers.stored_network import stored_network
from suite.job import BatchSize, GuidanceScale, Job, SamplingSeed
from suite.jobs.networks import checked_network, checked_prompts, load_teacher
from suite.provenance import Input


class StudentJob(Job):
    """A job that reads a BOOT student beside its teacher.

    Attributes:
        prompts: the texts that both are asked for; None has those of the teacher's own training.
    """

    student: Path
    teacher: Path
    prompts: Path | None = None
    guidance_scale: GuidanceScale = 1.0
    seed: SamplingSeed
    batch_size: BatchSize

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return stored_network(self.student / "nfe-1").shape

    def networks(self, target: str = "signal") -> tuple[NoiseStudent, Denoiser, dict[str, Input]]:
        """The student, which predicts ``target``, the teacher, and the files of both."""
        folder, device = self.student / "nfe-1", default_device()
        inputs = checked_network("student", folder) | checked_network("teacher", self.teacher)
        inputs |= checked_prompts(self.prompts)
        teacher = load_teacher(self.teacher, self.guidance_scale, device, self.prompts)
        # Told the scale that the teacher has.
        return load_student(folder, device, target, self.guidance_scale), teacher, inputs
