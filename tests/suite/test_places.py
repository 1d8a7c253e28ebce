"""Where the suite runs: paths, locales, other people's folders, other people's workflows."""

import ast
import os
import subprocess
import sys

import pytest
import yaml
from repository import ROOT, TINY, snakemake, warm

from diffusion.runtime.errors import UserError
from diffusion.runtime.settings import user_path
from suite.cli import parse
from suite.configuration.experiment import parse_experiment

NASTY = "o ü'$x;\"[a]*&|#"
TEXT_CALLS = ("read_text", "write_text", "NamedTemporaryFile")
# Python as it is where the locale is C and nothing makes UTF-8 of it.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def tiny(**changes):
    return yaml.safe_load(TINY.read_text(encoding="utf-8")) | changes


def write(folder, raw):
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    return file


@pytest.mark.parametrize("path", ["a", "./a", "a//b/", "a/~b", "a/-b", "google/ddpm-cifar10-32", "", "/", NASTY])
def test_a_path_without_tilde_stays_as_it_is(path):
    assert user_path(path) == path


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("~no-such-user/x", "no home folder of no-such-user is known here"),
        ("a\nb", "without line breaks"),
        ("a\tb", "without line breaks"),
        ("a\0b", "without line breaks"),
        ("\udc80", "without line breaks"),
        ("a{b}", "which Snakemake takes for a wildcard"),
        ("a}", "which Snakemake takes for a wildcard"),
        ("-x", "expected the whole path"),
        ("./-x", "expected the whole path"),
        ("./~x", "expected the whole path"),
        ("x" * 256, "File name too long"),
        ("x/" * 3000, "File name too long"),
    ],
)
def test_what_no_tool_can_take_is_refused_by_its_key(path, problem):
    with pytest.raises(ValueError, match=problem):
        user_path(path)
    with pytest.raises(UserError, match=rf"^results: found .*{problem}"):
        parse_experiment(tiny(results=path))


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="Too many levels of symbolic links"):
        user_path(str(tmp_path / "loop"))


def test_the_home_folder_is_known_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = tiny(results="~/results", data={"kind": "images", "path": "~/images", "resolution": 8})
    raw["evaluation"] |= {
        "external": {"mine": "~/mine.npz"},
        "protocols": {"p": {"reference": "~/ref.npz", "features": "inception"}},
        "weights": {"inception": "~/inception.pth"},
    }
    experiment = parse_experiment(raw, look_at_files=False)
    evaluation = experiment.evaluation
    found = [
        *(experiment.results.parent, experiment.data.path, *evaluation.external["mine"].path),
        *(evaluation.protocols["p"].reference, evaluation.weights["inception"]),
    ]
    names = ("results", "images", "mine.npz", "ref.npz", "inception.pth")
    assert [str(path) for path in found] == [str(tmp_path / name) for name in names]
    convert = parse(["convert", "--checkpoint=~/a.pkl", "--output=~/b"])
    assert (convert.checkpoint, convert.output) == (tmp_path / "a.pkl", tmp_path / "b")


