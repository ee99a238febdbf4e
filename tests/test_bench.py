"""Every benchmark runs, at sizes that measure nothing. No test here depends on how fast the machine is."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eidetic_kernels as ek

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(path.stem for path in (ROOT / "bench").glob("bench_*.py"))
SMOKE = {"EIDETIC_BENCH_SMOKE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **SMOKE}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", BENCHMARKS)
def test_every_benchmark_runs(script):
    options = ["--benchmark-disable", "-p", "no:cacheprovider", "-k", "not resnet"]
    out = run("-m", "pytest", "-q", f"bench/{script}.py", *options)
    assert " passed" in out and "failed" not in out


@pytest.mark.slow
@pytest.mark.parametrize("script", ["training_step", "growth"])
def test_the_scripts_write_their_tables(script, tmp_path):
    out = tmp_path / script
    only = ["--only", "mlp", "resnet18"] if script == "training_step" else []
    run(f"bench/{script}.py", "--rounds", "1", "--out", str(out), *only)
    results = json.loads(out.with_suffix(".json").read_text())
    rows = results["rows"] if script == "training_step" else results["tasks"] + results["width"]
    assert all(ms > 0 for row in rows for ms in row["ms"].values())
    assert out.with_suffix(".md").read_text().count("\n| ") > len(rows)


@pytest.mark.slow
def test_peers_under_torch_compile_are_timed():
    """One row in a process of its own, since torch.compile keeps what it made."""
    code = (
        "import sys; sys.path.insert(0, 'bench'); import networks, training_step; "
        "row = training_step.measure(networks.SUBJECTS['mlp'], (50, 50), 1, None, True, (1e9, 1e9)); "
        "results = dict(command='', machine='', product_rate=1, copy_rate=1, rows=[row], recall=[]); "
        "print(training_step.table(results))"
    )
    (row,) = [line for line in run("-c", code).splitlines() if line.startswith("| mlp")]
    compiled = row.split("|")[10].split("/")
    assert len(compiled) == 2 and all(float(ratio) > 0 for ratio in compiled)


@pytest.mark.slow
def test_whole_runs_write_their_tables_and_are_not_run_twice(tmp_path):
    """End to end (without the published implementation, which is no dependency) and the searches."""
    run("bench/end_to_end.py", "--out", str(tmp_path / "end"))
    rows = [line for line in (tmp_path / "end.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["", "even shares", "backoff", "linear"]
    again = run("bench/end_to_end.py", "--out", str(tmp_path / "end"))
    assert (tmp_path / "end.md").read_text() in again
    runs = ["--runs", str(tmp_path / "runs"), "--only", "demo", "--seeds", "1"]
    run("bench/searches.py", *runs, "--out", str(tmp_path / "s.md"))
    rows = [line for line in (tmp_path / "s.md").read_text().splitlines() if line.startswith("| demo")]
    assert [row.split("|")[2].strip() for row in rows] == ["linear", "backoff"]
    assert all(row.split("|")[6].strip() == "0.00%" for row in rows)


@pytest.mark.slow
def test_a_sweep_takes_models_through_all_steps_and_none_twice(tmp_path):
    command = ["bench/sweep_models.py", "--family", "topologies", "--out", str(tmp_path / "models.jsonl")]
    command += ["--page", str(tmp_path / "models.md")]
    out = run(*command, "--only", "residual", "plain convolutions")
    assert "topologies residual: passes" in out and "2 convert, 2 with the same bits" in out
    (line, _) = map(json.loads, (tmp_path / "models.jsonl").read_text().splitlines())
    assert set(line["steps"].values()) == {"ok"} and line["groups"] == 3
    assert "| residual | 3 x 16 x 16 |" in (tmp_path / "models.md").read_text()
    assert "residual: passes" not in run(*command, "--page-only")


def test_topologies_are_plain_and_a_sweep_stops_what_takes_too_much(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    families, processes = importlib.import_module("sweeps.families"), importlib.import_module("sweeps.processes")
    topologies = families.FAMILIES["topologies"]
    for name in topologies.names():
        subject = topologies.build(name)
        assert subject.module.train()(subject.batch(3)).shape == (3, 10), name
        assert subject.other is None or subject.module.eval()(subject.batch(2, subject.other)).shape == (2, 10), name
    for limits, stopped in (((0.2, 1e12), "timeout"), ((60, 1e6), "memory")):
        line = processes.examined("topologies", "residual", processes.Limits(*limits))
        assert line["steps"] == {"build": stopped}


def test_what_was_found_of_a_model_is_the_worst_of_its_steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    results = importlib.import_module("sweeps.results")
    steps = {"convert": "ok", "bits": "rounding", "size": "refused", "extract": "ok"}
    line = {"family": "f", "model": "m", "steps": steps, "why": {}}
    assert results.outcome(line) == "rounding"
    assert results.outcome(line | {"steps": steps | {"extract": "refused"}}) == "refused"
    assert results.outcome(line | {"steps": steps | {"extract": "refused", "step": "WRONG"}}) == "WRONG"
    one, other = (
        f"node 'conv_{n}' [call_function conv2d.default] (File \"a.py\", line {n}, in f x(y)): it mixes 'a.{n}' {n}."
        for n in (3, 41)
    )
    assert results.kind_of(one) == results.kind_of(other) == "[conv2d.default] it mixes '...' N"


def test_the_peak_of_a_step_is_the_most_it_holds_at_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import torch
    from memory import peak_bytes

    def step():
        a = torch.ones(1000)
        b = torch.cat([a, a])  # 3,000 numbers
        del a
        c = b + 1  # 4,000
        del b, c
        torch.ones(2500)

    assert 16_000 <= peak_bytes(step) < 16_200


def test_what_a_step_needs_is_what_the_dense_network_needs_while_nothing_is_frozen(monkeypatch):
    """784-2000-2000-10: forward, the weights' gradients, and the second layer's and head's input gradients."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    limit, networks = importlib.import_module("limit"), importlib.import_module("networks")
    subject = networks.Subject("mlp", (784,), 8, 2000)
    weights = 784 * 2000 + 2000 * 2000 + 2000 * 10
    whole = limit.work(networks.eidetic(subject, 0, 100), subject.data()[0])
    assert whole.forward == 8 * weights
    assert whole.backward == 8 * (weights + 2000 * 2000 + 2000 * 10)
    # Half frozen in five tasks, a tenth live, as the design counts it: 15 % of a dense step's multiply-adds.
    part = limit.work(networks.eidetic(subject, 50, 10), subject.data()[0])
    assert (part.forward + part.backward) / (whole.forward + whole.backward) == pytest.approx(0.15, abs=0.01)


