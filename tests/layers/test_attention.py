"""Attention layers and EideticParameter alone: torch's and torchvision's numbers, arguments, errors."""

import pytest
import torch
from conversions import load_torchvision
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.layers import EideticPositionNetwork

OPTIONS = [{}, {"bias": False}, {"batch_first": True}, {"dropout": 0.3}]


def pair(**options):
    """torch's module and ours with its numbers."""
    torch.manual_seed(2)
    plain = nn.MultiheadAttention(12, 3, **options)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = ek.EideticMultiheadAttention(12, 3, **options)
    ours.adopt(plain.in_proj_weight, plain.in_proj_bias, plain.out_proj)
    return plain, ours


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_torchs(options, need_weights):
    plain, ours = pair(**options)
    q, kv = torch.randn(4, 5, 12), torch.randn(4, 5, 12)
    for mode in (True, False):
        plain.train(mode), ours.train(mode)
        for key in (q, kv):  # self-attention (torch's fast path without gradients), and with keys of another value
            torch.manual_seed(6)
            theirs = plain(q, key, key, need_weights=need_weights)[0]
            torch.manual_seed(6)
            mine, weights = ours(q, key, key, need_weights=need_weights)
            assert torch.equal(mine, theirs) and weights is None
            with torch.no_grad():
                torch.manual_seed(7)
                theirs = plain(q, key, key, need_weights=need_weights)[0]
                torch.manual_seed(7)
                assert torch.equal(ours(q, key, key, need_weights=need_weights)[0], theirs)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_the_segmented_way_computes_the_same(options):
    """What runs once something is pruned or frozen, against torch's own function, with gradients, in float64."""
    plain, ours = pair(**options, dtype=torch.float64)
    ours.whole = lambda: False
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in "ab"]
    a, b = ours(*[inputs[0]] * 3)[0], plain(*[inputs[1]] * 3)[0]
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    a.square().sum().backward(), b.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-11, atol=1e-11)
    packed = torch.cat([layer.weight.grad for layer in ours.projections()])
    torch.testing.assert_close(packed, plain.in_proj_weight.grad, rtol=1e-11, atol=1e-11)


def test_multihead_attention_keeps_none_of_torchs_parameters():
    names = {name for name, _ in ek.EideticMultiheadAttention(8, 2).named_parameters()}
    layers = ("query", "key", "value", "out_proj")
    assert names == {f"{layer}.{each}" for layer in layers for each in ("weight", "bias")}


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (2, 3)], ids=str)
def test_window_attention_is_torchvisions(shift, size):
    if load_torchvision() is None:
        pytest.skip("torchvision is not installed")
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    plain = ShiftedWindowAttention(8, [3, 3], list(shift), 2, dropout=0.2, attention_dropout=0.2)
    nn.init.normal_(plain.relative_position_bias_table)
    ours = ek.EideticWindowAttention(8, (3, 3), shift, 2, dropout=0.2, attention_dropout=0.2)
    ours.adopt_window(plain)
    x = torch.randn(3, *size, 8)
    inputs = [x.clone().requires_grad_() for _ in "ab"]
    outputs = []
    for module, given in zip((ours, plain), inputs):
        torch.manual_seed(3)
        outputs.append(module(given))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    table = ours.position_bias.weight.grad.t()
    torch.testing.assert_close(table, plain.relative_position_bias_table.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), plain.eval()(x))
        ours.whole = lambda: False  # what runs once something is pruned or frozen
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "dim"), [((1, 5, 6), -1), ((6, 1, 1), 0), ((6,), 0), ((2, 6, 3), 1)], ids=str)
def test_a_parameter_is_pruned_frozen_and_recycled_slice_by_slice(shape, dim):
    values = torch.randn(shape)
    layer = ek.EideticParameter(values, dim)
    assert torch.equal(layer(), values)
    keep = torch.tensor([1, 2, 5])
    layer.prune(keep)
    assert torch.equal(layer(), values.index_select(dim, keep))
    layer.freeze()
    assert torch.equal(layer(), values.index_select(dim, keep)) and not layer.weight.numel()
    layer.recycle(2)
    with torch.no_grad():
        layer.weight.fill_(float("nan"))
    assert torch.equal(layer().narrow(dim, 0, 3), values.index_select(dim, keep)) and layer().shape[dim] == 5
    layer.scope.task = 0
    assert torch.equal(layer(), values.index_select(dim, keep))


def test_units_that_share_a_slice_of_a_parameter_go_together():
    values = torch.randn(7, 3)
    layer = ek.EideticParameter(values, 1, shared=4)
    layer.prune([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(layer(), values[:, [0, 2]])
    with pytest.raises(ek.InputError, match="whole runs of 4"):
        layer.prune([0, 1])
    layer.freeze()
    layer.recycle(4)
    assert layer().shape == (7, 3) and torch.equal(layer()[:, :2], values[:, [0, 2]])


def test_fresh_units_of_a_parameter_are_drawn_like_the_first():
    layer = ek.EideticParameter(torch.full((400,), 1e-6))
    layer.prune([])
    layer.freeze()
    layer.recycle()
    assert torch.allclose(layer(), torch.full((400,), 1e-6), rtol=1e-5)
    layer = ek.EideticParameter(torch.randn(1, 30, 40) * 2 + 3)
    layer.prune([])
    layer.freeze()
    layer.recycle()
    assert abs(layer().mean() - 3) < 0.3 and abs(layer().std() - 2) < 0.2


def test_wrong_arguments():
    with pytest.raises(ek.InputError, match="multiple of num_heads; got 10 and 3"):
        ek.EideticMultiheadAttention(10, 3)
    with pytest.raises(ek.InputError, match="multiple of num_heads; got 10 and 3"):
        ek.EideticWindowAttention(10, (2, 2), (0, 0), 3)

    x = torch.randn(2, 3, 8)
    with pytest.raises(ek.InputError, match="takes no masks"):
        ek.EideticMultiheadAttention(8, 2)(x, x, x, attn_mask=torch.zeros(3, 3))
    with pytest.raises(ek.InputError, match=r"a batch; got \[3, 8\]"):
        ek.EideticMultiheadAttention(8, 2)(x[0], x[0], x[0])
    with pytest.raises(ek.InputError, match=r"expects an image \[N, H, W, C\], got \[2, 3, 8\]"):
        ek.EideticWindowAttention(8, (2, 2), (0, 0), 2)(x)

    with pytest.raises(ek.InputError, match="no dimension that could hold units"):
        ek.EideticParameter(torch.tensor(1.0))
    with pytest.raises(ek.InputError, match="holds its units in dimension -1, not -2"):
        ek.EideticParameter(torch.randn(2, 3)).orient(0)
    with pytest.raises(ek.InputError, match="does not know which dimension holds its units: give dim, or call orient"):
        ek.EideticParameter(torch.randn(2, 3), None)()

    network = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    with pytest.raises(ek.InputError, match="must be Linear, activation, Linear; got"):
        EideticPositionNetwork(torch.randn(9, 2), network, 4)
