from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..wiring import rules as known_rules
from .analysis import Held, Layer, Step, leaves, operation, rule
from .computed import Computed, computed_weight
from .marks import own_rule
from .owners import NOBODY, Owners, along, nobodys, small


# -- moves ----------------------------------------------------------------------------------------------------------

MOVES = (
    "view reshape _unsafe_view permute transpose t expand expand_as unsqueeze squeeze flatten unflatten select slice "
    "narrow split split_with_sizes chunk unbind tensor_split stack cat flip roll repeat repeat_interleave index "
    "index_select pixel_shuffle pixel_unshuffle movedim swapaxes reshape_as view_as broadcast_tensors meshgrid "
    "channel_shuffle unsafe_split unsafe_chunk diagonal numpy_T mT tile concat concatenate expand_copy broadcast_to moveaxis gather take_along_dim squeeze_copy unfold im2col"
).split()


@rule("slice_scatter", "select_scatter")
def writes(step: Step) -> Any:
    x, dim = step.owners(step.args[0]), step.arg(2, "dim", 0)
    if x.units.shape[dim % len(x.shape)] > 1:
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
    index = step.node.target._schema.name == "aten::index"

    def mapped(value: Any, outer: bool = True) -> Any:
        if isinstance(value, (Owners, Held)):
            return step.owners(value).full(which)
        if isinstance(value, Tensor):
            return value if index or step.analysis_index(value) else torch.full(value.shape, NOBODY)
        if isinstance(value, (list, tuple)):
            return [mapped(each, False) for each in value]
        return value

    args = [mapped(each) for each in step.args]
    kwargs = {name: mapped(each) for name, each in step.kwargs.items()}
    target = step.node.target
    if step.node.target._schema.name in ("aten::view", "aten::_unsafe_view"):
        target = torch.ops.aten.reshape.default
    if step.node.target._schema.name == "aten::im2col":  # of numbers alone, and what it pads is 0: nobody's
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


def _index(self: Step, value: Tensor) -> bool:
    return self.node.target._schema.name in ("aten::index_select", "aten::gather")


Step.analysis_index = _index


@rule("eidetic_kernels::mark")
def is_kept_whole(step: Step) -> Owners:
    """A module that drops, or that has a rule of the user's."""
    own = own_rule(step.analysis.module.get_submodule(step.args[1]))
    if own not in (None, known_rules.drops, known_rules.passes, known_rules.passes_images):
        own(step)
        step.refuse("the rule of a module that ek.convert keeps whole is passes, drops or refuses")
    return passes(step)


@rule("contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as", "lift_fresh_copy", "float", "dropout", "feature_dropout", "alpha_dropout",
      "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "selu", "celu",
      "mish", "softplus", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "square", "erf", "log1p", "bitwise_not",
      "logical_not", "log_sigmoid", "softsign", "sign", "round", "floor", "ceil", "clamp", "clamp_min", "clamp_max", "nan_to_num", "threshold", "hardshrink","softshrink", "native_dropout", "expm1","logit", "log2", "tanhshrink")
def passes(step: Step) -> Owners:
    first, *others = (each for each in leaves([step.args, step.kwargs]) if isinstance(each, (Owners, Held, Tensor)))
    if step.node.target._schema.name in ("aten::clamp", "aten::clamp_min", "aten::clamp_max") and others:
        return ties(step)
    value = step.owners(first)
    return Owners(value.shape, value.units, value.samples, value.coarse)


@rule("_assert_tensor_metadata")
def nothing(step: Step) -> None:
    return None


