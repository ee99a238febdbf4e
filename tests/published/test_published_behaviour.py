"""What the published package does, asked of this one: masks, what is frozen, and more units.

The right values are worked out by hand. Units keep their place there, and carry masks and owners. Here they are sorted
by owner, and the rows and columns of a mask by hand are in that order. docs/from_eideticnet.md says what else is called
otherwise, or is not there.
"""

import pytest
import torch
from blobs import CLASSES
from by_hand import One, Two, keep
from life import batch, recall, train
from small_networks import MLP, ConvNet, Residual
from tolerances import assert_close, assert_same_bits
from torch.nn import functional as F

import eidetic_kernels as ek


def table(*rows):
    return torch.tensor([[cell == "x" for cell in row] for row in rows])


# ---- masks of hand-worked layers


def test_each_of_three_tasks_owns_one_of_four_units_and_its_head_reads_what_was_there():
    net = One()
    for task in range(3):
        net.prepare_for_task(task, 1)
        assert [name for name, _ in net.named_parameters() if "heads" in name] == [
            f"heads.{task}.weight",
            f"heads.{task}.bias",
        ]
        keep(net, [0])
        net.finish_task()
    net.prepare_for_task(3, 1)
    assert net.hidden.segments.frozen == (1, 1, 1) and net.hidden.segments.live == 1
    assert net.hidden.mask().equal(torch.ones(4, 2, dtype=torch.bool)), "the input belongs to nobody"
    assert net.live_head.weight.shape == (1, 4)
    assert [net.heads[task].mask(task).tolist() for task in range(3)] == [[[True] * n] for n in (1, 2, 3)]


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "disjoint"])
def test_masks_after_two_tasks(nested):
    """Task 0 keeps units 0 and 2 of the first layer, 1 and 3 of the second; task 1 keeps one of two in each."""
    net = Two()
    net.prepare_for_task(0, 2, nested)
    before = net.second.weight.detach().clone()
    keep(net, [0, 2], [1, 3])
    assert_same_bits("what is left", net.second.weight, before[[1, 3]][:, [0, 2]])
    net.prepare_for_task(1, 2, nested)
    assert net.second.mask().equal(
        table("xx..", "xx..", "xxxx", "xxxx") if nested else table("xx..", "xx..", "..xx", "..xx")
    )
    keep(net, [1], [0])
    net.prepare_for_task(2, 2, nested)

    #                     task 0        task 1  live    reads [task 0 | task 1 | live]
    expected = table("xx..", "xx..", "xxx.", "xxxx") if nested else table("xx..", "xx..", "..x.", "...x")
    assert net.second.mask().equal(expected)
    assert net.second.dense_weight()[~expected].eq(0).all(), "what would lead back is not there"
    assert net.first.mask().all(), "every task reads the input, disjoint ones too"
    heads = [net.heads[task].mask(None if task == 2 else task) for task in range(3)]
    assert [head[0].tolist() for head in heads] == (
        [[True] * 2, [True] * 3, [True] * 4] if nested else [[True] * 2, [False] * 2 + [True], [False] * 3 + [True]]
    )


def test_a_layer_may_transfer_where_the_network_does_not():
    net = Two()
    net.prepare_for_task(0, 2)
    keep(net, [0, 1], [0, 1])
    net.prepare_for_task(1, 2, {"second": False})
    assert net.second.mask().equal(table("xx..", "xx..", "..xx", "..xx"))
    assert net.live_head.mask().all(), "what is not named transfers"


def test_the_first_task_is_number_nought():
    with pytest.raises(ek.TaskError, match=r"prepare_for_task\(1\) is out of order"):
        One().prepare_for_task(1, 2)


# ---- what is frozen


def test_a_step_moves_the_live_row_and_not_the_frozen_one():
    layer = ek.EideticLinear(10, 2)
    layer.prune([0])
    layer.freeze()
    layer.recycle()
    before = layer.dense_weight()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    F.cross_entropy(layer(torch.randn(3, 10)), torch.tensor([0, 1, 0])).backward()
    optimizer.step()
    after = layer.dense_weight()
    assert_same_bits("frozen", after[0], before[0])
    assert (after[1] != before[1]).all()


def test_a_frozen_channel_is_normalised_by_its_own_numbers_once_and_live_ones_by_the_batch():
    """(7 - 3) / sqrt(4) * 2 + 1 = 5. Of 1 and 3 the mean is 2 and the deviation 1; as an unbiased variance, 2."""
    norm = ek.EideticBatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        for tensor, value in ((norm.weight, 2), (norm.bias, 1), (norm.running_mean, 3), (norm.running_var, 4)):
            tensor[0] = value
    norm.prune([0])
    norm.freeze()
    norm.recycle()
    x = torch.tensor([[7.0, 1.0], [7.0, 3.0]]).view(2, 2, 1, 1)
    for _ in range(2):  # statistics move, and the frozen channel's output does not
        assert norm.train()(x).flatten(1).tolist() == [[5, -1], [5, 1]]
    mean, var = 0.9 * 0.2 + 0.2, 0.9 * 1.1 + 0.2  # from 0 and 1, a tenth of the way to 2 and 2, twice
    assert_close("mean", norm.running_mean, torch.tensor([mean]))
    assert_close("variance", norm.running_var, torch.tensor([var]))
    expected = (torch.tensor([1.0, 3.0]) - mean) / var**0.5
    assert_close("evaluation", norm.eval()(x).flatten(1), torch.stack([torch.full((2,), 5.0), expected], 1))
    assert [parameter.shape for parameter in norm.parameters()] == [(1,), (1,)]


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "disjoint"])
@pytest.mark.parametrize("norm", [True, False])
def test_outputs_of_the_first_task_are_the_same_after_the_second(norm, nested):
    net = MLP(widths=(6, 6), norm=norm, dropout=0.0)
    net.prepare_for_task(0, 3, nested)
    train(net, torch.optim.SGD(net.parameters(), 0.1), 20)
    net.prune(0.5, 2)
    x, _ = batch(net, 2)
    live = net.eval()(x)
    net.prepare_for_task(1, 3, nested)
    before = recall(net, x, 0)
    assert_close("the task in training, and finished", before, live)
    for _ in range(2):
        assert_same_bits("task 0", recall(net, x, 0), before)
        train(net, torch.optim.SGD(net.parameters(), 0.1), 20, seed=1)


