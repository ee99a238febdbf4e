"""P3: nothing leaks in. With NaN or infinity in every live parameter and statistic, finished tasks give the same bits.

A mask that multiplies by zero fails this: 0 x NaN is NaN.
"""

import pytest
import torch
from life import READINGS, Memory, batch, learn, live_tensors, loss_of, poison, reading, train
from small_networks import KINDS, NETWORKS

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


@pytest.fixture(params=KINDS)
def net(request):
    return NETWORKS[request.param]()


@pytest.fixture(params=VALUES)
def value(request):
    return VALUES[request.param]


@pytest.mark.parametrize("how", READINGS)
def test_finished_tasks_do_not_see_poisoned_live_parts(net, how, value):
    memory = Memory(net)
    for task in range(2):
        learn(net, task, how)
        memory.note(net)
    net.prepare_for_task(2, 3, reading(net, how, 2))
    poison(net, value)
    assert all(not tensor.isfinite().any() for tensor in live_tensors(net).values())
    memory.check(net, "poisoning everything live")
    x, y = batch(net)
    net.train()
    loss_of(net, x, y).backward()
    memory.check(net, "a training pass over poison")
    net.eval()
    assert not net(x).isfinite().any(), "the poison must reach the task in training, or the test shows nothing"


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frozen_units_do_not_see_poison_while_the_next_task_is_trained(net, how, value, mode):
    for task in range(2):
        learn(net, task, how)
    net.prepare_for_task(2, 3, reading(net, how, 2))
    outputs, x = watch(net), batch(net)[0]
    net.train(mode == "train")
    net(x)
    clean = frozen_parts(outputs)
    poison(net, value)
    net(x)
    poisoned = frozen_parts(outputs)
    assert clean and all(part.numel() for part in clean.values())
    for path, part in clean.items():
        assert torch.equal(part, poisoned[path]), path


def test_poisoned_frozen_inputs_of_a_disjoint_layer_stay_outside(net, value):
    """The other direction: a disjoint task reads nothing of the frozen units, not even multiplied by zero."""
    learn(net, 0)
    net.prepare_for_task(1, 3, forward_transfer=False)
    for name, tensor in net.named_buffers():
        if "frozen" in name:
            tensor.fill_(value)
    x, y = batch(net)
    train(net, torch.optim.Adam(net.parameters()), 2)
    loss_of(net, x, y).backward()
    assert net(x).isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def watch(net):
    """Outputs of every producer and normalisation, by path, filled in by each forward pass."""
    outputs = {}
    for group in net.groups:
        for path, layer in [*group.producers.items(), *group.norms.items()]:
            layer.register_forward_hook(
                lambda module, _, output, path=path: outputs.__setitem__(path, (module, output.detach().clone()))
            )
    return outputs


def frozen_parts(outputs):
    return {path: output[:, : module.segments.frozen_total] for path, (module, output) in outputs.items()}
