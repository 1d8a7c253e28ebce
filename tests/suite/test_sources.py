"""The house: which room imports which, and what a job's result is said to depend on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.distillation.registry import method_modules
from suite import sources
from suite.sources import CHECKOUT, FRAME, closure, file_of, files, state_key

# The README's diagram, room to the rooms that its arrows lead to. The files at the top of diffusion/ are "maths".
ARROWS = re.findall(r"^  (\w+) --> (\w+)$", (CHECKOUT / "README.md").read_text(encoding="utf-8"), flags=re.M)
ROOMS = sorted({room for arrow in ARROWS for room in arrow})
OPENS_OR_LOCKS = {"os", "io", "pathlib", "shutil", "tempfile", "filelock", "urllib", "subprocess", "multiprocessing"}
MODULES = sorted(
    ".".join(file.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("suite", "boot", "baselines", "evaluation", "diffusion")
    for file in (CHECKOUT / room).rglob("*.py")
)


def room_of(module):
    first, *rest = module.split(".")
    if first != "diffusion":
        return first
    return rest[0] if rest and (CHECKOUT / "diffusion" / rest[0]).is_dir() else "maths"


def imported(module):
    """The modules of the checkout that a module imports itself; of a name in a module, the module."""
    found = {name for name in sources._imported(module) if file_of(name)} - {module}
    return {name for name in found if not module.startswith(f"{name}.")}  # the packages it lies in


def below(room):
    """All rooms that the diagram's arrows lead to, the room itself included."""
    return {room}.union(*(below(lower) for upper, lower in ARROWS if upper == room))


def crossings():
    """Every import from one room into another: rooms, and the two modules."""
    for module in MODULES:
        for other in imported(module):
            if room_of(module) != room_of(other) and "diffusion" not in (module, other):
                yield room_of(module), room_of(other), f"{module} -> {other}"


def test_the_diagram_of_the_readme_is_the_house():
    assert {room_of(module) for module in MODULES} == set(ROOMS)
    assert {name for upper, lower, name in crossings() if lower not in below(upper)} == set(), "an arrow up"
    drawn = set(ARROWS) - {("suite", "baselines")}  # whose methods the registry finds by their names
    assert drawn <= {(upper, lower) for upper, lower, _ in crossings()}, "an arrow that no import is behind"


def test_inside_evaluation_the_report_reads_results_and_results_read_columns():
    order = ["evaluation.columns", "evaluation.measure", "evaluation.results", "evaluation.report"]

    def rank(module):
        return next((n for n, part in enumerate(order) if module.startswith(part)), None)

    for module in (m for m in MODULES if rank(m) is not None):
        assert all((rank(other) or 0) <= rank(module) for other in imported(module) if rank(other) is not None), module


def test_no_module_imports_itself_by_a_detour():
    done = set()

    def walk(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imported(module):
                walk(other, [*path, module])
            done.add(module)

    for module in MODULES:
        walk(module, [])


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "maths" and m != "diffusion"])
def test_the_mathematics_opens_no_file_and_knows_no_process_lock_or_download(module):
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    names = {name.partition(".")[0] for name in sources._imported(module)}
    assert not names & OPENS_OR_LOCKS
    assert not any(isinstance(node, ast.Name) and node.id == "open" for node in ast.walk(tree))
    below = {name.rpartition(".")[2] for name in closure(module) if room_of(name) == "runtime"}
    assert below <= {"runtime", "errors", "settings", "torchvision_repair"}


# -- what a result depends on ------------------------------------------------------------------------------------------

# A stage's closure: at most so many lines, and none of these rooms or files.
LOOP, PAIRS, LOCKS = "diffusion.training.loop", "diffusion.distillation.pairs", "filelock"
CLOSURES = {
    "data": (2000, ["diffusion.training", "diffusion.teachers", "diffusion.distillation", "evaluation", "boot"]),
    "teacher": (8650, ["diffusion.distillation", "evaluation", "boot", "baselines"]),
    "sampling": (6150, [LOOP, PAIRS, "evaluation"]),
    "extraction": (4000, ["diffusion.training", "diffusion.teachers", "diffusion.distillation", "boot"]),
    "measuring": (5150, [LOOP, "diffusion.teachers", "diffusion.distillation", "boot"]),
    "trajectory": (6150, [LOOP, PAIRS, "boot.distillation", "evaluation.measure", "evaluation.report"]),
    "report": (6650, ["diffusion.teachers", "diffusion.training", "diffusion.distillation", "diffusion.denoiser"]),
}


