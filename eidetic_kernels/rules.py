"""What each operation does to unit groups: one small rule an entry, open to users.

A rule is a function of a :class:`Step`, one node of the traced graph. It returns the value that the node makes
(:class:`.graph.Units`, ``INPUT``, or None for what is no tensor of units: a size, a number), or refuses. A silent
guess would let tasks mix, so what has no rule is refused.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .errors import ConversionError, InputError
from .graph import INPUT, Builder, Units
from .layers import (
    EideticBatchNorm,
    EideticDropout,
    EideticGroupedConv2d,
    EideticStochasticDepth,
    SegmentedLayer,
    Shuffle,
    Split,
    StaircaseLayer,
)

OURS = __name__.split(".")[0]


class Step:
    """One node of the traced graph, as a rule sees it.

    ``node`` is torch.fx's, ``values`` the value of every node before it, ``builder`` what ties and concatenates.
    ``prefix`` stands before the graph's module paths in the network.
    """

    def __init__(self, builder: Builder, node: fx.Node, values: dict[fx.Node, Any], prefix: str = ""):
        self.builder, self.node, self.values, self.prefix = builder, node, values, prefix

    @property
    def path(self) -> str:
        """The path of the module that is called."""
        return self.prefix + self.node.target

    @property
    def module(self) -> nn.Module:
        return self.builder.modules[self.path]

    def first(self) -> Any:
        """The value operated on: the first argument, or the one named ``input`` or ``x``."""
        return self.of(self.first_argument())

    def first_argument(self) -> Any:
        named = [self.node.kwargs[name] for name in ("input", "x", "tensors") if name in self.node.kwargs]
        return (*self.node.args, *named, None)[0]

    def of(self, argument: Any) -> Any:
        """The value of an argument; None for a constant."""
        return self.values[argument] if isinstance(argument, fx.Node) else None

    def rest(self, *named: tuple[str, Any]) -> list[Any]:
        """Arguments after the first, by position or name, with defaults."""
        given = self.node.args[1:]
        return [
            given[i] if i < len(given) else self.node.kwargs.get(name, default)
            for i, (name, default) in enumerate(named)
        ]

    def shape(self, argument: Any) -> tuple[int, ...] | None:
        """The shape of an argument's tensor where an example went through (``ek.convert``)."""
        return argument.meta.get("shape") if isinstance(argument, fx.Node) else None

    def where(self) -> str:
        """The node and the user's line it comes from: the innermost frame that is not torch's."""
        frames = re.findall(r'(File "([^"]+)".*\n.*)', self.node.stack_trace or "")
        frames = [frame for frame, file in frames if f"{os.sep}torch{os.sep}" not in file]
        place = f" ({' '.join(frames[-1].split())})" if frames else ""
        return f"node {self.node.name!r} [{self.node.op} {self.node.target}]{place}"

    def refuse(self, reason: str) -> None:
        """Raise ConversionError for this node."""
        raise ConversionError(
            f"{self.where()}: {reason}\nWays out: use a layer that keeps units apart, tell what the operation does "
            "(ek.register_rule), or declare the wiring by hand (connections() on the network)."
        )


Rule = Callable[[Step], Any]


def value_of(step: Step) -> Any:
    """The value that a node makes of its arguments' values, by the rule for it."""
    value = _OPERATIONS[step.node.op](step)
    shape = step.shape(step.node)
    if isinstance(value, Units) and value.spatial and value.pixels is None and shape is not None:
        value = replace(value, pixels=torch.Size(shape[2:]).numel())
    return value


# ---- the registry

MODULES: dict[type[nn.Module] | str, Rule] = {}
FUNCTIONS: dict[Callable, Rule] = {}
METHODS: dict[str, Rule] = {}


