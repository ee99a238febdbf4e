"""What a capture would lose of a module, and what is refused therefore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ConversionError


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


def refuse_forward_hooks(module: nn.Module) -> None:
    """Raise ConversionError for modules with forward hooks, or a forward of their own beside their class's."""
    for path, each in module.named_modules():
        own = vars(each).get("forward")  # one of the module's methods goes with a copy, another function does not
        foreign = own is not None and getattr(own, "__self__", None) is not each
        if each._forward_hooks or each._forward_pre_hooks or foreign:
            raise ConversionError(
                f"{path!r} has hooks, or a forward of its own beside its class's, which would be lost or could mix "
                "units. Remove them first; hooks can be registered on the converted network."
            )


def refuse_changes(module: nn.Module, before: Mapping[str, Any]) -> None:
    """Raise ConversionError where forward changed ``module``, whose state was ``before``."""
    after = module_state(module)
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


def module_state(module: nn.Module) -> dict[str, Any]:
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
