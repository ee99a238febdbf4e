"""What a trace records: augmented assignments as the changes in place that they are."""

import operator
import pickle

import pytest
import torch
from life import Memory, digest
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.wiring import tracing
from eidetic_kernels.wiring.in_place import IN_PLACE


class Assigns(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        y = x + 1
        self.operation(y, 2)
        return y


@pytest.mark.parametrize("operation", IN_PLACE, ids=lambda operation: operation.__name__)
def test_an_augmented_assignment_is_a_change_in_place(operation):
    targets = [node.target for node in tracing.graph_of(Assigns(operation), in_place=True).nodes]
    assert targets == ["x", operator.add, operation, "output"]
    assert operation not in [node.target for node in tracing.graph_of(Assigns(operation)).nodes]


def test_every_augmented_assignment_of_numbers_is_known():
    named = {name for name in operator.__all__ if name.startswith("i") and f"__{name}__" in dir(operator)}
    assert {operation.__name__ for operation in IN_PLACE} == named - {"iconcat", "inv", "invert", "index"}
    for changing, computing in IN_PLACE.items():
        assert changing(6, 3) == computing(6, 3) if changing is not operator.imatmul else computing is operator.matmul


def test_a_converted_network_can_be_pickled():
    """torch.fx traces again when it reads a graph, by a tracer that it makes itself."""
    net = ek.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)), torch.randn(2, 6))
    net.example = (6,)
    net.prune(0.5)
    net(torch.randn(9, 6))
    net.finish_task()
    memory = Memory(net)
    memory.note(net)
    again = pickle.loads(pickle.dumps(net))
    memory.check(again, "pickling")
    assert digest(again) == digest(net) and again.certify().ok
    again.prepare_for_task(1, 3)
    again.extract(0)
