"""Steps as CUDA graphs, simulated on the CPU: the same bits, or ordinary steps and an event that says why."""

import itertools
from collections import Counter

import fused_networks
import pytest
import torch
from blobs import CLASSES, blobs, network, state_of
from life import Memory, learn
from simulated_graphs import CaptureError, SimulatedGraphs
from slow import slow
from small_networks import MLP, NETWORKS
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings, train_epoch, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.training import captured_step
from eidetic_training.training.captured_step import WARM_UPS, CapturedSteps, why_not

OPTIMIZERS = {
    "adam": ek.default_optimizer,
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
}
ALIKE, RAGGED = 36, 9


def batches(net, sizes=(ALIKE,) * 5 + (RAGGED,) + (ALIKE,) * 2, classes=CLASSES):
    """A smaller batch comes in the middle: what follows must not be disturbed by it."""
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, *net.example, generator=generator), torch.randint(0, classes, (size,), generator=generator))
        for size in sizes
    ]


def in_training(make, how="nested", tasks=1):
    """A network that finished ``tasks`` tasks, pruned, and trains the next."""
    torch.manual_seed(0)
    net = make()
    for task in range(tasks):
        learn(net, task, how, max_units=0.4)
    net.prepare_for_task(tasks, CLASSES, how == "nested")
    return net


def trained(net, make_optimizer, captured, epochs=2, data=None, loss=F.cross_entropy, autocast=False):
    """What the epochs leave and report, and the graphs of the run (None: captured was False)."""
    optimizer = make_optimizer(net.parameters())
    graphs = SimulatedGraphs() if captured else None
    steps = CapturedSteps(graphs, optimizer) if captured else None
    torch.manual_seed(1)
    data = data or batches(net)
    results = [train_epoch(net, data, optimizer, loss, None, steps, autocast) for _ in range(epochs)]
    return (state_of(net, optimizer), results, torch.get_rng_state().tolist()), graphs, steps


# ---- an epoch


@pytest.mark.parametrize("backend", [None, *slow("torch")])
@pytest.mark.parametrize(
    "make", [*NETWORKS.values(), *fused_networks.NETWORKS.values()], ids=[*NETWORKS, *fused_networks.NETWORKS]
)
def test_a_captured_epoch_leaves_the_bits_of_an_ordinary_one(make, backend):
    """Weights, statistics, optimizer, loss, accuracy, random numbers (dropout); a finished task is recalled."""
    with backends.using(backend):
        ordinary, _, _ = trained(in_training(make), ek.default_optimizer, captured=False)
        net = in_training(make)
        memory = Memory(net)
        memory.note(net)
        captured, graphs, _ = trained(net, ek.default_optimizer, captured=True)
        memory.check(net, "captured epochs")
    assert captured == ordinary
    assert [graph.replays for graph in graphs.captures] == [7 - WARM_UPS] * 2, "of seven batches alike, twice"


def test_autocast_is_captured_with_the_step():
    ordinary, _, _ = trained(in_training(MLP), ek.default_optimizer, captured=False, autocast=True)
    captured, graphs, _ = trained(in_training(MLP), ek.default_optimizer, captured=True, autocast=True)
    assert captured == ordinary and len(graphs.captures) == 2


@pytest.mark.parametrize("tasks, how", [(0, "nested"), (2, "nested"), (2, "disjoint")])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_and_reading(make, tasks, how):
    ordinary, _, _ = trained(in_training(MLP, how, tasks), make, captured=False)
    captured, graphs, _ = trained(in_training(MLP, how, tasks), make, captured=True)
    assert captured == ordinary and len(graphs.captures) == 2


def test_a_graph_lives_as_long_as_its_epoch():
    net = network()
    optimizer = ek.default_optimizer(net.parameters())
    graphs = SimulatedGraphs()
    steps = CapturedSteps(graphs, optimizer)
    train_epoch(net, batches(net), optimizer, F.cross_entropy, None, steps)
    assert graphs.captures[0].calls is None and graphs.warmed == WARM_UPS
    wrong = [*batches(net), (torch.zeros(ALIKE, 6), torch.full((ALIKE,), CLASSES))]
    with pytest.raises(InputError, match="labels lie in"):
        train_epoch(net, wrong, optimizer, F.cross_entropy, None, steps)
    assert graphs.captures[1].calls is None and steps.off is None
    assert steps._inputs == () and steps._graph is None