@rule("pad", "constant_pad_nd")
def pads(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    sides = list(step.arg(1))
    mode = step.arg(2, "mode", "constant") if step.node.target._schema.name == "aten::pad" else "constant"
    rank = len(x.shape)
    touched = {rank - 1 - i // 2 for i, side in enumerate(sides) if side}
    out = []
    for which in ("units", "samples"):
        m = getattr(x, which)
        if all(m.shape[d] == 1 for d in touched):
            out.append(m)
            continue
        if mode != "constant":
            step.refuse("pads units or samples")
        out.append(small(torch.constant_pad_nd(x.full(which), sides, NOBODY)))
    return Owners(step.shape, *out, x.coarse)


def settled(step: Step, x: Owners, dims: Any = None) -> Owners:
    """``x``, where units that differ from position to position are tied: a class token's and the patches'.

    Units of one layer that differ along a dimension are others: heads. ``dims``: only these are looked at.
    """
    units = x.units
    for d in x.unit_dims:
        if dims is not None and d not in dims:
            continue
        first = units.narrow(d, 0, 1)
        a, b = torch.broadcast_tensors(first, units)
        differ = (a != b) & (a >= 0) & (b >= 0)
        if not bool(differ.any()):
            if bool((a != b).any()):  # some are nobody's: zeros
                if len(x.unit_dims) > 1:
                    best = units.amax(d, keepdim=True)
                    units = best
            continue
        made_a, made_b = step.constraints.makers(a[differ]), step.constraints.makers(b[differ])
        if bool(((made_a == made_b) & (made_a >= 0)).any()):
            continue
        if dims is None and len([s for s in units.shape if s > 1]) == 1:  # the units' own dimension
            continue
        (step.constraints.together if x.coarse else step.constraints.same)(first, units)
        best = torch.where(first >= 0, first, units.amax(d, keepdim=True))
        units = best
    samples = x.samples
    for d, size in enumerate(samples.shape):
        if size > 1:
            most = samples.amax(d, keepdim=True)
            if bool(((samples == most) | (samples < 0)).all()):
                samples = most
    return Owners(x.shape, small(units), samples, x.coarse)


# -- combining ------------------------------------------------------------------------------------------------------

COMBINING = (
    "add sub rsub mul div true_divide pow where lerp addcmul addcdiv maximum minimum eq ne lt le gt ge logical_and "
    "logical_or bitwise_and bitwise_or masked_fill copysign atan2 fmod remainder floor_divide clip logaddexp xlogy hypot heaviside copy logical_xor __and__ __or__ __xor__ bitwise_xor"
).split()


@rule(*COMBINING)
def ties(step: Step) -> Owners:
    given = [each for each in leaves([step.args, step.kwargs]) if isinstance(each, (Owners, Held, Tensor))]
    return combined(step, *(step.owners(each) for each in given), raw=given)


def combined(step: Step, *given: Owners, raw: Any = ()) -> Owners:
    shape = torch.broadcast_shapes(*(each.shape for each in given))
    whole = given[0]
    for index, other in enumerate(given[1:]):
        units, coarse = merged(step, whole, other)
        samples = merged_samples(step, whole.samples, other.samples)
        unit_dims = [d - units.dim() for d, s in enumerate(units.shape) if s > 1]
        for each in (whole, other):
            if not each.owned:
                bad = [d for d in unit_dims if len(each.shape) >= -d and each.shape[d] > 1]
                if bad and not each.sampled and not bool((units < 0).any()):
                    step.analysis.notes.append(f"fixed [{list(each.shape)}] along units at {step.node.name}")
                elif bad:
                    step.refuse("units are combined with what belongs to no task (the input)")
        whole = Owners(tuple(torch.broadcast_shapes(whole.shape, other.shape)), units, samples, coarse)
    return Owners(tuple(shape), whole.units.expand(*([1] * (len(shape) - whole.units.dim())), *whole.units.shape) if whole.units.dim() < len(shape) else whole.units, whole.samples.view([1] * (len(shape) - whole.samples.dim()) + list(whole.samples.shape)), whole.coarse)


def merged(step: Step, a: Owners, b: Owners) -> tuple[Tensor, bool]:
    """The units of numbers made of ``a`` and ``b``, which are tied; and whether these are coarse.

    Units that meet one to one are the same. Where one meets many (a head's scale and its units), they live together.
    """
    if not b.owned or not a.owned:
        one = a if a.owned else b
        x, y = torch.broadcast_tensors(a.units, b.units)
        return small(torch.maximum(x, y)), one.coarse
    x, y = torch.broadcast_tensors(a.units, b.units)
    if not (a.coarse or b.coarse):
        many_x, many_y = _meets_many(x, y)
        if many_x or many_y:
            a, b = settled(step, a), settled(step, b)
            x, y = torch.broadcast_tensors(a.units, b.units)
            many_x, many_y = _meets_many(x, y)
        if not (many_x or many_y):
            step.constraints.same(x, y)
            return small(torch.where(x >= 0, x, y)), False
        step.constraints.together(x, y)
        if many_x and not many_y:
            return small(torch.where(y >= 0, y, x)), False
        return small(torch.where(x >= 0, x, y)) if many_y and not many_x else small(torch.where(y >= 0, y, x)), many_x and many_y
    step.constraints.together(x, y)
    # A number that a unit made and something of its whole grain scaled is the unit's; tensors' elements are slices.
    if a.coarse and not b.coarse and bool((step.constraints.makers(b.units) >= 0).any()):
        x, y, a = y, x, b
    elif b.coarse and not a.coarse and not bool((step.constraints.makers(a.units) >= 0).any()):
        x, y, a = y, x, b
    elif a.coarse and b.coarse and b.units.numel() > a.units.numel():
        x, y, a = y, x, b
    return small(torch.where(x >= 0, x, y)), a.coarse


def _meets_many(x: Tensor, y: Tensor) -> tuple[bool, bool]:
    """Whether some unit of ``x`` meets several of ``y``, and the other way round."""
    both = (x >= 0) & (y >= 0) & (x != y)
    pairs = torch.unique(torch.stack([x[both], y[both]]), dim=1)
    if not pairs.numel():
        return False, False
    count = pairs.shape[1]
    return len(torch.unique(pairs[0])) < count, len(torch.unique(pairs[1])) < count


def merged_samples(step: Step, a: Tensor, b: Tensor) -> Tensor:
    x, y = torch.broadcast_tensors(a, b)
    both = (x >= 0) & (y >= 0)
    if bool((x[both] != y[both]).any()):
        step.refuse("mixes samples")
    return small(torch.where(x >= 0, x, y))


# -- reductions -----------------------------------------------------------------------------------------------------


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


def _mix(self: Step, units: Tensor, dim: int, mixing: str) -> None:
    self.constraints.together(units.narrow(dim, 0, 1), units)
    self.analysis.mixed.append((self.node, units, dim, mixing))


Step.mix = _mix


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "norm", "linalg_vector_norm", "argmax", "prod", "all", "any")
def reduces(step: Step) -> Owners:
    name = step.node.target._schema.name
    position = {"aten::linalg_vector_norm": 2, "aten::norm": 2}.get(name, 1)
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
        if x.samples.shape[d] > 1: step.refuse("mixes samples")
        if x.units.shape[d] > 1: step.mix(x.units, d, "refuse")
    u, s = x.units, x.samples
    for d in dims: u, s = u.narrow(d, 0, 1), s.narrow(d, 0, 1)
    if not keep:
        for d in reversed(dims): u, s = u.squeeze(d), s.squeeze(d)
    from .capture import concrete
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


@rule("max", "min")
def maximum_dim(step: Step) -> Any:
    if step.node.target._overloadname == "other":
        return ties(step)
    if len(step.args) == 2 and isinstance(step.args[1], int):
        x = step.owners(step.arg(0)); d = step.args[1] % len(x.shape)
        if x.samples.shape[d] > 1: step.refuse("mixes samples")
        u = x.units; coarse = x.coarse
        if u.shape[d] > 1: step.mix(u, d, "refuse"); u = u.narrow(d, 0, 1); coarse = True
        s = x.samples
        keep = step.node.meta["val"][0].dim() == len(x.shape)
        if not keep: u, s = u.squeeze(d), s.squeeze(d)
        from .capture import concrete
        shape = tuple(concrete(k) for k in step.node.meta["val"][0].shape)
        return [Owners(shape, u, s, coarse)] * 2
    step.refuse("mixes samples" if step.owners(step.args[0]).sampled else "it takes the largest of all units")


# -- images ---------------------------------------------------------------------------------------------------------

IMAGES = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool2d adaptive_max_pool1d upsample_bilinear2d upsample_nearest2d upsample_bicubic2d upsample_linear1d upsample_nearest1d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler reflection_pad2d replication_pad2d max_pool2d_with_indices upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact2d"
).split()


