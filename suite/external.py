"""Samples and references that the user brings, and what their headers say is wrong with them."""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from diffusion.data.samples import labels_shape, samples_shape
from diffusion.runtime.errors import UserError, first_line
from diffusion.runtime.settings import Seeds, Settings, UserPath
from evaluation.measure.protocols import DIMENSIONS, ExtractorName

# Of evaluation.measure.quality, whose import costs seconds: precision and recall take the third nearest neighbour.
LEAST_SAMPLES = 4


class ExternalSamples(Settings):
    """Samples of one model. In place of a block its ``path`` alone can be given.

    Attributes:
        path: an ``.npz`` with ``arr_0``, uint8, N×H×W×C, of the data's resolution and channels; or several, one a
            sampling seed, all of one N.
        seeds: the sampling seed of each file; 0, 1, … where they are not named.
        nfe: network evaluations an image; None where they are not known.
        title: what the report calls the row; its name where there is none.
    """

    path: tuple[UserPath, ...] = Field(min_length=1)
    seeds: Seeds | None = None
    nfe: int | None = Field(None, ge=1)
    title: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping) else {"path": given}

    @field_validator("path", mode="before")
    @classmethod
    def _one_path(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str | None) -> str | None:
        if title is not None and not (title.strip() and title.isprintable()):
            raise ValueError(f"found {title!r}, expected a line of text")
        return title

    @model_validator(mode="after")
    def _one_seed_a_file(self) -> "ExternalSamples":
        if self.seeds is not None and len(self.seeds) != len(self.path):
            raise ValueError(f"found {len(self.path)} files and {len(self.seeds)} seeds, expected a seed for each file")
        places = [Path(path).resolve() for path in self.path]
        if twice := [path for path, place in zip(self.path, places, strict=True) if places.count(place) > 1]:
            raise ValueError(f"found the same file twice ({', '.join(twice)}), expected one file a sampling seed")
        return self

    @property
    def files(self) -> dict[int, Path]:
        """Sampling seed to file, the lowest seed first."""
        seeds = range(len(self.path)) if self.seeds is None else self.seeds
        return dict(sorted(zip(seeds, map(Path, self.path), strict=True)))

    @property
    def count(self) -> int:
        """Images in each file, as the first one's header has it."""
        return samples_shape(next(iter(self.files.values())))[0]


def external_problems(
    external: Mapping[str, ExternalSamples], shape: tuple[int, int, int], labelled: bool, taken: Collection[str]
) -> list[str]:
    """What is wrong with the files and titles of a configuration; only the headers of the files are read.

    Args:
        shape: (H, W, C) of the data.
        labelled: whether labels beside the samples are judged.
        taken: what the report calls other rows.
    """
    problems = []
    titles = set(taken)
    for name, samples in external.items():
        key, title = f"evaluation.external.{name}", samples.title or name
        if title in titles:
            problems.append(f"{key}.title: found {title!r}, which is another row's; expected one of its own.")
        titles.add(title)
        counts = {}
        for file in samples.files.values():
            try:
                counts[file] = _checked_count(file, shape, labelled)
            except UserError as error:
                problems.append(f"{key}: {error}")
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count:,} in {file}" for file, count in counts.items())
            problems.append(f"{key}: found {found}; expected as many images in every file.")
    return problems


def _checked_count(file: Path, shape: tuple[int, int, int], labelled: bool) -> int:
    found = samples_shape(file)
    count, height, width, channels = found
    if (height, width, channels) != shape:
        expected = ", ".join(map(str, shape))
        raise UserError(f"{file}: 'arr_0' has the shape {found}, expected (N, {expected}), as the data.")
    if count < LEAST_SAMPLES:
        raise UserError(f"{file}: {count} images, expected {LEAST_SAMPLES} or more: precision and recall need them.")
    labels = labels_shape(file) if labelled else None
    if labels not in (None, (count,)):
        raise UserError(f"{file}: 'arr_1' has the shape {labels}, expected ({count},): one class an image.")
    return count


def reference_problem(file: Path, data: Any, features: ExtractorName, resolution: int | None = None) -> str | None:
    """What is wrong with a reference: images of another size than the protocol's or else the data's, or moments of
    other features.

    Of extractors with features of one length the job tells which its moments are of.
    """
    try:
        size = (resolution, resolution) if resolution else data.shape[1:] if data else None
        return _reference_problem(file, size, DIMENSIONS[features])
    except FileNotFoundError:
        return f"found {str(file)!r}, expected train, test or an existing file."
    except UserError as error:
        return str(error)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"{file}: cannot be read as an .npz ({first_line(error)}); expected 'arr_0', or 'mu' and 'sigma'."


def _reference_problem(file: Path, size: tuple[int, int] | None, dimensions: int) -> str | None:
    with np.load(file, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile):
            return f"{file}: holds one array, expected an .npz."
        names = set(archive)
        mean = archive["mu"].shape if {"mu", "sigma"} <= names else None
    if "arr_0" in names:
        shape = samples_shape(file)
        if size is not None and shape[1:3] != size:
            return f"{file}: images of {shape[1]}×{shape[2]} pixels, expected {size[0]}×{size[1]}."
        return None
    if mean is None:
        return f"{file}: holds {sorted(names)}; expected 'arr_0' (images), or 'mu' and 'sigma' (moments)."
    if mean == (dimensions,):
        return None
    return f"{file}: 'mu' has the shape {mean}, expected ({dimensions},), as the features of the protocol have."
