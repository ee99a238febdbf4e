"""Superposition: contexts of random signs, the same whenever asked for, and different by task."""

import torch
from small_methods import accuracy, batches, conditions, images, learned
from small_networks import ConvNet
from torch.nn import functional as F

from eidetic_training import models
from eidetic_training.methods import Superposition
from eidetic_training.methods.networks import count, products


def test_contexts_are_signs_and_follow_from_seed_task_and_layer():
    method, again = Superposition(conditions(seed=1)), Superposition(conditions(seed=1))
    torch.manual_seed(99)
    found = {(layer, task): method.signs(layer, task, 300) for layer in range(2) for task in range(3)}
    for (layer, task), signs in found.items():
        assert set(signs.tolist()) == {-1.0, 1.0}
        assert torch.equal(again.signs(layer, task, 300), signs)
        assert not torch.equal(Superposition(conditions(seed=2)).signs(layer, task, 300), signs)
    keys = list(found)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            assert abs(float((found[one] * found[other]).mean())) < 0.25, "nearly orthogonal"


def test_undoing_a_task_s_context_gives_the_plain_network():
    method = learned(Superposition(conditions()), 2)
    x = batches(1)[0][0]
    found = method.logits(x, 1)
    layers = products(method.network)
    with torch.no_grad():
        body = [layer for layer in layers if layer not in list(method.network.task_heads)]
        assert len(body) == 2
        for number, layer in enumerate(body):
            layer.weight *= method.signs(number, 1, layer.weight.shape[1])
            layer._forward_pre_hooks.clear()
        torch.testing.assert_close(method.network(x, 1), found)


def test_a_convolution_s_context_multiplies_channels():
    method = learned(Superposition(conditions(lambda: ConvNet(dropout=0.0), epochs=1, seed=1)), 2, images)
    x = images(1)[0][0]
    found = method.logits(x, 1)
    conv = products(method.network)[0]
    conv._forward_pre_hooks.clear()
    signs = method.signs(0, 1, 2)
    assert -1 in signs
    assert not torch.equal(method.logits(x, 1), found)
    signed = x * signs.view(1, 2, 1, 1)
    torch.testing.assert_close(method.logits(signed, 1), found)


def test_a_residual_is_passed_on_as_it_is():
    method = Superposition(conditions(lambda: models.build("resnet18", (1, 8, 8), width=3)))
    block = method.network.body.blocks[1]
    x, y = torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        for residual in ((x,), ()):
            named = {} if residual else {"residual": x}
            found = block.last.train()(y, *residual, **named)
            (number,) = [n for n, layer in enumerate(products(method.network)) if layer is block.last]
            signed = y * method.signs(number, 0, 3).view(1, 3, 1, 1)
            expected = F.batch_norm(F.conv2d(signed, block.last.weight, padding=1), None, None, training=True) + x
            torch.testing.assert_close(found, F.relu(expected))


def test_it_learns_and_nothing_is_stored_for_contexts():
    method = learned(Superposition(conditions(epochs=8)), 2)
    assert accuracy(method, 1) > 0.9
    assert method.stored_numbers() == count(method.network.parameters()) + 2 * 2 * (16 + 12)
