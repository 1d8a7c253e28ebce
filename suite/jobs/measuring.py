"""Quality from features and samples."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from diffusion.data.samples import load_labels, load_samples
from diffusion.data.store import Split, load_split
from diffusion.runtime.device import default_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.measure import quality
from evaluation.measure.captions import Attributes
from evaluation.measure.classifier import classify, load_attributes, load_classifier
from evaluation.measure.metric import Given
from evaluation.measure.reference import Reference, drawn, load_features, load_real
from evaluation.measure.text_scores import TextScore, TextScoreName, load_texts
from suite.job import BatchSize, Job, Key, NumSamples, TeacherNfe, TrainingSeed
from suite.jobs.inputs import checked_data, number_in
from suite.provenance import Input, checked, checked_folder

Samples = Mapping[int, np.ndarray]


class Measuring(Job):
    """What all measuring reads.

    Attributes:
        real: the real pictures' features and moments.
        classifier: finds the classes, or the attributes of captions, of samples that were asked for some.
        text_scores: the CLIPs that compare samples with their captions.
        batch_size: of the classifier, and of those.
    """

    experiment: str
    real: Path
    classifier: Path | None = None
    text_scores: Annotated[dict[TextScoreName, TextScore], Key("evaluation.text_scores")] = Field(default_factory=dict)
    batch_size: BatchSize = 256

    def real_and_classifier(self) -> dict[str, Input]:
        """Both as inputs of the result."""
        inputs = checked_folder("real", self.real)
        return inputs | checked_folder("classifier", self.classifier) if self.classifier else inputs

    @cached_property
    def attributes(self) -> Attributes | None:
        """Those that the classifier finds."""
        return load_attributes(self.classifier) if self.classifier else None

    @cached_property
    def texts(self) -> dict[int, str]:
        """The captions of images, by the indices that are stored with these."""
        raise NotImplementedError

    @cached_property
    def clips(self) -> dict[TextScoreName, Any]:
        """The CLIPs, which have read the captions."""
        if not self.text_scores:
            return {}
        from evaluation.measure.clip import Clip  # seconds, for those who want it

        texts = [*self.texts.values()]
        return {
            name: Clip(name, settings, texts, default_device(), self.batch_size)
            for name, settings in self.text_scores.items()
        }

    def matched(self, images: np.ndarray, caption_indices: np.ndarray, where: Path) -> dict[str, Any]:
        """How well images go with their captions, as :class:`~evaluation.measure.metric.Given` has it.

        Raises:
            UserError: an image of ``where`` has a caption that is none of the texts.
        """
        if not self.clips:
            return {}
        row_of = {index: row for row, index in enumerate(self.texts)}
        if unknown := set(caption_indices.tolist()) - row_of.keys():
            raise UserError(
                f"{where}: found the caption {min(unknown)}, expected the indices of the {len(row_of)} captions that "
                f"samples are drawn of."
            )
        rows = np.array([row_of[index] for index in caption_indices.tolist()])
        return {f"{name}_match": clip.match(images, rows) for name, clip in self.clips.items()}

    def write_rows(self, rows: list[dict[str, Any]], inputs: Mapping[str, Input]) -> None:
        description = self.extractor
        facts: dict[str, Any] = {"extractor": description, "definitions": quality.definitions(description["name"])}
        if self.clips:
            facts["clips"] = {name: clip.describe() for name, clip in self.clips.items()}
        with self.result_file(inputs, **facts) as temporary:
            pd.DataFrame(rows, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)

    @cached_property
    def reference(self) -> Reference:
        return load_real(self.real)

    @cached_property
    def extractor(self) -> dict[str, Any]:
        """What made the features of the real pictures, and so all that are compared with them."""
        description: dict[str, Any] = read_json(self.real / "facts.json")["extractor"]
        return description


class MeasuringSamples(Measuring):
    """Quality of samples against the real pictures, and against the samples of the sampler that stands for the teacher.

    Attributes:
        features: of the samples, ``seed-<n>.npy``, for a variant in a folder for every number of evaluations.
        teacher: whose samples those of the teacher are, as "ddim/train-0".
        teacher_features, teacher_samples: their folders, of all numbers of evaluations.
        prompts: the captions that samples are drawn of, of a teacher that is told texts.
    """

    method: str
    variant: str
    train_seed: TrainingSeed | None = None
    features: Path
    teacher: Annotated[str, Key("evaluation.teacher.variant")]
    teacher_nfe: TeacherNfe
    teacher_features: Path
    teacher_samples: Path
    prompts: Path | None = None

    @property
    def samples_of_teacher(self) -> Path:
        return self.teacher_samples / f"nfe-{self.teacher_nfe}"

    @cached_property
    def features_of_teacher(self) -> Samples:
        return _by_seed(self.teacher_features / f"nfe-{self.teacher_nfe}")

    @cached_property
    def classifying_network(self) -> Any:
        return load_classifier(self.classifier, default_device()) if self.classifier else None

    @cached_property
    def texts(self) -> dict[int, str]:
        assert self.prompts is not None, "no text score is asked for without texts"
        return load_texts(self.prompts)

    def all_inputs(self) -> dict[str, Input]:
        within = f"nfe-{self.teacher_nfe}"
        texts = checked_folder("prompts", self.prompts) if self.prompts else {}
        return (
            texts
            | self.real_and_classifier()
            | checked_folder("features", self.features)
            | checked_folder("teacher's features", self.teacher_features, within)
            | checked_folder("teacher's samples", self.teacher_samples, within)
        )

    def measured(
        self,
        nfe: int | None,
        folder: Path,
        files: Mapping[int, Path],
        follows_teacher: bool = False,
        fewer: tuple[int, ...] = (),
    ) -> list[dict[str, Any]]:
        """The rows of one number of evaluations.

        Args:
            folder: of the features.
            files: of the samples, by sampling seed.
            follows_teacher: whether the samples follow the teacher's noise.
            fewer: further numbers of samples to measure at.
        """
        assert self.reference.held_out is not None
        samples = {seed: load_samples(path) for seed, path in files.items()}
        targets = {seed: self.samples_of_teacher / f"seed-{seed}.npz" for seed in files if follows_teacher}
        return quality.measure(
            {"experiment": self.experiment, "method": self.method, "variant": self.variant}
            | {"nfe": nfe, "train_seed": self.train_seed},
            _by_seed(folder),
            samples,
            self.reference,
            extractor=self.extractor["name"],
            fewer=sorted({len(self.reference.held_out), *fewer}),
            teacher_features=self.features_of_teacher,
            teacher_samples={seed: load_samples(path) for seed, path in targets.items()} or None,
            teacher_name=f"teacher-{self.teacher_nfe}",
            told=self._told(files, samples),
        )

    def _told(self, files: Mapping[int, Path], samples: Samples) -> dict[int, dict[str, Any]]:
        """What samples were asked for, where they were, beside what is found in them, as :func:`quality.measure` takes
        it."""
        if self.classifier is None and self.prompts is None:
            return {}
        asked = {seed: labels for seed, path in files.items() if (labels := load_labels(path)) is not None}
        told: dict[int, dict[str, Any]] = {seed: {} for seed in asked}
        if self.prompts is not None or self.attributes is not None:
            for seed, indices in asked.items():
                told[seed] = {"caption_indices": indices, **self.matched(samples[seed], indices, files[seed])}
        if self.classifier is not None:
            check_labels(self.classifier, files, samples, asked)
            heads = self.attributes.num_values if self.attributes else ()
            for seed, labels in asked.items():
                found = classify(self.classifying_network, samples[seed], self.batch_size, heads)
                if self.attributes is None:
                    told[seed]["labels"] = (labels, found)
                else:
                    told[seed]["captions"] = self.attributes.captions(labels, found)
        return told


class Measure(MeasuringSamples):
    """Quality of a variant at every number of evaluations.

    Attributes:
        samples: the variant's folder.
        follows_teacher: the numbers of evaluations at which the samples follow the teacher's noise.
    """

    samples: Path
    follows_teacher: tuple[int, ...] = ()

    def run(self) -> None:
        inputs = self.all_inputs() | checked_folder("samples", self.samples)
        rows = []
        for folder in sorted(self.features.glob("nfe-*"), key=lambda path: number_in(path.name)):
            files = {seed: self.samples / folder.name / f"seed-{seed}.npz" for seed in _by_seed(folder)}
            nfe = number_in(folder.name)
            rows += self.measured(nfe, folder, files, nfe in self.follows_teacher)
        self.write_rows(rows, inputs)


class MeasureExternal(MeasuringSamples):
    """Quality of samples that the user brings.

    Attributes:
        samples: files.
        seeds: of each.
        num_samples: to measure at too, where they are more.
    """

    method: str = "external"
    samples: Annotated[tuple[Path, ...], Key("evaluation.external.{variant}.path")]
    seeds: Annotated[tuple[int, ...], Key("evaluation.external.{variant}.seeds")]
    nfe: Annotated[int | None, Key("evaluation.external.{variant}.nfe")] = None
    num_samples: NumSamples

    def run(self) -> None:
        files = dict(zip(self.seeds, self.samples, strict=True))
        inputs = self.all_inputs() | checked({f"samples of seed {seed}": file for seed, file in files.items()})
        check_resolution(self.samples_of_teacher, files, {seed: load_samples(path) for seed, path in files.items()})
        self.write_rows(self.measured(self.nfe, self.features, files, fewer=(self.num_samples,)), inputs)


class MeasureFloor(Measuring):
    """The real test pictures against the real training pictures: what perfect looks like at that count.

    Attributes:
        data: the data set, where its classes are captions.
    """

    num_samples: NumSamples
    data: Path | None = None

    def run(self) -> None:
        inputs = self.real_and_classifier() | (checked_data(self.data, "test") if self.data else {})
        real = self.reference
        assert real.held_out is not None
        rows = quality.measure_floor(
            self.experiment,
            drawn(real.held_out, self.num_samples),
            replace(real, held_out=None),
            extractor=self.extractor["name"],
            label_accuracy=self._label_accuracy(),
            captioned=self._captioned(),
        )
        self.write_rows(rows, inputs)

    def _label_accuracy(self) -> tuple[float, int] | None:
        """The classifier's own, and of how many images."""
        if self.classifier is None or self.attributes is not None:
            return None
        facts = read_json(self.classifier / "classifier.json")
        return facts["test_accuracy"], facts["test_count"]

    @cached_property
    def test_part(self) -> Split:
        assert self.data is not None, "no text score is asked for without captions"
        return load_split(self.data, "test")

    @cached_property
    def texts(self) -> dict[int, str]:
        return {index: self.test_part.class_names[index] for index in np.unique(self.test_part.labels).tolist()}

    def _captioned(self) -> Given | None:
        """What concerns captions, of all real test images."""
        if self.data is None:
            return None
        images, indices = np.asarray(self.test_part.images), self.test_part.labels
        assert self.reference.held_out is not None
        captions = None
        if self.attributes is not None and self.classifier is not None:
            found = read_json(self.classifier / "classifier.json")["test_found"]
            captions = self.attributes.captions(indices, np.array(found, np.int64))
        return Given(
            images=images,
            caption_indices=indices,
            all_seeds=(self.reference.held_out, indices),
            captions=captions,
            **self.matched(images, indices, self.data),
        )


