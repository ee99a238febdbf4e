"""HAT: annealing, compensated gradients, the regulariser, and gates of earlier tasks that hold weights still."""

import pytest
import torch
from life import bits
from small_methods import accuracy, answers, batches, conditions, images, learned
from small_networks import ConvNet, FlatResidual, Residual

from eidetic_kernels.errors import InputError
from eidetic_training.methods import HAT
from eidetic_training.methods.hat import _Attention


def binary(method, task, opened=0.5):
    """Gives a task gates that are wide open or shut, as long training does."""
    generator = torch.Generator().manual_seed(task)
    method.embeddings.append(
        [torch.nn.Parameter(2.0 * (torch.rand(len(u), generator=generator) < opened).float() - 1) for u in method.used]
    )
    method.used = [torch.maximum(u, g.detach()) for u, g in zip(method.used, method.gates(task, method.steepest))]


@pytest.mark.parametrize("optimizer, lr", [("adamw", 0.02), ("sgd", 0.1)])
def test_earlier_tasks_hardly_move_and_their_gates_not_at_all(optimizer, lr):
    method = HAT(conditions(epochs=6, optimizer=optimizer, lr=lr), gate_lr=0.1)
    logits, gates = [], []
    for task in range(3):
        learned(method, task + 1)
        logits.append(answers(method, task))
        gates.append([bits(e) for e in method.embeddings[task]])
        for past in range(task):
            torch.testing.assert_close(answers(method, past), logits[past], rtol=1e-3, atol=1e-3)
        assert [[bits(e) for e in each] for each in method.embeddings] == gates
    gates = torch.cat([gate for task in range(3) for gate in method.gates(task, method.steepest)])
    assert ((gates < 0.01) | (gates > 0.99)).float().mean() > 0.9


def test_it_learns():
    method = learned(HAT(conditions(epochs=15), gate_lr=0.05), 2)
    assert accuracy(method, 0) > 0.9 and accuracy(method, 1) > 0.9


def test_gates_steepen_within_every_epoch():
    method = learned(HAT(conditions(epochs=1)))
    hooks = _Attention(method, 0, batches=5)
    seen = []
    for number in range(10):
        hooks.batch = number
        seen.append(hooks.steepness)
    assert seen[0] == seen[5] == 1 / 400 and seen[4] == seen[9] == 400
    assert seen[2] == pytest.approx((400 + 1 / 400) / 2)
    hooks.batches, hooks.batch = 1, 3
    assert hooks.steepness == 1 / 400


@pytest.mark.parametrize("batch", [0, 2, 4])
def test_compensated_gradients_do_not_depend_on_the_annealing(batch):
    """d gate / d e is replaced by s_max times the derivative at steepness 1 (section 2.5 of HAT's paper)."""
    method = learned(HAT(conditions(epochs=1)))
    hooks = _Attention(method, 0, batches=5)
    hooks.batch = batch
    values = torch.linspace(-0.05, 0.05, 16, dtype=torch.float64)
    e = torch.nn.Parameter(values.clone())
    hooks.embeddings, hooks.body = [e], []
    torch.sigmoid(hooks.steepness * e).sum().backward()
    hooks.after_backward()
    plain = torch.sigmoid(values) * (1 - torch.sigmoid(values))
    torch.testing.assert_close(e.grad, 400 * plain, rtol=1e-6, atol=0)


def test_the_regulariser_is_the_share_of_free_units_that_is_taken():
    method = HAT(conditions())
    method.used = [torch.tensor([1.0] * 8 + [0.0] * 8), torch.tensor([0.5] * 12)]
    method._gates = [torch.tensor([1.0] * 12 + [0.0] * 4), torch.tensor([1.0] * 6 + [0.0] * 6)]
    assert float(method.taken()) == pytest.approx((4 + 3) / (8 + 6))
    assert float(_Attention_of(method).penalty()) == pytest.approx(0.75 * 0.5)


def _Attention_of(method):
    method.embeddings.append([torch.nn.Parameter(torch.zeros(len(u))) for u in method.used])
    return _Attention(method, 0, 1)


def test_the_regulariser_reaches_embeddings_and_opens_fewer_gates():
    def opened(sparsity):
        method = learned(HAT(conditions(epochs=15), sparsity=sparsity, gate_lr=0.1))
        return float(torch.cat(method.gates(0, 400.0)).mean())

    assert opened(20.0) < 0.7 * opened(0.0)


def test_a_weight_may_move_where_its_output_or_its_input_is_free():
    method = HAT(conditions(lambda: ConvNet((6, 5, 7), dropout=0.0)))
    binary(method, 0)
    (conv1, bn1), (conv2, _), (linear, bn3) = (
        (method.network.body.conv1, method.network.body.bn1),
        (method.network.body.conv2, method.network.body.bn2),
        (method.network.body.fc, method.network.body.bn3),
    )
    first, second, third = (u > 0.5 for u in method.used)
    for p in (conv1.weight, bn1.weight, bn1.bias):
        shares = method.open(p).expand_as(p)
        assert torch.equal(shares.flatten(1).amin(1) if p.dim() > 1 else shares, (~first).float())
    blocked = second[:, None] & first[None, :]
    assert torch.equal(method.open(conv2.weight).expand_as(conv2.weight)[..., 1, 1], (~blocked).float())
    pixels = second.repeat_interleave(4)  # flattened images of 2 x 2
    assert torch.equal(method.open(linear.weight), (~(third[:, None] & pixels[None, :])).float())
    assert torch.equal(method.open(linear.bias), (~third).float())
    assert torch.equal(method.open(bn3.bias), (~third).float())


def test_blocked_weights_keep_their_bits_and_half_blocked_ones_make_half_their_moves():
    moves = {}
    for used in (0.0, 0.5, 1.0):
        method = HAT(conditions(epochs=1, optimizer="adam"))
        before = {name: p.detach().clone() for name, p in method.network.body_parameters()}
        method.used = [torch.full_like(u, used) for u in method.used]
        method.learn(batches(0)[:1], 3)
        moves[used] = {name: p.detach() - before[name] for name, p in method.network.body_parameters()}
    assert all((move == 0).all() for move in moves[1.0].values())
    moved = 0
    for name, move in moves[0.0].items():
        torch.testing.assert_close(moves[0.5][name], 0.5 * move, rtol=1e-3, atol=1e-6)
        moved += int((move != 0).sum())
    assert moved > 50


def test_convolutions_flattened_into_a_layer_work():
    method = HAT(conditions(lambda: ConvNet(dropout=0.0), epochs=4), gate_lr=0.1)
    learned(method, 1, images)
    before = answers(method, 0, images)
    learned(method, 2, images)
    torch.testing.assert_close(answers(method, 0, images), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", [Residual, FlatResidual])
def test_networks_that_are_no_chain_are_refused(network):
    with pytest.raises(InputError, match="HAT takes chains"):
        HAT(conditions(network))


def test_gates_cost_a_bit_a_unit_and_task():
    method = learned(HAT(conditions(epochs=1)), 2)
    numbers = sum(p.numel() for p in method.network.parameters())
    assert method.stored_numbers() == numbers + 2 * 2 * (16 + 12) + 2 * (16 + 12) / 32
