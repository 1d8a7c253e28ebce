"""The same samples under one protocol."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from evaluation.measure import quality
from evaluation.measure.metrics import metric_name
from evaluation.measure.reference import OTHER_PART, Reference, drawn, load_features, load_given, load_real
from suite.job import SamplingSeed
from suite.jobs.extraction import UnderProtocol
from suite.provenance import checked, checked_folder


class Row(NamedTuple):
    """Samples to be measured: what they are, and the file of their features."""

    method: str
    variant: str
    nfe: int | None
    train_seed: int | None
    seed: int
    features: Path


class Measure(UnderProtocol):
    """The Fréchet distance and KID of some rows, and of held-out real pictures, under one protocol.

    Attributes:
        name: of the protocol.
        seed: the sampling seed of the suite's own rows.
        reference: the features of the real pictures.
    """

    experiment: str
    name: str
    rows: tuple[Row, ...]
    seed: SamplingSeed
    reference: Path

    def run(self) -> None:
        protocol = self.protocol
        inputs = checked({f"features {number}": row.features for number, row in enumerate(self.rows)})
        inputs |= checked_folder("reference", self.reference)
        if protocol.reference_is_file:
            inputs |= checked({"given reference": Path(protocol.reference)})
        facts = read_json(self.reference / "facts.json")
        extractor, parts = facts["extractor"], facts["parts"]
        reference = self._reference(facts)
        library = f"{protocol.library} {extractor['library_version']}"
        table: list[dict[str, Any]] = []

        def add(identity: dict[str, Any], features: np.ndarray) -> None:
            for metric, value in quality.measure_under(protocol.library, features, reference, warn=False).items():
                table.append(
                    {"experiment": self.experiment, "protocol": self.name, "features": extractor["name"]}
                    | {"reference": protocol.reference, "library": library}
                    | identity
                    | {"metric": metric_name(metric, extractor["name"]), "value": value, "num_samples": len(features)}
                )

        for row in self.rows:
            identity = row._asdict()
            add(identity, self._first_features(identity.pop("features")))
        # The floor: real pictures outside the reference, as many as the samples, or as there are.
        other = OTHER_PART.get(protocol.reference, "test")
        if reference.about.get("data_sha256") != parts[other]["sha256"]:
            floor = {"method": "real", "variant": other, "nfe": None, "train_seed": None, "seed": None}
            add(floor, drawn(load_features(self.reference / f"{other}.npy"), protocol.num_samples))
        with self.result_file(inputs, extractor=extractor, reference=reference.about) as temporary:
            pd.DataFrame(table, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)

    def _first_features(self, path: Path) -> np.ndarray:
        features, count = load_features(path), self.protocol.num_samples
        if count is not None and len(features) < count:
            raise UserError(
                f"{path}: {len(features)} samples, but the protocol '{self.name}' measures {count}. Draw them again."
            )
        return features[:count]

    def _reference(self, facts: dict[str, Any]) -> Reference:
        if not self.protocol.reference_is_file:
            return load_real(self.reference, self.protocol.reference)

        def extract(images: np.ndarray) -> np.ndarray:
            extractor, _mode = self.extractor()
            return self.features(extractor, images)

        return load_given(
            Path(self.protocol.reference),
            facts["parts"]["train"]["resolution"],
            facts["extractor"],
            extract,
            self.protocol.reference_sha256,
            {about["sha256"] for about in facts["parts"].values()},
        )
