"""Small questions about a captured graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from ...errors import ConversionError


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """``node.args``: of what type they are, its operation knows."""
    return cast("tuple[Any, ...]", node.args)


def target_of(node: fx.Node) -> Any:
    """``node.target``, which a ``call_function`` node calls."""
    return node.target


def operation(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


def leaves(value: Any) -> Iterator[Any]:
    """What stands in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def module_path(node: fx.Node) -> str:
    """The path of the module in whose forward ``node`` is; "" for the whole module's."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def symbols_of(node: fx.Node, dim: int | None = None) -> frozenset[Any]:
    """The symbols in a node's number; in the size of its dimension ``dim``, where it is a tensor."""
    value = node.meta.get("val")
    value = value if dim is None else value.shape[dim] if value is not None and value.dim() else None
    symbolic = isinstance(value, (torch.SymInt, torch.SymFloat))
    return frozenset(value.node.expr.free_symbols) if symbolic else frozenset()


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
        if value.node.hint is None:
            raise ConversionError("a size depends on values (nonzero, a mask as an index), so its graph has no sizes.")
        return value.node.hint
    if isinstance(value, (list, tuple)):
        return (
            type(value)(concrete(each) for each in value)
            if not isinstance(value, torch.Size)
            else tuple(concrete(each) for each in value)
        )
    return value


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor in the example."""
    return tuple(int(concrete(size)) for size in node.meta["val"].shape)


def runs_of_a_view(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions before and after a view, in the smallest runs that hold the same numbers."""
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ins, outs, a, b = [], [], 1, 1
        while True:
            if a == b and ins and outs:
                break
            if (a <= b and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                a *= old[i]
                ins.append(i)
                i += 1
            else:
                b *= new[j]
                outs.append(j)
                j += 1
        runs.append((ins, outs))
    return runs
