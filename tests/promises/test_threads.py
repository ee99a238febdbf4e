"""Any number of threads may recall and predict with one network; training is one thread's at a time."""

import copy
import pickle
import threading

import pytest
import torch
from life import batch, bits, learn
from small_networks import MLP, Residual
from threads import in_threads, switching_often

import eidetic_kernels as ek
from eidetic_training import evaluate

THREADS, ROUNDS = 4, 40


@pytest.fixture(autouse=True)
def switch_often():
    with switching_often():
        yield


def learned(build=lambda: MLP((12, 9)), tasks=3):
    net = build()
    for task in range(tasks):
        learn(net, task, max_units=0.3)
    return net.eval()


@pytest.mark.parametrize("build", [lambda: MLP((12, 9)), lambda: Residual(6, 9)], ids=["mlp", "residual"])
def test_recalls_of_different_tasks_at_once_give_the_bits_they_give_alone(build):
    net, wrong = learned(build), []
    with torch.no_grad():
        x = batch(net, 7)[0]
        expected = [bits(net(x, task=task)) for task in range(3)]

    def recall(first):
        with torch.no_grad():
            for each in range(ROUNDS):
                task = (first + each) % 3
                if bits(net(x, task=task)) != expected[task]:
                    wrong.append(task)

    raised = in_threads(*(lambda first=first: recall(first) for first in range(THREADS)))
    assert raised == [None] * THREADS and not wrong


@pytest.mark.parametrize("layers", [False, True], ids=["features", "layers"])
def test_predictions_of_different_inputs_at_once_are_those_made_alone(layers):
    net, wrong = learned(tasks=2), []
    loaders = [[batch(net, 36, seed=task)] for task in range(2)]
    net.train_router(loaders, layers=layers, max_epochs=2)
    inputs = [batch(net, 9, seed=seed)[0] for seed in range(THREADS)]
    expected = [net.predict(x) for x in inputs]

    def predict(number):
        for _ in range(ROUNDS):
            answer = net.predict(inputs[number])
            same = (answer.router_logits, expected[number].router_logits), (answer.logits, expected[number].logits)
            if not all(torch.equal(now, then) for now, then in same):
                wrong.append(number)

    raised = in_threads(*(lambda number=number: predict(number) for number in range(THREADS)))
    assert raised == [None] * THREADS and not wrong


def test_a_second_thread_that_trains_is_told_so():
    net = MLP((12, 9))
    net.prepare_for_task(0, 3)
    inside, leave = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert leave.wait(60)

    handle = net.register_forward_pre_hook(wait)
    x = batch(net, 7)[0]
    thread = threading.Thread(target=lambda: net(x))
    thread.start()
    assert inside.wait(60)
    for call in (lambda: net(x), lambda: net.prune(0.5), net.finish_task):
        with pytest.raises(ek.BusyError, match="another thread trains or changes this network"):
            call()
    leave.set()
    thread.join()
    handle.remove()
    net(x)
    net.finish_task()


def test_threads_do_not_share_what_a_copied_or_pickled_network_runs():
    net = learned()
    x = batch(net, 7)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, task=1), net(x, task=1))
        scopes = {id(layer.scope) for _, layer in other.segmented_layers()}
        assert len(scopes) == 1 and scopes.isdisjoint({id(layer.scope) for _, layer in net.segmented_layers()})


def in_training():
    """A network with two finished tasks and a third in training, and data for it."""
    net = learned(tasks=2)
    net.prepare_for_task(2, 3, max_units=0.3)
    return net, batch(net, 36)


ASKED = {
    "predict": lambda net, x: net.predict(x, "entropy"),
    "certify": lambda net, x: net.certify(),
    "extract": lambda net, x: net.extract(0),
    "evaluate": lambda net, x: evaluate(net, [(x, torch.zeros(len(x), dtype=torch.long))], 0),
    "evaluation mode": lambda net, x: net.eval(),
}


@pytest.mark.parametrize("name", ASKED)
def test_training_in_a_loop_of_one_s_own_is_as_if_nobody_asked_meanwhile(name):
    """Whoever asks is told, since it would change the mode between two steps."""
    net, (x, y) = in_training()
    alone = copy.deepcopy(net)
    for each in (net, alone):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(each.train().parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(each(x), y).backward()
            optimizer.step()
            if each is net:
                (raised,) = in_threads(lambda: ASKED[name](net, x))
                assert isinstance(raised, ek.BusyError) and "another thread trains this network" in str(raised)
                assert all(module.training for module in net.body.modules())
    assert {k: bits(v) for k, v in net.state_dict().items()} == {k: bits(v) for k, v in alone.state_dict().items()}

    net.eval()
    assert in_threads(lambda: ASKED[name](net, x)) == [None]
    net.train()
    net(x)
    net.finish_task()
    assert in_threads(lambda: ASKED[name](net, x)) == [None]


def test_a_network_may_be_served_beside_train_task_without_a_change_of_what_is_trained():
    ends, (begun, (x, y)) = [], in_training()
    for served in (False, True):
        net = copy.deepcopy(begun)
        torch.manual_seed(1)
        done, answers, told = threading.Event(), [], []

        def serve(net=net, done=done, answers=answers, told=told):
            while not done.is_set():
                try:
                    answers.append(bits(net.predict(x[:4], "entropy").logits))
                except ek.BusyError as error:
                    told.append(str(error))

        thread = threading.Thread(target=serve)
        if served:
            thread.start()
        net.train_task([(x, y)] * 3, torch.optim.AdamW(net.parameters(), 0.01), max_epochs=4, polish_epochs=2)
        done.set()
        if served:
            thread.join()
            assert all("another thread" in message for message in told), told
        ends.append({name: bits(tensor) for name, tensor in net.state_dict().items()})
    assert ends[0] == ends[1]


def test_networks_are_loaded_and_extracted_beside_others_that_run(tmp_path):
    """torch.fx, which reads a network's forward, patches torch.nn.Module for all threads."""
    net, plain = learned(), torch.nn.Linear(6, 6)
    net.save(tmp_path / "net")
    x = batch(net, 7)[0]
    expected, linear = bits(net(x, task=1)), bits(plain(x))
    calls = torch.nn.Module.__call__, torch.nn.Module.__getattr__

    def recall():
        for _ in range(ROUNDS):
            assert bits(net(x, task=1)) == expected and bits(plain(x)) == linear

    def load():
        for _ in range(ROUNDS // 8):
            assert bits(MLP.load(tmp_path / "net").eval()(x, task=1)) == expected

    def extract():
        for _ in range(ROUNDS // 8):
            assert torch.allclose(net.extract(1)(x), net(x, task=1), atol=1e-5)

    assert in_threads(recall, load, load, extract) == [None] * 4
    assert (torch.nn.Module.__call__, torch.nn.Module.__getattr__) == calls


def test_a_recall_that_fails_while_another_thread_changes_the_network_says_so():
    net, inside, leave = learned(), threading.Event(), threading.Event()
    x = batch(net, 7)[0]

    def change():
        with net.changing():
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=change)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ek.BusyError, match="another thread changed this network at this moment"):
        net(x[:, :2], task=0)
    leave.set()
    thread.join()
    with pytest.raises(ek.InputError):
        net(x[:, :2], task=0)
