"""Piggyback: the first task's network never changes; later tasks choose among its weights."""

import torch
from life import bits
from small_methods import accuracy, answers, batches, body_bits, conditions, learned
from torch.nn import functional as F

from eidetic_training.methods import Piggyback
from eidetic_training.methods.networks import count
from eidetic_training.methods.piggyback import _Step


def test_the_first_task_s_weights_never_change():
    method = learned(Piggyback(conditions(optimizer="adamw", lr=0.05)))
    before = body_bits(method.network)
    head = bits(method.network.task_heads[0].weight)
    learned(method, 3)
    assert body_bits(method.network) == before
    assert bits(method.network.task_heads[0].weight) == head


def test_the_step_passes_gradients_unchanged():
    score = torch.tensor([-1.0, 0.005, 0.0051, 2.0], requires_grad=True)
    mask = _Step.apply(score, 0.005)
    assert mask.tolist() == [0, 0, 1, 1]
    mask.backward(torch.tensor([1.0, -2.0, 3.0, 4.0]))
    assert score.grad.tolist() == [1, -2, 3, 4]


def test_scores_begin_with_every_weight_in_use():
    method = Piggyback(conditions())
    score = torch.full((2, 2), method.start)
    assert _Step.apply(score, method.threshold).all()


def test_a_later_task_runs_the_first_one_s_weights_under_its_masks():
    method = learned(Piggyback(conditions(epochs=8), mask_lr=0.01), 2)
    masks = method.masks[1]
    assert all(mask.dtype == torch.bool and 0 < mask.float().mean() < 1 for mask in masks)
    assert all(mask.all() for mask in method.masks[0])
    x = batches(1)[0][0]
    body, (linear1, linear2) = method.network.body.body, method.layers
    found = method.logits(x, 1)  # which puts task 1's statistics in place
    with torch.no_grad():
        hidden = F.relu(body[1](F.linear(x, linear1.weight * masks[0], linear1.bias)))
        hidden = F.relu(body[5](F.linear(hidden, linear2.weight * masks[1], linear2.bias)))
        torch.testing.assert_close(found, method.network.task_heads[1](hidden))
    assert accuracy(method, 1) > 0.8


def test_masks_cost_a_bit_a_weight_and_task():
    method = learned(Piggyback(conditions(epochs=1)), 3)
    weights, statistics = 6 * 16 + 16 * 12, 2 * (16 + 12)
    assert method.stored_numbers() == count(method.network.parameters()) + 3 * statistics + 2 * weights / 32
    assert answers(method, 2).shape == (48, 3)
