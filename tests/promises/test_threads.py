"""Any number of threads may recall and predict with one network; training is one thread's at a time."""

import threading

import pytest
import torch
from life import batch, bits, learn
from small_networks import MLP, Residual
from threads import in_threads, switching_often

import eidetic_kernels as ek

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
        with pytest.raises(ek.TaskError, match="another thread trains or changes this network"):
            call()
    leave.set()
    thread.join()
    handle.remove()
    net(x)
    net.finish_task()


def test_threads_do_not_share_what_a_copied_or_pickled_network_runs():
    import copy
    import pickle

    net = learned()
    x = batch(net, 7)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, task=1), net(x, task=1))
        scopes = {id(layer.scope) for _, layer in other.segmented_layers()}
        assert len(scopes) == 1 and scopes.isdisjoint({id(layer.scope) for _, layer in net.segmented_layers()})
