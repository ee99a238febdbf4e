"""The router: what it learns, that its standardisation is folded in, and that the network is otherwise untouched."""

import copy
import functools
import math

import pytest
import torch
from blobs import CLASSES, blobs, loader, network, state_of
from slow import slow
from small_networks import ConvNet, Residual
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError, NonFiniteLossError, RouterError, TaskError
from eidetic_training import RouterSettings, evaluate, train_router, train_task
from eidetic_training.data import Augmentation, Preparation, TensorLoader
from eidetic_training.training.trained_router import TrainedRouter

SHIFT = 8.0  # a task's inputs lie this far from the next one's


def inputs(task, samples=120):
    x, y = blobs(task, samples=samples)
    return x + SHIFT * task, y


def tensors(task, **options):
    return TensorLoader(*inputs(task), 20, **options)


@functools.cache
def learned_once(tasks):
    net = network((24, 16))  # sets the seed
    loaders = [tensors(t) for t in range(tasks)]
    for t, data in enumerate(loaders):
        if t:
            net.prepare_for_task(t, CLASSES)
        train_task(net, data, torch.optim.Adam(net.parameters(), 0.02), max_epochs=8, keep_at_least=5)
    return net, loaders, torch.get_rng_state()


def learned(tasks=3):
    """A network that has finished ``tasks`` tasks whose inputs lie apart, and their loaders."""
    net, loaders, state = copy.deepcopy(learned_once(tasks))
    torch.set_rng_state(state)
    return net, loaders


def optimizers_of(monkeypatch, make):
    """Let ``make`` choose the optimizer of every router in training; returns a list that fills with the routers."""
    trained = []
    monkeypatch.setattr(TrainedRouter, "optimizers", lambda router: trained.append(router) or [make(router)])
    return trained


def without_router(net):
    return {name: value for name, value in state_of(net).items() if not name.startswith("router.")}


def test_it_learns_tasks_that_lie_apart():
    net, loaders = learned()
    accuracy = train_router(net, loaders, lr=0.02)
    assert accuracy > 0.95
    for t in range(3):
        answer = net.predict(inputs(t)[0])
        assert (answer.task == t).double().mean() > 0.95


def test_predict_asks_the_head_of_the_task_that_was_picked():
    net, loaders = learned()
    train_router(net, loaders, lr=0.02)
    x = torch.cat([inputs(t)[0] for t in range(3)])
    answer = net.predict(x)
    net.eval()
    for t in range(3):
        rows = answer.task == t
        assert rows.any()
        with torch.no_grad():
            expected = net(x, task=t)[rows]
        torch.testing.assert_close(answer.logits[rows], expected)
        assert torch.equal(answer.label[rows], expected.argmax(1))


@pytest.mark.parametrize("max_bytes", [2**31, 0], ids=["cached", "computed anew"])
def test_the_standardisation_is_folded_into_one_product(monkeypatch, max_bytes):
    """The router's scores are those of the trained map on standardised features, computed here unfolded."""
    net, loaders = learned()
    trained = optimizers_of(monkeypatch, lambda router: torch.optim.Adam(router.parameters(), 0.05))
    train_router(net, loaders, max_epochs=1, max_cached_bytes=max_bytes)
    net.eval()
    x = torch.cat([inputs(t)[0] for t in range(3)])
    with torch.no_grad():
        features = net.compute_features(x, 2)
        unfolded = trained[0](features)
    mean, deviation = trained[0].moments
    torch.testing.assert_close(mean, features.mean(0), rtol=1e-4, atol=1e-5)
    spread = features.std(0, correction=0)
    torch.testing.assert_close(deviation[spread > 1e-3], spread[spread > 1e-3], rtol=1e-3, atol=1e-5)
    by_hand = F.linear((features - mean) / deviation, trained[0].weight, trained[0].bias).detach()
    torch.testing.assert_close(unfolded, by_hand)
    torch.testing.assert_close(net.router(features), by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.predict(x).router_logits, by_hand, rtol=1e-4, atol=1e-4)


def test_a_feature_that_never_changes_does_not_blow_up():
    net, loaders = learned(2)
    for layer in (net.body[1], net.body[5]):
        layer.frozen_scale[0], layer.frozen_shift[0] = 0.0, -1.0  # ReLU makes it zero everywhere
    train_router(net, loaders)
    assert net.router.weight.isfinite().all() and net.router.weight.abs().max() < 100


