"""What each operation does to unit groups: one small rule an entry, open to users.

A rule is a function of a :class:`Step`, one node of the traced graph. It returns the value that the node makes
(:class:`.graph.Units`, ``INPUT``, or None for what is no tensor of units: a size, a number), or refuses. A silent
guess would let tasks mix, so what has no rule is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from math import prod
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .errors import InputError
from .graph import INPUT, Builder, Constant, Heads, Units
from .layers import (
    EideticBatchNorm,
    EideticDropout,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticParameter,
    EideticRelativeAttention,
    EideticScaledDotProduct,
    EideticStochasticDepth,
    EideticWindowAttention,
    HeadedAttention,
    SegmentedLayer,
    Shuffle,
    Split,
    StaircaseLayer,
)
from .refusals import Place, at_node

OURS = __name__.split(".")[0]


class Step:
    """One node of the traced graph, as a rule sees it.

    ``node`` is torch.fx's, ``values`` the value of every node before it, ``builder`` what ties and concatenates.
    ``prefix`` stands before the graph's module paths in the network. ``editable``: the graph is what will run
    (``ek.convert``), so a rule may change the node's arguments.
    """

    def __init__(
        self, builder: Builder, node: fx.Node, values: dict[fx.Node, Any], prefix: str = "", editable: bool = False
    ):
        self.builder, self.node, self.values, self.prefix = builder, node, values, prefix
        self.editable = editable

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

    def where(self) -> Place:
        """The node and the user's line it comes from, to name in a refusal."""
        return at_node(self.node)

    def refuse(self, reason: str) -> None:
        """Raise ConversionError for this node."""
        raise self.where().refused(reason)


Rule = Callable[[Step], Any]


def value_of(step: Step) -> Any:
    """The value that a node makes of its arguments' values, by the rule for it."""
    arguments = [step.values[node] for node in step.node.all_input_nodes]
    if any(isinstance(value, Heads) for value in arguments):
        value = _on_heads(step)
    elif any(isinstance(value, Constant) for value in arguments) and _rule(step) not in CONSTANT_RULES:
        step.refuse("a tensor of the network must be combined with units (added, multiplied, concatenated) as it is.")
    else:
        value = _OPERATIONS[step.node.op](step)
    shape = step.shape(step.node)
    if isinstance(value, Units) and value.spatial and not value.last and value.pixels is None and shape is not None:
        value = replace(value, pixels=torch.Size(shape[2:]).numel())
    return value


# ---- the registry

MODULES: dict[type[nn.Module] | str, Rule] = {}
FUNCTIONS: dict[Callable | str, Rule] = {}
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
    image = isinstance(value, Units) and value.spatial and not value.last
    if not image or len(step.shape(step.first_argument()) or "NCHW") != 4:
        step.refuse(f"{operation} over units without pixels after them would mix neighbouring units.")
    if "adaptive" not in operation.lower():
        return replace(value, pixels=None)
    sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    return replace(value, pixels=None if None in sides else sides[0] * sides[1])


