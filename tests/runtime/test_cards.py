"""Jobs side by side on one machine take different GPUs. The GPUs are pretended: what is tested is who gets which."""

import os
import subprocess
import sys
from types import SimpleNamespace

import filelock
import pytest
import torch
from repository import ROOT

from diffusion.runtime import gpus as cards
from diffusion.runtime.device import default_device, wanted_device
from diffusion.runtime.errors import UserError
from suite.launch import visible

# A process that claims cards of a machine with three, says which, and keeps them until its input ends.
CLAIM = """
import sys, types, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 3
torch.cuda.get_device_properties = lambda card: types.SimpleNamespace(uuid=f"card-{card}")
from diffusion.runtime.gpus import claim_cards
print(claim_cards(int(sys.argv[1]), seconds_between=0.05), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def three_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(uuid=f"card-{card}"))
    monkeypatch.setattr(cards, "_lock_folder", lambda: tmp_path)
    monkeypatch.setattr(cards, "_claimed", {})
    for name in ("BOOT_DEVICE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    yield
    for lock in cards._claimed.values():
        lock.release(force=True)


def test_jobs_side_by_side_get_a_card_each_and_the_next_waits(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def start(count):
        return subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(count)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    running = [start(1) for _ in range(3)]
    try:
        got = [process.stdout.readline().strip() for process in running]
        assert sorted(got) == ["[0]", "[1]", "[2]"]
        running.append(start(1))
        assert "waiting until 1 of 3 GPUs" in running[3].stderr.readline()
        running[1].kill()  # whatever ends a job, its card is free
        assert running[3].stdout.readline().strip() == got[1]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_several_cards_are_claimed_together_or_not_at_all(three_cards, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    options = {"cwd": ROOT, "env": environment, "text": True}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", CLAIM, "2"], **options, **pipes) as other:
        assert other.stdout.readline().strip() == "[0, 1]"
        with subprocess.Popen([sys.executable, "-c", CLAIM, "2"], **options, **pipes) as waiting:
            assert "waiting until 2 of 3 GPUs" in waiting.stderr.readline()
            # It holds none meanwhile: the third is there for whoever needs one only.
            assert cards.claim_cards(1, seconds_between=0.05) == [2]
            other.stdin.close()
            assert waiting.stdout.readline().strip() == "[0, 1]"
            waiting.stdin.close()


def test_a_process_keeps_its_card_and_may_lock_it(three_cards, tmp_path, capsys):
    assert cards.claim_cards(1) == cards.claim_cards(1) == [0]
    for _ in range(2):
        with cards.gpu_lock(torch.device("cuda", 0)):
            pass
    assert "waiting" not in capsys.readouterr().err
    # Another program cannot.
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(cards._card_path(0)).acquire(timeout=0)
    with cards.gpu_lock(torch.device("cuda", 2)):
        pass
    assert "waiting for the GPU" in capsys.readouterr().err


def test_the_device_is_the_claimed_card_and_what_the_user_names_wins(three_cards, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "empty", lambda *_sizes, device: made.append(device))
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    assert wanted_device() == torch.device("cuda")
    assert made == []  # who only asks touches no card
    assert not cards._claimed
    assert default_device() == default_device() == torch.device("cuda", 0)
    assert set(made) == {torch.device("cuda", 0)}
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert default_device() == torch.device("cuda", 1)
    monkeypatch.setenv("BOOT_DEVICE", "cuda:2")
    assert default_device() == torch.device("cuda", 2)
    monkeypatch.setenv("BOOT_DEVICE", "cuda:3")
    with pytest.raises(UserError, match=r"BOOT_DEVICE: found 'cuda:3'.*it has 3 GPUs"):
        default_device()


def test_the_only_gpu_of_a_machine_is_claimed_too(three_cards, monkeypatch):
    """So that jobs which were started beside each other on it take turns."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", lambda *_sizes, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    assert default_device() == torch.device("cuda", 0)
    with pytest.raises(filelock.Timeout):  # what another job would ask for
        filelock.FileLock(cards._card_path(0)).acquire(timeout=0)


def test_more_processes_than_cards_are_refused(three_cards):
    with pytest.raises(UserError, match="BOOT_PROCESSES: found 4, expected at most the 3 GPUs"):
        cards.claim_cards(4)


def test_cards_of_the_starter_are_not_locked_again(three_cards, monkeypatch):
    monkeypatch.setenv(cards.CLAIMED_BY_STARTER, "1")
    with filelock.FileLock(cards._card_path(1)), cards.gpu_lock(torch.device("cuda", 1)):
        pass


@pytest.mark.parametrize(("own", "expected"), [(None, "0,2"), ("GPU-a,GPU-b,GPU-c", "GPU-a,GPU-c"), ("3,5,7", "3,7")])
def test_processes_see_the_cards_that_were_claimed_for_them(monkeypatch, own, expected):
    if own is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    assert visible([0, 2]) == expected
