"""The process beside every job: why a job was killed, and what ends with its workflow."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from suite.launch import WORKFLOW, threads_environment

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

JOB = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1]).write_text(f"stored after {number}")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1]).write_text("begun")
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts ``python -m suite.launch 1 job <note>``; the note is what the job wrote last."""
    (tmp_path / "job.py").write_text(JOB)
    note, started = tmp_path / "note", []

    def run(**environment):
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "suite.launch", "1", "job", str(note)],
            env=os.environ | {"PYTHONPATH": path} | environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        deadline = time.monotonic() + 60
        while not note.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return process, note

    yield run
    for process in started:
        process.kill()


def child_of(process):
    return int(open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="utf-8").read().split()[0])


def test_a_job_that_was_killed_says_so(start):
    process, _ = start()
    os.kill(child_of(process), signal.SIGKILL)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the job was ended by SIGKILL after" in log
    assert "memory" in log
    assert "The next run goes on" in log


def test_sigterm_is_passed_on_and_the_job_stores_what_it_has(start):
    process, note = start()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert note.read_text() == f"stored after {int(signal.SIGTERM)}"


def test_a_job_ends_when_its_workflow_has_gone(start):
    workflow = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process, note = start(**{WORKFLOW: str(workflow.pid)})
    time.sleep(1.5)
    assert process.poll() is None
    workflow.kill()
    workflow.wait()
    _, log = process.communicate(timeout=30)
    assert note.read_text() == f"stored after {int(signal.SIGTERM)}"
    assert f"process {workflow.pid}) has gone" in log


def test_a_job_ends_with_the_process_beside_it(start):
    process, note = start()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while note.read_text() in ("begun", "") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert note.read_text() == f"stored after {int(signal.SIGTERM)}"


def test_an_exit_status_is_handed_on(tmp_path):
    command = [sys.executable, "-m", "suite.launch", "1", "suite.cli", "no-such-command"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 2


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torchs_threads_spin_for_a_bounded_time(processes):
    """By what torch's OpenMP itself says when it is loaded in the job, not by what the job was given."""
    says = ["timeit", "-n1", "-r1", "-s", "import os, torch; print(os.environ['GOMP_SPINCOUNT'])"]
    plain = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-m", "suite.launch", str(processes), *says]
    environment = plain | {"OMP_DISPLAY_ENV": "VERBOSE", "BOOT_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10000\n") == processes
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert found.count("10000") >= processes, done.stderr
    # Without it: the milliseconds that are bounded.
    bare = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert "GOMP_SPINCOUNT = '300000'" in bare.stderr


@pytest.mark.parametrize("name", WAITING)
def test_the_users_own_way_of_waiting_stands(name, monkeypatch):
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    assert threads_environment() == {"GOMP_SPINCOUNT": "10000"}
    monkeypatch.setenv(name, "ACTIVE" if name == "OMP_WAIT_POLICY" else "7")
    assert threads_environment() == {}