def test_cached_and_uncached_features_give_the_same_router_up_to_the_order_of_batches():
    net, loaders = learned()
    x = torch.cat([inputs(t)[0] for t in range(3)])
    answers, accuracies = [], []
    for max_bytes in (2**31, 0):
        accuracies.append(train_router(net, loaders, lr=0.01, patience=30, max_cached_bytes=max_bytes))
        answers.append(net.predict(x))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)
    assert (answers[0].task == answers[1].task).double().mean() > 0.97
    torch.testing.assert_close(answers[0].router_logits, answers[1].router_logits, rtol=0.1, atol=0.5)


def test_features_are_computed_once_unless_they_need_more_than_the_cap(monkeypatch):
    net, loaders = learned(2)
    samples, columns = 240, sum(source.columns(1) for source in net.wiring.features)
    needed = samples * columns * 4
    calls = []
    features = net.compute_features
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: calls.append(len(x)) or features(x, task))
    options = {"max_epochs": 3, "patience": 3, "batch_size": 60, "lr": 0.0}
    train_router(net, loaders, max_cached_bytes=needed, **options)
    assert sum(calls) == samples
    calls.clear()
    train_router(net, loaders, max_cached_bytes=needed - 1, **options)
    assert sum(calls) == samples * (1 + 1 + 3)  # to the cap, for the moments, and every epoch


def test_augmented_inputs_are_computed_anew_every_epoch(monkeypatch):
    from eidetic_training.models import MLP

    net = MLP(16, 8, 1)
    y = torch.arange(24) % 2
    image = torch.randint(0, 256, (24, 1, 4, 4), dtype=torch.uint8)
    for t in range(2):
        net.prepare_for_task(t, 2)
        train_task(net, TensorLoader(image, y, 12), max_epochs=1, keep_at_least=2)
    loaders = [
        TensorLoader(image, y, 12, preparation=Preparation(Augmentation(flip=True))),
        TensorLoader(255 - image, y, 12),
    ]
    calls = []
    features = net.compute_features
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: calls.append(len(x)) or features(x, task))
    train_router(net, loaders, max_epochs=2, patience=9, lr=0.0)
    assert sum(calls) == 48 * (1 + 2)


def test_any_loaders_will_do():
    net, _ = learned(2)
    generic = [[inputs(0)], [inputs(1)]]
    assert train_router(net, generic, lr=0.05, patience=10, batch_size=40) > 0.9


def test_nothing_but_the_router_changes_and_p1_holds():
    net, loaders = learned()
    before, answers = without_router(net), [evaluate(net, [inputs(t)], t) for t in range(3)]
    for training in (True, False):
        net.train(training)
        train_router(net, loaders, max_epochs=2)
        assert net.training is training
    assert without_router(net) == before
    assert [evaluate(net, [inputs(t)], t) for t in range(3)] == answers
    assert net.certify().ok


def test_training_the_next_task_cannot_move_the_router():
    net, loaders = learned(2)
    train_router(net, loaders, max_epochs=2)
    before = {name: value for name, value in state_of(net).items() if name.startswith("router.")}
    assert len(before) == 2
    net.prepare_for_task(2, CLASSES)
    train_task(net, tensors(2), torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.5), max_epochs=2)
    assert {name: value for name, value in state_of(net).items() if name.startswith("router.")} == before


def test_the_same_seed_gives_the_same_router_another_one_another():
    net, loaders = learned(2)
    routers = []
    for seed in (0, 0, 1):
        train_router(net, loaders, max_epochs=2, seed=seed)
        routers.append(net.router.weight.clone())
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])


def test_a_router_is_stale_after_one_more_task():
    net, loaders = learned(2)
    train_router(net, loaders)
    net.predict(inputs(0)[0])
    net.prepare_for_task(2, CLASSES)
    net.predict(inputs(0)[0])  # the task in training is none of its business
    train_task(net, tensors(2), max_epochs=1, keep_at_least=2)
    with pytest.raises(RouterError, match="the router knows 2 of 3 finished tasks: call net.train_router"):
        net.predict(inputs(0)[0])
    train_router(net, [*loaders, tensors(2)])
    assert net.predict(inputs(0)[0]).router_logits.shape == (120, 3)


