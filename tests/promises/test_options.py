"""What makes training faster weakens no promise: P1, P2, P3, P5 and P8 with every option on.

In small batches and large ones; these hold enough samples for linear units to lie one after the other in memory
(UNIT_MAJOR_FROM).
"""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import pytest
import torch
from fused_networks import Images
from fused_networks import Small as Tiny
from life import CLASSES, Memory, batch, learn, loss_of, poison, reading, recall
from slow import slow
from small_networks import MLP, ConvNet, FlatResidual, Residual
from tolerances import assert_same_bits
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.layers.linear import UNIT_MAJOR_FROM
from eidetic_kernels.layout import LIVE, positions, without
from eidetic_kernels.memory import is_unit_major
from eidetic_kernels.ops.staircase import read
from eidetic_training.data import TensorLoader

SAMPLES, TASKS = 80, 3
SIZES = (24, 40)
assert SIZES[0] < UNIT_MAJOR_FROM <= SIZES[1]


class Fused(ek.EideticNetwork):
    """Linear layers that own their norm, dropout between them."""

    example = (6,)

    def __init__(self, widths=(24, 20)):
        super().__init__()
        first, second = widths
        self.first = ek.EideticLinear(6, first, norm=ek.EideticBatchNorm1d(first, activation="silu"))
        self.drop = nn.Dropout(0.3)
        self.second = ek.EideticLinear(first, second, norm=ek.EideticBatchNorm1d(second, activation="relu"))

    def forward(self, x):
        return self.second(self.drop(self.first(x)))


@dataclass(frozen=True)
class Option:
    keep: bool = False  # FrozenFeatures
    half: bool = False  # bfloat16 autocast
    channels_last: bool = False
    backend: str | None = None

    def batch(self, net, samples, seed=0):
        x, y = batch(net, samples, seed=seed, classes=CLASSES)
        return (x.to(memory_format=torch.channels_last) if self.channels_last else x), y


NETWORKS = {
    "mlp": lambda: MLP((24, 20), dropout=0.3),
    "fused": Fused,
    "flat-residual": FlatResidual,
    "conv": ConvNet,
    "residual": Residual,
    "fused-images": Images,
}
OPTIONS = {
    "fused layers and unit-major": Option(),
    "frozen features": Option(keep=True),
    "autocast": Option(half=True),
    "frozen features, autocast": Option(keep=True, half=True),
    "frozen features, torch's kernels": Option(keep=True, backend="torch"),
    "frozen features, compiled kernels": Option(keep=True, backend="cpu"),
    "channels_last": Option(channels_last=True),
    "frozen features, channels_last": Option(keep=True, channels_last=True),
}
CASES = [
    (name, option)
    for name in NETWORKS
    for option in OPTIONS
    if not (OPTIONS[option].channels_last and name in ("mlp", "fused", "flat-residual"))
]
QUICK = [case for case in CASES if case[0] == "fused-images" or case[1] == "frozen features"]


@pytest.fixture(params=[*QUICK, *slow(*(case for case in CASES if case not in QUICK))], ids=" with ".join)
def case(request):
    """A network and an option, whose backend runs."""
    name, option = NETWORKS[request.param[0]], OPTIONS[request.param[1]]
    if option.backend and backends.why_missing(option.backend):
        pytest.skip(backends.why_missing(option.backend))
    with backends.using(option.backend) if option.backend else nullcontext():
        yield name(), option


class Training:
    """The task in training, pass by pass, with an option on; every pass in the same batches."""

    def __init__(self, net, option, size, seed=0):
        self.net, self.option = net, option
        self.x, self.y = option.batch(net, SAMPLES, seed)
        self.batches = torch.randperm(SAMPLES).split(size)
        self.features = ek.FrozenFeatures(net, SAMPLES) if option.keep else None

    def loss(self, rows, then=lambda: None):
        with ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, self.option.half))
            if self.features is not None:
                stack.enter_context(self.features.batch(rows))
            loss = loss_of(self.net.train(), self.x[rows], self.y[rows])
            with torch.autocast("cpu", enabled=False):
                then()
        return loss

    def epochs(self, optimizer, count):
        for rows in self.batches * count:
            optimizer.zero_grad()
            self.loss(rows).backward()
            optimizer.step()

    @property
    def runs_live(self):
        """Whether passes run live units alone by now."""
        return self.features is not None and self.features.off is None and self.features._verified


def remembering(net, option):
    memory = Memory(net)
    memory.batches = [x.to(memory_format=torch.channels_last) if option.channels_last else x for x in memory.batches]
    return memory


