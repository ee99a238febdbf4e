"""``net.extract``: one finished task's prefix as a plain torch module, which needs this package no more.

A layer of one segment becomes the torch.nn layer it is. One of several becomes a torch.fx.GraphModule that holds a
torch.nn layer a segment and one concatenation, so no product with zeros is computed. A frozen BatchNorm becomes the
multiply-add it is, beside the layer that owns it and the residual that it is given, if any, and dropout, which leaves
frozen units alone, goes. A prefix LayerNorm is a torch.nn.LayerNorm a segment, over what that may see; attention
(extracted_attention.py) has the heads of all segments at once, and tensors of the network's own are parameters again.
Segments that the task's head reads neither directly nor through others (earlier tasks' units, where a task is disjoint)
are left out.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import ConversionError, TaskError
from ..layers import (
    EideticBatchNorm,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPositionNetwork,
    EideticRelativeAttention,
    EideticScaledDotProduct,
    EideticWindowAttention,
    EideticWindowAttentionV2,
    HeadedAttention,
    Parts,
    SegmentedLayer,
    Shared,
    Shuffle,
    Split,
)
from ..layers.attention import PROJECTIONS
from ..layout import Span
from ..modes import evaluating
from ..tasks.base import BaseNetwork
from ..wiring import rules
from . import attention
from .layers import columns_of, side_by_side, unit_dim_of
from .layers import plain as plain_layer
from .prefix import NO_TWIN, Prefix


def extract(network: BaseNetwork, task: int) -> nn.Module:
    """See :meth:`.EideticNetwork.extract`."""
    finished = network.finished_tasks
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < finished:
        known = f"finished tasks are 0..{finished - 1}" if finished else "no task is finished"
        raise TaskError(f"task {task!r} cannot be extracted: {known}. A task is finished by finish_task (train_task).")
    prefix = Prefix(network, task)
    head = plain_layer(prefix, [network.heads[task]])
    name = f"Task{task}Of{type(network).__name__}"
    try:
        with evaluating(network):
            graph, root = network.traced()
    except ConversionError:  # wired by hand, since forward cannot be traced
        plain = _around(_with_own_forward(network, prefix), head, name)
    else:
        plain = _plain_graph(graph, root, prefix, head, name)
    for path, module in plain.named_modules():
        if type(module).__module__.split(".")[0] == rules.OURS:
            raise ConversionError(f"{path!r}: {NO_TWIN.format(type(module).__name__)}")
    return plain


# ---- layers


# ---- attention, and tensors of the network's own


def _attention(module: HeadedAttention, prefix: Prefix) -> nn.Module:
    projections = dict(module.named_children())
    plain = {name: plain_layer(prefix, [projections[name]]) for name in (*PROJECTIONS, "out_proj")}
    heads = prefix.kept[module.query.segments].present(prefix.task) // module.head_dim
    given = heads, module.head_dim, plain
    if isinstance(module, EideticMultiheadAttention):
        return attention.traced(attention.MultiheadAttention(*given, batch_first=module.batch_first))
    if not isinstance(module, (EideticRelativeAttention, EideticWindowAttention)):
        raise ConversionError(NO_TWIN.format(type(module).__name__))
    tensors = {"position_bias": _values(module.position_bias, prefix), "positions": module.positions}
    if isinstance(module, EideticRelativeAttention):
        return attention.traced(attention.RelativeAttention(*given, scale=module.scale, **tensors))
    window = {"window": module.window_size, "shift": module.shift_size}
    if isinstance(module, EideticWindowAttentionV2):
        tensors["logit_scale"] = _values(module.logit_scale, prefix)
        return attention.traced(attention.CosineWindowAttention(*given, **window, **tensors))
    return attention.traced(attention.WindowAttention(*given, **window, **tensors))


def _values(layer: EideticParameter | EideticPositionNetwork, prefix: Prefix) -> Tensor:
    """What the layer's forward gives, of the units that are kept."""
    kept = [(units.start // layer.shared, units.stop // layer.shared) for _, units in prefix.rows(layer.segments)]
    rows = [layer.frozen_weight[start:stop] for start, stop in kept]
    values = torch.cat(rows) if rows else layer.frozen_weight[:0]
    return (values.t() if isinstance(layer, EideticPositionNetwork) else values.movedim(0, layer.dim)).contiguous()


def _shared(module: Shared, prefix: Prefix) -> nn.Module:
    """The parts, which read the same input, concatenated."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(f"part{number}", (x,)) for number in range(len(module))]
    graph.output(side_by_side(graph, made, unit_dim_of(module[0])))
    parts = {f"part{number}": plain_layer(prefix, [part]) for number, part in enumerate(module)}
    return fx.GraphModule(parts, graph, "Shared")


def _split(module: Split, prefix: Prefix) -> nn.Module:
    """The pieces, of as many units as are kept, each in memory of its own."""
    widths, pieces = module.sizes, [(number,) for number in range(len(module.sizes))]  # of the network's input
    if module.sources:
        widths, pieces = [prefix.kept[source.group].present(prefix.task) for source in module.sources], module.pieces
    spans = [Span(sum(widths[:number]), sum(widths[: number + 1])) for number in range(len(widths))]
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = []
    for piece in pieces:
        parts = [columns_of(graph, x, spans[number], module.unit_dim) for number in piece]
        alone = len(parts) == 1
        whole = graph.call_method("clone", (parts[0],)) if alone else side_by_side(graph, parts, module.unit_dim)
        made.append(whole)
    graph.output(tuple(made))
    return fx.GraphModule(nn.Module(), graph, "Split")


# ---- the network

# What reads its input by products, and what gives tensors that lie in another's memory, in another order.
_LINEAR = (EideticLinear, Shared, HeadedAttention)
_MOVES = (operator.getitem, torch.permute, torch.transpose, torch.swapaxes, "permute", "transpose", "swapaxes")


def _plain_graph(graph: fx.Graph, root: nn.Module, prefix: Prefix, head: nn.Module, name: str) -> nn.Module:
    """``graph`` with every layer's plain twin in its place, and ``head`` on its end."""
    plain, values, moved = fx.Graph(), {}, set()
    modules: dict[str, Any] = {}
    for node in graph.nodes:
        module = root.get_submodule(node.target) if node.op == "call_module" else None
        linear = isinstance(module, _LINEAR) or node.op == "output"
        for each in node.all_input_nodes if linear else ():
            if each in moved:  # a product's bits depend on where its input lies
                copied = {"memory_format": torch.contiguous_format}
                values[each] = plain.call_method("clone", (values[each],), copied)
                moved.remove(each)
        dense = linear or (isinstance(module, EideticLayerNorm) and module.unit_dim == -1)
        if node.target in _MOVES or (not dense and moved.intersection(node.all_input_nodes)):
            moved.add(node)
        if node.op == "output":
            path = "head"
            while any(target.split(".")[0] == path for target in modules):
                path += "_"
            modules[path] = head
            plain.output(plain.call_module(path, (values[node.args[0]],)))
            break
        shuffled = isinstance(module, Shuffle) and module.wired  # its readers' columns are in the input's order
        if shuffled or (module is not None and rules.module_rule(module) is rules.drops):
            values[node] = values[node.all_input_nodes[0]]
            continue
        if isinstance(module, EideticParameter):
            modules[node.target] = nn.Parameter(_values(module, prefix))
            values[node] = plain.get_attr(node.target)
            continue
        if isinstance(module, EideticScaledDotProduct):
            values[node] = _scaled_dot_product(plain, module, prefix, node, values)
            continue
        if isinstance(module, EideticMultiheadAttention):
            modules[node.target] = _twin(module, prefix)
            given = dict(zip(PROJECTIONS, node.args)) | node.kwargs
            values[node] = plain.call_module(node.target, tuple(values[given[name]] for name in PROJECTIONS))
            continue
        if module is not None:
            given = _takes_residual(module) and (*node.args[1:], node.kwargs.get("residual"))[0] is not None
            residual = {"residual": None} if given else {}
            modules[node.target] = _twin(module, prefix, **residual)
        elif node.op == "get_attr":
            modules[node.target] = copy.deepcopy(operator.attrgetter(node.target)(root))
        values[node] = plain.node_copy(node, lambda each: values[each])
        values[node].meta.clear()
    return fx.GraphModule(_tree(modules), plain, name).eval()


def _scaled_dot_product(
    plain: fx.Graph, module: EideticScaledDotProduct, prefix: Prefix, node: fx.Node, values: dict[fx.Node, fx.Node]
) -> fx.Node:
    """torch's function of the heads, all tasks' at once; none is what it is given."""
    given = dict(zip(("q", "k", "v", "is_causal", "scale"), node.args)) | node.kwargs
    heads = [values[given.pop(name)] for name in ("q", "k", "v")]
    if not prefix.kept[module.sources[0].group].present(prefix.task):
        return heads[0]
    heads = [plain.call_method("contiguous", (each,)) for each in heads]  # in memory of their own, as in the network
    return plain.call_function(F.scaled_dot_product_attention, tuple(heads), given)


def _tree(modules: dict[str, Any]) -> nn.Module:
    """A module that holds ``modules`` at their paths; a GraphModule takes them from it in the order of its graph."""
    root = nn.Module()
    for path, each in modules.items():
        *above, name = path.split(".")
        parent = root
        for step in above:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = getattr(parent, step)
        setattr(parent, name, each)
    return root


def _takes_residual(module: nn.Module) -> bool:
    """Whether the layer normalises its units, and may add a residual before their activation."""
    layer = module[0] if isinstance(module, Parts) else module
    return isinstance(layer, EideticBatchNorm) or getattr(layer, "norm", None) is not None


def _twin(module: nn.Module, prefix: Prefix, **residual: float | None) -> nn.Module:
    if isinstance(module, SegmentedLayer):
        return plain_layer(prefix, [module], **residual)
    if isinstance(module, Parts):
        return plain_layer(prefix, list(module), **residual)
    if isinstance(module, Shared):
        return _shared(module, prefix)
    if isinstance(module, HeadedAttention):
        return _attention(module, prefix)
    if isinstance(module, Split):
        return _split(module, prefix)
    if isinstance(module, Shuffle):
        return nn.ChannelShuffle(module.groups)
    return copy.deepcopy(module).eval()


def _with_own_forward(network: BaseNetwork, prefix: Prefix) -> nn.Module:
    """A module with the network's own forward, methods and attributes, its layers being plain ones."""
    twin = copy.deepcopy(network)
    twin.heads = nn.ModuleList()
    for path, module in network.named_modules():
        if isinstance(module, SegmentedLayer) and module not in set(network.heads) and not module.attached:
            # Whether its forward gives a residual is not known here: without one, what leaves every bit is added.
            residual = {"residual": -0.0} if _takes_residual(module) else {}
            twin.set_submodule(path, plain_layer(prefix, [module], **residual))
        elif rules.module_rule(module) is rules.drops:
            twin.set_submodule(path, nn.Identity())
    kinds = type(network).__mro__
    facade = next(kind for kind in kinds if BaseNetwork in kind.__bases__)
    skipped = ("__dict__", "__weakref__", "__init__", "__new__", "connections")
    members = {
        name: value
        for kind in reversed(kinds[: kinds.index(facade)])
        for name, value in vars(kind).items()
        if name not in skipped
    }
    body = type(f"Plain{type(network).__name__}", (nn.Module,), members)()
    ours = vars(facade())
    for name, value in vars(twin).items():
        if name in ("_modules", "_parameters", "_buffers"):
            vars(body)[name].update({key: each for key, each in value.items() if key not in ours[name]})
        elif name not in ours:
            vars(body)[name] = value
    return body


def _around(body: nn.Module, head: nn.Module, name: str) -> nn.Module:
    graph = fx.Graph()
    graph.output(graph.call_module("head", (graph.call_module("body", (graph.placeholder("x"),)),)))
    return fx.GraphModule({"body": body, "head": head}, graph, name).eval()
