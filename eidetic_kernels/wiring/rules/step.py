"""One node of the traced graph, as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..builder import Builder
from ..diagnostics import Place, at_node
from ..values import Constant, Fixed, Heads, Units


class Step:
    """What a rule is given: a node and the values of those before it.

    ``node`` is torch.fx's, ``values`` the value of every node before it, ``builder`` what ties and concatenates.
    ``prefix`` stands before the graph's module paths in the network. ``editable``: the graph is what will run
    (``ek.convert``), so a rule may change the node's arguments. ``taken``: arguments that the rule asked for; a tensor
    or a count of units that it did not ask for is refused.
    """

    def __init__(
        self, builder: Builder, node: fx.Node, values: dict[fx.Node, Any], prefix: str = "", editable: bool = False
    ):
        self.builder, self.node, self.values, self.prefix = builder, node, values, prefix
        self.editable = editable
        self.given = list(node.all_input_nodes)  # as they were: a rule may change the node
        self.taken: set[fx.Node] = set()

    @property
    def path(self) -> str:
        """The path of the module that is called."""
        return self.prefix + self.node.target

    @property
    def module(self) -> nn.Module:
        return self.builder.modules[self.path]

    @property
    def operation(self) -> str:
        """What is called, by its name."""
        if self.node.op == "call_module":
            return type(self.module).__name__
        return getattr(self.node.target, "__name__", self.node.target)

    def first(self) -> Any:
        """The value operated on: the first argument, or the one named ``input`` or ``x``."""
        return self.of(self.first_argument())

    def first_argument(self) -> Any:
        named = [self.node.kwargs[name] for name in ("input", "x", "tensors") if name in self.node.kwargs]
        return (*self.node.args, *named, None)[0]

    def of(self, argument: Any) -> Any:
        """The value of an argument, which is thereby taken; None for a constant."""
        if not isinstance(argument, fx.Node):
            return None
        self.taken.add(argument)
        value = self.values.get(argument)
        return None if isinstance(value, Fixed) and value.scalar else value

    def take(self, argument: Any) -> None:
        """Say that the rule knows what to do with an argument (a count of units in a shape)."""
        self.of(argument)

    def rest(self, *named: tuple[str, Any]) -> list[Any]:
        """Arguments after the first, by position or name, with defaults."""
        given = self.node.args[1:]
        return [
            given[i] if i < len(given) else self.node.kwargs.get(name, default)
            for i, (name, default) in enumerate(named)
        ]

    def shape(self, argument: Any) -> tuple[int, ...] | None:
        """The shape of an argument's tensor where an example went through (``ek.convert``)."""
        return argument.meta.get("shape") if isinstance(argument, fx.Node) else None

    def rank(self, argument: Any) -> int:
        """How many dimensions an argument's tensor has, by the example or by what is known of its units; 0: unknown."""
        shape, value = self.shape(argument), self.values.get(argument)
        if shape is not None:
            return len(shape)
        if not isinstance(value, Units) or value.last:
            return 0
        return 4 if value.spatial else 2

    def where(self) -> Place:
        """The node and the user's line it comes from, to name in a refusal."""
        return at_node(self.node)

    def refuse(self, reason: str) -> None:
        """Raise ConversionError for this node."""
        raise self.where().refused(reason)


Rule = Callable[[Step], Any]


def name_of(value: Any) -> str:
    """Whose units a value holds, for messages."""
    if isinstance(value, Heads):
        return value.units.name
    return repr(value.path) if isinstance(value, Constant) else value.name


def unit_dim(value: Units, rank: int) -> int:
    """Which of ``rank`` dimensions holds the units."""
    return rank - 1 if value.last else 1