@pytest.mark.parametrize("stage", CLOSURES)
def test_a_stage_depends_on_little(stage):
    most, forbidden = CLOSURES[stage]
    shallow = ("suite.configuration.experiment", "suite.plan") if stage == "report" else ()
    found = closure(f"suite.jobs.{stage}", shallow=shallow)
    lines = sum(len(file_of(name).read_text(encoding="utf-8").splitlines()) for name in found)
    print(f"{stage}: {len(found)} modules, {lines:,} lines")
    assert lines <= most, sorted(found)
    assert [name for name in found for room in forbidden if name == room or name.startswith(f"{room}.")] == []


def test_a_sampler_of_the_teacher_knows_no_training_and_no_offline_set():
    found = closure("baselines.samplers")
    assert {"diffusion.solvers", "diffusion.schedule", "diffusion.denoiser"} <= found
    assert not [name for name in found if name.startswith("diffusion.training") or name == PAIRS]


def test_every_student_depends_on_how_it_is_read_and_on_the_loop():
    for name, module in method_modules().items():
        found = closure("suite.jobs.distillation", module)
        assert LOOP in found
        if name in ("boot", "sid", "pid", "knowledge_distillation"):
            assert "diffusion.student" in closure("suite.jobs.sampling", module), name


def test_the_frame_of_a_job_computes_nothing():
    for module in FRAME:
        assert {room_of(name) for name in imported(module) - FRAME} <= {"runtime"}, module


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A checkout of its own, in which a test writes modules."""
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path)
    for cached in (sources.file_of, sources._imported):
        cached.cache_clear()

    def write(**modules):
        for name, text in modules.items():
            file = tmp_path / Path(*name.split("__")).with_suffix(".py")
            for folder in [file.parent, *file.parent.parents]:
                if tmp_path in folder.parents:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / "__init__.py").touch()
            file.write_text(text)
        for cached in (sources.file_of, sources._imported):
            cached.cache_clear()

    yield write
    for cached in (sources.file_of, sources._imported):
        cached.cache_clear()


def test_a_closure_follows_imports_of_every_form(house):
    house(
        a__one="import a.two\nfrom a import three\nfrom .four import x as y\nfrom . import five\nimport numpy",
        a__two="def late():\n    from b import six\n",
        a__three="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import unseen\n",
        a__four="x = 1",
        a__five="from .one import late",
        a__unseen="",
        b__six="from b.deep import *",
        b__deep__door="",
        b__seven="",
    )
    found = closure("a.one")
    assert found == {"a", "a.one", "a.two", "a.three", "a.four", "a.five", "b", "b.six", "b.deep"}
    assert files(found)[:3] == ["a/__init__.py", "a/five.py", "a/four.py"]
    assert closure("a.one", shallow=("a.two",)) == found - {"b", "b.six", "b.deep"}
    with pytest.raises(ModuleNotFoundError, match=r"a\.nine: no such module"):
        closure("a.nine")


def test_a_state_belongs_to_the_code_that_made_it(house):
    house(a__one="from a import two", a__two="x = 1", a__three="")
    before = state_key([1], "a.one")
    assert state_key([2], "a.one") != before
    house(a__three="x = 2")
    assert state_key([1], "a.one") == before
    house(a__two="x = 2")
    assert state_key([1], "a.one") != before


def test_what_a_stage_imports_when_it_runs_is_in_its_closure():
    """The interpreter's own account: of the suite's modules, a stage loads none that its closure lacks."""
    code = (
        "import sys, importlib; importlib.import_module('suite.jobs.sampling'); "
        "importlib.import_module('baselines.consistency_distillation'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    own = {name for name in loaded if file_of(name)}
    assert own - closure("suite.jobs.sampling", "baselines.consistency_distillation") <= FRAME
