"""Frozen features kept by sample: training is the same as without them, and only live units are computed."""

import random
from contextlib import nullcontext

import pytest
import torch
from life import READINGS, Memory, batch, learn, live_tensors, loss_of, poison, reading
from slow import slow
from small_networks import MLP, NETWORKS, ConvNet
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError, TaskError
from eidetic_kernels.layout import LIVE, Segments, Source, staircase
from eidetic_kernels.ops import Weights, staircase_linear
from eidetic_kernels.tasks.frozen_features import PassDiffers
from eidetic_training.data import TensorLoader

SAMPLES, TASKS = 40, 3
QUICK = ("mlp", "conv", "residual")
SOME = [*QUICK, *slow(*(name for name in NETWORKS if name not in QUICK))]


def prepared(make, how="nested", dtype=torch.float32, **prepare):
    """A network with three finished tasks and a fourth in training."""
    torch.manual_seed(0)
    net = make().to(dtype)
    prepare.setdefault("max_units", 0.3)  # a grain stays of whatever is pruned, and later tasks need some
    for task in range(TASKS):
        learn(net, task, how, **prepare)
    net.prepare_for_task(TASKS, 3, reading(net, how, TASKS), **prepare)
    return net.train()


class Counting(ek.FrozenFeatures):
    """Counts the passes that ran live units alone."""

    live = 0

    def _join(self, rows, layer, given):
        self.live += layer is self.readers[-1]
        return super()._join(rows, layer, given)


def train(net, keep, shuffle=False, size=16, epochs=4, optimizer=None, noise=0.0):
    """Epochs on forty samples, a pruning after the second; returns the features and the losses."""
    x, y = batch(net, SAMPLES)
    features = Counting(net, SAMPLES) if keep else None
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    draw, losses = torch.Generator().manual_seed(1), []

    torch.manual_seed(7)
    for epoch in range(epochs):
        order = torch.randperm(SAMPLES, generator=draw) if shuffle else torch.arange(SAMPLES)
        for rows in order.split(size):
            optimizer.zero_grad()
            given = x[rows] + noise * torch.randn(x[rows].shape) if noise else x[rows]
            if keep:
                with features.batch(rows):
                    loss = loss_of(net, given, y[rows])
            else:
                loss = loss_of(net, given, y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if epoch == 1:
            net.prune(0.4, optimizer=optimizer)

    return features, torch.stack(losses)


def compare(plain, kept, same):
    """``same`` of every live tensor, the statistics among them."""
    expected = live_tensors(plain)
    for name, tensor in live_tensors(kept).items():
        same(name, tensor, expected[name])


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("name", SOME)
def test_training_has_the_same_bits_with_and_without(name, how):
    """With dropout and pruning; every sample in the same place of its batch."""
    plain, kept = prepared(NETWORKS[name], how), prepared(NETWORKS[name], how)
    _, expected = train(plain, keep=False)
    features, losses = train(kept, keep=True)
    assert features.off is None and (features.bytes > 0) == features.reads
    assert features.reads or how != "nested"
    assert features.live > 0
    assert_same_bits("losses", losses, expected)
    compare(plain, kept, assert_same_bits)


@pytest.mark.parametrize("name", SOME)
def test_training_is_the_same_wherever_samples_lie(name):
    """In other batches, of other sizes, a library's sums may round otherwise; in float64 that is little."""
    plain, kept = (prepared(NETWORKS[name], "mixed", torch.float64) for _ in range(2))
    _, expected = train(plain, keep=False, shuffle=True)
    _, losses = train(kept, keep=True, shuffle=True)
    assert_close("losses", losses, expected, condition=100)
    compare(plain, kept, lambda *given: assert_close(*given, condition=1000, least=1e-3))


def test_shuffled_training_has_the_same_bits_where_products_do_not_look_at_places():
    wide = {"make": lambda: MLP((160, 128)), "max_units": 32, "how": "nested"}
    plain, kept = (prepared(**wide) for _ in range(2))
    x, rows = torch.randn(20, 160), torch.randperm(20)
    blocks = [torch.randn(16, columns) for columns in (6, 32, 64, 96)]
    if not all(torch.equal(F.linear(x[rows, : w.shape[1]], w), F.linear(x[:, : w.shape[1]], w)[rows]) for w in blocks):
        pytest.skip("this library's products do")
    _, expected = train(plain, keep=False, shuffle=True, size=20)
    features, losses = train(kept, keep=True, shuffle=True, size=20)
    assert features.live == 5
    assert_same_bits("losses", losses, expected)
    compare(plain, kept, assert_same_bits)


class Fused(ek.EideticNetwork):
    """Linear layers that own their norm, with another activation after one."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.first = ek.EideticLinear(6, 24, norm=ek.EideticBatchNorm1d(24, activation="relu"))
        self.second = ek.EideticLinear(24, 20, norm=ek.EideticBatchNorm1d(20))

    def forward(self, x):
        return F.hardswish(self.second(self.first(x)))


class Concatenating(ek.EideticNetwork):
    """Two layers of one input, their units side by side before dropout, normalised together."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.stem = ek.EideticLinear(6, 20)
        self.left, self.right = ek.EideticLinear(20, 18), ek.EideticLinear(20, 16)
        self.norm = ek.EideticBatchNorm1d(34)
        self.drop = nn.Dropout(0.5)
        self.last = ek.EideticLinear(34, 20)

    def forward(self, x):
        x = F.relu(self.stem(x))
        both = torch.cat([self.left(x), self.right(x)], 1)
        return F.relu(self.last(self.drop(F.relu(self.norm(both)))))


@pytest.mark.parametrize("make", [Fused, Concatenating])
def test_other_ways_to_join_units_have_the_same_bits(make):
    plain, kept = (prepared(make, max_units=0.25) for _ in range(2))
    _, expected = train(plain, keep=False)
    features, losses = train(kept, keep=True)
    assert features.live > 0
    assert_same_bits("losses", losses, expected)
    compare(plain, kept, assert_same_bits)


def test_layers_that_read_the_same_share_what_is_kept():
    net = prepared(Concatenating, max_units=0.25)
    features, _ = train(net, keep=True, epochs=1)
    groups = {group.name: group.segments.frozen_total for group in net.groups}
    assert features.bytes == 4 * SAMPLES * (groups["stem"] + groups["left"] + groups["right"] + groups["last"])


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("make", [MLP, ConvNet], ids=["linear", "channels_last"])
def test_half_precision_and_other_memory_formats_train_the_same(make, half):
    results = []
    for keep in (False, True):
        net = prepared(lambda: make((24, 20) if make is MLP else (16, 12, 20), dropout=0.0), max_units=0.25)
        x, y = batch(net, 16)
        x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
        features = ek.FrozenFeatures(net, 16)
        for _ in range(3):
            net.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, half), features.batch(torch.arange(16)):
                loss = loss_of(net, x, y)
            if not keep:
                features = ek.FrozenFeatures(net, 16)
        loss.backward()
        results.append({"loss": loss, **{name: p.grad for name, p in net.named_parameters() if p.numel()}})
    for name, expected in results[0].items():
        assert_same_bits(name, results[1][name], expected)