def test_an_optimizer_is_lent_the_word_that_torch_asks_for():
    """torch warns about it outside captures, and it must not get into a saved state."""
    net = network()
    optimizer = ek.default_optimizer(net.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["capturable"]))
    steps = CapturedSteps(SimulatedGraphs(), optimizer)
    train_epoch(net, batches(net), optimizer, F.cross_entropy, None, steps)
    assert seen == [False] * WARM_UPS + [True, False], "ordinary, captured, the smaller one"
    assert optimizer.param_groups[0]["capturable"] is False


# ---- tasks


@pytest.fixture
def graphs(monkeypatch):
    """Stand in for a GPU's; the same object for every task."""
    simulated = SimulatedGraphs()
    monkeypatch.setattr(captured_step, "graphs_on", lambda device: simulated)
    return simulated


SETTINGS = {"max_epochs": 4, "polish_epochs": 2, "max_recovery_epochs": 1, "halve_learning_rate": True, "step": 0.2}
EPOCHS = ("train", "settle", "recover", "polish")


def numbered(task, **options):
    """Five batches of ten, then one of three: three ordinary steps, two replays and the rest."""
    return TensorLoader(*blobs(task, samples=53, noise=1.5), batch_size=10, num_classes=CLASSES, **options)


def lived(tasks, loaders=numbered, make=OPTIMIZERS["adam"], loss=None, **settings):
    """Tasks with dropout and pruning: the network, and its events without their times."""
    torch.manual_seed(0)
    net, told = MLP((20, 12), dropout=0.1), []
    memory = Memory(net, sizes=(7,))
    for task in range(tasks):
        net.prepare_for_task(task, CLASSES, max_units=8)
        optimizer = make(net.parameters())
        result = train_task(
            net, loaders(task), optimizer, loss=loss, settings=TaskSettings.of_dict({**SETTINGS, **settings})
        )
        told += [{**vars(event), "seconds": 0} for event in result.history]
        memory.check(net, f"task {task}")
        memory.note(net)
    return net, told


@pytest.mark.parametrize("features", [*slow(False), True])
@pytest.mark.parametrize("optimizer", ["adam", *slow("sgd")])
def test_tasks_with_pruning_end_with_the_same_bits(graphs, optimizer, features):
    """Backoff, halving and annealing: units and learning rates change between epochs, and every epoch captures anew."""
    options = {"make": OPTIMIZERS[optimizer], "frozen_features": features}
    plain, expected = lived(3, cuda_graphs=False, **options)
    assert not graphs.captures
    net, told = lived(3, cuda_graphs=True, **options)
    assert told == expected and state_of(net) == state_of(plain)
    phases = Counter(event["phase"] for event in told)
    assert all(phases[phase] for phase in ("settle", "recover", "prune", "restore", "polish"))
    # With frozen features, a task's first epoch computes them and the second one proves them.
    unsettled = 2 * 2 if features else 0
    assert len(graphs.captures) == sum(phases[phase] for phase in EPOCHS) - unsettled
    assert {graph.replays for graph in graphs.captures} == {2}
    assert len({graph.ops for graph in graphs.captures}) > 1
    net.certify().check()


def test_auto_is_the_same_and_silent_where_it_can(graphs):
    plain, expected = lived(2)
    net, told = lived(2, cuda_graphs="auto")
    assert told == expected and state_of(net) == state_of(plain) and graphs.captures


def test_frozen_features_keep_the_memory_that_a_graph_writes_to(graphs):
    """A smaller batch in the middle, and its ordinary step, must not take it."""

    class Uneven(TensorLoader):
        def _numbered(self, epoch):
            rows = torch.arange(self.num_samples)
            for some in rows.split([8, 8, 8, 8, 5, 8, 8]):
                yield some, self.x[some], self.y[some]

    def loaders(task):
        return Uneven(*blobs(task, samples=53), batch_size=8, num_classes=CLASSES)

    options = {"search": "none", "frozen_features": True, "max_epochs": 4, "patience": 4}
    plain, expected = lived(2, loaders, **options)
    net, told = lived(2, loaders, cuda_graphs=True, **options)
    assert told == expected and state_of(net) == state_of(plain)


