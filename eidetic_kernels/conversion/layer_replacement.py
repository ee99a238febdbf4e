"""Replaces plain layers by layers that know segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from ..layers import (
    EideticBatchNorm,
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDepthwiseConv2d,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticPReLU,
    EideticRelativeAttention,
    EideticWindowAttention,
    EideticWindowAttentionV2,
    HeadedAttention,
    SegmentedLayer,
)
from ..layers.relative_attention import RelativePositionalMultiHeadAttention
from ..layers.window_attention import ShiftedWindowAttention, ShiftedWindowAttentionV2
from ..wiring import rules
from ..wiring.diagnostics import Place, at_node
from .nodes import called_module, path_of


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether ``module`` computes what ``cls`` does and nothing more; a layer of this package is not plain."""
    ours = isinstance(module, (SegmentedLayer, HeadedAttention))
    return isinstance(module, cls) and type(module).forward is cls.forward and not ours


def replace_layer(module: nn.Module, node: fx.Node) -> None:
    """Replace the layer of ``module`` that ``node`` calls, in place, if there is a layer that knows segments for it.

    Raises ConversionError for a layer that cannot be replaced, and where hooks would be lost.
    """
    old = called_module(module, node)
    refuse_hooks(module, node)
    name = f"{type(old).__module__}.{type(old).__qualname__}"
    kinds = (make for kind, make in REPLACEMENTS.items() if not isinstance(kind, str) and is_plain(old, kind))
    make = REPLACEMENTS.get(name) or next(kinds, None)
    if make is None:
        return

    new = make(old, at_node(node))
    if isinstance(new, SegmentedLayer):  # an attention is made of several, and has taken over their parameters
        for name, parameter in old.named_parameters(recurse=False):
            setattr(new, name, parameter)  # a copy already, in its dtype, device and memory format
        for name, buffer in old.named_buffers(recurse=False):
            new.register_buffer(name, buffer)
    new.train(old.training)
    module.set_submodule(path_of(node), new)


def refuse_hooks(module: nn.Module, node: fx.Node) -> None:
    """Raise ConversionError where the layer that ``node`` calls, or a part of it, has hooks or a forward of its own.

    A trace does not look into such a layer. Its replacement would lose them, and no rule knows what they do.
    """
    for part in called_module(module, node).modules():
        hooks = [*part._forward_hooks, *part._forward_pre_hooks, *part._backward_hooks, *part._backward_pre_hooks]
        if hooks or parametrize.is_parametrized(part) or "forward" in vars(part):
            raise at_node(node).refused(
                f"{node.target!r} has hooks or parametrizations (weight or spectral normalisation), or a forward of "
                "its own beside its class's, which would be lost or could mix units. Remove them first "
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )


def _factory(old: nn.Module) -> dict[str, Any]:
    """Device and dtype of the layer's tensors, as constructors take them."""
    tensor = next(iter(old.state_dict().values()))
    return {"device": tensor.device, "dtype": tensor.dtype if tensor.is_floating_point() else None}


def _linear(old: nn.Linear, where: Place) -> EideticLinear:
    return EideticLinear(old.in_features, old.out_features, old.bias is not None, **_factory(old))


def _conv2d(old: nn.Conv2d, where: Place) -> SegmentedLayer:
    same = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    options: dict[str, Any] = (
        {name: getattr(old, name) for name in same} | {"bias": old.bias is not None} | _factory(old)
    )
    if old.groups == 1:
        return EideticConv2d(old.in_channels, old.out_channels, **options)
    if old.in_channels != old.out_channels:
        raise where.refused(
            f"a convolution of {old.in_channels} into {old.out_channels} channels with groups={old.groups} "
            "has no rule: each group of channels must make as many as it reads, so that they are the same units. Let "
            "it make as many, and put a 1x1 convolution behind it."
        )
    if old.groups == old.in_channels:
        return EideticDepthwiseConv2d(old.in_channels, **options)
    return EideticGroupedConv2d(old.in_channels, old.groups, **options)


def _batch_norm(kind: type[EideticBatchNorm]) -> Callable[..., SegmentedLayer]:
    def make(old: nn.BatchNorm1d | nn.BatchNorm2d, where: Place) -> SegmentedLayer:
        if not old.track_running_stats or old.running_mean is None:
            raise where.refused(
                "without running statistics (track_running_stats=False) there is nothing to freeze: a "
                "finished task's answers would depend on the test batch."
            )
        return kind(old.num_features, old.eps, old.momentum, old.affine, **_factory(old))

    return make


def _layer_norm(old: nn.LayerNorm, where: Place) -> EideticLayerNorm:
    if len(old.normalized_shape) != 1:
        raise where.refused(
            f"LayerNorm over the dimensions {list(old.normalized_shape)} mixes units and positions; only one "
            "over the units alone can be kept task by task."
        )
    first = f"{type(old).__module__}.{type(old).__qualname__}" in rules.LAYER_NORMS_2D
    factory = _factory(old) if old.elementwise_affine else {}
    return EideticLayerNorm(
        old.normalized_shape, old.eps, old.elementwise_affine, old.bias is not None, **factory, channels_first=first
    )


def _prelu(old: nn.PReLU, where: Place) -> EideticPReLU:
    return EideticPReLU(old.num_parameters, old.init, **_factory(old))


def _attention(old: nn.MultiheadAttention, where: Place) -> EideticMultiheadAttention:
    if not old._qkv_same_embed_dim or old.bias_k is not None or old.add_zero_attn:
        raise where.refused(
            "attention with keys or values of another size (kdim, vdim), with biases of its own for them "
            "(add_bias_kv) or with an added zero (add_zero_attn) has no rule."
        )
    bias = old.in_proj_bias is not None
    new = EideticMultiheadAttention(old.embed_dim, old.num_heads, old.dropout, bias, old.batch_first, **_factory(old))
    new.adopt(old.in_proj_weight, old.in_proj_bias, old.out_proj)
    return new


def _window_attention(old: ShiftedWindowAttention, where: Place) -> EideticWindowAttention:
    new = EideticWindowAttention(
        old.qkv.in_features,
        old.window_size,
        old.shift_size,
        old.num_heads,
        old.qkv.bias is not None,
        old.proj.bias is not None,
        old.attention_dropout,
        old.dropout,
        **_factory(old.qkv),
    )
    new.adopt_window(old)
    return new


def _window_attention_v2(old: ShiftedWindowAttentionV2, where: Place) -> EideticWindowAttentionV2:
    return EideticWindowAttentionV2(old, **_factory(old.qkv))


def _relative_attention(old: RelativePositionalMultiHeadAttention, where: Place) -> EideticRelativeAttention:
    factory = _factory(old.to_qkv)
    new = EideticRelativeAttention(old.to_qkv.in_features, old.head_dim, old.max_seq_len, **factory)
    new.adopt_relative(old)
    return new


# The makers of replacements, by the class of the layer; by its name where the class is another package's.
REPLACEMENTS: dict[str | type[nn.Module], Callable[..., nn.Module]] = {
    rules.RELATIVE_ATTENTION: _relative_attention,
    f"{rules.WINDOW_ATTENTION}V2": _window_attention_v2,
    rules.WINDOW_ATTENTION: _window_attention,
    nn.MultiheadAttention: _attention,
    **dict.fromkeys(rules.LAYER_NORMS_2D, _layer_norm),
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm(EideticBatchNorm1d),
    nn.BatchNorm2d: _batch_norm(EideticBatchNorm2d),
}
