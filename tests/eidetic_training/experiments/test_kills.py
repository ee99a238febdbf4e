"""Killed at any file operation, the same command recovers: what is left behind is what an undisturbed one leaves.

`make test` tries a few operations of each command, `make soak` all of a run's, and more than a thousand kills in all.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "support" / "kills.py"
SOAK = bool(os.environ.get("EIDETIC_SOAK"))

# A work, how far apart the operations are at which it is killed, how many chains of several kills follow, and how far
# apart the operations are at which the disk is full.
SAMPLE = [["train:150:0:300", "compare:30:0:0"]]
ALL = [["train:1:100:3"], ["compare:1:20:1"], ["sweep:3:30:10"]]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork processes")
@pytest.mark.parametrize("works", ALL if SOAK else SAMPLE, ids=" ".join)
def test_a_kill_at_any_file_operation_is_recovered_from(works, tmp_path):
    if importlib.util.find_spec("optuna") is None:  # the extra 'sweep'
        works = [work for work in works if not work.startswith("sweep")] or pytest.skip("Optuna is not installed")
    seed = int(os.environ.get("EIDETIC_SOAK_SEED", 0))
    done = subprocess.run(
        [sys.executable, str(KILLS), str(tmp_path), "--seed", str(seed), *works],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for work, found in json.loads(done.stdout).items():
        counts = ", ".join(f"{found[name]} {name}" for name in ("points", "kills", "full"))
        print(f"\n{work}, seed {seed}: {counts}")
        assert found["wrong"] == [], f"{work}, seed {seed}"
        assert found["kills"] >= 1
