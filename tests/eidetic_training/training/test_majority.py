"""A task that ends no better than a constant answer says so, once, and is finished all the same."""

import warnings

import pytest
import torch
from small_networks import MLP

from eidetic_training.data import TensorLoader
from eidetic_training.training.accuracy import LabelCounts

SAMPLES = 200


def unbalanced(share, learnable=True):
    """Two classes, the second of ``share`` of the samples; all inputs are alike unless they are ``learnable``."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(SAMPLES) < share * SAMPLES).long()[torch.randperm(SAMPLES, generator=generator)]
    x = torch.randn(SAMPLES, 6, generator=generator) * learnable
    x[:, 0] += 6 * (2 * y - 1) * learnable
    return x, y


def trained(x, y, widths=(12, 10), dropout=0.0, **settings):
    """(the network, the warnings' texts)"""
    torch.manual_seed(0)
    net = MLP(widths, dropout=dropout)
    net.prepare_for_task(0, 2)
    loader = TensorLoader(x, y, batch_size=25, num_classes=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.train_task(loader, **{"max_epochs": 2, "polish_epochs": 1, "max_recovery_epochs": 1, **settings})
    return net, [str(each.message) for each in caught if each.category is UserWarning]


@pytest.mark.parametrize("search", ["backoff", "linear", "none"])
def test_a_task_that_learned_its_most_frequent_class_alone_says_so_once(search):
    net, said = trained(*unbalanced(0.1, learnable=False), search=search, max_epochs=8)
    (text,) = said
    assert "task 0 ends with a training accuracy of 90.0%" in text and "right for 90.0% of the samples" in text
    assert "max_epochs" in text and "keep_at_least" in text
    assert net.finished_tasks == 1 and net.certify().ok


def test_a_task_that_is_left_in_training_says_so_too():
    net, said = trained(*unbalanced(0.1, learnable=False), max_epochs=8, finish=False)
    assert len(said) == 1 and net.current_task == 0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_task_that_learned_something_says_nothing(share):
    assert not trained(*unbalanced(share), max_epochs=8)[1]


def test_accuracy_of_training_that_dropout_lowers_is_no_reason():
    """It lies below the most frequent class's share, and what the network answers does not."""
    accuracies = []
    net, said = trained(
        *unbalanced(0.3),
        widths=(40, 30),
        dropout=0.9,
        max_epochs=8,
        patience=8,
        search="none",
        callbacks=[lambda event: accuracies.append(event.train_accuracy)],
    )
    last = [accuracy for accuracy in accuracies if accuracy is not None][-1]
    assert last <= 0.7 and not said


def test_a_task_of_one_class_says_nothing():
    x, y = unbalanced(0.0)
    assert not trained(x, y)[1]


def test_labels_are_counted_batch_by_batch():
    counts = LabelCounts(3)
    for y in ([0, 2, 2], [2], [1, 0]):
        counts.add(torch.tensor(y))
    assert counts.majority == 0.5
