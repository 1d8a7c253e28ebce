"""Protocols as data: what has to be equal before two figures can be compared.

A protocol says how pictures become features (library, resize, network, quantiser) and what they are measured against
(reference, number of samples). Every figure of the suite carries the name of its protocol.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from diffusion.data.samples import Quantiser
from diffusion.data.store import PARTS
from diffusion.runtime.settings import GrownSettings, Settings, UserPath

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


PresetName = Literal["coco2014-30k", "coco2014-30k-stylegan", "coco2017-5k"]
# What publications on text-to-image call FID on COCO, of samples from captions of its validation part. The first is
# that of DMD2's code (Yin et al. 2024, arXiv 2405.14867), modified from GigaGAN's; the second has the Inception of
# StyleGAN's code, as SiD-LSG's training (Zhou et al. 2025, arXiv 2406.01561). The third's users share the number alone.
PRESETS: dict[PresetName, dict[str, Any]] = {
    "coco2014-30k": {
        **{"library": "clean-fid", "mode": "clean", "features": "inception"},
        **{"resolution": 256, "num_samples": 30_000},
    },
    "coco2014-30k-stylegan": {
        **{"library": "clean-fid", "mode": "legacy_tensorflow", "features": "inception"},
        **{"resolution": 256, "num_samples": 30_000},
    },
    "coco2017-5k": {"library": "clean-fid", "mode": "clean", "features": "inception", "num_samples": 5_000},
}
assert set(PRESETS) == set(get_args(PresetName))


class Protocol(GrownSettings):
    """How a set of samples is measured.

    Attributes:
        preset: a published protocol by its name, which says the keys that :data:`PRESETS` has; the reference is named
            beside it.
        library: whose loop extracts the features and whose function measures them.
        resolution: of samples and real images the middle square is first resized to so many pixels a side, by Lanczos'
            filter; None leaves them as they are.
        mode: clean-fid's resize, before any extractor; None with torch-fidelity, where the extractor resizes.
        features: the extractor; None takes that of the experiment.
        quantiser: how samples became uint8; "round" is the suite's own, "truncate" that of guided-diffusion (ADM).
        reference: "train" or "test" of the experiment's data, or an ``.npz`` file: one with pictures (``arr_0``), or
            one with moments alone (``mu``, ``sigma``), of which only the Fréchet distance can be taken.
        reference_sha256: the file's, or its beginning; another content is refused.
        num_samples: how many samples are measured, the first ones; None takes all.
    """

    later: ClassVar[tuple[str, ...]] = ("preset", "resolution")

    preset: PresetName | None = None
    library: Library = "torch-fidelity"
    resolution: int | None = Field(None, ge=8)
    mode: CleanMode | None = None
    features: ExtractorName | None = None
    quantiser: Quantiser = "round"
    reference: UserPath = "train"
    reference_sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")
    num_samples: int | None = Field(None, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset_and_library(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        fixed = PRESETS.get(raw["preset"]) if isinstance(raw.get("preset"), str) else None
        if fixed:
            for key in fixed.keys() & raw.keys():
                if str(raw[key]) != str(fixed[key]):  # on a command line numbers are texts
                    raise ValueError(f"{key}: found {raw[key]!r}, expected {fixed[key]!r}, as {raw['preset']} has it")
            if "reference" not in raw:
                raise ValueError(
                    f"reference: missing; {raw['preset']} is measured against the validation images of COCO: expected "
                    f"an .npz with their moments (mu, sigma) or with them (arr_0), or test where they are the test part"
                )
            raw = {**fixed, **raw}
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
        size = f"{self.resolution}px" if self.resolution else None
        return "-".join(filter(None, [self.library, self.mode, self.features, size]))


def resize_in_words(protocol: Protocol, extractor: Mapping[str, Any]) -> str:
    """Every resize of a picture on its way into the network.

    Args:
        extractor: what :meth:`evaluation.measure.features.Extractor.describe` returns for the protocol's mode.
    """
    size = protocol.resolution
    steps = [f"the middle square to {size}×{size}, Lanczos (PIL)"] if size else []
    steps += [RESIZES[protocol.mode]] if protocol.mode else []
    return "; then ".join([*steps, str(extractor["resize"])])


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
    preset = f"{protocol.preset}: " if protocol.preset else ""
    return (
        f"{preset}{protocol.library} {extractor['library_version']}{mode}; features of {extractor['name']} (layer "
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
