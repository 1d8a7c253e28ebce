"""The typed configuration: one YAML file is one experiment, checked as a whole before any job starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

import evaluation
from diffusion.data.kinds import parse_settings
from diffusion.data.kinds import problems as data_problems
from diffusion.distillation.method import Method
from diffusion.distillation.registry import RESERVED
from diffusion.distillation.sampler import TeacherSampler
from diffusion.guidance import Guidance
from diffusion.runtime.errors import UserError
from diffusion.teachers.facts import TeacherFacts
from diffusion.teachers.lora import target_modules
from diffusion.teachers.prompt_sources import PromptSettings, prompt_lists
from diffusion.teachers.settings import StoredTeacher, TeacherSettings
from evaluation.measure.classifier import ClassifierSettings
from evaluation.measure.protocols import MAIN
from suite.configuration.blocks import NAME, NAME_IN_WORDS, EvaluationSettings, Layout
from suite.configuration.checking import refused, touched, without_wrong
from suite.configuration.variants import (
    all_blocks,
    compared_variants,
    described_changes,
    labels_of,
    made_and_selected,
    parse_method,
    selection_problems,
)
from suite.external import external_problems, reference_problem
from suite.provenance import RECORD

T = TypeVar("T")


class Experiment:
    """A checked experiment.

    Attributes:
        name, results, teacher, train_seeds, evaluation, speed: as in the file, typed.
        data: the data set's settings, of its kind's own model; they tell the images' ``shape``.
        raw: the configuration as it was given.
        trains_teacher: whether the workflow trains it.
        methods: the selected variants in the file's order, name to configured method.
        unselected: the variants under ``methods`` that ``select`` leaves out: nothing is made of them.
        published_as: the data set of evaluation/results/published.yaml that this experiment reproduces, or None.
        ablation: question to variant to its change in words; None where the experiment has no ablation.
        conditional: whether the teacher is told a class or a text, so that samples have labels.
        told: what it is told.
        is_latent: whether its states are an autoencoder's latents.
        state_shape: (C, H, W) of its states.
        has_captions: whether samples are asked for captions: texts, or classes that are captions.
        prompts: the texts, of a teacher that is told some.
        encodes_captions: whether students are trained with the captions of the data set's training part, which the
            teacher's folder does not hold: it is a stock pipeline.
        has_classifier: whether a classifier can say if samples are what was asked for.
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
        layout: Layout,
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
        self.conditional, self.told = facts.conditional, facts.told
        self.is_latent, self.state_shape = facts.is_latent, facts.shape
        self.prompts = layout.prompts or PromptSettings()
        on_captions = facts.told == "text" and self.prompts.trains_on_captions
        self.encodes_captions = on_captions and isinstance(teacher, StoredTeacher) and bool(teacher.family.pipelines)
        has_attributes = bool(getattr(data, "attributes", ()))
        self.has_captions = facts.told == "text" or (facts.told == "class" and has_attributes)
        of_captions = facts.told == "text" and self.prompts.evaluates_captions
        self.has_classifier = facts.told == "class" or (of_captions and has_attributes)
        self.num_timesteps = facts.num_timesteps
        samplers = {name: method for name, method in methods.items() if isinstance(method, TeacherSampler)}
        uneven = {name: sampler.uneven_steps(facts) for name, sampler in samplers.items()}
        self.uneven_steps = {name: counts for name, counts in uneven.items() if counts}
        self.published_as = layout.published_as
        brought = layout.evaluation.external
        self.labels = labels_of(methods) | {name: samples.title or name for name, samples in brought.items()}
        self.plain_labels = labels_of({name: method for name, method in methods.items() if name in layout.methods})
        self.derived = frozenset(name for name in methods if name not in layout.methods)
        self.comparison = None
        if compared := compared_variants(layout):
            kept = {b: {name: base for name, base in v.items() if name in methods} for b, v in compared.items()}
            self.comparison = {budget: variants for budget, variants in kept.items() if variants} or None
        self.ablation_base = layout.ablation.base if layout.ablation else None
        self.ablation = described_changes(layout.ablation, methods) if layout.ablation else None
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
    layout, wrong = without_wrong(Layout, raw, "", problems, stand_in)
    assert layout is not None, "what is required stands in"
    data: Any = None if "data" in wrong else collected(parse_settings, layout.data)
    teacher: TeacherSettings | StoredTeacher | None = None
    facts, of_teacher = None, set[str]()
    if "teacher" not in wrong:
        model: Any = StoredTeacher if "path" in layout.teacher else TeacherSettings
        required = {} if model is StoredTeacher else {"training": {"steps": 1}}
        teacher, of_teacher = without_wrong(model, layout.teacher, "teacher", problems, required)
    if data and teacher and not touched(of_teacher, "schedule", "prediction_type", "labels", "num_classes"):
        facts = collected(teacher.facts, data.shape)
    blocks, derived = all_blocks(layout, problems) if "methods" not in wrong else ({}, {})
    # Of a folder that cannot be read nothing more is known.
    guidance = teacher.guidance if teacher and facts else Guidance(teacher.guidance_scale if teacher else 1.0)
    methods: dict[str, Method] = {}
    said: dict[str, list[str]] = {}
    for name, block in blocks.items():
        before = len(problems)
        if method := collected(parse_method, name, block, facts, guidance):
            methods[name] = method
            continue
        said[name] = [problem.removeprefix(f"methods.{name}") for problem in problems[before:]]
        if name in derived:
            key, base = derived[name]
            new = [problem for problem in said[name] if problem not in said.get(base, ())]
            problems[before:] = [f"{key}: methods.{name}{problem}" for problem in new]
    # A stored one without facts is refused as it is.
    if data and teacher and (facts or model is TeacherSettings) and not touched(of_teacher, "network"):
        problem = collected(refused, teacher.check_images, data.shape)
        problems += [f"teacher.{problem}."] if problem else []
        if facts and not problem:
            problems += _lora_problems(teacher, data.shape, methods)
    selected = tuple(blocks) if layout.select is None else (*layout.select, *made_and_selected(layout, derived))
    if "methods" not in wrong:
        problems += selection_problems(layout, selected, blocks, methods)
    problems += _published_problems(layout.published_as)
    if layout.evaluation.classifier != ClassifierSettings() and facts and not facts.conditional:
        problems.append(
            "evaluation.classifier: given, but the teacher is not told any class; remove it or set teacher.labels."
        )
    if layout.evaluation.text_scores and facts and facts.told != "text":
        problems.append(
            "evaluation.text_scores: given, but the teacher is told no texts, with which samples could be compared; "
            "remove it or set teacher.text."
        )
    chosen = {name: methods[name] for name in blocks if name in selected and name in methods}
    if layout.prompts and facts and "methods" not in wrong:
        problems += _prompts_problems(layout.prompts, facts, chosen)
    if isinstance(teacher, StoredTeacher) and facts and facts.told == "text" and "methods" not in wrong:
        problems += _stored_text_problems(teacher, data, layout.prompts or PromptSettings(), chosen)
    known = {name: methods.get(name) for name in blocks}
    # A guided sampler has other numbers of evaluations.
    if teacher and "methods" not in wrong and not touched(of_teacher, "guidance_scale"):
        problems += _nfe_problems(layout, known)
        if not touched(wrong, "evaluation.teacher", "evaluation.nfe", "select"):
            problems += _reference_problems(layout, chosen, known)
    if not touched(wrong, "evaluation.features", "evaluation.protocols"):
        problems += _weights_problems(layout.evaluation)
    if not touched(wrong, "evaluation.num_samples"):
        problems += _protocol_problems(layout.evaluation)
    problems += [
        f"evaluation.external.{name}: expected a name of {NAME_IN_WORDS} that no method has."
        for name in layout.evaluation.external
        if not NAME.fullmatch(name) or name in known or name in RESERVED
    ]
    if look_at_files:
        problems += _file_problems(layout, data)
        if isinstance(teacher, TeacherSettings) and teacher.text:
            collected(teacher.text.folder)
        for name, score in layout.evaluation.text_scores.items():
            collected(score.folder, name)
        if data and facts:
            channels, *size = data.shape
            taken = set(labels_of(chosen).values())
            problems += external_problems(layout.evaluation.external, (*size, channels), facts.conditional, taken)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    assert teacher is not None
    assert facts is not None
    return Experiment(raw, layout, data, teacher, chosen, facts)


