"""A module's forward as a graph of ATen operations. The one place that knows torch.export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from ..wiring.diagnostics import at_node

SAMPLES = 3  # of the batch that is captured
AUTOCAST = "autocast"  # the meta entry of nodes in a region of torch.autocast: its settings


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
    trained = {name for name, path in signature.inputs_to_parameters.items() if module.get_parameter(path).requires_grad}
    _inline_regions(exported.graph_module, exported.graph, trained)
    held = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = tuple(node for node in exported.graph.nodes if node.op == "placeholder" and node.name not in held)
    output = next(reversed(exported.graph.nodes))
    return Captured(exported.graph, held, dict(exported.constants), set(signature.inputs_to_parameters.values()), inputs, output.args[0])


def _inline_regions(root: nn.Module, graph: fx.Graph, trained: set[str]) -> None:
    """Put what runs under ``torch.no_grad`` or ``torch.autocast`` in place of its region.

    What ``no_grad`` returns is detached; nodes under ``autocast`` have its settings in their ``meta``.
    """
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        count = 1 if name == "wrap_with_set_grad_enabled" else 4
        settings, body, given = node.args[:count], node.args[count], node.args[count + 1 :]
        inner = getattr(root, body.target)
        _inline_regions(inner, inner.graph, trained)
        detach = name == "wrap_with_set_grad_enabled" and not settings[0]
        if detach:
            _refuse_parameters(node, given, trained)
        places = [each for each in inner.graph.nodes if each.op == "placeholder"]
        known = dict(zip(places, given))
        with graph.inserting_before(node):
            for each in inner.graph.nodes:
                if each.op == "placeholder":
                    continue
                if each.op == "output":
                    made = [_left(graph, known[out], detach) for out in each.args[0]]
                    break
                known[each] = graph.node_copy(each, lambda old: known[old])
                if count > 1:
                    known[each].meta.setdefault(AUTOCAST, settings)
        for user in list(node.users):
            user.replace_all_uses_with(made[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _left(graph: fx.Graph, node: fx.Node, detach: bool) -> fx.Node:
    if not detach:
        return node
    made = graph.call_function(torch.ops.aten.detach.default, (node,))
    made.meta = dict(node.meta)
    return made


def _refuse_parameters(node: fx.Node, given: Sequence[Any], trained: set[str]) -> None:
    for each in given:
        if isinstance(each, fx.Node) and each.name in trained:
            user = next(iter(node.users), node)
            raise at_node(user).refused(
                f"forward reads the parameter {each.name.removeprefix('p_')!r} under torch.no_grad, so it would never be "
                "trained. If it is meant to stay as it is, say so: ek.frozen(layer), or requires_grad_(False)."
            )


def module_path(node: fx.Node) -> str:
    """The path of the module in whose forward ``node`` is; "" for the whole module's."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def needed(node: fx.Node) -> set[fx.Node]:
    """``node`` and the nodes that it is made of."""
    found, waiting = {node}, [node]
    while waiting:
        for each in waiting.pop().all_input_nodes:
            if each not in found:
                found.add(each)
                waiting.append(each)
    return found


def concrete(value: Any) -> Any:
    """``value`` with symbols replaced by their sizes in the example."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint
    if isinstance(value, (list, tuple)):
        return type(value)(concrete(each) for each in value) if not isinstance(value, torch.Size) else tuple(
            concrete(each) for each in value
        )
    return value


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's tensor in the example; None for what is no tensor."""
    value = node.meta.get("val")
    return tuple(int(concrete(size)) for size in value.shape) if isinstance(value, Tensor) else None
