"""The field's measures of continual learning, from the task-by-task matrix of test accuracies.

``matrix[l][t]`` is the accuracy, in [0, 1], of task t after task l was learned; it is defined for t <= l.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> float:
    """Mean accuracy over all tasks after the last was learned (Lopez-Paz and Ranzato, 2017)."""
    return _mean(matrix[-1])


def backward_transfer(matrix: Matrix) -> float:
    """Mean, over all tasks but the last, of accuracy at the end less accuracy when learned (Lopez-Paz and Ranzato,
    2017). Negative if tasks were forgotten; 0 for a single task."""
    last = matrix[-1]
    return _mean([last[t] - matrix[t][t] for t in range(len(last) - 1)])


def forgetting(matrix: Matrix) -> float:
    """Mean, over all tasks but the last, of the best accuracy before the end less accuracy at the end (Chaudhry et al.,
    2018). 0 for a single task."""
    last = matrix[-1]
    tasks = range(len(last) - 1)
    return _mean([max(matrix[learned][t] for learned in range(t, len(last) - 1)) - last[t] for t in tasks])


def forward_transfer(matrix: Matrix, alone: Sequence[float]) -> float:
    """Mean, over all tasks but the first, of accuracy when learned less accuracy of a network trained on it ``alone``.

    Positive if earlier tasks helped, negative if keeping them cost accuracy (intransigence, Chaudhry et al., 2018).
    Accuracy before learning is not used here: a head that has seen no data says nothing.
    """
    return _mean([matrix[t][t] - alone[t] for t in range(1, len(matrix))])


def _mean(values: Sequence[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
