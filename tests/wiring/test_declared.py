"""Wiring declared by hand is held against the first pass: what it hides would make finished tasks forget."""

import pytest
import torch
from life import learn, train
from small_networks import Backboned
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek


class Chain(ek.EideticNetwork):
    """Two layers, and whatever stands between them; declared as a chain unless ``declared`` says otherwise."""

    def __init__(self, between, declared=None, image=False):
        super().__init__()
        self.a = ek.EideticConv2d(3, 8, 3) if image else ek.EideticLinear(6, 8)
        self.b = ek.EideticLinear(8 * (16 if image else 1), 8)
        self.between, self.declared = between, declared

    def connections(self):
        return self.declared or {"a": "input", "b": "a", "output": "b"}

    def forward(self, x):
        return self.b(self.between(self, self.a(x))).relu()


class Recurrent(ek.EideticNetwork):
    def __init__(self, declared):
        super().__init__()
        self.i, self.h, self.declared = ek.EideticLinear(6, 8), ek.EideticLinear(8, 8), declared

    def connections(self):
        return self.declared

    def forward(self, x):
        state = torch.tanh(self.i(x[:, 0]))
        for step in range(1, x.shape[1]):
            state = torch.tanh(self.i(x[:, step]) + self.h(state))
        return state


class Skipping(ek.EideticNetwork):
    def __init__(self, declared):
        super().__init__()
        self.a, self.b, self.c = ek.EideticLinear(6, 8), ek.EideticLinear(8, 8), ek.EideticLinear(8, 8)
        self.declared = declared

    def connections(self):
        return self.declared

    def forward(self, x):
        first = self.a(x).relu()
        return self.c((first + self.b(first)).relu())


def run(net, *shape):
    net.prepare_for_task(0, 3, max_units=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(7, *(shape or (6,)))
    try:
        return net(x)
    finally:
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


RIGHT = {
    "relu": lambda net, x: x.relu(),
    "in place": lambda net, x: F.relu(x, inplace=True),
    "dead": lambda net, x: x * 0,
    "scaled": lambda net, x: 2 * torch.tanh(x) - 1,
}
WRONG = {
    "flipped": lambda net, x: x.flip(1),
    "rolled": lambda net, x: x.roll(1, 1),
    "softmax": lambda net, x: x.softmax(1),
    "centred": lambda net, x: x - x.mean(1, keepdim=True),
    "normalised": lambda net, x: F.layer_norm(x, x.shape[1:]),
    "sorted": lambda net, x: x.sort(1).values,
    "mixed": lambda net, x: x @ torch.ones(x.shape[1], x.shape[1]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_keeps_units_apart_is_taken(name):
    run(Chain(RIGHT[name]))


@pytest.mark.parametrize("name", WRONG)
def test_what_moves_or_mixes_units_is_refused(name):
    with pytest.raises(ek.ConversionError, match="'b' reads the units of 'a' at other places"):
        run(Chain(WRONG[name]))


def test_images_that_are_flattened():
    run(Chain(lambda net, x: x.flatten(1), image=True), 3, 6, 6)
    with pytest.raises(ek.ConversionError, match="at other places"):
        run(Chain(lambda net, x: x.movedim(1, -1).flatten(1), image=True), 3, 6, 6)


def test_a_recurrence_declared_as_a_chain_is_refused():
    with pytest.raises(ek.ConversionError, match="'h' is said to read 'i', but the output of 'h' reaches it, too"):
        run(Recurrent({"i": "input", "h": "i", "output": "h"}), 5, 6)


def test_a_recurrence_whose_layers_are_tied_is_taken():
    run(Recurrent({"i": "input", "h": "i", "output": ("i", "h")}), 5, 6)


def test_a_skip_connection_must_be_declared():
    run(Skipping({"a": "input", "b": "a", "c": ("a", "b"), "output": "c"}))
    with pytest.raises(ek.ConversionError, match="'c' is said to read 'b', but the output of 'a' reaches it, too"):
        run(Skipping({"a": "input", "b": "a", "c": "b", "output": "c"}))


def test_what_is_said_of_the_features_is_checked_too():
    class Flipped(Chain):
        def forward(self, x):
            return super().forward(x).flip(1)

    with pytest.raises(ek.ConversionError, match="'output' reads the units of 'b' at other places"):
        run(Flipped(RIGHT["relu"]))


def test_it_is_asked_once_and_again_after_a_refusal():
    net, wrong = Chain(lambda net, x: x.flip(1) if net.flip else x), True
    net.flip = wrong
    for _ in range(2):
        with pytest.raises(ek.ConversionError):
            net.prepare_for_task(0, 3) if net.current_task is None else None
            net(torch.randn(5, 6))
    net.flip = False
    net(torch.randn(5, 6))
    passes = []
    net.a.register_forward_hook(lambda *_: passes.append(1))
    net(torch.randn(5, 6))
    assert len(passes) == 1


def test_a_plain_convolution_before_the_first_layer_is_no_layer_of_ours():
    class Behind(Chain):
        def __init__(self):
            super().__init__(RIGHT["relu"])
            self.front = nn.Linear(6, 6).requires_grad_(False)

        def forward(self, x):
            return super().forward(self.front(x).flip(1))

    run(Behind())


def test_frozen_features_begin_after_the_check(tmp_path):
    """Its pass is of a few samples; a network that was loaded may meet it in the middle of a task."""
    net = Backboned()
    learn(net, 0, max_units=0.5)
    net.save(tmp_path / "net")
    net = ek.EideticNetwork.load(tmp_path / "net")
    net.prepare_for_task(1, 3)
    features, optimizer = ek.FrozenFeatures(net, 36), torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):
        with features.batch(torch.arange(36)):
            train(net, optimizer, 1)
    assert features.settled and features.off is None
