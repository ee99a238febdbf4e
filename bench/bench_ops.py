"""Every op by itself, forward and backward, in every (frozen, live) state of a layer, on every device there is."""

from __future__ import annotations

import pytest
import torch
from networks import SEGMENTS, SMOKE, STATES

from eidetic_kernels.layers import EideticBatchNorm1d, EideticBatchNorm2d, EideticConv2d, EideticLinear
from eidetic_kernels.layout import Segments, Source

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WIDTH, CHANNELS, BATCH, SIDE = (40, 20, 4, 4) if SMOKE else (2000, 128, 256, 16)


def segments(width: int, state: tuple[int, int]) -> Segments:
    frozen, live = (share * width // 100 for share in state)
    return Segments(width, live, (frozen // SEGMENTS,) * SEGMENTS if frozen else ())


def layer_in(layer, state, width):
    """``layer`` with its units in ``state``, and the segments of the layer that it reads, in the same state."""
    output, before = segments(width, state), segments(width, state)
    for size in output.frozen:
        layer.prune(list(range(size)))
        layer.freeze()
        layer.recycle(0 if layer.segments.free == 0 else layer.segments.free)
    layer.prune(list(range(output.live)))
    return layer, before


def linear(state):
    layer, before = layer_in(EideticLinear(WIDTH, WIDTH, bias=False), state, WIDTH)
    return _reading(layer, before), torch.randn(BATCH, before.total)


def convolution(state, kernel=3, norm=None):
    layer = EideticConv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, bias=False, norm=norm)
    layer, before = layer_in(layer, state, CHANNELS)
    return _reading(layer, before), torch.randn(BATCH // 4, before.total, SIDE, SIDE)


def convolution_with_norm(state, kernel=3):
    return convolution(state, kernel, EideticBatchNorm2d(CHANNELS, activation="relu"))


def convolution_then_norm(state, kernel=3):
    """The same as :func:`convolution_with_norm`, as two layers."""
    layer, x = convolution(state, kernel)
    norm, _ = layer_in(EideticBatchNorm2d(CHANNELS, activation="relu"), state, CHANNELS)
    both = torch.nn.Sequential(layer, norm)
    both.segments = layer.segments
    return both, x


def flat_norm(state):
    layer, _ = layer_in(EideticBatchNorm1d(WIDTH, activation="relu"), state, WIDTH)
    return layer, torch.randn(BATCH, layer.segments.total)


def image_norm(state):
    layer, _ = layer_in(EideticBatchNorm2d(CHANNELS, activation="relu"), state, CHANNELS)
    return layer, torch.randn(BATCH // 4, layer.segments.total, SIDE, SIDE)


def _reading(layer, before: Segments):
    """``layer`` with fresh weights that read ``before`` nested, segment by segment."""
    layer.sources = (Source(before),)
    layer.renew_live()
    layer.allocate_frozen()
    torch.nn.init.normal_(layer.frozen_weight, std=0.02)
    return layer


OPS = {
    "linear": linear,
    "convolution": convolution,
    "flat norm": flat_norm,
    "image norm": image_norm,
    "convolution with norm": convolution_with_norm,
    "convolution, then norm": convolution_then_norm,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("state", STATES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark, op, state, part, device):
    torch.manual_seed(0)
    layer, x = OPS[op](state)
    layer, x = layer.to(device).train(), x.to(device)
    x = (x * 1).requires_grad_() if part == "backward" else x
    for module in layer.modules():
        module.owned = True  # as in a network, where frozen columns need no gradient
    y = layer(x)
    assert y.isfinite().all() and y.shape[1] == layer.segments.total
    if part == "forward":
        benchmark.pedantic(lambda: layer(x), warmup_rounds=2, rounds=11)
    else:
        dy = torch.randn_like(y)
        wanted = [t for t in (x, *layer.parameters()) if t.numel()]
        benchmark.pedantic(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True), warmup_rounds=2, rounds=11)
