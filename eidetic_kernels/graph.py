"""Unit groups: which layers' units belong together, found by tracing a network's forward or declared by hand.

Every value in the network is either the network's input, or units of one group, possibly flattened so that each
unit covers a block of columns. A layer that produces units starts a group; an addition or product ties the groups
of its operands into one, so ordinary residual connections need no extra convolution (paper, section 3.1).
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .errors import ConversionError
from .layers import EideticBatchNorm, EideticConv2d, EideticDropout, SegmentedLayer, StaircaseLayer
from .layout import Fixed, Segments, Source


@dataclass
class Group:
    """A unit group and the layers on it, by module path; ``built_width`` is its width when it was constructed."""

    segments: Segments
    built_width: int
    producers: dict[str, StaircaseLayer] = field(default_factory=dict)
    norms: dict[str, EideticBatchNorm] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first producer's path, and how many others are tied to it."""
        first, others = next(iter(self.producers)), len(self.producers) - 1
        return f"{first} (+{others} tied)" if others else first

    @property
    def layers(self) -> list[SegmentedLayer]:
        return [*self.producers.values(), *self.norms.values()]


@dataclass(frozen=True)
class Units:
    """A value that holds units of one group in dimension 1.

    ``spatial``: it has dimensions after that one, ``pixels`` positions of them where that is known. ``flat``: they
    were folded into dimension 1, each unit being a block of ``pixels`` columns.
    """

    group: _Draft
    spatial: bool = False
    flat: bool = False
    pixels: int | None = 1


class Input:
    """The network's input, or something made of it alone: it belongs to no task."""


INPUT = Input()


@dataclass(frozen=True)
class Wiring:
    """What was found: the groups in order of execution, each layer's sources, and where the features are."""

    groups: tuple[Group, ...]
    sources: dict[str, tuple[Source, ...]]
    dropouts: dict[str, Source]
    features: tuple[Source, ...]


