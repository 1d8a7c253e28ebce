"""The typed configuration: one YAML file is one experiment, checked as a whole before any job starts."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import Field, field_validator

import evaluation
from diffusion.data.kinds import parse_settings
from diffusion.data.kinds import problems as data_problems
from diffusion.distillation.method import Method
from diffusion.distillation.registry import RESERVED, method_class, method_modules
from diffusion.distillation.sampler import TeacherSampler
from diffusion.guidance import Guidance
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import Seeds, Settings, StepCounts, UserPath, problems_of, quoted
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.settings import StoredTeacher, TeacherSettings
from evaluation.measure.classifier import ClassifierSettings
from evaluation.measure.protocols import MAIN, ExtractorName, Protocol, SpeedSettings, WeightsName
from suite.external import ExternalSamples, external_problems, reference_problem
from suite.provenance import RECORD

T = TypeVar("T")
M = TypeVar("M", bound=pydantic.BaseModel)
# Of an experiment, a variant, …: file names have up to 255 bytes, of which temporary names, records and locks take 15,
# and Slurm's logs, named after all wildcards of a job together, some more.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")
_NAME_IN_WORDS = "up to 200 letters, digits and . _ + -"


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
        return {
            axis: {_changed_name(axis, change): change for change in changes} for axis, changes in self.axes.items()
        }


def _changed_name(axis: str, change: Mapping[str, Any]) -> str:
    """Of a variant of an ablation: the question and the values, in characters that a name may have."""
    values = ("-".join(map(str, value)) if isinstance(value, list) else str(value) for _, value in _leaves(change))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{axis}-{'_'.join(values)}")


def _leaves(block: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested block with their dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in block.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _merged(block: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``block`` with the leaves of ``change`` put in."""
    result = dict(block)
    for key, value in change.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


class _Layout(Settings):
    """The blocks of the file, before ``data``, ``teacher`` and ``methods`` have chosen their own models."""

    experiment: str
    results: UserPath = "results"
    data: dict[str, Any]
    teacher: dict[str, Any]
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
        if not _NAME.fullmatch(value):
            raise ValueError(f"found {value!r}, expected {_NAME_IN_WORDS} (it names a folder)")
        return value


