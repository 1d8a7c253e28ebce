"""Which process has which GPU of a machine."""

import os
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import filelock
import torch

from diffusion.runtime.errors import UserError

# Set for processes whose starter has claimed their cards (suite/launch.py).
CLAIMED_BY_STARTER = "BOOT_CARDS_ARE_CLAIMED"

_PREFIX = f"boot-reproduction-{os.getuid()}"
# What this process has claimed. A lock that nothing refers to would be released.
_claimed: dict[int, filelock.BaseFileLock] = {}


def number_of_cards() -> int:
    """How many GPUs this process sees (``CUDA_VISIBLE_DEVICES`` may hide some)."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def claim_cards(count: int, seconds_between: float = 0.2) -> list[int]:
    """Numbers of GPUs that belong to this process until it ends, however it ends; it waits until there are enough.

    Snakemake counts cards (its resource ``gpu``) and does not say which one a job has; this does. All are taken or
    none, so that processes that want several never wait for one another. Who asks again gets the same.

    Args:
        seconds_between: two looks for free cards.

    Raises:
        UserError: this machine has fewer.
    """
    if _claimed:
        return list(_claimed)
    cards = number_of_cards()
    if count > cards:
        raise UserError(f"BOOT_PROCESSES: found {count}, expected at most the {cards} GPUs of this machine.")
    waiting = False
    while True:
        taken: dict[int, filelock.BaseFileLock] = {}
        # One process at a time tries, or two could hold half of what each needs.
        with filelock.FileLock(_lock_folder() / f"{_PREFIX}-gpus.lock"):
            for card in range(cards):
                lock = _card_lock(card)
                try:
                    lock.acquire(timeout=0)
                except filelock.Timeout:
                    continue
                taken[card] = lock
                if len(taken) == count:
                    _claimed.update(taken)
                    return list(_claimed)
            for lock in taken.values():
                lock.release()
        if not waiting:
            print(f"waiting until {count} of {cards} GPUs are free (locks in {_lock_folder()})", file=sys.stderr)
            waiting = True
        time.sleep(seconds_between)


def gpu_lock(device: torch.device) -> AbstractContextManager[object]:
    """A lock on one card, to be entered by jobs whose wall-clock is reported; it waits for the job that holds it.

    A card that was claimed for this process is locked already: this is for one that the user has named
    (``BOOT_DEVICE=cuda:1``).
    """
    if os.environ.get(CLAIMED_BY_STARTER):
        return nullcontext()
    card = torch.cuda.current_device() if device.index is None else device.index
    if card not in _claimed:
        print(f"waiting for the GPU ({_card_path(card)})", file=sys.stderr)
    return _card_lock(card)


def _card_lock(card: int) -> filelock.BaseFileLock:
    # One object a process, which it may enter again.
    return filelock.FileLock(_card_path(card), is_singleton=True)


def _card_path(card: int) -> Path:
    # Processes number cards as CUDA_VISIBLE_DEVICES says; a card's own name is the same for all.
    return _lock_folder() / f"{_PREFIX}-gpu-{torch.cuda.get_device_properties(card).uuid}.lock"


def _lock_folder() -> Path:
    return Path(tempfile.gettempdir())