def trace(network: nn.Module) -> Wiring:
    """Find the unit groups of ``network`` by tracing its ``forward`` with torch.fx.

    Raises ConversionError naming the node that cannot be wired, its place in the source, and the ways out.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(network)
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"{type(network).__name__}.forward cannot be traced by torch.fx: {error}\n"
            "Control flow that depends on tensor values cannot be followed. Rewrite it, or declare the wiring by "
            "hand: define connections() on the network (see EideticNetwork.connections)."
        ) from error
    builder = _Builder(network)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        values[node] = _Step(builder, node, values).value()
    return builder.finish(values[next(reversed(graph.nodes))])


def declare(network: nn.Module, connections: dict[str, str | tuple[str, ...]]) -> Wiring:
    """Wire a network by hand.

    ``connections`` maps each layer's path, in order of execution, to what it reads: another layer's path, "input",
    or a tuple of paths whose values are added together. "output" names the features. Only linear, convolution,
    BatchNorm and dropout layers need to be named: whatever lies between them and keeps units apart may be left out.
    """
    builder = _Builder(network)
    values: dict[str, Any] = {"input": INPUT}
    for path, read in connections.items():
        names = (read,) if isinstance(read, str) else tuple(read)
        for name in names:
            if name not in values:
                raise ConversionError(
                    f"connections(): {path!r} reads {name!r}, which is not defined before it. "
                    f"Known so far: {', '.join(values)}."
                )
        value = values[names[0]]
        for name in names[1:]:
            value = builder.tie(value, values[name], f"connections()[{path!r}]")
        flat = path == "output" or not isinstance(builder.modules.get(path), (EideticConv2d, *SPATIAL))
        if flat and isinstance(value, Units) and value.spatial:
            # Pooling and flattening may be left out; the network's own check of its features stands guard.
            value = replace(_flattened(value), pixels=value.pixels or (1 if path == "output" else None))
        if path != "output":
            value = builder.layer(path, value, f"connections()[{path!r}]")
        values[path] = value
    if "output" not in connections:
        raise ConversionError('connections() must say which layer\'s output are the features: {"output": "..."}.')
    return builder.finish(values["output"])


class _Draft:
    """A group while it is being found; tied groups form a tree whose root holds the members."""

    def __init__(self, width: int):
        self.width = width
        self.parent: _Draft | None = None
        self.producers: dict[str, StaircaseLayer] = {}
        self.norms: dict[str, EideticBatchNorm] = {}
        self.final: Group | None = None

    def root(self) -> _Draft:
        return self if self.parent is None else self.parent.root()


class _Builder:
    def __init__(self, network: nn.Module):
        self.network = network
        self.modules = dict(network.named_modules())
        self.drafts: list[_Draft] = []
        self.reads: dict[str, Any] = {}
        self.dropped: dict[str, Any] = {}

    def layer(self, path: str, value: Any, where: str) -> Any:
        """The value that module ``path`` makes of ``value``."""
        module = self.modules.get(path)
        if module is None:
            raise ConversionError(f"{where}: the network has no module {path!r}.")
        if not isinstance(value, (Units, Input)):
            raise ConversionError(f"{where}: {path!r} reads something that is not a tensor of the network.")
        if isinstance(module, SegmentedLayer) and path in (*self.reads, *self._normed()):
            raise ConversionError(
                f"{where}: {path!r} is called twice. A layer shared between two places has two sets of inputs; "
                "give each place its own layer."
            )
        if isinstance(module, StaircaseLayer):
            image = isinstance(module, EideticConv2d)
            if isinstance(value, Units) and value.spatial != image:
                raise ConversionError(
                    f"{where}: {path!r} reads "
                    + ("flat units; a convolution needs an image." if image else "an image: flatten it first.")
                )
            if not module.segments.width:
                raise ConversionError(f"{where}: {path!r} has no units at all; give it a width of 1 or more.")
            self.reads[path] = value
            self.source(value, module.weight.shape[1], where)
            draft = _Draft(module.segments.width)
            draft.producers[path] = module
            self.drafts.append(draft)
            return Units(draft, spatial=True, pixels=None) if image else Units(draft)
        if isinstance(module, EideticBatchNorm):
            if value is INPUT:
                raise ConversionError(
                    f"{where}: {path!r} normalises the network's input, which belongs to no task, so its statistics "
                    "could never be frozen task by task. Normalise the data instead."
                )
            draft = value.group.root()
            if module.segments.width != draft.width:
                raise ConversionError(
                    f"{where}: {path!r} normalises {module.segments.width} channels, but it is given the "
                    f"{draft.width} units of {next(iter(draft.producers))!r}. Where an image was flattened, put the "
                    "normalisation before the flattening."
                )
            draft.norms[path] = module
            return value
        if isinstance(module, (*DROPOUTS, EideticDropout)):
            if value is INPUT:
                raise ConversionError(
                    f"{where}: {path!r} drops out the network's input, which frozen units read: they would not behave "
                    "the same in training and in evaluation. Drop out after the first layer, or augment the data."
                )
            if path in self.dropped:
                raise ConversionError(
                    f"{where}: {path!r} is called twice. Each place has frozen units of its own to leave alone; give "
                    "each place its own dropout."
                )
            self.dropped[path] = value
        return value

    def tie(self, a: Any, b: Any, where: str) -> Any:
        """The value of an addition or product of ``a`` and ``b``: their units become one group."""
        if a is INPUT and b is INPUT:
            return INPUT
        if a is INPUT or b is INPUT:
            raise ConversionError(
                f"{where}: units are combined with the network's input, which belongs to no task and cannot be "
                "pruned with them. Put a layer (a 1x1 convolution, say) on the input's side."
            )
        left, right = a.group.root(), b.group.root()
        if (left.width, a.flat, a.spatial) != (right.width, b.flat, b.spatial):
            raise ConversionError(
                f"{where}: {left.width} units are combined with {right.width}; both sides must be as wide and of "
                "the same form (image, flattened image or flat)."
            )
        if left is not right:
            left, right = sorted((left, right), key=self.drafts.index)
            right.parent = left
            left.producers.update(right.producers)
            left.norms.update(right.norms)
            self.drafts.remove(right)
        return Units(left, a.spatial, a.flat, a.pixels if a.pixels == b.pixels else None)

    def source(self, value: Any, columns: int, where: str) -> Source | None:
        """How a layer with ``columns`` input columns reads ``value``; None while groups are being found."""
        if value is INPUT:
            return Source(Fixed(columns))
        draft = value.group.root()
        if columns % draft.width or (not value.flat and columns != draft.width):
            raise ConversionError(
                f"{where}: a layer with {columns} input columns reads {draft.width} units of "
                f"{next(iter(draft.producers))!r}" + (", flattened" if value.flat else "") + ": the sizes do not fit."
            )
        return Source(draft.final.segments, columns // draft.width) if draft.final else None

    def finish(self, output: Any) -> Wiring:
        if not isinstance(output, Units):
            raise ConversionError(
                "forward must return features that a layer of this package produced: one tensor whose dimension 1 "
                "holds units. It returned " + ("the input." if output is INPUT else "something else.")
            )
        for draft in self.drafts:
            draft.final = Group(Segments(draft.width), draft.width, draft.producers, draft.norms)
        sources = {
            path: (self.source(value, self.modules[path].weight.shape[1], path),)
            for path, value in self.reads.items()
        }
        dropouts = {
            path: self._dropout_source(value) for path, value in self.dropped.items() if isinstance(value, Units)
        }
        groups = tuple(draft.final for draft in self.drafts)
        return Wiring(groups, sources, dropouts, (self._features(output),))

    def _features(self, output: Units) -> Source:
        draft = output.group.root()
        if output.spatial or output.pixels is None:
            raise ConversionError(
                f"the features are an image of {next(iter(draft.producers))!r} whose size is not known from the "
                "code: end with adaptive pooling and flattening (AdaptiveAvgPool2d(1), flatten(1)), or with a "
                "linear layer."
            )
        return Source(draft.final.segments, output.pixels)

    def _dropout_source(self, value: Units) -> Source:
        draft = value.group.root()
        if not value.flat or value.pixels is not None:
            return Source(draft.final.segments, value.pixels if value.flat else 1)
        readers = [p for p, read in self.reads.items() if isinstance(read, Units) and read.group.root() is draft]
        blocks = {self.modules[p].weight.shape[1] // draft.width for p in readers if self.reads[p].flat}
        if len(blocks) != 1:
            raise ConversionError(
                f"dropout after flattening {next(iter(draft.producers))!r}: the number of pixels a channel was "
                "flattened into is unknown, since not one linear layer reads it. Drop out before flattening."
            )
        return Source(draft.final.segments, blocks.pop())

    def _normed(self) -> list[str]:
        return [path for draft in self.drafts for path in draft.norms]


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__()
        self.record_stack_traces = True

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        ours = (SegmentedLayer, EideticDropout)
        return isinstance(module, ours) or super().is_leaf_module(module, path)


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# What keeps units apart and in order, so that units pass through unchanged.
PASSING_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid,
    *DROPOUTS, EideticDropout,
)  # fmt: skip
# The same, for images only: over flat units these would mix neighbours.
SPATIAL = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
PASSING_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, torch.relu, torch.sigmoid, torch.tanh,
    torch.abs, torch.exp, torch.neg, torch.clamp, torch.square, torch.sqrt, operator.neg,
}  # fmt: skip
SPATIAL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate}
PASSING_METHODS = {
    "relu", "relu_", "sigmoid", "tanh", "abs", "exp", "neg", "clamp", "clamp_min", "square",
    "contiguous", "float", "to",
}  # fmt: skip
COMBINING = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip
SIZES = {"size", "dim"}


class _Step:
    """One node of the traced graph, and the value it makes of its arguments' values."""

    def __init__(self, builder: _Builder, node: fx.Node, values: dict[fx.Node, Any]):
        self.builder, self.node, self.values = builder, node, values

    def value(self) -> Any:
        return getattr(self, f"_{self.node.op}")()

    def _placeholder(self) -> Any:
        return INPUT

    def _output(self) -> Any:
        return self._of(self.node.args[0])

    def _get_attr(self) -> Any:
        attribute = self.builder.network
        for name in self.node.target.split("."):
            attribute = getattr(attribute, name)
        if isinstance(attribute, nn.Parameter) or (isinstance(attribute, torch.Tensor) and attribute.dim()):
            self._refuse("a tensor of the network is used directly, so its units have no owner.")
        return None

    def _call_module(self) -> Any:
        module = self.builder.modules[self.node.target]
        value = self._first()
        if isinstance(module, SegmentedLayer):
            return self.builder.layer(self.node.target, value, self._where())
        if isinstance(module, nn.Flatten):
            return self._flatten(value, module.start_dim, module.end_dim)
        if type(module).__module__.split(".")[0] in ("torch", _OURS):
            if isinstance(module, PASSING_MODULES):
                return self.builder.layer(self.node.target, value, self._where())
            if isinstance(module, SPATIAL):
                return self._resized(value, type(module).__name__, getattr(module, "output_size", None))
        if value is INPUT and not module.state_dict():
            return INPUT
        self._refuse(_remedy(module))

    def _call_function(self) -> Any:
        target = self.node.target
        if target in (getattr, operator.getitem):
            return self._attribute(target)
        if target in COMBINING:
            return self._combine()
        if target is torch.flatten:
            return self._flatten(self._first(), *self._rest(("start_dim", 0), ("end_dim", -1)))
        if target is torch.mean:
            return self._mean()
        if target is F.dropout:
            self._refuse("F.dropout does not know which units are frozen: use a torch.nn.Dropout module.")
        if target in PASSING_FUNCTIONS:
            return self._first()
        if target in SPATIAL_FUNCTIONS:
            return self._resized(self._first(), target.__name__, self._rest(("output_size", None))[0])
        return self._unknown()

    def _call_method(self) -> Any:
        target = self.node.target
        if target in COMBINING:
            return self._combine()
        if target == "flatten":
            return self._flatten(self._first(), *self._rest(("start_dim", 0), ("end_dim", -1)))
        if target in ("view", "reshape"):
            return self._reshape()
        if target == "mean":
            return self._mean()
        if target in SIZES:
            return None
        if target in PASSING_METHODS:
            return self._first()
        return self._unknown()

    def _attribute(self, target: Callable) -> Any:
        of = self._of(self.node.args[0])
        if of is None or (target is getattr and self.node.args[1] in ("shape", "device", "dtype", "ndim")):
            return None
        return self._unknown()

    def _combine(self) -> Any:
        given = [*self.node.args[:2], *(self.node.kwargs.get(name) for name in ("input", "other"))]
        operands = [value for value in map(self._of, given) if value is not None]
        if not operands:
            return None
        if len(operands) == 1:
            return operands[0]
        return self.builder.tie(*operands, self._where())

    def _flatten(self, value: Any, start: int, end: int) -> Any:
        if value is INPUT:
            return INPUT
        if start != 1 or end != -1:
            self._refuse(f"flattening dimensions {start} to {end} mixes samples or units: flatten from 1 to -1.")
        return _flattened(value)

    def _reshape(self) -> Any:
        value = self._first()
        if value is INPUT:
            return INPUT
        shape = self.node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        if len(shape) == 2 and isinstance(shape[0], fx.Node) and shape[1] == -1:
            return _flattened(value)
        self._refuse("only x.view(x.size(0), -1) is understood: it folds pixels into units. Use x.flatten(1).")

    def _mean(self) -> Any:
        value = self._first()
        dims = self._rest(("dim", None))[0]
        dims = {dims} if isinstance(dims, int) else set(dims or ())
        if value is INPUT:
            return INPUT
        if not dims or dims & {0, 1, -3, -4}:
            self._refuse(f"a mean over dimensions {sorted(dims) or 'all'} mixes units; only space may be averaged.")
        if dims not in ({2, 3}, {-1, -2}) or not value.spatial:
            self._refuse("a mean over one side of an image is not understood: average over both.")
        return replace(value, spatial=bool(self._rest(("dim", None), ("keepdim", False))[1]), pixels=1)

    def _unknown(self) -> Any:
        known = [self.values[node] for node in self.node.all_input_nodes]
        if all(value is None for value in known):
            return None
        if all(value is None or value is INPUT for value in known):
            return INPUT
        self._refuse("it is not known to keep units apart.")

    def _rest(self, *named: tuple[str, Any]) -> list[Any]:
        """Arguments after the first, by position or name, with defaults."""
        given = self.node.args[1:]
        return [
            given[i] if i < len(given) else self.node.kwargs.get(name, default)
            for i, (name, default) in enumerate(named)
        ]

    def _resized(self, value: Any, operation: str, output_size: Any) -> Any:
        """``value`` after an operation that changes an image's size; the size is known of adaptive pooling only."""
        if value is INPUT:
            return INPUT
        if not value.spatial:
            self._refuse(f"{operation} over units without pixels would mix neighbouring units.")
        if "adaptive" not in operation.lower():
            return replace(value, pixels=None)
        sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        return replace(value, pixels=None if None in sides else sides[0] * sides[1])

    def _first(self) -> Any:
        """The value operated on: the first argument, or the one named ``input`` or ``x``."""
        named = [self.node.kwargs[name] for name in ("input", "x") if name in self.node.kwargs]
        return self._of((*self.node.args, *named, None)[0])

    def _of(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, fx.Node) else None

    def _where(self) -> str:
        # The innermost frame that is the user's, not torch's.
        frames = re.findall(r'(File "([^"]+)".*\n.*)', self.node.stack_trace or "")
        frames = [frame for frame, file in frames if f"{os.sep}torch{os.sep}" not in file]
        place = f" ({' '.join(frames[-1].split())})" if frames else ""
        return f"node {self.node.name!r} [{self.node.op} {self.node.target}]{place}"

    def _refuse(self, reason: str) -> None:
        raise ConversionError(
            f"{self._where()}: {reason}\nWays out: use a layer that keeps units apart, or declare the wiring by hand "
            "(connections() on the network)."
        )


def _flattened(value: Units) -> Units:
    return replace(value, flat=value.spatial or value.flat, spatial=False)


_OURS = __name__.split(".")[0]


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    twins = {"Linear": "EideticLinear", "Conv2d": "EideticConv2d"} | {
        f"BatchNorm{d}d": f"EideticBatchNorm{d}d" for d in (1, 2)
    }
    if name in twins:
        return f"a plain {name} would be trained by every task and forget: use ek.{twins[name]}."
    if any(True for _ in module.parameters()):
        return f"{name} has parameters that every task would train, so finished tasks would be forgotten."
    return f"{name} is not known to keep units apart."
