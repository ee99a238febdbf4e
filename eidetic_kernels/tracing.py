"""Wiring a network: its forward traced with torch.fx and read node by node, or its connections declared by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from . import rules
from .errors import ConversionError
from .graph import INPUT, Builder, Units, Wiring, wired
from .layers import (
    EideticBatchNorm,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDropout,
    EideticGroupedConv2d,
    EideticPReLU,
    EideticStochasticDepth,
    Parts,
    Shared,
    StaircaseLayer,
)

_ON_IMAGES = (EideticConv2d, EideticGroupedConv2d, EideticBatchNorm2d, EideticPReLU, nn.Dropout2d, *rules.IMAGE_MODULES)


def trace(network: nn.Module) -> Wiring:
    """Find the unit groups of ``network`` by tracing its ``forward`` with torch.fx.

    Raises ConversionError naming the node that cannot be wired, its place in the source, and the ways out.
    """
    return wire(network, graph_of(network))


def graph_of(module: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
    """The graph of ``module.forward``, layers and whatever has a rule being single nodes."""
    try:
        return _Tracer().trace(module, concrete_args)
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"{type(module).__name__}.forward cannot be traced by torch.fx: {error}\n"
            "Control flow that depends on tensor values cannot be followed. Rewrite it, or declare the wiring by "
            "hand: define connections() on the network (see EideticNetwork.connections)."
        ) from error


def wire(network: nn.Module, graph: fx.Graph, prefix: str = "", editable: bool = False) -> Wiring:
    """Read ``graph`` by the rules; ``prefix`` stands before its module paths in ``network``.

    ``editable``: ``graph`` is what runs, so rules may put a count of units in the place of a number.
    """

    def read(builder: Builder) -> Wiring:
        values: dict[fx.Node, Any] = {}
        for node in list(graph.nodes):
            values[node] = rules.value_of(rules.Step(builder, node, values, prefix, editable))
        return builder.finish(values[next(reversed(graph.nodes))])

    return wired(network, read)


def declare(network: nn.Module, connections: dict[str, str | tuple[str, ...]]) -> Wiring:
    """Wire a network by hand.

    ``connections`` maps each layer's path, in order of execution, to what it reads: another layer's path, "input",
    or a tuple of paths whose values are added together. "output" names the features. Only linear, convolution,
    BatchNorm and dropout layers need to be named: whatever lies between them and keeps units apart may be left out.
    """
    return wired(network, lambda builder: _read(builder, connections))


def _read(builder: Builder, connections: dict[str, str | tuple[str, ...]]) -> Wiring:
    values: dict[str, Any] = {"input": INPUT}
    for path, read in connections.items():
        names = (read,) if isinstance(read, str) else tuple(read)
        for name in names:
            if name not in values:
                raise ConversionError(
                    f"connections(): {path!r} reads {name!r}, which is not defined before it. "
                    f"Known so far: {', '.join(values)}."
                )
        value = values[names[0]]
        for name in names[1:]:
            value = builder.tie(value, values[name], f"connections()[{path!r}]")
        flat = path == "output" or not isinstance(builder.modules.get(path), _ON_IMAGES)
        if flat and isinstance(value, Units) and value.spatial:
            # Pooling and flattening may be left out; the network's own check of its features stands guard.
            value = replace(value.flattened(), pixels=value.pixels or (1 if path == "output" else None))
        values[path] = value if path == "output" else _declared(builder, path, value)
    if "output" not in connections:
        raise ConversionError('connections() must say which layer\'s output are the features: {"output": "..."}.')
    return builder.finish(values["output"])


def _declared(builder: Builder, path: str, value: Any) -> Any:
    where, module = f"connections()[{path!r}]", builder.modules.get(path)
    if module is None:
        raise ConversionError(f"{where}: the network has no module {path!r}.")
    if isinstance(module, StaircaseLayer):
        return builder.produce(path, value, where)
    if isinstance(module, (EideticBatchNorm, EideticGroupedConv2d, EideticPReLU)):
        if isinstance(module, EideticPReLU) and isinstance(value, Units):
            module.fit(value.width)
        return builder.follow(path, value, where)
    if isinstance(module, (*rules.DROPOUTS, EideticDropout, EideticStochasticDepth)):
        return builder.drop(path, value, where)
    return value


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__(autowrap_functions=rules.wrapped_functions())
        self.record_stack_traces = True

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, (Parts, Shared)) or rules.leaves(module) or super().is_leaf_module(module, path)
