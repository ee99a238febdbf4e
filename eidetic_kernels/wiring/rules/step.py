"""One node of the traced graph, as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from torch import fx, nn

from ..builder import Builder
from ..diagnostics import Place, at_node
from ..values import Units, Unowned, Value

Module = TypeVar("Module", bound=nn.Module)


class Step:
    """What a rule is given: a node, and the values of the nodes before it.

    Args:
        builder: what ties and concatenates units.
        node: torch.fx's node.
        values: the value of every node before it.
        prefix: stands before the graph's module paths in the network.
        editable: the graph is what will run (``ek.convert``), so a rule may change the node's arguments.

    ``given`` are the node's arguments as they were (a rule may change the node). ``taken`` are those that the rule
    asked for: a tensor or a count of units that it did not ask for is refused.
    """

    def __init__(
        self, builder: Builder, node: fx.Node, values: dict[fx.Node, Value], prefix: str = "", editable: bool = False
    ):
        self.builder, self.node, self.values, self.prefix = builder, node, values, prefix
        self.editable = editable
        self.given = list(node.all_input_nodes)
        self.taken: set[fx.Node] = set()

    @property
    def path(self) -> str:
        """The path of the module that is called, or of the tensor that is read."""
        return f"{self.prefix}{self.node.target}"

    @property
    def module(self) -> nn.Module:
        """The module that is called."""
        return self.builder.modules[self.path]

    def module_as(self, kind: type[Module]) -> Module:
        """The module that is called, which must be a ``kind``."""
        module = self.module
        if not isinstance(module, kind):
            self.refuse(f"its rule is for modules of class {kind.__name__}; got {type(module).__name__}.")
        return module

    @property
    def operation(self) -> str:
        """What is called, by its name."""
        if self.node.op == "call_module":
            return type(self.module).__name__
        return str(getattr(self.node.target, "__name__", self.node.target))

    def first(self) -> Value:
        """The value operated on: the first argument, or the one named ``input``, ``x`` or ``tensors``."""
        return self.of(self.first_argument())

    def first_argument(self) -> Any:
        named = [self.node.kwargs[name] for name in ("input", "x", "tensors") if name in self.node.kwargs]
        return (*self.node.args, *named, None)[0]

    def of(self, argument: Any) -> Value:
        """The value of an argument, which is thereby taken; None for a plain Python value or a single number."""
        if not isinstance(argument, fx.Node):
            return None
        self.taken.add(argument)
        value = self.values.get(argument)
        return None if isinstance(value, Unowned) and value.scalar else value

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
        """The shape of an argument's tensor where an example went through (``ek.convert``); else None."""
        return argument.meta.get("shape") if isinstance(argument, fx.Node) else None

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The shapes of the first argument and of the result, where both are known."""
        old, new = self.shape(self.first_argument()), self.shape(self.node)
        return None if old is None or new is None else (old, new)

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

    def refuse(self, reason: str) -> NoReturn:
        """Raise ConversionError for this node."""
        raise self.where().refused(reason)


Rule = Callable[[Step], Any]