def test_patience_stops_it():
    """At learning rate 0 no epoch is better than the first one."""
    net, loaders = learned(2)
    events = []
    best = train_router(net, loaders, lr=0.0, patience=4, max_epochs=30, callbacks=[events.append])
    assert len(events) == 1 + 4
    assert best == events[0].train_accuracy
    events.clear()
    train_router(net, loaders, lr=0.0, patience=40, max_epochs=7, callbacks=[events.append])
    assert len(events) == 7


def test_events_are_the_router_s():
    net, loaders = learned(2)
    events = []
    train_router(net, loaders, max_epochs=3, callbacks=[events.append])
    frozen = sum(sum(row.frozen) for row in net.capacity().rows)
    assert [(e.phase, e.task, e.step, e.frozen_units) for e in events] == [("router", 2, 0, frozen)] * len(events)
    assert [e.epoch for e in events] == [*range(1, len(events) + 1)]
    assert events[-1].loss < events[0].loss


def test_one_task_needs_no_router_but_may_have_one():
    net, loaders = learned(1)
    assert (net.predict(inputs(0)[0]).task == 0).all()
    assert train_router(net, loaders) == 1.0
    assert (net.predict(inputs(0)[0]).task == 0).all()


# ---- errors: told, and the network is untouched


@pytest.mark.parametrize(
    "loaders, error, message",
    [
        (lambda good: good[:1], TaskError, "1 loaders were given for 2 finished tasks"),
        (lambda good: [*good, good[0]], TaskError, "3 loaders were given for 2 finished tasks"),
        (lambda good: [], TaskError, "0 loaders were given for 2"),
        (lambda good: [good[0], []], InputError, "Task 1's loader is empty"),
        (lambda good: [good[0], iter([inputs(1)])], InputError, "not an iterator"),
        (lambda good: [good[0], [inputs(1)[0]]], InputError, "Task 1's loader gave a Tensor"),
        (lambda good: [good[0], [(inputs(1)[0][:, :4], inputs(1)[1])]], InputError, "Task 1's inputs have shape"),
        (lambda good: [[(x[:, :4], y)] for x, y in map(inputs, range(2))], InputError, "6"),
    ],
)
def test_wrong_loaders_are_refused_and_change_nothing(loaders, error, message):
    net, good = learned(2)
    train_router(net, good, max_epochs=1)
    before = state_of(net)
    with pytest.raises(error, match=message):
        train_router(net, loaders(good))
    assert state_of(net) == before


def test_a_callback_that_stops_it_leaves_the_old_router():
    net, loaders = learned(2)
    train_router(net, loaders, max_epochs=1)
    before = state_of(net)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_router(net, loaders, callbacks=[stop])
    assert state_of(net) == before


def test_it_waits_for_the_task_in_training():
    net, loaders = learned(2)
    net.prepare_for_task(2, CLASSES)
    with pytest.raises(TaskError, match="task 2 is in training: finish it"):
        train_router(net, loaders)


def test_the_network_s_method_is_the_same_call():
    net, loaders = learned(2)
    first = net.train_router(loaders, max_epochs=3)
    weight = net.router.weight.clone()
    assert train_router(net, loaders, max_epochs=3) == first
    assert torch.equal(net.router.weight, weight)


def test_generic_loaders_of_torch_learn_too():
    net, _ = learned(2)
    assert 0 < train_router(net, [loader(0), loader(1)], max_epochs=2) <= 1


def test_nan_in_the_data_leaves_the_old_router():
    net, loaders = learned(2)
    train_router(net, loaders, max_epochs=1)
    before = state_of(net)
    x, y = inputs(0)
    x[3, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="the router's loss became NaN"):
        train_router(net, [[(x, y)], loaders[1]])
    assert state_of(net) == before


def test_wrong_settings_are_refused_before_anything_is_computed(monkeypatch):
    net, loaders = learned(1)
    monkeypatch.setattr(net, "compute_features", lambda *_: pytest.fail("the body runs"))
    with pytest.raises(InputError, match="hidden must be a whole number of units, 0 or more; got -1"):
        train_router(net, loaders, hidden=-1)
    with pytest.raises(
        InputError, match=r"RouterSettings has no setting 'hiden' \(did you mean 'hidden'\?\); it has: max_epochs, "
    ):
        net.train_router(loaders, hiden=4)


