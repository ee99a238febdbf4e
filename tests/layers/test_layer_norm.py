"""EideticLayerNorm alone: torch's LayerNorm with one segment, prefix statistics with several."""

import pytest
import torch
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.layers import LayerNormParts

OPTIONS = [{}, {"eps": 0.1}, {"elementwise_affine": False}, {"bias": False}]
SHAPES = [(4, 6), (1, 6), (0, 6), (2, 3, 6), (2, 3, 1, 6)]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def scattered(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def lived(sizes, live, width=16, nested=None, **options):
    """A float64 layer with frozen segments of these sizes and ``live`` units; ``nested``: a choice for each segment."""
    layer = ek.EideticLayerNorm(width, dtype=torch.float64, **options)
    for size in sizes:
        layer.prune(range(size))
        scattered(layer).freeze()
        layer.recycle()
    layer.prune(range(live))
    if nested is not None:
        layer.forward_transfer = nested
    return scattered(layer)


def by_definition(layer, x):
    """Unit by unit, in plain arithmetic over the last dimension."""
    sizes = [*layer.segments.frozen, layer.segments.live]
    columns, start = [], 0
    for segment, size in enumerate(sizes):
        scale, shift = layer.affine_of(segment)
        seen = x[..., 0 if layer.forward_transfer[segment] else start : start + size]
        mean = seen.mean(-1)
        deviation = ((seen - mean[..., None]) ** 2).mean(-1).add(layer.eps).sqrt()
        for unit in range(size):
            y = (x[..., start + unit] - mean) / deviation
            y = y if scale is None else y * scale[unit]
            columns.append(y if shift is None else y + shift[unit])
        start += size
    return torch.stack(columns, -1) if columns else x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_with_one_segment(options, shape):
    plain, ours = nn.LayerNorm(6, **options), ek.EideticLayerNorm(6, **options)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    scattered(plain)
    ours.load_state_dict(plain.state_dict())
    ours_in, theirs_in = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    a, b = ours(ours_in), plain(theirs_in)
    assert torch.equal(a, b)
    weights = torch.randn(shape)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    assert torch.equal(ours_in.grad, theirs_in.grad)
    for mine, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


def test_channels_first_is_torchvisions():
    ours, plain = scattered(ek.EideticLayerNorm(5, channels_first=True)), nn.LayerNorm(5)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3, 4)
    assert torch.equal(ours(x), plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert ours(x).stride() == plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).stride()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("sizes", "live"), [((3,), 2), ((2, 3), 4), ((0, 3), 1), ((3, 0, 2), 0), ((2, 1), 0), ((0,), 3), ((0,), 0)], ids=str
)
@pytest.mark.parametrize("how", ["nested", "disjoint", "mixed"])
def test_several_segments_by_definition(options, sizes, live, how):
    count = len(sizes) + 1
    nested = {"nested": (True,) * count, "disjoint": (False,) * count}.get(how, tuple(i % 2 == 0 for i in range(count)))
    layer = lived(sizes, live, nested=nested, **options)
    x = torch.randn(3, 2, sum(sizes) + live, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = layer(ours), by_definition(layer, theirs)
    torch.testing.assert_close(a, b, **CLOSE)
    if not x.numel():
        return
    weights = torch.randn_like(x)
    learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    mine = torch.autograd.grad((a * weights).sum(), [ours, *learning], allow_unused=True)
    its = torch.autograd.grad((b * weights).sum(), [theirs, *learning], allow_unused=True)
    for ours, theirs in zip(mine, its, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_in_a_network_only_live_units_get_a_gradient():
    layer = lived((3,), 2)
    layer.owned = True
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert not x.grad[:, :3].any() and x.grad[:, 3:].any()


@pytest.mark.parametrize("form", ["last", "first", "not contiguous"])
def test_frozen_units_keep_their_bits_beside_poison(form):
    layer = ek.EideticLayerNorm(16, channels_first=form == "first")
    dim = 1 if form == "first" else -1
    x = torch.randn(5, 12, 7) if form == "first" else torch.randn(5, 7, 12)
    if form == "not contiguous":
        x = torch.randn(12, 7, 5).permute(2, 1, 0)

    said = []
    for size in (4, 5):
        layer.prune(range(size))
        scattered(layer).freeze()
        present = layer.segments.total
        said.append(layer(x.narrow(dim, 0, present)).narrow(dim, present - size, size))
        layer.recycle()

    layer.prune(range(3))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
        x.narrow(dim, 9, 3).fill_(float("nan"))

    for mode in (True, False):
        y = layer.train(mode)(x)
        assert torch.equal(y.narrow(dim, 0, 4), said[0]) and torch.equal(y.narrow(dim, 4, 5), said[1])
        assert y.narrow(dim, 9, 3).isnan().all()
    for task in range(2):  # recall runs a prefix
        layer.scope.task = task
        present = layer.segments.present(task)
        assert torch.equal(layer(x.narrow(dim, 0, present)), y.narrow(dim, 0, present))


@pytest.mark.parametrize("how", ["nested", "disjoint"])
def test_parts_have_their_own_scales_and_common_statistics(how):
    """Over two groups side by side: by definition, and torch's while nothing is frozen."""
    plain = scattered(nn.LayerNorm(8, dtype=torch.float64))
    whole = ek.EideticLayerNorm(8, dtype=torch.float64)
    whole.load_state_dict(plain.state_dict())
    parts = LayerNormParts(whole, torch.arange(8).split([5, 3]))
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(parts(x), plain(x))

    sizes = [(2, 1), (1, 2)]  # frozen, live of each part
    for part, (frozen, live) in zip(parts, sizes):
        part.prune(range(frozen))
        scattered(part).freeze()
        part.recycle()
        part.prune(range(live))
        scattered(part)
        part.forward_transfer = (True, how == "nested")

    x = torch.randn(4, 6, dtype=torch.float64)
    y = parts(x)
    owner = torch.tensor([0, 0, 1, 0, 1, 1])
    for task in range(2):
        seen = owner <= task if task == 0 or how == "nested" else owner == task
        statistics = x[:, seen]
        z = (x - statistics.mean(1, True)) / (statistics.var(1, correction=0, keepdim=True) + whole.eps).sqrt()
        scale, shift = (torch.cat(each) for each in zip(*(part.affine_of(task) for part in parts)))
        torch.testing.assert_close(y[:, owner == task], z[:, owner == task] * scale + shift, **CLOSE)


def test_wrong_inputs():
    with pytest.raises(ek.InputError, match=r"expects an input of shape \[\*, 4\], got \[2, 3\]"):
        ek.EideticLayerNorm(4)(torch.randn(2, 3))
    with pytest.raises(ek.InputError, match=r"expects an input of shape \[N, 4, \*\], got \[2, 3, 4\]"):
        ek.EideticLayerNorm(4, channels_first=True)(torch.randn(2, 3, 4))
    with pytest.raises(ek.InputError, match="mixes units and positions"):
        ek.EideticLayerNorm((3, 4))
