"""The file of progress: what it holds reads back as the same bits, and training goes on from it to the same bits."""

import math
import os

import pytest
import torch
from blobs import CLASSES, blobs, loader, state_of
from safetensors import SafetensorError
from slow import slow
from small_networks import MLP, ConvNet
from torch import nn
from torch.nn import functional as F

from eidetic_kernels import files
from eidetic_kernels.errors import CheckpointError, InputError
from eidetic_training import train_router, train_task
from eidetic_training.data import Augmentation, Preparation, TensorLoader
from eidetic_training.training import progress, state_file

SETTINGS = {"max_epochs": 3, "max_recovery_epochs": 2, "step": 0.2, "keep_at_least": 2, "polish_epochs": 2}

# ---- the file


def same(one, other):
    if isinstance(one, torch.Tensor):
        alike = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        return alike and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def test_everything_reads_back_as_it_was(tmp_path):
    tree = {
        "numbers": [0.1, 1 / 3, -0.0, 5e-324, math.inf, -math.inf, math.nan, 2**70, True, None],
        "text": 'quotes " and\nlines',
        3: (1, (2.5, [])),
        ("a", 1): {},
        "tensor": {"of": "dict", "tuple": ["dict"]},
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "images": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 3).T,
        "half": torch.randn(3).bfloat16(),
        "whole": torch.tensor([2**62, -1]),
        "bytes": torch.get_rng_state(),
        "shared": [twice := torch.randn(3), twice, twice[1:]],
        "nan": torch.tensor([math.nan, 1.0]),
    }
    state_file.write(tmp_path / "state", tree)
    assert same(state_file.read(tmp_path / "state"), tree)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, torch.nn.Linear(1, 1)])
