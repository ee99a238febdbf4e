"""The promises on converted transformers and ConvNeXt: equal to the dense masked network, and nothing leaks."""

import pytest
import torch
import torch.nn.functional as F
from conversions import train
from dense_reference import DenseReference
from life import READINGS, Memory, batch, learn, poison, reading
from random_networks import Recipe
from small_transformers import TRANSFORMERS, converted, make, samples, scatter
from tolerances import assert_close

import eidetic_kernels as ek
from eidetic_kernels.layout import prefix
from eidetic_kernels.ops.staircase import read

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(params=TRANSFORMERS)
def name(request):
    return request.param


def assert_equal_to_reference(net, x, y):
    reference = DenseReference(net)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for loss_input, model in ((ours, net), (theirs, reference)):
        model.zero_grad()
        F.cross_entropy(model(loss_input), y).backward()

    pairs = list(reference.pairs(net))
    assert {id(p) for p in net.parameters() if p.numel()} == {id(parameter) for _, parameter, _, _ in pairs}
    pairs = [each for each in pairs if each[1].requires_grad]  # a head without bias holds zeros for it
    for path, parameter, dense, cut in pairs:
        torch.testing.assert_close(parameter.grad, cut(dense.grad), **CLOSE, msg=lambda m, path=path: f"{path}: {m}")
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)

    gradients = {id(parameter): parameter.grad.clone() for _, parameter, _, _ in pairs}
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()  # without the input's gradient, frozen paths are left out
    for _, parameter, _, _ in pairs:
        expected = gradients[id(parameter)]
        # None where nothing live reads what it makes.
        given = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(given, expected, **CLOSE)
    torch.testing.assert_close(net(x), reference(x), **CLOSE)


@pytest.mark.parametrize("how", READINGS)
def test_equal_to_the_dense_masked_network(name, how):
    net = converted(name)
    said = []
    for task in range(3):
        if task:
            net.prepare_for_task(task, 3, reading(net, how, task), max_units=0.5)
            scatter(net)
        x, y = samples(net, seed=task)
        train(net, torch.optim.SGD(net.parameters(), 0.05), x, y, 1)
        net.prune(1.0 if task == 1 else 0.5, "random", generator=torch.Generator().manual_seed(task))  # 1 keeps none

        for mode in (True, False):
            net.train(mode)
            assert_equal_to_reference(net, x, y)
        net.eval()
        said.append(DenseReference(net)(x).detach())
        net.finish_task()
        for earlier, logits in enumerate(said):
            torch.testing.assert_close(net(samples(net, seed=earlier)[0], task=earlier), logits, **CLOSE)

    net.prepare_for_task(3, 3)
    net.train()
    assert_equal_to_reference(net, *samples(net))


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_finished_tasks_do_not_see_poisoned_live_parts(name, how, value):
    net = converted(name)
    net.widen({group.name: 2 * group.segments.width for group in net.groups})  # a head stays of whatever is pruned
    memory = Memory(net)
    net.prune(0.6)
    net.finish_task()
    memory.note(net)
    learn(net, 1, how, max_units=0.5)
    memory.note(net)
    net.prepare_for_task(2, 3, reading(net, how, 2))
    poison(net, value)
    memory.check(net, "poisoning everything live")
    x, y = samples(net)
    net.train()
    F.cross_entropy(net(x), y).backward()
    memory.check(net, "a training pass over poison")
    net.eval()
    assert not net(x).isfinite().any()


def test_frozen_units_are_the_same_in_training_and_evaluation(name):
    """P5, with every kind of dropout on, beside NaN: what each layer makes of frozen units, bit for bit."""
    module, shape = make(name)
    net = ek.convert(module, torch.randn(1, *shape))
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3)

    made = {}
    for group in net.groups:
        for path, layer in [*group.producers.items(), *group.norms.items()]:
            first = group.segments.frozen_total // layer.shared
            layer.register_forward_hook(
                lambda module, _, output, path=path, first=first: made.__setitem__(
                    path, output.movedim(getattr(module, "dim", None) or module.unit_dim, 0)[:first].clone()
                )
            )

    x, seen = torch.randn(6, *shape), []
    for mode in ("eval", "train", "poison"):
        if mode == "poison":
            poison(net)
        net.train(mode != "eval")
        net(x)
        seen.append(dict(made))

    assert all(each.numel() for each in seen[0].values())
    for path in seen[0]:
        assert torch.equal(seen[0][path], seen[1][path]) and torch.equal(seen[0][path], seen[2][path]), path


def test_a_disjoint_task_reads_nothing_frozen(name):
    net = converted(name)
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3, forward_transfer=False)
    for path, tensor in net.named_buffers():
        if "frozen" in path:
            tensor.fill_(float("nan"))
    x, y = samples(net)
    train(net, torch.optim.AdamW(net.parameters()), x, y)
    assert net(x).isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.numel())


def test_any_frozen_number_that_changes_is_reported(name):
    net = converted(name)
    net.prune(0.5)
    net.eval()(samples(net)[0])
    net.finish_task()
    assert net.certify().ok
    for path, layer in net.segmented_layers():
        for buffer in layer.frozen_names:
            tensor = getattr(layer, buffer)
            if tensor is not None and tensor.numel():
                number = tensor.view(-1)[0].clone()
                tensor.view(-1)[0] = number + 1e-6
                assert path in str(net.certify()), (path, buffer)
                tensor.view(-1)[0] = number
    assert net.certify().ok


def test_averages_over_tokens_round_by_the_channels_beside_and_recall_keeps_its_bits():
    """The pass of ``predict`` has the channels of all tasks beside each other, as it says."""
    net = Recipe("parts", (3, 2)).build()
    net.finish_task()
    net.widen(24)
    memory = Memory(net)
    for task in (1, 2):
        memory.note(net)
        learn(net, task, max_units=6)
        memory.check(net, "the next task")

    x = batch(net, 40, seed=5)[0]
    with torch.no_grad():
        for task in range(3):
            beside_all, alone = net.eval().compute_features(x, 2), net.compute_features(x, task)
            assert_close(f"task {task}", read(beside_all, prefix(net.wiring.features, task, 2)), alone)
