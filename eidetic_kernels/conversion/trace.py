"""Records a plain module's forward as a graph with one input, and refuses what a trace does not hold."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..wiring import tracing


def refuse_gradient_hooks(module: nn.Module) -> None:
    """Raise ConversionError for hooks that neither a trace nor a copy of ``module`` would hold."""
    hooked = [path for path, each in module.named_parameters() if _hooks(each)]
    hooked += [path for path, each in module.named_modules() if each._backward_hooks or each._backward_pre_hooks]
    if module._forward_hooks or module._forward_pre_hooks:
        hooked.append("")
    if hooked:
        raise ConversionError(
            f"{', '.join(repr(path) if path else 'the module itself' for path in hooked)}: hooks (register_hook, "
            "register_full_backward_hook, a forward hook of the whole module) would be lost. Remove them; they can be "
            "registered on the converted network."
        )


def _hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def trace(module: nn.Module) -> fx.Graph:
    """The graph of ``module``'s forward in the mode it is in, in which changes in place are nodes.

    Raises ConversionError when forward takes several inputs, cannot be traced, or changes the module itself.
    """
    before, attributes = _state(module), {each: dict(vars(each)) for each in module.modules()}
    graph = tracing.graph_of(module, _defaults(module), in_place=True)
    after = _state(module)

    for each, held in attributes.items():  # what forward keeps for later (features to look at) are the trace's proxies
        for name in [name for name in vars(each) if name not in held and not name.startswith("_tensor_constant")]:
            del vars(each)[name]
        vars(each).update(held)

    changed = [path for path, state in before.items() if state != after.get(path)]
    if changed:
        owner = module.get_submodule(changed[0].rpartition(".")[0])
        others = f" (and {len(changed) - 1} others)" if len(changed) > 1 else ""
        raise ConversionError(
            f"{type(owner).__name__}.forward changes {changed[0]!r}{others} of the module whenever it runs, in "
            f"{'training' if module.training else 'evaluation'} mode. A converted network would not; and what a module "
            "counts or averages, every task would change. Leave it out, keep it outside of the module, or give "
            f"{type(owner).__name__} a rule (ek.register_rule), so that its forward is not looked into."
        )
    return _one_input(graph)


def _state(module: nn.Module) -> dict[str, Any]:
    """What forward could change without a trace showing it: attributes, and tensors with their versions."""
    state: dict[str, Any] = {}
    for path, each in module.named_modules():
        prefix = f"{path}." if path else ""
        numbers = {name: value for name, value in vars(each).items() if isinstance(value, (int, float, str))}
        tensors = [*each.named_parameters(recurse=False), *each.named_buffers(recurse=False)]
        held = {name: value for name, value in vars(each).items() if isinstance(value, Tensor)}
        state |= {prefix + name: value for name, value in numbers.items()}
        state |= {prefix + name: (id(tensor), _version(tensor)) for name, tensor in [*tensors, *held.items()]}
    return state


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _defaults(module: nn.Module) -> dict[str, Any] | None:
    """The defaults of forward's arguments after the first; None if it has no others."""
    first, *others = inspect.signature(module.forward).parameters.values()
    named = [p for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in named if p.default is p.empty]
    if missing:
        raise ConversionError(
            f"{type(module).__name__}.forward takes several inputs ({first.name}, {', '.join(missing)}); a network has "
            "one. Wrap the module in one that takes a single tensor."
        )
    return {p.name: p.default for p in named} or None


def _one_input(graph: fx.Graph) -> fx.Graph:
    """``graph`` without the placeholders that torch.fx makes for defaults, and without the assertions about them."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        for user in list(node.users):
            for last in list(user.users):
                graph.erase_node(last)
            graph.erase_node(user)
        graph.erase_node(node)
    return graph