class Experiment:
    """A checked experiment.

    Attributes:
        name, results, teacher, train_seeds, evaluation, speed: as in the file, typed.
        data: the data set's settings, of its kind's own model; they tell ``resolution`` and ``channels``.
        raw: the configuration as it was given.
        trains_teacher: whether the workflow trains it.
        methods: the selected variants in the file's order, name to configured method.
        unselected: the variants under ``methods`` that ``select`` leaves out: nothing is made of them.
        published_as: the data set of evaluation/results/published.yaml that this experiment reproduces, or None.
        ablation: question to variant to its change in words; None where the experiment has no ablation.
        conditional: whether the teacher is told a class, so that samples have labels.
        num_timesteps: of the teacher.
        uneven_steps: sampler of the teacher to its step counts that do not divide those, where there are some.
        ablation_base: the variant that those differ from.
        comparison: name of a budget to the variants compared at it, each with the variant under ``methods`` that it is
            or was made from; None where the experiment compares nothing.
        derived: the variants that ``ablation`` and ``comparison`` made.
        labels: what the report calls each variant: its method's title, and its own name where several share a method;
            and the samples that the user brings.
        plain_labels: the same among the variants under ``methods`` alone.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        layout: _Layout,
        data: pydantic.BaseModel,
        teacher: TeacherSettings | StoredTeacher,
        methods: dict[str, Method],
        facts: TeacherFacts,
    ) -> None:
        self.raw = raw
        self.name = layout.experiment
        self.results = Path(layout.results) / layout.experiment
        self.data: Any = data
        self.teacher = teacher
        self.trains_teacher = isinstance(teacher, TeacherSettings)
        self.methods = methods
        self.unselected = tuple(name for name in layout.methods if name not in methods)
        self.conditional = facts.conditional
        self.num_timesteps = facts.num_timesteps
        samplers = {name: method for name, method in methods.items() if isinstance(method, TeacherSampler)}
        uneven = {name: sampler.uneven_steps(facts) for name, sampler in samplers.items()}
        self.uneven_steps = {name: counts for name, counts in uneven.items() if counts}
        self.published_as = layout.published_as
        brought = layout.evaluation.external
        self.labels = _labels(methods) | {name: samples.title or name for name, samples in brought.items()}
        self.plain_labels = _labels({name: method for name, method in methods.items() if name in layout.methods})
        self.derived = frozenset(name for name in methods if name not in layout.methods)
        self.comparison = None
        if compared := _compared(layout):
            kept = {b: {name: base for name, base in v.items() if name in methods} for b, v in compared.items()}
            self.comparison = {budget: variants for budget, variants in kept.items() if variants} or None
        self.ablation_base = layout.ablation.base if layout.ablation else None
        self.ablation = _described(layout.ablation, methods) if layout.ablation else None
        self.train_seeds = layout.train_seeds
        self.evaluation = layout.evaluation
        self.speed = layout.speed


def parse_experiment(raw: Mapping[str, Any], look_at_files: bool = True) -> Experiment:
    """Checks a configuration.

    Args:
        raw: the content of the YAML file.
        look_at_files: whether the files that it names must be there. Not for a job, of whose inputs Snakemake knows.

    Raises:
        UserError: listing every problem, a line each, with its key path, what was found and what is allowed.
    """
    problems: list[str] = []

    def collected(parse: Callable[..., T], *arguments: Any) -> T | None:
        """What ``parse`` gives; None where it refuses, which is noted: the rest can still be checked."""
        try:
            return parse(*arguments)
        except UserError as error:
            problems.extend(str(error).splitlines())
            return None

    stand_in = {"experiment": "unnamed", "data": {}, "teacher": {}} | ({"methods": {}} if "methods" in raw else {})
    layout, wrong = _without_wrong(_Layout, raw, "", problems, stand_in)
    assert layout is not None, "what is required stands in"
    data: Any = None if "data" in wrong else collected(parse_settings, layout.data)
    teacher: TeacherSettings | StoredTeacher | None = None
    facts, of_teacher = None, set[str]()
    if "teacher" not in wrong:
        model: Any = StoredTeacher if "path" in layout.teacher else TeacherSettings
        required = {} if model is StoredTeacher else {"training": {"steps": 1}}
        teacher, of_teacher = _without_wrong(model, layout.teacher, "teacher", problems, required)
    if data and teacher and not _touched(of_teacher, "schedule", "prediction_type", "labels", "num_classes"):
        facts = collected(teacher.facts, data.channels, data.resolution)
    blocks, derived = _blocks(layout, problems) if "methods" not in wrong else ({}, {})
    methods: dict[str, Method] = {}
    said: dict[str, list[str]] = {}
    for name, block in blocks.items():
        before = len(problems)
        if method := collected(_parse_method, name, block, facts, teacher.guidance if teacher else Guidance()):
            methods[name] = method
            continue
        said[name] = [problem.removeprefix(f"methods.{name}") for problem in problems[before:]]
        if name in derived:
            key, base = derived[name]
            new = [problem for problem in said[name] if problem not in said.get(base, ())]
            problems[before:] = [f"{key}: methods.{name}{problem}" for problem in new]
    # A stored one without facts is refused as it is.
    if data and teacher and (facts or model is TeacherSettings) and not _touched(of_teacher, "network"):
        problem = collected(_refused, teacher.check_pictures, data.channels, data.resolution)
        problems += [f"teacher.{problem}."] if problem else []
    selected = tuple(blocks) if layout.select is None else (*layout.select, *_selected(layout, derived))
    if "methods" not in wrong:
        problems += _selection_problems(layout, selected, blocks, methods)
    problems += _published_problems(layout.published_as)
    if layout.evaluation.classifier != ClassifierSettings() and facts and not facts.conditional:
        problems.append(
            "evaluation.classifier: given, but the teacher is not told any class; remove it or set teacher.labels."
        )
    chosen = {name: methods[name] for name in blocks if name in selected and name in methods}
    known = {name: methods.get(name) for name in blocks}
    # A guided sampler has other numbers of evaluations.
    if teacher and "methods" not in wrong and not _touched(of_teacher, "guidance_scale"):
        problems += _nfe_problems(layout, known)
        if not _touched(wrong, "evaluation.teacher", "evaluation.nfe", "select"):
            problems += _reference_problems(layout, chosen, known)
    if not _touched(wrong, "evaluation.features", "evaluation.protocols"):
        problems += _weights_problems(layout.evaluation)
    if not _touched(wrong, "evaluation.num_samples"):
        problems += _protocol_problems(layout.evaluation)
    problems += [
        f"evaluation.external.{name}: expected a name of {_NAME_IN_WORDS} that no method has."
        for name in layout.evaluation.external
        if not _NAME.fullmatch(name) or name in known or name in RESERVED
    ]
    if look_at_files:
        problems += _file_problems(layout, data)
        if data and facts:
            shape = (data.resolution, data.resolution, data.channels)
            taken = set(_labels(chosen).values())
            problems += external_problems(layout.evaluation.external, shape, facts.conditional, taken)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    assert teacher is not None
    assert facts is not None
    return Experiment(raw, layout, data, teacher, chosen, facts)


def _without_wrong(
    model: type[M], block: Mapping[str, Any], key: str, problems: list[str], stand_in: Mapping[str, Any] | None = None
) -> tuple[M | None, set[str]]:
    """A block less what is wrong with it, which is noted, so that the rest of it is checked further.

    Args:
        stand_in: for keys that are required.

    Returns:
        The block, None where it is wrong as a whole; and the dotted keys of what is wrong within it.
    """
    given, wrong = dict(block), set[str]()
    while True:
        try:
            return model.model_validate(given), wrong
        except pydantic.ValidationError as error:
            if not wrong:  # later ones may come of what has been left out
                problems += problems_of(error, model, key)
            kept, places = given, [problem["loc"] for problem in error.errors()]
        for place in places:
            wrong.add(".".join(map(str, place)))
            kept = _without(kept, place)
        kept = {**(stand_in or {}), **kept}
        if kept == given:
            return None, wrong
        given = kept


def _without(block: Mapping[Any, Any], place: Sequence[int | str]) -> dict[str, Any]:
    """``block`` less the innermost key at a place that it has."""
    if not place:
        return dict(block)
    key, *rest = place
    inner = block.get(key)
    less = _without(inner, rest) if isinstance(inner, Mapping) and rest and rest[0] in inner else None
    return {k: less if k == key else v for k, v in block.items() if k != key or less is not None}


def _touched(wrong: Collection[str], *keys: str) -> bool:
    """Whether one of these keys is wrong, or something within it, or the block that it stands in."""
    return any(f"{a}.".startswith(f"{b}.") for one in wrong for key in keys for a, b in ((one, key), (key, one)))


def _refused(check: Callable[..., None], *arguments: Any) -> str | None:
    """What ``check`` objects to."""
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return None


def _selection_problems(
    layout: _Layout, selected: Collection[str], blocks: Mapping[str, Any], methods: Mapping[str, Method]
) -> list[str]:
    problems = [
        f"select: found {name!r}, expected names under methods: {', '.join(layout.methods)}."
        for name in selected
        if name not in blocks
    ]
    problems += [
        f"comparison.{budget}.{base}: found a sampler of the teacher, expected a trained method."
        for budget, variants in (_compared(layout) or {}).items()
        for name, base in variants.items()
        if name in methods and not methods[name].trains
    ]
    if layout.ablation and layout.ablation.base in blocks and layout.ablation.base not in selected:
        problems.append(f"ablation.base: found {layout.ablation.base!r}, expected a selected variant.")
    return problems


def _blocks(layout: _Layout, problems: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """The blocks of all variants, those of comparison and ablation included; of the latter key path and base, too."""
    blocks, origins = dict(layout.methods), dict[str, tuple[str, str]]()

    def derive(key: str, name: str, base: str, change: Mapping[str, Any], rename: str) -> None:
        if name in blocks:
            problems.append(f"{key}: the name {name!r} is taken; {rename}.")
        elif isinstance(blocks[base], Mapping):  # otherwise it is named as a problem of its own
            blocks[name], origins[name] = _merged(blocks[base], change), (key, base)

    for budget, changes in (layout.comparison or {}).items():
        if not _NAME.fullmatch(budget):
            problems.append(f"comparison: found the budget {budget!r}, expected {_NAME_IN_WORDS}.")
        if not changes:
            problems.append(
                f"comparison.{budget}: found no variant, expected a budget's name with variants under it, as "
                f"evaluations: {{boot: {{}}}}."
            )
        for base, change in changes.items():
            key = f"comparison.{budget}.{base}"
            if base not in layout.methods:
                known = ", ".join(layout.methods)
                problems.append(f"{key}: found {base!r}, expected a variant under methods: {known}.")
            elif change:
                derive(key, _compared_name(base, budget, change), base, change, "rename the budget")
    if layout.ablation is None:
        return blocks, origins
    if (base := layout.ablation.base) not in blocks:
        problems.append(f"ablation.base: found {base!r}, expected a variant under methods: {', '.join(blocks)}.")
        return blocks, origins
    for axis, changes_of_it in layout.ablation.axes.items():
        names = [_changed_name(axis, change) for change in changes_of_it]
        if not names:
            problems.append(f"ablation.axes.{axis}: found [], expected a list of changes, as [{{key: value}}].")
        for number, (name, changed) in enumerate(zip(names, changes_of_it, strict=True)):
            key = f"ablation.axes.{axis}[{number}]"
            if not changed:
                problems.append(f"{key}: found {{}}, expected a change of {base}, as {{key: value}}.")
            elif name in names[:number]:
                problems.append(f"ablation.axes.{axis}: two changes have the name {name!r}, expected different values.")
            else:
                derive(key, name, base, changed, "rename the question")
    return blocks, origins


def _compared_name(base: str, budget: str, change: Mapping[str, Any]) -> str:
    """A variant of a comparison: the one under ``methods`` itself where nothing is changed."""
    return f"{base}-{budget}" if change else base


def _compared(layout: _Layout) -> dict[str, dict[str, str]] | None:
    """Budget to its variants, each with the one under ``methods`` that it is or was made from."""
    if layout.comparison is None:
        return None
    return {
        budget: {_compared_name(base, budget, change): base for base, change in changes.items()}
        for budget, changes in layout.comparison.items()
    }


def _selected(layout: _Layout, derived: Collection[str]) -> list[str]:
    """The derived variants that a selection keeps: an ablation's, and those compared whose own variant is selected."""
    unselected = {
        name
        for variants in (_compared(layout) or {}).values()
        for name, base in variants.items()
        if base not in (layout.select or ())
    }
    return [name for name in derived if name not in unselected]