def check_resolution(teacher_samples: Path, files: Mapping[int, Path], samples: Samples) -> None:
    """Refuses samples of another resolution: the extractor would resize them in silence and measure that too.

    Raises:
        UserError: naming both resolutions.
    """
    expected = load_samples(next(teacher_samples.glob("seed-*.npz"))).shape[1:3]
    for seed, images in samples.items():
        if images.shape[1:3] != expected:
            raise UserError(
                f"{files[seed]}: images of {images.shape[1]}×{images.shape[2]} pixels; the experiment's have "
                f"{expected[0]}×{expected[1]}. Bring samples of that resolution."
            )


def check_labels(classifier: Path, files: Mapping[int, Path], samples: Samples, asked: Samples) -> None:
    """Refuses labels that the classifier does not know, by the files they stand in; ``asked`` holds them by seed."""
    facts = read_json(classifier / "classifier.json")
    names = facts["class_names"]
    for seed, labels in asked.items():
        channels = samples[seed].shape[-1]
        if channels != facts["channels"]:
            raise UserError(
                f"{files[seed]}: {channels} channels; expected the data set's {facts['channels']}, so that the "
                f"classifier can judge the labels; or leave out 'arr_1'."
            )
        if not 0 <= labels.min() <= labels.max() < len(names):
            raise UserError(
                f"{files[seed]}: classes {labels.min()} to {labels.max()}, but the data set has {len(names)}, "
                f"0 to {len(names) - 1}. The teacher was trained on other classes, or the file's 'arr_1' is not labels."
            )


def _by_seed(folder: Path) -> dict[int, np.ndarray]:
    """Sampling seed to features, of a folder with ``seed-<n>.npy``."""
    return dict(sorted((number_in(path.stem), load_features(path)) for path in folder.glob("seed-*.npy")))
