"""For all tests: one thread (tiny tensors, and bits that do not depend on the machine's cores), fixed seeds, the
helpers in `support/` importable by name, and Triton in its interpreter where there is no GPU (it must be told before
it is imported)."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# Folders of tests lie in memory where there is room: removing a small file takes a millisecond on some disks.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**32:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# The longest files first, so that no process works on one of them alone at the end.
LONGEST = ("test_build", "test_bench", "test_resume", "test_properties", "test_options", "test_experiment")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def reproducible():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Memory that nobody wrote holds NaN, so an output that is not fully written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
