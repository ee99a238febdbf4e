"""The bounds: a network for each task, one for all tasks in turn, one on all at once."""

import pytest
import torch
from small_methods import accuracy, answers, batches, body_bits, clashing, conditions, learned
from torch.nn import functional as F

from eidetic_kernels.errors import TaskError
from eidetic_training.methods import Joint, Sequential, SingleTask
from eidetic_training.methods.networks import PlainNetwork, count, norms


def test_single_is_a_network_trained_alone():
    under = conditions(epochs=3)
    method = learned(SingleTask(under), 2)
    for task in range(2):
        torch.manual_seed(task)
        network = PlainNetwork(under.network())
        network.add_head(3)
        optimizer = torch.optim.Adam(network.parameters(), 0.02, fused=True)
        for _ in range(3):
            for x, y in batches(task):
                optimizer.zero_grad()
                F.cross_entropy(network(x, 0), y).backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            expected = network(torch.cat([x for x, _ in batches(task)]), 0)
        assert torch.equal(answers(method, task), expected)
    assert method.stored_numbers() == 2 * (count(network.parameters()) + 2 * (16 + 12))


def test_sequential_forgets_where_tasks_clash():
    method = learned(Sequential(conditions(epochs=60)), 1, clashing)
    assert accuracy(method, 0, clashing) > 0.95
    learned(method, 3, clashing)
    assert accuracy(method, 2, clashing) > 0.95
    assert accuracy(method, 0, clashing) < 0.8


def test_sequential_shares_the_statistics_too():
    method = learned(Sequential(conditions(epochs=2)), 2)
    method.network.eval()
    with torch.no_grad():
        x = batches(0)[0][0]
        method.statistics.use(0)
        own = method.network(x, 0)
        method.statistics.use(1)
        latest = method.network(x, 0)
        assert torch.equal(method.logits(x, 0), latest) and not torch.equal(own, latest)
    assert method.stored_numbers() == count(method.network.parameters()) + 2 * (16 + 12)


class Counted:
    """Counts the batches that it gives."""

    def __init__(self, data):
        self.data, self.given = data, []

    def __iter__(self):
        for x, y in self.data:
            self.given.append(x)
            yield x, y


def test_joint_sees_every_batch_of_every_task_in_turn(monkeypatch):
    method = Joint(conditions(epochs=2))
    loaders = [Counted(batches(task, samples=16 * (task + 1))) for task in range(3)]
    seen = []
    original = method.network.forward
    monkeypatch.setattr(method.network, "forward", lambda x, task: seen.append(task) or original(x, task))
    method.learn_all(loaders, [3, 3, 3])
    assert seen == 2 * [0, 1, 2, 1, 2, 2]
    assert [len(loader.given) for loader in loaders] == [3, 6, 9]  # and once more for the statistics
    assert method.tasks == 3


def test_joint_learns_all_with_statistics_measured_after_training():
    method = Joint(conditions(epochs=15))
    method.learn_all([batches(task) for task in range(3)], [3, 3, 3])
    assert min(accuracy(method, task) for task in range(3)) > 0.95
    first = norms(method.network)[0]
    linear = method.network.body.body[0]
    for task in range(3):
        hidden = [linear(x) for x, _ in batches(task)]
        method.statistics.use(task)
        torch.testing.assert_close(first.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
        torch.testing.assert_close(first.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert first.momentum == 0.1
    assert method.stored_numbers() == count(method.network.parameters()) + 3 * 2 * (16 + 12)


def test_joint_takes_no_single_task_and_is_the_same_for_the_same_seed():
    with pytest.raises(TaskError, match="all tasks at once: call learn_all"):
        Joint(conditions()).learn(batches(0), 3)
    found = []
    for drawn in range(2):
        method = Joint(conditions(epochs=1))
        torch.manual_seed(drawn)
        method.learn_all([batches(0), batches(1)], [3, 3])
        found.append(body_bits(method.network) | {"logits": answers(method, 1).tolist()})
    assert found[0] == found[1]
