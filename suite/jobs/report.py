"""The report, from what the other stages have left in the results folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.runtime.files import read_json
from evaluation.report.ablation import Ablation
from evaluation.report.comparison import Comparison
from evaluation.report.page import ReportInputs, render
from evaluation.report.protocol_table import words
from evaluation.results.stored import CostFile
from suite.configuration.experiment import Experiment, parse_experiment
from suite.job import Job
from suite.plan import Plan
from suite.provenance import RECORD, checked, read_record

# More panels than that are drawn for the first training seed only.
_MOST_CURVES = 12
_RULES_PER_TRAINING = ("distil", "sample", "features", "measure", "pictures", "trajectory", "learning_curve")


class Write(Job):
    """Renders the report from what the other rules have left in the results folder."""

    config: dict[str, Any]

    def run(self) -> None:
        plan = Plan(parse_experiment(self.config, look_at_files=False))
        given = _inputs(plan)
        inputs = checked({str(file): file for file in [*given.files(), plan.root / "data" / "manifest.json"]})
        render(given, self.output)
        self.write_record(self.output, inputs, commits_of_the_results=_commits(plan))


def _inputs(plan: Plan) -> ReportInputs:
    experiment = plan.experiment
    root, methods = plan.root, experiment.methods
    external = experiment.evaluation.external
    labels = experiment.labels
    trained = [(name, seed) for name, method in methods.items() if method.trains for seed in experiment.train_seeds]
    first_seed = experiment.train_seeds[0]
    several = len(experiment.train_seeds) > 1
    teacher_is_trained = experiment.trains_teacher
    reference = experiment.evaluation.teacher
    floor = read_record(root / "measures" / "real.json")
    protocols = {name: plan.protocol(name) for name in experiment.evaluation.all_protocols}
    speed_facts = read_record(root / "speed" / "speed.json")
    manifest = read_json(root / "data" / "manifest.json")
    train_count = manifest["splits"]["train"]["count"]
    return ReportInputs(
        experiment=experiment.name,
        dataset=experiment.published_as or experiment.data.kind,
        metrics=[
            *plan.per_training("measures/{variant}/train-{train_seed}.csv"),
            *(root / "measures" / "external" / f"{name}.csv" for name in external),
            root / "measures" / "real.csv",
        ],
        speed=root / "speed" / "speed.csv",
        costs=[
            *([CostFile(root / "teacher" / "cost.json", "teacher", "teacher")] if teacher_is_trained else []),
            *(
                CostFile(plan.student_folder(name, seed) / "cost.json", methods[name].name, name)
                for name, seed in trained
            ),
        ],
        samples={
            f"{labels[unit.variant]}, NFE {unit.nfe}": plan.samples(unit)[plan.first_seed]
            for unit in plan.timed_units()
        }
        | {row.label: row.samples for row in plan.shown() if row.own is None},
        pictures={name: root / "pictures" / name / f"train-{first_seed}.npz" for name in plan.pictured_variants()},
        neighbours=root / "neighbours" / "neighbours.npz",
        protocols=protocols,
        trajectory={name: plan.trajectory(name, first_seed) for name in plan.boot_variants()},
        training={
            **({"teacher": root / "teacher" / "training.csv"} if teacher_is_trained else {}),
            **{
                (f"{labels[name]}, seed {seed}" if several else labels[name]): plan.student_folder(name, seed)
                / "training.csv"
                for name, seed in trained
                if len(trained) <= _MOST_CURVES or seed == first_seed
            },
        },
        benchmarks=_benchmarks(plan),
        provenance={
            **({"not selected": list(experiment.unselected)} if experiment.unselected else {}),
            "data": _data_facts(manifest, experiment.told == "text"),
            "teacher": experiment.teacher.model_dump(mode="json"),
            **({} if experiment.prompts.only_captions else {"prompts": _prompt_facts(plan)}),
            "hardware": speed_facts["hardware"],
            "versions": floor["versions"],
            "commit": _commits(plan),
            "seeds": {
                "teacher": experiment.teacher.seed,
                "training": list(experiment.train_seeds),
                "sampling": list(experiment.evaluation.seeds),
            },
            "features": floor["extractor"],
            **({"clips": floor["clips"]} if "clips" in floor else {}),
            "protocols": {name: words(read_record(path.with_suffix(".json"))) for name, path in protocols.items()},
            "definitions": floor["definitions"],
            "methods": {name: method.settings.model_dump(mode="json") for name, method in methods.items()},
        },
        labels=labels,
        teacher=(reference.variant, reference.nfe),
        untrained=frozenset(name for name, method in methods.items() if not method.trains),
        num_timesteps=experiment.num_timesteps,
        uneven_steps=experiment.uneven_steps,
        ablation=_ablation(experiment),
        comparison=_comparison(experiment, train_count),
        dimensions=floor["extractor"].get("dimensions"),
        reference_count=train_count,
        captions=_captions(plan, manifest),
        learning_curves=[plan.learning_curve(n, s) for n in plan.curve_variants() for s in plan.train_seeds(n)],
    )


def _captions(plan: Plan, manifest: dict[str, Any]) -> Sequence[str]:
    """The texts at the index that is stored with samples of each; none of other teachers."""
    if plan.experiment.told != "text":
        return ()
    if not plan.experiment.prompts.evaluates_captions:
        manifest = {"class_names": read_json(plan.root / "prompts" / "prompts.json")["texts"]}
    texts: list[str] = manifest["class_names"]
    return texts


def _data_facts(manifest: dict[str, Any], told_texts: bool) -> dict[str, Any]:
    """The manifest without its list of files, which is long; classes that are captions are called so."""
    words = {"class_names": "captions", "per_class": "per_caption"} if told_texts else {}

    def named(facts: dict[str, Any]) -> dict[str, Any]:
        return {words.get(key, key): fact for key, fact in facts.items() if key != "shards"}

    return named(manifest) | {"splits": {name: named(part) for name, part in manifest["splits"].items()}}


def _prompt_facts(plan: Plan) -> dict[str, Any]:
    """The block, how many prompts there are, and how many were left out."""
    settings = plan.experiment.prompts.model_dump(mode="json", exclude_defaults=True)
    return settings | {"counts": read_record(plan.root / "texts" / RECORD)["counts"]}


def _benchmarks(plan: Plan) -> list[Path]:
    """The benchmark files of this experiment's jobs; the folder may hold those of variants no longer selected."""
    settings = plan.experiment.evaluation
    trained = [f"{name}/train-{seed}.tsv" for name in plan.experiment.methods for seed in plan.train_seeds(name)]
    single = (
        *("data/data", "teacher/teacher", "measure_floor/real"),
        *("speed/speed", "neighbours/neighbours", "classifier/classifier"),
    )
    files = [
        *(f"{name}.tsv" for name in single),
        *(f"{rule}/{file}" for rule in _RULES_PER_TRAINING for file in trained),
        *(f"pairs/{name}.tsv" for name in plan.pairs()),
        *(f"reference/{name}.tsv" for name in plan.extractions()),
        *(f"further_features/{way}/{quantiser}.tsv" for way, quantiser in plan.further_extractions()),
        *(f"protocol/{name}.tsv" for name in settings.all_protocols),
        *(
            f"{rule}/{name}.tsv"
            for rule in ("features_external", "measure_external")
            for name in plan.experiment.evaluation.external
        ),
    ]
    found = [plan.root / "benchmarks" / file for file in files]
    return [file for file in found if file.exists()]


