"""Wiring a network: its forward traced with torch.fx and read node by node, or its connections declared by hand."""

from __future__ import annotations

import operator
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from ..checking import shown
from ..errors import ConversionError
from ..layers import (
    CONVOLUTIONS,
    EideticBatchNorm,
    EideticBatchNorm2d,
    EideticDropout,
    EideticGroupedConv2d,
    EideticPReLU,
    EideticStochasticDepth,
    Parts,
    Shared,
    StaircaseLayer,
)
from ..modes import is_frozen
from . import rules
from .builder import Builder, wired
from .diagnostics import Place, at_node
from .groups import Wiring
from .in_place import IN_PLACE
from .values import INPUT, Units, Value

# What is given an image, where the wiring is declared by hand.
_ON_IMAGES = (
    *CONVOLUTIONS,
    EideticBatchNorm2d,
    EideticPReLU,
    nn.Dropout2d,
    *rules.IMAGE_MODULES,
)


def trace(network: nn.Module) -> Wiring:
    """Find the unit groups of ``network`` by tracing its ``forward`` with torch.fx.

    Raises ConversionError naming the node that cannot be wired, its place in the source, and the ways out.
    """
    return wire(network, graph_of(network))


def graph_of(module: nn.Module, concrete_args: dict[str, Any] | None = None, in_place: bool = False) -> fx.Graph:
    """The graph of ``module.forward``, in which layers and whatever has a rule are single nodes.

    Args:
        concrete_args: arguments of ``forward`` that are fixed, as in torch.fx.
        in_place: record ``x += 1`` and ``x[i] = 1`` as nodes that change x, as they do, where torch.fx records
            ``x = x + 1``. ``node.meta["no_grad"]`` is then set on nodes that ran with gradients switched off.

    Raises ConversionError, with the user's line, where ``forward`` cannot be traced.
    """
    try:
        with torch.enable_grad():
            return _Tracer(in_place).trace(module, concrete_args)
    except ConversionError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}torch{os.sep}" not in f.filename]
        own = [frame for frame in frames if frame.filename != __file__]
        line = f' (File "{own[-1].filename}", line {own[-1].lineno}, in {own[-1].name} {own[-1].line})' if own else ""
        mode = " in training mode" if in_place and module.training else ""
        raise ConversionError(
            f"{type(module).__name__}.forward cannot be traced by torch.fx{mode}: {error}{line}\n"
            "Control flow that depends on tensor values cannot be followed. Rewrite it, register a rule for the module "
            "that it stands in (ek.register_rule), or declare the wiring by hand: define connections() on the network "
            "(see EideticNetwork.connections)."
        ) from error


def wire(network: nn.Module, graph: fx.Graph, prefix: str = "", editable: bool = False) -> Wiring:
    """Read ``graph`` by the rules.

    Args:
        prefix: stands before the graph's module paths in ``network``.
        editable: ``graph`` is what will run, so rules may put a count of units in the place of a number.
    """

    def read(builder: Builder) -> Wiring:
        values: dict[fx.Node, Value] = {}
        for node in list(graph.nodes):
            values[node] = rules.value_of(rules.Step(builder, node, values, prefix, editable))
        output = graph.output_node()
        returned = output.args[0] if isinstance(output.args[0], fx.Node) else output
        return builder.finish(values[output], at_node(returned))

    return wired(network, read)


def declare(network: nn.Module, connections: dict[str, str | tuple[str, ...]]) -> Wiring:
    """Wire a network by hand.

    ``connections`` maps each layer's path, in order of execution, to what it reads: another layer's path, "input",
    or a tuple of paths whose values are added together. "output" names the features. Only linear, convolution,
    BatchNorm and dropout layers need to be named: whatever lies between them and keeps units apart may be left out.

    Raises ConversionError for a path that is unknown or read before it is defined, and where tasks would mix.
    """
    return wired(network, lambda builder: _read(builder, connections))