def register_rule(target: type[nn.Module] | Callable | str, rule: Rule) -> None:
    """Tell what an operation does to unit groups, for tracing and for ``ek.convert``; the last word counts.

    Args:
        target: a module class, its qualified name ("package.module.Class", for a package that need not be
            installed), a function, or a tensor method's name. Modules and functions that have a rule are not traced
            into.
        rule: one of ``ek.rules.passes`` (units stay apart, in order), ``ek.rules.passes_images`` (the same, but for
            images only, whose size may change), ``ek.rules.ties`` (two operands, unit by unit), ``ek.rules.flattens``,
            ``ek.rules.concatenates``, ``ek.rules.refuses("why")``; or a function of a :class:`Step` that returns the
            node's value.

    A rule is a promise: if the operation mixes units after all, tasks mix. A module with parameters of its own is
    refused whatever its rule, since every task would train them.

    Raises InputError when ``target`` or ``rule`` is nothing of the kind.
    """
    if not callable(rule):
        raise InputError(f"a rule is a function of a step, such as ek.rules.passes; got {rule!r}.")
    if isinstance(target, type) and issubclass(target, nn.Module):
        MODULES[target] = rule
    elif isinstance(target, str):
        (MODULES if "." in target else METHODS)[target] = rule
    elif callable(target) and not isinstance(target, type):
        FUNCTIONS[target] = rule
    else:
        raise InputError(
            f"a rule is registered for a module class, a function, or a tensor method's name; got {target!r}."
        )


def module_rule(module: nn.Module) -> Rule | None:
    """The rule for a module: its class's, or that of the class it has its forward from."""
    for cls in type(module).__mro__:
        rule = MODULES.get(cls) or MODULES.get(f"{cls.__module__}.{cls.__qualname__}")
        if rule is not None:
            return rule if isinstance(module, SegmentedLayer) or _same_forward(type(module), cls) else None
    return None


def leaves(module: nn.Module) -> bool:
    """Whether tracing stops at ``module``: it is ours, or there is a rule for its very class."""
    cls = type(module)
    return isinstance(module, SegmentedLayer) or cls in MODULES or f"{cls.__module__}.{cls.__qualname__}" in MODULES


def wrapped_functions() -> tuple[Callable, ...]:
    """Python functions that have a rule, which tracing must not look into."""
    return tuple(f for f in FUNCTIONS if isinstance(f, FunctionType) and f.__module__.split(".")[0] != "torch")


def _same_forward(cls: type, base: type) -> bool:
    return cls.forward is base.forward


# ---- rules


def passes(step: Step) -> Any:
    """Units stay apart and in order."""
    return step.first()


def passes_images(step: Step) -> Any:
    """The same for images only, whose size may change; over flat units it would mix neighbours."""
    value = step.first()
    if value is INPUT:
        return INPUT
    if step.node.op == "call_module":
        operation, output_size = type(step.module).__name__, getattr(step.module, "output_size", None)
    else:
        operation = getattr(step.node.target, "__name__", step.node.target)
        output_size = step.rest(("output_size", None))[0]
    if not isinstance(value, Units) or not value.spatial:
        step.refuse(f"{operation} over units without pixels would mix neighbouring units.")
    if "adaptive" not in operation.lower():
        return replace(value, pixels=None)
    sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    return replace(value, pixels=None if None in sides else sides[0] * sides[1])


def ties(step: Step) -> Any:
    """Operands are combined unit by unit: their groups become one. Numbers change nothing."""
    given = [*step.node.args[:2], *(step.node.kwargs.get(name) for name in ("input", "other"))]
    operands = [value for value in map(step.of, given) if value is not None]
    if not operands:
        return None
    if len(operands) == 1:
        return operands[0]
    return step.builder.tie(*operands, step.where())


def flattens(step: Step) -> Any:
    """``flatten(1)``: pixels are folded into units."""
    value = step.first()
    if value is INPUT:
        return INPUT
    if step.node.op == "call_module":
        start, end = step.module.start_dim, step.module.end_dim
    else:
        start, end = step.rest(("start_dim", 0), ("end_dim", -1))
    shape = step.shape(step.first_argument())
    if start != 1 or end not in (-1, None if shape is None else len(shape) - 1):
        step.refuse(f"flattening dimensions {start} to {end} mixes samples or units: flatten from 1 to -1.")
    return value.flattened()


def reshapes(step: Step) -> Any:
    """``view`` and ``reshape``, understood as flattening."""
    value = step.first()
    if value is INPUT:
        return INPUT
    shape = step.node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    if len(shape) == 2 and isinstance(shape[0], fx.Node) and shape[1] == -1:
        return value.flattened()
    step.refuse("only x.view(x.size(0), -1) is understood: it folds pixels into units. Use x.flatten(1).")


