"""Grouped and depthwise convolutions: torch's numbers, segment by segment, and whole grains in a network."""

import copy

import pytest
import torch
from life import Memory, poison, train
from plain_modules import Plain, pooled
from small_networks import MLP, Grouped
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.tasks.importance import grain_scores
from eidetic_kernels.tasks.pruning import GroupPlan

OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"bias": False, "padding": (0, 1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("groups", [6, 3, 2])
def test_it_is_torchs_until_something_is_frozen(groups, options):
    torch.manual_seed(1)
    plain = nn.Conv2d(6, 6, 3, groups=groups, **options)
    torch.manual_seed(1)
    ours = ek.EideticGroupedConv2d(6, groups, 3, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True))
    x = torch.randn(2, 6, 7, 6)
    assert torch.equal(ours(x), plain(x))
    ours(x).square().sum().backward()
    plain(x).square().sum().backward()
    for a, b in zip(plain.parameters(), ours.parameters()):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grain", [1, 2, 3])
def test_frozen_channels_keep_their_bits_beside_poison(grain, options):
    layer, x = ek.EideticGroupedConv2d(6 * grain, 6, 3, **options), torch.randn(3, 6 * grain, 7, 6)
    layer.prune([unit * grain + i for unit in (0, 2, 3) for i in range(grain)])
    before = layer(x[:, : 3 * grain])
    layer.freeze()
    frozen = layer(x[:, : 3 * grain])
    torch.testing.assert_close(frozen, before)
    layer.recycle(2 * grain)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    x = x[:, : 5 * grain].clone()
    x[:, 3 * grain :] = float("nan")
    assert torch.equal(layer(x)[:, : 3 * grain], frozen) and layer(x)[:, 3 * grain :].isnan().all()
    layer.freeze()
    layer.recycle(0)
    assert torch.equal(layer(x)[:, : 3 * grain], frozen)


def test_depthwise_is_a_group_a_channel():
    torch.manual_seed(1)
    depthwise = ek.EideticDepthwiseConv2d(5, 3, 2, 1, bias=False, padding_mode="reflect")
    torch.manual_seed(1)
    plain = nn.Conv2d(5, 5, 3, 2, 1, groups=5, bias=False, padding_mode="reflect")
    x = torch.randn(2, 5, 7, 7)
    assert torch.equal(depthwise(x), plain(x)) and depthwise.segments.grain == 1
    assert isinstance(depthwise, ek.EideticGroupedConv2d)


def test_a_part_is_the_same_convolution_of_some_groups():
    layer, x = ek.EideticGroupedConv2d(6, 3, 3, 2, 1), torch.randn(2, 6, 7, 7)
    layer.bias.requires_grad_(False)
    part = layer.part(torch.arange(2, 6))
    torch.testing.assert_close(part(x[:, 2:]), layer(x)[:, 2:], rtol=0, atol=0)
    assert (part.channels, part.groups, part.segments.width, part.segments.grain) == (4, 2, 4, 2)
    assert part.weight.requires_grad and not part.bias.requires_grad
    assert (layer.channels, layer.segments.width) == (6, 6)


def test_nothing_left_is_an_empty_image():
    layer = ek.EideticGroupedConv2d(4, 2, 3, stride=2)
    layer.prune([])
    assert layer(torch.randn(4, 0, 7, 5)).shape == (4, 0, 3, 2)


def test_wrong_arguments_and_inputs():
    with pytest.raises(ek.InputError, match=r"expects an input of shape \[N, 4, H, W\], got \[1, 3, 5, 5\]"):
        ek.EideticGroupedConv2d(4, 2, 3)(torch.randn(1, 3, 5, 5))
    with pytest.raises(ek.InputError, match="padding_mode must be one of"):
        ek.EideticDepthwiseConv2d(4, 3, padding_mode="mirror")
    with pytest.raises(ek.InputError, match="groups must divide the channels; 3 groups of 4 channels"):
        ek.EideticGroupedConv2d(4, 3, 3)
    for keep in ([0], [0, 2], [1, 2], [0, 1, 3]):
        layer = ek.EideticGroupedConv2d(4, 2, 3)
        with pytest.raises(ek.InputError, match="whole runs of 2 units"):
            layer.prune(keep)
        assert layer.segments.live == len(layer.weight) == 4


# ---- whole grains in a network


def scored(net, importance):
    """The plan that takes half of the live units."""
    x = torch.randn(6, *net.example)
    return net.plan_pruning(0.5, importance, data=[(x, torch.arange(6) % 3)])


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "hybrid", "random"])
def test_pruning_takes_whole_grains(importance):
    net = Grouped(width=12, inner=8, dropout=0.0)
    net.prepare_for_task(0, 3)
    grains = {"stem (+1 tied)": 3, "conv1": 2}
    assert {group.name: group.segments.grain for group in net.groups} == grains
    plan = scored(net, importance)
    assert 0 < plan.removed < 10 + 3, "half, and less than a grain more"
    for part in plan.groups:
        runs = part.keep.view(-1, grains[part.name])
        assert (runs[:, 0] % grains[part.name] == 0).all() and (runs.diff(dim=1) == 1).all()
    if importance in ("l1", "l2"):  # the norm over all producers' rows in the grain
        norm, group = int(importance[1]), net.groups[0]
        scores = torch.stack(
            [
                torch.cat([layer.weight[i : i + 3].flatten() for layer in group.producers.values()]).norm(norm)
                for i in range(0, 12, 3)
            ]
        )
        best = scores.argsort(descending=True)[:2].sort().values
        assert plan.groups[0].keep.view(-1, 3)[:, 0].tolist() == (best * 3).tolist()


