"""For all tests: one thread (tiny tensors, and bits that do not depend on the machine's cores), fixed seeds, and
the helpers in `support/` importable by name."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture(autouse=True)
def reproducible():
    torch.set_num_threads(1)
    torch.manual_seed(0)
