"""A module's forward as a graph of ATen operations. The one place that knows torch.export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

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
        inputs: the placeholders of the inputs, in order.
        outputs: the nodes that are returned.
    """

    graph: fx.Graph
    held: dict[str, str]
    constants: dict[str, Tensor]
    parameters: set[str]
    inputs: tuple[fx.Node, ...]
    outputs: Any


def capture(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
    """``module.forward(*args, **kwargs)``, in the mode that the module is in.

    The first dimension of every tensor that is as long as the first tensor's is the batch, a symbol.
    """
    samples = next(len(each) for each in (*args, *kwargs.values()) if isinstance(each, Tensor))

    def batch(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim() or len(x) != samples:
            return x
        return x[torch.arange(SAMPLES, device=x.device) % samples]

    def dynamic(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim() or len(x) != samples:
            return None
        tokens = x.dim() in (2, 3) and (x.dim() == 3 or not x.is_floating_point()) and x.shape[1] > 1
        return {0: Dim.DYNAMIC, 1: Dim.AUTO} if tokens else {0: Dim.DYNAMIC}

    with torch.enable_grad():
        exported = torch.export.export(
            module,
            tuple(batch(x) for x in args),
            {name: batch(x) for name, x in kwargs.items()},
            dynamic_shapes=(*(dynamic(x) for x in args), *(dynamic(x) for x in kwargs.values())) or None,
            strict=False,
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
    inputs = tuple(node for node in exported.graph.nodes if node.op == "placeholder" and node.name not in held)
    output = next(reversed(exported.graph.nodes))
    return Captured(
        exported.graph,
        held,
        cast("dict[str, Tensor]", dict(exported.constants)),
        set(signature.inputs_to_parameters.values()),
        inputs,
        output.args[0],
    )