def ties(step: Step) -> Any:
    """Operands are combined unit by unit: their groups become one. Numbers change nothing."""
    given = [*step.node.args[:2], *(step.node.kwargs.get(name) for name in ("input", "other"))]
    operands = [(value, argument) for argument in given if (value := step.of(argument)) is not None]
    if not operands:
        return None
    if len(operands) == 1:
        return operands[0][0]
    (a, argument_a), (b, argument_b) = operands
    ranks = {len(step.shape(argument) or ()) for argument in (argument_a, argument_b)}
    if isinstance(a, Units) and isinstance(b, Units) and a.spatial and not a.last and len(ranks) > 1:
        step.refuse("an image and a sequence are combined, which have their units in other places when aligned.")
    if isinstance(a, Constant):
        a, b, argument_a = b, a, argument_b
    if not isinstance(b, Constant):
        return step.builder.tie(a, b, step.where())
    if not isinstance(a, Units):
        step.refuse(f"{b.path!r}, a tensor of the network, belongs to the units it is combined with; here are none.")
    rank = 2 if not a.spatial else len(step.shape(argument_a) or ())
    if a.flat or not (a.last or rank) or len(b.shape) > (rank or len(b.shape)):
        step.refuse(f"which dimension of {b.path!r} {list(b.shape)} holds units is not known here.")
    return step.builder.hold(b, a, -1 if a.last else 1 - rank, step.where())


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
    if isinstance(value, Units) and value.spatial and shape is not None:
        positions = range(start % len(shape), end % len(shape) + 1)
        unit = _unit_dim(value, len(shape))
        if unit not in positions and (value.last or 0 not in positions):
            return _placed(step, value, unit - (len(positions) - 1) * value.last, len(shape) - len(positions) + 1)
    if start != 1 or end not in (-1, None if shape is None else len(shape) - 1) or getattr(value, "last", False):
        step.refuse(f"flattening dimensions {start} to {end} mixes samples or units: flatten from 1 to -1.")
    return value.flattened()


def reshapes(step: Step) -> Any:
    """``view`` and ``reshape``: positions are folded or unfolded, the units' dimension staying whole; or flattening."""
    value = step.first()
    if value is INPUT:
        return INPUT
    sizes = step.node.args[1:]
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    old, new = step.shape(step.first_argument()), step.shape(step.node)
    if isinstance(value, Units) and value.spatial and old and new and len(sizes) == len(new) and step.editable:
        unit = _unit_dim(value, len(old))
        before, after = prod(old[:unit]), prod(old[unit + 1 :])
        kept = [
            dim for dim in {1, len(new) - 1}
            if new[dim] == old[unit] and prod(new[:dim]) == before and prod(new[dim + 1 :]) == after
        ]  # fmt: skip
        if len(kept) == 1:
            # Whatever number stood there, it is the count of units, which pruning changes.
            _resize(step, (*sizes[: kept[0]], _count(step, unit), *sizes[kept[0] + 1 :]))
            return _placed(step, value, kept[0], len(new))
        heads_whole = old[-1] == prod(new[-2:]) and prod(new[:-2]) == before
        if value.last and value.order is None and len(new) > 2 and heads_whole:
            with step.node.graph.inserting_before(step.node):
                heads = step.node.graph.call_function(operator.floordiv, (_count(step, unit), new[-1]))
            _resize(step, (*sizes[:-2], heads, new[-1]))
            return Heads(value, -2, new[-1])
    if len(sizes) == 2 and isinstance(sizes[0], fx.Node) and sizes[1] == -1 and not value.last:
        return value.flattened()
    step.refuse(
        "only x.view(x.size(0), -1) is understood: it folds pixels into units. Use x.flatten(1). (ek.convert also "
        "understands reshapes of positions, which leave the dimension of the units whole.)"
    )


def _count(step: Step, dim: int) -> fx.Node:
    """A node for the size of the first argument's dimension ``dim``."""
    with step.node.graph.inserting_before(step.node):
        return step.node.graph.call_method("size", (step.first_argument(), dim))


def _resize(step: Step, sizes: tuple[Any, ...]) -> None:
    """Give the node other sizes. A -1 beside a count of units that may become 0 would have no meaning: where it stands
    for a dimension that stays, it is looked up too."""
    old, new = step.shape(step.first_argument()), step.shape(step.node)
    sizes = tuple(
        _count(step, dim)
        if size == -1 and dim < len(old) and prod(old[:dim]) == prod(new[:dim]) and old[dim] == new[dim]
        else size
        for dim, size in enumerate(sizes)
    )
    nested = len(step.node.args) == 2 and isinstance(step.node.args[1], (tuple, list))
    step.node.args = (step.node.args[0], *([sizes] if nested else sizes))