@pytest.mark.parametrize("how, size", [("mixed", SIZES[0]), ("nested", SIZES[1])])
def test_finished_tasks_keep_their_bits(case, how, size):
    """P1 to P3: one AdamW with decay for all tasks, pruning, NaN in everything live before and between passes."""
    net, option = case
    memory, optimizer = remembering(net, option), None
    for task in range(TASKS):
        net.prepare_for_task(
            task, CLASSES, reading(net, how, task), max_units=0.4 if task else None, optimizer=optimizer
        )
        optimizer = optimizer or torch.optim.AdamW(net.parameters(), 0.02, weight_decay=0.3)

        snapshot = net.snapshot(optimizer)
        training = Training(net, option, size, task)
        poison(net)
        for rows in training.batches:  # what is kept of these passes is used from here on
            training.loss(rows).backward()
        memory.check(net, "passes over poison")
        net.restore(snapshot, optimizer)

        before = [p.detach().clone() for p in net.parameters() if p.numel()]
        training.epochs(optimizer, 2)
        assert all(not torch.equal(p, q) for p, q in zip([p for p in net.parameters() if p.numel()], before))
        memory.check(net, "training")
        training.loss(training.batches[0], lambda: memory.check(net, "nothing: in the middle of a pass"))

        net.prune(0.4, optimizer=optimizer)
        training.epochs(optimizer, 2)
        memory.check(net, "training after pruning")
        assert training.runs_live == option.keep

        snapshot = net.snapshot(optimizer)
        poison(net)
        training.loss(training.batches[0]).backward()
        memory.check(net, "poison after training")
        net.restore(snapshot, optimizer)
        assert torch.stack([training.loss(rows) for rows in training.batches]).isfinite().all()

        net.finish_task()
        memory.check(net, "finishing the next task")
        memory.note(net)
    assert net.certify().ok, str(net.certify())


def learned(net, option, size, how="nested"):
    """Two tasks finished, a third in training, every live unit alive."""
    for task in range(TASKS):
        net.prepare_for_task(task, CLASSES, reading(net, how, task), max_units=0.4 if task else None)
        training = Training(net, option, size, task)
        training.epochs(torch.optim.SGD(net.parameters(), 0.1), 2)
        if task < TASKS - 1:
            net.prune(0.3)
            net.finish_task()
    return training


def frozen_inputs(net, x, layers, mode, within=nullcontext):
    """What frozen units give each of ``layers``, of what its live units read, bit for bit."""
    found = {}

    def note(layer, given):
        stairs, x = layer.derived(layer.scope.task), given[0]
        live_only = layer.scope.task == LIVE  # then x is what the layer reads, and nothing else
        spans = stairs.live.spans if live_only else layer.staircase().live.spans
        columns = without(spans, stairs.trainable)
        found[layer] = read(x, columns).detach().clone()

    with within(), torch.no_grad(), ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note).remove)
        net.train(mode)(x)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_what_frozen_units_give_is_the_same_in_training_and_evaluation(case, size):
    """P5, at every layer that reads them: sample for sample what evaluation gives, and nothing that live units make."""
    net, option = case
    training = learned(net, option, size)
    features = training.features or ek.FrozenFeatures(net, SAMPLES)
    layers = features.readers
    for poisoned in (False, True):
        if poisoned:
            poison(net)
        for rows in training.batches:
            with torch.autocast("cpu", torch.bfloat16, option.half):
                expected = frozen_inputs(net, training.x[rows], layers, False)
                within = (lambda rows=rows: features.batch(rows)) if option.keep else nullcontext
                given = frozen_inputs(net, training.x[rows], layers, True, within)
            assert given.keys() == expected.keys() == set(layers)
            for number, layer in enumerate(layers):
                assert expected[layer].numel() and expected[layer].isfinite().all()
                assert_same_bits(f"reader {number}", given[layer], expected[layer])
    assert training.runs_live == option.keep


def test_a_live_pass_is_what_the_test_above_saw():
    """Or it would compare ordinary passes."""
    seen = []
    training = learned(Fused(), OPTIONS["frozen features"], SIZES[1])
    layers = training.features.readers
    for layer in layers:
        layer.register_forward_hook(lambda layer, x, y: seen.append((layer.scope.task, x[0].shape[1], y)))
    training.loss(training.batches[0])
    live = [group.segments.live for group in training.net.groups]
    assert [task for task, *_ in seen] == [LIVE] * len(layers) == [LIVE] * 2
    assert [columns for _, columns, _ in seen] == [layer.staircase().live.columns for layer in layers]
    assert is_unit_major(seen[0][2]) and [y.shape[1] for *_, y in seen] == [live[-1], CLASSES]
    trainable = layers[0].derived(LIVE).trainable
    assert positions(layers[0].derived(LIVE).live.spans, trainable) == trainable


def test_answers_do_not_depend_on_the_test_batch(case):
    """P8: accuracy to the last digit, logits up to rounding, and not a bit of it by other samples."""
    net, option = case
    learned(net, option, SIZES[1], "mixed")
    x, y = option.batch(net, SAMPLES, seed=50)
    order = torch.randperm(SAMPLES)
    for task in range(net.finished_tasks):
        whole = recall(net, x, task)
        right = (whole.argmax(1) == y).sum()
        for size in (1, 7, UNIT_MAJOR_FROM - 1, UNIT_MAJOR_FROM, 33, 64):
            logits = torch.empty_like(whole)
            for rows in order.split(size):
                logits[rows] = recall(net, x[rows], task)
            torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
            assert (logits.argmax(1) == y).sum() == right
        for samples in SIZES:
            given, others = x[:samples], x[:samples].clone()
            others[1:] = 1e3 * torch.randn_like(others[1:])
            others[2:4] = float("nan")
            assert_same_bits("one sample", recall(net, others, task)[0], recall(net, given, task)[0])


