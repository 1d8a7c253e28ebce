"""What every test gets: no display, no network, one thread, and an end where there is one."""

import gc
import os
import time

import pytest

# Both are read when matplotlib and huggingface_hub are first imported.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
# Read when torch is: test processes run side by side, and threads of several on the same cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers that compile beside a test have to import torch first.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

_SECONDS = os.environ.get("BOOT_TEST_SECONDS")
_BEGAN = time.monotonic()


def pytest_runtest_setup() -> None:
    """Lists the tests that a limit for all of them did not suffice for (benchmarks/gpu-check.sh)."""
    if _SECONDS and time.monotonic() - _BEGAN > float(_SECONDS):
        pytest.skip(f"not run: the {_SECONDS} s are over")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the others fill what is left beside the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What has been imported stays: who looks for garbage, as for a batch that fits, need not look there."""
    gc.collect()
    gc.freeze()