def _on_heads(step: Step) -> Any:
    """What may be done to heads: they are moved, attended with, and folded into units again."""
    value, old, new = step.first(), step.shape(step.first_argument()), step.shape(step.node)
    named = getattr(step.node.target, "__name__", step.node.target)
    if step.node.op == "call_module" and isinstance(step.module, EideticScaledDotProduct):
        return _attends_by_function(step)
    if step.node.op == "call_module" and type(step.module) is nn.Identity:
        return value
    if named in ("contiguous", "size", "getattr"):
        return value if named == "contiguous" else None
    if isinstance(value, Heads) and named in ("permute", "transpose", "swapaxes"):
        order = _order(step, len(old))
        if order[-1] == len(old) - 1 and (axis := order.index(len(old) + value.axis) - len(old)) in (-2, -3):
            return replace(value, axis=axis)
    if isinstance(value, Heads) and named in ("reshape", "view", "flatten") and value.axis == -2:
        if old[-2] * old[-1] == new[-1] and prod(old[:-2]) == prod(new[:-1]) and len(new) > 2:
            if named != "flatten":
                with step.node.graph.inserting_before(step.node):
                    both = step.node.graph.call_function(operator.mul, (_count(step, -2), _count(step, -1)))
                given = step.node.args[1:]
                given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
                _resize(step, (*given[:-1], both))
            return value.units
    step.refuse("these are attention heads; it is not known to keep them apart, or to leave each head whole.")


def _attends_by_function(step: Step) -> Heads:
    values = [step.of(argument) for argument in step.node.args[:3]]
    if not all(isinstance(value, Heads) and value.axis == -3 for value in values) or len({v.dim for v in values}) > 1:
        step.refuse("its queries, keys and values must be heads [N, heads, T, head_dim] of one size, made by layers.")
    units = values[0].units
    for value in values[1:]:
        units = step.builder.tie(units, value.units, step.where())
    if len(units.parts) > 1:
        step.refuse("its heads are made by concatenating several layers' units.")
    step.builder.grow(units, values[0].dim)
    step.builder.dropped[step.path] = units
    return replace(values[0], units=units)


def _order(step: Step, rank: int) -> list[int]:
    """Which dimension each dimension of a permuted tensor was."""
    given = step.node.args[1:] or tuple(step.node.kwargs.values())
    given = tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    if not all(isinstance(dim, int) for dim in given):
        step.refuse("where the units come to lie is not known here: name the dimensions by numbers.")
    order = [dim % rank for dim in given]
    if getattr(step.node.target, "__name__", step.node.target) != "permute":
        a, b = order
        order = list(range(rank))
        order[a], order[b] = b, a
    return order


def permutes(step: Step) -> Any:
    """``permute``, ``transpose``: units come to lie in dimension 1 or in the last."""
    value = step.first()
    if value is INPUT:
        return INPUT
    rank = len(step.shape(step.first_argument()) or ())
    if not rank or not isinstance(value, Units) or value.flat:
        step.refuse("where the units come to lie is not known here; ek.convert knows, by the example's shape.")
    return _placed(step, value, _order(step, rank).index(_unit_dim(value, rank)), rank)


def indexes(step: Step) -> Any:
    """``x[...]`` on positions: a token is picked, a part of an image is taken. Units stay whole."""
    value, given = step.first(), step.node.args[1]
    if isinstance(value, tuple):
        return value[given]
    rank = len(step.shape(step.first_argument()) or ())
    if not isinstance(value, Units) or not value.spatial or not rank:
        return unknown(step)
    given = given if isinstance(given, tuple) else (given,)
    if Ellipsis in given:
        place = given.index(Ellipsis)
        given = (*given[:place], *[slice(None)] * (rank - len(given) + 1), *given[place + 1 :])
    given = (*given, *[slice(None)] * (rank - len(given)))
    unit = _unit_dim(value, rank)
    if given[unit] != slice(None) or not all(type(each) in (int, slice) for each in given):
        step.refuse("it picks some units, or picks by a tensor; only whole positions may be picked.")
    dropped = [dim for dim, each in enumerate(given) if isinstance(each, int)]
    return _placed(step, value, unit - sum(dim < unit for dim in dropped), rank - len(dropped))


