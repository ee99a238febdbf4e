"""Layers of ours like the plain ones, or like the operations where there is no module."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...layers import (
    EideticBatchNorm,
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticBatchNorm3d,
    EideticConv1d,
    EideticConv2d,
    EideticConv3d,
    EideticConvTranspose1d,
    EideticConvTranspose2d,
    EideticConvTranspose3d,
    EideticDepthwiseConv2d,
    EideticEmbedding,
    EideticGroupedConv1d,
    EideticGroupedConv2d,
    EideticGroupedConv3d,
    EideticGroupNorm,
    EideticLayerNorm,
    EideticLinear,
    EideticPReLU,
    EideticRMSNorm,
    StaircaseLayer,
)
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, operation, shape_of
from ..graphs.products import ROWS
from ..owners.step import Held, Layer
from .emitter import Emitter
from .places import at_path, has, set_module


def plain_layer(emitter: Emitter, node: fx.Node, layer: Layer) -> str:
    """Put a plain layer of the node's tensors into the module, where it has none; returns its path."""
    if layer.kind == "group_norm" and not any(isinstance(each, fx.Node) for each in node.args[1:]):
        path = f"{node.name}_layer"
        eps = args_of(node)[4] if len(node.args) > 4 else 1e-5
        set_module(emitter.module, path, nn.GroupNorm(args_of(node)[1], shape_of(node)[1], eps, affine=False))
        return path
    if layer.kind not in ("linear", "batch_norm", "layer_norm"):
        raise at_node(node).refused(f"a {layer.kind} with tensors of {layer.path!r} that is no plain layer.")
    held = [_value(emitter, each) for each in (list(node.args) + [None] * 5)[1:5]]
    if layer.kind == "linear":
        weight, bias = held[:2]
        path = layer.options["weight"].removesuffix(ROWS).removesuffix("_weight").removesuffix(".weight")
        if has(emitter.module, path) and not _only_holds(emitter, path, node):
            path += "_layer"
        new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        new.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        if bias is not None:
            new.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    elif layer.kind == "batch_norm":
        weight, bias, mean, var = held
        path = f"{layer.path}_norm" if has(emitter.module, layer.path) else layer.path
        kind = nn.BatchNorm2d if len(shape_of(node)) == 4 else nn.BatchNorm1d
        new = kind(len(mean), args_of(node)[7], args_of(node)[6], weight is not None, device="meta")
        if weight is not None:
            new.weight, new.bias = weight, bias
        new.running_mean, new.running_var, new.num_batches_tracked = mean, var, torch.tensor(0)
    else:
        rms = operation(node) == "rms_norm"
        weight = _value(emitter, args_of(node)[2]) if len(node.args) > 2 else None
        bias = _value(emitter, args_of(node)[3]) if len(node.args) > 3 and not rms else None
        path = layer.path if weight is None or not has(emitter.module, layer.path) else f"{layer.path}_norm"
        eps = args_of(node)[4] if len(node.args) > 4 and not rms else 1e-5
        new = nn.LayerNorm(args_of(node)[1], eps, weight is not None, bias is not None, device="meta")
        if weight is not None:
            new.weight = weight
        if bias is not None:
            new.bias = bias
    new.train(emitter.module.training)
    for each in (e for e in node.all_input_nodes if e.op == "placeholder"):
        held_path = emitter.analysis.captured.held.get(each.name)
        if held_path:
            owner, _, name = held_path.rpartition(".")
            parent = emitter.module.get_submodule(owner)
            if name in parent._parameters:
                delattr(parent, name)
    set_module(emitter.module, path, new)
    return path


def _only_holds(emitter: Emitter, path: str, node: fx.Node) -> bool:
    """Whether the module at ``path`` has no parameters but those that ``node`` takes."""
    if not isinstance(at_path(emitter.module, path), nn.Module):
        return False
    held = {emitter.analysis.captured.held.get(each.name) for each in node.all_input_nodes}
    held |= {each.removesuffix(ROWS) for each in held if each}
    return all(f"{path}.{name}" in held for name, _ in emitter.module.get_submodule(path).named_parameters())


def _value(emitter: Emitter, argument: Any) -> Any:
    """The tensor that an argument is, made of the network's own."""
    if not isinstance(argument, fx.Node):
        return argument
    known = emitter.analysis.values[argument]
    if isinstance(known, Held):
        return known.value
    if isinstance(known, Tensor):
        return known
    with torch.no_grad():

        def value_of(node: fx.Node) -> Any:
            return _value(emitter, node)

        target: Any = argument.target
        args = map_arg(argument.args, value_of)
        return target(*args, **map_arg(argument.kwargs, value_of))


