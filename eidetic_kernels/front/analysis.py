"""Follows owners through a captured graph, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from ..checking import first_line
from ..wiring.diagnostics import at_node
from ..wiring import rules as known_rules
from ..wiring.rules.registry import OPERATIONS
from .capture import Captured, concrete, shape_of
from .constraints import Constraints
from .owners import NOBODY, Owners, along, nobodys, small


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
    reads: Owners | None
    units: Tensor | None
    options: dict[str, Any] = field(default_factory=dict)


class Step:
    """One node, as a rule sees it."""

    def __init__(self, analysis: Analysis, node: fx.Node):
        self.analysis, self.node = analysis, node
        takes = operation(node) in TAKE_WEIGHTS
        self.args = [analysis.value(each, takes and number == 1) for number, each in enumerate(node.args)]
        self.kwargs = {name: analysis.value(each) for name, each in node.kwargs.items()}
        self.constraints = analysis.constraints

    @property
    def shape(self) -> tuple[int, ...]:
        shape = shape_of(self.node)
        assert shape is not None
        return shape

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

    def refuse(self, reason: str) -> NoReturn:
        raise at_node(self.node).refused(reason)


TAKE_WEIGHTS = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)

Rule = Callable[[Step], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def operation(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


class Analysis:
    """Reads ``captured``, the forward of ``module``."""

    def __init__(self, module: nn.Module, captured: Captured, fixed: dict[fx.Node, Any] | None = None):
        self.module, self.captured, self.fixed = module, captured, fixed or {}
        self.constraints = Constraints()
        self.layers: list[Layer] = []
        self.values: dict[fx.Node, Any] = {}
        self._elements: dict[str, Owners] = {}
        self.notes: list[str] = []
        self.mixed: list = []
        self.across: list = []

    def run(self) -> Any:
        for node in self.captured.graph.nodes:
            if node.op == "output":
                return self.value(node.args[0])
            given = node.all_input_nodes
            if node not in self.fixed and given and all(self._of_parameters(self.values[each]) for each in given):
                self.values[node] = Deferred(node)
            else:
                self.values[node] = self._value_of(node)
        raise AssertionError("a graph has an output")

    def _of_parameters(self, value: Any) -> bool:
        """Whether a node's value is no input's: a parameter, a fixed tensor or what is made of these alone."""
        return isinstance(value, (Held, Tensor, Deferred))

    def value(self, argument: Any, deferred: bool = False) -> Any:
        if isinstance(argument, fx.Node):
            value = self.values[argument]
            if isinstance(value, Deferred) and not deferred:
                value = self.values[argument] = self._value_of(value.node)
            return value
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.value(each) for each in argument)
        return argument

    def elements(self, held: Held) -> Owners:
        """Each element of a tensor of the network is a unit of its own, until it is met by others."""
        if held.path not in self._elements:
            made = self.constraints.new(held.path, "tensor", held.value.numel())
            shape = tuple(held.value.shape)
            self._elements[held.path] = Owners(shape, made.units.view(shape), torch.full([1] * len(shape), NOBODY))
        return self._elements[held.path]

    def _value_of(self, node: fx.Node) -> Any:
        if node in self.fixed and node.op != "placeholder":
            return self.fixed[node]
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return None
        name = operation(node)
        if name == "getitem":
            return self.value(node.args[0])[node.args[1]]
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):  # a size, or nothing
            return concrete(node.meta.get("val"))
        step = Step(self, node)
        rule = _of_ones_own(name) or RULES.get(name)
        if rule is None:
            step.refuse(f"the operation {name} is not known to keep units apart.")
        try:
            value = rule(step)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            raise at_node(node).refused(f"what it does to units cannot be followed ({first_line(error)}).") from error
        if isinstance(value, Owners) and value.shape != shape_of(node):
            step.refuse(f"rule gives shape {value.shape}, expected {shape_of(node)}")
        return value

    def _placeholder(self, node: fx.Node) -> Any:
        path = self.captured.held.get(node.name)
        if path is None:
            shape = shape_of(node)
            if shape is None:
                return concrete(node.meta.get("val"))
            rank = len(shape)
            value = node.meta["val"]
            batch = rank and isinstance(value.shape[0], torch.SymInt)
            samples = along(0, rank, torch.arange(shape[0])) if batch else torch.full([1] * rank, NOBODY)
            return Owners(shape, torch.full([1] * rank, NOBODY), samples)
        if path in self.captured.constants:
            return self.captured.constants[path].detach()
        return self.held(path)

    def held(self, path: str) -> Any:
        """The parameter or buffer at ``path``."""
        owner, _, name = path.rpartition(".")
        value = getattr(self.module.get_submodule(owner), name)
        return Held(path, value, True) if isinstance(value, nn.Parameter) else value


def _of_ones_own(name: str) -> Rule | None:
    """The rule that a user registered for an operation of torch's."""
    registered = OPERATIONS.get(name) or OPERATIONS.get(name.rstrip("_"))
    if registered is None:
        return None
    known = {known_rules.passes: "relu", known_rules.ties: "add", known_rules.flattens: "flatten"}
    if registered in known:
        return RULES[known[registered]]

    def refuses(step: Step) -> NoReturn:
        registered(step)  # type: ignore[arg-type]
        step.refuse("its registered rule is none that a captured operation can have: passes, ties, flattens, refuses")

    return refuses


def leaves(value: Any):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


from . import rules  # noqa: E402, F401
