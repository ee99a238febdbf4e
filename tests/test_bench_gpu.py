"""bench/gpu.sh runs without a GPU, at sizes that measure nothing. No test depends on how fast the machine is."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
ROWS = {"promises", "product", "norm", "fused", "conv", "mnist", "step", "graphs"}


def run(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([ROOT / "bench" / "gpu.sh", *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.slow
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


PRETENDED = """#!/bin/bash
echo "$@" "($CUBLAS_WORKSPACE_CONFIG)" >>{calls}
case "$*" in
  *get_device_capability*) echo 90 ;;
  *xdist*) exit 1 ;;
  *pytest*promises*) exec {python} -m pytest -q -p no:cacheprovider -c /dev/null {tests} ;;
esac
"""
SLOW = """
import pathlib, time
def test_right(): pass
def test_wrong(): assert 6 * 9 == 42
def test_slow():
    pathlib.Path({begun!r}).touch()
    time.sleep(1000)
"""
# Stands for coreutils' timeout: interrupts a command in its slow test, however long it took to get there, and then lets
# the time for all steps run out.
TIMEOUT = """#!{python}
import pathlib, signal, subprocess, sys, time
assert sys.argv[1] == "--signal=INT"
process = subprocess.Popen(sys.argv[4:])
while process.poll() is None and not pathlib.Path({begun!r}).exists():
    time.sleep(0.05)
if process.poll() is None:
    process.send_signal(signal.SIGINT)
    process.wait()
    time.sleep({limit})
    sys.exit(124)
sys.exit(process.returncode)
"""


@pytest.mark.slow
def test_what_is_right_comes_first_and_tests_cut_short_say_how_far_they_came(tmp_path):
    """With a Python that pretends to have a GPU, and tests that are interrupted."""
    python, calls, tests = tmp_path / "python", tmp_path / "calls", tmp_path / "test_slow.py"
    timeout, begun, limit = tmp_path / "bin" / "timeout", str(tmp_path / "begun"), 12
    timeout.parent.mkdir()
    timeout.write_text(TIMEOUT.format(python=sys.executable, begun=begun, limit=limit))
    python.write_text(PRETENDED.format(calls=calls, python=sys.executable, tests=tests))
    for program in (timeout, python):
        program.chmod(0o755)
    tests.write_text(SLOW.format(begun=begun))

    path = f"{timeout.parent}{os.pathsep}{os.environ['PATH']}"
    done = run(tmp_path, PYTHON=str(python), LIMIT=str(limit), PATH=path)
    assert done.returncode == 1, done.stderr

    _, _, build, backends, promises, kernels, *rest = (tmp_path / "steps.md").read_text().splitlines()
    assert build.startswith("| build for sm_90 | passed |") and backends.startswith("| backends, each")
    assert re.match(r"\| promises' tests on the device \| cut short after \d+ s: 1 failed, 1 passed \|", promises)
    assert kernels == "| kernel tests on the device | not run: time is up | 0 |"
    assert all(re.match(r"\| (measure|compute-sanitizer|promises)", row) for row in rest) and len(rest) >= 8
    assert "assert (6 * 9) == 42" in (tmp_path / "log.txt").read_text()

    ran = [line for line in calls.read_text().splitlines() if not line.startswith("-c")]
    assert [line.split()[0] for line in ran] == ["setup.py", "-m", "-m"]
    assert all(line.endswith("(:4096:8)") for line in ran)


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
    monkeypatch.setattr(gpu, "implementations", lambda op: ["torch", "cpu"])
    answers = iter([torch.ones(3), torch.ones(3), torch.full((3,), 1.1)])
    monkeypatch.setattr(gpu.backends, "using", lambda name: gpu.precision("float32"))
    with pytest.raises(AssertionError, match="with cpu differs from torch by 0.1"):
        gpu.runnable("staircase_linear", lambda: next(answers))
