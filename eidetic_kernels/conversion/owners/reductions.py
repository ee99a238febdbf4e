"""Rules of means, sums, softmax and the like."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..graphs.nodes import concrete, operation
from .elementwise import ties
from .maps import Owners
from .merging import settled
from .step import Layer, Step, rule


def reduced(step: Step, x: Owners, dims: Any, keep: bool, mixing: str = "refuse") -> Owners:
    rank = len(x.shape)
    dims = sorted({d % rank for d in dims}) if dims else list(range(rank))
    x = settled(step, x)
    units, samples, coarse = x.units, x.samples, x.coarse
    for d in dims:
        if samples.shape[d] > 1:
            step.refuse("mixes samples")
        if units.shape[d] > 1 and keep and not coarse and whole_layers(step, units, d):
            others = [o for o in dims if o != d]
            if any(units.shape[o] > 1 for o in others):
                step.refuse("a mean over units in two dimensions")
            step.analysis.layers.append(
                Layer("prefix", step.node.name, step.node, x, units.flatten(), {"dim": d - rank})
            )
            return Owners(step.shape, units, samples, coarse)
        if units.shape[d] > 1:
            first = units.narrow(d, 0, 1)
            step.mix(units, d, mixing)
            units, coarse = first, True
    if not keep:
        for d in reversed(dims):
            units, samples = units.squeeze(d), samples.squeeze(d)
    return Owners(step.shape, units, samples, coarse)


def whole_layers(step: Step, units: Tensor, dim: int) -> bool:
    """Whether units vary along ``dim`` alone, and all of one layer's are there: no heads or runs of channels."""
    if sum(size > 1 for size in units.shape) != 1:
        return False
    own = units.flatten()
    makers = step.constraints.makers(own)
    if bool((makers < 0).any()):
        return False
    made = list(step.constraints.made.values())[int(makers[0])]
    return bool((makers == makers[0]).all()) and len(torch.unique(own)) == made.count


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "logsumexp",
    "norm",
    "linalg_vector_norm",
    "argmax",
    "prod",
    "all",
    "any",
)
def reduces(step: Step) -> Owners:
    position = 2 if operation(step.node) in ("linalg_vector_norm", "norm") else 1
    dims = step.arg(position, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    keep = len(step.shape) == len(step.owners(step.arg(0)).shape)
    return reduced(step, step.owners(step.arg(0)), dims, keep)


@rule("var_mean", "std_mean")
def reduces_twice(step: Step) -> Any:
    x = settled(step, step.owners(step.arg(0)))
    dims = step.arg(1, "dim")
    val = step.node.meta["val"][0]
    rank = len(x.shape)
    keep = val.dim() == rank
    dims = sorted({d % rank for d in dims}) if dims else list(range(rank))
    for d in dims:
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        if x.units.shape[d] > 1:
            step.mix(x.units, d, "refuse")
    u, s = x.units, x.samples
    for d in dims:
        u, s = u.narrow(d, 0, 1), s.narrow(d, 0, 1)
    if not keep:
        for d in reversed(dims):
            u, s = u.squeeze(d), s.squeeze(d)
    shape = tuple(concrete(k) for k in val.shape)
    one = Owners(shape, u, s, bool(x.coarse or any(x.units.shape[d] > 1 for d in dims)))
    return [one, one]


@rule("softmax", "log_softmax", "_softmax", "cumsum", "cumprod", "sort", "topk", "normalize", "softmin")
def along_dim(step: Step) -> Any:
    x = settled(step, step.owners(step.arg(0)))
    d = step.arg(1, "dim") % len(x.shape)
    if x.samples.shape[d] > 1:
        step.refuse("mixes samples")
    if x.units.shape[d] > 1:
        step.mix(x.units, d, "softmax")
        return Owners(x.shape, x.units.narrow(d, 0, 1), x.samples, True)
    return Owners(x.shape, x.units, x.samples, x.coarse)


@rule("diff")
def differs(step: Step) -> Owners:
    """Neighbours subtracted: positions of a mask."""
    x, dim = step.owners(step.arg(0)), step.arg(2, "dim", -1)
    given = [x, *(step.owners(each) for each in (step.arg(3, "prepend"), step.arg(4, "append")) if each is not None)]
    for each in given:
        if each.samples.shape[dim] > 1:
            step.refuse("mixes samples")
        if each.units.shape[dim] > 1:
            step.refuse("it mixes neighbouring units")
    return Owners(step.shape, x.units, x.samples, x.coarse)


@rule("max", "min")
def maximum_dim(step: Step) -> Any:
    if cast(Any, step.node.target)._overloadname == "other":
        return ties(step)
    if len(step.args) == 2 and isinstance(step.args[1], int):
        x = step.owners(step.arg(0))
        d = step.args[1] % len(x.shape)
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        u = x.units
        coarse = x.coarse
        if u.shape[d] > 1:
            step.mix(u, d, "refuse")
            u = u.narrow(d, 0, 1)
            coarse = True
        s = x.samples
        keep = step.node.meta["val"][0].dim() == len(x.shape)
        if not keep:
            u, s = u.squeeze(d), s.squeeze(d)
        shape = tuple(concrete(k) for k in step.node.meta["val"][0].shape)
        return [Owners(shape, u, s, coarse)] * 2
    step.refuse("mixes samples" if step.owners(step.args[0]).sampled else "it takes the largest of all units")