def _commits(plan: Plan) -> str:
    """The commit of the code that made the results, or several, if parts were made at different times."""
    files = [
        plan.root / "teacher" / "provenance.json",
        plan.root / "speed" / "speed.json",
        plan.root / "measures" / "real.json",
        *(path.with_suffix(".json") for path in plan.per_training("measures/{variant}/train-{train_seed}.csv")),
        *plan.per_training("samples/{variant}/train-{train_seed}/provenance.json"),
        *(plan.student_folder(n, s) / "provenance.json" for n in plan.trained_variants() for s in plan.train_seeds(n)),
    ]
    return ", ".join(dict.fromkeys(str(read_record(file)["commit"]) for file in files))


def _ablation(experiment: Experiment) -> Ablation | None:
    if experiment.ablation is None or experiment.ablation_base is None:
        return None
    changes = {name: words for variants in experiment.ablation.values() for name, words in variants.items()}
    axes = {axis: tuple(variants) for axis, variants in experiment.ablation.items()}
    return Ablation(experiment.ablation_base, axes, changes)


def _comparison(experiment: Experiment, train_count: int) -> Comparison | None:
    if experiment.comparison is None:
        return None
    names = experiment.plain_labels
    budgets = {
        budget: {variant: names[base] for variant, base in variants.items()}
        for budget, variants in experiment.comparison.items()
    }
    return Comparison(budgets, train_count)
