"""Protocols as data: what has to be equal before two figures can be compared.

A protocol says how pictures become features (library, resize, network, quantiser) and what they are measured against
(reference, number of samples). Every figure of the suite carries the name of its protocol.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from diffusion.data.samples import Quantiser
from diffusion.data.store import PARTS
from diffusion.runtime.settings import Settings, UserPath

# Here and not beside the extractors, whose import costs seconds that every start of the workflow would pay.
VisionTransformerName = Literal["clip-vit-l-14", "dinov2-vit-l-14"]
ExtractorName = Literal["efficientnet-lite0-64", "efficientnet-lite0-32", "inception", VisionTransformerName]
# Numbers a picture.
DIMENSIONS: dict[ExtractorName, int] = {
    "efficientnet-lite0-64": 1280,
    "efficientnet-lite0-32": 1280,
    "inception": 2048,
    "clip-vit-l-14": 768,
    "dinov2-vit-l-14": 1024,
}
# Whose weights a user can name: an extractor, or clean-fid's own copy of the FID Inception.
WeightsName = Literal["inception", "inception-clean-fid", VisionTransformerName]
Library = Literal["torch-fidelity", "clean-fid"]
CleanMode = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]
# The protocol of every table but the one that compares protocols.
MAIN = "main"

# What the modes of clean-fid do to a picture before any extractor sees it, an own one included.
RESIZES: dict[CleanMode, str] = {
    "clean": "299×299, bicubic, antialiased, as float (PIL)",
    "legacy_pytorch": "299×299, bilinear, not antialiased, as float (PyTorch)",
    "legacy_tensorflow": "none: the network resizes",
}
QUANTISERS: dict[Quantiser, str] = {
    "round": "round(clamp(127.5 x + 127.5, 0, 255))",
    "truncate": "floor(clamp(127.5 x + 127.5, 0, 255))",
}
assert set(RESIZES) == set(get_args(CleanMode))
assert set(QUANTISERS) == set(get_args(Quantiser))


class Protocol(Settings):
    """How a set of samples is measured.

    Attributes:
        library: whose loop extracts the features and whose function measures them.
        mode: clean-fid's resize, before any extractor; None with torch-fidelity, where the extractor resizes.
        features: the extractor; None takes that of the experiment.
        quantiser: how samples became uint8; "round" is the suite's own, "truncate" that of guided-diffusion (ADM).
        reference: "train" or "test" of the experiment's data, or an ``.npz`` file: one with pictures (``arr_0``), or
            one with moments alone (``mu``, ``sigma``), of which only the Fréchet distance can be taken.
        reference_sha256: the file's, or its beginning; another content is refused.
        num_samples: how many samples are measured, the first ones; None takes all.
    """

    library: Library = "torch-fidelity"
    mode: CleanMode | None = None
    features: ExtractorName | None = None
    quantiser: Quantiser = "round"
    reference: UserPath = "train"
    reference_sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")
    num_samples: int | None = Field(None, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _mode_of_the_library(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if raw.get("library") == "clean-fid":
            return {**raw, "mode": raw.get("mode") or "clean"}
        if raw.get("mode") is not None:
            raise ValueError(f"mode: found {raw['mode']!r}, expected none: it is a setting of clean-fid")
        return raw

    @property
    def reference_is_file(self) -> bool:
        """Whether the reference is a given file and not a part of the data."""
        return self.reference not in PARTS

    @property
    def extraction(self) -> str:
        """Name of the way from pictures to features: protocols that share it share the real pictures' features."""
        return "-".join(filter(None, [self.library, self.mode, self.features]))


def resize_in_words(protocol: Protocol, extractor: Mapping[str, Any]) -> str:
    """Every resize of a picture on its way into the network.

    Args:
        extractor: what :meth:`evaluation.measure.features.Extractor.describe` returns for the protocol's mode.
    """
    if protocol.mode is None:
        return str(extractor["resize"])
    return f"{RESIZES[protocol.mode]}; then {extractor['resize']}"


def in_words(protocol: Protocol, extractor: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """A protocol spelled out, for footnotes; the number of samples stands in the tables.

    Args:
        extractor: as for :func:`resize_in_words`.
        reference: ``count`` (None where unknown), ``sha256`` and, where there is one, ``note``.
    """
    count = "an unknown number of" if reference["count"] is None else reference["count"]
    mode = f", mode {protocol.mode}" if protocol.mode else ""
    what = f"the file {protocol.reference}" if protocol.reference_is_file else f"the '{protocol.reference}' part"
    note = f"; {reference['note']}" if reference.get("note") else ""
    return (
        f"{protocol.library} {extractor['library_version']}{mode}; features of {extractor['name']} (layer "
        f"{extractor['layer']}, weights sha256 {extractor['weights_sha256'][:16]}…); resize: "
        f"{resize_in_words(protocol, extractor)}; samples quantised by {QUANTISERS[protocol.quantiser]}; reference: "
        f"{what} ({count} pictures, sha256 {reference['sha256'][:16]}…{note})."
    )


class SpeedSettings(Settings):
    """How sampling is timed.

    Attributes:
        batch_sizes: each is timed; latency is the time of one such batch.
        seconds: time budget over all batch sizes and samplers; at least six rounds of each are taken.
        precision: rounds end before that when every median is known within this share of it, at 95 %.
    """

    batch_sizes: tuple[int, ...] = Field((1, 128), min_length=1)
    seconds: float = Field(40.0, gt=0)
    precision: float = Field(0.02, gt=0, lt=1)

    @field_validator("batch_sizes")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1 or len(set(value)) != len(value):
            raise ValueError(f"found {list(value)}, expected different numbers ≥ 1")
        return value
