"""Calls inside ``torch.inference_mode()``: what they make can be trained afterwards, or they say why not."""

import copy

import pytest
import torch
from life import CLASSES, batch, learn, train
from small_networks import MLP, Residual

import eidetic_kernels as ek


def one_task(kind=MLP):
    net = kind()
    learn(net, 0, max_units=0.5)
    return net


def trains_on(net):
    """Train, prune and finish the task in training."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(net, optimizer, 2)
    net.prune(0.3, optimizer=optimizer)
    train(net, optimizer, 2)
    net.finish_task()
    assert net.certify().ok


@pytest.mark.parametrize("kind", [MLP, Residual])
@pytest.mark.parametrize("middle", [False, True])
def test_what_was_loaded_there(kind, middle, tmp_path):
    net = one_task(kind)
    if middle:
        net.prepare_for_task(1, CLASSES)
    net.save(tmp_path / "net")
    with torch.inference_mode():
        net = kind.load(tmp_path / "net")
    if not middle:
        net.prepare_for_task(1, CLASSES)
    trains_on(net)


def test_what_was_loaded_there_into_a_network_that_was_built_there(tmp_path):
    one_task().save(tmp_path / "net")
    with torch.inference_mode():
        net = ek.EideticNetwork.load(tmp_path / "net", network=MLP())
    net.prepare_for_task(1, CLASSES)
    trains_on(net)


def test_what_was_prepared_pruned_restored_and_finished_there():
    net = one_task()
    with torch.inference_mode():
        net.prepare_for_task(1)
        net.add_head(CLASSES)
        snapshot = net.snapshot()
        net.prune(0.5)
        net.restore(snapshot)
    trains_on(net)
    with torch.inference_mode():
        net.widen(40)
        net.prepare_for_task(2, CLASSES, max_units=4)
        net.finish_task()
        net.prepare_for_task(3, CLASSES)
    trains_on(net)


@pytest.mark.parametrize("made", ["built", "copied"])
def test_a_network_that_was_built_or_copied_there_is_refused_before_anything_changes(made):
    net = one_task()
    with torch.inference_mode():
        net = MLP() if made == "built" else copy.deepcopy(net)
    task = net.finished_tasks
    with pytest.raises(ek.TaskError, match=r"made inside torch\.inference_mode.*copy\.deepcopy\(net\)"):
        net.prepare_for_task(task, CLASSES)
    assert net.current_task is None
    net = copy.deepcopy(net)
    net.prepare_for_task(task, CLASSES)
    trains_on(net)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_there_is_refused_before_anything_changes(mode):
    net = one_task()
    loaders = [[batch(net)]]
    with mode(), pytest.raises(ek.TaskError, match=rf"train_router was called inside torch\.{mode.__name__}"):
        net.train_router(loaders, max_epochs=1)
    net.prepare_for_task(1)
    with mode(), pytest.raises(ek.TaskError, match=rf"train_task was called inside torch\.{mode.__name__}"):
        net.train_task(loaders[0], max_epochs=1)
    assert net.current_task == 1 and len(net.heads) == 1
    net.train_task(loaders[0], max_epochs=1, search="none")


def test_a_network_that_was_copied_there_in_the_middle_of_a_task_is_not_trained():
    net = one_task()
    net.prepare_for_task(1, CLASSES)
    with torch.inference_mode():
        net = copy.deepcopy(net)
    with pytest.raises(ek.TaskError, match=r"made inside torch\.inference_mode"):
        net.train_task([batch(net)], max_epochs=1)


def test_what_was_extracted_there_can_be_trained():
    net = one_task()
    with torch.inference_mode():
        plain = net.extract(0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    plain(batch(net)[0]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("built", [False, True])
def test_what_was_converted_there(built):
    with torch.inference_mode(built):
        plain = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, CLASSES))
    with torch.inference_mode():
        net = ek.convert(plain, torch.randn(2, 6))
    net.example = (6,)
    trains_on(net)


def test_scores_of_gradients_are_computed_there():
    net = one_task()
    net.prepare_for_task(1, CLASSES)
    data = [batch(net)]
    with torch.inference_mode():
        there = net.plan_pruning(0.5, "taylor", data=data)
    for found, expected in zip(there.groups, net.plan_pruning(0.5, "taylor", data=data).groups):
        assert torch.equal(found.keep, expected.keep)


@pytest.mark.parametrize("made_there", [False, True])
def test_the_first_pass_of_a_network_wired_by_hand(made_there):
    class ByHand(MLP):
        def connections(self):
            return {"body.0": "input", "body.1": "body.0", "output": "body.1"}

        def forward(self, x):
            return self.body[:2](x)

    net = ByHand((7,)).eval()
    net.prepare_for_task(0, CLASSES)
    with torch.inference_mode(made_there):
        x = batch(net)[0].clone()
    with torch.inference_mode():
        net(x)
    trains_on(net)
