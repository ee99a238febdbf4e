"""Rules of operations that compute each number by itself, or of those at the same place of others."""

from __future__ import annotations

from torch import Tensor

from ...wiring import rules as known_rules
from ..graphs.marks import own_rule
from ..graphs.nodes import leaves, operation
from .maps import Owners
from .merging import combined
from .step import Held, Step, rule


@rule("eidetic_kernels::mark")
def is_kept_whole(step: Step) -> Owners:
    """A module that drops, or that has a rule of the user's."""
    own = own_rule(step.analysis.module.get_submodule(step.args[1]))
    if own not in (None, known_rules.drops, known_rules.passes, known_rules.passes_images):
        own(step)
        step.refuse("the rule of a module that ek.convert keeps whole is passes, drops or refuses")
    return passes(step)


PASSING = (
    "contiguous clone alias detach to _to_copy type_as lift_fresh_copy float dropout feature_dropout "
    "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus abs neg "
    "exp log sqrt rsqrt reciprocal sin cos square erf log1p bitwise_not logical_not log_sigmoid softsign sign round "
    "floor ceil clamp clamp_min clamp_max nan_to_num threshold hardshrink softshrink native_dropout expm1 logit log2 "
    "tanhshrink acos acosh asin asinh atan atanh cosh sinh tan exp2 log10 erfc erfinv digamma lgamma frac trunc fix "
    "positive sgn deg2rad rad2deg isnan isinf isfinite isposinf isneginf signbit i0 sinc special_expit special_erf "
    "half double bfloat16 conj real bool int long"
).split()


@rule(*PASSING)
def passes(step: Step) -> Owners:
    step.refuse_counts()
    first, *others = (each for each in leaves([step.args, step.kwargs]) if isinstance(each, (Owners, Held, Tensor)))
    if operation(step.node) in ("clamp", "clamp_min", "clamp_max") and others:
        return ties(step)
    value = step.owners(first)
    return Owners(value.shape, value.units, value.samples, value.coarse)


@rule("alpha_dropout", "feature_alpha_dropout")
def drops_to_a_mean(step: Step) -> Owners:
    if step.arg(2, "train"):
        step.refuse("it drops out in evaluation too: give it training=self.training.")
    return passes(step)


@rule("_assert_tensor_metadata")
def nothing(step: Step) -> None:
    return None


COMBINING = (
    "add sub rsub mul div true_divide pow where lerp addcmul addcdiv maximum minimum eq ne lt le gt ge logical_and "
    "logical_or bitwise_and bitwise_or masked_fill copysign atan2 fmod remainder floor_divide clip logaddexp xlogy "
    "hypot heaviside copy logical_xor __and__ __or__ __xor__ bitwise_xor polar float_power fmax fmin nextafter ldexp "
    "gcd arctan2 special_xlogy special_xlog1py isclose"
).split()


@rule(*COMBINING)
def ties(step: Step) -> Owners:
    step.refuse_counts()
    given = [each for each in leaves([step.args, step.kwargs]) if isinstance(each, (Owners, Held, Tensor))]
    return combined(step, *(step.owners(each) for each in given))


@rule("tril", "triu", "masked_fill")
def triangle(step: Step) -> Owners:
    return ties(step)