def _described(ablation: AblationSettings, methods: Mapping[str, Method]) -> dict[str, dict[str, str]]:
    """Question to variant to its change in words, "delta 0.2, delta_in lambda"."""
    return {
        axis: {
            name: ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in _leaves(change))
            for name, change in changes.items()
            if name in methods
        }
        for axis, changes in ablation.variants().items()
    }


def _labels(methods: dict[str, Method]) -> dict[str, str]:
    titles = [method.title for method in methods.values()]
    return {
        name: method.title if titles.count(method.title) == 1 else f"{method.title} ({name})"
        for name, method in methods.items()
    }


def _parse_method(name: str, block: Any, teacher: TeacherFacts | None, guidance: Guidance) -> Method:
    key = f"methods.{name}"
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise UserError(
            f"{key}: expected a name of {_NAME_IN_WORDS} (it names folders), none of {', '.join(RESERVED)}."
        )
    if not isinstance(block, Mapping):
        raise UserError(f"{key}: found {quoted(block)}, expected a block of keys.")
    if "method" not in block:
        outdent = (
            f"; if the block {name!r} is meant, begin it at the start of a line" if name in _Layout.model_fields else ""
        )
        raise UserError(f"{key}.method: missing; expected one of: {', '.join(method_modules())}{outdent}.")
    try:
        method_type = method_class(block["method"])
    except UserError as error:
        raise UserError(f"{key}.method: {error}") from error
    problems: list[str] = []
    settings, wrong = _without_wrong(method_type.Settings, block, key, problems)
    problem = _refused(method_type(settings, guidance).check, teacher) if settings and teacher else None
    if problem and not _touched(wrong, problem.partition(":")[0]):
        problems.append(f"{key}.{problem}.")
    if problems:
        raise UserError("\n".join(problems))
    return method_type(settings, guidance)