def rolls(step: Step) -> Any:
    """``torch.roll`` over positions."""
    value, (_, dims) = step.first(), step.rest(("shifts", None), ("dims", None))
    if isinstance(value, Units):
        rank = len(step.shape(step.first_argument()) or ())
        dims = (dims,) if isinstance(dims, int) else dims
        if not rank or not dims or _unit_dim(value, rank) in [dim % rank for dim in dims]:
            step.refuse("it would move units to other units' places; only positions may be rolled.")
    return value


def expands(step: Step) -> Any:
    """``expand`` of a class token to the batch: sizes that stay are left to the tensor, since pruning changes them."""
    value = step.first()
    if not isinstance(value, Constant) or not step.editable:
        return unknown(step)
    sizes = step.node.args[1:]
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    added = len(sizes) - len(value.shape)
    sizes = tuple(-1 if i >= added and value.shape[i - added] != 1 else size for i, size in enumerate(sizes))
    step.node.args = (step.node.args[0], *sizes)
    return replace(value, shape=(*[1] * added, *value.shape))


def averages(step: Step) -> Any:
    """A mean over space, or over tokens."""
    value = step.first()
    dims, keep = step.rest(("dim", None), ("keepdim", False))
    dims = {dims} if isinstance(dims, int) else set(dims or ())
    if value is INPUT:
        return INPUT
    if isinstance(value, Units) and value.last:
        rank = len(step.shape(step.first_argument()) or ())
        dims = {dim % rank for dim in dims} if rank else set()
        if not dims or rank - 1 in dims:
            step.refuse(f"a mean over dimensions {sorted(dims) or 'all'} mixes units; only positions may be averaged.")
        return value if keep else _placed(step, value, rank - 1 - len(dims), rank - len(dims))
    dims = {dim % len(step.shape(step.first_argument()) or "NCHW") for dim in dims}
    if not dims or dims & {0, 1}:
        step.refuse(f"a mean over dimensions {sorted(dims) or 'all'} mixes units; only space may be averaged.")
    if dims != {2, 3} or not value.spatial:
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
    units = [value for value in values if isinstance(value, Units)]
    if units and all(isinstance(value, Constant) or (isinstance(value, Units) and value.last) for value in values):
        rank = len(step.shape(step.node) or ())
        if rank and dim % rank != rank - 1:  # more positions of the same units
            whole = units[0]
            for value in units[1:]:
                whole = step.builder.tie(whole, value, step.where())
            for value in values:
                if isinstance(value, Constant):
                    step.builder.hold(value, whole, -1, step.where())
            return whole
        unit_dims = {-1, rank - 1}
    else:
        rank = len(step.shape(step.node) or ()) or (4 if any(value.spatial for value in units) else 2)
        unit_dims = {1, 1 - rank}
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
    if isinstance(value, Units) and value.spatial and value.last != (step.module.unit_dim == -1):
        step.refuse("it cuts positions apart, not units; only x[...] of positions is understood.")
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
    shape, linear = step.shape(step.first_argument()), isinstance(step.module, EideticLinear)
    if shape is not None and not linear and len(shape) != 4:
        step.refuse(f"it reads a tensor of shape {list(shape)}; a convolution reads [N, K, H, W].")
    tokens = linear and shape is not None and len(shape) > 2 and step.first() is INPUT
    return _with_residual(step, step.builder.produce(step.path, step.first(), step.where(), tokens))


def follows(step: Step) -> Any:
    """A layer of ours that treats each unit by itself, in dimension 1, and may add a residual."""
    if getattr(step.first(), "last", False):
        step.refuse("it normalises dimension 1, and the units lie in the last: transpose before it.")
    return _with_residual(step, step.builder.follow(step.path, step.first(), step.where()))