@rule(*IMAGES)
def on_images(step: Step) -> Any:
    x = step.owners(step.arg(0))
    name = step.node.target._schema.name
    spatial = int(next((c for c in name if c.isdigit()), "2"))
    rank = len(x.shape)
    x = settled(step, x, range(rank - spatial, rank))
    for d in range(rank - spatial, rank):
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        if x.units.shape[d] > 1:
            step.refuse("pools units")
    val = step.node.meta["val"]
    if isinstance(val, (list, tuple)):
        from .capture import concrete
        return [Owners(tuple(concrete(k) for k in v.shape), x.units, x.samples, x.coarse) for v in val]
    return Owners(step.shape, x.units, x.samples, x.coarse)


# -- products -------------------------------------------------------------------------------------------------------


@rule("matmul", "bmm", "mm")
def multiplies(step: Step) -> Owners:
    a, b = settled(step, step.owners(step.arg(0))), settled(step, step.owners(step.arg(1)))
    if len(a.shape) < 2 or len(b.shape) < 2:
        step.refuse("a product with a vector")
    return product(step, a, b)


def product(step: Step, a: Owners, b: Owners) -> Owners:
    """a [*, i, k] times b [*, k, j]."""
    made, rank = _inner(step, a, b), len(step.shape)
    units, samples = (each.view([1] * (rank - each.dim()) + list(each.shape)) for each in (made.units, made.samples))
    return Owners(step.shape, units, samples, made.coarse)


