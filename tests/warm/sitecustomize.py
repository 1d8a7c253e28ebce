"""Imported by every interpreter with this folder in PYTHONPATH: one that shall run a module of ``WARM`` has it run by
the process that listens at ``SOCKET`` (tests/warm/server.py), and ends as that ended."""

import os
import sys

SOCKET, WARM = os.environ.get("BOOT_TEST_WARM"), ("snakemake", "suite", "suite.cli")

command = sys.orig_argv[1 + ("-u" in sys.orig_argv[1:2]) :]

if SOCKET and command[:1] == ["-m"] and command[1] in WARM:
    import json
    import signal
    import socket

    connection = socket.socket(socket.AF_UNIX)
    connection.connect(SOCKET)
    request = json.dumps([command[1:], os.getcwd(), dict(os.environ)], ensure_ascii=True).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(request)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: connection.send(bytes([number])))
    status = connection.recv(1)[0]  # as a shell has it
    if status > 128:
        signal.signal(status - 128, signal.SIG_DFL)
        os.kill(os.getpid(), status - 128)
    os._exit(status)