def _prompts_problems(prompts: PromptSettings, facts: TeacherFacts, selected: Mapping[str, Method]) -> list[str]:
    if facts.told != "text":
        return ["prompts: given, but the teacher is told no text; remove the block, or set teacher.text."]
    if prompts.negative and all(method.guidance.evaluations == 1 for method in selected.values()):
        return ["prompts.negative: given, but nothing is guided; remove it, or set teacher.guidance_scale."]
    return []


def _stored_text_problems(
    teacher: StoredTeacher, data: Any, prompts: PromptSettings, selected: Mapping[str, Method]
) -> list[str]:
    """Of a stock pipeline, whose folder holds no texts of its teacher's training: captions are the data set's."""
    if not teacher.family.pipelines:
        return []
    problems = []
    if teacher.low_resolution and not prompts.cache:
        problems.append("prompts.cache: found false, expected true: the images that the teacher enlarges are stored")
    captioned = bool(getattr(data, "captions", None) or getattr(data, "attributes", ()))
    if prompts.trains_on_captions and not captioned:
        problems.append(
            "prompts.train: found captions, expected another source, or images with captions (data.captions): the "
            "folder of the teacher holds none of its training's (docs/text-to-image.md)."
        )
    if teacher.low_resolution:
        lacks = "trains on images, and of those that the teacher enlarges there are none; expected"
    elif not captioned:
        lacks = "needs images with their captions; expected some (data.captions), or"
    elif not prompts.trains_on_captions:
        lacks = "needs images with their captions; expected prompts.train to be captions, or"
    else:
        return problems
    return problems + [
        f"methods.{name}: {lacks} a method that needs no data."
        for name, method in selected.items()
        if method.trains and method.needs_data
    ]