@rule("scaled_dot_product_attention")
def attends(step: Step) -> Owners:
    q, k, v = (settled(step, step.owners(each)) for each in step.args[:3])
    mask = step.arg(3, "attn_mask")
    kt = Owners((), k.units.transpose(-1, -2), k.samples.transpose(-1, -2), k.coarse)
    gqa = step.kwargs.get("enable_gqa")
    if gqa:
        step.refuse("grouped queries")
    scores = _inner(step, q, kt)
    if mask is not None:
        m = step.owners(mask)
        units, coarse = merged(step, scores, m)
        scores = settled(step, Owners((), units, merged_samples(step, scores.samples, m.samples), coarse))
    if scores.units.shape[-1] > 1 or scores.samples.shape[-1] > 1:
        step.refuse("its softmax mixes")
    out = _inner(step, scores, v)
    return Owners(step.shape, out.units, out.samples, out.coarse)


def _inner(step: Step, a: Owners, b: Owners) -> Owners:
    for x, d in ((a, -1), (b, -2)):
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
    ka, kb = a.units[..., :1, :], b.units[..., :, :1].transpose(-1, -2)
    if (a.units.shape[-1] > 1 or b.units.shape[-2] > 1) and a.owned and b.owned:
        (step.constraints.together if a.coarse or b.coarse else step.constraints.same)(ka, kb)
    for x, d in ((a, -1), (b, -2)):
        if x.units.shape[d] > 1:
            step.mix(x.units, x.units.dim() + d, "attention")
    left = Owners((), a.units[..., :, :1], a.samples[..., :, :1], a.coarse or a.units.shape[-1] > 1)
    right = Owners((), b.units[..., :1, :], b.samples[..., :1, :], b.coarse or b.units.shape[-2] > 1)
    units, coarse = merged(step, left, right)
    return Owners((), units, merged_samples(step, left.samples, right.samples), coarse)