# ---- ordinary steps, aloud


def reads(logits, y):
    """A loss that looks at its value on the host."""
    value = F.cross_entropy(logits, y)
    return value if value.item() < 1e9 else value.sqrt()


class ReadsAt:
    """A loss that reads its value in one call only, which the steps before do not show."""

    def __init__(self, call):
        self.calls, self.call = itertools.count(1), call

    def __call__(self, logits, y):
        value = F.cross_entropy(logits, y)
        return value if next(self.calls) != self.call else value * float(value.detach() > -1)


def masks(logits, y):
    return F.cross_entropy(logits[y >= 0], y)


LOSSES = {
    "item": (lambda: reads, 0, "waits for the GPU (aten._local_scalar_dense)"),
    "mask": (lambda: masks, 0, "waits for the GPU (aten.index with a mask"),
    "late": (lambda: ReadsAt(WARM_UPS + 1), 1, "could not be captured: CaptureError: operation not permitted"),
}


@pytest.mark.parametrize("make, failed, why", LOSSES.values(), ids=LOSSES)
def test_a_step_that_cannot_be_captured_is_an_ordinary_one_and_said_once(graphs, make, failed, why):
    plain, expected = lived(1, loss=make())
    net, told = lived(1, loss=make(), cuda_graphs="auto")
    notes = [event["note"] for event in told if event["phase"] == "graphs"]
    assert len(notes) == 1 and why in notes[0] and notes[0].startswith("Steps are launched kernel by kernel")
    assert [event for event in told if event["phase"] != "graphs"] == expected
    assert state_of(net) == state_of(plain)
    assert not graphs.captures and graphs.failed == failed


@pytest.mark.parametrize("make, failed, why", LOSSES.values(), ids=LOSSES)
def test_where_it_was_asked_for_it_is_refused_and_the_epoch_undone(graphs, make, failed, why):
    net = network()
    optimizer = ek.default_optimizer(net.parameters())
    before = state_of(net, optimizer)
    with pytest.raises(InputError, match="steps cannot be captured .* Set cuda_graphs to false or 'auto'") as error:
        train_task(net, numbered(0), optimizer, loss=make(), cuda_graphs=True)
    assert why in str(error.value)
    assert state_of(net, optimizer) == before and net.current_task == 0
    assert graphs.failed == failed


def test_batch_norm_with_a_cumulative_average_reads_its_count():
    class Cumulative(MLP):
        def __init__(self):
            super().__init__()
            self.body[1].momentum = None

    ordinary, _, _ = trained(in_training(Cumulative), ek.default_optimizer, captured=False)
    captured, graphs, steps = trained(in_training(Cumulative), ek.default_optimizer, captured=True)
    assert captured == ordinary and "waits for the GPU" in steps.off and not graphs.captures


class Late:
    """A loss that has its own parameter from one of its calls on."""

    def __init__(self, call):
        self.extra, self.calls, self.call = nn.Parameter(torch.ones(3)), itertools.count(1), call

    def __call__(self, logits, y):
        value = F.cross_entropy(logits, y)
        return value + self.extra.square().sum() if next(self.calls) >= self.call else value


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_that_an_optimizer_begins_in_the_captured_step_is_begun_outside(name):
    """Such state would begin anew at every replay."""

    def run(captured):
        loss, net = Late(WARM_UPS + 1), network()
        optimizer = OPTIMIZERS[name]([*net.parameters(), loss.extra])
        graphs = SimulatedGraphs()
        steps = CapturedSteps(graphs, optimizer) if captured else None
        data = batches(net, [ALIKE] * 7)
        result = train_epoch(net, data, optimizer, loss, None, steps)
        held = [tensor for values in optimizer.state.values() for tensor in values.values()]
        return result, [*net.parameters(), loss.extra, *held], steps

    (first, expected, _), (second, found, steps) = run(False), run(True)
    assert "began new state" in steps.off
    assert first == second and len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("sizes", [(9, 9, 9), (9, 9, 9, 4), (9, 8, 7, 6, 5, 4), (1000,)])
