"""The field's measures, by matrices small enough to do in one's head."""

import pytest

from eidetic_training.runs import metrics

# After each task (rows), the accuracy of each task learned so far. Task 0 is at its best after task 1.
MATRIX = [[0.8], [0.9, 0.6], [0.5, 0.7, 0.4]]


def test_average_accuracy_is_the_last_row_s_mean():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.5 + 0.7 + 0.4) / 3)


def test_backward_transfer_compares_with_when_a_task_was_learned():
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)


def test_forgetting_compares_with_a_task_s_best_before_the_end():
    assert metrics.forgetting(MATRIX) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)


def test_forward_transfer_compares_later_tasks_with_a_network_alone():
    assert metrics.forward_transfer(MATRIX, [0.1, 0.5, 0.8]) == pytest.approx(((0.6 - 0.5) + (0.4 - 0.8)) / 2)


def test_one_task_has_nothing_to_forget_or_transfer():
    assert metrics.average_accuracy([[0.7]]) == 0.7
    assert metrics.backward_transfer([[0.7]]) == metrics.forgetting([[0.7]]) == 0
    assert metrics.forward_transfer([[0.7]], [0.5]) == 0


def test_a_method_that_keeps_everything_forgets_exactly_nothing():
    kept = [[0.7], [0.7, 0.3], [0.7, 0.3, 0.1]]
    assert metrics.forgetting(kept) == metrics.backward_transfer(kept) == 0