@rule("einsum")
def einsum(step: Step) -> Owners:
    equation, operands = step.args[0], [step.owners(x) for x in step.args[1]]
    left, _, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in equation or any(len(set(t)) < len(t) for t in (*terms, out)):
        step.refuse("einsum of this form")
    letters = sorted(set("".join(terms)))
    maps = []
    for term, x in zip(terms, operands):
        order = [term.index(l) for l in letters if l in term]
        u, s = x.units.permute(order), x.samples.permute(order)
        for i, l in enumerate(letters):
            if l not in term:
                u, s = u.unsqueeze(i), s.unsqueeze(i)
        maps.append(Owners((), u, s, x.coarse))
    a, b = maps
    contracted = [i for i, l in enumerate(letters) if l not in out]
    for x in maps:
        for i in contracted:
            if x.samples.shape[i] > 1:
                step.refuse("mixes samples")
    # a value may vary in a contracted letter
    coarse = []
    reps = []
    vary = any(x.units.shape[i] > 1 for x in maps for i in contracted)
    if vary and a.owned and b.owned:
        sel_a, sel_b = a.units, b.units
        for i in range(len(letters)):
            if i not in contracted:
                # constant letter kept where both vary
                if not (a.units.shape[i] > 1 and b.units.shape[i] > 1):
                    sel_a, sel_b = sel_a.narrow(i, 0, 1), sel_b.narrow(i, 0, 1)
        (step.constraints.together if a.coarse or b.coarse else step.constraints.same)(sel_a, sel_b)
    for x in maps:
        u, c = x.units, x.coarse
        for i in contracted:
            if u.shape[i] > 1:
                step.mix(u, i, "attention")
                u, c = u.narrow(i, 0, 1), True
        s = x.samples
        reps.append(Owners((), u, s, c))
    units, co = merged(step, *reps)
    samples = merged_samples(step, reps[0].samples, reps[1].samples)
    kept = [letters.index(l) for l in out]
    rest = [i for i in contracted]
    units = units.permute(kept + rest).flatten(len(kept)) if rest else units.permute(kept)
    samples = samples.permute(kept + rest).flatten(len(kept)) if rest else samples.permute(kept)
    if rest:
        units, samples = units[..., 0], samples[..., 0]
    return Owners(step.shape, units, samples, co)


# -- layers ---------------------------------------------------------------------------------------------------------


def read_along(step: Step, x: Owners, dim: int) -> Tensor:
    """The units of the numbers along ``dim``, which must be the same at all positions."""
    dim %= len(x.shape)
    units = x.units
    if x.samples.shape[dim] > 1:
        step.refuse("mixes samples")
    columns = units
    for d in range(units.dim()):
        if d != dim and units.shape[d] > 1:
            first = columns.narrow(d, 0, 1)
            (step.constraints.together if x.coarse else step.constraints.same)(first, columns)
            step.analysis.across.append((step.node, columns, d))
            columns = first
    return columns.flatten().expand(x.shape[dim]) if columns.numel() == 1 else columns.flatten()


def parameter(step: Step, index: int, name: str) -> Held | None:
    value = step.arg(index, name)
    if value is None or isinstance(value, Held):
        return value
    return value


def followed(step: Step, layer: Layer) -> None:
    """Note a layer that follows the units it reads. Called again, it reads the same units again."""
    for before in step.analysis.layers:
        if before.kind == layer.kind and before.path == layer.path:
            if len(before.units) != len(layer.units):
                step.refuse("it was called with other units before")
            step.constraints.same(before.units, layer.units)
            break
    step.analysis.layers.append(layer)


def own_weight(step: Step, kind: str) -> tuple[Held, Computed | None]:
    """The parameter that is a layer's weight, and how the weight is computed of it."""
    weight = step.args[1]
    if isinstance(weight, Held):
        return weight, None
    if isinstance(weight, Tensor):
        step.refuse(f"a {kind} with a fixed weight")
    computed = computed_weight(step.analysis, step.node.args[1])
    if computed is None:
        step.refuse(f"the weight of a {kind} is computed")
    weight = step.analysis.held(computed.weight)
    step.constraints.taken(weight.path)
    return weight, computed


def layer_path(weight: str) -> str:
    """The path of the layer whose weight, or a parametrization of it, is at the path ``weight``."""
    return weight.partition(".parametrizations.")[0] if ".parametrizations." in weight else weight.rpartition(".")[0]


def over_channels(step: Step, x: Owners, kind: str, out_dim: int) -> Owners:
    """A product of what is no unit's with what is fixed."""
    rank = len(step.shape)
    dim = out_dim % rank
    if x.samples.shape[dim] > 1:
        step.refuse("mixes samples")
    return Owners(step.shape, torch.full([1] * rank, NOBODY), x.samples)


