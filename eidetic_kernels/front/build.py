from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..conversion.convert import _begin
from ..errors import ConversionError
from ..network import EideticNetwork
from ..wiring.groups import Wiring
from .analysis import Analysis, Held, operation
from .capture import capture, shape_of
from .emit import Emitter
from .groups import group_units


class Exported(EideticNetwork):
    def __init__(self, body: fx.GraphModule, wiring: Wiring):
        super().__init__()
        self.__dict__["constructor_arguments"] = ((), {})
        self.body = body
        self._wire(wiring)
        body.recompile()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def traced(self):
        return self.body.graph, self.body


def convert(module: nn.Module, example: Tensor) -> Exported:
    plain = copy.deepcopy(module)
    captured = capture(plain.eval(), (example,), {})
    analysis = Analysis(plain, captured)
    # the head: the last linear, whose output is returned
    end = captured.outputs[0]
    while operation(end) in ("dropout", "contiguous", "alias", "clone") or (operation(end) == "flatten" and shape_of(end.args[0]) == shape_of(end)):
        end = end.args[0]
    if operation(end) != "linear":
        raise ConversionError(f"no head: {operation(end)}")
    analysis.run()
    head_layer = next(layer for layer in analysis.layers if layer.node is end)
    analysis.layers.remove(head_layer)
    analysis.constraints.made.pop(f"{head_layer.path}.weight")
    parts = [layer.options["columns"] for layer in analysis.layers if "columns" in layer.options]
    parts += [head_layer.options["columns"]]
    for node, value in analysis.values.items():  # pieces of what is cut
        if operation(node) in ("split", "split_with_sizes", "chunk", "slice", "tensor_split", "unbind", "select") if node.op == "call_function" else False:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(each, "units"):
                    parts.append(each.units.flatten())
    grouped = group_units(analysis.constraints, parts)
    classifier = plain.get_submodule(head_layer.path)
    emitter = Emitter(analysis, grouped, plain)
    features = end.args[0]
    emitter.run(features)
    wiring = Wiring(
        tuple(emitter.groups), emitter.sources, emitter.dropouts,
        emitter.sources_of(head_layer.options["columns"], "the head"), emitter.split, {}, emitter.pieces, (), frozenset(emitter.last),
    )
    body = fx.GraphModule(plain, emitter.graph, type(module).__name__)
    network = Exported(body, wiring)
    _begin(network, classifier, torch.empty(1, classifier.out_features))
    return network
