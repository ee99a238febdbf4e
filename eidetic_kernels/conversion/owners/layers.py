"""Rules of layers: what has parameters for each unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graphs.nodes import args_of, operation
from .computed import Computed, computed_weight
from .maps import NOBODY, Owners, along
from .merging import settled
from .step import Held, Layer, Step, rule


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
            columns = first
    return columns.flatten().expand(x.shape[dim]) if columns.numel() == 1 else columns.flatten()


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
    computed = computed_weight(step.analysis, args_of(step.node)[1])
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
    step.analysis.layers.append(
        Layer(kind, path, step.node, x, out.units, {"columns": reads, "weight": weight.path, "computed": computed})
    )
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
            step.refuse(
                "it convolves along the units of a layer (as ECA's gates do), so what a unit gives would depend on its "
                "neighbours, which other tasks may own."
            )
    if isinstance(step.args[1], Tensor) and not x.owned:  # of a frozen backbone
        return over_channels(step, x, "convolution", 1)
    groups = step.arg(6, "groups", 1)
    channels, out = x.shape[1], step.shape[1]
    weight = step.args[1]
    if groups == 1:
        return made(step, "conv", x, 1, 1)
    if isinstance(weight, Tensor) and groups == channels == out:
        return Owners(step.shape, x.units, x.samples, x.coarse)
    if "transpose" in operation(step.node):
        step.refuse(f"a grouped {operation(step.node)}")
    weight, computed = own_weight(step, "grouped convolution")
    reads = read_along(step, x, 1)
    if not x.owned:
        step.refuse(
            "a grouped convolution of the network's input makes units that each read a part of it. "
            "Begin with an ordinary convolution"
        )
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
    statistics = args_of(step.node)[3]
    held = step.analysis.captured.held.get(getattr(statistics, "name", ""), "")
    if not x.owned and held.rpartition(".")[0] in step.analysis.asleep:
        return x
    if not x.owned:
        step.refuse(
            "it normalises what no layer made, so its statistics would be every task's. Normalise the data instead, or "
            "keep the statistics as they are: ek.frozen(layer)."
        )
    if not isinstance(step.args[1], (Held, type(None))) or not isinstance(step.args[3], Tensor):
        step.refuse("a BatchNorm without statistics, or of computed parameters")
    reads = read_along(step, x, 1)
    path = step.analysis.captured.held.get(args_of(step.node)[3].name, "").rpartition(".")[0] or step.node.name
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
        return x
    reads = read_along(step, x, -1)
    weight = step.arg(2, "weight")
    path = weight.path.rpartition(".")[0] if isinstance(weight, Held) else step.node.name
    followed(step, Layer("layer_norm", path, step.node, x, reads))
    return Owners(x.shape, along(len(x.shape) - 1, len(x.shape), reads), x.samples, x.coarse)


@rule("group_norm")
def group_norms(step: Step) -> Owners:
    x = settled(step, step.owners(step.arg(0)))
    if not x.owned and not isinstance(step.arg(2, "weight"), Held):
        return x
    reads = read_along(step, x, 1)
    groups = step.args[1]
    if groups > 1:
        step.mix(reads.view(groups, -1), 1, "groups")
    weight = step.arg(2, "weight")
    path = weight.path.rpartition(".")[0] if isinstance(weight, Held) else step.node.name
    followed(step, Layer("group_norm", path, step.node, x, reads, {"groups": groups}))
    return Owners(x.shape, along(1, len(x.shape), reads), x.samples, x.coarse)


@rule("instance_norm")
def normalises_alone(step: Step) -> Owners:
    """Each channel of each sample by itself; its scale and shift are read as they are cut with the units."""
    x = settled(step, step.owners(step.arg(0)))
    if step.args[3] is not None or not step.args[5]:
        step.refuse("an InstanceNorm with statistics of its own, which every task would change")
    for d in range(2, len(x.shape)):
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        if x.units.shape[d] > 1:
            step.refuse("it normalises over units")
    reads = read_along(step, x, 1)
    for each in step.args[1:3]:
        if each is not None:
            step.constraints.same(step.owners(each).units.flatten(), reads)
    return x


@rule("prelu", "_prelu_kernel")
def slopes(step: Step) -> Owners:
    """A slope for each channel, in dimension 1; or one for all of a task's units, wherever these lie."""
    x, weight = settled(step, step.owners(step.arg(0))), step.args[1]
    if not x.owned or (isinstance(weight, Tensor) and weight.numel() == 1):
        return x
    if not isinstance(weight, Held):
        step.refuse("its slopes are fixed or computed, and would not follow the units")
    dims = x.unit_dims if weight.value.numel() == 1 and len(x.unit_dims) == 1 else [1]
    reads = read_along(step, x, dims[0])
    followed(step, Layer("prelu", layer_path(weight.path), step.node, x, reads, {"dim": dims[0] - len(x.shape)}))
    return Owners(x.shape, along(dims[0], len(x.shape), reads), x.samples, x.coarse)


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
    if isinstance(weight, Tensor):  # of a frozen backbone
        i = step.owners(index)
        return Owners(step.shape, torch.full([1] * len(step.shape), NOBODY), i.samples.unsqueeze(-1))
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
