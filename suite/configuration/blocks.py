"""The blocks of a configuration, each a model of its own."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from diffusion.distillation.method import Method
from diffusion.runtime.settings import Seeds, Settings, StepCounts, UserPath
from diffusion.teachers.prompt_sources import PromptSettings
from evaluation.measure.classifier import ClassifierSettings
from evaluation.measure.protocols import MAIN, ExtractorName, Protocol, SpeedSettings, WeightsName
from evaluation.measure.text_scores import TextScore, TextScoreName
from suite.external import ExternalSamples

# Of an experiment, a variant, …: file names have up to 255 bytes, of which temporary names, records and locks take 15,
# and Slurm's logs, named after all wildcards of a job together, some more.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")
NAME_IN_WORDS = "up to 200 letters, digits and . _ + -"


class Reference(Settings):
    """The sampler that stands for the teacher: speed-ups and distances to the teacher refer to it."""

    variant: str = "ddim"
    nfe: int = Field(50, ge=1)


class EvaluationSettings(Settings):
    """How samples are drawn and measured.

    Attributes:
        num_samples: samples of each variant and sampling seed.
        seeds: sampling seeds. All methods start from the same noise of each seed.
        batch_size: pictures a batch while sampling and extracting features.
        features: the feature extractor of the main protocol, ``main``: torch-fidelity, against the training pictures.
        protocols: further protocols by name. Under each, and under ``main``, one and the same samples are measured, so
            that the report shows how much of a figure is protocol. None is clean-fid's, except on the FID Inception, of
            which clean-fid needs a file of its own.
        weights: where the weights of extractors lie: ``inception`` (torch-fidelity's file), ``inception-clean-fid``
            (clean-fid's own copy of it), ``clip-vit-l-14`` and ``dinov2-vit-l-14`` (folders of `transformers`). Those
            that are not named are looked for in the usual caches, and downloaded where the network allows.
        text_scores: the CLIPs that compare samples with their captions, by the name of the score (``clip_score``,
            ``pick_score``), each a folder of `transformers` or a name on the Hub. What is not named is not taken.
        classifier: how the judge of class-conditional samples is trained.
        teacher: which sampler stands for the teacher, by its network evaluations; a guided step takes two.
        nfe: variant to the numbers of network evaluations at which it is sampled, timed and measured; all that its
            method has where it is not named. For methods that train many students, of which few are asked for: what is
            trained does not change. Variants that ``comparison`` and ``ablation`` make of one are named themselves.
        trajectory_noises: from how many noises BOOT's errors along the teacher's trajectory are means.
        external: samples of your own, by the name of their row; an .npz alone, or a block.
    """

    num_samples: int = Field(2000, ge=16)
    seeds: Seeds = (0, 1, 2)
    batch_size: int = Field(256, ge=1)
    features: ExtractorName = "efficientnet-lite0-64"
    protocols: dict[str, Protocol] | None = None
    weights: dict[WeightsName, UserPath] = Field(default_factory=dict)
    text_scores: dict[TextScoreName, TextScore] = Field(default_factory=dict)
    classifier: ClassifierSettings = ClassifierSettings()
    teacher: Reference = Reference()
    nfe: dict[str, StepCounts] = Field(default_factory=dict)
    trajectory_noises: int = Field(128, ge=1)
    external: dict[str, ExternalSamples] = Field(default_factory=dict)

    def sampled(self, variant: str, method: Method) -> tuple[int, ...]:
        """The numbers of network evaluations at which a variant is sampled, in the order of its method."""
        wanted = self.nfe.get(variant, method.evaluations())
        return tuple(nfe for nfe in method.evaluations() if nfe in wanted)

    @property
    def further_protocols(self) -> dict[str, Protocol]:
        """All but ``main``, as the file has them."""
        if self.protocols is not None:
            return self.protocols
        return {} if self.features == "inception" else {"clean-fid": Protocol(library="clean-fid")}

    @property
    def all_protocols(self) -> dict[str, Protocol]:
        """``main`` and the further protocols, each with its extractor and number of samples filled in."""
        given = {MAIN: Protocol(), **self.further_protocols}
        return {
            name: one.model_copy(
                update={"features": one.features or self.features, "num_samples": one.num_samples or self.num_samples}
            )
            for name, one in given.items()
        }


def leaves(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested block with their dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in block.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def changed_name(axis: str, change: Mapping[str, Any]) -> str:
    """Of a variant of an ablation: the question and the values, in characters that a name may have."""
    values = ("-".join(map(str, value)) if isinstance(value, list) else str(value) for _, value in leaves(change))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{axis}-{'_'.join(values)}")


class AblationSettings(Settings):
    """One change at a time.

    Attributes:
        base: a variant under ``methods``.
        axes: name of a question to changes, each a part of the base's block that replaces the same part of it. Every
            change becomes a variant, named after the question and its values.
    """

    base: str
    axes: dict[str, tuple[dict[str, Any], ...]] = Field(min_length=1)

    def variants(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Question to the names of its variants and their changes."""
        return {axis: {changed_name(axis, change): change for change in changes} for axis, changes in self.axes.items()}


class Layout(Settings):
    """The blocks of the file, before ``data``, ``teacher`` and ``methods`` have chosen their own models."""

    experiment: str
    results: UserPath = "results"
    data: dict[str, Any]
    teacher: dict[str, Any]
    prompts: PromptSettings | None = None
    methods: dict[str, Any] = Field(
        default_factory=lambda: {
            "ddim": {"method": "ddim"},
            "boot": {"method": "boot"},
            "progressive": {"method": "progressive_distillation"},
        }
    )
    ablation: AblationSettings | None = None
    comparison: dict[str, dict[str, dict[str, Any]]] | None = None
    published_as: str | None = None
    select: tuple[str, ...] | None = Field(None, min_length=1)
    train_seeds: Seeds = (0,)
    evaluation: EvaluationSettings = EvaluationSettings()
    speed: SpeedSettings = SpeedSettings()

    @field_validator("experiment")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"found {value!r}, expected {NAME_IN_WORDS} (it names a folder)")
        return value
