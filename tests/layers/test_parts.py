"""A BatchNorm over concatenated groups: its parts, one by one or in one call, have the same bits where promised."""

import copy

import pytest
import torch
from tolerances import assert_close, assert_same_bits
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.layers import Parts, Scope

WIDTHS = 5, 1, 7
HERE = [name for name in ("torch", "cpu") if backends.why_missing(name) is None]


def made(activation="none", seed=0, **options):
    """A norm with numbers of its own, and its parts."""
    generator = torch.Generator().manual_seed(seed)
    norm = ek.EideticBatchNorm2d(sum(WIDTHS), activation=activation, **options)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    parts = Parts(norm, torch.arange(sum(WIDTHS)).split(WIDTHS))
    scope = Scope()
    for part in parts:
        part.scope = scope
    return norm, parts


def one_by_one(parts, x, residual=None):
    sizes = [part.segments.present(part.scope.task) for part in parts]
    added = [None] * len(sizes) if residual is None else residual.split(sizes, 1)
    pieces = [part(piece.contiguous(), other) for part, piece, other in zip(parts, x.split(sizes, 1), added)]
    return torch.cat(pieces, 1)


def live_two_tasks(parts):
    """The second part has no unit in the second task, and the last none in the first."""
    for kept in (([0, 2], [0], []), ([1], [], [0, 1, 3])):
        for part, keep in zip(parts, kept):
            with torch.no_grad():
                part.running_mean.normal_()
            part.prune(keep)
            part.freeze()
            part.recycle(part.segments.free)
    return parts


@pytest.fixture
def calls(monkeypatch):
    count = []
    op = ek.ops.segmented_batch_norm
    monkeypatch.setattr(ek.ops, "segmented_batch_norm", lambda *given: count.append(given) or op(*given))
    return count


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_fresh_parts_are_the_layer_in_one_call(layout, calls):
    for activation in ("none", "relu", "silu"):
        norm, parts = made(activation)
        x = torch.randn(4, sum(WIDTHS), 3, 2).contiguous(memory_format=layout)
        for training in (True, False):
            found = []
            for module in (norm, parts):
                module.train(training).zero_grad()
                given, residual = (x * scale for scale in (1, 2))
                given.requires_grad_(), residual.requires_grad_()
                calls.clear()
                y = module(given, residual)
                assert len(calls) == 1
                y.square().sum().backward()

                each = [module] if module is norm else list(parts)
                tensors = [
                    torch.cat(
                        [getattr(part, name) if name[:4] != "grad" else getattr(part, name[5:]).grad for part in each]
                    )
                    for name in ("running_mean", "running_var", "grad weight", "grad bias")
                ]
                found.append([y, given.grad, residual.grad, *tensors])
                assert {int(part.num_batches_tracked) for part in each} == {1}

            for number, (theirs, ours) in enumerate(zip(*found)):
                assert_same_bits(f"{number}, {activation}", ours, theirs)


def test_pruned_parts_run_in_one_call_too_and_get_their_statistics(calls):
    _, parts = made("relu")
    for part, keep in zip(parts, ([1, 3, 4], [], [0, 6])):
        part.prune(keep)
    copied = copy.deepcopy(parts)
    x = torch.randn(6, 5, 2, 2)
    y = parts(x)
    assert len(calls) == 1
    assert_close("y", y, one_by_one(copied, x))
    for ours, theirs in zip(parts, copied):
        for name, tensor in theirs.state_dict().items():
            if tensor.numel():
                assert_close(name, ours.state_dict()[name].double(), tensor.double(), 1e5)
    assert [int(part.num_batches_tracked) for part in parts] == [1, 0, 1]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation", ek.ops.ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_recall_in_one_call_has_the_bits_of_recall_one_by_one(layout, activation, backend, calls):
    """P1 and P3: a finished task's answers, given before its parts ran together, stay."""
    _, parts = made(activation)
    live_two_tasks(parts).eval()
    with torch.no_grad():
        for part in parts:
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.fill_(float("nan"))
    with backends.using(backend), torch.no_grad():
        for task, channels in ((0, 3), (1, 7)):
            with parts[0].scope.running(task, False):
                x = torch.randn(3, channels, 3, 3).contiguous(memory_format=layout)
                for residual in (None, torch.randn_like(x)):
                    calls.clear()
                    y = parts(x, residual)
                    assert len(calls) == 1
                    assert_same_bits(f"task {task}", y, one_by_one(parts, x, residual))


def test_frozen_beside_live_units_run_one_by_one(calls):
    _, parts = made("relu")
    live_two_tasks(parts)
    copied = copy.deepcopy(parts)
    x = torch.randn(4, 7 + sum(part.segments.live for part in parts), 3, 3)
    calls.clear()
    y = parts(x)
    assert len(calls) == len(WIDTHS)
    assert_same_bits("y", y, one_by_one(copied, x))


@pytest.mark.parametrize("change", ["eps", "momentum", "mode", "average", "watched"])
def test_parts_that_differ_or_are_watched_run_one_by_one(change, calls):
    _, parts = made(momentum=None if change == "average" else 0.1)
    seen = []
    if change == "watched":
        parts[1].register_forward_hook(lambda *given: seen.append(given))
    elif change == "mode":
        parts[2].eval()
    elif change != "average":
        setattr(parts[1], change, 0.5)
    x = torch.randn(4, sum(WIDTHS), 3, 3)
    expected = one_by_one(copy.deepcopy(parts), x)
    calls.clear(), seen.clear()
    assert_same_bits("y", parts(x), expected)
    assert len(calls) == len(WIDTHS) and len(seen) == (change == "watched")


def test_what_is_refused_changes_nothing():
    _, parts = made()
    before = copy.deepcopy(parts.state_dict())
    for x, residual in (
        (torch.randn(1, sum(WIDTHS), 1, 1), None),
        (torch.randn(2, sum(WIDTHS), 3, 3), torch.randn(2, sum(WIDTHS), 4, 3)),
    ):
        with pytest.raises(ek.InputError, match="more than one value|adds a residual"):
            parts(x, residual)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.state_dict().items())


def test_parts_of_other_layers_run_one_by_one():
    plain = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    layer = ek.layers.EideticDepthwiseConv2d(4, 3, padding=1)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert_close("y", Parts(layer, torch.arange(4).split((1, 3)))(x), plain(x))
