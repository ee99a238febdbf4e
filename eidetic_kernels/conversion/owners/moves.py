"""Rules of operations that move numbers about: they do to the maps what they do to the tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graphs.nodes import leaves, operation
from .maps import NOBODY, Owners, small
from .merging import settled
from .step import TAKE_WEIGHTS, Held, Step, rule

MOVES = (
    "view reshape _unsafe_view permute transpose t expand expand_as unsqueeze squeeze flatten unflatten select slice "
    "narrow split split_with_sizes chunk unbind tensor_split stack cat flip roll repeat repeat_interleave index "
    "index_select pixel_shuffle pixel_unshuffle movedim swapaxes reshape_as view_as broadcast_tensors meshgrid "
    "channel_shuffle unsafe_split unsafe_chunk diagonal numpy_T mT tile concat concatenate expand_copy broadcast_to "
    "moveaxis gather take_along_dim squeeze_copy unfold im2col"
).split()


@rule("slice_scatter", "select_scatter")
def writes(step: Step) -> Any:
    x, written, dim = step.owners(step.args[0]), step.owners(step.args[1]), step.arg(2, "dim", 0)
    # A bias, of which a part is set to zero, is computed once. Elsewhere the place would move when units go.
    fixed = not x.sampled and not written.owned and not written.sampled
    bias = all(operation(user) in TAKE_WEIGHTS and step.node in user.args[2:3] for user in step.node.users)
    if x.units.shape[dim % len(x.shape)] > 1 and not (fixed and bias):
        step.refuse("it changes some units in place, and leaves others as they are. Put them together with torch.cat")
    return moves(step)


@rule(*MOVES)
def moves(step: Step) -> Any:
    given = [step.owners(each) for each in leaves([step.args, step.kwargs]) if isinstance(each, (Owners, Held))]
    looked_up = _looked_up(step)
    if looked_up is not None:
        return looked_up
    units, samples = _moved(step, "units"), _moved(step, "samples")
    coarse = any(each.coarse for each in given)
    if isinstance(units, Tensor):
        return Owners(tuple(units.shape), small(units), small(samples), coarse)
    return [Owners(tuple(u.shape), small(u), small(s), coarse) for u, s in zip(units, samples)]


def _looked_up(step: Step) -> Owners | None:
    """What an index that is computed from the input looks up."""
    name = operation(step.node)
    if name == "gather":
        index, dims = step.args[2], [step.args[1]]
    elif name == "index":
        given = [(d, each) for d, each in enumerate(step.args[1]) if each is not None]
        computed = [each for _, each in given if isinstance(each, Owners)]
        index, dims = computed[0] if computed else None, [d for d, _ in given]
    elif name == "index_select":
        index, dims = step.args[2], [step.args[1]]
    else:
        return None
    if not isinstance(index, Owners):
        return None
    x, rank = step.owners(step.args[0]), len(step.shape)
    dims = [d % len(x.shape) for d in dims]
    if any(x.units.shape[d] > 1 for d in dims):
        step.refuse("an index that is computed picks units")
    nobody = torch.full([1] * rank, NOBODY)
    if not x.sampled and not x.owned:  # a table that is fixed
        shape = [1] * rank
        if name == "gather" or len(dims) == 1 == len(x.shape):
            shape = [index.samples.shape[d] if d < index.samples.dim() else 1 for d in range(rank)]
        return Owners(step.shape, nobody, index.samples.reshape(shape))
    if name == "gather" and all(x.samples.shape[d] == 1 for d in dims):
        a, b = torch.broadcast_tensors(x.samples, index.samples)
        if bool(((a != b) & (b >= 0)).any()):
            step.refuse("mixes samples")
        return Owners(step.shape, x.units, x.samples, x.coarse)
    if name == "index" and dims == [0, 1] and all(each is not None for each in step.args[1]):
        # x[samples, positions]: one position of each sample
        first = step.args[1][0]
        whole = torch.arange(x.shape[0])
        if isinstance(first, (Owners, Tensor)) and len(x.samples.flatten()) == x.shape[0]:
            if isinstance(first, Tensor) and not bool((first.flatten() == whole).all()):
                step.refuse("mixes samples")
            units = x.units[:, 0] if x.units.shape[0] == 1 else None
            if units is not None and x.units.shape[1] == 1:
                return Owners(step.shape, units.view(1, *units.shape[1:]), whole.view(-1, *[1] * (rank - 1)), x.coarse)
    step.refuse("an index that is computed picks samples or units")


def _moved(step: Step, which: str) -> Any:
    index = operation(step.node) == "index"

    def mapped(value: Any, outer: bool = True) -> Any:
        if isinstance(value, (Owners, Held)):
            return step.owners(value).full(which)
        if isinstance(value, Tensor):
            return (
                value
                if index or operation(step.node) in ("index_select", "gather")
                else torch.full(value.shape, NOBODY)
            )
        if isinstance(value, (list, tuple)):
            return [mapped(each, False) for each in value]
        return value

    args = [mapped(each) for each in step.args]
    kwargs = {name: mapped(each) for name, each in step.kwargs.items()}
    target: Any = step.node.target
    if operation(step.node) in ("view", "_unsafe_view"):
        target = torch.ops.aten.reshape.default
    if operation(step.node) == "im2col":  # of numbers alone, and what it pads is 0: nobody's
        made = target((args[0] + 1).double(), *args[1:], **kwargs).long() - 1
        whole = made.amax(-1, keepdim=True)
        return whole.expand(made.shape) if bool(((made == whole) | (made < 0)).all()) else made
    return target(*args, **kwargs)


@rule("col2im")
def folds(step: Step) -> Owners:
    """Patches [N, C x kernel, L] added up as images [N, C, H, W]."""
    x = settled(step, step.owners(step.arg(0)))
    for d in (2,):
        if x.samples.shape[d] > 1 or x.units.shape[d] > 1:
            step.refuse("adds up units or samples")
    if x.samples.shape[1] > 1:
        step.refuse("mixes samples")
    channels = step.shape[1]
    units = x.units.expand(1, x.shape[1], 1).reshape(channels, -1)
    step.constraints.same(units[:, :1], units)
    return Owners(step.shape, small(units[:, 0].view(1, -1, 1, 1)), x.samples.view(-1, 1, 1, 1), x.coarse)


@rule("pad", "constant_pad_nd")
def pads(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    sides = list(step.arg(1))
    mode = step.arg(2, "mode", "constant") if operation(step.node) == "pad" else "constant"
    rank = len(x.shape)
    touched = {rank - 1 - i // 2 for i, side in enumerate(sides) if side}
    out: list[Tensor] = []
    for which in ("units", "samples"):
        m = getattr(x, which)
        if all(m.shape[d] == 1 for d in touched):
            out.append(m)
            continue
        if mode != "constant":
            step.refuse("pads units or samples")
        out.append(small(torch.constant_pad_nd(x.full(which), sides, NOBODY)))
    units, samples = out
    return Owners(step.shape, units, samples, x.coarse)
