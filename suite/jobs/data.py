"""The data set's two parts, and what has to be fetched for them."""

import logging
from pathlib import Path
from typing import Annotated, Any

from diffusion.conditions import ClassLabels
from diffusion.data.kinds import downloads, parse_settings, prepare
from diffusion.data.store import write_dataset
from diffusion.runtime.downloads import fetch
from diffusion.runtime.errors import UserError
from suite.job import Job, Key
from suite.jobs.inputs import check_classes
from suite.provenance import checked

# A picture and its three nearest neighbours (evaluation.measure.metrics.precision_recall).
_FEWEST_HELD_OUT = 4


class Prepare(Job):
    """Writes the two parts of a data set.

    Attributes:
        downloads: the folder with what was fetched for it.
        teacher_classes: how many classes a stored teacher knows.
        state: where an interrupted preparation is kept; None starts anew.
    """

    settings: Annotated[dict[str, Any], Key("data")]
    downloads: Path | None = None
    teacher_classes: Annotated[int | None, Key("teacher.num_classes")] = None
    state: Path | None = None

    def run(self) -> None:
        logging.basicConfig(format="%(levelname)s: %(message)s")
        logging.getLogger("diffusion.data").setLevel(logging.INFO)  # which classes there are, and images of each
        settings = parse_settings(self.settings)
        splits = prepare(settings, self.downloads)
        if len(splits.test_images) < _FEWEST_HELD_OUT:
            raise UserError(
                f"data ({settings}): {len(splits.test_images)} pictures held out, expected {_FEWEST_HELD_OUT} or more: "
                f"precision and recall are measured at their count too. Hold out a larger share, or bring more "
                f"pictures."
            )
        if self.teacher_classes is not None:  # before pictures are decoded, and before anything is trained
            check_classes(ClassLabels(self.teacher_classes, False), f"data ({settings})", len(splits.class_names))
        fetched = sorted(self.downloads.iterdir()) if self.downloads else []
        inputs = checked({file.name: file for file in fetched if file.is_file()})

        def finish(folder: Path) -> None:
            self.write_record(folder, inputs, source=splits.source)

        write_dataset(self.output, splits, settings, self.state, finish)


class Fetch(Job):
    """Downloads one file of a data set."""

    settings: Annotated[dict[str, Any], Key("data")]

    def run(self) -> None:
        wanted = {one.name: one for one in downloads(parse_settings(self.settings))}
        fetch(wanted[self.output.name], self.output)
