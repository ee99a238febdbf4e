"""A module's forward as a graph of ATen operations. The one place that knows torch.export."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from ..example import Given, parameters_of
from .regions import inline_regions

SAMPLES = 3  # of the batch that is captured


@dataclass(frozen=True)
class Captured:
    """A captured forward.

    Args:
        graph: nodes of ATen operations.
        held: what each placeholder of the graph is that is no input: the path of a parameter, buffer or constant.
        constants: the tensors that forward makes itself, by the paths in ``held``.
        parameters: the paths in ``held`` that are parameters.
        inputs: the placeholders of the inputs that are tensors, by name, in order.
        outputs: the nodes that are returned.
    """

    graph: fx.Graph
    held: dict[str, str]
    constants: dict[str, Tensor]
    parameters: set[str]
    inputs: dict[str, fx.Node]
    outputs: Any


def capture(module: nn.Module, given: Given) -> Captured:
    """``module.forward`` of what it is ``given``, in the mode that the module is in.

    The first dimension of every tensor is the batch, a symbol.
    """
    batch = given.changed(lambda x: x[torch.arange(SAMPLES, device=x.device) % len(x)])
    sizes = tuple(_dynamic(each) for each in batch.values)
    with torch.enable_grad():
        exported = torch.export.export(
            module, batch.args, dict(batch.kwargs), dynamic_shapes=_as_called(module, batch, sizes), strict=False
        )
    signature = exported.graph_signature
    trained = {
        name for name, path in signature.inputs_to_parameters.items() if module.get_parameter(path).requires_grad
    }
    inline_regions(exported.graph_module, exported.graph, trained)
    held = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    places = [node for node in exported.graph.nodes if node.op == "placeholder" and node.name not in held]
    inputs = dict(zip(batch.names, places, strict=True))
    inputs = {name: inputs[name] for name in batch.named}
    output = exported.graph.output_node()
    return Captured(
        exported.graph,
        held,
        cast("dict[str, Tensor]", dict(exported.constants)),
        set(signature.inputs_to_parameters.values()),
        inputs,
        output.args[0],
    )


def _dynamic(x: Any) -> dict[int, Any] | None:
    """Which sizes of an input may change: the batch's, and a sequence's length where forward allows it."""
    if not isinstance(x, Tensor):
        return None
    tokens = x.dim() in (2, 3) and (x.dim() == 3 or not x.is_floating_point()) and x.shape[1] > 1
    return {0: Dim.DYNAMIC, 1: Dim.AUTO} if tokens else {0: Dim.DYNAMIC}


def _as_called(module: nn.Module, given: Given, sizes: tuple[Any, ...]) -> Any:
    """``sizes`` of the arguments, in the form in which torch.export takes them: by forward's parameters."""
    by_place, by_name = list(sizes[: len(given.args)]), dict(zip(given.kwargs, sizes[len(given.args) :], strict=True))
    found: dict[str, Any] = {}
    for each in parameters_of(module):
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            found[each.name], by_place = tuple(by_place), []
        elif each.kind is inspect.Parameter.VAR_KEYWORD:
            found[each.name] = by_name
        elif by_place:
            found[each.name] = by_place.pop(0)
        elif each.name in by_name:
            found[each.name] = by_name.pop(each.name)
    return found