def _reference_problems(layout: _Layout, selected: dict[str, Method], known: dict[str, Method | None]) -> list[str]:
    reference, sampled = layout.evaluation.teacher, layout.evaluation.sampled
    method = selected.get(reference.variant)
    follows = method is not None and not method.trains and method.follows_teacher
    if reference.variant in known and known[reference.variant] is None:
        return []  # whose own problems are named already
    if method is not None and follows and reference.nfe in sampled(reference.variant, method):
        return []
    untrained = [
        f"{name} with {', '.join(map(str, sorted(sampled(name, method))))}"
        for name, method in selected.items()
        if not method.trains and method.follows_teacher
    ]
    default = "" if "teacher" in layout.evaluation.model_fields_set else " (the default)"
    return [
        f"evaluation.teacher: found variant {reference.variant!r} with nfe {reference.nfe}{default}, expected a "
        f"selected deterministic sampler of the teacher and one of its numbers of network evaluations, two a guided "
        f"step ({'; '.join(untrained) or 'none is selected'})."
    ]


def _nfe_problems(layout: _Layout, known: Mapping[str, Method | None]) -> list[str]:
    problems = []
    for name, chosen in layout.evaluation.nfe.items():
        method, key = known.get(name), f"evaluation.nfe.{name}"
        if name not in known:
            problems.append(f"{key}: found {name!r}, expected one of the variants: {', '.join(known)}.")
        elif method is not None and (wrong := set(chosen) - set(method.evaluations())):
            has = ", ".join(map(str, sorted(method.evaluations())))
            problems.append(f"{key}: found {', '.join(map(str, sorted(wrong)))}, expected numbers among {has}.")
    return problems