def test_a_live_segment_has_the_same_bits_alone_and_beside_what_it_does_not_read():
    """Of all sizes, since a library's products look at how their input lies for some only."""
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(150):
        frozen, live, rows, samples = (draw.choice([1, 3, 8, 17, 40]) for _ in range(4))
        output, source = Segments(rows, rows, (0,)), Source(Segments(frozen + live, live, (frozen,)))
        x, weight = torch.randn(samples, frozen + live), torch.randn(rows, live)
        nothing = torch.empty(0)
        whole, alone = (staircase(output, (source,), (False, False), task) for task in (None, LIVE))
        results = []
        for given, stairs in ((x, whole), (x[:, frozen:].clone(memory_format=torch.contiguous_format), alone)):
            leaf = weight.clone().requires_grad_()
            y = staircase_linear(given, Weights(leaf, None, nothing, None), stairs)
            y.square().sum().backward()
            results.append((y, leaf.grad))
        for (a, b), name in zip(zip(*results), ("y", "gradient")):
            assert_same_bits(f"{name}, {frozen} frozen, {live} live, {rows} rows, {samples} samples", a, b)


# ---- what a live pass is


@pytest.mark.parametrize("name", SOME)
def test_once_kept_nothing_frozen_is_computed(name):
    """Frozen rows that are NaN by then reach neither loss nor gradient."""
    net = prepared(NETWORKS[name])
    x, y = batch(net, 16)
    features = ek.FrozenFeatures(net, 16)
    for _ in range(2):
        with features.batch(torch.arange(16)):
            net(x)
    for module in net.modules():
        for tensor in (getattr(module, n) for n in getattr(module, "frozen_names", ())):
            if tensor is not None:
                tensor.fill_(float("nan"))
    with features.batch(torch.arange(16)):
        loss = loss_of(net, x, y)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.numel())


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("name", SOME)
def test_finished_tasks_keep_their_bits(name, how):
    """P1 to P3: with decay, and with what was kept while everything live was NaN."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    memory = Memory(net)
    for task in range(TASKS):
        learn(net, task, how, max_units=0.3)
        memory.note(net)

    net.prepare_for_task(TASKS, 3, reading(net, how, TASKS), max_units=0.3)
    before, x = net.snapshot(), batch(net, SAMPLES)[0]

    poison(net)
    features = ek.FrozenFeatures(net, SAMPLES)
    with features.batch(torch.arange(SAMPLES)):
        net.train()(x)
    assert all(kept.isfinite().all() for kept in features._cache.values())

    net.restore(before)
    optimizer = torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5)
    train(net, keep=True, optimizer=optimizer)
    memory.check(net, "training on kept features")

    net.finish_task()
    memory.note(net)
    memory.check(net, "the task's end")
    net.certify().check()


def test_recall_and_evaluation_inside_a_batch_are_what_they_are_outside():
    net = prepared(MLP).eval()
    x, rows = batch(net, 16)[0], torch.arange(16)
    features = ek.FrozenFeatures(net, 16)
    outside = [net(x, task=1), net(x)]
    for _ in range(3):
        with features.batch(rows), torch.no_grad():
            assert_same_bits("in training", net(x), outside[1])
            assert_same_bits("recalled", net(x, task=1), outside[0])


def test_several_passes_may_be_open_at_once():
    """Gradient accumulation over two batches, whose graphs both wait for one backward pass."""
    gradients = []
    for keep in (False, True):
        net = prepared(lambda: MLP(dropout=0.0))
        x, y = batch(net, 32)
        features = ek.FrozenFeatures(net, 32)
        for _ in range(3):
            net.zero_grad()
            losses = []
            for rows in torch.arange(32).split(16):
                with features.batch(rows):
                    losses.append(loss_of(net, x[rows], y[rows]))
            sum(losses).backward()
            if not keep:
                features = ek.FrozenFeatures(net, 32)
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.numel()})
    for name, expected in gradients[0].items():
        assert_same_bits(name, gradients[1][name], expected)


def test_samples_are_kept_as_they_come():
    """A batch with one unknown sample is an ordinary pass, and makes it known."""
    net = prepared(MLP)
    x, y = batch(net, 20)
    features = Counting(net, 20)
    batches = [[0, 1, 2, 3], [3, 2, 1], [3, 2, 1], [0, 9, 1], [9, 9, 0], list(range(20)), [17, 4]]
    for rows, live in zip(map(torch.tensor, batches), (0, 0, 1, 1, 2, 2, 3)):
        with features.batch(rows):
            loss_of(net, x[rows], y[rows])
        assert features.live == live, rows


@pytest.mark.parametrize("make", [MLP, ConvNet], ids=["linear", "convolutions"])
def test_layers_without_live_units(make):
    """Linear layers go on; images of no channels, which pooling refuses, are left to ordinary passes."""
    plain, kept = prepared(make), prepared(make)
    for net in (plain, kept):
        first = net.groups[0]
        plan = net.plan_pruning(0.0)
        empty = [torch.empty(0, dtype=torch.long) if g.name == first.name else g.keep for g in plan.groups]
        groups = tuple(type(g)(g.name, g.live, keep) for g, keep in zip(plan.groups, empty))
        net.apply_plan(type(plan)(plan.importance, groups))
        assert first.segments.live == 0
    _, expected = train(plain, keep=False)
    features, losses = train(kept, keep=True)
    assert (features.live > 0) == (make is MLP)
    assert_same_bits("losses", losses, expected)


# ---- when nothing is kept


def test_a_limit_is_checked_before_anything_is_allocated():
    net = prepared(MLP)
    read = sum(group.segments.frozen_total for group in net.groups)
    x, y = batch(net, 16)
    for samples, spare, off in ((16, 0, False), (10**6, -1, True)):
        features = ek.FrozenFeatures(net, samples, limit=4 * samples * read + spare)
        for _ in range(2):
            with features.batch(torch.arange(16)):
                loss_of(net, x, y)
        assert (features.off is not None) == off
        assert features.bytes == (0 if off else 64 * read)
    assert "1,000,000 samples" in features.off and "MiB are allowed" in features.off


class LayerNormed(ek.EideticNetwork):
    """The norm's statistics are over frozen units too."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.stem, self.whole = ek.EideticLinear(6, 20), ek.EideticLayerNorm(20)

    def forward(self, x):
        return F.relu(self.whole(self.stem(x)))


