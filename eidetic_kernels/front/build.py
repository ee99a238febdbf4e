from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..conversion.convert import _begin
from ..errors import ConversionError
from ..network import EideticNetwork
from ..wiring.groups import Wiring
from .analysis import Analysis, leaves, operation
from .capture import Captured, capture, shape_of
from .compare import in_training
from .emit import Emitter, _needed
from .folding import fold
from .functional import functionalize
from .groups import group_units
from .marks import marked
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


# Operations after the head that leave its numbers as they are, and softmax, which a head does not do.
_NOTHING = ("dropout", "contiguous", "alias", "clone", "detach", "eidetic_kernels::mark")


def convert(module: nn.Module, example: Tensor, head: str | bool | None = None) -> Exported:
    plain = copy.deepcopy(module)
    modes = {path: each.training for path, each in plain.named_modules()}
    with marked(plain, drops):
        plain.train()
        trained = capture(plain, (example,), {})
        captured = capture(plain.eval(), (example,), {})
    fixed = fold(captured, plain)
    functionalize(captured.graph, fixed)
    functionalize(trained.graph, fold(trained, plain))
    captured, trained = refreshed(captured), refreshed(trained)
    end, classifier_path = find_head(plain, captured, head)
    pairs = in_training(captured, end, trained)

    analysis = Analysis(plain, captured, fixed)
    analysis.run()
    layers = analysis.layers
    reads = None
    if classifier_path is not None:
        (last,) = [layer for layer in layers if layer.node is end]
        layers.remove(last)
        analysis.constraints.made.pop(f"{last.path}.weight")
        reads, features = last.options["columns"], end.args[0]
    else:
        features = end
        owners = settled_features(analysis, end)
        reads = owners
    needed = _needed(features)
    parts = [
        (layer.options["columns"], layer.reads.coarse)
        for layer in layers
        if "columns" in layer.options and layer.node in needed
    ]
    parts.append((reads, False))
    for node, value in analysis.values.items():  # pieces of what is cut
        if node.op == "call_function" and operation(node) in _CUTTING and node in needed:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(each, "units"):
                    parts.append((each.units.flatten(), each.coarse))
    grouped = group_units(analysis.constraints, parts)
    refuse_mixed(analysis, grouped)
    emitter = Emitter(analysis, grouped, plain, pairs)
    classifier = plain.get_submodule(classifier_path) if classifier_path is not None else None
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


def find_head(plain: nn.Module, captured: Captured, head: str | bool | None) -> tuple[fx.Node, str | None]:
    """The node of the logits, and the path of the linear layer that makes them."""
    ends = [each for each in leaves(captured.outputs) if isinstance(each, fx.Node)]
    if isinstance(head, str):
        found = [
            node for node in captured.graph.nodes
            if node.op == "call_function" and operation(node) == "linear"
            and captured.held.get(getattr(node.args[1], "name", "")) == f"{head}.weight"
        ]
        if len(found) != 1:
            raise ConversionError(f"head={head!r} must name a linear layer that forward calls once.")
        return found[0], head
    if len(ends) != 1:
        raise ConversionError("forward must return one tensor.")
    end = ends[0]
    if head is False:
        return end, None
    last = end
    while operation(last) in _NOTHING or (operation(last) in ("flatten", "view", "reshape", "squeeze") and shape_of(last.args[0]) == shape_of(last)):
        last = last.args[0]
    if operation(last) == "linear" and len(shape_of(last)) == 2 and isinstance(last.args[1], fx.Node):
        path = captured.held.get(last.args[1].name, "").rpartition(".")[0]
        if path and type(plain.get_submodule(path)).forward is nn.Linear.forward:
            return last, path
    return end, None


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