def _with_residual(step: Step, value: Any) -> Any:
    residual = step.of(step.rest(("residual", None))[0])
    return value if residual is None else step.builder.tie(value, residual, step.where())


def normalises(step: Step) -> Any:
    """LayerNorm over units."""
    value = step.first()
    if isinstance(value, Units) and value.spatial and value.last == step.module.channels_first:
        step.refuse(
            "it normalises over positions, and not over units, which lie in "
            + ("the last dimension." if value.last else "dimension 1: permute before it.")
        )
    return step.builder.follow(step.path, value, step.where())


def attends(step: Step) -> Any:
    """Attention over tokens: a head's query, key and value rows are units that live together (a grain)."""
    names = ("query", "key", "value")
    arguments = [*step.node.args[:3], *(step.node.kwargs[name] for name in names if name in step.node.kwargs)]
    options = {**dict(zip(names, arguments)), **step.node.kwargs}
    masks = step.node.args[3:4] + step.node.args[5:6] + step.node.args[7:8]  # padding, attention, causal
    if any(masks) or any(options.get(name) for name in ("key_padding_mask", "attn_mask", "is_causal")):
        step.refuse("attention with a mask has no rule.")
    for user in step.node.users:
        if user.target is not operator.getitem or (user.args[1] != 0 and user.users):
            step.refuse("only the attention's output ([0]) can be used, not its weights, which mix heads of all tasks.")
    return step.builder.produce(f"{step.path}.out_proj", _heads(step, arguments, 3), step.where()), None


def attends_in_windows(step: Step) -> Any:
    """Attention in windows of an image; the biases of its positions belong to the heads."""
    return step.builder.drop(f"{step.path}.drop", attends_in_parts(step), step.where())


def attends_in_parts(step: Step) -> Any:
    """The same in parts that were cut before."""
    heads = _heads(step, [step.first_argument()] * 3, 4)
    for name in ("position_bias", "logit_scale"):
        if hasattr(step.module, name):
            step.builder.follow(f"{step.path}.{name}", heads, step.where())
    return step.builder.produce(f"{step.path}.out_proj", heads, step.where())


def _heads(step: Step, arguments: list[Any], rank: int) -> Units:
    """The units that an attention's projections make of their ``arguments``: query, key and value rows, tied."""
    heads = None
    for name, argument in zip(("query", "key", "value"), arguments, strict=True):
        value, shape = step.of(argument), step.shape(argument)
        if (isinstance(value, Units) and not value.last) or not shape or len(shape) != rank:
            form = "tokens [N, T, C]" if rank == 3 else "[N, H, W, C]"
            step.refuse(f"its {name} must be {form} whose units come last; and only ek.convert knows sizes.")
        made = step.builder.produce(f"{step.path}.{name}", value, step.where(), tokens=True)
        heads = made if heads is None else step.builder.tie(heads, made, step.where())
    step.builder.grow(heads, step.module.head_dim)
    return heads


def merges_patches(step: Step) -> Any:
    """Swin's patch merging: four neighbours' units side by side."""
    value = step.first()
    if not isinstance(value, Units) or not value.last:
        step.refuse("patches are merged of units in the last dimension.")
    return step.builder.concatenate([value] * 4, step.where())


def holds(step: Step) -> Any:
    """A tensor of the network itself, which belongs to the units it will be combined with."""
    return Constant(step.path, step.module.shape)


def filters(step: Step) -> Any:
    """A grouped convolution: each group of units by itself."""
    value = step.first()
    if not isinstance(value, Units) or not value.spatial or value.last:
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
    return unknown(step) if step.node.target is getattr or of is INPUT else indexes(step)


def _unit_dim(value: Units, rank: int) -> int:
    return rank - 1 if value.last else 1


