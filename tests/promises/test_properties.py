"""P1 to P4 and P6, over random small networks of every kind and random lives of tasks.

    EIDETIC_SOAK_STEPS=100000 EIDETIC_SOAK_SEED=0 pytest tests/promises/test_properties.py

runs a hundred chunks of a thousand events, with the seeds 0 to 99, and goes on where such a run was killed
(``make soak``). One chunk is run without the variables. A life that fails is printed, event by event; its chunk's
seed is in the test's name.
"""

from collections import Counter

import pytest
import torch
from any_life import Life
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from soaking import passed, recorded, seeds

CHUNK = 1000
LIFE = 22  # events in a life


@pytest.mark.filterwarnings(
    "ignore:no layer has a free unit",
    "ignore:optimizer state '",
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # from inside Dynamo
)
@pytest.mark.parametrize("chunk", seeds(CHUNK))
def test_any_life_of_tasks(chunk):
    if passed(chunk):
        pytest.skip("passed before")

    class Lives(Life):
        events = Counter()

    options = settings(
        max_examples=-(-CHUNK // LIFE),
        stateful_step_count=LIFE + 1,  # with its beginning
        deadline=None,
        database=None,
        # A failing life is printed as found: shrinking one can take longer than the whole suite.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # What a chunk that failed left suspended may switch gradients off when it is collected.
    with torch.enable_grad(), recorded(chunk, Lives.events):
        run_state_machine_as_test(seed(chunk)(Lives), settings=options)
