"""The commands that the workflow's rules call: ``python -m suite.cli <command> …``.

Each reads files, calls one package, and writes its result with its provenance. Nothing here decides what depends on
what: that is the Snakefile's.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.device import default_device, gpu_lock
from diffusion.errors import UserError
from diffusion.files import atomic_path, canonical_json, read_json, sha256_file, write_json
from diffusion.images import load_samples, save_samples, to_uint8
from suite.provenance import write_provenance

# -- data ---------------------------------------------------------------------------------------------------------


def prepare_data(arguments: argparse.Namespace) -> None:
    """Writes the two parts of a data set."""
    from diffusion.data import parse_settings, prepare, write_dataset

    settings = parse_settings(json.loads(arguments.settings))
    write_dataset(arguments.output, prepare(settings), settings)


# -- training -----------------------------------------------------------------------------------------------------


def train_teacher(arguments: argparse.Namespace) -> None:
    """Trains the teacher."""
    from diffusion import teacher
    from diffusion.data import load_split
    from diffusion.pipelines import save_denoiser

    settings = teacher.TeacherSettings.model_validate_json(arguments.settings)
    split = load_split(arguments.data, "train")
    inputs = {"data": arguments.data / "manifest.json"}
    with _training_run(arguments, "teacher", settings.seed, inputs) as run:
        denoiser, cost = teacher.train_teacher(settings, split, run)
        with _result_folder(arguments.output) as folder:
            save_denoiser(folder, denoiser)
            students = [{"nfe": None, **cost, "parameters": _parameters(denoiser.network)}]
            _write_training_facts(folder, "teacher", "teacher", students, run.log)
            write_provenance(
                folder / "provenance.json", inputs, settings=settings.model_dump(mode="json"), seed=settings.seed
            )
        run.discard()


def import_teacher(arguments: argparse.Namespace) -> None:
    """Takes a stored teacher into the results. What its own training cost is unknown, so it has no cost file."""
    from diffusion.pipelines import load_denoiser, save_denoiser

    denoiser = load_denoiser(arguments.path)
    with _result_folder(arguments.output) as folder:
        save_denoiser(folder, denoiser)
        write_provenance(folder / "provenance.json", {"weights": _weights(arguments.path)}, stored=str(arguments.path))


def distil(arguments: argparse.Namespace) -> None:
    """Trains the students of one variant with one seed. The data set is read only if the method says it needs it."""
    from diffusion.data import load_split
    from diffusion.pipelines import deciding_files, load_denoiser

    method = _method(arguments.settings)
    if method.needs_data != (arguments.data is not None):
        needs = "needs" if method.needs_data else "must not see"
        raise UserError(f"--data: the method {method.name} {needs} the data set.")
    teacher = load_denoiser(arguments.teacher, default_device())
    inputs = {f"teacher, {file.name}": file for file in deciding_files(arguments.teacher)}
    split = None
    if arguments.data is not None:
        split = load_split(arguments.data, "train")
        inputs["data"] = arguments.data / "manifest.json"
    with _training_run(arguments, arguments.variant, arguments.seed, inputs) as run:
        students = method.distil(teacher, run, split)
        with _result_folder(arguments.output) as folder:
            for student in students:
                method.save(folder / f"nfe-{student.nfe}", student.network, teacher)
            costs = [
                {"nfe": student.nfe, **student.cost, "parameters": _parameters(student.network)} for student in students
            ]
            _write_training_facts(folder, method.name, arguments.variant, costs, run.log)
            write_provenance(
                folder / "provenance.json", inputs, settings=json.loads(arguments.settings), seed=arguments.seed
            )
        run.discard()


_TRAINING_CODE = ("diffusion", "boot", "baselines")


@contextmanager
def _training_run(arguments: argparse.Namespace, name: str, seed: int, inputs: dict[str, Path]) -> Iterator[Any]:
    from diffusion.training import TrainingRun

    # Keyed by all that decides the weights, code included, so that a change starts afresh instead of resuming.
    code = [file for module in _TRAINING_CODE for file in sorted((Path(__file__).parents[1] / module).glob("*.py"))]
    identity = [
        name,
        arguments.settings,
        seed,
        {role: sha256_file(file) for role, file in inputs.items()},
        [sha256_file(file) for file in code],
    ]
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    folder = arguments.state / f"{name}-seed-{seed}-{key}"
    with TrainingRun(folder, key, seed, default_device(), arguments.checkpoint_seconds) as run:
        yield run


@contextmanager
def _result_folder(output: Path) -> Iterator[Path]:
    with atomic_path(output) as temporary:
        temporary.mkdir()
        yield temporary


def _write_training_facts(
    folder: Path, method: str, variant: str, students: list[dict[str, Any]], log: list[dict[str, Any]]
) -> None:
    import pandas as pd

    from diffusion.training import LOG_COLUMNS

    write_json(folder / "cost.json", {"method": method, "variant": variant, "students": students})
    pd.DataFrame(log, columns=list(LOG_COLUMNS)).to_csv(folder / "training.csv", index=False)


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _network_folder(method: Any, source: Path, nfe: int) -> Path:
    """The `diffusers` folder that a method samples from: one of its students, or the teacher."""
    return source / f"nfe-{nfe}" if method.trains else source


def _weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


# -- samples, features, measures ----------------------------------------------------------------------------------


def sample(arguments: argparse.Namespace) -> None:
    """Draws the samples of a variant: every number of evaluations, every sampling seed."""
    from diffusion.noise import initial_noise
    from diffusion.pipelines import deciding_files, stored_picture_shape

    method, device = _method(arguments.settings), default_device()
    evaluated = 0

    def count(_network: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(inputs[0])

    sources = {nfe: _network_folder(method, arguments.source, nfe) for nfe in method.evaluations()}
    with _result_folder(arguments.output) as folder:
        for nfe, source in sources.items():
            sampler, network = method.sampler(source, nfe, device)
            network.register_forward_pre_hook(count)
            shape = stored_picture_shape(source)
            evaluated = 0
            for seed in arguments.seeds:
                images = []
                for start in range(0, arguments.num_samples, arguments.batch_size):
                    indices = range(start, min(start + arguments.batch_size, arguments.num_samples))
                    noise = initial_noise(seed, indices, shape).to(device)
                    with torch.inference_mode():
                        images.append(to_uint8(sampler(noise, None)))
                save_samples(folder / f"nfe-{nfe}" / f"seed-{seed}.npz", np.concatenate(images))
            drawn = arguments.num_samples * len(arguments.seeds)
            if evaluated != nfe * drawn:
                raise UserError(
                    f"{method.name}: {evaluated} network evaluations for {drawn} samples, expected {nfe} a sample. "
                    f"The method's evaluations() or sampler() is wrong."
                )
        write_provenance(
            folder / "provenance.json",
            {f"{file.name}, nfe {nfe}": file for nfe, source in sources.items() for file in deciding_files(source)},
            settings=json.loads(arguments.settings),
            seeds=arguments.seeds,
            num_samples=arguments.num_samples,
            network_evaluations_per_sample=list(sources),
            device=str(device),
        )


def extract_features(arguments: argparse.Namespace) -> None:
    """Features of sets of samples, and of the first sampling seed's for clean-fid too (``cleanfid/…``).

    The sets are called ``nfe-<n>/seed-<s>`` for a folder that ``sample`` wrote, and ``seed-0`` for one file.
    """
    given = arguments.samples
    files = {"seed-0": given}
    if given.is_dir():
        found = sorted(given.glob("nfe-*/seed-*.npz"), key=lambda path: (path.parent.name, _number(path.stem)))
        files = {f"{path.parent.name}/{path.stem}": path for path in found}
    sets = {name: load_samples(path) for name, path in files.items()}
    first: dict[str, str] = {}
    for name in sets:
        first.setdefault(name.rpartition("/")[0], name)
    _extract(arguments, sets, {f"cleanfid/{name}": sets[name] for name in first.values()}, files)


def extract_real_features(arguments: argparse.Namespace) -> None:
    """Features of the real pictures, both parts, for torch-fidelity and clean-fid."""
    from diffusion.data import load_split

    sets = {name: np.asarray(load_split(arguments.data, name).images) for name in ("train", "test")}
    _extract(
        arguments,
        sets,
        {f"cleanfid-{name}": images for name, images in sets.items()},
        {"data": arguments.data / "manifest.json"},
    )


def _extract(
    arguments: argparse.Namespace,
    sets: dict[str, np.ndarray],
    cleanfid_sets: dict[str, np.ndarray],
    inputs: dict[str, Path],
) -> None:
    from evaluation.features import load_extractor

    extractor = load_extractor(
        arguments.extractor, default_device(), arguments.inception_weights, arguments.cleanfid_inception_weights
    )
    features = {name: extractor.extract(images, arguments.batch_size) for name, images in sets.items()}
    cleanfid = "measured"
    try:
        for name, images in cleanfid_sets.items():
            features[name] = extractor.extract_cleanfid(images)
    except UserError as error:
        # clean-fid has its own copy of the Inception; the other measures do not need it.
        cleanfid = str(error)
        print(f"without clean-fid: {error}", file=sys.stderr)
    with atomic_path(arguments.output) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **features)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    write_provenance(arguments.output.with_suffix(".json"), inputs, extractor=extractor.describe(), cleanfid=cleanfid)


def _number(name: str) -> int:
    """5 of ``seed-5`` or ``nfe-5``."""
    return int(name.rpartition("-")[2])


def _load_features(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive}


def measure(arguments: argparse.Namespace) -> None:
    """Quality of a variant at every number of evaluations, or of the user's own samples.

    Against the real pictures, and against the teacher's samples.
    """
    from evaluation import quality

    own, real = _load_features(arguments.features), _load_features(arguments.real)
    teacher = _under(_load_features(arguments.teacher_features), arguments.teacher_samples.name)
    identity = {"experiment": arguments.experiment, "method": arguments.method, "variant": arguments.variant}
    reference = quality.Reference("train", real["train"])
    rows = []
    for group in dict.fromkeys(name.rpartition("/")[0] for name in own if not name.startswith("cleanfid/")):
        features = _under(own, group)
        files = {seed: arguments.samples / group / f"seed-{seed}.npz" for seed in features}
        if not arguments.samples.is_dir():
            files = {0: arguments.samples}
        shared = {seed: arguments.teacher_samples / f"seed-{seed}.npz" for seed in features}
        rows += quality.measure(
            identity | {"nfe": _number(group) if group else None, "train_seed": arguments.train_seed},
            features,
            {seed: load_samples(path) for seed, path in files.items()},
            reference,
            extractor=_extractor(arguments.real)["name"],
            small_count=min(len(real["test"]), *(len(vectors) for vectors in features.values())),
            teacher_features=teacher,
            teacher_samples={s: load_samples(p) for s, p in shared.items()} if arguments.follows_teacher else None,
            teacher_name=f"teacher-{_number(arguments.teacher_samples.name)}",
            cleanfid_features=next(iter(_under(own, f"cleanfid/{group}".rstrip("/")).values()), None),
            cleanfid_reference=real.get("cleanfid-train"),
        )
    inputs = {"features": arguments.features, "real": arguments.real, "teacher": arguments.teacher_features}
    _write_rows(arguments, rows, inputs)


def measure_floor(arguments: argparse.Namespace) -> None:
    """The real test pictures against the real training pictures: what perfect looks like at that count."""
    from evaluation import quality

    real = _load_features(arguments.real)
    # At the methods' count where the test part is larger; drawn, because the pictures may be sorted by class.
    count = min(len(real["test"]), arguments.num_samples)
    drawn = np.random.default_rng(0).permutation(len(real["test"]))[:count]
    rows = quality.measure_floor(
        arguments.experiment,
        real["test"][np.sort(drawn)],
        quality.Reference("train", real["train"]),
        extractor=_extractor(arguments.real)["name"],
        cleanfid_features=real.get("cleanfid-test"),
        cleanfid_reference=real.get("cleanfid-train"),
    )
    _write_rows(arguments, rows, {"real": arguments.real})


def _write_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]], inputs: dict[str, Path]) -> None:
    import pandas as pd

    from evaluation import quality

    description = _extractor(arguments.real)
    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(rows, columns=list(quality.COLUMNS)).to_csv(temporary, index=False)
    write_provenance(
        arguments.output.with_suffix(".json"),
        inputs,
        extractor=description,
        protocols=quality.protocols(description),
    )


def _under(features: dict[str, np.ndarray], group: str) -> dict[int, np.ndarray]:
    """Sampling seed to features, of the sets that are called ``<group>/seed-<n>``."""
    prefix = f"{group}/seed-" if group else "seed-"
    return {_number(name): value for name, value in features.items() if name.startswith(prefix)}


def _extractor(features: Path) -> dict[str, Any]:
    """What made a features file, from the JSON beside it."""
    description: dict[str, Any] = read_json(features.with_suffix(".json"))["extractor"]
    return description


# -- speed, pictures, report --------------------------------------------------------------------------------------


def draw_pictures(arguments: argparse.Namespace) -> None:
    """The BOOT student read at every time beside the teacher's trajectory, and between two noises."""
    from boot.distillation import load_student
    from boot.trajectory import interpolate_noise, read_at_times, true_signal
    from diffusion.noise import initial_noise
    from diffusion.pipelines import load_denoiser, stored_picture_shape

    rows, columns, device = 6, 12, default_device()
    folder = arguments.student / "nfe-1"
    student, teacher = load_student(folder, device), load_denoiser(arguments.teacher, device)
    channels, height, width = stored_picture_shape(folder)
    noise = initial_noise(arguments.seed, range(2 * rows), (channels, height, width)).to(device)
    schedule = teacher.schedule
    times = torch.linspace(schedule.t_max, schedule.t_min, columns, dtype=torch.float64)
    with torch.inference_mode():
        between = interpolate_noise(noise[:rows], noise[rows:], columns)
        pictures = {
            "all_times": read_at_times(student, noise[:rows], times),
            "trajectory": true_signal(teacher, noise[:rows], times),
            "interpolation": student.sample(between.flatten(0, 1)).unflatten(0, (rows, columns)),
        }
    arrays = {
        name: to_uint8(value.flatten(0, 1)).reshape(rows, columns, height, width, channels)
        for name, value in pictures.items()
    }
    with atomic_path(arguments.output) as temporary, temporary.open("wb") as handle:
        np.savez(handle, times=times.numpy(), **arrays)  # type: ignore[arg-type]  # see _extract
    write_provenance(
        arguments.output.with_suffix(".json"),
        {"student": _weights(folder), "teacher": _weights(arguments.teacher)},
        seed=arguments.seed,
    )


