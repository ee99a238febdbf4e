"""Plain torch.nn versions of layers whose units belong to segments, for the segments that a task needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from ..backends.activations import FUNCTIONS
from ..errors import ConversionError
from ..layers import (
    EideticBatchNorm,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticConvolution,
    EideticEmbedding,
    EideticGroupedConv2d,
    EideticGroupNorm,
    EideticLayerNorm,
    EideticLinear,
    EideticPReLU,
    SegmentedLayer,
)
from ..layers.prefix import EideticPrefix
from .norms import group_norm, layer_norm, reduction
from .pieces import filled
from .prefix import Prefix
from .products import embedding, grouped, products

NO_PLAIN_VERSION = "{} has no plain version yet, so this task cannot be extracted."


def plain_layer(prefix: Prefix, layers: Sequence[SegmentedLayer], **residual: float | None) -> nn.Module:
    """The plain version of a layer, in evaluation mode.

    Args:
        prefix: the segments that the task needs.
        layers: the layer; or its parts, one for each unit group, where it was divided among several groups.
        residual: its forward takes a residual too. The value is the argument's default; None if it is always given.

    Raises:
        ConversionError: there is no plain version of such a layer.
    """
    for kind, make in PLAIN.items():
        if isinstance(layers[0], kind):
            return make(prefix, layers, **residual).eval()
    raise ConversionError(NO_PLAIN_VERSION.format(type(layers[0]).__name__))


def _staircase_layer(
    prefix: Prefix, layers: Sequence[EideticLinear | EideticConv2d | EideticConvolution], **residual: float | None
) -> nn.Module:
    """A linear layer or convolution with the norm that is a part of it, if it has one."""
    (layer,) = layers
    made = products(prefix, layer)
    return made if layer.norm is None else _batch_norm(prefix, [layer.norm], made, **residual)


def _batch_norm(
    prefix: Prefix, layers: Sequence[EideticBatchNorm], products: nn.Module | None = None, **residual: float | None
) -> nn.Module:
    """The frozen normalisation of all kept units, ``shift + x * scale``, which is the same when the module is trained.

    ``products`` computes what is normalised, where the norm is a part of a layer.
    """
    image, alone = isinstance(layers[0], EideticBatchNorm2d), products is None
    columns = (-1, 1, 1) if image else (-1,)
    root, graph = nn.Module(), fx.Graph()
    for name in ("scale", "shift"):
        rows = [getattr(layer, f"frozen_{name}")[units] for layer in layers for _, units in prefix.rows(layer.segments)]
        values = torch.cat(rows) if rows else getattr(layers[0], f"frozen_{name}")[:0]
        root.register_parameter(name, nn.Parameter(values.view(columns)))

    x = graph.placeholder("x")
    added = [graph.placeholder(name, default_value=default) for name, default in _defaults(residual)]
    if products is not None:
        root.add_module("products", products)
        x = graph.call_module("products", (x,))
    sequence = alone and not image  # [N, C] or [N, C, T]: dimension 1 comes last and goes back
    x = graph.call_function(torch.transpose, (x, 1, -1)) if sequence else x
    y = graph.call_function(torch.addcmul, (graph.get_attr("shift"), x, graph.get_attr("scale")))
    if sequence:  # in memory as in the network, for what reads it
        y = graph.call_method("contiguous", (graph.call_function(torch.transpose, (y, 1, -1)),))

    for each in added:
        y = graph.call_function(torch.add, (y, each))
    activation = layers[0].activation
    graph.output(y if activation == "none" else graph.call_function(FUNCTIONS[activation], (y,)))
    return fx.GraphModule(root, graph, "Affine")


def _defaults(residual: Mapping[str, float | None]) -> list[tuple[str, Any]]:
    """(name, default) of each further argument; without a default where it is always given."""
    return [(name, inspect.Parameter.empty if value is None else value) for name, value in residual.items()]


def _prelu(prefix: Prefix, layers: Sequence[EideticPReLU]) -> nn.Module:
    """torch's PReLU with the slopes of all kept units."""
    rows = [layer.frozen_weight[units] for layer in layers for _, units in prefix.rows(layer.segments)]
    if not rows:  # torch refuses inputs without units
        return nn.Identity()
    slopes = torch.cat(rows)
    module = skip_init(nn.PReLU, len(slopes), device=slopes.device, dtype=slopes.dtype)
    filled(module, slopes, None)
    if layers[0].unit_dim == 1:
        return module
    graph = fx.Graph()
    moved = graph.call_function(torch.movedim, (graph.placeholder("x"), -1, 1))
    graph.output(graph.call_function(torch.movedim, (graph.call_module("prelu", (moved,)), 1, -1)))
    return fx.GraphModule({"prelu": module}, graph, "Slopes")


# How each kind of layer becomes plain: a function of the prefix and the layer's parts (one, as a rule).
PLAIN: dict[type[SegmentedLayer], Callable[..., nn.Module]] = {
    EideticLinear: _staircase_layer,
    EideticConv2d: _staircase_layer,
    EideticConvolution: _staircase_layer,
    EideticEmbedding: embedding,
    EideticGroupedConv2d: grouped,
    EideticBatchNorm: _batch_norm,
    EideticLayerNorm: layer_norm,
    EideticGroupNorm: group_norm,
    EideticPrefix: reduction,
    EideticPReLU: _prelu,
}