def made(step: Step, kind: str, x: Owners, dim: int, out_dim: int, options: dict[str, Any] | None = None) -> Owners:
    x = settled(step, x)
    if isinstance(step.args[1], Tensor) and not x.owned:  # the input, by what is fixed
        return over_channels(step, x, kind, out_dim)
    if kind == "linear" and x.owned and x.units.shape[-1] == 1 and x.samples.shape[-1] == 1 and x.unit_dims:
        return Owners(step.shape, x.units, x.samples, x.coarse)  # over positions: all tasks share its weights
    weight, computed = own_weight(step, kind)
    path = layer_path(weight.path) or weight.path
    reads = read_along(step, x, dim)
    rank = len(step.shape)
    out = step.constraints.made.get(weight.path)
    if out is None:
        out = step.constraints.new(weight.path, kind, step.shape[out_dim])
    elif out.kind != kind:
        step.refuse(f"{weight.path!r} is used by a layer and beside it")
    else:  # a layer that is called again: the same units, which read the same units
        before = next(layer for layer in step.analysis.layers if layer.options.get("weight") == weight.path)
        step.constraints.same(before.options["columns"], reads)
        if bool(((before.options["columns"] < 0) != (reads < 0)).any()):
            step.refuse("a layer reads units in one place, and the input in another")
    bias = step.arg(2, "bias")
    if isinstance(bias, Owners):  # put together of others: an element for each unit, or nobody's
        if bias.units.shape[-1] != len(out.units):
            step.refuse("its bias is computed, and not put together of tensors")
        step.constraints.same(bias.units.flatten(), out.units)
    step.analysis.layers.append(Layer(kind, path, step.node, x, out.units, {"columns": reads, "weight": weight.path, "computed": computed}))
    samples = x.samples
    if kind != "linear":
        samples = samples[:, :1]
        samples = samples.view(samples.shape[0], *[1] * (rank - 1))
    return Owners(step.shape, along(out_dim % rank, rank, out.units), samples)