def test_an_absent_home_is_no_traceback(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user whom the system does not know
    with pytest.raises(UserError, match="no home folder of this user is known here"):
        parse_experiment(tiny(results="~/x"))
    with pytest.raises(UserError, match=r"--checkpoint: found '~/a'.* no home folder of this user"):
        parse(["convert", "--checkpoint", "~/a", "--output", "b"])


@pytest.mark.parametrize("where", ["experiment", "method", "external", "protocol", "ablation"])
@pytest.mark.parametrize("length", [200, 201])
def test_names_have_up_to_200_characters(where, length, tmp_path):
    raw, name = tiny(), "n" * length
    if where == "experiment":
        raw["experiment"] = name
    elif where == "method":
        raw["methods"][name] = {"method": "heun"}
    elif where == "external":
        raw["evaluation"]["external"] = {name: str(tmp_path / "mine.npz")}
    elif where == "protocol":
        raw["evaluation"]["protocols"] = {name: {"quantiser": "truncate"}}
    else:
        raw["ablation"] = {"base": "boot-heun", "axes": {"n" * (length - 4): [{"delta": 0.1}]}}  # "-0.1" follows
    if length == 200:
        parse_experiment(raw, look_at_files=False)
    else:
        with pytest.raises(UserError, match="up to 200 letters"):
            parse_experiment(raw)


@pytest.mark.parametrize("package", ["suite", "diffusion", "boot", "baselines", "evaluation", "benchmarks"])
def test_the_encoding_of_text_is_named(package):
    """Also where ruff cannot infer that something is a path."""
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = {keyword.arg for keyword in node.keywords}
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in TEXT_CALLS or "text" in named:
                    assert "encoding" in named, f"{file}:{node.lineno}"


def test_a_locale_without_utf_8(tmp_path):
    """Code, configuration and messages hold letters beyond ASCII; a path of such letters is refused."""
    environment = os.environ | ASCII | {"BOOT_DEVICE": "cpu"}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1", "--dry-run"]

    def plan(results):
        file = write(tmp_path, tiny(results=results))
        full = [*command, "--configfile", str(file)]
        return subprocess.run(full, capture_output=True, encoding="utf-8", cwd=tmp_path, env=environment)

    done = plan("results")
    assert done.returncode == 0, done.stdout + done.stderr
    done = plan("größe")
    assert done.returncode == 1
    assert "expected ASCII, since this locale's encoding is ascii" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_output_passes_where_the_encoding_has_no_sign_for_it():
    script = "import sys; from suite.launch import print_anything; print_anything(sys.stdout); print(chr(8805), 1)"
    environment = os.environ | ASCII | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert done.stdout == b"\\u2265 1\n", done.stderr


@pytest.mark.parametrize("prefix", ["", "boot_"])
def test_the_suite_is_a_module_of_another_workflow(prefix, tmp_path):
    raw = tiny(data={"kind": "cifar10"})
    raw["teacher"]["network"]["attention_resolutions"] = []
    write(tmp_path, raw)
    renamed = f" as {prefix}*" if prefix else ""
    (tmp_path / "Snakefile").write_text(
        f"""configfile: "experiment.yaml"


module boot:
    snakefile: "{ROOT / "Snakefile"}"
    config: config


use rule * from boot{renamed}


rule mine:
    default_target: True
    input: rules.{prefix}all.input


# Snakemake shows which rules are local only where a cluster's plugin is installed.
open("local", "w").write(" ".join(sorted(workflow._localrules)))


onstart:
    boot.onstart()
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, env=os.environ | warm())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rule {prefix}distil:" in done.stdout
    local = (tmp_path / "local").read_text(encoding="utf-8").split()
    assert {f"{prefix}fetch", f"{prefix}estimate"} <= {*local}


def test_a_results_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", results], capture_output=True).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        done = snakemake(tmp_path, "--dry-run", check=False)
    finally:
        subprocess.run(["umount", results], check=True)
    assert done.returncode == 1
    assert "error: results/tiny/jobs/report.json: cannot be written (Read-only file system)" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_shell_sees_no_part_of_a_path(tmp_path):
    """The data set's job, its archive fetched before: the one command that had an option unquoted."""
    from diffusion.data.kinds.cifar10 import Settings, downloads

    raw = tiny(results=f"r {NASTY}", data={"kind": "cifar10"})
    raw["teacher"]["network"]["attention_resolutions"] = []
    folder = tmp_path / f"r {NASTY}" / "downloads" / "cifar10"
    folder.mkdir(parents=True)
    (folder / downloads(Settings(kind="cifar10"))[0].name).write_bytes(b"no archive")
    done = snakemake(tmp_path, f"r {NASTY}/tiny/data", config=write(tmp_path, raw), check=False)
    log = tmp_path / f"r {NASTY}" / "tiny" / "logs" / "data.log"
    assert log.exists(), done.stdout + done.stderr
    assert "cifar-10-binary.tar.gz" in log.read_text(encoding="utf-8")
