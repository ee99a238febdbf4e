"""Finds the layer that becomes task 0's head, and what of the graph makes its features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..checking import nearest, shown
from ..errors import ConversionError, InputError
from ..wiring.diagnostics import at_node
from .graphs.capture import Captured
from .graphs.nodes import args_of, is_tensor, leaves, module_path, operation, shape_of

# Operations that leave the head's numbers as they are. Dropout of logits is nothing that a head does.
_NOTHING = ("dropout", "contiguous", "alias", "clone", "detach", "eidetic_kernels::mark")
_RESHAPING = ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "squeeze_", "mean")
# Operations that pick among positions: the features are picked in place of the logits.
_PICKING = ("select", "index", "slice", "squeeze", "mean")


@dataclass(frozen=True)
class Head:
    """Where a graph ends.

    Args:
        end: the node of the logits.
        features: the node of the features [N, units] that they are made of; ``end`` itself without a classifier.
        classifier: the layer between them; None where there is none, and the features are the output.
        layer: its node.
    """

    end: fx.Node
    features: fx.Node
    classifier: nn.Linear | None
    layer: fx.Node | None = None


def find_head(plain: nn.Module, captured: Captured, head: str | bool | None) -> Head:
    """The head of ``captured``, the graph of ``plain``; ``head`` as in :func:`.convert`.

    The graph gets nodes that pick features, where logits were picked. Raises ConversionError and InputError.
    """
    ends = ends_of(plain, captured, head)
    name = type(plain).__name__
    if not isinstance(head, str) and head is not None and head is not False:
        raise InputError(f"head must be a layer's path, None (the last layer) or False (none); got {shown(head)}.")
    if len(ends) != 1:
        raise ConversionError(
            f"{name}.forward must return one tensor, logits [N, classes] or features [N, units]; it returned "
            f'{len(ends)}. Name the layer that makes the logits (head="path"), or wrap the module in one that '
            "returns one tensor."
        )
    (end,) = ends
    if head is not False:
        found = _classifier(plain, captured, end)
        if found is not None:
            return found
    if len(shape_of(end)) != 2:
        raise ConversionError(
            f"{name}.forward must return logits [N, classes] or features [N, units]; it returned a tensor of shape "
            f'{list(shape_of(end))}. Name the layer that makes the logits (head="path"), or wrap the module in one '
            "that returns one tensor."
        )
    return Head(end, end, None)


def ends_of(plain: nn.Module, captured: Captured, head: str | bool | None) -> list[fx.Node]:
    """The nodes that may be the logits: what the layer ``head`` makes, if this is a path, or what forward returns."""
    if isinstance(head, str):
        return [_only_call(plain, captured, head)]
    return [each for each in leaves(captured.outputs) if isinstance(each, fx.Node) and is_tensor(each)]


def _refuse_computed(node: fx.Node) -> None:
    """Raise ConversionError where the weight or bias of the last layer is computed of others."""
    computed = [each for each in args_of(node)[1:] if isinstance(each, fx.Node) and each.op != "placeholder"]
    if computed:
        path = module_path(node)
        raise at_node(node).refused(
            f"the weight of the last layer, {path!r}, is computed, which a head's is not. Is it parametrized "
            "(weight_norm, spectral_norm)? Make it a weight again: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )


def _only_call(plain: nn.Module, captured: Captured, head: str) -> fx.Node:
    linear = [path for path, each in plain.named_modules() if isinstance(each, nn.Linear)]
    calls = [
        node
        for node in captured.graph.nodes
        if node.op == "call_function"
        and operation(node) == "linear"
        and (_weight(captured, node) == f"{head}.weight" or module_path(node) == head)
    ]
    if len(calls) != 1:
        raise ConversionError(
            f"head={shown(head)} must name a linear layer that {type(plain).__name__}.forward calls once"
            f"{nearest(head, linear)}. Linear layers: {', '.join(linear) or 'none'}."
        )
    _refuse_computed(calls[0])
    layer = plain.get_submodule(head)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ConversionError(f"{head!r} has hooks, which a head has not. Remove them, and the conversion goes on.")
    return calls[0]


def _classifier(plain: nn.Module, captured: Captured, end: fx.Node) -> Head | None:
    """The linear layer that makes ``end``, but for operations that pick positions or change nothing."""
    last, picking, pooling = end, [], []
    while last.op == "call_function":
        name, given = operation(last), args_of(last)[0] if last.args else None
        if not isinstance(given, fx.Node) or not is_tensor(given):
            return None
        shape, before = shape_of(last), shape_of(given)
        if name in ("softmax", "log_softmax") and operation(given) == "linear" and len(shape) == 2:
            path = (_weight(captured, given) or "").rpartition(".")[0]
            raise ConversionError(
                f"forward turns the logits of {path!r} into probabilities ({name}), which a head does not: name that "
                f"layer, convert(..., head={path!r}), and train with cross_entropy, which takes logits."
            )
        if name in _NOTHING or (name in _RESHAPING and shape == before and name != "mean"):
            last = given
        elif name in _PICKING and _keeps_last(last, shape, before):
            picking.append(last)
            last = given
        elif _is_pooling(last, shape, before):
            pooling.append(last)
            last = given
            if operation(last) == "conv2d":
                return _of_convolution(captured, plain, end, last, pooling)
        else:
            break
    if operation(last) != "linear" or not isinstance(args_of(last)[1], fx.Node):
        return None
    _refuse_computed(last)
    weight, bias = _weight(captured, last), _tensor(plain, captured, args_of(last)[2] if len(last.args) > 2 else None)
    if weight is None or (len(last.args) > 2 and args_of(last)[2] is not None and bias is None):
        return None
    if len(shape_of(last)) - len(shape_of(end)) and not picking or len(shape_of(end)) != 2:
        return None
    features = args_of(last)[0]
    graph = captured.graph
    with graph.inserting_before(end):
        for each in reversed(picking):
            made = graph.call_function(each.target, (features, *args_of(each)[1:]), dict(each.kwargs))
            like = each.meta["val"]
            made.meta = {**each.meta, "val": like.new_empty(*like.shape[:-1], shape_of(features)[-1])}
            features = made
    return Head(end, features, _linear(_tensor(plain, captured, args_of(last)[1]), bias), last)


def _is_pooling(node: fx.Node, shape: Any, before: Any) -> bool:
    """Whether ``node`` averages images, or makes vectors of images of one pixel."""
    name = operation(node)
    if (
        before is None
        or len(before) != 4
        or shape[:2] != before[:2]
        or name not in (*_RESHAPING, "adaptive_avg_pool2d")
    ):
        return False
    if name == "adaptive_avg_pool2d":
        return shape[2:] == (1, 1)
    if name == "mean":
        return sorted(d % 4 for d in args_of(node)[1] or ()) == [2, 3]
    return set(before[2:]) == {1}


def _of_convolution(
    captured: Captured, plain: nn.Module, end: fx.Node, last: fx.Node, pooling: list[fx.Node]
) -> Head | None:
    """A convolution by kernels of one pixel whose results are averaged, as a linear layer that reads averages.

    The sums are added up in another order than the original's, so the last bits may be others.
    """
    if not isinstance(args_of(last)[1], fx.Node) or len(shape_of(end)) != 2:
        return None
    weight = _tensor(plain, captured, args_of(last)[1])
    given = args_of(last)[0]
    if weight is None or tuple(weight.shape[2:]) != (1, 1) or weight.shape[1] != shape_of(given)[1]:
        return None
    settings = [list(each) for each in args_of(last)[3:5]]
    if settings != [[1, 1], [0, 0]][: len(settings)]:
        return None
    bias = _tensor(plain, captured, args_of(last)[2] if len(last.args) > 2 else None)
    graph = captured.graph
    features = given
    with graph.inserting_before(end):
        for each in [*reversed(pooling), None]:
            like = last.meta["val"] if each is None else each.meta["val"]
            if each is None:
                features = graph.call_function(torch.ops.aten.flatten.using_ints, (features, 1))
                shape = (like.shape[0], weight.shape[1])
            elif operation(each) in ("view", "reshape", "_unsafe_view", "flatten", "squeeze", "squeeze_"):
                continue  # it named the classes perhaps
            else:
                features = graph.call_function(each.target, (features, *args_of(each)[1:]), dict(each.kwargs))
                shape = (like.shape[0], weight.shape[1], *like.shape[2:])
            features.meta = {**last.meta, "val": like.new_empty(shape)}
    return Head(end, features, _linear(weight.flatten(1), bias), last)


def _keeps_last(node: fx.Node, shape: Any, before: Any) -> bool:
    """Whether ``node`` picks or averages along dimensions other than the last."""
    if not before or shape[-1] != before[-1]:
        return False
    name, rank = operation(node), len(before)
    if name == "index":
        picked = [n for n, each in enumerate(args_of(node)[1]) if each is not None]
        return max(picked) < rank - 1
    if name == "mean":
        dims = args_of(node)[1] if len(node.args) > 1 else None
        return bool(dims) and rank - 1 not in [d % rank for d in dims]
    if name == "squeeze":
        return len(shape) == 2
    dim = args_of(node)[1] if len(node.args) > 1 else 0
    return dim % rank != rank - 1


def _weight(captured: Captured, node: fx.Node) -> str | None:
    return captured.held.get(getattr(args_of(node)[1], "name", ""))


def _tensor(plain: nn.Module, captured: Captured, node: Any) -> Tensor | None:
    path = captured.held.get(getattr(node, "name", ""))
    if path is None or path in captured.constants:
        return None
    owner, _, name = path.rpartition(".")
    return getattr(plain.get_submodule(owner), name)


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear | None:
    if weight is None:
        return None
    new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return new


def cut_at(captured: Captured, features: fx.Node) -> Captured:
    """``captured`` with ``features`` as its output, and without what these do not need."""
    graph = captured.graph
    graph.erase_node(graph.output_node())
    graph.output(features)
    for node in reversed(list(graph.nodes)):
        if node.op not in ("output", "placeholder") and not node.users:
            graph.erase_node(node)
    return dataclasses.replace(captured, outputs=features)
