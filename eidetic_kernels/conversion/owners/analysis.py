"""Follows owners through a captured graph, operation by operation."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from ...checking import first_line
from ...errors import ConversionError
from ...tasks.foreign import frozen_inside
from ...wiring import rules as known_rules
from ...wiring.diagnostics import at_node
from ...wiring.rules.registry import OPERATIONS
from ..graphs.capture import Captured
from ..graphs.nodes import args_of, concrete, is_tensor, operation, shape_of, symbols_of
from . import creation, elementwise, images, layers, moves, products, reductions  # noqa: F401  they register rules
from .constraints import Constraints
from .maps import NOBODY, Owners, along
from .step import RULES, Deferred, Held, Layer, Rule, Step


class Analysis:
    """Reads ``captured``, the forward of ``module``."""

    def __init__(self, module: nn.Module, captured: Captured, fixed: dict[fx.Node, Any] | None = None):
        self.module, self.captured, self.fixed = module, captured, fixed or {}
        self.constraints = Constraints()
        self.layers: list[Layer] = []
        self.values: dict[fx.Node, Any] = {}
        self._elements: dict[str, Owners] = {}
        self.mixed: list = []
        self.batch = frozenset().union(*(symbols_of(node, 0) for node in captured.inputs.values()))
        self.asleep = tuple(path for path, _ in frozen_inside(module))

    def run(self) -> Any:
        for node in self.captured.graph.nodes:
            if node.op == "output":
                return self.value(args_of(node)[0])
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
            return self.value(args_of(node)[0])[args_of(node)[1]]
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):  # a size, or nothing
            return concrete(node.meta.get("val"))
        step = Step(self, node)
        rule = _of_ones_own(name) or RULES.get(name)
        if rule is None:
            step.refuse(f"the operation {name} is not known to keep units apart.")
        try:
            value = rule(step)
        except ConversionError as error:
            if str(error).startswith(("node ", "module ")):
                raise
            raise at_node(node).refused(str(error)) from error
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            raise at_node(node).refused(f"what it does to units cannot be followed ({first_line(error)}).") from error
        if isinstance(value, Owners) and value.shape != shape_of(node):
            step.refuse(f"rule gives shape {value.shape}, expected {shape_of(node)}")
        return value

    def _placeholder(self, node: fx.Node) -> Any:
        path = self.captured.held.get(node.name)
        if path is None:
            if not is_tensor(node):
                return concrete(node.meta.get("val"))
            shape = shape_of(node)
            rank = len(shape)
            value = node.meta["val"]
            batch = rank and isinstance(value.shape[0], torch.SymInt)
            samples = along(0, rank, torch.arange(shape[0])) if batch else torch.full([1] * rank, NOBODY)
            return Owners(shape, torch.full([1] * rank, NOBODY), samples)
        if path in self.captured.constants:
            return self.captured.constants[path].detach()
        return self.held(path)

    def held(self, path: str) -> Any:
        """The parameter or buffer at ``path``; that of a module that was frozen for good is a tensor like any other."""
        owner, _, name = path.rpartition(".")
        value = getattr(self.module.get_submodule(owner), name)
        learns = isinstance(value, nn.Parameter) and owner not in self.asleep
        return Held(path, value, True) if learns else value


def _of_ones_own(name: str) -> Rule | None:
    """The rule that a user registered for an operation of torch's."""
    registered = OPERATIONS.get(name) or OPERATIONS.get(name.rstrip("_"))
    if registered is None:
        return None
    known: dict[Any, str] = {known_rules.passes: "relu", known_rules.ties: "add", known_rules.flattens: "flatten"}
    if registered in known:
        return RULES[known[registered]]

    def refuses(step: Step) -> NoReturn:
        registered(step)  # type: ignore[arg-type]
        step.refuse("its registered rule is none that a captured operation can have: passes, ties, flattens, refuses")

    return refuses
