"""One pass over data: what it trains and measures, and that wrong data is refused."""

import hashlib
import math

import pytest
import torch
from blobs import blobs, loader, network, state_of
from small_networks import MLP
from torch.nn import functional as F
from torch.utils.data import DataLoader

from eidetic_kernels.errors import InputError, TaskError
from eidetic_training import evaluate, train_epoch
from eidetic_training.data import TensorLoader
from eidetic_training.training.epoch import NotFinite, count_classes

X, Y = blobs()


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr)


def finished():
    net = network()
    train_epoch(net, loader(), sgd(net), F.cross_entropy)
    net.finish_task()
    return net


# ---- training


def test_loss_and_accuracy_are_means_over_samples_not_batches():
    """At learning rate 0 every batch meets the same weights, so the sums can be computed batch by batch."""
    net = network()
    batches = [(X[:30], Y[:30]), (X[30:36], Y[30:36])]
    net.train()
    losses, hits = 0.0, 0
    for x, y in batches:
        logits = net(x).detach()
        losses += F.cross_entropy(logits, y).item() * len(y)
        hits += int((logits.argmax(1) == y).sum())
    result = train_epoch(net, batches, sgd(net, 0.0), F.cross_entropy)
    assert result.accuracy == pytest.approx(hits / 36)
    assert result.loss == pytest.approx(losses / 36, rel=1e-5)


def test_autocast_is_the_plain_loop_in_bfloat16_and_weights_stay_in_their_own_dtype():
    ours, theirs, whole = network(), network(), network()
    train_epoch(ours, loader(), sgd(ours), F.cross_entropy, autocast=True)
    train_epoch(whole, loader(), sgd(whole), F.cross_entropy)
    plain = sgd(theirs)
    theirs.train()
    for x, y in loader():
        plain.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        plain.step()
    assert state_of(ours) == state_of(theirs) != state_of(whole)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}


def test_an_epoch_is_one_step_a_batch():
    """A plain training loop gives the same bits."""
    ours, theirs = network(), network()
    optimizer = torch.optim.Adam(ours.parameters(), 0.01)
    train_epoch(ours, loader(), optimizer, F.cross_entropy)
    plain = torch.optim.Adam(theirs.parameters(), 0.01)
    theirs.train()
    for x, y in loader():
        plain.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        plain.step()
    assert state_of(ours, optimizer) == state_of(theirs, plain)


def test_training_happens_in_training_mode():
    net = network().eval()
    before = net.body[1].running_mean.clone()
    train_epoch(net, loader(), sgd(net), F.cross_entropy)
    assert net.training
    assert not torch.equal(net.body[1].running_mean, before)