@pytest.mark.filterwarnings("ignore:no layer has a free unit")
@pytest.mark.parametrize("search", ["backoff", *slow("linear", "none")])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [lambda: MLP((24, 20)), Fused, ConvNet], ids=["mlp", "fused", "conv"])
def test_the_trainers_options_keep_every_finished_tasks_bits(make, size, search):
    """Kept features, every search, polishing, one AdamW with decay; recalled after every epoch."""
    net = make()
    memory = Memory(net)

    def recalling(event):  # in the middle of training, in whatever mode that is
        memory.check(net, str(event))
        seen.append(event.phase)

    seen, optimizer = [], None
    for task in range(TASKS):
        net.prepare_for_task(task, CLASSES, max_units=0.4 if task else None, optimizer=optimizer)
        optimizer = optimizer or torch.optim.AdamW(net.parameters(), 0.02, weight_decay=0.3)
        loader = TensorLoader(*batch(net, SAMPLES, seed=task), batch_size=size, num_classes=CLASSES)
        net.train_task(
            loader,
            optimizer=optimizer,
            search=search,
            frozen_features=True,
            max_epochs=2,
            max_recovery_epochs=1,
            polish_epochs=1,
            callbacks=[recalling],
        )
        memory.note(net)
    assert net.finished_tasks == TASKS and {"train", "polish", "finish"} <= set(seen) and "features" not in seen
    assert net.certify().ok


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_compiled_training_keeps_finished_tasks_bits():
    """P1 to P3 while torch.compile runs the task in training; finished ones are recalled as they were."""
    net = Fused()
    memory = Memory(net)
    for task in range(2):
        learn(net, task)
        memory.note(net)

    net.prepare_for_task(2, CLASSES)
    optimizer = torch.optim.AdamW(net.parameters(), 0.02, weight_decay=0.3)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")

    for _ in range(2):
        for seed, size in enumerate(SIZES):
            optimizer.zero_grad()
            x, y = batch(net, size, seed=seed)
            loss_of(compiled.train(), x, y).backward()
            optimizer.step()
            memory.check(net, "a compiled step")

    poison(net)
    loss_of(compiled, *batch(net, SIZES[1])).backward()
    memory.check(net, "a compiled step over poison")
    torch.compiler.reset()


@pytest.mark.parametrize("backend", [name for name in backends.NAMES if backends.why_missing(name) is None])
@pytest.mark.parametrize("make", [Tiny, *slow(Images)])
def test_frozen_features_on_every_backend(make, backend):
    """P1 to P3 on backends that are slow here: Triton runs in its interpreter where there is no GPU."""
    device = "cuda" if "cuda" in backends.devices(backend) and torch.cuda.is_available() else "cpu"
    net = make().to(device)
    with backends.using(backend):
        samples = 33 if make is Tiny else 5
        x, y = (t.to(device) for t in batch(net, samples))
        for task in range(2):
            net.prepare_for_task(task, CLASSES, max_units=0.4)
            net.train()(x)
            net.finish_task()
        answers = [recall(net, x, task) for task in range(2)]

        net.prepare_for_task(2, CLASSES)
        optimizer = torch.optim.AdamW(net.parameters(), 0.02, weight_decay=0.3)
        features = ek.FrozenFeatures(net.train(), samples)
        for _ in range(3):
            optimizer.zero_grad()
            with features.batch(torch.arange(samples)):
                loss = loss_of(net, x, y)
            loss.backward()
            optimizer.step()

        assert features.off is None and features._verified
        for event in ("training", "poison"):
            for task, answer in enumerate(answers):
                assert_same_bits(f"task {task} after {event}", recall(net, x, task), answer)
            poison(net)


@pytest.mark.parametrize("wrapped", [True, False], ids=["torch.compile(net)", "net.compile()"])
def test_a_compiled_network_runs_where_a_task_takes_none_of_a_convolution_s_units(wrapped):
    torch.manual_seed(0)
    net = ConvNet((3, 6, 4), dropout=0.0)
    net.prepare_for_task(0, 3, max_units={"conv1": 0})
    x, y = batch(net)
    expected = loss_of(net, x, y)
    torch.compiler.reset()
    if wrapped:
        compiled = torch.compile(net, backend="eager")
    else:
        net.compile(backend="eager")
        compiled = net
    loss = loss_of(compiled, x, y)
    loss.backward()
    assert loss == expected
    net.finish_task()
    assert net.eval()(x, task=0).equal(compiled.eval()(x, task=0))
    torch.compiler.reset()
