"""Any folder of a teacher or a student as a `diffusers` pipeline, read by this suite: no code of the folder runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.family import UNET, Family
from diffusion.noise import further_noise, noise_generators
from diffusion.runtime.files import read_json, write_json
from diffusion.schedule import Schedule
from diffusion.space import PIXELS, Space
from diffusion.teachers.folder import SAMPLING, load_denoiser, pipeline_facts, sampling_facts
from diffusion.teachers.pipeline import StudentPipeline
from diffusion.teachers.prompts import ENCODER, TOKENIZER, TextEncoder
from diffusion.teachers.schedulers import build_scheduler


class LocalPipeline(StudentPipeline):
    """:class:`diffusion.teachers.pipeline.StudentPipeline` from this checkout, for folders of any age.

    Where the suite is not installed, `diffusers` loads the same class from the folder's own file. Here it has the exact
    schedule, of which a scheduler's betas are a rounded form.
    """

    schedule: Schedule | None = None
    family: Family = UNET
    source: Path | None = None
    space: Space = PIXELS

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Reads a folder; a name on the Hub is left to `diffusers`, with all other ``options``.

        Args:
            options: ``torch_dtype`` of the network.

        Raises:
            CheckpointError, UserError: as :func:`diffusion.teachers.folder.load_denoiser`.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() or options.keys() - {"torch_dtype"}:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        pipeline = cls.read(folder)
        return pipeline.to(options["torch_dtype"]) if options else pipeline

    @classmethod
    def read(cls, folder: Path, device: torch.device | str = "cpu") -> "LocalPipeline":
        """Reads a folder; errors as :func:`diffusion.teachers.folder.load_denoiser`."""
        denoiser = load_denoiser(folder, device)
        facts = pipeline_facts(denoiser) | sampling_facts(folder)
        pipeline = cls(unet=denoiser.network, scheduler=build_scheduler(denoiser), **facts)
        pipeline.schedule, pipeline.family, pipeline.source = denoiser.schedule, denoiser.family, folder
        pipeline.space = denoiser.space
        return pipeline

    def encoded(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """As the base class, whose encoder is read where a text is given: suites draw of stored embeddings."""
        if self.text_encoder is None and self.source is not None:
            parts = self.source / ENCODER, self.source / TOKENIZER
            encoder = TextEncoder(*parts, self.config.max_tokens, self._execution_device)
            self.register_modules(text_encoder=encoder.model, tokenizer=encoder.tokenizer)
        return super().encoded(texts)

    def decoded(self, states: torch.Tensor) -> torch.Tensor:
        return super().decoded(states) if self.source is None else self.space.decode(states)

    @property
    def _deviation(self) -> float:
        return self.space.deviation

    def _levels(self, timestep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.schedule is None:
            return super()._levels(timestep)
        at = self.schedule.at(self.schedule.time(torch.as_tensor(timestep)))
        return at.alpha.value, at.sigma.value

    def _called(self, fed: torch.Tensor, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.family.call(self.unet, fed, told, condition)

    def _further_noise(self, noise: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same numbers; for timing, drawn on the device (:func:`diffusion.noise.drawn_by_batch`)."""
        generators = noise_generators(noise)
        while True:
            yield further_noise(generators, noise)

    def __call__(self, *arguments: Any, noise: Any = None, condition: Any = None, **options: Any) -> Any:
        """As the base class; ``noise`` and ``condition={"class_labels": …}`` are the names of earlier versions."""
        earlier = {"latents": noise, **(condition or {})}
        options |= {name: value for name, value in earlier.items() if value is not None}
        return super().__call__(*arguments, **options)


def bring_up_to_date(folder: Path) -> None:
    """Makes a folder of an earlier version what :func:`diffusion.teachers.folder.save_denoiser` writes today."""
    index = read_json(folder / "model_index.json")
    pipeline = LocalPipeline.from_pretrained(folder)
    kept = {name: pipeline.config[name] for name in (*SAMPLING, "num_classes", "thresholding", "cosine")}
    write_json(folder / "model_index.json", index | kept)
    pipeline.carry_code(folder)