def test_a_task_that_finds_no_free_unit_is_told():
    net = One()
    net.prepare_for_task(0, 2)
    net.finish_task()
    with pytest.warns(UserWarning, match="no layer has a free unit"):
        net.prepare_for_task(1, 2)


# ---- what goes with a unit


def test_a_unit_goes_with_its_bias_its_normalisation_and_what_reads_it():
    net = MLP(widths=(10, 4), dropout=0.0)
    net.prepare_for_task(0, 3)
    plan = net.prune(0.5, 2)
    assert [part.removed for part in plan.groups] == [5, 2]
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    assert shapes == {
        "body.0.weight": (5, 6),
        "body.1.weight": (5,),
        "body.1.bias": (5,),
        "body.4.weight": (2, 5),
        "body.5.weight": (2,),
        "body.5.bias": (2,),
        "heads.0.weight": (3, 2),
        "heads.0.bias": (3,),
    }


def test_a_flattened_channel_goes_with_all_its_columns():
    net = ConvNet(norm=False, dropout=0.0)  # the second convolution's five channels have four positions each
    net.prepare_for_task(0, 3)
    before = net.fc.weight.detach().clone()
    keep(net, range(6), [1, 4], range(7))
    assert_same_bits("columns", net.fc.weight, before.view(7, 5, 4)[:, [1, 4]].flatten(1))


def test_what_a_residual_connection_adds_is_pruned_together():
    net = Residual(norm=False)
    net.prepare_for_task(0, 3)
    net.prune(0.5)
    assert [net.stem.weight.shape[0], net.conv2.weight.shape[0], net.conv1.weight.shape[1]] == [3, 3, 3]


# ---- more units


def test_a_layer_gets_as_many_units_as_it_kept():
    """Of 100 units ten are pruned in the first layer and five in the second: 190 and 195, of which 100 are free."""
    net = MLP(widths=(100, 100))
    net.prepare_for_task(0, 2)
    keep(net, range(10, 100), range(95))
    x, _ = batch(net, 8)
    net.finish_task()
    before = recall(net, x, 0)
    net.widen({group.name: group.segments.width + group.segments.frozen[-1] for group in net.groups})
    assert [(row.width, row.free) for row in net.capacity().rows] == [(190, 100), (195, 100)]
    assert_same_bits("task 0", recall(net, x, 0), before)
    net.prepare_for_task(1, 2)
    train(net, torch.optim.Adam(net.parameters()), 1)
    assert_same_bits("task 0", recall(net, x, 0), before)


def test_a_network_that_grew_is_the_one_that_was_pruned():
    """One unit of two is pruned, or there was one and the network is widened: answers, masks and units are the same."""
    pruned, grown = One(2), One(1)
    for net in (pruned, grown):
        net.prepare_for_task(0, 2)
    keep(pruned, [0])
    grown.load_state_dict(pruned.state_dict())
    x, _ = batch(grown, 5, classes=2)
    for net in (pruned, grown):
        net.finish_task()
    grown.widen(2)
    for net in (pruned, grown):
        net.prepare_for_task(1, 2)
    assert repr(grown.hidden.segments) == repr(pruned.hidden.segments) == "Segments(width=2, frozen=[1], live=1)"
    assert grown.live_head.mask().equal(pruned.live_head.mask())
    grown.load_state_dict(pruned.state_dict())
    for task in (0, 1):
        assert_same_bits(f"task {task}", grown.eval()(x, task=task), pruned.eval()(x, task=task))


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "disjoint"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_widening_after_every_task_forgets_nothing(dtype, norm, nested):
    net = MLP(widths=(1, 1, 1), norm=norm, dropout=0.0).to(dtype)
    answers = []
    for task in range(4):
        net.prepare_for_task(task, CLASSES, nested)
        train(net, torch.optim.SGD(net.parameters(), 0.1), 5, seed=task)
        net.finish_task()
        x, _ = batch(net, 2, seed=task)
        answers.append((x, recall(net, x, task)))
        net.widen(net.groups[0].segments.width + 1)
    assert [group.segments.frozen for group in net.groups] == [(1, 1, 1, 1)] * 3
    for task, (x, answer) in enumerate(answers):
        assert_same_bits(f"task {task}", recall(net, x, task), answer)
