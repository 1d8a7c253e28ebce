"""Lock file, environment.yml, pyproject.toml and installed packages agree; Makefile and profile work."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import ROOT

# The platform that the lock is resolved for, whatever the tests run on.
PLATFORM = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
# What the CUDA build of torch brings and pins itself.
TORCH_BUILD = ("nvidia-", "cuda-", "triton")


def pin_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in pin_lines())}


def direct_requirements() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        described = tomllib.load(file)
    project = described["project"]
    texts = [
        *described["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],  # the others are for clusters, and not locked
    ]
    return [Requirement(text) for text in texts]


def requirements_of(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What an installed distribution needs on the lock's platform."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name).startswith(TORCH_BUILD):
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**PLATFORM, "extra": extra}) for extra in {"", *extras}):
            yield requirement


def all_requirements() -> list[Requirement]:
    """The direct requirements and, through the metadata of what is installed, all that follow from them."""
    found: list[Requirement] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = direct_requirements()
    while waiting:
        requirement = waiting.pop()
        found.append(requirement)
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting.extend(requirements_of(*key))
    return found


def test_lock_has_one_exact_pin_per_package() -> None:
    for line in pin_lines():
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "==", line
        assert "*" not in specifier.version, line
        assert "+" not in specifier.version, f"{line}: a local version exists in one index only"
    assert len(pins()) == len(pin_lines())


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} of pyproject.toml is not in requirements.lock: run `make lock`"
    assert requirement.specifier.contains(pinned), f"{requirement} of pyproject.toml, but {pinned} is pinned"


def test_environment_yml_carries_the_same_pins() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (from_pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    from_conda = [entry for entry in dependencies if isinstance(entry, str)]
    assert from_pip == pin_lines()
    assert from_conda == [f"python={PLATFORM['python_version']}", "pip"]


def test_what_is_installed_is_what_is_pinned() -> None:
    wrong = {}
    for line in pin_lines():
        requirement = Requirement(line)
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = "absent"
        # `==2.13.0` also holds for 2.13.0+cpu.
        if installed == "absent" or not requirement.specifier.contains(installed):
            wrong[line] = installed
    assert wrong == {}


def test_pins_are_closed_under_dependencies_and_all_needed() -> None:
    pinned = pins()
    needed = all_requirements()
    assert {canonicalize_name(requirement.name) for requirement in needed} == set(pinned)
    for requirement in needed:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, but {version} is pinned"


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` these would hand the outer make's options on.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_make_refuses_an_old_python_before_it_makes_anything(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.1; else exit 1; fi\n')
    old.chmod(0o755)
    done = run_make(f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "environment")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_installs_once_and_anew_when_the_pins_change(tmp_path: Path) -> None:
    stamp = tmp_path / ".installed"
    assert "install -r requirements.lock" in run_make("-n", f"VENV={tmp_path}", "environment").stdout
    stamp.touch()
    assert "install -r requirements.lock" not in run_make("-n", f"VENV={tmp_path}", "environment").stdout
    os.utime(stamp, (0, 0))
    assert "install -r requirements.lock" in run_make("-n", f"VENV={tmp_path}", "environment").stdout


def test_make_clean_spares_an_environment_it_did_not_make(tmp_path: Path) -> None:
    # A dry run: the real one would remove the environment's neighbours, the caches of this very run.
    commands = run_make("-n", f"VENV={tmp_path}", "clean").stdout
    assert f'test ! -e "{tmp_path}/.installed" || rm -rf "{tmp_path}"' in commands


def test_profile_keeps_gpu_jobs_apart_and_repairs_half_written_results(tmp_path: Path) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    # Each job fails if it meets the other's mark; the sleep gives a second job the time to start.
    (tmp_path / "Snakefile").write_text(
        "rule all:\n"
        "    input: 'a.txt', 'b.txt'\n"
        "rule one:\n"
        "    output: '{name}.txt'\n"
        "    resources: gpu=1\n"
        "    shell: 'mkdir running && sleep 0.5 && rmdir running && touch {output}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.txt").exists()
    # Snakemake marks what is being written here, under the base64 of its name; a kill leaves the mark.
    incomplete = tmp_path / ".snakemake" / "incomplete"
    incomplete.mkdir(exist_ok=True)
    (incomplete / "YS50eHQ=").touch()
    again = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "a.txt" in again.stdout + again.stderr
    assert "Nothing to be done" not in again.stdout + again.stderr
