"""Runs modules for tests/warm/sitecustomize.py, each in a process forked from this one, which has imported what they
import: ``python server.py SOCKET``, until its standard input ends."""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys

PACKAGES = ("suite", "diffusion", "boot", "baselines", "evaluation")
FURTHER = (
    "snakemake.cli", "snakemake.report", "torch_fidelity", "cleanfid.fid", "sklearn.neighbors", "diffusers",
    "efficientnet_lite_pytorch", "matplotlib.pyplot", "pandas", "jinja2", "scipy.linalg", "torchvision",
)  # fmt: skip


def received(connection, count):
    """So many bytes."""
    parts = b""
    while len(parts) < count:
        parts += connection.recv(count - len(parts))
    return parts


def look_after(connection):
    """Forks for one request. Returns, in the process that shall run it, what to run."""
    size, files, *_ = socket.recv_fds(connection, 4, 3)
    command, folder, environment = json.loads(received(connection, int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = (open(number, "rw"[number > 0]) for number in range(3))  # noqa: SIM115
        sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return command
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([connection, ended], [], [])[0]):
        # Signals are passed on; the end of who asked is the end of this.
        os.kill(child, (connection.recv(1) or bytes([signal.SIGKILL]))[0])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if connection not in ready:
        connection.send(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def serve(path):
    """Accepts requests. Returns, in a process of its own for each, what to run."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([server, sys.stdin], [], [], 1)
        if sys.stdin in ready:
            sys.exit()
        if server in ready:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                return look_after(connection)
            connection.close()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in FURTHER:
        importlib.import_module(name)
    gc.freeze()
    sys.argv = serve(sys.argv[1])
    sys.path[0] = os.getcwd()
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