def test_a_grains_score_is_the_norm_of_its_units():
    scores = torch.tensor([3.0, 0, 0, 2, 2, 0])
    torch.testing.assert_close(grain_scores(scores, 3, "l2"), torch.tensor([3.0, 8**0.5]) / 3**0.5)
    torch.testing.assert_close(grain_scores(scores, 3, "taylor"), torch.tensor([3.0, 4]) / 3)


def test_tied_units_move_in_grains_that_fit_both_sides():
    plain = Plain(
        lambda s, x: s.fc(pooled(s.g(s.a(x)) + s.h(s.b(x)))),
        a=nn.Conv2d(3, 12, 1),
        b=nn.Conv2d(3, 12, 1),
        g=nn.Conv2d(12, 12, 3, groups=6),
        h=nn.Conv2d(12, 12, 3, groups=4),
        fc=nn.Linear(12, 4),
    )
    net = ek.convert(plain, torch.randn(1, 3, 5, 5))
    assert [group.segments.grain for group in net.groups] == [6]


def test_a_cap_and_a_width_are_rounded_to_whole_grains():
    net = Grouped(width=12, inner=8)
    net.prepare_for_task(0, 3, max_units=5)
    assert [group.segments.live for group in net.groups] == [3, 4]
    net.prepare_for_task(1, 3, max_units=0.4)  # 4.8 and 3.2
    assert [group.segments.live for group in net.groups] == [6, 4]
    net.prepare_for_task(2, 3)
    assert [group.segments.live for group in net.groups] == [3, 0]
    net.widen(13)
    assert [group.segments.width for group in net.groups] == [15, 14]
    plan = net.plan_pruning(0.0)
    broken = GroupPlan("stem (+1 tied)", 3, torch.tensor([0, 2]))
    with pytest.raises(ek.InputError, match="runs of 3"):
        net.apply_plan(ek.PruningPlan("mine", (broken, plan.groups[1])))
    assert net.groups[0].segments.live == 3


def test_a_floor_is_rounded_up_to_whole_grains():
    net = Grouped(width=12, inner=8)
    net.prepare_for_task(0, 3)
    net.prune(1.0, keep_at_least=4)
    assert [group.segments.live for group in net.groups] == [6, 4]
    net.prune(1.0, keep_at_least=0.1)
    assert [group.segments.live for group in net.groups] == [3, 2]
    net.prune(0.01)
    assert [group.segments.live for group in net.groups] == [3, 2], "one grain stays"
    net.prune(1.0)
    assert [group.segments.live for group in net.groups] == [0, 0], "unless all are to go"


# ---- aligned


def test_aligned_segments_are_multiples_wherever_units_allow(tmp_path):
    net = MLP(widths=(45, 30, 6), dropout=0.0)
    net.align(8)
    net.prepare_for_task(0, 3, max_units=25)
    assert [group.segments.live for group in net.groups] == [24, 24, 6], "a group narrower than 8 is left alone"

    memory = Memory(net)
    train(net, torch.optim.AdamW(net.parameters(), 0.05))
    before = net.snapshot()
    net.prune(0.1)
    assert [group.segments.live for group in net.groups] == [16, 16, 5]
    net.restore(before)
    assert [group.segments.live for group in net.groups] == [24, 24, 6]
    net.prune(0.1)

    net.prepare_for_task(1, 3)
    memory.note(net)
    assert [group.segments.live for group in net.groups] == [29, 14, 1], "the last remainder is not wasted"

    x = torch.randn(9, 6)
    data = [(x, torch.arange(9) % 3)]
    for importance in ("taylor", "hybrid", "l1", "random"):
        kept = [len(part.keep) for part in net.plan_pruning(0.3, importance, data=data).groups]
        assert all(size % 8 == 0 or size == whole for size, whole in zip(kept[:2], (29, 14))), importance

    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net", MLP(widths=(45, 30, 6), dropout=0.0))
    assert [group.segments.multiple for group in again.groups] == [8, 8, 8]
    for each in (net, again):
        each.prune(0.5)
        assert [group.segments.live for group in each.groups] == [16, 8, 1]

    net.finish_task()
    poison(net)
    memory.check(net, "an aligned second task")


def test_alignment_by_name_joins_grains_and_can_be_taken_back():
    net = Grouped(width=24, inner=16)
    net.align({"stem (+1 tied)": 4})
    assert [group.segments.step for group in net.groups] == [12, 2]
    net.align(1)
    assert [group.segments.step for group in net.groups] == [3, 2]
    assert "multiple" not in repr(net.groups[0].segments) and "grain=3" in repr(net.groups[0].segments)
    before = copy.deepcopy([repr(group.segments) for group in net.groups])
    for wrong in (0, 1.5, True, {"stem (+1 tied)": 8, "conv1": "8"}):
        with pytest.raises(ek.InputError, match="whole number of units, 1 or more"):
            net.align(wrong)
    with pytest.raises(ek.InputError, match="the network has no unit group 'conv9'"):
        net.align({"conv9": 8})
    assert [repr(group.segments) for group in net.groups] == before
