"""An extracted task leaves home: pickled, exported, in ONNX."""

import subprocess
import sys
import warnings

import pytest
import torch
from life import batch, learn, recall
from small_networks import Residual
from small_transformers import learned
from tolerances import assert_close

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["eidetic_kernels"] = sys.modules["eidetic_training"] = None  # importing them raises
import torch
for name in ("residual", "vit", "maxvit"):
    plain = torch.load(f"{name}.pt", weights_only=False)
    exported = torch.export.load(f"{name}.pt2").module()
    x, logits = torch.load(f"{name}.expected.pt")
    for module in (plain, exported):
        assert torch.equal(module(x), logits), (module(x) - logits).abs().max()
        assert module(x[:3]).shape == (3, logits.shape[1])
assert not [name for name in sys.modules if name.startswith("eidetic") and sys.modules[name]]
"""


def test_pickled_and_exported_it_runs_where_the_package_is_not(tmp_path):
    for make in (residual, vit, maxvit):
        net, task = make()
        plain, x = net.extract(task), batch(net)[0]
        torch.save(plain, tmp_path / f"{make.__name__}.pt")
        torch.save((x, plain(x).detach()), tmp_path / f"{make.__name__}.expected.pt")
        exported = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("samples")},))
        torch.export.save(exported, tmp_path / f"{make.__name__}.pt2")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE]
    subprocess.run(command, cwd=tmp_path, check=True, env={"PYTHONPATH": "", "OMP_NUM_THREADS": "1"})


def residual():
    net = Residual()
    for task in range(3):
        learn(net, task, "mixed", max_units=0.4 if task else None)
    return net, 2


def vit():
    return learned("vit", tasks=2), 1


def maxvit():
    return learned("maxvit", tasks=2), 1


def test_a_convnext_is_exported():
    net = learned("convnext", "mixed")
    plain, x = net.extract(2), batch(net)[0]
    shapes = ({0: torch.export.Dim("samples")},)
    exported = torch.export.export(plain, (x,), dynamic_shapes=shapes).module()
    for samples in (3, len(x)):
        assert_close("exported", exported(x[:samples]), recall(net, x[:samples], 2), condition=10)


@pytest.mark.parametrize("make", [residual, vit])
def test_onnx(make, tmp_path):
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from onnx.reference import ReferenceEvaluator

    net, task = make()
    plain, x = net.extract(task), batch(net)[0]
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own
        program = torch.onnx.export(plain, (x,), dynamo=True, dynamic_shapes=({0: "samples"},), verbose=False)
        program.save(path)
    evaluator = ReferenceEvaluator(str(path))
    (name,) = evaluator.input_names
    for samples in (1, 5):
        (logits,) = evaluator.run(None, {name: x[:samples].numpy()})
        assert_close("ONNX", torch.from_numpy(logits), recall(net, x[:samples], task), condition=10)