def time_sampling(arguments: argparse.Namespace) -> None:
    """Speed of every unit, interleaved on this machine; the job must have it to itself."""
    import pandas as pd

    from diffusion.noise import initial_noise
    from diffusion.pipelines import stored_picture_shape
    from evaluation import speed
    from suite.configuration import SpeedSettings

    settings, device = SpeedSettings.model_validate_json(arguments.settings), default_device()
    samplers, identities, weights = {}, {}, {}
    for variant, nfe, source, raw in json.loads(arguments.units):
        key, method = f"{variant}:{nfe}", _method(json.dumps(raw))
        folder = _network_folder(method, Path(source), nfe)
        sampler, _network = method.sampler(folder, nfe, device)
        samplers[key] = lambda noise, sampler=sampler: sampler(noise, None)
        identities[key] = {"experiment": arguments.experiment, "method": method.name, "variant": variant, "nfe": nfe}
        weights[key] = _weights(folder)
    shape = stored_picture_shape(folder)
    drawn = 0

    def make_noise(batch_size: int) -> torch.Tensor:
        nonlocal drawn
        drawn += batch_size
        return initial_noise(0, range(drawn - batch_size, drawn), shape).to(device)

    with gpu_lock(device) if device.type == "cuda" else nullcontext():
        result = speed.measure_speed(
            samplers, make_noise, settings.batch_sizes, device, baseline=arguments.teacher, seconds=settings.seconds
        )
    rows = [{**identities[row["key"]], **{name: row[name] for name in speed.COLUMNS}} for row in result.rows]
    with atomic_path(arguments.output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    write_provenance(
        arguments.output.with_suffix(".json"), weights, settings=settings.model_dump(mode="json"), timings=result.raw
    )


def write_report(arguments: argparse.Namespace) -> None:
    """Renders the report from what the other rules have left in the results folder."""
    from diffusion.teacher import TeacherSettings
    from evaluation.report import ReportInputs, render
    from evaluation.tables import CostFile
    from suite.configuration import parse_experiment
    from suite.plan import Plan

    experiment = parse_experiment(json.loads(arguments.config))
    plan = Plan(experiment)
    root, methods = plan.root, experiment.methods
    external = experiment.evaluation.external
    labels = experiment.labels | {name: name for name in external}
    trained = [(name, seed) for name, method in methods.items() if method.trains for seed in experiment.train_seeds]
    first_seed = experiment.train_seeds[0]
    several = len(experiment.train_seeds) > 1
    teacher_is_trained = isinstance(experiment.teacher, TeacherSettings)
    reference = experiment.evaluation.teacher
    floor = read_json(root / "measures" / "real.json")
    speed_facts = read_json(root / "speed" / "speed.json")
    render(
        ReportInputs(
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
                f"{labels[unit.variant]}, NFE {unit.nfe}": plan.samples(unit)[min(experiment.evaluation.seeds)]
                for unit in plan.timed_units()
            }
            | {name: Path(path) for name, path in external.items()},
            pictures={
                name: root / "pictures" / name / f"train-{first_seed}.npz"
                for name, method in methods.items()
                if method.name == "boot"
            },
            training={
                **({"teacher": root / "teacher" / "training.csv"} if teacher_is_trained else {}),
                **{
                    (f"{labels[name]}, seed {seed}" if several else labels[name]): plan.student_folder(name, seed)
                    / "training.csv"
                    for name, seed in trained
                },
            },
            benchmarks=_benchmarks(plan),
            provenance={
                "data": read_json(root / "data" / "manifest.json"),
                "teacher": experiment.teacher.model_dump(mode="json"),
                "hardware": speed_facts["hardware"],
                "versions": floor["versions"],
                "commit": _commits(plan),
                "seeds": {
                    "teacher": experiment.teacher.seed,
                    "training": list(experiment.train_seeds),
                    "sampling": list(experiment.evaluation.seeds),
                },
                "features": floor["extractor"],
                "protocols": floor["protocols"],
                "methods": {name: method.settings.model_dump(mode="json") for name, method in methods.items()},
            },
            labels=labels,
            teacher=(reference.variant, reference.nfe),
            untrained=frozenset(name for name, method in methods.items() if not method.trains),
        ),
        root / "report",
    )
    write_provenance(
        root / "report" / "provenance.json", {"metrics": root / "report" / "metrics.csv"}, configuration=experiment.raw
    )


