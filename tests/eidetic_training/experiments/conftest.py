"""For whole runs: the data that they learn."""

import pytest
import torch
from tiny_runs import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of a small data set; not to be changed."""
    torch.set_num_threads(1)
    return write_data(tmp_path_factory.mktemp("images"))
