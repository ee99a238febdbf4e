"""The rule table: which rule each of torch's operations has, and some modules of other packages.

What a rule does is said where it is defined, in the file for its kind (:mod:`.elementwise`, :mod:`.shapes`,
:mod:`.positions`, :mod:`.joins`, :mod:`.layers`, :mod:`.attention`). An operation that is not in this table may be done
to the network's input and to numbers, and is refused for units.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from ...layers import (
    EideticBatchNorm,
    EideticDropout,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPReLU,
    EideticRelativeAttention,
    EideticScaledDotProduct,
    EideticStochasticDepth,
    EideticWindowAttention,
    Split,
    StaircaseLayer,
)
from .attention import attends, attends_in_parts, attends_in_windows
from .elementwise import casts, drops_by_function, passes, refuses, ties
from .joins import concatenates, divides, merges_patches, separates
from .layers import drops, filters, follows, holds, normalises, produces, slopes
from .numbers import measures
from .positions import averages, indexes_or_attribute, pads, passes_images, rolls
from .registry import FUNCTIONS, METHODS, MODULES
from .shapes import expands, flattens, permutes, reshapes, squeezes

# Modules of other packages are known by name, so that none of these packages need be installed.
LAYER_NORMS_2D = ("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.LayerNorm2d")
WINDOW_ATTENTION = "torchvision.models.swin_transformer.ShiftedWindowAttention"
RELATIVE_ATTENTION = "torchvision.models.maxvit.RelativePositionalMultiHeadAttention"
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
DROP_PATH = "timm.layers.drop.DropPath"

# What is replaced by our own dropout when a network is wired.
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# Pooling, resampling and padding: over images only, whose size may change.
IMAGE_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample,
    nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
IMAGE_FUNCTIONS = (
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d, F.interpolate,
)  # fmt: skip

# Activations: each number by itself.
ACTIVATION_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign,
    nn.Tanh, nn.Tanhshrink, nn.Threshold, nn.LogSigmoid,
)  # fmt: skip
ACTIVATION_FUNCTIONS = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.hardshrink, F.softplus, F.softshrink, F.softsign, F.tanhshrink, F.threshold, F.logsigmoid,
)  # fmt: skip

# Functions of one tensor, each number by itself. By name: functions of torch, methods of tensors, and methods in place.
UNARY = (
    "abs", "acos", "asin", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "expm1", "floor", "log", "log10",
    "log1p", "log2", "logit", "nan_to_num", "neg", "reciprocal", "relu", "round", "rsqrt", "sigmoid", "sign", "sin",
    "sinh", "sqrt", "square", "tan", "tanh", "trunc",
)  # fmt: skip

# Functions of several tensors, unit by unit, by name as above.
COMBINING = (
    "add", "addcdiv", "addcmul", "atan2", "clamp", "clamp_max", "clamp_min", "clip", "copysign", "div", "eq", "fmod",
    "ge", "gt", "hypot", "le", "lerp", "logaddexp", "logical_and", "logical_not", "logical_or", "lt", "masked_fill",
    "maximum", "minimum", "mul", "ne", "pow", "remainder", "sub", "true_divide", "where",
)  # fmt: skip

# The same, as Python writes them.
OPERATORS = (
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, operator.pow, operator.ipow, operator.gt, operator.ge, operator.lt, operator.le, operator.eq,
    operator.ne, operator.and_, operator.or_,
)  # fmt: skip

_RANDOM = refuses(
    "it is random in training, for frozen units too, whose output must be the same in training and in evaluation: use "
    "torch.nn.Dropout, which leaves them alone."
)


MODULES.update({
    # Layers of ours: what makes units.
    StaircaseLayer: produces,
    EideticMultiheadAttention: attends,
    EideticWindowAttention: attends_in_windows,
    EideticRelativeAttention: attends_in_parts,
    EideticScaledDotProduct: refuses("its queries, keys and values must be heads, units seen as [N, T, heads, size]."),
    # Layers of ours: what follows units, one by one.
    EideticBatchNorm: follows,
    EideticLayerNorm: normalises,
    EideticGroupedConv2d: filters,
    EideticPReLU: slopes,
    EideticParameter: holds,
    # Splits.
    Split: separates,
    # Dropout and stochastic depth; and what is random in other ways.
    EideticDropout: drops,
    EideticStochasticDepth: drops,
    STOCHASTIC_DEPTH: drops,
    DROP_PATH: drops,
    **dict.fromkeys(DROPOUTS, drops),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU), _RANDOM),
    # What keeps units apart, and flattening.
    **dict.fromkeys(ACTIVATION_MODULES, passes),
    **dict.fromkeys(IMAGE_MODULES, passes_images),
    nn.Flatten: flattens,
    # Modules that ek.convert replaces as a whole: tracing must stop there. Plain ones stay refused.
    **dict.fromkeys(
        (*LAYER_NORMS_2D, WINDOW_ATTENTION, f"{WINDOW_ATTENTION}V2", RELATIVE_ATTENTION),
        refuses("every task trains it."),
    ),
})  # fmt: skip

FUNCTIONS.update({
    # Unit by unit: of one tensor, and of several.
    **dict.fromkeys((getattr(torch, name) for name in UNARY), passes),
    **dict.fromkeys((torch.clone, torch.detach, operator.neg, operator.invert), passes),
    **dict.fromkeys(ACTIVATION_FUNCTIONS, passes),
    **dict.fromkeys((getattr(torch, name) for name in COMBINING), ties),
    **dict.fromkeys(OPERATORS, ties),
    # Over positions.
    **dict.fromkeys(IMAGE_FUNCTIONS, passes_images),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), averages),
    F.pad: pads,
    torch.roll: rolls,
    getattr: indexes_or_attribute,
    operator.getitem: indexes_or_attribute,
    # Shapes.
    torch.flatten: flattens,
    torch.reshape: reshapes,
    torch.squeeze: squeezes,
    torch.unsqueeze: squeezes,
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes), permutes),
    # Units side by side, and apart.
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), concatenates),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split), divides),
    "torchvision.models.swin_transformer._patch_merging_pad": merges_patches,
    # Random in training.
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), drops_by_function),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout, F.rrelu), _RANDOM),
})  # fmt: skip


def _with_in_place(names: tuple[str, ...]) -> list[str]:
    both = [each for name in names for each in (name, f"{name}_")]
    return [name for name in both if hasattr(torch.Tensor, name)]


METHODS.update({
    # Unit by unit: of one tensor, and of several.
    **dict.fromkeys(_with_in_place(UNARY), passes),
    **dict.fromkeys(("clone", "contiguous", "detach"), passes),
    **dict.fromkeys(("bfloat16", "double", "float", "half", "to", "type_as"), casts),
    **dict.fromkeys(_with_in_place(COMBINING), ties),
    "expand_as": ties,
    # Over positions.
    **dict.fromkeys(("mean", "sum", "amax", "amin"), averages),
    "roll": rolls,
    # Shapes, and facts about them.
    "flatten": flattens,
    "view": reshapes,
    "reshape": reshapes,
    "expand": expands,
    "squeeze": squeezes,
    "unsqueeze": squeezes,
    **dict.fromkeys(("permute", "transpose", "swapaxes"), permutes),
    **dict.fromkeys(("size", "dim", "numel", "nelement"), measures),
    # Units apart.
    **dict.fromkeys(("chunk", "split", "tensor_split"), divides),
})  # fmt: skip
