"""EideticDepthwiseConv2d alone: torch's depthwise convolution, segment by segment."""

import pytest
import torch
from torch import nn

import eidetic_kernels as ek

OPTIONS = [
    {}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"padding": 1, "padding_mode": "circular"},
    {"bias": False, "padding": (0, 1)},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_torchs_until_something_is_frozen(options):
    torch.manual_seed(1)
    plain = nn.Conv2d(5, 5, 3, groups=5, **options)
    torch.manual_seed(1)
    ours = ek.EideticDepthwiseConv2d(5, 3, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True))
    x = torch.randn(2, 5, 7, 6)
    assert torch.equal(ours(x), plain(x))
    ours(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(plain.parameters(), ours.parameters()):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_frozen_channels_keep_their_bits_beside_poison(options):
    layer, x = ek.EideticDepthwiseConv2d(6, 3, **options), torch.randn(3, 6, 7, 6)
    layer.prune([0, 2, 3])
    before = layer(x[:, :3])
    layer.freeze()
    frozen = layer(x[:, :3])
    torch.testing.assert_close(frozen, before)
    layer.recycle(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    x = x[:, :5].clone()
    x[:, 3:] = float("nan")
    assert torch.equal(layer(x)[:, :3], frozen) and layer(x)[:, 3:].isnan().all()
    layer.freeze()
    layer.recycle(0)
    assert torch.equal(layer(x)[:, :3], frozen)


def test_nothing_left_is_an_empty_image():
    layer = ek.EideticDepthwiseConv2d(2, 3, stride=2)
    layer.prune([])
    assert layer(torch.randn(4, 0, 7, 5)).shape == (4, 0, 3, 2)


def test_wrong_inputs():
    with pytest.raises(ek.InputError, match=r"expects an input of shape \[N, 4, H, W\], got \[1, 3, 5, 5\]"):
        ek.EideticDepthwiseConv2d(4, 3)(torch.randn(1, 3, 5, 5))
    with pytest.raises(ek.InputError, match="padding_mode must be one of"):
        ek.EideticDepthwiseConv2d(4, 3, padding_mode="mirror")
