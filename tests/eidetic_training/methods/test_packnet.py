"""PackNet: who owns which weight, what is pruned, and that nothing owned or set aside moves."""

import pytest
import torch
from life import bits
from small_methods import answers, batches, conditions, learned

from eidetic_training.methods import PackNet
from eidetic_training.methods.networks import count
from eidetic_training.methods.packnet import FREE


def owned(method, task):
    return [int((owner == task).sum()) for owner in method.owner]


def test_each_task_takes_its_share_of_what_is_free():
    method = PackNet(conditions(), prune=0.75)
    sizes = [owner.numel() for owner in method.owner]
    assert sizes == [6 * 16, 16 * 12]
    free = sizes
    for task in range(3):
        learned(method, task + 1)
        pruned = [int(0.75 * each) for each in free]
        assert owned(method, FREE) == pruned
        assert owned(method, task) == [f - p for f, p in zip(free, pruned)]
        free = pruned
    assert {int(value) for owner in method.owner for value in owner.unique()} == {FREE, 0, 1, 2}


def test_known_tasks_get_even_shares_and_all_is_used():
    method = learned(PackNet(conditions(epochs=3), tasks=3), 3)
    for task in range(3):
        for mine, owner in zip(owned(method, task), method.owner):
            assert mine == pytest.approx(owner.numel() / 3, abs=1)
    assert owned(method, FREE) == [0, 0]


def test_the_smallest_are_pruned_and_stay_zero_while_the_rest_is_retrained(monkeypatch):
    method = PackNet(conditions(epochs=6), prune=0.5)
    trained = []
    original = PackNet._give_back

    def give_back(self, task):
        trained.append([layer.weight.detach().abs().clone() for layer in self.layers])
        original(self, task)

    monkeypatch.setattr(PackNet, "_give_back", give_back)
    learned(method, 2)
    for before, owner in zip(trained[0], learned(PackNet(conditions(epochs=6), prune=0.5)).owner):
        assert before[owner == FREE].max() <= before[owner == 0].min()
    for before, layer, owner in zip(trained[1], method.layers, method.owner):
        assert before[owner == FREE].max() <= before[owner == 1].min()
        assert (layer.weight[owner == FREE] == 0).all()
        assert not torch.equal(layer.weight[owner == 1].abs(), before[owner == 1]), "what is left is retrained"


def test_owned_weights_and_everything_but_weights_are_fixed_after_their_task():
    method = learned(PackNet(conditions(optimizer="adamw", lr=0.05), prune=0.5))
    weights = [layer.weight[owner == 0].clone() for layer, owner in zip(method.layers, method.owner)]
    products = {id(layer.weight) for layer in method.layers}
    others = {name: bits(p) for name, p in method.network.body_parameters() if id(p) not in products}
    statistics = {name: bits(b) for name, b in method.network.named_buffers()}
    assert others and statistics
    learned(method, 3)
    for before, layer, owner in zip(weights, method.layers, method.owner):
        assert torch.equal(layer.weight[owner == 0], before)
    assert {name: bits(p) for name, p in method.network.body_parameters() if name in others} == others
    assert {name: bits(b) for name, b in method.network.named_buffers()} == statistics


def test_a_task_runs_with_the_weights_of_tasks_up_to_its_own():
    method = learned(PackNet(conditions(), prune=0.5), 3)
    x = batches(1)[0][0]
    before = [bits(layer.weight) for layer in method.layers]
    found = method.logits(x, 1)
    assert [bits(layer.weight) for layer in method.layers] == before
    with torch.no_grad():
        for layer, owner in zip(method.layers, method.owner):
            layer.weight[(owner == 2) | (owner == FREE)] = 0
        assert torch.equal(method.network(x, 1), found)


def test_numbers_kept_are_the_network_and_an_owner_for_each_weight():
    method = learned(PackNet(conditions(epochs=1)), 3)
    weights = sum(owner.numel() for owner in method.owner)
    expected = count(method.network.parameters()) + 2 * (16 + 12) + weights * 2 / 32
    assert method.stored_numbers() == expected
    assert answers(method, 0).shape == (48, 3)


def test_free_weights_begin_a_task_anew_and_owned_ones_stay():
    method = learned(PackNet(conditions(), prune=0.5))
    before = [layer.weight.detach().clone() for layer in method.layers]
    method._start()
    for old, layer, owner in zip(before, method.layers, method.owner):
        assert torch.equal(layer.weight[owner == 0], old[owner == 0])
        fresh = layer.weight[owner == FREE]
        assert (fresh != 0).all() and fresh.abs().max() <= layer.in_features**-0.5
