"""The layers of a network join the unit groups that its wiring found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from torch import nn

from ..errors import ConversionError, TaskError
from ..layers import EideticDropout, Scope, SegmentedLayer, Split, StaircaseLayer, aware_of_segments
from ..wiring.groups import Wiring


class _HasUnitDim(Protocol):
    unit_dim: int


def check_joining(wiring: Wiring, layers: Iterable[tuple[str, SegmentedLayer]]) -> None:
    """Raise ConversionError for a layer that ``wiring`` does not know, TaskError for one that is not fresh."""
    named = {*wiring.sources, *wiring.split, *(path for group in wiring.groups for path in group.norms)}
    for path, layer in layers:
        if path not in named:
            raise ConversionError(
                f"{path!r} is not on the way from the input to the features, so its units have no readers: "
                "use it in forward (or name it in connections()), or remove it."
            )
        if layer.owned or layer.segments.tasks or layer.segments.live != layer.segments.width:
            raise TaskError(
                f"{path!r} was already pruned, frozen or added to a network; only fresh layers can join one."
            )


def join_layers(network: nn.Module, wiring: Wiring, scope: Scope) -> None:
    """Let every layer join its unit group, and tell every module that must know segments what it reads.

    Layers over several groups are replaced by their parts, and dropouts by ones that know segments.
    """
    modules = dict(cast("Iterator[tuple[str, nn.Module]]", network.named_modules()))
    for path, parts in wiring.split.items():
        network.set_submodule(path, parts)
    for path in wiring.last:
        cast(_HasUnitDim, network.get_submodule(path)).unit_dim = -1

    for group in wiring.groups:
        for path, layer in group.producers.items():
            layer.wire(group.rows(layer), wiring.sources[path], scope)
        for layer in group.norms.values():
            layer.join(group.rows(layer), scope)
    for path, order in wiring.orders.items():
        cast(StaircaseLayer, network.get_submodule(path)).reorder(order)

    for path, (sources, pieces) in wiring.pieces.items():
        cast(Split, network.get_submodule(path)).wire(sources, pieces, scope)
    for path, sources in wiring.dropouts.items():
        aware = aware_of_segments(modules[path])
        if path in wiring.last:
            cast(_HasUnitDim, aware).unit_dim = -1
        if aware is not modules[path]:
            network.set_submodule(path, aware)
        cast(EideticDropout, aware).wire(sources, scope)
