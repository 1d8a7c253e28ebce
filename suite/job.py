"""What every job is: typed, one writer a result, and a result whole or not at all.

A rule hands a job one JSON (``python -m suite '{"asked": …, "teacher": …, "output": …}'``). What decides the result
stands in the file ``asked``, which the workflow writes (:mod:`suite.reruns`) and the result's record keeps; the rest
says where files lie.
"""

import hashlib
import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import atomic_path, only_one, remove_leftovers
from diffusion.runtime.processes import ALONE, Processes
from diffusion.runtime.settings import Settings, problems_of, user_path
from suite.provenance import RECORD, Input, write_provenance
from suite.reruns import asked_in

# How long a job waits for one that makes the same result: a trainer whose Snakemake was killed stores its state first.
_WAIT_FOR_OTHERS_S = 60.0


class Key(NamedTuple):
    """The key of the YAML that a field's value comes from; ``{variant}`` in it is the job's."""

    path: str


# As a person writes it.
GivenPath = Annotated[Path, BeforeValidator(lambda given: user_path(str(given)))]
BatchSize = Annotated[int, Field(ge=1), Key("evaluation.batch_size")]
NumSamples = Annotated[int, Field(ge=1), Key("evaluation.num_samples")]
SamplingSeed = Annotated[int, Field(ge=0), Key("evaluation.seeds")]
TrainingSeed = Annotated[int, Field(ge=0), Key("train_seeds")]
GuidanceScale = Annotated[float, Key("teacher.guidance_scale")]
GuidanceScaleOrRange = Annotated[float | tuple[float, float], Key("teacher.guidance_scale")]
# Of the sampler that stands for the teacher.
TeacherNfe = Annotated[int, Field(ge=1), Key("evaluation.teacher.nfe")]


class Task(Settings):
    """Something to be run. A subclass has a field for all that it is told, and the only place of their defaults."""

    def run(self) -> None:
        raise NotImplementedError

    def sole_maker(self) -> AbstractContextManager[None]:
        """What :meth:`run` is called in."""
        return nullcontext()


class Job(Task):
    """A task that makes a result.

    Attributes:
        output: the result, a folder, or a file beside its record.
        asked: the file of what the workflow asks for; None where a person calls.
    """

    output: Path
    asked: Path | None = None
    _began_with: dict[str, Any] | None = PrivateAttr(None)

    def facts(self) -> dict[str, Any]:
        """All that the job was told but paths, for the record and for what an interrupted job has left."""
        fields = type(self).model_fields.items()
        places = {name for name, field in fields if Path in (field.annotation, *get_args(field.annotation))}
        return self.model_dump(mode="json", exclude=places)

    @contextmanager
    def sole_maker(self) -> Iterator[None]:
        """Makes this process the only one that makes the result.

        Of several processes that do one job together the first has the lock. What others left half-written is removed.

        Raises:
            UserError: another process makes the same result, and goes on for a minute.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        # A person's folder shall get no more than the result.
        name = hashlib.sha256(str(self.output.absolute()).encode()).hexdigest()[:16]
        lock = Path(tempfile.gettempdir(), f"boot-{os.getuid()}-{name}.lock")
        if self.asked is not None:
            lock = self.asked.with_suffix(".lock")
        with only_one(lock, str(self.output), _WAIT_FOR_OTHERS_S):
            remove_leftovers(self.output.parent, self.output.name)
            yield

    @contextmanager
    def result_folder(self, processes: Processes = ALONE) -> Iterator[Path]:
        """A fresh folder that becomes :attr:`output` when the block ends without an error.

        Of several processes the first alone has it; the others get a path at which nothing is.

        Raises:
            UserError: something else is asked for by now than when the job began.
        """
        if not processes.is_main:
            yield self.output
            return
        with atomic_path(self.output) as temporary:
            temporary.mkdir()
            yield temporary
            self._refuse_if_changed()

    @contextmanager
    def result_file(self, inputs: Mapping[str, Input], **facts: Any) -> Iterator[Path]:
        """A path that becomes the file :attr:`output` when the block ends without an error; its record follows."""
        record = self.output.with_suffix(".json")
        with atomic_path(self.output) as temporary:
            yield temporary
            self._refuse_if_changed()
            record.unlink(missing_ok=True)  # never an old record beside a new file
        self._write_record(record, inputs, [self.output], facts)

    def write_record(self, folder: Path, inputs: Mapping[str, Input], **facts: Any) -> None:
        """Writes the record of a result that is a folder, last of all its files."""
        self._write_record(folder / RECORD, inputs, None, facts)

    def _write_record(
        self, record: Path, inputs: Mapping[str, Input], files: list[Path] | None, facts: Mapping[str, Any]
    ) -> None:
        facts = {"output": str(self.output), **self.facts(), **facts}
        write_provenance(record, inputs, self._began_with, files, **facts)

    def _refuse_if_changed(self) -> None:
        """A job that outlived its Snakemake must not deliver over the result of other settings."""
        if self.asked is None or self._began_with is None:
            return
        now = asked_in(self.asked)
        if any(now[part] != self._began_with[part] for part in ("settings", "files")):
            raise UserError(
                f"{self.output}: other settings are asked for than when this job began ({self.asked}); what it has "
                f"made is not delivered."
            )


def read_job(text: str) -> Task:
    """The job that a JSON describes.

    Raises:
        UserError: it does not fit the stage; each problem is named by the key of the YAML that the value comes from.
    """
    told: dict[str, Any] = json.loads(text)
    began_with = asked_in(Path(told["asked"])) if "asked" in told else None
    told = {**(began_with or {}).get("settings", {}), **told}
    stage = told.pop("stage")
    module, _, name = stage.partition(".")
    model: type[Task] = getattr(importlib.import_module(f"suite.jobs.{module}"), name)
    try:
        job = model.model_validate(told)
    except ValidationError as error:
        raise UserError("\n".join(_named(one, stage, model, told) for one in problems_of(error, model))) from error
    if isinstance(job, Job):
        job._began_with = began_with
    return job


def _named(problem: str, stage: str, model: type[Task], told: Mapping[str, Any]) -> str:
    """A problem behind the key of the YAML, or behind the stage where its field has none."""
    field, rest = re.fullmatch(r"(\w*)(.*)", problem, re.S).groups()  # type: ignore[union-attr]  # matches everything
    metadata = model.model_fields[field].metadata if field in model.model_fields else []
    key = next((mark.path for mark in metadata if isinstance(mark, Key)), None)
    return f"{stage}: {problem}" if key is None else key.replace("{variant}", str(told.get("variant"))) + rest
