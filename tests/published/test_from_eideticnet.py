"""ek.from_eideticnet: the published implementation's checkpoints, sorted by owner, with the same logits."""

import pytest
import torch
from life import digest, train
from published_states import PublishedState
from tolerances import assert_close, assert_same_bits
from torch.nn import functional as F

import eidetic_kernels as ek

SHAPES = {"mlp": (6,), "convnet": (2, 9, 8), "resnet": (2, 8, 8)}


def inputs(kind, dtype=torch.float32):
    return torch.randn(5, *SHAPES[kind], dtype=dtype)


def lived(kind, tasks=3, **options):
    """The last task pruned, and not followed by another."""
    published = PublishedState(kind, **options)
    for task in range(tasks):
        if task:
            published.finish()
        published.learn()
    return published


def assert_same_logits(net, published, x):
    net.eval()
    for task in range(net.finished_tasks):
        assert_close(f"task {task}", net(x, task=task), published.logits(x, task), condition=20)


@pytest.mark.parametrize("disjoint", [False, True], ids=["nested", "disjoint"])
@pytest.mark.parametrize("bn", [True, False], ids=["bn", "bias"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tasks_logits(kind, bn, disjoint, dtype):
    published = lived(kind, bn=bn, disjoint=disjoint, dtype=dtype)
    net = ek.from_eideticnet(published.state)
    assert net.finished_tasks == 3 and net.current_task is None and net.num_classes == [3, 2, 4]
    assert_same_logits(net, published, inputs(kind, dtype))
    for group in net.groups:
        stem = f"{next(iter(group.norms))}.weight" if bn else f"{next(iter(group.producers))}.bias"
        owners = published.state[f"{stem}_excess_capacity"]
        for task in range(2):
            assert group.segments.frozen[task] == (owners == task).sum()
        assert 0 < group.segments.frozen_total < group.segments.width
    inner = [layer for group in net.groups for layer in group.producers.values() if layer.sources[0].group.tasks]
    assert {layer.forward_transfer[1] for layer in inner} == {not disjoint}


def test_a_resnet_with_a_large_stem_and_no_expansion():
    published = lived("resnet", stem=7, outer=(4, 4, 6, 7, 8, 8, 8))
    assert_same_logits(ek.from_eideticnet(published.state), published, inputs("resnet"))


@pytest.mark.parametrize("kind", SHAPES)
def test_it_goes_on_living_and_is_saved_and_loaded(kind, tmp_path):
    published = lived(kind)
    net = ek.from_eideticnet(published.state, input_shape=SHAPES[kind])
    x = inputs(kind)
    answers = [net.eval()(x, task=task) for task in range(3)]
    net.certify().check()
    assert all(record.logits for record in net.records)
    net.example = SHAPES[kind]
    net.prepare_for_task(3, 5)
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    net.finish_task()
    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net").eval()
    for task in range(3):
        assert_same_bits(f"task {task}", again(x, task=task), answers[task])
    again.certify().check()
    assert digest(again) == digest(net.eval())


def test_a_network_between_tasks():
    """Prepared for the next task: what no task owns is free, whatever random weights it holds."""
    published = lived("mlp", tasks=2).finish()
    for tasks in (2, 3):
        net = ek.from_eideticnet(published.state, tasks)
        assert net.finished_tasks == tasks
        assert_same_logits(net, published, inputs("mlp"))
    free = [group.segments.free for group in ek.from_eideticnet(published.state, 2).groups]
    assert min(free) > 0
    assert [group.segments.free for group in net.groups] == [0, 0, 0]


def test_a_last_task_without_pruning_must_be_asked_for():
    published = lived("mlp", tasks=2).finish()
    published.learn(prune=False)
    with pytest.raises(ek.ConversionError, match=r"whether task 2 was learned .* tasks=2 .* tasks=3"):
        ek.from_eideticnet(published.state)
    net = ek.from_eideticnet(published.state, 3)
    assert_same_logits(net, published, inputs("mlp"))
    assert net.finished_tasks == 3


def test_all_tasks_finished_needs_no_asking():
    published = lived("mlp", tasks=2, classes=(3, 3)).finish()
    net = ek.from_eideticnet(published.state)
    assert net.finished_tasks == 2
    assert_same_logits(net, published, inputs("mlp"))


def test_tasks_that_kept_no_unit():
    published = PublishedState("mlp").learn().finish().learn(keep=0.0).finish().learn(keep=1.0)
    net = ek.from_eideticnet(published.state, 3)
    assert [group.segments.frozen[1] for group in net.groups] == [0, 0, 0]
    assert_same_logits(net, published, inputs("mlp"))


def test_the_state_dict_is_read_only():
    published = lived("mlp")
    before = {name: tensor.clone() for name, tensor in published.state.items()}
    net = ek.from_eideticnet(published.state)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in published.state.items())


def test_scores_of_taylor_pruning_are_passed_over():
    published = lived("mlp")
    published.state["blocks.0.0.raw_scores"] = torch.rand(8)
    assert ek.from_eideticnet(published.state).finished_tasks == 3


def test_dropout_is_the_callers():
    net = ek.from_eideticnet(lived("mlp").state, dropout=0.3)
    assert [each.p for each in net.modules() if isinstance(each, ek.EideticDropout)] == [0.3] * 3


# ---- what cannot be taken over


def test_a_moved_frozen_weight_is_named():
    """As the published code leaves it when an optimizer with momentum is kept across tasks."""
    published = lived("mlp")
    owners = [published.state[f"blocks.{i}.1.weight_excess_capacity"] for i in range(2)]
    row, column = (owners[1] == 0).nonzero()[0], (owners[0] == 1).nonzero()[0]
    published.state["blocks.1.0.weight_orig"][row, column] = 2e-3
    with pytest.raises(ek.ConversionError, match=r"in blocks\.1\.0, units of task 0 read .* weights up to 2\.0e-03"):
        ek.from_eideticnet(published.state)


def test_a_heads_moved_weight_is_named():
    published = lived("convnet")
    column = (published.state["blocks.3.1.weight_excess_capacity"] == 1).nonzero()[0]
    published.state["classifiers.0.weight_orig"][0, column] = 1.0
    with pytest.raises(ek.ConversionError, match=r"in head, units of task 0 read"):
        ek.from_eideticnet(published.state)


def changed(kind="mlp", **tensors):
    state = lived(kind).state
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        state.pop(name) if tensor is None else state.update({name: tensor})
    return state


REFUSED = {
    "holds no ..._excess_capacity": lambda: torch.nn.Linear(2, 2).state_dict(),
    "this network has the layers classifiers.0, linear1": lambda: {
        "linear1.weight_excess_capacity": torch.zeros(1),
        "classifiers.0.weight_orig": torch.zeros(1, 1),
    },
    "unknown extra.weight": lambda: changed(extra__weight=torch.ones(1)),
    "missing blocks.1.1.running_var": lambda: changed(blocks__1__1__running_var=None),
    "blocks.1.1.bias_mask has shape [3], expected [9]": lambda: changed(blocks__1__1__bias_mask=torch.ones(3)),
    "blocks.1.1.running_mean holds NaN": lambda: changed(blocks__1__1__running_mean=torch.full((9,), torch.nan)),
    "holds no classifiers.2.bias_orig": lambda: changed(classifiers__2__bias_orig=None),
    "has 1 + 3n blocks, this one has 3": lambda: PublishedState("convnet", widths=(4, 5, 6)).learn().state,
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(ek.ConversionError) as error:
        ek.from_eideticnet(REFUSED[text]())
    assert text in str(error.value)


@pytest.mark.parametrize("tasks", [0, 1, 4, True])
def test_a_count_that_contradicts_the_tensors(tasks):
    with pytest.raises(ek.InputError, match=r"hold 2 or 3 tasks"):
        ek.from_eideticnet(lived("mlp").state, tasks)


def test_the_writer_writes_what_masks_are():
    """Masks as the format has them: a pruned unit's row, its column in every reader, and its normalisation."""
    published = PublishedState("mlp").learn()
    state = published.state
    gone = state["blocks.1.1.weight_mask"] == 0
    assert 0 < gone.sum() < len(gone)
    assert not state["blocks.1.0.weight_mask"][gone].any() and not state["blocks.2.0.weight_mask"][:, gone].any()
    assert F.relu(state["blocks.1.1.bias_orig"] * state["blocks.1.1.bias_mask"])[gone].eq(0).all()
    published.finish()
    assert state["blocks.1.0.weight_mask"].all() and (state["blocks.1.0.weight_orig"][gone] == 0).all()
    assert (state["blocks.1.0.weight_excess_capacity"][~gone] == 0).all()