def test_a_layer_that_looks_at_all_units_is_named_and_passes_are_ordinary():
    plain, kept = prepared(LayerNormed), prepared(LayerNormed)
    _, expected = train(plain, keep=False)
    features, losses = train(kept, keep=True)
    assert "whole (EideticLayerNorm)" in features.off and features.live == features.bytes == 0
    assert_same_bits("losses", losses, expected)


class Elsewhere(torch.Tensor):
    """Indices on another device: they can be brought to the network's, counted and described, and not looked at."""

    allowed = (torch.Tensor.to, torch.Tensor.__len__, torch.Tensor.dim, torch.Tensor.dtype.__get__)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function in cls.allowed, f"{function} read indices where they lay"
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
            return result.as_subclass(torch.Tensor) if isinstance(result, torch.Tensor) else result


def test_indices_may_lie_on_another_device():
    """As a loader on the CPU gives them, for a network on a GPU."""
    net = prepared(MLP)
    features, (x, y) = Counting(net, 12), batch(net, 12)
    for _ in range(3):
        with features.batch(torch.arange(12).as_subclass(Elsewhere)):
            loss_of(net, x, y).backward()
    assert features.live == 1 and features.off is None


class Named(ek.EideticNetwork):
    """Its layers are given what they read by name."""

    example = (2, 3, 3)

    def __init__(self):
        super().__init__()
        self.first = ek.EideticConv2d(2, 8, 3, padding=1, norm=ek.EideticBatchNorm2d(8, activation="relu"))
        self.second = ek.EideticConv2d(8, 8, 1, norm=ek.EideticBatchNorm2d(8))
        self.last = ek.EideticLinear(72, 9)

    def forward(self, x):
        x = self.first(x=x)
        return self.last(x=self.second(x=x, residual=x).flatten(1))


