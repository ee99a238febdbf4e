"""bench/gpu.sh at sizes that measure nothing and without a GPU, so that it cannot rot before it meets one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
ROWS = {"promises", "product", "norm", "fused", "mnist", "step"}


def run(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([ROOT / "bench" / "gpu.sh", *arguments], env=environment, capture_output=True, text=True)


def test_every_row_runs_and_is_written_down(tmp_path):
    done = run(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "| measure | passed |" in (tmp_path / "steps.md").read_text()
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {"commit", "torch", "triton", "device", "backends"} <= set(results["machine"])
    assert set(results["rows"]) == ROWS
    table = (tmp_path / "gpu.md").read_text()
    for name, row in results["rows"].items():
        measured = [record for record in row["records"] if "declined" not in record]
        assert row["state"] == "" and measured, name
        assert all(record["ms"] > 0 for record in measured if "ms" in record)
        assert f"## {name}" in table
    timed = {record["backend"] for record in results["rows"]["norm"]["records"] if "backend" in record}
    assert {"torch", "triton"} <= timed
    assert "measure promises" not in (tmp_path / "log.txt").read_text()  # the steps of a machine with a GPU


def test_what_time_does_not_allow_is_said(tmp_path):
    done = run(tmp_path, "--dry-run", LIMIT="2")
    assert done.returncode == 1
    assert "| measure | not run: time is up | 0 |" in (tmp_path / "steps.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1 and "finds no GPU here; bench/gpu.sh --dry-run runs anywhere" in done.stderr


def test_unknown_arguments_are_refused(tmp_path):
    assert run(tmp_path, "--quick").returncode == 2


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("EIDETIC_BENCH_SMOKE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield importlib.import_module("gpu")
    sys.modules.pop("gpu", None)


def test_a_row_that_fails_keeps_what_it_measured(gpu, monkeypatch, tmp_path, capsys):
    def fails():
        yield {"backend": "torch", "ms": 1.0}
        raise RuntimeError("the second record fails")

    monkeypatch.setitem(gpu.ROWS, "product", fails)
    results = {"machine": {}, "rows": {}}
    assert gpu.run_row("product", results, tmp_path / "gpu") is False
    kept = json.loads((tmp_path / "gpu.json").read_text())["rows"]["product"]
    assert kept["records"] == [{"backend": "torch", "ms": 1.0}]
    assert kept["state"] == "FAILED: RuntimeError: the second record fails"
    assert "FAILED" in (tmp_path / "gpu.md").read_text()


def test_a_kernel_that_computes_something_else_is_not_timed(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "twins", lambda op: ["torch", "cpu"])
    answers = iter([torch.ones(3), torch.ones(3), torch.full((3,), 1.1)])
    monkeypatch.setattr(gpu.backends, "using", lambda name: gpu.precision("float32"))
    with pytest.raises(AssertionError, match="with cpu differs from torch by 0.1"):
        gpu.runnable("staircase_linear", lambda: next(answers))
