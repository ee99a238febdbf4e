"""Whatever is raised while a task or the router is trained, the network is back at its last good state."""

import copy
import functools
import os
import warnings

import pytest
import torch
from blobs import CLASSES, blobs, network, state_of
from interruptions import PACKAGE, TRAINING, interrupted_at, points_of
from life import Memory
from slow import slow
from small_networks import MLP
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError, NonFiniteLossError
from eidetic_training import train_router, train_task
from eidetic_training.data import TensorLoader
from eidetic_training.training import last_good, task_run
from eidetic_training.training.epoch import Evaluation

BATCHES = 3
PHASES = ["train", "train", "settle", "recover", "recover", "polish", "polish"]  # the epochs with these settings
SETTINGS = {
    "max_epochs": 2,
    "halve_learning_rate": True,
    "search": "linear",
    "step": 0.2,
    "tolerance": 0.9,
    "keep_at_least": 8,
    "polish_epochs": 2,
}


class Case:
    """A network with a finished task and one in training, whose modules are in several modes."""

    def __init__(self):
        self.net = network()
        train_task(self.net, batches(0), max_epochs=2, search="none", polish_epochs=0, finish=False)
        self.net.prune(0.6)
        self.net.prepare_for_task(1, CLASSES)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 0.01)
        self.net.eval()
        self.net.body[1].train()
        self.memory = Memory(self.net, sizes=(7,))
        self.memory.note(self.net)

    def copied(self):
        return copy.deepcopy(self)

    def state(self):
        """Everything training can change, but for the batches that certificates ask."""
        found = {**state_of(self.net, self.optimizer), "classes": self.net.num_classes}
        return {name: value for name, value in found.items() if not name.startswith("probes.")}

    def modes(self):
        return [module.training for module in self.net.modules()]

    def check(self, states, modes, event):
        """The network is in one of ``states`` and in its modes, and nothing that was finished has changed."""
        assert self.state() in states, f"{event}: not a good state"
        assert self.modes() == modes, f"{event}: in another mode"
        assert torch.is_grad_enabled() and vars(self.net._scope) == vars(type(self.net._scope)()), event
        assert all(parameter.grad is None for parameter in self.net.parameters())
        hooks = [each for module in self.net.modules() for each in (module._forward_pre_hooks, module._forward_hooks)]
        assert not any(hooks), f"{event}: a hook is left"
        self.memory.check(self.net, event)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a task without samples has no answers to compare
            assert self.net.certify().ok, f"{event}: {self.net.certify()}"


@functools.cache
def _begun():
    return Case()


def begun():
    """A case of its own for every test."""
    return _begun().copied()


def batches(task=1):
    return TensorLoader(*blobs(task), 16)


class Good:
    """A callback that lists the state at the beginning and after every epoch, with the learning rates of the call."""

    def __init__(self, case):
        self.case, self.states, self.phases = case, [case.state()], []

    def __call__(self, event):
        if event.train_accuracy is not None:
            self.phases.append(event.phase)
            self.states.append({**self.case.state(), "rates": self.states[0]["rates"]})


# ---- what may be raised, at the second batch of an epoch


class Breaks:
    """A loader, a loss and a callback of which one goes wrong in epoch ``at`` (from 1)."""

    def __init__(self, case, at):
        self.case, self.at, self.passes, self.losses, self.events, self.hook = case, at, 0, 0, 0, None

    def wrong(self, x, y):
        return x, y

    def __iter__(self):
        self.passes += 1
        x, y = blobs(1)
        for number, rows in enumerate(torch.arange(len(x)).split(16)):
            batch = x[rows], y[rows]
            yield self.wrong(*batch) if (self.passes, number) == (self.at, 1) else batch

    def loss(self, logits, y):
        self.losses += 1
        value = F.cross_entropy(logits, y)
        return self.broken(value) if self.losses == BATCHES * (self.at - 1) + 2 else value

    def broken(self, value):
        return value

    def callback(self, event):
        self.events += event.train_accuracy is not None

    def mend(self):
        if self.hook is not None:
            self.hook.remove()


def raising(error):
    def call(*_):
        raise error

    return call


class LoaderRaises(Breaks):
    error, wrong = OSError, raising(OSError("the disk is gone"))


class CtrlC(Breaks):
    error, wrong = KeyboardInterrupt, raising(KeyboardInterrupt())


class NoMemory(Breaks):
    error = MemoryError

    def wrong(self, x, y):
        self.hook = self.case.net.body[3].register_forward_pre_hook(raising(MemoryError()))
        return x, y