def _lora_problems(
    teacher: TeacherSettings | StoredTeacher, shape: tuple[int, int, int], methods: Mapping[str, Method]
) -> list[str]:
    """Of methods that adapt modules which the teacher's network lacks."""
    wanted = {name: lora for name, method in methods.items() if (lora := getattr(method.settings, "lora", None))}
    if not wanted:
        return []
    network = teacher.described_network(shape)
    refusals = {name: refused(target_modules, network, lora) for name, lora in wanted.items()}
    return [f"methods.{name}.{problem}." for name, problem in refusals.items() if problem]


def _reference_problems(layout: Layout, selected: dict[str, Method], known: dict[str, Method | None]) -> list[str]:
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


def _nfe_problems(layout: Layout, known: Mapping[str, Method | None]) -> list[str]:
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
        if not NAME.fullmatch(name) or name == MAIN:
            problems.append(f"{key}: expected a name of {NAME_IN_WORDS} (it names files), and not {MAIN!r}.")
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


def _file_problems(layout: Layout, data: Any) -> list[str]:
    """Of the files that the configuration names; those of data and prompts only until they are among the results."""
    prepared = Path(layout.results, layout.experiment, "data", RECORD).exists()
    problems = data_problems(data) if data and not prepared else []
    if layout.prompts and not Path(layout.results, layout.experiment, "texts", RECORD).exists():
        try:
            prompt_lists(layout.prompts)
        except UserError as error:
            problems.append(str(error))
    for name, protocol in layout.evaluation.further_protocols.items():
        if not protocol.reference_is_file:
            continue
        features = protocol.features or layout.evaluation.features
        if problem := reference_problem(Path(protocol.reference), data, features, protocol.resolution):
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