def _placed(step: Step, value: Units, dim: int, rank: int) -> Units:
    """``value`` as a tensor of ``rank`` dimensions whose units lie in dimension ``dim``."""
    if dim not in (1, rank - 1) or not dim:
        step.refuse(f"the units would come to lie in dimension {dim} of {rank}; it must be dimension 1 or the last.")
    return replace(value, spatial=rank > 2, last=rank > 2 and dim == rank - 1, pixels=None if rank > 2 else 1)


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
    ours = isinstance(module, (SegmentedLayer, HeadedAttention))
    if rule is not None and (ours or not any(True for _ in module.parameters())):
        return rule(step)
    if value is INPUT and not module.state_dict():
        return INPUT
    step.refuse(_remedy(module))


def _rule(step: Step) -> Rule:
    """The rule for a node that calls something."""
    target = step.node.target
    if step.node.op == "call_module":
        return module_rule(step.module) or unknown
    if step.node.op == "call_method":
        return METHODS.get(target, unknown)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return FUNCTIONS.get(target) or FUNCTIONS.get(name) or unknown


def _call_function(step: Step) -> Any:
    return _rule(step)(step)


def _call_method(step: Step) -> Any:
    rule = _rule(step)
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


# What may be done to a tensor of the network before it is combined with units.
CONSTANT_RULES = (ties, passes, expands, concatenates, measures)


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    twins = {"Linear": "EideticLinear", "Conv2d": "EideticConv2d"} | {
        f"BatchNorm{d}d": f"EideticBatchNorm{d}d" for d in (1, 2)
    } | {"LayerNorm": "EideticLayerNorm", "MultiheadAttention": "EideticMultiheadAttention"}
    if name in twins:
        return f"a plain {name} would be trained by every task and forget: use ek.{twins[name]}."
    if any(True for _ in module.parameters()):
        return f"{name} has parameters that every task would train, so finished tasks would be forgotten."
    return f"{name} is not known to keep units apart."


# ---- what is known

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
LAYER_NORM_2D = "torchvision.models.convnext.LayerNorm2d"
WINDOW_ATTENTION = "torchvision.models.swin_transformer.ShiftedWindowAttention"
RELATIVE_ATTENTION = "torchvision.models.maxvit.RelativePositionalMultiHeadAttention"
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
DROP_PATH = "timm.layers.drop.DropPath"
IMAGE_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip

MODULES.update({
    StaircaseLayer: produces, EideticBatchNorm: follows, EideticLayerNorm: normalises, EideticParameter: holds,
    EideticScaledDotProduct: refuses("its queries, keys and values must be heads, units seen as [N, T, heads, size]."),
    EideticGroupedConv2d: filters, EideticMultiheadAttention: attends, EideticWindowAttention: attends_in_windows,
    # Plain ones have no rule, but ek.convert replaces them whole: tracing must stop there.
    **dict.fromkeys(
        (LAYER_NORM_2D, WINDOW_ATTENTION, f"{WINDOW_ATTENTION}V2", RELATIVE_ATTENTION), refuses("every task trains it.")
    ),
    EideticRelativeAttention: attends_in_parts,
    nn.Flatten: flattens, Split: separates, Shuffle: shuffles,
    EideticDropout: drops, EideticStochasticDepth: drops, STOCHASTIC_DEPTH: drops,
    DROP_PATH: drops,
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
    "torchvision.models.swin_transformer._patch_merging_pad": merges_patches,
    torch.flatten: flattens, torch.mean: averages, torch.reshape: reshapes, torch.roll: rolls,
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes), permutes),
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
    "expand": expands, "roll": rolls, **dict.fromkeys(("permute", "transpose", "swapaxes"), permutes),
    **dict.fromkeys(("chunk", "split", "tensor_split"), splits),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), ties),
    **dict.fromkeys((
        "relu", "relu_", "sigmoid", "tanh", "abs", "exp", "neg", "clamp", "clamp_min", "square",
        "contiguous", "float", "to",
    ), passes),
})  # fmt: skip