class NoMemoryBackwards(Breaks):
    error = torch.OutOfMemoryError

    def broken(self, value):
        value.register_hook(raising(torch.OutOfMemoryError("no memory")))
        return value


class OtherShape(Breaks):
    error = InputError

    def wrong(self, x, y):
        return x[:, :4], y


class WrongLabels(Breaks):
    error = InputError

    def wrong(self, x, y):
        return x, y + CLASSES


class OneSample(Breaks):
    error = InputError

    def wrong(self, x, y):
        return x[:1], y[:1]


class NotANumber(Breaks):
    error = NonFiniteLossError

    def wrong(self, x, y):
        return x * float("nan"), y


class LossRaises(Breaks):
    error, broken = ZeroDivisionError, raising(ZeroDivisionError())


class LossNotANumber(Breaks):
    error = NonFiniteLossError

    def broken(self, value):
        return value * float("nan")


class CallbackRaises(Breaks):
    error = SystemExit

    def callback(self, event):
        super().callback(event)
        if event.train_accuracy is not None and self.events == self.at:
            raise SystemExit


KINDS = [
    LoaderRaises,
    CtrlC,
    NoMemory,
    NoMemoryBackwards,
    OtherShape,
    WrongLabels,
    OneSample,
    NotANumber,
    LossRaises,
    LossNotANumber,
    CallbackRaises,
]


