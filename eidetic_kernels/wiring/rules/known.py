"""What is known: the rule for each of torch's operations, and of some packages' modules, by name."""

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
    Shuffle,
    Split,
    StaircaseLayer,
)
from .attention import attends, attends_in_parts, attends_in_windows
from .elementwise import casts, drops_by_function, passes, refuses, ties
from .joins import concatenates, divides, merges_patches, separates, shuffles
from .layers import drops, filters, follows, holds, normalises, produces, slopes
from .numbers import measures
from .positions import averages, indexes_or_attribute, pads, passes_images, rolls
from .registry import FUNCTIONS, METHODS, MODULES
from .shapes import expands, flattens, permutes, reshapes, squeezes

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
LAYER_NORMS_2D = ("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.LayerNorm2d")
WINDOW_ATTENTION = "torchvision.models.swin_transformer.ShiftedWindowAttention"
RELATIVE_ATTENTION = "torchvision.models.maxvit.RelativePositionalMultiHeadAttention"
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
DROP_PATH = "timm.layers.drop.DropPath"
IMAGE_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample,
    nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip

# By name: functions of torch, methods of tensors, and methods in place where there are such.
UNARY = (
    "abs", "acos", "asin", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "expm1", "floor", "log", "log10",
    "log1p", "log2", "logit", "nan_to_num", "neg", "reciprocal", "relu", "round", "rsqrt", "sigmoid", "sign", "sin",
    "sinh", "sqrt", "square", "tan", "tanh", "trunc",
)  # fmt: skip
COMBINING = (
    "add", "addcdiv", "addcmul", "atan2", "clamp", "clamp_max", "clamp_min", "clip", "copysign", "div", "eq", "fmod",
    "ge", "gt", "hypot", "le", "lerp", "logaddexp", "logical_and", "logical_not", "logical_or", "lt", "masked_fill",
    "maximum", "minimum", "mul", "ne", "pow", "remainder", "sub", "true_divide", "where",
)  # fmt: skip
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
    StaircaseLayer: produces, EideticBatchNorm: follows, EideticLayerNorm: normalises, EideticParameter: holds,
    EideticPReLU: slopes,
    EideticScaledDotProduct: refuses("its queries, keys and values must be heads, units seen as [N, T, heads, size]."),
    EideticGroupedConv2d: filters, EideticMultiheadAttention: attends, EideticWindowAttention: attends_in_windows,
    EideticRelativeAttention: attends_in_parts,
    # Plain ones have no rule, but ek.convert replaces them whole: tracing must stop there.
    **dict.fromkeys(
        (*LAYER_NORMS_2D, WINDOW_ATTENTION, f"{WINDOW_ATTENTION}V2", RELATIVE_ATTENTION),
        refuses("every task trains it."),
    ),
    nn.Flatten: flattens, Split: separates, Shuffle: shuffles,
    EideticDropout: drops, EideticStochasticDepth: drops, STOCHASTIC_DEPTH: drops,
    DROP_PATH: drops,
    **dict.fromkeys(DROPOUTS, drops),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU), _RANDOM),
    **dict.fromkeys(IMAGE_MODULES, passes_images),
    **dict.fromkeys((
        nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign,
        nn.Tanh, nn.Tanhshrink, nn.Threshold, nn.LogSigmoid,
    ), passes),
})  # fmt: skip

FUNCTIONS.update({
    getattr: indexes_or_attribute, operator.getitem: indexes_or_attribute,
    "torchvision.models.swin_transformer._patch_merging_pad": merges_patches,
    torch.flatten: flattens, torch.reshape: reshapes, torch.roll: rolls, F.pad: pads,
    torch.squeeze: squeezes, torch.unsqueeze: squeezes, torch.clone: passes, torch.detach: passes,
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), averages),
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes), permutes),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), drops_by_function),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout, F.rrelu), _RANDOM),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), concatenates),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split), divides),
    **dict.fromkeys((operator.neg, operator.invert), passes),
    **dict.fromkeys(OPERATORS, ties),
    **dict.fromkeys((getattr(torch, name) for name in UNARY), passes),
    **dict.fromkeys((getattr(torch, name) for name in COMBINING), ties),
    **dict.fromkeys((
        F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
        F.hardtanh, F.hardshrink, F.softplus, F.softshrink, F.softsign, F.tanhshrink, F.threshold,
        F.logsigmoid,
    ), passes),
    **dict.fromkeys((
        F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d, F.interpolate,
    ), passes_images),
})  # fmt: skip


def _with_in_place(names: tuple[str, ...]) -> list[str]:
    both = [each for name in names for each in (name, f"{name}_")]
    return [name for name in both if hasattr(torch.Tensor, name)]


METHODS.update({
    "flatten": flattens, "view": reshapes, "reshape": reshapes, "expand": expands, "roll": rolls,
    "expand_as": ties, "squeeze": squeezes, "unsqueeze": squeezes,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), averages),
    **dict.fromkeys(("size", "dim", "numel", "nelement"), measures),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), permutes),
    **dict.fromkeys(("chunk", "split", "tensor_split"), divides),
    **dict.fromkeys(_with_in_place(UNARY), passes),
    **dict.fromkeys(_with_in_place(COMBINING), ties),
    **dict.fromkeys(("clone", "contiguous", "detach"), passes),
    **dict.fromkeys(("bfloat16", "double", "float", "half", "to", "type_as"), casts),
})  # fmt: skip
