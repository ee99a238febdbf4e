"""Modules of no task in a network wired by hand: frozen when it is wired, and fingerprinted."""

import copy
import warnings

import pytest
import torch
from life import Memory, batch, train
from torch import nn

import eidetic_kernels as ek


class Backbone(ek.EideticNetwork):
    """A plain backbone (with statistics and dropout), one eidetic layer, and a parameter of the network's own."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(8))
        self.layer = ek.EideticLinear(8, 12)

    def connections(self):
        return {"layer": "input", "output": "layer"}

    def forward(self, x):
        return self.layer(self.backbone(x) * self.scale).relu()


def prepared(freeze=False):
    net = Backbone()
    if freeze:
        net.backbone.requires_grad_(False)
        net.scale.requires_grad_(False)
        net.prepare_for_task(0, 3, max_units=0.4)
        return net
    with pytest.warns(UserWarning, match="'backbone', 'scale': 80 parameters belong to no task and are frozen"):
        net.prepare_for_task(0, 3, max_units=0.4)
    return net


def test_no_optimizer_sees_them_and_no_mode_wakes_them():
    net = prepared()
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"layer", "heads"}
    for each in (net.train(), copy.deepcopy(net).train(), net.eval().train()):
        assert each.training and each.layer.training and not any(m.training for m in each.backbone.modules())


def test_an_optimizer_made_before_they_were_frozen_moves_nothing_of_them():
    net = Backbone()
    optimizer = torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items() if name.startswith(("backbone", "scale"))}
    with pytest.warns(UserWarning, match="belong to no task"):
        net.prepare_for_task(0, 3, optimizer=optimizer)
    train(net, optimizer, 4)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_finished_tasks_keep_their_bits(tmp_path):
    net = prepared()
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    net.finish_task()
    memory = Memory(net)
    memory.note(net)
    net.prepare_for_task(1, 3)
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    memory.check(net, "training of the next task")
    assert net.certify().ok and not net.certify().notes
    net.save(tmp_path / "net")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = ek.EideticNetwork.load(tmp_path / "net")
    memory.check(again, "loading")
    assert again.certify().ok


@pytest.mark.parametrize("path", ["backbone.0.weight", "backbone.1.running_mean", "scale"])
def test_a_changed_one_is_found(path):
    net = prepared(freeze=True)
    net(batch(net)[0])
    net.finish_task()
    with torch.no_grad():
        net.state_dict()[path].add_(1e-3)
    assert any("belong to no task are not the ones that were recorded" in line for line in net.certify().problems)


def test_what_is_frozen_already_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(freeze=True)
