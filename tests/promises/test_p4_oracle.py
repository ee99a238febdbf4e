"""P4: a network equals the paper's dense masked network, forward and backward, in float64 to 1e-10."""

import pytest
import torch
from dense_reference import DenseReference, assert_masks_are_the_papers
from life import READINGS, batch, learn, loss_of, reading, recall, train
from small_networks import MLP, ConvNet, FlatResidual, Grouped, Residual
from torch.nn import functional as F

NETWORKS = {
    "mlp": lambda: MLP(dropout=0.0),
    "mlp-without-norm": lambda: MLP(norm=False, dropout=0.0),
    "conv": lambda: ConvNet(dropout=0.0),
    "conv-without-norm": lambda: ConvNet(norm=False, dropout=0.0),
    "residual": lambda: Residual(dropout=0.0),
    "residual-without-norm": lambda: Residual(norm=False, dropout=0.0),
    "flat-residual": lambda: FlatResidual(dropout=0.0),
    "grouped": lambda: Grouped(dropout=0.0),
    "grouped-without-norm": lambda: Grouped(norm=False, dropout=0.0),
}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
TASKS = 4


@pytest.fixture(params=NETWORKS)
def net(request):
    return NETWORKS[request.param]().double()


def shift_normalisation(net):
    """Scales and shifts away from 1 and 0, where an affine applied twice would go unseen."""
    with torch.no_grad():
        for group in net.groups:
            for norm in group.norms.values():
                norm.weight.add_(torch.rand_like(norm.weight))
                if norm.bias is not None:
                    norm.bias.add_(torch.randn_like(norm.bias))


def assert_equal_to_reference(net, reference, x, y):
    """Logits, and gradients of every live parameter and of the input, in the mode that both are in."""
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for loss_input, model in ((ours, net), (theirs, reference)):
        model.zero_grad()
        F.cross_entropy(model(loss_input), y).backward()
    pairs = list(reference.pairs(net))
    compared = {id(parameter) for _, parameter, _, _ in pairs}
    assert {id(parameter) for parameter in net.parameters() if parameter.numel()} == compared
    for path, parameter, dense, cut in pairs:
        torch.testing.assert_close(parameter.grad, cut(dense.grad), **CLOSE, msg=lambda m, path=path: f"{path}: {m}")
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)
    assert_parameters_equal_reference(net, reference)
    torch.testing.assert_close(net(x), reference(x), **CLOSE)


def assert_parameters_equal_reference(net, reference):
    for path, parameter, dense, cut in reference.pairs(net):
        torch.testing.assert_close(parameter, cut(dense), **CLOSE, msg=lambda m, path=path: f"{path}: {m}")
    for path, ours, theirs in reference.statistics(net):
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda m, path=path: f"{path}: {m}")


@pytest.mark.parametrize("how", READINGS)
def test_logits_and_gradients_equal_the_dense_masked_network(net, how):
    for task in range(TASKS):
        net.prepare_for_task(task, 3, reading(net, how, task), max_units=0.4 if task else None)
        shift_normalisation(net)
        x, y = batch(net, 9, seed=task)
        for mode in (True, False):
            net.train(mode)
            assert_equal_to_reference(net, DenseReference(net), x, y)
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        train(net, optimizer, 2, seed=task)
        net.prune(1.0 if task == 2 else 0.4, optimizer=optimizer)  # task 2 keeps no unit
        for mode in (True, False):
            net.train(mode)
            assert_equal_to_reference(net, DenseReference(net), x, y)
        net.finish_task()


@pytest.mark.parametrize("how", READINGS)
def test_a_training_run_stays_equal_to_the_dense_one_with_frozen_gradients_zeroed(net, how):
    for task in range(2):
        learn(net, task, how)
    net.prepare_for_task(2, 3, reading(net, how, 2))
    net.train()
    reference = DenseReference(net)
    masked = {path: module for path, module in reference.named_modules() if hasattr(module, "mask")}
    frozen = {path: module.weight[: module.frozen].clone() for path, module in masked.items()}

    ours = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    theirs = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    for step in range(6):
        x, y = batch(net, 10, seed=step)
        ours.zero_grad(), theirs.zero_grad()
        loss_of(net, x, y).backward()
        F.cross_entropy(reference(x), y).backward()
        reference.zero_frozen_gradients()
        ours.step(), theirs.step()
        assert_parameters_equal_reference(net, reference)

    for path, weight in frozen.items():
        assert torch.equal(reference.get_submodule(path).weight[: len(weight)], weight)
    net.eval(), reference.eval()
    torch.testing.assert_close(net(x), reference(x), **CLOSE)
    logits = reference(x)
    net.finish_task()
    torch.testing.assert_close(recall(net, x, 2), logits, **CLOSE)


@pytest.mark.parametrize("how", READINGS)
def test_recall_equals_what_the_dense_network_said_when_the_task_was_finished(net, how):
    """Freezing folds BatchNorm into two numbers; the reference keeps torch's own module in evaluation mode."""
    x, said = batch(net, 11)[0], []
    for task in range(TASKS):
        net.prepare_for_task(task, 3, reading(net, how, task), max_units=0.3)
        shift_normalisation(net)
        train(net, torch.optim.Adam(net.parameters(), 0.05), 3, seed=task)
        net.prune(0.3)
        net.eval()
        said.append(DenseReference(net)(x))
        net.finish_task()
    for task, logits in enumerate(said):
        torch.testing.assert_close(recall(net, x, task), logits, **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_stays_within_a_tight_relative_tolerance(name):
    net = NETWORKS[name]()
    for task in range(2):
        learn(net, task)
    net.prepare_for_task(2, 3)
    net.train()
    x, y = batch(net, 16)
    reference = DenseReference(net)
    loss_of(net, x, y).backward()
    F.cross_entropy(reference(x), y).backward()
    for path, parameter, dense, cut in reference.pairs(net):
        theirs = cut(dense.grad)
        # The true gradient of a bias that a norm follows is 0: what is there is rounding, which has no relative error.
        error = (parameter.grad - theirs).norm() / theirs.norm().clamp_min(1e-2)
        assert error < 1e-4, f"{path}: relative error {error:.1e}"


@pytest.mark.parametrize("how", READINGS)
def test_masks_are_what_the_paper_says(net, how):
    """Resistance, entry by entry: no frozen unit reads a unit of a later task; disjoint ones read their own only."""
    choices = []
    for task in range(3):
        choices.append(reading(net, how, task))
        learn(net, task, how, max_units=0.3)
    net.prepare_for_task(3, 3, (last := reading(net, how, 3)))
    choices.append(last)
    assert_masks_are_the_papers(net, choices)
