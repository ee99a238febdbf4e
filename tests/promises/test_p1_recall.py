"""P1: from finish_task on, a finished task gives the same bits, whatever is done to the network later."""

import copy

import pytest
import torch
from life import READINGS, Memory, batch, learn, reading, recall, train
from small_networks import KINDS, MLP, NETWORKS

import eidetic_kernels as ek
from eidetic_kernels.tasks.routing import Router

TASKS = 4


@pytest.fixture(params=KINDS)
def net(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize("how", READINGS)
def test_finished_tasks_give_the_same_bits_after_every_later_event(net, how, tmp_path):
    memory = Memory(net)

    def then(event):
        memory.check(net, event)

    for task in range(TASKS):
        net.prepare_for_task(task, 3, reading(net, how, task), max_units=0.4 if task else None)
        then("preparing the next task")
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        train(net, optimizer, 2, seed=task)
        then("training")
        snapshot = net.snapshot(optimizer)
        net.prune(0.6, optimizer=optimizer)
        then("pruning")
        train(net, optimizer, 2, seed=task)
        then("training after pruning")
        net.restore(snapshot, optimizer)
        then("restoring")
        net.prune(0.4 if task != 2 else 1.0, "l1", optimizer=optimizer)  # task 2 keeps no unit at all
        train(net, optimizer, 1, seed=task)
        net.finish_task()
        then("finishing the next task")
        memory.note(net)
        net.widen({net.groups[0].name: net.groups[0].segments.width + 2})
        then("widening")
        net = copy.deepcopy(net)
        then("deepcopy")
        net.save(tmp_path / "net.safetensors")
        net = ek.EideticNetwork.load(tmp_path / "net.safetensors")
        then("saving and loading")
    assert net.finished_tasks == len(memory.answers) == TASKS
    assert [group.segments.frozen[2] for group in net.groups] == [0] * len(net.groups)


class Grey(ek.EideticNetwork):
    """Images of one channel, whose strides say nothing of how they lie."""

    example = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.first = ek.EideticConv2d(1, 32, 3, padding=1, norm=ek.EideticBatchNorm2d(32, activation="relu"))
        self.second = ek.EideticConv2d(32, 32, 3, norm=ek.EideticBatchNorm2d(32, activation="relu"))

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


@pytest.mark.parametrize("make", [*NETWORKS.values(), Grey], ids=[*NETWORKS, "grey"])
def test_recall_is_the_same_however_the_live_weights_lie(make):
    """net.to(memory_format=...) is told of images; bits of a library's convolution depend on how they lie."""
    net = make()
    memory = Memory(net)
    for task in range(2):
        learn(net, task)
        memory.note(net)
    net.prepare_for_task(2, 3)
    for layout in (torch.channels_last, torch.contiguous_format):
        net.to(memory_format=layout)
        memory.check(net, f"{layout} in the middle of a task")
        net.certify().check()
    net.to(memory_format=torch.channels_last)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.finish_task()
    memory.check(net, "finishing a task that was channels_last")
    net.certify().check()


def test_recall_is_the_same_in_the_middle_of_a_task_that_is_saved_and_loaded(net, tmp_path):
    memory = Memory(net)
    learn(net, 0)
    memory.note(net)
    net.prepare_for_task(1, 3)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.save(tmp_path / "net")
    memory.check(ek.EideticNetwork.load(tmp_path / "net"), "loading in the middle of a task")
    memory.check(copy.deepcopy(net), "deepcopy in the middle of a task")


@pytest.mark.parametrize("empty", ["first", "last", "all"])
def test_tasks_that_own_no_unit_in_a_layer_are_recalled(net, empty):
    names = [group.name for group in net.groups]
    none = {"first": names[:1], "last": names[-1:], "all": names}[empty]
    memory = Memory(net)
    learn(net, 0)
    memory.note(net)
    if empty == "all":
        with pytest.warns(UserWarning, match="no layer has a free unit"):
            learn(net, 1, fraction=0, max_units=dict.fromkeys(none, 0))
    else:
        learn(net, 1, fraction=0, max_units=dict.fromkeys(none, 0))
    memory.check(net, "a task without units")
    memory.note(net)
    learn(net, 2)
    memory.check(net, "the task after")
    sizes = {group.name: group.segments.frozen for group in net.groups}
    assert all((sizes[name][1] == 0) == (name in none) for name in names)


@pytest.mark.parametrize("how", READINGS)
def test_a_first_task_without_any_unit_is_a_constant_and_stays_it(net, how):
    learn(net, 0, fraction=1.0)
    memory = Memory(net)
    memory.note(net)
    logits = recall(net, batch(net, 5)[0], 0)
    assert torch.equal(logits, logits[:1].expand_as(logits)) and logits.isfinite().all()
    learn(net, 1, how)
    memory.check(net, "the second task")


@pytest.mark.parametrize("how", READINGS)
def test_the_accuracy_at_the_end_is_the_accuracy_when_learned_to_the_last_digit(net, how):
    def accuracy(task):
        x, y = batch(net, 200, seed=task)
        return (recall(net, x, task).argmax(1) == y).double().mean().item()

    learned = []
    for task in range(TASKS):
        learn(net, task, how, max_units=0.3)
        learned.append(accuracy(task))
    assert [accuracy(task) for task in range(TASKS)] == learned


def test_recall_does_not_depend_on_what_surrounds_a_wide_network():
    """Realistic widths take other paths through the BLAS and the vectorised kernels than tiny ones."""
    net = MLP(widths=(300, 257))
    memory = Memory(net, sizes=(1, 31, 256))
    for task in range(3):
        learn(net, task)
        memory.check(net, "the next task")
        memory.note(net)


class EachInTurn(Router):
    """Routes row i to task i modulo the number of tasks, so that every head answers."""

    def __init__(self, net):
        columns = sum(source.columns(None) for source in net.wiring.features)
        super().__init__(torch.zeros(net.finished_tasks, columns), torch.zeros(net.finished_tasks))

    def forward(self, features, x=None):
        return torch.eye(self.tasks)[torch.arange(len(features)) % self.tasks]


@pytest.mark.parametrize("how", READINGS)
def test_predict_answers_with_the_very_bits_of_the_task_it_chose(net, how):
    for task in range(3):
        learn(net, task, how)
    net.router = EachInTurn(net)
    x = batch(net, 64, seed=5)[0]
    answers = [recall(net, x, task) for task in range(3)]
    prediction = net.predict(x)
    for row, task in enumerate(prediction.task.tolist()):
        assert torch.equal(prediction.logits[row], answers[task][row])
        assert prediction.label[row] == answers[task][row].argmax()
