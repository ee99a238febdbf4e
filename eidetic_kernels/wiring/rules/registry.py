"""Which operation has which rule, for torch's and for users' own."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from ...checking import function, shown
from ...errors import InputError
from ...layers import SegmentedLayer
from .step import Rule, Step

MODULES: dict[type[nn.Module] | str, Rule] = {}
FUNCTIONS: dict[Callable[..., Any] | str, Rule] = {}
METHODS: dict[str, Rule] = {}
REGISTERED: dict[type[nn.Module] | str, Rule] = {}  # those of modules that users registered
OPERATIONS: dict[str, Rule] = {}  # those of operations that users registered, by torch's name


def register_rule(target: type[nn.Module] | Callable[..., Any] | str, rule: Rule) -> None:
    """Register what an operation does to unit groups, for tracing and for ``ek.convert``.

    A later call for the same operation replaces an earlier one.

    Args:
        target: a module class, its qualified name ("package.module.Class", for a package that need not be
            installed), a function, or a tensor method's name. Modules and functions that have a rule are not traced
            into.
        rule: one of ``ek.rules.passes`` (units stay apart, in order; one tensor), ``ek.rules.passes_images`` (the
            same, but for images only, whose size may change), ``ek.rules.ties`` (any number of tensors, unit by
            unit), ``ek.rules.flattens``, ``ek.rules.concatenates``, ``ek.rules.refuses("why")``; or a function of a
            :class:`Step` that returns the node's value.

    :func:`.convert` looks into every module but those with a rule of their own class: these are kept whole, with
    ``passes``, ``drops`` or ``refuses``. Of operations it asks for the rule of torch's name ("special_bessel_j0"),
    with ``passes``, ``ties``, ``flattens`` or ``refuses``.

    A rule is a promise: if the operation mixes units after all, tasks mix. A tensor that the rule does not ask for
    (``step.first()``, ``step.of(argument)``) is refused. A module with parameters of its own is refused whatever its
    rule, since every task would train them.

    Raises InputError when ``target`` or ``rule`` is none of these.
    """
    function("rule", rule, "a function of a step, such as ek.rules.passes")
    if isinstance(target, type) and issubclass(target, nn.Module):
        MODULES[target] = REGISTERED[target] = rule
    elif isinstance(target, str):
        (MODULES if "." in target else METHODS)[target] = rule
        if "." in target:
            REGISTERED[target] = rule
        else:
            OPERATIONS[target] = rule
    elif callable(target) and not isinstance(target, type):
        FUNCTIONS[target] = rule
        if (getattr(target, "__module__", None) or "torch").partition(".")[0] in ("torch", "_operator"):
            OPERATIONS[target.__name__] = rule
    else:
        raise InputError(f"target must be a module class, a function, or a tensor method's name; got {shown(target)}.")


def rule_of(step: Step) -> Rule | None:
    """The rule for a node that calls something; None where there is none."""
    target = step.node.target
    if step.node.op == "call_module":
        return module_rule(step.module)
    if isinstance(target, str):
        return METHODS.get(target)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return FUNCTIONS.get(target) or FUNCTIONS.get(name)


def module_rule(module: nn.Module) -> Rule | None:
    """The rule for a module: its class's, or that of the class it has its forward from."""
    for cls in type(module).__mro__:
        rule = MODULES.get(cls) or MODULES.get(_name(cls))
        if rule is not None:
            return rule if isinstance(module, SegmentedLayer) or type(module).forward is cls.forward else None
    return None


def leaves(module: nn.Module) -> bool:
    """Whether tracing stops at ``module``: it is ours, or there is a rule for its very class."""
    cls = type(module)
    return isinstance(module, SegmentedLayer) or cls in MODULES or _name(cls) in MODULES


def wrapped_functions() -> tuple[Callable[..., Any], ...]:
    """Python functions that have a rule, which tracing must not look into."""
    return tuple(f for f in FUNCTIONS if isinstance(f, FunctionType) and f.__module__.split(".")[0] != "torch")


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
