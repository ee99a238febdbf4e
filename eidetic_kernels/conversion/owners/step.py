"""What a rule gets: one node of a captured graph, with what is known of its arguments; and the registry of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, fx

from ...wiring.diagnostics import at_node
from ..graphs.nodes import operation, shape_of, symbols_of
from .maps import Owners, nobodys


@dataclass
class Held:
    """A tensor of the network that a layer may take whole: its path and shape."""

    path: str
    value: Tensor
    trained: bool


@dataclass(frozen=True)
class Deferred:
    """What ``node`` makes of parameters alone. A layer may take it for its weight; else it is read when it is used."""

    node: fx.Node


@dataclass
class Layer:
    """A layer that was met: what kind, its parameters' paths by role, what it reads, and its own units."""

    kind: str
    path: str
    node: fx.Node
    reads: Owners
    units: Tensor
    options: dict[str, Any] = field(default_factory=dict)


class Step:
    """One node, as a rule sees it."""

    def __init__(self, analysis: Any, node: fx.Node):
        self.analysis, self.node = analysis, node
        takes = operation(node) in TAKE_WEIGHTS
        self.args = [analysis.value(each, takes and number == 1) for number, each in enumerate(node.args)]
        self.kwargs = {name: analysis.value(each) for name, each in node.kwargs.items()}
        self.constraints = analysis.constraints

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.node)

    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def owners(self, value: Any) -> Owners:
        """The owners of an argument's numbers."""
        if isinstance(value, Owners):
            return value
        if isinstance(value, Held):
            return self.analysis.elements(value)
        if isinstance(value, Tensor):
            return nobodys(value.shape)
        if isinstance(value, (int, float, bool, complex)):
            return nobodys(())
        self.refuse(f"expected a tensor, got {type(value).__name__}")

    def refuse_counts(self) -> None:
        """Refuse to compute with the number of samples: answers would depend on what else is in the batch."""
        batch = getattr(self.analysis, "batch", frozenset())
        if any(batch & symbols_of(each) for each in self.node.all_input_nodes):
            self.refuse("the number of samples is computed with, so the answer for one depends on how many there are.")

    def mix(self, units: Tensor, dim: int, mixing: str) -> None:
        """Note that numbers of all units along ``dim`` are put together: these live and go as one grain."""
        self.constraints.together(units.narrow(dim, 0, 1), units)
        self.analysis.mixed.append((self.node, units, dim, mixing))

    def refuse(self, reason: str) -> NoReturn:
        raise at_node(self.node).refused(reason)


TAKE_WEIGHTS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

PRODUCERS = ("linear", "conv", "embedding")  # layers that make units of their own

Rule = Callable[[Step], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register
