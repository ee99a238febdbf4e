from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..conversion.convert import _begin
from ..errors import ConversionError
from ..network import EideticNetwork
from ..wiring.groups import Wiring
from .analysis import Analysis, operation
from .capture import Captured, capture, shape_of
from .compare import in_training
from .emit import PRODUCERS, Emitter
from .folding import fold
from .functional import functionalize
from .groups import group_units
from .head import cut_at, find_head
from .marks import marked
from .products import leave_out_nothing, rewrite_products
from .prove import prove


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


def convert(module: nn.Module, example: Tensor, head: str | bool | None = None) -> Exported:
    plain = copy.deepcopy(module)
    modes = {path: each.training for path, each in plain.named_modules()}
    with marked(plain, drops):
        plain.train()
        trained = capture(plain, (example,), {})
        captured = capture(plain.eval(), (example,), {})
    for each in (captured, trained):
        rewrite_products(each, plain)
        leave_out_nothing(each)
    fixed = fold(captured, plain)
    functionalize(captured.graph, fixed)
    functionalize(trained.graph, fold(trained, plain))
    captured, trained = refreshed(captured), refreshed(trained)
    found = find_head(plain, captured, head)
    end, features, classifier = found.end, found.features, found.classifier
    pairs = in_training(captured, end, trained)
    captured = cut_at(captured, features)

    analysis = Analysis(plain, captured, fixed)
    analysis.run()
    layers = analysis.layers
    reads = settled_features(analysis, features)
    parts = [(layer.options["columns"], layer.reads.coarse) for layer in layers if "columns" in layer.options]
    parts += [(layer.units, layer.reads.coarse) for layer in layers if layer.kind not in PRODUCERS]
    parts.append((reads, False))
    for node, value in analysis.values.items():  # pieces of what is cut
        if node.op == "call_function" and operation(node) in _CUTTING:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(each, "units"):
                    parts.append((each.units.flatten(), each.coarse))
    grouped = group_units(analysis.constraints, parts)
    refuse_mixed(analysis, grouped)
    emitter = Emitter(analysis, grouped, plain, pairs)
    emitter.run(features)
    prove(emitter)
    wiring = Wiring(
        tuple(group for group in emitter.groups if group.producers), emitter.sources, emitter.dropouts,
        _features(emitter, features, reads), emitter.split, emitter.orders, emitter.pieces, (), frozenset(emitter.last),
    )
    body = fx.GraphModule(plain, emitter.graph, type(module).__name__)
    for path, each in body.named_modules():
        each.training = modes.get(path, module.training)
    network = Exported(body, wiring)
    network.takes_integers = not example.is_floating_point()
    network.training = module.training
    if head is not False:
        _begin(network, classifier, torch.empty(1, shape_of(end)[1]))
    return network


def refuse_mixed(analysis: Analysis, grouped) -> None:
    """Raise ConversionError where a mean or the like is taken over all units of a group, frozen and live ones alike."""
    for node, units, _, kind in analysis.mixed:
        if kind != "refuse":
            continue
        for number in torch.unique(grouped.group[units[units >= 0]]).tolist():
            if number >= 0 and grouped.grains[number] == grouped.widths[number] > 1:
                raise ConversionError(f"{node.name} [{operation(node)}] mixes all units.")


def _features(emitter: Emitter, node: fx.Node, reads: Tensor):
    if emitter.order_of(node, reads, -1) is not None:
        raise ConversionError("the features are shuffled units.")
    return emitter.sources_of(reads, "the head")


_CUTTING = ("split", "split_with_sizes", "chunk", "slice", "tensor_split", "unbind", "select", "unsafe_split")


def settled_features(analysis: Analysis, node: fx.Node) -> Tensor:
    owners = analysis.values[node]
    if len(owners.shape) != 2:
        raise ConversionError(f"forward must return logits [N, classes] or features [N, units]; got {owners.shape}.")
    return owners.units[0].expand(owners.shape[1]) if owners.units.shape[1] == 1 else owners.units.flatten()


def refreshed(captured: Captured) -> Captured:
    return Captured(captured.graph, captured.held, captured.constants, captured.inputs, next(reversed(captured.graph.nodes)).args[0])


def drops(module: nn.Module) -> bool:
    """Whether ``module`` drops units or samples' branches in training."""
    name = type(module).__name__
    return isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)) or name.endswith(("DropPath", "StochasticDepth"))
