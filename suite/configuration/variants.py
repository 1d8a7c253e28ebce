"""Variants: those under `methods`, and those that `ablation` and `comparison` make of them."""

from collections.abc import Collection, Mapping
from typing import Any

from diffusion.distillation.distiller import Distiller
from diffusion.distillation.method import Method
from diffusion.distillation.registry import RESERVED, method_class, method_modules
from diffusion.guidance import Guidance
from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import quoted
from diffusion.teachers.facts import TeacherFacts
from suite.configuration.blocks import NAME, NAME_IN_WORDS, AblationSettings, Layout, changed_name, leaves
from suite.configuration.checking import refused, touched, without_wrong


def _merged(block: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``block`` with the leaves of ``change`` put in."""
    result = dict(block)
    for key, value in change.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def selection_problems(
    layout: Layout, selected: Collection[str], blocks: Mapping[str, Any], methods: Mapping[str, Method]
) -> list[str]:
    problems = [
        f"select: found {name!r}, expected names under methods: {', '.join(layout.methods)}."
        for name in selected
        if name not in blocks
    ]
    problems += [
        f"comparison.{budget}.{base}: found a sampler of the teacher, expected a trained method."
        for budget, variants in (compared_variants(layout) or {}).items()
        for name, base in variants.items()
        if name in methods and not methods[name].trains
    ]
    if layout.ablation and layout.ablation.base in blocks and layout.ablation.base not in selected:
        problems.append(f"ablation.base: found {layout.ablation.base!r}, expected a selected variant.")
    return problems


def all_blocks(layout: Layout, problems: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, str]]]:
    """The blocks of all variants, those of comparison and ablation included; of the latter key path and base, too."""
    blocks, origins = dict(layout.methods), dict[str, tuple[str, str]]()

    def derive(key: str, name: str, base: str, change: Mapping[str, Any], rename: str) -> None:
        if name in blocks:
            problems.append(f"{key}: the name {name!r} is taken; {rename}.")
        elif isinstance(blocks[base], Mapping):  # otherwise it is named as a problem of its own
            blocks[name], origins[name] = _merged(blocks[base], change), (key, base)

    for budget, changes in (layout.comparison or {}).items():
        if not NAME.fullmatch(budget):
            problems.append(f"comparison: found the budget {budget!r}, expected {NAME_IN_WORDS}.")
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
        names = [changed_name(axis, change) for change in changes_of_it]
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


def compared_variants(layout: Layout) -> dict[str, dict[str, str]] | None:
    """Budget to its variants, each with the one under ``methods`` that it is or was made from."""
    if layout.comparison is None:
        return None
    return {
        budget: {_compared_name(base, budget, change): base for base, change in changes.items()}
        for budget, changes in layout.comparison.items()
    }


def made_and_selected(layout: Layout, derived: Collection[str]) -> list[str]:
    """The derived variants that a selection keeps: an ablation's, and those compared whose own variant is selected."""
    unselected = {
        name
        for variants in (compared_variants(layout) or {}).values()
        for name, base in variants.items()
        if base not in (layout.select or ())
    }
    return [name for name in derived if name not in unselected]


def described_changes(ablation: AblationSettings, methods: Mapping[str, Method]) -> dict[str, dict[str, str]]:
    """Question to variant to its change in words, "delta 0.2, delta_in lambda"."""
    return {
        axis: {
            name: ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in leaves(change))
            for name, change in changes.items()
            if name in methods
        }
        for axis, changes in ablation.variants().items()
    }


def labels_of(methods: dict[str, Method]) -> dict[str, str]:
    titles = [method.title for method in methods.values()]
    return {
        name: method.title if titles.count(method.title) == 1 else f"{method.title} ({name})"
        for name, method in methods.items()
    }


def _guidance_problem(method: Method, teacher: TeacherFacts, guidance: Guidance) -> str | None:
    """What is wrong with a guidance scale of a method's own."""
    scale = method.guidance.scale
    if method.guidance == guidance:
        return None
    if method.guidance.evaluations > 1 and not teacher.can_be_guided:
        return f"guidance_scale: found {scale}, expected 1: the teacher has no condition, or no unconditional input"
    if isinstance(scale, tuple):
        return _range_problem(method, scale, teacher, guidance)
    if isinstance(method, Distiller) and method.pairs() is not None:
        return f"guidance_scale: found {scale}, expected the teacher's {guidance.scale}, which made the pairs"
    return None


def _range_problem(method: Method, scale: tuple[float, float], teacher: TeacherFacts, guidance: Guidance) -> str | None:
    """What is wrong with a range of guidance scales."""
    found = f"guidance_scale: found {list(scale)}, expected"
    if not method.embeds_guidance:
        return f"{found} a number: {method.title} has no student that is told a scale"
    if not teacher.embeds_guidance:
        return f"{found} a number: the teacher's network has no input for a scale, and none can be added"
    if getattr(method.settings, "lora", None) is not None:
        return f"{found} a number with lora: the input for a scale is no adapter of a weight"
    assert not isinstance(guidance.scale, tuple), "a teacher has a number"
    if not scale[0] <= guidance.scale <= scale[1]:
        return f"{found} a range with the teacher's {guidance.scale}, at which samples are evaluated"
    return None


def parse_method(name: str, block: Any, teacher: TeacherFacts | None, guidance: Guidance) -> Method:
    key = f"methods.{name}"
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"{key}: expected a name of {NAME_IN_WORDS} (it names folders), none of {', '.join(RESERVED)}.")
    if not isinstance(block, Mapping):
        raise UserError(f"{key}: found {quoted(block)}, expected a block of keys.")
    if "method" not in block:
        outdent = (
            f"; if the block {name!r} is meant, begin it at the start of a line" if name in Layout.model_fields else ""
        )
        raise UserError(f"{key}.method: missing; expected one of: {', '.join(method_modules())}{outdent}.")
    try:
        method_type = method_class(block["method"])
    except UserError as error:
        raise UserError(f"{key}.method: {error}") from error
    problems: list[str] = []
    settings, wrong = without_wrong(method_type.Settings, block, key, problems)
    method, problem = method_type(settings, guidance) if settings else None, None
    if method and teacher:
        problem = _guidance_problem(method, teacher, guidance) or refused(method.check, teacher)
    if problem and not touched(wrong, problem.partition(":")[0]):
        problems.append(f"{key}.{problem}.")
    if problems:
        raise UserError("\n".join(problems))
    assert method is not None
    return method