def owns(emitter: Emitter, path: str, node: fx.Node) -> bool:
    try:
        module = emitter.module.get_submodule(path)
    except AttributeError:
        return False
    kinds = (
        nn.Linear,
        nn.modules.conv._ConvNd,
        nn.modules.batchnorm._BatchNorm,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.Embedding,
        nn.PReLU,
    )
    if isinstance(module, nn.Linear):
        bias = (
            emitter.analysis.values.get(args_of(node)[2])
            if len(node.args) > 2 and args_of(node)[2] is not None
            else None
        )
        return bias is module.bias is None or (isinstance(bias, Held) and bias.value is module.bias)
    return isinstance(module, kinds)


def _make_linear(emitter: Emitter, node: fx.Node, layer: Layer, old: nn.Linear) -> EideticLinear:
    return EideticLinear(old.in_features, old.out_features, old.bias is not None, **_factory(old))


def _make_conv(emitter: Emitter, node: fx.Node, layer: Layer, old: Any) -> StaircaseLayer:
    name, rank = operation(node), len(shape_of(node))
    if name.startswith("conv_transpose"):
        kind = (EideticConvTranspose1d, EideticConvTranspose2d, EideticConvTranspose3d)[rank - 3]
    else:
        kind = (EideticConv1d, EideticConv2d, EideticConv3d)[rank - 3]
    return cast(Any, kind)(shape_of(args_of(node)[0])[1], shape_of(node)[1], **_options(node, old))


def _make_embedding(emitter: Emitter, node: fx.Node, layer: Layer, old: nn.Embedding) -> EideticEmbedding:
    rows, columns = old.weight.shape
    return EideticEmbedding(rows, columns, old.padding_idx, **_factory(old))


def _make_grouped(emitter: Emitter, node: fx.Node, layer: Layer, old: nn.Conv2d) -> Any:
    rank, channels = len(shape_of(node)), shape_of(args_of(node)[0])[1]
    if rank == 4 and old.groups == old.in_channels == old.out_channels:
        return EideticDepthwiseConv2d(old.in_channels, **_options(node, old))
    kind = (EideticGroupedConv1d, EideticGroupedConv2d, EideticGroupedConv3d)[rank - 3]
    groups = channels // old.weight.shape[1]
    return cast(Any, kind)(channels, groups, **_options(node, old), out_channels=shape_of(node)[1])


def _make_batch_norm(emitter: Emitter, node: fx.Node, layer: Layer, old: Any) -> EideticBatchNorm:
    kind = {4: EideticBatchNorm2d, 5: EideticBatchNorm3d}.get(len(shape_of(node)), EideticBatchNorm1d)
    return kind(old.num_features, old.eps, old.momentum, old.affine, **_factory(old))


def _make_group_norm(emitter: Emitter, node: fx.Node, layer: Layer, old: nn.GroupNorm) -> EideticGroupNorm:
    return EideticGroupNorm(
        old.num_groups, old.num_channels, old.eps, old.affine, bias=old.bias is not None, **_factory(old)
    )


def _make_layer_norm(emitter: Emitter, node: fx.Node, layer: Layer, old: Any) -> EideticLayerNorm:
    if operation(node) == "rms_norm":
        shape, eps = (
            tuple(args_of(node)[1]),
            cast("float | None", args_of(node)[3] if len(node.args) > 3 else node.kwargs.get("eps")),
        )
        return EideticRMSNorm(shape, eps, old.weight is not None, **_factory(old))
    return EideticLayerNorm(
        old.normalized_shape, old.eps, old.elementwise_affine, old.bias is not None, **_factory(old)
    )


def _factory(old: nn.Module) -> dict[str, Any]:
    tensor = next(iter(old.state_dict().values()), torch.empty(0))
    return {"device": tensor.device, "dtype": tensor.dtype if tensor.is_floating_point() else None}


def _options(node: fx.Node, old: Any) -> dict[str, Any]:
    """How a convolution is called: a module's own settings may be others (padding that it does before)."""
    if operation(node).startswith("conv_transpose"):
        names = ("stride", "padding", "output_padding", "groups", "dilation")
    else:
        names = ("stride", "padding", "dilation", "groups")
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    given = dict(zip(names, args_of(node)[3:])) | dict(node.kwargs)
    made = {name: given.get(name, default) for name, default in defaults.items() if name in names}
    made = {name: tuple(each) if isinstance(each, list) else each for name, each in made.items()}
    bias = len(node.args) > 2 and args_of(node)[2] is not None
    return made | {"kernel_size": tuple(old.weight.shape[2:]), "bias": bias} | _factory(old)


def _make_prelu(emitter: Emitter, node: fx.Node, layer: Layer, old: nn.PReLU) -> EideticPReLU:
    return EideticPReLU(old.num_parameters, old.init, **_factory(old), num_features=len(layer.units))


MAKERS = {
    "batch_norm": _make_batch_norm,
    "conv": _make_conv,
    "embedding": _make_embedding,
    "group_norm": _make_group_norm,
    "grouped": _make_grouped,
    "layer_norm": _make_layer_norm,
    "linear": _make_linear,
    "prelu": _make_prelu,
}