def _protocol_problems(settings: EvaluationSettings) -> list[str]:
    problems = []
    for name, protocol in settings.further_protocols.items():
        key = f"evaluation.protocols.{name}"
        if not _NAME.fullmatch(name) or name == MAIN:
            problems.append(f"{key}: expected a name of {_NAME_IN_WORDS} (it names files), and not {MAIN!r}.")
        if protocol.reference_sha256 and not protocol.reference_is_file:
            problems.append(f"{key}.reference_sha256: given, but the reference is not a file; remove it.")
        if protocol.num_samples and protocol.num_samples > settings.num_samples:
            problems.append(
                f"{key}.num_samples: found {protocol.num_samples}, expected no more than evaluation.num_samples "
                f"({settings.num_samples})."
            )
    return problems


def _weights_problems(settings: EvaluationSettings) -> list[str]:
    problems = []
    used = {protocol.features for protocol in settings.all_protocols.values()}
    for name in settings.weights:
        key, extractor = f"evaluation.weights.{name}", name.removesuffix("-clean-fid")
        if extractor not in used:
            problems.append(f"{key}: given, but no protocol's features are '{extractor}'; remove it.")
    return problems


def _file_problems(layout: _Layout, data: Any) -> list[str]:
    """Of the files that the configuration names; those of the data set only until its images are among the results."""
    prepared = Path(layout.results, layout.experiment, "data", RECORD).exists()
    problems = data_problems(data) if data and not prepared else []
    for name, protocol in layout.evaluation.further_protocols.items():
        features = protocol.features or layout.evaluation.features
        if protocol.reference_is_file and (problem := reference_problem(Path(protocol.reference), data, features)):
            problems.append(f"evaluation.protocols.{name}.reference: {problem}")
    for name, path in layout.evaluation.weights.items():
        is_file = name.removesuffix("-clean-fid") == "inception"
        if not (Path(path).is_file() if is_file else Path(path).is_dir()):
            kind = "file" if is_file else "folder"
            problems.append(f"evaluation.weights.{name}: found {path!r}, expected an existing {kind}.")
    return problems


def _published_problems(name: str | None) -> list[str]:
    if name is None:
        return []
    known = yaml.safe_load((Path(evaluation.__path__[0]) / "results" / "published.yaml").read_text(encoding="utf-8"))[
        "datasets"
    ]
    if name in known:
        return []
    return [f"published_as: found {name!r}, expected one of: {', '.join(known)}."]