def test_layers_that_are_given_their_input_by_name():
    plain, kept = prepared(Named, max_units=0.2), prepared(Named, max_units=0.2)
    _, expected = train(plain, keep=False)
    features, losses = train(kept, keep=True)
    assert features.live and features.off is None
    assert_close("losses", losses, expected)


def test_samples_that_change_are_found_out():
    plain, kept = prepared(MLP), prepared(MLP)
    _, expected = train(plain, keep=False, noise=0.5)
    features, losses = train(kept, keep=True, noise=0.5)
    assert "another from pass to pass" in features.off and features.live == features.bytes == 0
    assert_same_bits("losses", losses, expected)


def test_a_compiled_network_keeps_nothing():
    net = prepared(MLP)
    net.compile(backend="eager")
    assert "compiled" in ek.FrozenFeatures(net, 8).off


# ---- when layers do not run once in each pass


class ByHand(ek.EideticNetwork):
    """Four steps [N, 4, 6] wired by hand; ``how`` says what forward does with its layers."""

    example = (4, 6)

    def __init__(self, how):
        super().__init__()
        self.how, self.passes = how, 0
        self.first, self.second = ek.EideticLinear(6, 24), ek.EideticLinear(24, 24)
        self.extra = ek.EideticLinear(6, 24)

    def connections(self):
        added = ("first", "second", "extra")
        return {"first": "input", "second": "first", "extra": "input", "output": added}

    def forward(self, x):
        return getattr(self, self.how)(x).relu()

    def recurrent(self, x):
        h = self.first(x[:, 0]) + self.extra(x[:, 0])
        for step in range(1, 4):
            h = self.first(x[:, step]) + self.second(h.tanh())
        return h

    def shared(self, x):
        h = self.first(x[:, 0]) + self.extra(x[:, 0])
        return h + self.second(h.tanh()) + self.second(-h)

    def steps_as_samples(self, x):
        h = self.first(x.flatten(0, 1)) + self.extra(x.flatten(0, 1))
        return (h + self.second(h.tanh())).unflatten(0, (-1, 4)).mean(1)

    def sometimes_what_reads_units(self, x, since=1):
        h = self.first(x[:, 0]) + self.extra(x[:, 0])
        return h + self.second(h.tanh()) if self.often(since) else h

    def sometimes_what_reads_the_input(self, x, since=1):
        h = self.first(x[:, 0])
        return h + self.second((h + self.extra(x[:, 1]) if self.often(since) else h).tanh())

    def reads_units_at_last_not(self, x):
        return self.sometimes_what_reads_units(x, since=8)

    def reads_the_input_at_last_not(self, x):
        return self.sometimes_what_reads_the_input(x, since=8)

    def several_readings_of_the_input(self, x):
        h = self.first(x[:, 0]) + self.first(x[:, 1]) + self.extra(x[:, 2])
        return h + self.second(h.tanh())

    def often(self, since):
        """False in every second pass of the training after the first ``since``."""
        self.passes += self.training
        return not self.training or self.passes <= since or self.passes % 2 == 0


