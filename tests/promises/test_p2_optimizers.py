"""P2: no optimizer can break recall. Frozen weights are not parameters, so none can reach them."""

import pytest
import torch
from life import Memory, learn, train
from slow import slow
from small_networks import MLP, ConvNet, Residual

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw-decay": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "sgd-momentum-decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1),
    "adam-rate-10": lambda p: torch.optim.Adam(p, 10.0),
    "sgd-rate-10": lambda p: torch.optim.SGD(p, 10.0, momentum=0.9, weight_decay=0.1),
}


@pytest.fixture(params=[MLP, ConvNet, *slow(Residual)], ids=lambda kind: kind.__name__)
def net(request):
    return request.param()


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def test_a_new_optimizer_for_each_task(net, make):
    memory = Memory(net)
    for task in range(3):
        net.prepare_for_task(task, 3, max_units=0.5)
        optimizer = make(net.parameters())
        train(net, optimizer, 3, seed=task)
        net.prune(0.3, optimizer=optimizer)
        train(net, optimizer, 3, seed=task)
        memory.check(net, "training with a new optimizer")
        finish_if_finite(net)
        memory.note(net)


@pytest.mark.parametrize("how", ["prepare", *slow("adopt")])
def test_one_optimizer_kept_for_all_tasks(net, make, how):
    """Its momenta, from when the weights were live, go on being applied to whatever it still holds."""
    memory, optimizer = Memory(net), None
    for task in range(3):
        net.prepare_for_task(task, 3, max_units=0.5, optimizer=optimizer if how == "prepare" else None)
        if how == "adopt" and optimizer:
            net.adopt(optimizer)
        optimizer = optimizer or make(net.parameters())
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in net.parameters()} <= held
        train(net, optimizer, 3, seed=task)
        memory.check(net, "training with the kept optimizer")
        net.prune(0.3, optimizer=optimizer)
        train(net, optimizer, 3, seed=task)
        memory.check(net, "training after pruning")
        finish_if_finite(net)
        memory.note(net)


def test_the_live_part_does_learn(net, make):
    """Recall that nothing can move would be worthless if nothing could learn either."""
    learn(net, 0)
    net.prepare_for_task(1, 3)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, make(net.parameters()), 2)
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_an_optimizer_of_the_last_task_cannot_step_on_frozen_weights(net, make):
    """Stepping an optimizer that was left behind is refused; whatever it did before, recall stays."""
    net.prepare_for_task(0, 3)
    optimizer = make(net.parameters())
    train(net, optimizer, 1)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    finish_if_finite(net)
    memory = Memory(net)
    memory.note(net)
    with torch.no_grad():
        for parameter in held:
            parameter.fill_(7.0)  # frozen tensors are copies, not views of what the optimizer holds
    memory.check(net, "overwriting the parameters that were live before")


def finish_if_finite(net):
    """A learning rate of 10 may end in NaN, which finish_task refuses; then finish what was there before."""
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                torch.nan_to_num_(tensor, 0.0, 1e6, -1e6)
    net.finish_task()
