"""Which files an experiment has: the one place that knows the layout of the results folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion.data.samples import Quantiser
from diffusion.distillation.distiller import Distiller
from diffusion.distillation.pairs import PairsSettings
from evaluation.measure.protocols import MAIN, Protocol
from suite.configuration.experiment import Experiment


@dataclass(frozen=True)
class Unit:
    """One sampled row of the report: a variant of a method, trained with one seed, at one number of evaluations."""

    variant: str
    method: str
    train_seed: int
    nfe: int


@dataclass(frozen=True)
class Shown:
    """Samples of one seed that are shown and measured under every protocol: a unit's, or some that the user brings.

    Attributes:
        identity: method, variant, evaluations and training seed, each of the latter None where it is not known.
        label: what the report calls them.
        seed: the sampling seed.
        samples: their file.
        own: the unit; None of samples that the user brings.
    """

    identity: tuple[str, str, int | None, int | None]
    label: str
    seed: int
    samples: Path
    own: Unit | None = None


class Plan:
    """The files of an experiment, as paths below its results folder."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.root = experiment.results

    def units(self) -> list[Unit]:
        """All rows that the suite samples itself."""
        return [
            Unit(name, method.name, seed, nfe)
            for name, method in self.experiment.methods.items()
            for seed in self.train_seeds(name)
            for nfe in self.experiment.evaluation.sampled(name, method)
        ]

    def timed_units(self) -> list[Unit]:
        """The rows whose speed is measured: one training seed of each, since the others run the same network."""
        first = {unit.variant: unit.train_seed for unit in reversed(self.units())}
        return [unit for unit in self.units() if unit.train_seed == first[unit.variant]]

    def teacher_unit(self) -> Unit:
        """The row that stands for the teacher."""
        reference = self.experiment.evaluation.teacher
        return next(u for u in self.units() if (u.variant, u.nfe) == (reference.variant, reference.nfe))

    def trained_variants(self) -> list[str]:
        """Names of all variants that are trained."""
        return list(self.distillers)

    @property
    def distillers(self) -> dict[str, Distiller]:
        """The methods that train, by variant."""
        return {name: method for name, method in self.experiment.methods.items() if isinstance(method, Distiller)}

    def trained(self, reads: Literal["nothing", "data", "pairs"]) -> list[str]:
        """Names of the variants that are trained on the teacher and nothing else, on the data set, or on a set of
        pairs."""

        def read_by(method: Distiller) -> str:
            if method.pairs() is not None:
                return "pairs"
            return "data" if method.needs_data else "nothing"

        return [name for name, method in self.distillers.items() if read_by(method) == reads]

    def processes(self, variant: str | None, most: int) -> int:
        """How many processes train a variant, or the teacher where it is None: as many as can share its slices evenly.

        Args:
            most: how many there are.
        """
        trained: Any = self.experiment.teacher if variant is None else self.experiment.methods[variant].settings
        return math.gcd(trained.training.gradient_accumulation_steps, most)

    def pairs(self) -> dict[str, PairsSettings]:
        """The offline sets of the experiment by name."""
        found = [self.distillers[name].pairs() for name in self.trained("pairs")]
        return {settings.name: settings for settings in found if settings is not None}

    def pairs_of(self, variant: str) -> Path:
        """The offline set that a variant trains on."""
        settings = self.distillers[variant].pairs()
        assert settings is not None
        return self.root / "pairs" / settings.name

    def curve_variants(self) -> list[str]:
        """Names of the variants that are measured at several points of their training."""
        return [name for name in self.trained_variants() if self.experiment.methods[name].settings.training.snapshots]

    def learning_curve(self, variant: str, train_seed: int) -> Path:
        """A student's quality at its snapshots and at the end."""
        return self.root / "learning_curves" / variant / f"train-{train_seed}.csv"

    def boot_variants(self) -> list[str]:
        """Names of the BOOT variants."""
        return [name for name, method in self.experiment.methods.items() if method.name == "boot"]

    def signal_variants(self) -> list[str]:
        """Names of the BOOT variants whose output is the signal y_t, so that it can be read at every time."""
        return [
            name
            for name, method in self.experiment.methods.items()
            if method.name == "boot" and method.settings.target == "signal"
        ]

    def pictured_variants(self) -> list[str]:
        """Those of which the report shows pictures at every time; an ablation's many changes would bury them."""
        return [name for name in self.signal_variants() if name not in self.experiment.derived]

    def neighboured_units(self) -> list[Unit]:
        """Those whose nearest training pictures are shown: the teacher, and every method at its fewest evaluations."""
        changed = self.experiment.derived
        first: dict[str, Unit] = {}
        for unit in self.timed_units():
            trained = self.experiment.methods[unit.variant].trains
            if trained and unit.variant not in changed and unit.nfe <= first.get(unit.variant, unit).nfe:
                first[unit.variant] = unit
        return [self.teacher_unit(), *first.values()]

    @property
    def first_seed(self) -> int:
        """The sampling seed whose samples are shown, and measured under every protocol."""
        return min(self.experiment.evaluation.seeds)

    def quantised_evaluations(self, variant: str) -> list[int]:
        """The evaluations at which a variant's samples are drawn again for protocols with another quantiser."""
        return [unit.nfe for unit in self.neighboured_units() if unit.variant == variant]

    def samples_under(self, unit: Unit, quantiser: Quantiser) -> Path:
        """The samples of the first sampling seed under a quantiser."""
        if quantiser != "round":
            unit_folder = Path(unit.variant) / f"train-{unit.train_seed}" / f"nfe-{unit.nfe}"
            return self.root / "quantised" / quantiser / unit_folder / f"seed-{self.first_seed}.npz"
        return self.samples(unit)[self.first_seed]

    def extractions(self) -> dict[str, Protocol]:
        """Every way from pictures to features that some protocol takes, by its name."""
        return {protocol.extraction: protocol for protocol in self.experiment.evaluation.all_protocols.values()}

    def real(self, protocol: str = MAIN) -> Path:
        """The real pictures' features under a protocol."""
        return self.root / "references" / self.experiment.evaluation.all_protocols[protocol].extraction

    def protocol(self, name: str) -> Path:
        """The figures that one protocol gives."""
        return self.root / "protocols" / f"{name}.csv"

    def features(self, variant: str, train_seed: int) -> Path:
        """The features of a variant's samples under ``main``, ``nfe-<n>/seed-<s>.npy`` a set."""
        return self.root / "features" / variant / f"train-{train_seed}"

    def sets(self, variant: str, train_seed: int) -> dict[str, Path]:
        """All samples of a variant, named as their features are."""
        return {
            f"nfe-{unit.nfe}/seed-{seed}": path
            for unit in self.units()
            if (unit.variant, unit.train_seed) == (variant, train_seed)
            for seed, path in self.samples(unit).items()
        }

    def shown(self, protocol: str | None = None) -> list[Shown]:
        """What is shown beside its nearest training images; or what is measured under a protocol.

        Samples that the user brings are under no protocol with another quantiser, nor one that takes more of them.
        """
        settings = self.experiment.evaluation.all_protocols[protocol] if protocol else Protocol()
        labels = self.experiment.labels
        rows = [
            Shown(
                (unit.method, unit.variant, unit.nfe, unit.train_seed),
                f"{labels[unit.variant]}, NFE {unit.nfe}",
                self.first_seed,
                self.samples_under(unit, settings.quantiser),
                unit,
            )
            for unit in self.neighboured_units()
        ]
        for name, brought in self.experiment.evaluation.external.items():
            if settings.quantiser == "round" and brought.count >= (settings.num_samples or 0):
                label = f"{labels[name]}, NFE {brought.nfe}" if brought.nfe else labels[name]
                seed, file = next(iter(brought.files.items()))
                rows.append(Shown(("external", name, brought.nfe, None), label, seed, file))
        return rows

    def further_extractions(self) -> dict[tuple[str, Quantiser], dict[str, Path]]:
        """What is extracted for further protocols and not for ``main``: extraction and quantiser to named samples."""
        wanted: dict[tuple[str, Quantiser], dict[str, Path]] = {}
        for name, protocol in self.experiment.evaluation.all_protocols.items():
            key = (protocol.extraction, protocol.quantiser)
            if not self._is_of_main(*key):
                wanted.setdefault(key, {}).update({self._name_of_set(row): row.samples for row in self.shown(name)})
        return wanted

    def features_folder(self, row: Shown, protocol: str = MAIN) -> Path:
        """The result that holds the features of samples under a protocol; shared where they are equal."""
        settings = self.experiment.evaluation.all_protocols[protocol]
        if not self._is_of_main(settings.extraction, settings.quantiser):
            return self.root / "further_features" / settings.extraction / settings.quantiser
        if row.own is None:
            return self.root / "features" / "external" / row.identity[1]
        return self.features(row.own.variant, row.own.train_seed)

    def features_under(self, row: Shown, protocol: str = MAIN) -> Path:
        """The features of samples under a protocol."""
        folder = self.features_folder(row, protocol)
        if folder.relative_to(self.root).parts[0] == "further_features":
            return folder / f"{self._name_of_set(row)}.npy"
        within = Path(f"nfe-{row.own.nfe}") if row.own else Path()
        return folder / within / f"seed-{row.seed}.npy"

    def _is_of_main(self, extraction: str, quantiser: Quantiser) -> bool:
        main = self.experiment.evaluation.all_protocols[MAIN]
        return (extraction, quantiser) == (main.extraction, main.quantiser)

    def _name_of_set(self, row: Shown) -> str:
        if row.own is None:
            return f"external/{row.identity[1]}/seed-{row.seed}"
        return f"{row.own.variant}/train-{row.own.train_seed}/nfe-{row.own.nfe}/seed-{row.seed}"

    def trajectory(self, variant: str, train_seed: int) -> Path:
        """The errors of a student along the teacher's trajectory."""
        return self.root / "trajectory" / variant / f"train-{train_seed}.csv"

    def student_folder(self, variant: str, train_seed: int) -> Path:
        """What :meth:`diffusion.distillation.distiller.Distiller.distil` made, one ``nfe-<n>`` folder a student."""
        return self.root / "students" / variant / f"train-{train_seed}"

    def source(self, variant: str, train_seed: int) -> Path:
        """What a variant samples from: its students' folder, or the teacher where nothing is trained."""
        trained = self.experiment.methods[variant].trains
        return self.student_folder(variant, train_seed) if trained else self.root / "teacher"

    def train_seeds(self, variant: str) -> tuple[int, ...]:
        """The training seeds of a variant; samplers of the teacher carry the teacher's own seed."""
        trained = self.experiment.methods[variant].trains
        return self.experiment.train_seeds if trained else (self.experiment.teacher.seed,)

    def per_training(self, pattern: Path | str) -> list[Path]:
        """``pattern``, with {variant} and {train_seed}, for every variant and training seed, below the root."""
        return [
            self.root / str(pattern).format(variant=variant, train_seed=seed)
            for variant in self.experiment.methods
            for seed in self.train_seeds(variant)
        ]

    def samples(self, unit: Unit) -> dict[int, Path]:
        """Sampling seed to samples file."""
        folder = self.root / "samples" / unit.variant / f"train-{unit.train_seed}" / f"nfe-{unit.nfe}"
        return {seed: folder / f"seed-{seed}.npz" for seed in self.experiment.evaluation.seeds}
