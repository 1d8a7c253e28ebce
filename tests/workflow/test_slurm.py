"""profiles/slurm on a real Slurm: a private one of a single node, with its daemons, ports and files of its own.

It needs Debian's slurm-wlm (22.05 was tried) and `pip install -e .[slurm]`; elsewhere these tests say what is missing.
"""

import getpass
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml
from repository import ROOT, tiny_experiment

from diffusion.runtime.files import sha256_file

PROFILE = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
# Enough that nothing is over before it has been interrupted twice.
STEPS = 1000

MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
    MISSING.append("snakemake-executor-plugin-slurm")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# Processors, memory and cards are what this says, whatever the machine has. Without munge nobody is authenticated:
# everything listens on this machine only, for the length of the test.
CONFIGURATION = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000 Gres=gpu:2
# Memory is watched by the second: a job that takes more than it asked for is ended.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
# Jobs of `urgent` take the place of those of `work`, which go back into the queue, for as long as their credentials
# are good at least.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AuthInfo=cred_expire=5
KillWait=20
SchedulerParameters=sched_interval=2,bf_interval=2
PartitionName=work Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
# No accounting: jobs that have ended are looked up in the queue.
MinJobAge=3600
"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Slurm:
    """The running cluster: ``environment`` leads every command to it."""

    def __init__(self, folder):
        found = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}:{os.environ['PATH']}"}
        self.environment = os.environ | found

    def __call__(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, rule):
        """(number, state) of the jobs of a rule, also of those that have ended; the oldest first."""
        rows = [line.split("|") for line in self("squeue", "--states=all", "--noheader", "--format=%i|%T|%k").split()]
        name = f"rule_{rule}"
        return sorted(
            (int(number), state) for number, state, comment in rows if re.match(rf"{name}(_wildcards|$)", comment)
        )


def wait_for(what, seconds, condition, also=lambda: True):
    """The first true value of ``condition``; fails at once where ``also`` no longer holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        assert also(), f"ended before: {what}"
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s for: {what}")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, host=host, user=getpass.getuser(), controller_port=free_port(), node_port=free_port()
        )
    )
    # A job's own steps are started without this variable: the plugin clears what begins with SLURM_, so that srun would
    # look for the cluster in /etc/slurm.
    (folder / "srun").write_text(f'#!/bin/sh\nexec env SLURM_CONF="{folder}/slurm.conf" {shutil.which("srun")} "$@"\n')
    (folder / "srun").chmod(0o755)
    # Cards are device files, and any will do for counting.
    (folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    cluster = Slurm(folder)
    daemons = [
        subprocess.Popen(command, env=cluster.environment, stdout=subprocess.DEVNULL, stderr=(folder / "err").open("a"))
        for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host])
    ]

    def is_idle():
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True, text=True
        )
        return "idle" in done.stdout

    def log():
        files = [folder / name for name in ("err", "controller.log", "node.log")]
        return "\n".join(file.read_text()[-2000:] for file in files if file.exists())

    try:
        deadline = time.monotonic() + 60
        while not is_idle():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                pytest.skip(f"Slurm is installed, but does not start here: {log()}")
            time.sleep(0.5)
        yield cluster
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=cluster.environment, check=False)
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def test_a_student_trains_on_slurm_through_time_memory_and_preemption(slurm, tmp_path):
    """The profile as it is, with this cluster's size, and too little memory for one job's first attempt."""
    profile = yaml.safe_load(PROFILE.read_text())
    profile |= {"cores": 2, "slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1}
    profile["set-resources"]["data"] = {"mem_mb": "20 if attempt == 1 else 4000"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile))
    raw = tiny_experiment()
    raw["methods"]["boot-heun"]["training"]["steps"] = STEPS
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    student = "results/tiny/students/boot-heun/train-0"
    environment = slurm.environment | {"BOOT_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}

    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), student]
    options = ["--workflow-profile", str(tmp_path / "config.yaml"), "--configfile", "tiny.yaml"]
    with (tmp_path / "snakemake.log").open("w") as output:
        running = subprocess.Popen(
            [*command, *options], cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        log = tmp_path / "results/tiny/logs/distil/boot-heun/train-0.log"

        def is_alive():
            return running.poll() is None

        def trains(number):
            """The newest job of the rule, if it is in its loop and one of so many."""
            jobs = slurm.jobs("distil")
            has_begun = log.exists() and f"/{STEPS} " in log.read_text()
            return len(jobs) == number and jobs[-1][1] == "RUNNING" and has_begun and jobs[-1][0]

        job = wait_for("the student's training", 400, lambda: trains(1), is_alive)
        asked = slurm("scontrol", "show", "job", str(job))
        assert re.search(r"TresPerJob=\S*gpu:1", asked)
        assert "TimeLimit=1-00:00:00" in asked
        assert "mem=16000M" in asked

        # A job that needs all processors, of more weight: the trainer leaves with its state, and comes back.
        slurm("sbatch", "--partition=urgent", "--cpus-per-task=4", "--mem=100", "--wrap=sleep 1", "--output=/dev/null")
        wait_for("the pre-emption", 60, lambda: slurm.jobs("distil")[-1][1] != "RUNNING", is_alive)
        first = wait_for("what the trainer says", 60, lambda: re.findall(r"stored at step (\d+)", log.read_text()))
        wait_for("the training after it", 120, lambda: trains(1) and "resuming" in log.read_text(), is_alive)
        again = re.findall(r"resuming stage boot at step (\d+)", log.read_text())
        assert again == first
        assert slurm.jobs("distil")[0][0] == job, "a pre-empted job keeps its number"

        # What Slurm does at the end of the time: SIGTERM to all processes, and SIGKILL some seconds later.
        slurm("scancel", str(job))
        wait_for("the next attempt", 200, lambda: trains(2), is_alive)
        assert running.wait(600) == 0
    finally:
        running.terminate()
        running.wait(60)
        told = (tmp_path / "snakemake.log").read_text()
    assert (tmp_path / student).is_dir(), told[-3000:]
    assert [state for _, state in slurm.jobs("distil")] == ["CANCELLED", "COMPLETED"], told
    resumed = int(re.findall(r"resuming stage boot at step (\d+) of", log.read_text())[-1])
    assert int(first[0]) < resumed < STEPS
    # Too little memory at the first attempt, enough at the second.
    (_, failed), (_, state) = slurm.jobs("data")
    assert failed in ("OUT_OF_MEMORY", "FAILED")  # with control groups, and without
    assert state == "COMPLETED", told
    said = [file.read_text() for file in (tmp_path / ".snakemake/slurm_logs/rule_data").glob("*.log")]
    assert any("exceeded memory limit" in text for text in said), said

    settings = json.loads((tmp_path / student / "provenance.json").read_text())["settings"]
    job = {"stage": "distillation.Distil", "variant": "boot-heun", "train_seed": 0, "settings": settings}
    job |= {"teacher": "results/tiny/teacher", "state": "whole/state", "output": "whole/out"}
    subprocess.run(
        [sys.executable, "-m", "suite", json.dumps(job)],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    weights = "nfe-1/unet/diffusion_pytorch_model.safetensors"
    assert sha256_file(tmp_path / student / weights) == sha256_file(tmp_path / "whole/out" / weights)
