"""Checks wiring that was declared by hand against what forward does: a wrong one would forget tasks without an error.

One pass is run in which every layer's output is cut off from what made it. The gradient of each layer's input then
says which outputs reach it directly, and which of their units reach which of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..errors import ConversionError
from ..layers import SegmentedLayer, StaircaseLayer
from ..layout import Segments, Source
from .groups import Wiring

SAMPLES = 4  # of a batch, which the pass looks at


def check_declared(layers: Mapping[str, SegmentedLayer], wiring: Wiring, run: Callable[[], Tensor]) -> None:
    """Compare what reaches each layer in ``run``, a forward pass that returns the features, with ``wiring``.

    ``layers``: the body's by path. Raises ConversionError, which names the layers: for an output that reaches a layer
    undeclared (a recurrence declared as a chain), and for units that are not where the declaration has them (flipped,
    mixed, shifted).
    """
    trace = _Trace({layer: path for path, layer in layers.items() if not layer.attached})
    handles: list[RemovableHandle] = []
    for layer in trace.paths:
        handles.append(layer.register_forward_pre_hook(trace.enter, with_kwargs=True))
        handles.append(layer.register_forward_hook(trace.leave))
    try:
        features = run()
    finally:
        for handle in handles:
            handle.remove()

    names = {group.segments: repr(group.name) for group in wiring.groups}
    entries = trace.entries(wiring)
    entries.append(("output", wiring.features, _Given(features, 1, len(trace.outputs))))
    for path, sources, given in entries:
        for made in trace.outputs[: given.before]:
            _check(path, sources, given, made, names)


@dataclass(frozen=True)
class _Made:
    """What a layer returned: its path, units, and the dimension that they lie in."""

    path: str
    segments: Segments
    output: Tensor
    dim: int


@dataclass(frozen=True)
class _Given:
    """What a layer was given, where its units lie, and how many outputs had been made before."""

    x: Tensor
    dim: int
    before: int


@dataclass
class _Trace:
    paths: dict[SegmentedLayer, str]
    outputs: list[_Made] = field(default_factory=list["_Made"])
    inputs: list[tuple[SegmentedLayer, _Given]] = field(default_factory=list[tuple[SegmentedLayer, "_Given"]])

    def enter(self, layer: SegmentedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
                self.inputs.append((layer, _Given(value, layer.unit_dim, len(self.outputs))))

    def leave(self, layer: SegmentedLayer, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        apart = output.detach().requires_grad_()
        self.outputs.append(_Made(self.paths[layer], layer.segments, apart, layer.unit_dim))
        return apart.clone()  # which may be changed in place

    def entries(self, wiring: Wiring) -> list[tuple[str, Sequence[Source], _Given]]:
        """What each layer is declared to read, for every tensor that it was given."""
        read: dict[SegmentedLayer, Sequence[Source]] = {}
        for layer, path in self.paths.items():
            if isinstance(layer, StaircaseLayer) and path in wiring.sources:
                read[layer] = layer.sources
            else:  # what treats each unit by itself reads its own
                read[layer] = (Source(layer.segments),)
        return [(self.paths[layer], read[layer], given) for layer, given in self.inputs]


def _check(path: str, sources: Sequence[Source], given: _Given, made: _Made, names: Mapping[Segments, str]) -> None:
    """Raise ConversionError where ``made`` reaches columns of ``given`` that are declared to hold something else."""
    x, units = given.x, made.output.shape[made.dim]
    columns = x.shape[given.dim]
    if not x.requires_grad or not units or not columns:
        return
    if sum(source.columns(None) for source in sources) != columns:
        return  # a residual, or a part of the input: the layer itself checks its shape

    if not any(source.group is made.segments for source in sources):
        if _gradient(x, made, torch.ones(columns), given.dim).any():
            read = " and ".join(names.get(s.group, "the input") for s in sources if isinstance(s.group, Segments))
            raise ConversionError(
                f"connections(): {path!r} is said to read {read or 'the input'}, but the output of {made.path!r} "
                "reaches it, too. Declare every layer that it reads, and values that are added together as a tuple of "
                "paths, which makes their units one group (so does a recurrence, whose layers' outputs are added)."
            )
        return

    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        grain = made.segments.grain  # units that live and go together may be mixed with each other
        left_out = (torch.rand(units // grain, generator=generator) < 0.5).repeat_interleave(grain)
        weights, start = torch.ones(columns), 0
        for source in sources:
            stop = start + source.columns(None)
            if source.group is made.segments:
                weights[start:stop][left_out.repeat_interleave(source.block)] = 0
            start = stop
        gradient = _gradient(x, made, weights, given.dim)
        if gradient.movedim(made.dim, 0)[left_out].any():
            raise ConversionError(
                f"connections(): {path!r} reads the units of {made.path!r} at other places than it is said to: they "
                "are mixed or moved on the way (flip, roll, softmax, a mean over units), so that finished tasks would "
                "read later units. Keep units apart between layers, or use layers that know tasks."
            )


def _gradient(x: Tensor, made: _Made, weights: Tensor, dim: int) -> Tensor:
    """The gradient of the weighted columns of ``x`` with respect to the output; zeros where it does not reach them."""
    shape = [1] * x.dim()
    shape[dim] = -1
    total = (x * weights.to(x).view(shape)).sum()
    (gradient,) = torch.autograd.grad(total, made.output, retain_graph=True, allow_unused=True)
    return torch.zeros_like(made.output) if gradient is None else gradient
