"""The routing report: counted again by hand, sample by sample."""

from types import SimpleNamespace

import pytest
import torch
from blobs import CLASSES, blobs, network
from life import bits

from eidetic_kernels.errors import InputError, RouterError
from eidetic_kernels.tasks.routing import RULES
from eidetic_training import train_router, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.runs.routing_report import COVERAGES, routing_report


def inputs(task, samples):
    x, y = blobs(task, samples=samples, noise=1.5)
    return x + 1.5 * task, y


def task_of(number, samples):
    """Stands for a task whose test set has `samples` rows."""
    x, y = inputs(number, samples)
    return SimpleNamespace(test_loader=lambda size, device=None: TensorLoader(x, y, size, shuffle=False))


@pytest.fixture(scope="module")
def learned():
    """(network with a router, tasks with test sets of different sizes); not to be changed."""
    torch.set_num_threads(1)
    net, sizes = network((24, 16)), (30, 60, 45)
    loaders = [TensorLoader(*inputs(t, 60), 20) for t in range(3)]
    for t, loader in enumerate(loaders):
        if t:
            net.prepare_for_task(t, CLASSES)
        train_task(net, loader, torch.optim.Adam(net.parameters(), 0.02), max_epochs=6, keep_at_least=5)
    train_router(net, loaders, max_epochs=4)
    return net, [task_of(t, size) for t, size in enumerate(sizes)]


def rows(net, tasks, rule):
    """(true task, chosen task, right, confidence) of every sample, and the oracle's hits."""
    found, oracle = [], []
    for t, task in enumerate(tasks):
        ((x, y),) = task.test_loader(1000)
        answer = net.predict(x, rule)
        for chosen, label, sure, truth in zip(answer.task, answer.label, answer.confidence, y):
            found.append((t, int(chosen), bool(chosen == t and label == truth), float(sure)))
        net.eval()
        with torch.no_grad():
            oracle.append(float((net(x, task=t).argmax(1) == y).float().mean()))
    return found, oracle


@pytest.mark.parametrize("rule", RULES)
def test_every_number_counted_by_hand(learned, rule):
    net, tasks = learned
    report = routing_report(net, tasks)
    (result,) = [each for each in report.rules if each.rule == rule]
    found, oracle = rows(net, tasks, rule)
    assert report.oracle == pytest.approx(oracle)
    for t in range(3):
        mine = [row for row in found if row[0] == t]
        for other in range(3):
            share = sum(row[1] == other for row in mine) / len(mine)
            assert float(result.confusion[t, other]) == pytest.approx(share)
        assert result.correct[t] == pytest.approx(sum(row[2] for row in mine) / len(mine))
        assert result.correct[t] <= report.oracle[t] + 1e-6
    assert result.named == pytest.approx(sum(float(result.confusion[t, t]) for t in range(3)) / 3)
    assert result.accuracy == pytest.approx(sum(result.correct) / 3)
    ranked = sorted(found, key=lambda row: -row[3])
    for share, value in zip(COVERAGES, result.selective):
        surest = ranked[: round(share * len(ranked))]
        assert value == pytest.approx(sum(row[2] for row in surest) / len(surest), abs=0.02)  # but for ties
    assert result.selective[0] == pytest.approx(sum(row[2] for row in found) / len(found))


def test_batches_do_not_matter(learned, monkeypatch):
    from eidetic_training.runs import routing_report as routing

    net, tasks = learned
    whole = routing_report(net, tasks)
    monkeypatch.setattr(routing, "BATCH", 7)
    parts = routing_report(net, tasks)
    assert parts.oracle == pytest.approx(whole.oracle)
    for one, other in zip(parts.rules, whole.rules):
        assert one.correct == pytest.approx(other.correct)
        torch.testing.assert_close(one.confusion, other.confusion)


def test_the_network_stays_as_it_is(learned):
    net, tasks = learned
    for training in (True, False):
        net.train(training)
        before = {name: bits(tensor) for name, tensor in net.state_dict().items()}
        routing_report(net, tasks, ["entropy"])
        assert net.training is training
        assert {name: bits(tensor) for name, tensor in net.state_dict().items()} == before


def test_it_prints_the_oracle_the_rules_confusion_and_abstention(learned):
    net, tasks = learned
    text = str(routing_report(net, tasks, ["learned", "energy"]))
    first, confusion, abstain = text.split("\n\n")
    assert [line.split()[0] for line in first.splitlines()[-3:]] == ["oracle", "learned", "energy"]
    assert "routed by" in confusion and "of task 2" in confusion
    assert "95" in abstain and abstain.splitlines()[-1].split()[0] == "energy"


def test_without_a_router_the_rules_that_need_none_are_tried(learned):
    net, tasks = learned
    router, net.router = net.router, None
    try:
        assert [r.rule for r in routing_report(net, tasks).rules] == ["entropy", "energy", "max_logit"]
        with pytest.raises(RouterError, match="0 of 3"):
            routing_report(net, tasks, ["learned"])
    finally:
        net.router = router
    assert [r.rule for r in routing_report(net, tasks).rules] == list(RULES)


def test_tasks_must_be_those_of_the_network(learned):
    net, tasks = learned
    with pytest.raises(InputError, match="2 tasks were given for 3 finished ones"):
        routing_report(net, tasks[:2])