def test_what_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path, value):
    state_file.write(tmp_path / "state", {"old": 1})
    with pytest.raises(InputError, match=f"a {type(value).__name__} cannot be written"):
        state_file.write(tmp_path / "state", {"new": [value]})
    assert state_file.read(tmp_path / "state") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "state"
    state_file.write(path, {"tensor": torch.randn(5), "number": 1.5})
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged|format"):
            state_file.read(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            state_file.read(path)


# ---- a task that is continued


class Margin(nn.Module):
    """A loss with a parameter, which the network's optimizer trains."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, y):
        return F.cross_entropy(logits * self.scale, y)


def images(task, **options):
    generator = torch.Generator().manual_seed(task)
    y = torch.arange(48) % CLASSES
    x = torch.randn(CLASSES, 2, 4, 4, generator=generator)[y] + 0.3 * torch.randn(48, 2, 4, 4, generator=generator)
    return TensorLoader(x, y, 16, **options)


def augmented(task):
    return images(task, preparation=Preparation(Augmentation(flip=True, crop_padding=1)))


def tensor_rate(parameters):
    return torch.optim.Adam(parameters, torch.tensor(0.01))


def groups(parameters):
    first, *rest = parameters
    return torch.optim.AdamW([{"params": [first], "lr": 0.02}, {"params": rest}], 0.01, amsgrad=True)


CASES = {
    "adam": (lambda: MLP((20, 12)), lambda t: TensorLoader(*blobs(t), 16), lambda p: torch.optim.Adam(p, 0.01), {}),
    "part": (
        lambda: MLP((20, 12)),
        lambda t: TensorLoader(*blobs(t), 20, drop_last=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        {
            "importance": ["random", "l1"],
            "step": [0.3, 0.1],
            "max_pruned": 0.9,
            "search": "linear",
            "halve_learning_rate": True,
            "tolerance": 0.9,
        },
    ),
    "groups": (lambda: MLP((20, 12)), lambda t: TensorLoader(*blobs(t), 16), groups, {"importance": "taylor"}),
    "images": (ConvNet, images, lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5), {"importance": "hybrid"}),
    "augmented": (ConvNet, augmented, tensor_rate, {"search": "none"}),
}


class Life:
    """A network in its second task, made anew as a fresh process would."""

    def __init__(self, case):
        make, data, optimizer, settings = CASES[case]
        torch.manual_seed(0)
        self.net, self.settings, self.margin = make(), {**SETTINGS, **settings}, Margin()
        self.net.prepare_for_task(0, CLASSES, max_units=0.4)
        first = torch.optim.Adam(self.net.parameters(), 0.01, fused=True)
        train_task(self.net, data(0), first, max_epochs=1, search="none", polish_epochs=0)
        self.net.prepare_for_task(1, CLASSES, max_units=0.5)
        self.optimizer, self.loader = optimizer([*self.net.parameters(), *self.margin.parameters()]), data(1)

    def train(self, *callbacks, **options):
        result = train_task(
            self.net, self.loader, self.optimizer, loss=self.margin, callbacks=callbacks, **self.settings, **options
        )
        history = [{**vars(event), "seconds": 0} for event in result.history]
        return state_of(self.net), self.margin.scale.item(), history, result.train_accuracy, torch.rand(3).tolist()


@pytest.mark.parametrize("case", ["augmented", *slow("adam", "part", "groups", "images")])
def test_training_that_is_killed_at_any_event_ends_with_the_same_bits(case, tmp_path):
    undisturbed, path = Life(case), tmp_path / "progress"
    events = []
    expected = undisturbed.train(events.append)
    told = [event for event in events if event.note is None]
    epochs = [event.train_accuracy is not None for event in told]
    assert {"prune", "recover"} <= {event.phase for event in told} or case == "augmented"

    for at in range(1, len(told) + 1):
        path.unlink(missing_ok=True)
        left = [at]

        def kill(event, left=left):
            left[0] -= event.note is None
            if not left[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Life(case).train(kill, progress=path)
        again, seen = Life(case), []
        assert again.train(seen.append, progress=path) == expected, f"killed at event {at}, {told[at - 1].phase}"
        trained = [event.train_accuracy is not None for event in seen if event.note is None].count(True)
        assert trained == epochs[at - 1 :].count(True), "more than the epoch that was cut off is trained again"


def test_without_progress_nothing_is_written_and_with_it_nothing_else_changes(tmp_path):
    assert Life("adam").train() == Life("adam").train(progress=tmp_path / "progress")
    assert [path.name for path in tmp_path.iterdir()] == ["progress"]
    assert progress.reached(tmp_path / "progress")[:2] == ("task", 1)


def stopped(path, case="adam"):
    """The progress of a training that was killed in its third epoch."""

    def kill(event):
        if event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Life(case).train(kill, progress=path)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda life: life.settings.update(patience=2), "settings"),
        (lambda life: setattr(life.loader, "batch_size", 12), "data"),
        (lambda life: life.loader.set_epoch(1), "data"),
        (lambda life: setattr(life, "optimizer", torch.optim.SGD(life.net.parameters(), 0.1)), "optimizer"),
        (lambda life: life.net.prune(0.5, optimizer=life.optimizer), "units"),
    ],
)
def test_progress_of_another_training_is_refused_and_changes_nothing(tmp_path, change, named):
    stopped(tmp_path / "progress")
    content = (tmp_path / "progress").read_bytes()
    life = Life("adam")
    change(life)
    before = state_of(life.net)
    with pytest.raises(InputError, match=f"differs in {named} "):
        life.train(progress=tmp_path / "progress")
    assert state_of(life.net) == before and (tmp_path / "progress").read_bytes() == content


def test_progress_of_another_task_is_ignored_and_replaced(tmp_path):
    path, undisturbed = tmp_path / "progress", Life("adam")
    stopped(path)
    undisturbed.train()
    net = undisturbed.net
    net.prepare_for_task(2, CLASSES)
    train_task(net, TensorLoader(*blobs(2), 16), max_epochs=1, search="none", polish_epochs=0, progress=path)
    assert progress.reached(path)[:2] == ("task", 2)


def test_damaged_progress_is_named_and_changes_nothing(tmp_path):
    stopped(tmp_path / "progress")
    (tmp_path / "progress").write_bytes((tmp_path / "progress").read_bytes()[:-1])
    life = Life("adam")
    before = state_of(life.net)
    with pytest.raises(CheckpointError, match="progress is? ?.*damaged|damaged"):
        life.train(progress=tmp_path / "progress")
    assert state_of(life.net) == before
    assert progress.reached(tmp_path / "progress") is None


def test_a_disk_that_is_full_for_a_while_is_named_and_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    expected, path, written = Life("adam").train(), tmp_path / "progress", []
    write = files.save_file

    def full_after_two(*arguments, **options):
        written.append(path)
        if len(written) > 2:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_after_two)
        with pytest.raises(CheckpointError, match="progress cannot be written .*No space left on device"):
            Life("adam").train(progress=path)
    assert [each.name for each in tmp_path.iterdir()] == ["progress"]
    seen = []
    assert Life("adam").train(seen.append, progress=path) == expected
    assert 0 < len([event for event in seen if event.note is None]) < len(expected[2])


def test_progress_that_is_no_file_is_refused_before_training(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    life = Life("adam")
    before = state_of(life.net)
    with pytest.raises(InputError, match="pipe is a pipe"):
        life.train(progress=tmp_path / "pipe")
    assert state_of(life.net) == before and (tmp_path / "pipe").is_fifo()


def test_a_loader_that_does_not_count_its_epochs_is_named_and_nothing_is_written(tmp_path):
    life, events = Life("adam"), []
    life.loader = loader(1)
    life.train(events.append, progress=tmp_path / "progress")
    notes = [event.note for event in events if event.phase == "progress"]
    assert len(notes) == 1 and "the loader (DataLoader) does not say which epoch comes next" in notes[0]
    assert not (tmp_path / "progress").exists()


class Odd(torch.optim.SGD):
    """Keeps an object in its state."""

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["odd"] = object()


def test_an_optimizer_whose_state_cannot_be_written_is_named(tmp_path):
    life, events = Life("adam"), []
    life.optimizer = Odd([*life.net.parameters(), *life.margin.parameters()], 0.1)
    life.train(events.append, progress=tmp_path / "progress")
    notes = [event.note for event in events if event.phase == "progress"]
    assert len(notes) == 1 and "the state of Odd" in notes[0]
    assert life.net.finished_tasks == 2 and not (tmp_path / "progress").exists()


# ---- the router


def routed(settings, path=None, callbacks=(), loaders=None):
    life = Life("adam")
    life.train()
    torch.manual_seed(5)
    loaders = loaders or [TensorLoader(*blobs(task), 16) for task in range(2)]
    best = train_router(life.net, loaders, callbacks=callbacks, progress=path, **settings)
    return best, state_of(life.net)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 4, "lr": 0.001},
        {"max_epochs": 3, "polish_epochs": 2, "hidden": 5, "dropout": 0.2, "max_cached_bytes": 0, "lr": 0.01},
    ],
)
def test_a_router_that_is_killed_at_any_epoch_ends_with_the_same_bits(settings, tmp_path):
    events, path = [], tmp_path / "progress"
    expected = routed(settings, None, [events.append])
    assert len(events) >= 3
    for at in range(1, len(events) + 1):
        path.unlink(missing_ok=True)

        def kill(event, at=at):
            if event.epoch == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            routed(settings, path, [kill])
        seen = []
        assert routed(settings, path, [seen.append]) == expected, f"killed in epoch {at}"
        assert [event.epoch for event in seen] == [*range(at, len(events) + 1)]


def test_a_router_of_other_settings_is_refused_and_one_on_other_loaders_begins_anew(tmp_path):
    path, events = tmp_path / "progress", []
    routed({"max_epochs": 2}, path)
    assert progress.reached(path) == ("router", 2, 2)
    with pytest.raises(InputError, match="differs in settings"):
        routed({"max_epochs": 3}, path)
    content = path.read_bytes()
    routed({"max_epochs": 2}, path, [events.append], [loader(0), loader(1)])
    assert events[0].phase == "progress" and "DataLoader" in events[0].note
    assert path.read_bytes() == content