def averages(step: Step) -> Any:
    """A mean over space."""
    value = step.first()
    dims, keep = step.rest(("dim", None), ("keepdim", False))
    dims = {dims} if isinstance(dims, int) else set(dims or ())
    if value is INPUT:
        return INPUT
    if not dims or dims & {0, 1, -3, -4}:
        step.refuse(f"a mean over dimensions {sorted(dims) or 'all'} mixes units; only space may be averaged.")
    if dims not in ({2, 3}, {-1, -2}) or not value.spatial:
        step.refuse("a mean over one side of an image is not understood: average over both.")
    return replace(value, spatial=bool(keep), pixels=1)


def concatenates(step: Step) -> Any:
    """Groups are put side by side in dimension 1."""
    tensors = step.first_argument()
    (dim,) = step.rest(("dim", 0))
    pieces = step.of(tensors)  # of a split, as they are
    values = pieces if isinstance(pieces, list) else []
    if isinstance(tensors, (list, tuple)):
        values = [step.of(tensor) for tensor in tensors]
    if all(value is None or value is INPUT for value in values):
        return INPUT if any(value is INPUT for value in values) else unknown(step)
    unit_dims = {1, -3} if any(isinstance(value, Units) and value.spatial for value in values) else {1, -1}
    if dim not in unit_dims:
        step.refuse(f"a concatenation in dimension {dim} does not put units side by side: concatenate in dimension 1.")
    return step.builder.concatenate(values, step.where())


def splits(step: Step) -> Any:
    """``chunk`` and ``split``: a layer's units would be shared out by counts that pruning changes."""
    value = step.first()
    if isinstance(value, Units):
        step.refuse(
            "it cuts units apart at a fixed place, which pruning would move. Give each part a layer of its own, and "
            "concatenate them where they are read together (ek.convert understands it in dimension 1)."
        )
    return unknown(step)


def separates(step: Step) -> Any:
    """A split that knows the groups it cuts apart."""
    value = step.first()
    if value is not INPUT and not isinstance(value, Units):
        return unknown(step)
    return step.builder.divide(step.path, value, step.module.sizes, step.where())


def shuffles(step: Step) -> Any:
    """A channel shuffle that leaves groups side by side."""
    value = step.first()
    return step.builder.shuffle(step.path, value, step.module.groups) if isinstance(value, Units) else unknown(step)


def drops(step: Step) -> Any:
    """Dropout and stochastic depth: they leave frozen units alone."""
    return step.builder.drop(step.path, step.first(), step.where())


def produces(step: Step) -> Any:
    """A layer that makes units."""
    shape = step.shape(step.first_argument())
    if shape is not None and not isinstance(step.module, EideticBatchNorm) and len(shape) not in (2, 4):
        step.refuse(
            f"it reads a tensor of shape {list(shape)}; units are counted in dimension 1, so a linear layer reads "
            "[N, K] and a convolution [N, K, H, W]. Flatten the input (x.flatten(1))."
        )
    return step.builder.produce(step.path, step.first(), step.where())


def follows(step: Step) -> Any:
    """A layer of ours that treats each unit by itself."""
    return step.builder.follow(step.path, step.first(), step.where())


def filters(step: Step) -> Any:
    """A grouped convolution: each group of units by itself."""
    value = step.first()
    if not isinstance(value, Units) or not value.spatial:
        step.refuse(
            "a grouped or depthwise convolution follows the units of an image; what it is given here belongs to no "
            "task or has no pixels. Begin with an ordinary convolution."
        )
    return replace(step.builder.follow(step.path, value, step.where()), pixels=None)


def measures(step: Step) -> Any:
    """A size or another fact about a tensor."""
    return None


def refuses(reason: str) -> Rule:
    """A rule that refuses its operation, and says why."""

    def refuse(step: Step) -> Any:
        step.refuse(reason)

    return refuse


def unknown(step: Step) -> Any:
    """What has no rule may be done to the input and to numbers, not to units."""
    known = [step.values[node] for node in step.node.all_input_nodes]
    if all(value is None for value in known):
        return None
    if all(value is None or value is INPUT for value in known):
        return INPUT
    step.refuse("it is not known to keep units apart.")


