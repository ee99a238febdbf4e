"""Killed at any file operation, the same command recovers: what is left behind is what an undisturbed one leaves.

`make test` tries a few operations of each command, `make soak` all of a run's, and more than a thousand kills in all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "support" / "kills.py"
SOAK = bool(os.environ.get("EIDETIC_SOAK"))

# How far the operations that are killed at lie apart, and how many chains of several kills follow.
SAMPLES = {"train": (90, 1), "compare": (20, 0), "sweep": (250, 0)}
ALL = {"train": (1, 100), "compare": (1, 20), "sweep": (3, 30)}


@pytest.mark.parametrize("work", SAMPLES)
def test_a_kill_at_any_file_operation_is_recovered_from(work, tmp_path, record_property):
    if work == "sweep":
        pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")
    every, chains = (ALL if SOAK else SAMPLES)[work]
    seed = int(os.environ.get("EIDETIC_SOAK_SEED", 0))
    command = [sys.executable, str(KILLS), work, str(tmp_path), "--every", str(every), "--chains", str(chains)]
    done = subprocess.run(
        [*command, "--seed", str(seed)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\n{work}: {found['kills']} kills at {found['points']} operations, seed {seed}")
    assert found["wrong"] == [], f"seed {seed}"
    assert found["kills"] >= found["points"] // every
