"""eidetic export: a task as a file, read again and compared."""

import os
import re
import resource
import sys

import pytest
import torch
from tiny_runs import SIDE, make_config, run, write_data

from eidetic_kernels.modes import evaluating
from eidetic_training.cli import load_network, main
from eidetic_training.runs.export import export_task
from eidetic_training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two tasks; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    config = make_config(write_data(folder / "images"), data={"tasks": 2}, router={"max_epochs": 1})
    return run(config, folder / "run").path


def logits(trained, x, task):
    network = load_network(RunFolder(trained))
    with torch.no_grad(), evaluating(network):
        return network(x, task=task)


def exported(trained, tmp_path, capsys, task, format):
    path = tmp_path / "new" / f"task.{format}"
    assert main(["export", str(trained), "--task", str(task), "--format", format, "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert str(path) in out and f"task {task}" in out and f"[N, 1, {SIDE}, {SIDE}]" in out
    assert float(re.search(r"at most ([\d.e+-]+)", out)[1]) < 1e-5 * float(re.search(r"largest is ([\d.]+)", out)[1])
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return path


def test_a_program_of_torch_export(trained, tmp_path, capsys):
    with open(exported(trained, tmp_path, capsys, 1, "torch"), "rb") as file:
        module = torch.export.load(file).module()
    for samples in (1, 5, 20):
        x = torch.randn(samples, 1, SIDE, SIDE)
        torch.testing.assert_close(module(x), logits(trained, x, 1), rtol=1e-5, atol=1e-5)


def test_onnx(trained, tmp_path, capsys):
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(exported(trained, tmp_path, capsys, 0, "onnx")))
    assert (evaluator.input_names, evaluator.output_names) == (["input"], ["logits"])
    for samples in (1, 5):
        x = torch.randn(samples, 1, SIDE, SIDE)
        (given,) = evaluator.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), logits(trained, x, 0), rtol=1e-5, atol=1e-5)


def test_the_report_is_of_the_file_itself(trained, tmp_path, monkeypatch):
    """A program that computes something else is told."""
    network = load_network(RunFolder(trained))
    real = network.extract

    def wrong(task):
        plain = real(task)
        with torch.no_grad():
            next(reversed(list(plain.parameters()))).add_(2.0)
        return plain

    monkeypatch.setattr(network, "extract", wrong)
    assert abs(export_task(network, 0, tmp_path / "task.pt2", (1, SIDE, SIDE)).difference - 2) < 1e-3


def test_what_cannot_be_written_is_one_line_and_changes_nothing(trained, tmp_path, capsys):
    path = tmp_path / "task"
    path.write_bytes(b"before")
    os.mkfifo(tmp_path / "pipe")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, out, said in ((2000, path, f"{path}: File too large."), (limits[0], tmp_path / "pipe", "is a pipe")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # to torch, a file that cannot grow is fatal
        try:
            assert main(["export", str(trained), "--task", "0", "--out", str(out)]) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1
    assert path.read_bytes() == b"before" and (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_errors(trained, tmp_path, capsys, monkeypatch):
    path = tmp_path / "task"
    path.write_bytes(b"before")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for arguments, part in (
        (["--task", "2"], "finished tasks are 0..1"),
        (["--task", "0", "--format", "onnx"], 'pip install "eidetic-kernels[export]"'),
    ):
        assert main(["export", str(trained), "--out", str(path), *arguments]) == 2
        assert part in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(trained), "--out", str(path), "--task", "0", "--format", "pickle"])
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
