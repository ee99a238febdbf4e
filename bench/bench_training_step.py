"""Training steps of every network in every state (forward, backward and whole) beside the dense network's.

    make bench                                       all of it
    make bench ARGS="-k mlp --benchmark-json=FILE"   one network, kept for bench/compare.py

``dense`` has no state: compare each row with it. For ratios that noise does not distort use bench/training_step.py, in
which the alternatives take turns.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import STATES, SUBJECTS, dense, eidetic, state_bytes
from peers import step_of

from eidetic_kernels import default_optimizer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROUNDS = {"mlp": 15, "convnet": 7, "resnet18": 5, "resnet50": 3}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["forward", "backward", "step"])
@pytest.mark.parametrize("state", ["dense", *STATES], ids=lambda s: s if isinstance(s, str) else f"{s[0]}-{s[1]}")
@pytest.mark.parametrize("name", SUBJECTS)
def test_training_step(benchmark, name, state, part, device):
    subject = SUBJECTS[name]
    net = (dense(subject) if state == "dense" else eidetic(subject, *state)).to(device)
    optimizer = default_optimizer(net.parameters())
    x, y = subject.data(device)
    step = step_of(net, x, y, optimizer)
    before = [p.detach().clone() for p in net.parameters() if p.numel()]
    step()
    after = [p for p in net.parameters() if p.numel()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after)), "the step trains nothing"
    runs = {"forward": lambda: net(x), "backward": _backward(net, x, y), "step": step}
    benchmark.extra_info |= {"network": name, "state": str(state), **state_bytes(net, optimizer)}
    benchmark.pedantic(_waiting(runs[part], device), warmup_rounds=1, rounds=ROUNDS[name])


def _backward(net, x, y):
    loss = F.cross_entropy(net(x), y)

    def run():
        net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)

    return run


def _waiting(run, device):
    if device == "cpu":
        return run

    def waiting():
        run()
        torch.cuda.synchronize()

    return waiting