class Together(ek.EideticNetwork):
    def __init__(self):
        super().__init__()
        self.a = ek.EideticLinear(12, 10, norm=ek.EideticBatchNorm1d(10))
        self.b = ek.EideticLinear(10, 20, norm=ek.EideticBatchNorm1d(20))

    def forward(self, x):
        return self.b(self.a(x))


class Apart(ek.EideticNetwork):
    def __init__(self):
        super().__init__()
        self.a, self.a_norm = ek.EideticLinear(12, 10), ek.EideticBatchNorm1d(10)
        self.b, self.b_norm = ek.EideticLinear(10, 20), ek.EideticBatchNorm1d(20)

    def forward(self, x):
        return self.b_norm(self.b(self.a_norm(self.a(x))))


def test_a_norm_that_is_part_of_a_layer_needs_what_a_norm_of_its_own_does(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    limit, found = importlib.import_module("limit"), []
    for net in (Together(), Apart()):
        net.prepare_for_task(0, 3, max_units=0.5)
        net.finish_task()
        net.prepare_for_task(1, 3)
        found.append(limit.work(net, torch.randn(6, 12)))
    assert found[0] == found[1]


@pytest.mark.parametrize("model, shape", [("mlp", (12,)), ("resnet18", (3, 8, 8))])
def test_dense_computes_what_the_eidetic_network_does_and_masks_leave_what_it_holds(model, shape, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    networks, peers = importlib.import_module("networks"), importlib.import_module("peers")
    subject = networks.Subject(model, shape, 6, 10)
    x = subject.data()[0]
    plain, net = networks.dense(subject), networks.eidetic(subject, 0, 100)
    assert not any(type(module).__module__.startswith("eidetic_kernels") for module in plain.modules())
    assert plain(x).shape == (6, networks.CLASSES)
    torch.testing.assert_close(plain.features(x), net.compute_features(x))
    net = networks.eidetic(subject, 50, 10)
    layers = {name: each for name, each in net.named_modules() if hasattr(each, "mask") and "heads" not in name}
    for path, module in peers.masked(subject, 50, 10).body.named_modules():
        if path in layers:
            weights = module.weight.flatten(2) if module.weight.dim() == 4 else module.weight[:, :, None]
            mask = layers.pop(path).mask()
            held = torch.zeros(weights.shape[:2])
            held[: mask.shape[0], : mask.shape[1]] = mask
            assert torch.equal(weights.any(2), held > 0)
    assert not layers


def test_comparing_two_result_files(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    compare = importlib.import_module("compare")
    for name, ms in (("before", 1.0), ("after", 3.0)):
        row = {"model": "mlp", "frozen": 0, "live": 100, "ms": {"dense": 1.0, "eidetic": ms}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [row]}))
    files = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    compare.main(files)
    assert capsys.readouterr().out.splitlines()[0].split()[0] == "3.00"
    with pytest.raises(SystemExit, match="1"):
        compare.main([*files, "--fail-above", "2"])
