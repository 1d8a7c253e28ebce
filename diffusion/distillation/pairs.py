"""An offline set of noises and the teacher's samples from them: what direct knowledge distillation trains on.

The set is made once, by a job of its own, and read by every student that needs it. Only the samples are stored: the
noise of a pair is drawn again from the seed and the pair's number.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from diffusion.conditions import Condition, Conditions
from diffusion.denoiser import Denoiser
from diffusion.noise import initial_noise
from diffusion.runtime.begun import BegunArray
from diffusion.runtime.errors import CheckpointError, NonFiniteError, first_line
from diffusion.runtime.files import read_json, write_json
from diffusion.runtime.memory import within_memory
from diffusion.runtime.processes import drain, portions_of
from diffusion.runtime.settings import Settings
from diffusion.solvers import ddim_sample

if TYPE_CHECKING:
    from diffusion.training.loop import TrainingRun

FILES = _IMAGES, _FACTS = "images.npy", "pairs.json"
# Not among the sampling seeds that anyone would take, so that no student is measured on noise that it was trained on.
SEED = 2**40


class PairsSettings(Settings):
    """Which offline set.

    Attributes:
        count: number of pairs.
        num_inference_steps: DDIM steps of the teacher to each sample.
    """

    count: int = Field(50_000, ge=1)
    num_inference_steps: int = Field(50, ge=1)

    @property
    def name(self) -> str:
        """Names the set's folder: students with equal settings share it."""
        return f"{self.count}-ddim-{self.num_inference_steps}"


def generate_pairs(
    settings: PairsSettings,
    teacher: Denoiser,
    run: "TrainingRun",
    folder: Path,
    batch_size: int = 256,
) -> None:
    """Draws the teacher's samples and writes the set to ``folder``, float16, shape (count, C, H, W).

    A set that was begun in the run's folder is gone on with. Several processes share the batches; the first writes.

    Args:
        teacher: guided and in evaluation mode, on the run's device.

    Raises:
        NonFiniteError: a sample is not finite.
        DeviceMemoryError: a batch does not fit the device's memory.
    """
    run.count(teacher.network)
    begun = BegunArray(run.folder / _IMAGES)
    first, run.evaluations = begun.facts["count"], begun.facts.get("evaluations", run.evaluations)
    run.processes.wait()  # until all have read it
    evaluations_a_sample = 0

    def draw(indices: range) -> torch.Tensor:
        noise = initial_noise(SEED, indices, teacher.shape).to(run.device)
        condition = teacher.conditions.of_samples(indices, run.device)
        with torch.inference_mode():
            return ddim_sample(teacher, noise, settings.num_inference_steps, condition)

    def portion(indices: range) -> torch.Tensor:
        nonlocal evaluations_a_sample
        before = run.evaluations
        samples = within_memory("evaluation.batch_size", lambda size: draw(indices[:size]), len(indices), run.device)
        # Counted where a portion has come in: of several processes, one may repeat another's work in the last turn.
        evaluations_a_sample = (run.evaluations - before) // (run.processes.size * len(indices))
        run.evaluations = before
        if not torch.isfinite(samples).all():
            raise NonFiniteError(f"pairs {indices.start} to {indices.stop - 1}: the teacher's samples are not finite.")
        return samples.half()

    portions = portions_of(settings.count, batch_size, first)
    drawn = run.processes.spread(portions, portion)
    if not run.processes.is_main:
        drain(drawn)
        return

    def note(indices: range) -> dict[str, float]:
        run.evaluations += evaluations_a_sample * len(indices)
        run.note_seconds()
        return {"evaluations": run.evaluations}

    images = begun.fill((settings.count, *teacher.shape), np.float16, portions, (part.numpy() for part in drawn), note)
    cost = run.cost() | {"offline_bytes": images.nbytes}
    np.save(folder / _IMAGES, images)
    write_json(folder / _FACTS, {"settings": settings.model_dump(), "cost": cost})


class Pairs:
    """A stored offline set, memory-mapped.

    Args:
        folder: what :func:`generate_pairs` wrote.
        conditions: of the teacher, which the samples were drawn under.

    Attributes:
        cost: what making it cost, as :meth:`diffusion.training.loop.TrainingRun.cost`, ``offline_bytes`` included.

    Raises:
        CheckpointError: the set is truncated or of another size than its own description says.
    """

    def __init__(self, folder: Path, conditions: Conditions) -> None:
        facts = read_json(folder / _FACTS)
        self.cost: dict[str, float] = facts["cost"]
        self._conditions = conditions
        try:
            self._images = np.load(folder / _IMAGES, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / _IMAGES}: cannot be read ({first_line(error)}).") from error
        if len(self._images) != facts["settings"]["count"]:
            raise CheckpointError(
                f"{folder / _IMAGES}: {len(self._images)} pairs, expected {facts['settings']['count']}."
            )

    def __len__(self) -> int:
        return len(self._images)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        """``count`` pairs, drawn with replacement: noise and samples, shape (count, C, H, W), and their conditions."""
        device = generator.device
        index = torch.randint(len(self), (count,), generator=generator, device=device).cpu().numpy()
        shape: Any = self._images.shape[1:]
        noise, samples = initial_noise(SEED, index, shape), torch.from_numpy(self._images[index].astype(np.float32))
        return noise.to(device), samples.to(device), self._conditions.of_samples(index, device)