def test_settings_may_be_given_as_a_whole_but_not_beside_single_ones():
    net, loaders = learned(2)
    events = []
    train_router(net, loaders, settings=RouterSettings(max_epochs=2, lr=0.0), callbacks=[events.append])
    assert len(events) == 2
    with pytest.raises(InputError, match=r"give settings or single settings \(hidden, seed\), not both"):
        train_router(net, loaders, settings=RouterSettings(), hidden=4, seed=2)


# ---- hidden units and kept examples


@pytest.mark.parametrize("examples", [None, 60])
def test_it_may_learn_the_classes_of_all_tasks(examples):
    net, loaders = learned()
    events = []
    accuracy = train_router(net, loaders, lr=0.02, classes=True, examples=examples, callbacks=[events.append])
    assert accuracy > 0.95 and events[-1].train_accuracy <= accuracy, "of tasks, as ever"
    assert net.router.classes == (CLASSES,) * 3 and net.router.tasks == 3
    x, y = (torch.cat(part) for part in zip(*map(inputs, range(3))))
    task = torch.arange(3).repeat_interleave(len(x) // 3)
    guess = net.predict(x)
    assert (guess.task == task).double().mean() > 0.95
    with torch.no_grad():
        scores = F.linear(net.eval().compute_features(x, 2), net.router.weight, net.router.bias)
    assert (scores.argmax(1) == CLASSES * task + y).double().mean() > 0.8


def test_tasks_need_no_labels_but_classes_do():
    net, loaders = learned(2)
    unlabelled = [[(x, None)] for x, _ in map(inputs, range(2))]
    train_router(net, unlabelled, max_epochs=1)
    before = state_of(net)
    with pytest.raises(InputError, match="Task 0's labels are a NoneType, expected class indices"):
        train_router(net, unlabelled, max_epochs=1, classes=True)
    assert state_of(net) == before


def around(task, samples=120):
    """Task 1 lies around task 0 in a ring: no line tells them apart."""
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(samples, 6, generator=generator)
    return F.normalize(x) * (0.5 if task == 0 else 6.0), torch.arange(samples) % CLASSES


def test_hidden_units_tell_apart_what_a_linear_map_cannot(monkeypatch):
    net, _ = learned(2)
    loaders = [TensorLoader(*around(t), 20) for t in range(2)]
    raw = lambda x, task=None: torch.cat([x, torch.zeros(len(x), 99)], 1)[:, : net.router_columns]  # noqa: E731
    columns = sum(source.columns(1) for source in net.wiring.features)
    monkeypatch.setattr(net, "router_columns", columns, raising=False)
    monkeypatch.setattr(net, "compute_features", raw)
    options = {"lr": 0.02, "max_epochs": 60, "patience": 60}
    assert train_router(net, loaders, **options) < 0.8
    assert train_router(net, loaders, hidden=32, **options) > 0.9
    scores = torch.cat([net.router(raw(around(t)[0])) for t in range(2)])
    assert (scores.argmax(1) == torch.arange(2).repeat_interleave(120)).float().mean() > 0.95


def test_hidden_units_are_of_the_standardised_features_and_survive_saving(tmp_path):
    net, loaders = learned()
    accuracy = train_router(net, loaders, hidden=7, lr=0.02)
    assert accuracy > 0.95
    assert net.router.hidden_weight.shape[0] == 7 and net.router.weight.shape == (3, 7)
    x = torch.cat([inputs(t)[0] for t in range(3)])
    before = net.predict(x)
    net.save(tmp_path / "net.safetensors")
    loaded = type(net).load(tmp_path / "net.safetensors")
    after = loaded.predict(x)
    assert torch.equal(after.router_logits, before.router_logits) and torch.equal(after.task, before.task)
    assert (before.task == torch.arange(3).repeat_interleave(120)).double().mean() > 0.95


@pytest.mark.parametrize("hidden", [*slow(0), 5])
def test_hidden_weights_are_folded_with_the_standardisation(monkeypatch, hidden):
    net, loaders = learned()
    trained = optimizers_of(monkeypatch, lambda router: torch.optim.SGD(router.parameters(), 0.0))
    train_router(net, loaders, max_epochs=1, hidden=hidden, dropout=0.0)
    net.eval()
    with torch.no_grad():
        features = net.compute_features(torch.cat([inputs(t)[0] for t in range(3)]), 2)
        torch.testing.assert_close(net.router(features), trained[0](features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [7, *slow(1, 20, 33, 1000)])
def test_only_so_many_examples_of_each_task_are_seen(monkeypatch, examples):
    net, loaders = learned(2)
    expected = [torch.cat([x for x, _ in loader.batches(loader.epoch)])[:examples] for loader in loaders]
    rows = []
    features = net.compute_features
    monkeypatch.setattr(net, "compute_features", lambda x, task=None: rows.append(x) or features(x, task))
    train_router(net, loaders, max_epochs=2, patience=2, examples=examples, lr=0.0)
    seen = torch.cat(rows)
    assert len(seen) == 2 * min(examples, 120)
    key = lambda x: sorted(map(tuple, x.tolist()))  # noqa: E731
    assert key(seen) == key(torch.cat(expected))


def test_few_examples_are_enough_where_tasks_lie_apart():
    net, loaders = learned()
    train_router(net, loaders, examples=12, lr=0.02, patience=10)
    for t in range(3):
        assert (net.predict(inputs(t)[0]).task == t).double().mean() > 0.9


def test_a_loader_without_a_batch_keeps_no_examples():
    net, loaders = learned(2)
    with pytest.raises(InputError, match="a loader gave no batch"):
        train_router(net, [loaders[0], []], examples=4)


@pytest.mark.parametrize("options", [{}, {"hidden": 6}, {"examples": 20}])
def test_kinds_of_router_can_follow_one_another(options):
    net, loaders = learned(2)
    train_router(net, loaders, hidden=4, max_epochs=1)
    train_router(net, loaders, max_epochs=1, **options)
    assert (net.router.hidden_weight is None) == ("hidden" not in options)
    assert net.predict(inputs(0)[0]).router_logits.shape == (120, 2)


# ---- what every layer computes


def by_hand(net, x, t):
    """The features, and for every other group the ReLU of its last layer's units: [N, columns]."""
    net.eval()
    seen = {}
    layers = {group.name: group.layers[-1] for group in net.groups}
    handles = [
        layer.register_forward_hook(lambda m, i, y, n=name: seen.__setitem__(n, y)) for name, layer in layers.items()
    ]
    with torch.no_grad():
        features = net.compute_features(x, t)
    for handle in handles:
        handle.remove()
    given = {source.group for source in net.wiring.features}
    others = [F.relu(seen[g.name]) for g in net.groups if g.segments not in given]
    return torch.cat([features, *(y if y.dim() == 2 else y.mean((2, 3)) for y in others)], 1)


def images(t, samples=40):
    x = torch.randn(samples, 2, 4, 4, generator=torch.Generator().manual_seed(t)) + 3 * t
    return TensorLoader(x, torch.arange(samples) % CLASSES, 20)


@pytest.mark.parametrize("hidden", [*slow(0), 6])
def test_a_router_of_all_layers_reads_them_and_survives_saving(tmp_path, hidden):
    net, loaders = learned()
    columns = sum(group.segments.frozen_total for group in net.groups)
    assert train_router(net, loaders, layers=True, hidden=hidden, lr=0.02) > 0.95
    assert (net.router.hidden_weight if hidden else net.router.weight).shape[1] == columns
    x = torch.cat([inputs(t)[0] for t in range(3)])
    before = net.predict(x)
    torch.testing.assert_close(before.router_logits, net.router(by_hand(net, x, 2)))
    assert (before.task == torch.arange(3).repeat_interleave(120)).double().mean() > 0.95
    net.save(tmp_path / "net.safetensors")
    after = type(net).load(tmp_path / "net.safetensors").predict(x)
    assert torch.equal(after.router_logits, before.router_logits)
    assert all(not layer._forward_hooks for group in net.groups for layer in group.layers)


@pytest.mark.parametrize("layers", [False, True])
def test_a_router_of_the_input_tells_apart_what_no_unit_does(tmp_path, layers):
    """All units are silenced, so that features say nothing of the task."""
    net, loaders = learned()
    for _, layer in net.segmented_layers():
        if hasattr(layer, "frozen_scale"):
            layer.frozen_scale.zero_()
        else:
            layer.frozen_weight.zero_()
    assert train_router(net, loaders, layers=layers, hidden=8, lr=0.02) < 0.6
    assert train_router(net, loaders, layers=layers, inputs=True, hidden=32, patience=9, lr=0.02) > 0.95
    x = torch.cat([inputs(t)[0] for t in range(3)])
    before = net.predict(x)
    features = by_hand(net, x, 2) if layers else net.compute_features(x, 2)
    assert net.router.hidden_weight.shape[1] == features.shape[1] + x.flatten(1).shape[1]
    torch.testing.assert_close(before.router_logits, net.router(torch.cat([features, x.flatten(1)], 1)))
    assert (before.task == torch.arange(3).repeat_interleave(120)).double().mean() > 0.95
    net.save(tmp_path / "net.safetensors")
    assert torch.equal(type(net).load(tmp_path / "net.safetensors").predict(x).router_logits, before.router_logits)


def test_weight_decay_shrinks_weights_and_label_smoothing_certainty():
    net, loaders = learned(2)
    x, norms, certain = inputs(0)[0], [], []
    for options in ({}, {"weight_decay": 40.0}, {"label_smoothing": 0.5}):
        train_router(net, loaders, max_epochs=1, polish_epochs=30, lr=0.05, **options)
        norms.append(float(net.router.weight.norm()))
        certain.append(float(net.predict(x).confidence.mean()))
    assert norms[1] < 0.7 * norms[0]
    assert certain[2] < 0.85 < certain[0]


@pytest.mark.parametrize("make", [ConvNet, Residual])
def test_images_are_read_by_their_mean(make):
    net = make(dropout=0.0)
    for t in range(2):
        net.prepare_for_task(t, CLASSES, max_units=2)
        train_task(net, images(t), torch.optim.Adam(net.parameters(), 0.01), max_epochs=1, polish_epochs=0)
    train_router(net, [images(0), images(1)], layers=True, max_epochs=3)
    x, _ = next(iter(images(1)))
    expected = by_hand(net, x, 1)
    assert expected.shape == (20, net.router.weight.shape[1])
    torch.testing.assert_close(net.predict(x).router_logits, net.router(expected))


def test_a_compiled_network_s_layers_are_read_too():
    net, loaders = learned(2)
    train_router(net, loaders, layers=True, max_epochs=3)
    x, _ = inputs(1)
    expected = net.predict(x).router_logits
    net._compiled_call_impl = lambda *args, **kwargs: pytest.fail("compiled code calls no hooks")
    assert torch.equal(net.predict(x).router_logits, expected)
    assert net._compiled_call_impl is not None


def test_layers_that_compute_on_parts_of_samples_are_refused():
    class Windows(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = ek.EideticLinear(3, 5), ek.EideticLinear(5, 4)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(x.view(-1, 3))).view(-1, 2, 5).mean(1))

        def connections(self):
            return {"inner": "input", "outer": "inner", "output": "outer"}

    net = Windows()
    net.prepare_for_task(0, CLASSES)
    net.finish_task()
    loader = TensorLoader(torch.randn(8, 6), torch.zeros(8, dtype=torch.long), 4)
    with pytest.raises(RouterError, match=r"parts of a sample.*train_router\(layers=False\)"):
        train_router(net, [loader], layers=True)
    assert net.router is None
    train_router(net, [loader])


def test_the_router_s_polish_ends_at_a_rate_near_zero_and_keeps_the_end(monkeypatch):
    net, loaders = learned(2)
    rates = []

    def optimizer(router):
        made = torch.optim.Adam(router.parameters(), 0.1)
        made.register_step_pre_hook(lambda *_: rates.append(made.param_groups[0]["lr"]))
        return made

    trained = optimizers_of(monkeypatch, optimizer)
    events = []
    train_router(net, loaders, max_epochs=2, polish_epochs=2, callbacks=[events.append])
    assert [event.epoch for event in events] == [1, 2, 3, 4]
    of_epochs = rates[:: len(rates) // 4]
    assert of_epochs == pytest.approx([0.1, 0.1, 0.1 * 0.8535533905932737, 0.1 * 0.1464466094067262])
    assert torch.equal(net.router.weight, (trained[0].weight / trained[0].moments.deviation).detach())