def trained_by_hand(how, keep):
    """As the driver trains: a pass that other layers took part in is made again."""
    torch.manual_seed(0)
    net = ByHand(how)
    for task in range(2):
        learn(net, task, max_units=0.4, fraction=0)

    net.prepare_for_task(2, 3)
    net.train().passes = 0
    features, optimizer, outputs = Counting(net, SAMPLES), torch.optim.SGD(net.parameters(), 0.1), []
    x, y = batch(net, SAMPLES)

    for rows in torch.arange(SAMPLES).split(8) * 4:
        optimizer.zero_grad()
        passes = net.passes
        try:
            with features.batch(rows) if keep else nullcontext():
                logits = net(x[rows])
        except PassDiffers:
            net.passes = passes
            logits = net(x[rows])
        F.cross_entropy(logits, y[rows]).backward()
        optimizer.step()
        outputs.append(logits.detach())
    return features, torch.stack(outputs)


@pytest.mark.parametrize(
    "how, off",
    [
        ("recurrent", "second runs 3 times in a pass, in place of once"),
        ("shared", "second runs 2 times in a pass, in place of once"),
        ("steps_as_samples", "second is given 32 rows for 8 samples"),
        ("sometimes_what_reads_units", "second runs never in one pass and once in another"),
        ("sometimes_what_reads_the_input", "extra runs never in one pass and once in another"),
        ("reads_units_at_last_not", "second runs never in one pass and once in another"),
        ("reads_the_input_at_last_not", "extra runs never in one pass and once in another"),
        ("several_readings_of_the_input", None),
    ],
)
def test_layers_that_do_not_run_once_in_each_pass(how, off):
    """What cannot be proven to be right is refused, also where the first pass that differs is one of live units."""
    _, expected = trained_by_hand(how, keep=False)
    features, outputs = trained_by_hand(how, keep=True)
    assert features.off == off
    assert (features.live > 0) == (off is None or "at_last" in how)
    assert_close("logits", outputs, expected)


def test_the_driver_makes_such_a_pass_again_and_says_why_features_are_off():
    torch.manual_seed(0)
    net = ByHand("reads_units_at_last_not")
    x, y = batch(net, SAMPLES)
    loader = TensorLoader(x, y, batch_size=8, num_classes=3)
    for task in range(2):
        net.passes = 0
        net.prepare_for_task(task, 3, max_units=0.4)
        result = net.train_task(loader, max_epochs=3, patience=9, search="none", polish_epochs=0)
    (note,) = [event.note for event in result.history if event.note is not None]
    assert note == "Frozen features are computed at every step: second runs never in one pass and once in another."
    assert net.certify().ok


# ---- mistakes


def test_what_does_not_fit_is_refused():
    net = prepared(MLP)
    x, y = batch(net, 16)
    for samples in (0, -1, 2.0, True, None):
        with pytest.raises(InputError, match="samples must be"):
            ek.FrozenFeatures(net, samples)

    features = ek.FrozenFeatures(net, 16)
    for _ in range(2):
        with pytest.raises(InputError, match="16 samples and rows 3"), features.batch(torch.arange(3)):
            net(x)
        for _ in range(2):
            with features.batch(torch.arange(16)):
                net(x)

    with pytest.raises(InputError, match="requires grad"), features.batch(torch.arange(16)):
        net(x.clone().requires_grad_())
    assert net(x).shape == (16, 3), "an ordinary pass again"

    net.finish_task()
    with pytest.raises(TaskError, match="no head is in training"):
        ek.FrozenFeatures(net, 16)
    net.widen(30)
    net.prepare_for_task(TASKS + 1, 3)
    with pytest.raises(TaskError, match="no longer in training"), features.batch(torch.arange(16)):
        net(x)


def test_a_pass_that_failed_is_not_kept():
    net = prepared(MLP)
    x = batch(net, 16)[0]
    features = ek.FrozenFeatures(net, 16)
    with pytest.raises(InputError), features.batch(torch.arange(16)):
        net(x[:, :5])
    assert features.bytes == 0 and not any(layer._forward_pre_hooks for layer in net.modules())
    with pytest.raises(InputError, match="16 samples and rows 4"), features.batch(torch.arange(4)):
        net(x)
    assert features.bytes == 0