def test_epochs_with_too_few_batches_of_one_shape_are_said(sizes):
    net = network()
    ordinary, _, _ = trained(network(), OPTIMIZERS["sgd"], False, 1, batches(net, sizes))
    captured, graphs, steps = trained(net, OPTIMIZERS["sgd"], True, 1, batches(net, sizes))
    assert captured == ordinary and not graphs.captures
    assert f"of an epoch's {len(sizes)} batches have the same shape" in steps.off


REFUSED = {
    "unfused": (torch.optim.Adam, "Adam counts its steps on the host: create it with fused=True"),
    "rmsprop": (torch.optim.RMSprop, "RMSprop counts its steps on the host"),
    "adagrad": (torch.optim.Adagrad, "Adagrad is not known to keep all that a step changes on the GPU"),
    "a subclass": (type("Mine", (torch.optim.SGD,), {}), "Mine is not known to keep"),
}


@pytest.mark.parametrize("make, why", REFUSED.values(), ids=REFUSED)
def test_optimizers_that_count_on_the_host(graphs, make, why):
    def run(cuda_graphs):
        net = network()
        optimizer = make(net.parameters(), 0.01)
        settings = {"max_epochs": 1, "search": "none", "finish": False, "cuda_graphs": cuda_graphs}
        told = train_task(net, numbered(0), optimizer, **settings).history
        return state_of(net, optimizer), [event.note for event in told if event.phase == "graphs"]

    state, notes = run("auto")
    assert len(notes) == 1 and why in notes[0]
    assert run(False) == (state, []) and not graphs.captures
    with pytest.raises(InputError, match=why):
        run(True)


def test_compiled_networks_and_autocast_around_everything():
    net = network()
    optimizer = ek.default_optimizer(net.parameters())
    assert why_not(net, optimizer) is None
    for cached in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            assert ("cache_enabled=False" in (why_not(net, optimizer) or "")) is cached
    net.body.compile()
    assert "compiled" in why_not(net, optimizer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is tested in test_captured_step_on_gpu.py")
def test_on_a_cpu_auto_trains_in_ordinary_steps_and_true_is_refused():
    plain, expected = lived(1)
    net, told = lived(1, cuda_graphs="auto")
    assert told == expected and state_of(net) == state_of(plain)
    with pytest.raises(InputError, match="the network is on cpu, not on a CUDA device"):
        lived(1, cuda_graphs=True)


# ---- the simulation itself


def test_a_capture_computes_nothing_and_leaves_rubbish_until_it_is_replayed():
    x, noise, made = torch.ones(3), torch.get_rng_state(), []

    def work():
        x.mul_(2).add_(1)
        made.append(x + torch.rand_like(x))

    graph = SimulatedGraphs().capture(work)
    assert torch.equal(x, torch.ones(3)) and torch.equal(torch.get_rng_state(), noise)
    assert made[0].isnan().all()
    expected = torch.rand(3)
    torch.set_rng_state(noise)
    graph.replay()
    assert torch.equal(x, torch.full((3,), 3.0)) and torch.equal(made[0], x + expected)
    graph.replay()
    assert torch.equal(x, torch.full((3,), 7.0))
    assert not torch.equal(made[0], x + expected), "a random number is drawn at each replay"


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
    ],
    ids=["item", "bool", "nonzero", "mask", "a list"],
)
def test_reading_on_the_host_ends_a_capture_and_changes_nothing(read):
    x, graphs = torch.ones(3), SimulatedGraphs()
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        graphs.capture(lambda: read(x.add_(1)))
    assert torch.equal(x, torch.ones(3)) and graphs.failed == 1
    with graphs.watch() as waits:
        read(x)
    assert waits


def test_a_graph_does_not_keep_memory_that_was_there_before_it():
    x, y = torch.ones(3), [torch.ones(3)]
    graph = SimulatedGraphs().capture(lambda: x.add_(y[0]))
    graph.replay()
    y.clear()
    with pytest.raises(AssertionError, match="memory that was freed"):
        graph.replay()