def _attribute(step: Step) -> Any:
    of = step.of(step.node.args[0])
    if isinstance(of, list) and step.node.target is operator.getitem and isinstance(step.node.args[1], int):
        return of[step.node.args[1]]
    facts = ("shape", "device", "dtype", "ndim")
    if of is None or (step.node.target is getattr and step.node.args[1] in facts):
        return None
    return unknown(step)


# ---- the nodes of a graph, by torch.fx's kinds


def _get_attr(step: Step) -> Any:
    attribute = step.builder.network
    for name in step.path.split("."):
        attribute = getattr(attribute, name)
    if isinstance(attribute, nn.Parameter) or (isinstance(attribute, torch.Tensor) and attribute.dim()):
        step.refuse("a tensor of the network is used directly, so its units have no owner.")
    return None


def _call_module(step: Step) -> Any:
    module, value = step.module, step.first()
    rule = module_rule(module)
    if rule is not None and (isinstance(module, SegmentedLayer) or not any(True for _ in module.parameters())):
        return rule(step)
    if value is INPUT and not module.state_dict():
        return INPUT
    step.refuse(_remedy(module))


def _call_function(step: Step) -> Any:
    return FUNCTIONS.get(step.node.target, unknown)(step)


def _call_method(step: Step) -> Any:
    rule = METHODS.get(step.node.target, unknown)
    if rule is ties and step.node.target.endswith("_") and not step.node.users:
        step.refuse("its result is not used: the operand it changes in place would not be known to be combined.")
    return rule(step)


_OPERATIONS: dict[str, Rule] = {
    "placeholder": lambda step: INPUT,
    "output": lambda step: step.of(step.node.args[0]),
    "get_attr": _get_attr,
    "call_module": _call_module,
    "call_function": _call_function,
    "call_method": _call_method,
}


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    twins = {"Linear": "EideticLinear", "Conv2d": "EideticConv2d"} | {
        f"BatchNorm{d}d": f"EideticBatchNorm{d}d" for d in (1, 2)
    }
    if name in twins:
        return f"a plain {name} would be trained by every task and forget: use ek.{twins[name]}."
    if any(True for _ in module.parameters()):
        return f"{name} has parameters that every task would train, so finished tasks would be forgotten."
    return f"{name} is not known to keep units apart."


# ---- what is known

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
IMAGE_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip

MODULES.update({
    StaircaseLayer: produces, EideticBatchNorm: follows, EideticGroupedConv2d: filters, nn.Flatten: flattens,
    EideticDropout: drops, EideticStochasticDepth: drops, STOCHASTIC_DEPTH: drops, Split: separates, Shuffle: shuffles,
    **dict.fromkeys(DROPOUTS, drops),
    **dict.fromkeys(IMAGE_MODULES, passes_images),
    **dict.fromkeys((
        nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink,
        nn.LogSigmoid,
    ), passes),
})  # fmt: skip

FUNCTIONS.update({
    getattr: _attribute, operator.getitem: _attribute,
    torch.flatten: flattens, torch.mean: averages,
    F.dropout: refuses("F.dropout does not know which units are frozen: use a torch.nn.Dropout module."),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), concatenates),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split), splits),
    **dict.fromkeys((
        operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
        torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    ), ties),
    **dict.fromkeys((
        F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
        F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, torch.relu, torch.sigmoid, torch.tanh,
        torch.abs, torch.exp, torch.neg, torch.clamp, torch.square, torch.sqrt, operator.neg,
    ), passes),
    **dict.fromkeys(
        (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate), passes_images
    ),
})  # fmt: skip

METHODS.update({
    "flatten": flattens, "view": reshapes, "reshape": reshapes, "mean": averages, "size": measures, "dim": measures,
    **dict.fromkeys(("chunk", "split", "tensor_split"), splits),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), ties),
    **dict.fromkeys((
        "relu", "relu_", "sigmoid", "tanh", "abs", "exp", "neg", "clamp", "clamp_min", "square",
        "contiguous", "float", "to",
    ), passes),
})  # fmt: skip
