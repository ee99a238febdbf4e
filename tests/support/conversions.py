"""Checks every promise on a converted module, with one function for the tests and for the sweep of models."""

import copy
import re
import warnings

import torch
from life import bits, live_tensors
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.layers import EideticConvTranspose, EideticEmbedding, Shared
from eidetic_kernels.layers.linear import UNIT_MAJOR_FROM


def load_torchvision():
    """torchvision's models, or None. Its wheel does not import next to a CPU torch until two operators are defined."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # it is there: a torchvision that fits this torch
            pass
    try:
        from torchvision import models
    except (ImportError, RuntimeError):
        return None
    load_torchvision.library = library  # operators live as long as it does
    return models


def lived_in(module):
    """``module`` with random statistics and affine parameters, as after training, so that every mistake shows."""
    for each in module.modules():
        if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(each.running_mean, 0, 0.1)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
            if each.affine:
                nn.init.uniform_(each.weight, 0.5, 1.5)
                nn.init.normal_(each.bias, 0, 0.1)
    with torch.no_grad():  # zero-initialised heads and biases, layer scales, LayerNorm's ones
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def assert_teaches(message):
    """A refusal of a node says which one, its line, and the ways out."""
    assert re.match(r"node '\w+' \[[a-z_]+ .*?\].* \(File \"[^\"]+\", line \d+, in ", message), message
    assert "ek.register_rule" in message and "connections()" in message, message


def take_through(module, x, *, head=None, classes=None, double=True, extract=True, rounded=False):
    """Convert ``module`` and hold it to every promise on the batch ``x``; returns the network after three tasks.

    Same bits in evaluation, the same training step (in float64, so that chaos stays out), the original untouched, a
    second task learned by AdamW with decay after pruning, both recalled bit for bit under poison, and both extracted.
    ``rounded``: the last bits in evaluation may be others than the module's.
    """
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [each.training for each in module.modules()]
    net = ek.convert(module, x[:1], head=head)
    assert [each.training for each in module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in net.parameters()}
    with torch.no_grad():
        expected = copy.deepcopy(module).eval()(x)
        if rounded:
            torch.testing.assert_close(net.eval()(x), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(net.eval()(x), expected), "evaluation"
    classes = classes or expected.shape[1]
    y = torch.arange(len(x)) % classes
    if double:
        same_step(copy.deepcopy(module).double(), x.double(), y, head)

    answers = []
    optimizer = None
    for task in range(2):
        if task:
            net.prepare_for_task(task, classes, optimizer=optimizer)
        else:
            optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1)
        train(net, optimizer, x, y)
        net.prune(0.4, optimizer=optimizer)
        train(net, optimizer, x, y)
        net.finish_task()
        answers.append(recall(net, x, task))
    with warnings.catch_warnings():  # a group keeps a grain when it is pruned, so tiny modules may be full by now
        warnings.filterwarnings("ignore", "no layer has a free unit")
        net.prepare_for_task(2, classes, optimizer=optimizer)
    train(net, optimizer, x, y)
    with torch.no_grad():
        for tensor in live_tensors(net).values():
            tensor.fill_(float("nan"))
        assert net.eval()(x).isnan().all(), "the poison must reach the task in training"
    for task, answer in enumerate(answers):
        assert recall(net, x, task) == answer, f"task {task} changed"
        if extract:
            extracted_alike(net, task, x)
    assert net.certify().ok, str(net.certify())
    return net


@torch.no_grad()
def extracted_alike(net, task, x):
    """``net.extract(task)`` is plain, in evaluation mode, and gives the network's logits; task 0's bit for bit in
    batches that are too small for units to lie one after the other."""
    plain = net.extract(task)
    assert not [each for each in plain.modules() if type(each).__module__.startswith("eidetic")]
    assert not any(each.training for each in plain.modules())
    for batch in (x, x[: UNIT_MAJOR_FROM - 1], x[:1]):
        with backends.using("torch"):  # what the plain module is made of
            given, expected = plain(batch), net.eval()(batch, task=task)
        # The library rounds by where weights lie, by how many channels lie side by side, and by what is transposed.
        if task or len(batch) >= UNIT_MAJOR_FROM:
            assert_close(f"task {task} extracted", given, expected, condition=10)
        else:
            assert_same_bits("task 0 extracted", given, expected)
    return plain


def same_step(plain, x, y, head):
    """One training step of SGD: the same loss, and the same parameters, statistics and outputs after it."""
    net = ek.convert(plain, x[:1], head=head)
    losses, outputs = [], []
    for each in (plain, net):
        each.train()
        optimizer = torch.optim.SGD(each.parameters(), 0.01)
        torch.manual_seed(5)
        loss = F.cross_entropy(each(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        outputs.append(each.eval()(x).detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-7, atol=1e-9)
    theirs, compared = plain.state_dict(), 0
    for name, tensor in as_converted(net).items():
        if name in theirs and tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-7, atol=1e-9)
            compared += 1
    assert compared


def as_converted(net):
    """The state of ``net`` by the original's names, divided layers whole again and columns in the original's order."""
    state = {name.removeprefix("body."): tensor for name, tensor in net.state_dict().items()}
    for path, layer in net.body.named_modules():
        first = layer[0] if isinstance(layer, Shared) else layer
        for name in ("weight", "bias") if isinstance(layer, Shared) else ():
            if getattr(first, name) is not None:
                state[f"{path}.{name}"] = torch.cat([getattr(part, name).detach() for part in layer])
        if getattr(first, "order", None) is not None:
            state[f"{path}.weight"] = state[f"{path}.weight"][:, first.order]
        if isinstance(first, (EideticConvTranspose, EideticEmbedding)):  # a row for each unit
            state[f"{path}.weight"] = state[f"{path}.weight"].transpose(0, 1)
    return state


def train(net, optimizer, x, y, steps=2):
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


@torch.no_grad()
def recall(net, x, task):
    """SHA-256 of a finished task's logits, for the batch and for one sample of it."""
    net.eval()
    return bits(net(x, task=task)), bits(net(x[:1], task=task))