_RULES_PER_TRAINING = ("distil", "distil_with_data", "sample", "features", "measure", "pictures")


def _benchmarks(plan: Any) -> list[Path]:
    """The benchmark files of this experiment's jobs; the folder may hold those of variants no longer selected."""
    trained = [f"{name}/train-{seed}.tsv" for name in plan.experiment.methods for seed in plan.train_seeds(name)]
    single = ("data/data", "teacher/teacher", "features_real/real", "measure_floor/real", "speed/speed")
    files = [
        *(f"{name}.tsv" for name in single),
        *(f"{rule}/{file}" for rule in _RULES_PER_TRAINING for file in trained),
        *(f"{rule}/{name}.tsv" for rule in ("features_external", "measure_external") for name in plan.external),
    ]
    found = [plan.root / "benchmarks" / file for file in files]
    return [file for file in found if file.exists()]


def _commits(plan: Any) -> str:
    """The commit of the code that made the results, or several, if parts were made at different times."""
    files = [
        plan.root / "teacher" / "provenance.json",
        plan.root / "speed" / "speed.json",
        plan.root / "measures" / "real.json",
        *(path.with_suffix(".json") for path in plan.per_training("measures/{variant}/train-{train_seed}.csv")),
        *plan.per_training("samples/{variant}/train-{train_seed}/provenance.json"),
        *(plan.student_folder(n, s) / "provenance.json" for n in plan.trained_variants() for s in plan.train_seeds(n)),
    ]
    return ", ".join(dict.fromkeys(str(read_json(file)["commit"]) for file in files))


