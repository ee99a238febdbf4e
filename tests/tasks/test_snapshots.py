"""snapshot and restore: everything live comes back, bit for bit, and nothing else moves."""

import pytest
import torch
from life import Memory, batch, digest, learn, train
from small_networks import KINDS, MLP, NETWORKS, ConvNet

import eidetic_kernels as ek


@pytest.fixture(params=KINDS)
def net(request):
    net = NETWORKS[request.param]()
    learn(net, 0)
    net.prepare_for_task(1, 3)
    return net


def adam(net):
    return torch.optim.Adam(net.parameters(), 0.01)


def state_of(net):
    """Every tensor but the probe inputs of certificates, which are no part of a snapshot."""
    named = net.state_dict().items()
    return {name: tensor.detach().clone() for name, tensor in named if not name.startswith("probes.")}


def assert_same(net, state):
    now = state_of(net)
    assert list(now) == list(state)
    for name, tensor in state.items():
        assert torch.equal(now[name], tensor), name


@pytest.mark.parametrize("pruned", [0.0, 0.5, 1.0])
def test_everything_live_comes_back_bit_for_bit(net, pruned):
    memory, optimizer = Memory(net), adam(net)
    memory.note(net)
    train(net, optimizer, 2)
    before, units = state_of(net), [group.segments.live for group in net.groups]
    snapshot = net.snapshot(optimizer)
    train(net, optimizer, 2, seed=5)
    net.prune(pruned, optimizer=optimizer)
    train(net, optimizer, 2, seed=6)
    net.restore(snapshot, optimizer)
    assert_same(net, before)
    assert [group.segments.live for group in net.groups] == units
    memory.check(net, "restore")


@pytest.mark.parametrize("pruned", [0.0, 0.5])
def test_training_goes_on_as_if_nothing_had_happened(net, pruned):
    """The optimizer's state is part of it: a run that was undone ends where an undisturbed one ends."""
    optimizer = adam(net)
    train(net, optimizer, 2)
    snapshot = net.snapshot(optimizer)
    torch.manual_seed(9)
    train(net, optimizer, 3, seed=1)
    undisturbed = state_of(net)
    net.restore(snapshot, optimizer)
    net.prune(pruned, optimizer=optimizer)
    train(net, optimizer, 2, seed=2)
    net.restore(snapshot, optimizer)
    torch.manual_seed(9)
    train(net, optimizer, 3, seed=1)
    assert_same(net, undisturbed)


def test_a_snapshot_can_be_restored_again_and_again(net):
    optimizer = adam(net)
    train(net, optimizer, 1)
    snapshot, before = net.snapshot(optimizer), state_of(net)
    for fraction in (0.3, 0.9, 0.0):
        net.prune(fraction, optimizer=optimizer)
        train(net, optimizer, 2)
        net.restore(snapshot, optimizer)
        assert_same(net, before)


def test_snapshots_nest(net):
    optimizer = adam(net)
    outer, outer_state = net.snapshot(optimizer), state_of(net)
    net.prune(0.4, optimizer=optimizer)
    train(net, optimizer, 1)
    inner, inner_state = net.snapshot(optimizer), state_of(net)
    net.prune(0.4, optimizer=optimizer)
    net.restore(inner, optimizer)
    assert_same(net, inner_state)
    net.restore(outer, optimizer)
    assert_same(net, outer_state)


def test_poison_is_undone(net):
    """What a NaN loss leaves behind goes away with restore."""
    snapshot, before = net.snapshot(), state_of(net)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "frozen" not in name and tensor.is_floating_point() and not name.startswith(("probes", "router")):
                tensor.fill_(float("nan"))
    net.restore(snapshot)
    assert_same(net, before)
    net.finish_task()


def test_without_an_optimizer_unpruned_parameters_stay_where_they_are():
    """Nothing was cut, so an optimizer that was not passed is not stale."""
    net = MLP()
    net.prepare_for_task(0, 3)
    optimizer = adam(net)
    snapshot = net.snapshot()
    train(net, optimizer, 2)
    before = [id(parameter) for parameter in net.parameters()]
    net.restore(snapshot)
    assert [id(parameter) for parameter in net.parameters()] == before
    train(net, optimizer, 1)


def test_after_pruning_an_optimizer_that_was_not_passed_is_stale():
    net = MLP()
    net.prepare_for_task(0, 3)
    optimizer = adam(net)
    snapshot = net.snapshot(optimizer)
    net.prune(0.5, optimizer=optimizer)
    train(net, optimizer, 1)
    net.restore(snapshot)
    with pytest.raises(ek.StaleOptimizerError, match=r"net\.restore"):
        train(net, optimizer, 1)


@pytest.mark.parametrize("later", ["finished", "next task"])
def test_a_snapshot_of_another_task_is_refused_and_nothing_changes(later):
    net = ConvNet()
    net.prepare_for_task(0, 3)
    snapshot = net.snapshot()
    net.finish_task() if later == "finished" else net.prune(0.5)
    if later == "next task":
        net.prepare_for_task(1, 3)
    before = digest(net)
    found = "no task" if later == "finished" else "task 1"
    with pytest.raises(ek.TaskError, match=f"the snapshot was taken of task 0, but {found} is in training"):
        net.restore(snapshot)
    assert digest(net) == before


def test_a_snapshot_is_a_copy():
    net = MLP()
    net.prepare_for_task(0, 3)
    snapshot = net.snapshot(adam(net))
    tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    train(net, torch.optim.SGD(net.parameters(), 1.0), 3)
    net.restore(snapshot)
    train(net, torch.optim.SGD(net.parameters(), 1.0), 3)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in snapshot.tensors.items())


def test_taking_one_changes_nothing():
    net = MLP()
    net.prepare_for_task(0, 3)
    optimizer = adam(net)
    train(net, optimizer, 1)
    before = digest(net, optimizer)
    net.snapshot(optimizer)
    assert digest(net, optimizer) == before
    net(batch(net)[0])


def test_a_snapshot_from_before_the_head_was_added_is_restored_or_refused_whole():
    net = MLP()
    net.prepare_for_task(0)
    snapshot = net.snapshot()
    net.add_head(3)
    before = digest(net)
    try:
        net.restore(snapshot)
    except ek.EideticError:
        assert digest(net) == before
