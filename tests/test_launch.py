"""The process beside every job: why a job was killed, and what ends with its workflow."""

import os
import signal
import subprocess
import sys
import time

import pytest

from suite.launch import WORKFLOW

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
    return int(open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()[0])


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
    while note.read_text() == "begun" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert note.read_text() == f"stored after {int(signal.SIGTERM)}"


def test_an_exit_status_is_handed_on(tmp_path):
    command = [sys.executable, "-m", "suite.launch", "1", "suite.cli", "no-such-command"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 2