@rule("linear")
def linear(step: Step) -> Owners:
    return made(step, "linear", step.owners(step.arg(0)), -1, -1)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolves(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    spatial = len(step.shape) - 2
    x = settled(step, x, [0, *range(2, len(x.shape))])
    if len(x.shape) != spatial + 2:
        step.refuse("a convolution without a batch")
    for d in range(2, len(x.shape)):
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        if x.units.shape[d] > 1:
            step.refuse("a convolution over units")
    groups = step.arg(6, "groups", 1)
    channels, out = x.shape[1], step.shape[1]
    weight = step.args[1]
    if groups == 1:
        return made(step, "conv", x, 1, 1)
    if isinstance(weight, Tensor) and groups == channels == out:
        return Owners(step.shape, x.units, x.samples, x.coarse)
    if "transpose" in step.node.target._schema.name:
        step.refuse(f"a grouped {step.node.target._schema.name.removeprefix('aten::')}")
    weight, computed = own_weight(step, "grouped convolution")
    reads = read_along(step, x, 1)
    if not x.owned:
        step.refuse("a grouped convolution of the network's input makes units of which each reads some inputs alone. Begin with an ordinary convolution")
    run = reads.view(groups, -1)
    step.mix(run, 1, "groups")
    units = reads
    if channels != out:
        units = step.constraints.again_or_new(weight.path, "grouped", out).units
        step.constraints.together(run[:, :1], units.view(groups, -1))
    path = layer_path(weight.path)
    followed(step, Layer("grouped", path, step.node, x, reads, {"computed": computed}))
    return Owners(step.shape, along(1, len(step.shape), units), x.samples)


@rule("batch_norm", "_native_batch_norm_legit_functional")
def normalises(step: Step) -> Owners:
    x = settled(step, step.owners(step.arg(0)))
    if step.args[3] is None and step.args[5]:  # statistics of its own: a weight's
        for d in range(len(x.shape)):
            if d != 1 and x.samples.shape[d] > 1:
                step.refuse("mixes samples")
        return Owners(x.shape, x.units.narrow(0, 0, 1), x.samples, x.coarse)
    if not isinstance(step.args[1], (Held, type(None))) or not isinstance(step.args[3], Tensor):
        step.refuse("a BatchNorm without statistics, or of computed parameters")
    reads = read_along(step, x, 1)
    path = step.analysis.captured.held.get(step.node.args[3].name, "").rpartition(".")[0] or step.node.name
    followed(step, Layer("batch_norm", path, step.node, x, reads))
    return Owners(x.shape, along(1, len(x.shape), reads), x.samples, x.coarse)


@rule("layer_norm", "rms_norm")
def layer_norms(step: Step) -> Owners:
    x = settled(step, step.owners(step.arg(0)))
    if len(step.args[1]) != 1:
        step.refuse("a LayerNorm over several dimensions")
    if x.units.shape[-1] == 1:
        if x.samples.shape[-1] > 1:
            step.refuse("mixes samples")
        return x  # over positions: what is learned there, all tasks share
    if any(s > 1 for s in x.units.shape[:-1]):
        # heads: inside a grain, or positions that will be tied
        step.analysis.notes.append(f"norm over the last of several unit dims at {step.node.name}")
        return x
    reads = read_along(step, x, -1)
    weight = step.arg(2, "weight")
    path = weight.path.rpartition(".")[0] if isinstance(weight, Held) else step.node.name
    followed(step, Layer("layer_norm", path, step.node, x, reads))
    return Owners(x.shape, along(len(x.shape) - 1, len(x.shape), reads), x.samples, x.coarse)


@rule("group_norm")
def group_norms(step: Step) -> Owners:
    x = settled(step, step.owners(step.arg(0)))
    reads = read_along(step, x, 1)
    groups = step.args[1]
    if groups > 1:
        step.mix(reads.view(groups, -1), 1, "groups")
    weight = step.arg(2, "weight")
    path = weight.path.rpartition(".")[0] if isinstance(weight, Held) else step.node.name
    followed(step, Layer("group_norm", path, step.node, x, reads, {"groups": groups}))
    return Owners(x.shape, along(1, len(x.shape), reads), x.samples, x.coarse)


@rule("prelu", "_prelu_kernel")
def slopes(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    weight = step.args[1]
    if isinstance(weight, Held) and weight.value.numel() > 1:
        w = step.owners(weight)
        step.constraints.same(w.units.flatten(), read_along(step, x, 1))
    return x


@rule("_weight_norm")
def scales_rows(step: Step) -> Owners:
    """A direction and a length for each row: of a weight, whose rows are followed as samples."""
    x = step.owners(step.args[0])
    if step.arg(2, "dim", 0) != 0 or x.samples.shape[0] == 1 < x.shape[0]:
        step.refuse("a weight norm over anything but rows")
    return x


@rule("embedding")
def embeds(step: Step) -> Owners:
    weight, index = step.args[0], step.args[1]
    if not isinstance(weight, Held):
        step.refuse("the table of an embedding is computed, or fixed")
    if any(step.args[3:]) or any(step.kwargs.values()):
        step.refuse("an embedding with scaled or sparse gradients")
    i = step.owners(index)
    out = step.constraints.again_or_new(weight.path, "embedding", weight.value.shape[1])
    if out.kind != "embedding":
        step.refuse(f"{weight.path!r} is used by an embedding and beside it")
    columns = torch.full((weight.value.shape[0],), NOBODY)
    path = weight.path.rpartition(".")[0]
    step.analysis.layers.append(
        Layer("embedding", path, step.node, i, out.units, {"columns": columns, "weight": weight.path})
    )
    rank = len(step.shape)
    return Owners(step.shape, along(rank - 1, rank, out.units), i.samples.unsqueeze(-1))


@rule("one_hot")
def enters_classes(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    if x.owned:
        step.refuse("units as indices")
    samples = x.samples.unsqueeze(-1)
    return Owners(step.shape, torch.full([1] * len(step.shape), NOBODY), samples)


CREATING = "zeros ones full arange new_zeros new_ones new_full zeros_like ones_like full_like eye linspace scalar_tensor new_empty empty empty_like new_tensor".split()


@rule(*CREATING)
def creates(step: Step) -> Owners:
    return nobodys(step.shape)


@rule(*"bernoulli rand rand_like randn randn_like randint randint_like randperm normal normal_functional uniform multinomial".split())
def draws(step: Step) -> Owners:
    step.refuse(
        "it draws random numbers in evaluation, so outputs would never repeat. Draw them in training alone, in a module "
        "of its own with a rule (ek.register_rule(module, ek.rules.drops)), or outside of the network."
    )


@rule("zero", "fill", "fill_", "zero_")
def fills(step: Step) -> Owners:
    return nobodys(step.shape)


@rule("tril", "triu", "masked_fill")
def triangle(step: Step) -> Owners:
    return ties(step)