def test_accuracy_rises_on_separable_data():
    net = network()
    optimizer = sgd(net)
    accuracies = [train_epoch(net, loader(), optimizer, F.cross_entropy).accuracy for _ in range(8)]
    assert accuracies[-1] >= 0.95 > accuracies[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told(value):
    net = network()
    with pytest.raises(NotFinite):
        train_epoch(net, [(X, Y)], sgd(net), lambda logits, y: F.cross_entropy(logits, y) * value)


def test_a_finite_loss_that_leaves_nan_in_the_parameters_is_told():
    """The last step's damage shows in no loss of this epoch."""
    net = network()
    with pytest.raises(NotFinite):
        train_epoch(net, [(X, Y)], sgd(net), lambda z, y: F.cross_entropy(z, y) + (0 * z.sum()).sqrt())


# ---- evaluation


def test_evaluate_measures_a_finished_task_and_keeps_the_mode():
    net = finished()
    for training in (True, False):
        net.train(training)
        result = evaluate(net, [(X[:20], Y[:20]), (X[20:], Y[20:])], 0)
        assert net.training is training
    with torch.no_grad():
        logits = net.eval()(X, task=0)
    assert result.accuracy == (logits.argmax(1) == Y).double().mean().item()


def test_the_digest_is_the_sha_of_the_logits():
    net = finished()
    with torch.no_grad():
        net.eval()
        parts = [net(X[:20], task=0), net(X[20:], task=0)]
    expected = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    assert evaluate(net, [(X[:20], Y[:20]), (X[20:], Y[20:])], 0).digest == expected


def test_one_bit_of_the_weights_changes_the_digest():
    net = finished()
    before = evaluate(net, [(X, Y)], 0).digest
    net.heads[0].frozen_bias.view(torch.int32)[0] ^= 1 << 20
    assert evaluate(net, [(X, Y)], 0).digest != before


def test_evaluate_trains_nothing_and_answers_for_the_task_in_training_too():
    net = network()
    train_epoch(net, loader(), sgd(net), F.cross_entropy)
    before = state_of(net)
    first, again = evaluate(net, loader()), evaluate(net, loader())
    assert first == again
    assert state_of(net) == before


def test_evaluate_keeps_the_mode_when_it_fails():
    net = finished().train()
    with pytest.raises(InputError):
        evaluate(net, [(X.long(), Y)], 0)
    assert net.training


def test_evaluating_an_unknown_task_is_refused():
    with pytest.raises(TaskError, match="task 3 is unknown"):
        evaluate(finished(), [(X, Y)], 3)


# ---- data that is wrong

WRONG = {
    "too large": ((X, Y + 1), "labels lie in 1..3, but the task's head has 3 classes, 0..2"),
    "negative": ((X, Y - 1), "the smallest here is -1"),
    "float": ((X, Y.float()), "dtype torch.int64, got torch.float32: use y.long()"),
    "int32": ((X, Y.int()), "dtype torch.int64, got torch.int32"),
    "one-hot": ((X, F.one_hot(Y)), r"labels must be \[N\] beside inputs \[N, ...\]; got \[48, 3\]"),
    "too few": ((X, Y[:-1]), r"got \[47\] and \[48, 6\]"),
    "a triple": ((X, Y, Y), "loader must give pairs"),
    "x alone": (X, "loader must give pairs .* gave a tensor"),
    "a dictionary": ({"x": X, "y": Y}, "loader must give pairs .* gave dict"),
    "columns": ((X[:, :5], Y), "5"),
    "dtype of x": ((X.double(), Y), "float64"),
    "bytes": ((X.byte(), Y), "floating point"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_batches_are_refused_in_training_and_evaluation(name):
    batch, message = WRONG[name]
    net = network()
    before = state_of(net)
    with pytest.raises(InputError, match=message):
        train_epoch(net, [batch], sgd(net), F.cross_entropy)
    assert state_of(net) == before
    with pytest.raises(InputError, match=message):
        evaluate(finished(), [batch], 0)


def test_an_empty_loader_is_refused():
    net = network()
    with pytest.raises(InputError, match="the loader gave no batch.*drop_last"):
        train_epoch(net, [], sgd(net), F.cross_entropy)
    with pytest.raises(InputError, match="no batch"):
        evaluate(net, [])
    with pytest.raises(InputError, match="no batch"):
        count_classes([])
    with pytest.raises(InputError, match="no batch"):
        count_classes(DataLoader([], batch_size=4))


# ---- classes


def test_classes_are_the_largest_label_and_one():
    assert count_classes(loader(classes=5)) == 5
    assert count_classes([(X[:2], torch.tensor([0, 0])), (X[:1], torch.tensor([6]))]) == 7


def test_a_loader_that_knows_its_classes_is_believed():
    """Its training set may lack some of them."""
    assert count_classes(TensorLoader(X, Y, 16, num_classes=9)) == 9


def test_training_needs_a_head():
    net = MLP((5, 4))
    with pytest.raises(TaskError, match="prepare_for_task"):
        train_epoch(net, [(X, Y)], sgd(net), F.cross_entropy)


def test_evaluate_under_autocast_in_bfloat16():
    """numpy has no bfloat16, so the digest is of the bytes."""
    net = network()
    data = list(loader(0))  # in one order
    train_epoch(net, data, torch.optim.SGD(net.parameters(), 0.1), F.cross_entropy)
    net.finish_task()
    whole = evaluate(net, data, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = evaluate(net, data, 0)
        assert half == evaluate(net, data, 0)
    assert half.digest != whole.digest and abs(half.accuracy - whole.accuracy) < 0.2
