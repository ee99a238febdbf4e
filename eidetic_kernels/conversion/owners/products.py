"""Rules of products of what layers made: attention, written in whatever way."""

from __future__ import annotations

from .maps import Owners
from .merging import combined, merged, merged_samples, settled
from .step import Step, rule


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


@rule("baddbmm")
def adds_a_product(step: Step) -> Owners:
    """``beta * bias + alpha * (a @ b)``, by batches: attention's scores and their mask."""
    bias, a, b = (settled(step, step.owners(step.arg(number))) for number in range(3))
    return combined(step, bias, product(step, a, b))


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
        order = [term.index(letter) for letter in letters if letter in term]
        u, s = x.units.permute(order), x.samples.permute(order)
        for i, letter in enumerate(letters):
            if letter not in term:
                u, s = u.unsqueeze(i), s.unsqueeze(i)
        maps.append(Owners((), u, s, x.coarse))
    a, b = maps
    contracted = [i for i, letter in enumerate(letters) if letter not in out]
    for x in maps:
        for i in contracted:
            if x.samples.shape[i] > 1:
                step.refuse("mixes samples")
    # a value may vary in a contracted letter
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
    kept = [letters.index(letter) for letter in out]
    rest = contracted
    units = units.permute(kept + rest).flatten(len(kept)) if rest else units.permute(kept)
    samples = samples.permute(kept + rest).flatten(len(kept)) if rest else samples.permute(kept)
    if rest:
        units, samples = units[..., 0], samples[..., 0]
    return Owners(step.shape, units, samples, co)
