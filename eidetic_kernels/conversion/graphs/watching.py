"""Sees what forward changes of the module itself while it is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ...errors import ConversionError
from .capture import Captured

_OF_TORCH = frozenset(vars(nn.Module()))  # hooks, parameters, and the mode


@contextmanager
def watched(module: nn.Module) -> Iterator[list[str]]:
    """Inside, ``module.forward`` leaves its modules' attributes as they were.

    The list gets the paths of numbers and tensors that it replaced. What forward puts where nothing was (to be looked
    at later) is taken away and not listed.
    """
    changed: list[str] = []
    own = vars(module).get("forward")
    forward = module.forward

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        before = _attributes(module)
        try:
            with _Telling():
                return forward(*args, **kwargs)
        finally:
            changed.extend(_restore(module, before))

    module.forward = run
    try:
        yield changed
    finally:
        del module.forward
        if own is not None:
            module.forward = own


class _Telling(TorchFunctionMode):
    """Refuses what a graph does not show: attributes of a tensor that are set, and hooks on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__set__" and args[1] is not True:  # requires_grad = True changes no number
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            raise ConversionError(
                f"forward sets {name!r} of a tensor, which its graph does not show. Compute a new tensor instead "
                "(detach() for one without a gradient)."
            )
        if name in ("register_hook", "register_post_accumulate_grad_hook", "retain_grad"):
            raise ConversionError(f"forward calls {name} of a tensor, which would be lost. Leave it out.")
        return func(*args, **(kwargs or {}))


def _attributes(module: nn.Module) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of each module its attributes and its buffers."""
    found = {}
    for path, each in module.named_modules():
        own = {name: value for name, value in vars(each).items() if name not in _OF_TORCH}
        found[path] = (own, dict(each._buffers))
    return found


def _restore(module: nn.Module, before: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Put attributes back; returns the paths of those that held a number or a tensor and were replaced."""
    changed = []
    for path, each in module.named_modules():
        if path not in before:
            continue
        prefix = f"{path}." if path else ""
        attributes, buffers = before[path]
        for held, old in ((vars(each), attributes), (each._buffers, buffers)):
            for name in [name for name in held if name not in old and (held is each._buffers or name not in _OF_TORCH)]:
                del held[name]
            for name, value in old.items():
                now = held.get(name)
                if now is not value and not (
                    type(now) is type(value) and not isinstance(value, Tensor) and now == value
                ):
                    held[name] = value
                    if isinstance(value, (int, float, str, Tensor)):
                        changed.append(prefix + name)
    return changed


def changed_in_place(captured: Captured) -> list[str]:
    """The paths of parameters and buffers that the graph changes in place, statistics of BatchNorm's own left out."""
    views: dict[fx.Node, fx.Node] = {}
    changed = []
    for node in captured.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        for argument, given in zip(target._schema.arguments, node.args):
            if argument.alias_info is None or not isinstance(given, fx.Node):
                continue
            whole = views.get(given, given)
            if not argument.alias_info.is_write:
                views[node] = whole
                continue
            path = captured.held.get(whole.name, "")
            if path and path not in captured.constants and not path.endswith("num_batches_tracked"):
                changed.append(path)
    return changed


def refuse_changes(module: nn.Module, changed: list[str]) -> None:
    """Raise ConversionError where forward changed something of ``module``."""
    changed = list(dict.fromkeys(changed))
    if changed:
        owner = module.get_submodule(changed[0].rpartition(".")[0])
        others = f" (and {len(changed) - 1} others)" if len(changed) > 1 else ""
        raise ConversionError(
            f"{type(owner).__name__}.forward changes {changed[0]!r}{others} of the module whenever it runs, in "
            f"{'training' if module.training else 'evaluation'} mode. A converted network would not; and what a module "
            "counts or averages, every task would change. Leave it out, keep it outside of the module, or give "
            f"{type(owner).__name__} a rule (ek.register_rule), so that its forward is not looked into."
        )