# -- helpers ------------------------------------------------------------------------------------------------------


def _method(settings: str) -> Any:
    from suite.registry import method_class

    raw = json.loads(settings)
    method_type = method_class(raw["method"])
    return method_type(method_type.Settings.model_validate(raw))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="suite.cli", description="The commands that the workflow's rules call.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        sub.set_defaults(function=function)
        return sub

    def paths(sub: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            sub.add_argument(f"--{name}", type=Path, required=True)

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--settings", required=True, help="JSON")
        paths(sub, "state", "output")
        sub.add_argument("--checkpoint-seconds", type=float, default=30.0, help="between two stored states")

    def extraction(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--extractor", required=True)
        sub.add_argument("--batch-size", type=int, default=256)
        sub.add_argument("--inception-weights", type=Path)
        sub.add_argument("--cleanfid-inception-weights", type=Path)
        paths(sub, "output")

    sub = command("data", prepare_data)
    sub.add_argument("--settings", required=True, help="JSON")
    paths(sub, "output")

    sub = command("teacher", train_teacher)
    training(sub)
    paths(sub, "data")

    sub = command("import-teacher", import_teacher)
    paths(sub, "path", "output")

    sub = command("distil", distil)
    training(sub)
    paths(sub, "teacher")
    sub.add_argument("--variant", required=True)
    sub.add_argument("--seed", type=int, required=True)
    sub.add_argument("--data", type=Path, help="only for methods that need it")

    sub = command("sample", sample)
    paths(sub, "source", "output")
    sub.add_argument("--settings", required=True, help="JSON")
    for name in ("num-samples", "batch-size"):
        sub.add_argument(f"--{name}", type=int, required=True)
    sub.add_argument("--seeds", type=int, nargs="+", required=True)

    sub = command("features", extract_features)
    extraction(sub)
    paths(sub, "samples")

    sub = command("real-features", extract_real_features)
    extraction(sub)
    paths(sub, "data")

    sub = command("measure", measure)
    for name in ("experiment", "method", "variant"):
        sub.add_argument(f"--{name}", required=True)
    sub.add_argument("--train-seed", type=int)
    paths(sub, "features", "samples", "real", "teacher-features", "teacher-samples", "output")
    sub.add_argument("--follows-teacher", action="store_true", help="the samples share the teacher's noise")

    sub = command("measure-floor", measure_floor)
    sub.add_argument("--num-samples", type=int, required=True)
    sub.add_argument("--experiment", required=True)
    paths(sub, "real", "output")

    sub = command("pictures", draw_pictures)
    paths(sub, "student", "teacher", "output")
    sub.add_argument("--seed", type=int, required=True)

    sub = command("speed", time_sampling)
    for name in ("experiment", "units", "settings", "teacher"):
        sub.add_argument(f"--{name}", required=True)
    paths(sub, "output")

    sub = command("report", write_report)
    sub.add_argument("--config", required=True, help="JSON")
    return parser


def main() -> None:
    """Runs one command; an error that the user can mend is printed without a traceback."""
    arguments = build_parser().parse_args()
    try:
        arguments.function(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