@pytest.mark.parametrize("at", [1, 2, 3, 5, 7], ids=["first", "train", "settle", "recover", "polish"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_raised_training_goes_back_to_the_last_good_epoch(kind, at):
    case = begun()
    modes, good, breaks = case.modes(), Good(case), kind(case, at)
    with pytest.raises(kind.error):
        callbacks = [breaks.callback, good]
        train_task(case.net, breaks, case.optimizer, loss=breaks.loss, callbacks=callbacks, **SETTINGS)
    breaks.mend()
    assert good.phases == PHASES[: at - 1], "it was raised in another epoch"
    case.check([good.states[-1]], modes, kind.__name__)

    train_task(case.net, batches(), case.optimizer, max_epochs=1, search="none", polish_epochs=0)
    assert case.net.finished_tasks == 2 and case.net.certify().ok


class Dying(Dataset):
    """Its worker dies in the middle of the second epoch."""

    def __init__(self, folder):
        self.x, self.y = blobs(1)
        self.seen = folder / "seen"
        self.seen.write_text("0")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        count = int(self.seen.read_text()) + 1
        self.seen.write_text(str(count))
        if count == len(self) + 20:
            os._exit(1)
        return self.x[i], self.y[i]


def test_a_dead_worker_undoes_its_epoch(tmp_path):
    case = begun()
    modes, good = case.modes(), Good(case)
    with pytest.raises((RuntimeError, OSError)):
        train_task(case.net, DataLoader(Dying(tmp_path), 16, num_workers=1), case.optimizer, callbacks=[good])
    assert good.phases == ["train"]
    case.check([good.states[-1]], modes, "a dead worker")


# ---- in pruning and recovery


@pytest.mark.parametrize("search", ["linear", "backoff"])
@pytest.mark.parametrize("phase, which", [("prune", 1), ("recover", 1), ("recover", 2), ("restore", 1)])
def test_a_step_that_did_not_recover_yet_is_undone(search, phase, which, monkeypatch):
    """No network recovers to an accuracy of one and more: the good state is the one before pruning."""
    case = begun()
    settings = {**SETTINGS, "search": search, "tolerance": 0.0, "polish_epochs": 0, "max_recovery_epochs": 2}
    states, seen = [case.state()], []

    def stop(event):
        seen.append(event.phase)
        if event.phase in ("train", "settle"):
            states.append({**case.state(), "rates": states[0]["rates"]})
        if (event.phase, seen.count(event.phase)) == (phase, which):
            raise KeyboardInterrupt

    real = task_run.train_epoch

    def scripted(*arguments):
        """Accuracies that fall: what is pruned never recovers."""
        return real(*arguments)._replace(accuracy=0.9 / (1 + len(seen)))

    monkeypatch.setattr(task_run, "train_epoch", scripted)
    monkeypatch.setattr(task_run, "evaluate", lambda net, loader: Evaluation(0.0, ""))
    modes = case.modes()
    with pytest.raises(KeyboardInterrupt):
        train_task(case.net, batches(), case.optimizer, callbacks=[stop], **settings)
    case.check([states[-1]], modes, phase)


def test_an_importance_that_cannot_be_computed_removes_nothing():
    case = begun()
    modes, good = case.modes(), Good(case)

    class Short(TensorLoader):
        def __iter__(self):
            if self.epoch == 3:
                raise OSError("gone")
            return super().__iter__()

    with pytest.raises(OSError, match="gone"):
        settings = {**SETTINGS, "importance": "taylor", "frozen_features": False}
        train_task(case.net, Short(*blobs(1), 16), case.optimizer, callbacks=[good], **settings)
    case.check([good.states[-1]], modes, "importance")


# ---- at any line


@pytest.mark.parametrize("folder, share", [(TRAINING, 70), (PACKAGE, 25)], ids=["driver", "package"])
@pytest.mark.parametrize("frozen_features", [True, *slow(False)])
def test_training_cut_off_at_any_line_leaves_a_good_state(folder, share, frozen_features):
    case = begun()
    settings = {**SETTINGS, "max_epochs": 1, "polish_epochs": 1, "frozen_features": frozen_features}
    modes, undisturbed = case.modes(), case.copied()
    good = Good(undisturbed)

    def training(case, *callbacks):
        return lambda: train_task(case.net, batches(), case.optimizer, callbacks=callbacks, **settings)

    points = points_of(training(undisturbed, good), folder)
    finished = state_of(undisturbed.net)
    assert len(good.states) > 4 and len(points) > 100
    for at in points[:: max(1, len(points) // share)]:
        cut_off = case.copied()
        place = interrupted_at(training(cut_off), at, folder)
        if cut_off.net.current_task is None:
            assert state_of(cut_off.net) == finished and cut_off.net.certify().ok, place
        else:
            cut_off.check(good.states, modes, place)


# ---- what a network, an optimizer and a call may hold beside live units


class Watching(MLP):
    """Counts its training passes in a buffer; wired by hand, since tracing refuses what a pass changes."""

    def __init__(self):
        super().__init__((20, 12))
        self.register_buffer("passes", torch.zeros(()))

    def connections(self):
        return {"body.0": "input", "body.1": "body.0", "body.4": "body.1", "body.5": "body.4", "output": "body.5"}

    def forward(self, x):
        if self.training:
            self.passes += 1
        return super().forward(x)


class Margin(nn.Module):
    """A loss with a parameter, which the network's optimizer trains."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, y):
        return F.cross_entropy(logits * self.scale, y)


class Counting(torch.optim.SGD):
    """Counts its steps in the parameter group, as schedule-free optimizers do."""

    def __init__(self, *arguments):
        super().__init__(*arguments, momentum=0.9)
        self.param_groups[0].update(k=0, weights=[0.0])

    def step(self, closure=None):
        self.param_groups[0]["k"] += 1
        return super().step(closure)


@pytest.mark.parametrize("epochs", [0, 2])
def test_buffers_of_no_unit_a_loss_s_parameters_and_what_groups_hold_go_back_too(epochs):
    torch.manual_seed(0)
    net, loss = Watching(), Margin()
    net.prepare_for_task(0, CLASSES)
    optimizer = Counting([{"params": net.parameters()}, {"params": loss.parameters(), "lr": 0.2}], 0.1)

    def state():
        momentum = optimizer.state.get(loss.scale, {}).get("momentum_buffer")
        return net.passes.item(), loss.scale.item(), momentum and momentum.item(), optimizer.param_groups[0]["k"]

    states = [state()]
    data = Breaks(None, epochs + 1)
    data.wrong = raising(OSError())
    with pytest.raises(OSError):
        train_task(net, data, optimizer, loss=loss, callbacks=[lambda event: states.append(state())])
    assert len(states) == 1 + epochs
    assert state() == states[-1] and optimizer.param_groups[1]["lr"] == 0.2


@pytest.mark.parametrize("given", [True, False])
def test_a_head_that_training_added_is_taken_away_again(given):
    """The next call may see all classes, where the first one was cut off before it did."""
    net = MLP((20, 12))
    net.prepare_for_task(0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01) if given else None
    before, held = state_of(net), [*net.parameters()]
    data = Breaks(None, 1)
    data.wrong = raising(OSError())
    with pytest.raises(OSError):
        train_task(net, data, optimizer)
    assert state_of(net) == before and net.num_classes == []
    assert not given or [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in held]

    train_task(net, [blobs(classes=5)], optimizer, max_epochs=2)
    assert net.num_classes == [5] and net.certify().ok


def test_ctrl_c_pressed_again_does_not_stop_the_way_back(monkeypatch):
    case = begun()
    modes, good, breaks = case.modes(), Good(case), CtrlC(case, 2)
    restore, calls = last_good.TrainingState.put_back, []

    def impatient(*arguments):
        calls.append(None)
        if len(calls) == 1:
            case.net.live_head.weight.data.zero_()
            raise KeyboardInterrupt
        restore(*arguments)

    monkeypatch.setattr(last_good.TrainingState, "put_back", impatient)
    with pytest.raises(KeyboardInterrupt):
        train_task(case.net, breaks, case.optimizer, callbacks=[good], **SETTINGS)
    assert len(calls) == 2
    case.check([good.states[-1]], modes, "Ctrl-C twice")


def test_a_callback_that_raises_at_the_end_leaves_a_finished_task():
    case = begun()

    def stop(event):
        if event.phase == "finish":
            raise KeyboardInterrupt

    rates = [group["lr"] for group in case.optimizer.param_groups]
    with pytest.raises(KeyboardInterrupt):
        train_task(case.net, batches(), case.optimizer, callbacks=[stop], **SETTINGS)
    assert case.net.current_task is None and case.net.finished_tasks == 2 and case.net.certify().ok
    assert [group["lr"] for group in case.optimizer.param_groups] == rates


# ---- the router


def modes_of(net):
    return {path: module.training for path, module in net.named_modules() if path != "router"}


def routed():
    """A network of two tasks with a router, the loaders of both, and what it answered."""
    case = begun()
    train_task(case.net, batches(), max_epochs=2, search="none", polish_epochs=0)
    loaders = [batches(task) for task in range(2)]
    train_router(case.net, loaders, max_epochs=1)
    case.net.eval()
    case.net.body[1].train()
    return case.net, loaders


class Broken(TensorLoader):
    """Raises in the second pass over its data, at the second batch."""

    def __init__(self, error, *data, **options):
        super().__init__(*data, **options)
        self.error, self.passes = error, 0

    def _numbered(self, epoch):
        self.passes += 1
        for number, batch in enumerate(super()._numbered(epoch)):
            if self.passes == 2 and number == 1:
                raise self.error
            yield batch


@pytest.mark.parametrize("error", [OSError(), KeyboardInterrupt(), MemoryError(), InputError("other")])
@pytest.mark.parametrize("place", ["loader", "callback", "forward", "optimizer"])
def test_whatever_is_raised_the_network_keeps_the_router_it_had(error, place, monkeypatch):
    net, loaders = routed()
    before, modes = state_of(net), modes_of(net)
    callbacks, hook = [], None
    if place == "loader":
        other = DataLoader(list(zip(*blobs(0))), 16)
        loaders = [other, Broken(error, *blobs(1), 16)]
    elif place == "callback":
        callbacks = [raising(error)]
    elif place == "forward":
        hook = net.body[3].register_forward_pre_hook(raising(error))
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", raising(error))
    with pytest.raises(type(error)):
        train_router(net, loaders, max_epochs=3, callbacks=callbacks, max_cached_bytes=0)
    if hook is not None:
        hook.remove()
    assert state_of(net) == before
    assert modes_of(net) == modes
    assert net.certify().ok


@pytest.mark.parametrize("folder, share", [(TRAINING, 40), (PACKAGE, 30)], ids=["driver", "package"])
@pytest.mark.parametrize("max_bytes", [*slow(0), 2**20])
def test_the_router_s_training_cut_off_at_any_line_leaves_the_old_router_or_the_new_one(folder, share, max_bytes):
    net, loaders = routed()
    before, modes = state_of(net), modes_of(net)

    def training(net):
        def call():
            torch.manual_seed(3)
            train_router(net, loaders, max_epochs=2, polish_epochs=1, hidden=4, max_cached_bytes=max_bytes)

        return call

    undisturbed = copy.deepcopy(net)
    points = points_of(training(undisturbed), folder)
    after = state_of(undisturbed)
    assert after != before and len(points) > 60
    for at in [*points[:: max(1, len(points) // share)], *points[-20:]]:
        cut_off = copy.deepcopy(net)
        place = interrupted_at(training(cut_off), at, folder)
        assert state_of(cut_off) in (before, after), place
        assert modes_of(cut_off) == modes, place
        assert cut_off.certify().ok and isinstance(cut_off, ek.EideticNetwork), place