def _read(builder: Builder, connections: dict[str, str | tuple[str, ...]]) -> Wiring:
    values: dict[str, Value] = {"input": INPUT}
    if not isinstance(connections, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConversionError(f"connections() must return a dict, of what each layer reads; got {shown(connections)}.")
    for path, read in connections.items():
        names = (read,) if isinstance(read, str) else tuple(read) if isinstance(read, (tuple, list)) else ()
        if not names or not all(isinstance(name, str) for name in (path, *names)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversionError(
                f"connections() must say for each layer's path what it reads, a path or a tuple of paths; got "
                f"{shown(path)}: {shown(read)}."
            )
        for name in names:
            if name not in values:
                raise ConversionError(
                    f"connections(): {path!r} reads {name!r}, which is not defined before it. "
                    f"Known so far: {', '.join(values)}."
                )

        value = values[names[0]]
        for name in names[1:]:
            value = builder.tie(value, values[name], _entry(path))

        flat = path == "output" or not isinstance(builder.modules.get(path), _ON_IMAGES)
        if flat and isinstance(value, Units) and value.spatial:
            # Pooling and flattening may be left out: the network checks the shape of its features when it runs.
            value = replace(value.flattened(), pixels=value.pixels or (1 if path == "output" else None))
        values[path] = value if path == "output" else _declared(builder, path, value)
    if "output" not in connections:
        raise ConversionError('connections() must say which layer\'s output are the features: {"output": "..."}.')
    return builder.finish(values["output"], _entry("output"))


def _entry(path: str) -> Place:
    return Place(f"connections()[{path!r}]")


def _declared(builder: Builder, path: str, value: Value) -> Value:
    """What module ``path`` makes of ``value``."""
    where, module = _entry(path), builder.modules.get(path)
    if module is None:
        raise where.refused(f"the network has no module {path!r}.")
    if isinstance(module, StaircaseLayer):
        return builder.produce(path, value, where)
    if isinstance(module, (EideticBatchNorm, EideticGroupedConv2d, EideticPReLU)):
        if isinstance(module, EideticPReLU) and isinstance(value, Units):
            module.fit(value.width)
        return builder.follow(path, value, where)
    if isinstance(module, (*rules.DROPOUTS, EideticDropout, EideticStochasticDepth)):
        return builder.drop(path, value, where)
    return value


_ONE_TRACE = threading.RLock()  # torch.fx takes its patches back in the order in which it made them


class OwnThread(fx.Tracer):
    """A tracer that other threads do not meet.

    torch.fx patches ``nn.Module`` itself while it traces, so that modules that run in other threads at that time call
    the tracer, too. Here they run as they always do. Traces of several threads come one after the other.
    """

    _thread: int | None = None

    def trace(self, *args, **kwargs) -> fx.Graph:
        with _ONE_TRACE:
            self._thread = threading.get_ident()
            return super().trace(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Tracer(OwnThread):
    """torch.fx's tracer, which stops at layers of ours and at what has a rule."""

    def __init__(self, in_place: bool = False):  # torch.fx makes one without arguments when it unpickles a graph
        super().__init__(autowrap_functions=rules.wrapped_functions())
        self.record_stack_traces = True
        self.in_place = in_place

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        ours = isinstance(module, (Parts, Shared)) or rules.leaves(module) or is_frozen(module)
        return ours or super().is_leaf_module(module, path) or _differs_in_construction(type(module))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Changing(node, self) if self.in_place else super().proxy(node)

    def create_node(self, *args, **kwargs) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if self.in_place and not torch.is_grad_enabled():
            node.meta["no_grad"] = True
        return node


# What a subclass of a layer may define without computing something else.
_CONSTRUCTION = ("__init__", "__new__", "__repr__", "extra_repr", "reset_parameters")


def _differs_in_construction(cls: type[nn.Module]) -> bool:
    """Whether ``cls`` is a layer of torch.nn that is only constructed in another way, so that it computes the same
    (``class Conv1x1(nn.Conv2d)`` with an ``__init__`` of its own)."""
    for kind in cls.__mro__:
        if kind.__module__.startswith("torch.nn."):
            return "forward" in vars(kind) and not issubclass(kind, nn.Sequential)
        own = [value for name, value in vars(kind).items() if name not in _CONSTRUCTION]
        if any(callable(value) or isinstance(value, property) for value in own):
            return False
    return False


class _Changing(fx.Proxy):
    """A value of the traced forward whose augmented assignments are what they are in Python: changes in place."""

    def __getattr__(self, name: str) -> fx.Proxy:
        return _ChangingAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "grad", "requires_grad"):
            raise TypeError(f"a trace does not hold that forward sets {name!r} of a tensor")
        super().__setattr__(name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class _ChangingAttribute(Attribute, _Changing):
    pass


def _changing(operation: Callable[..., Any]) -> Callable[[_Changing, Any], fx.Proxy]:
    def change(self: _Changing, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return change


for _operation in IN_PLACE:
    setattr(_Changing, f"__{_operation.__name__}__", _changing(_operation))
