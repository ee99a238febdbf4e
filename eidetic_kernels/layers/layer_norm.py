"""EideticLayerNorm: LayerNorm whose statistics run over what a unit's own task may see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import flag, placed, real_number, whole_number
from ..errors import InputError
from ..layout import Segments, Source, Span, reads
from ..memory import canonical
from ..ops.staircase import positions, read
from .affine import AffineNorm
from .inputs import check_dtype, check_tensor
from .parts import Parts
from .succession import fresh


class EideticLayerNorm(AffineNorm):
    """Drop-in for :class:`torch.nn.LayerNorm` over the units of the last dimension.

    *Prefix LayerNorm*: a unit of segment s is normalised with the mean and variance over the units that segment s may
    see, and with its own scale and shift. ``forward_transfer`` says for each segment which units these are: all earlier
    ones and its own (nested), or its own alone (disjoint). So a frozen unit's output never depends on a later unit, in
    value or in statistics, and with one segment this is LayerNorm. Like BatchNorm it follows its input's units: one
    output, whoever reads it.

    A later segment therefore reads of an earlier one what the earlier task learned with. The alternative normalises the
    whole prefix anew for each segment that reads. That needs a copy of the activations for each segment, and it learns
    no better: a second task had 86.7 % after 900 steps, and has 95.4 % so (bench/results/transformers.md).

    Args:
        normalized_shape: the number of units (or a tuple of that one number).
        eps, elementwise_affine, bias, device, dtype: as in torch.
        channels_first: the units lie in dimension 1 of [N, C, *], as torchvision's LayerNorm2d has it.

    ``weight`` and ``bias`` [L] belong to the live units, ``frozen_weight`` and ``frozen_bias`` [F] to the frozen ones.
    Raises InputError for an input of another shape.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    frozen_weight: Tensor | None
    frozen_bias: Tensor | None
    frozen_names = ("frozen_weight", "frozen_bias")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        channels_first: bool = False,
    ):
        given = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
        if len(given) != 1:
            raise InputError(
                f"LayerNorm over the {len(given)} dimensions {list(given)} mixes units and positions; units are one "
                "dimension, the last. Normalise over that one."
            )
        shape = (whole_number("normalized_shape", given[0], unit="units"),)
        super().__init__(shape[0])
        self.normalized_shape, self.eps = shape, real_number("eps", eps, 0.0)
        self.elementwise_affine = flag("elementwise_affine", elementwise_affine)
        self.channels_first = flag("channels_first", channels_first)
        self.unit_dim = 1 if channels_first else -1
        self.forward_transfer: tuple[bool, ...] = (True,)

        factory = placed(device, dtype)
        self.weight = fresh(*shape, **factory) if elementwise_affine else None
        self.bias = fresh(*shape, **factory) if flag("bias", bias) and elementwise_affine else None
        for name in ("weight", "bias"):
            frozen = None if getattr(self, name) is None else torch.empty(0, **factory)
            self.register_buffer(f"frozen_{name}", frozen, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Live units start as torch's: scale 1, shift 0."""
        with torch.no_grad():
            if self.weight is not None:
                self.weight.fill_(1)
            if self.bias is not None:
                self.bias.fill_(0)

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(x, [self])

    def normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """``x`` [*, K] normalised over all K."""
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def affine_of(self, segment: int) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift of a segment's units."""
        if segment == self.segments.tasks:
            return self.weight, self.bias
        rows = slice(self.segments.start(segment), self.segments.stop(segment))
        scale, shift = self.frozen_weight, self.frozen_bias
        return None if scale is None else scale[rows], None if shift is None else shift[rows]

    def part(self, units: Tensor) -> EideticLayerNorm:
        """A fresh layer for some of this fresh layer's units, with their parameters."""
        like = self.weight if self.weight is not None else torch.empty(0)
        part = self._like(len(units), like)
        part.unit_dim = self.unit_dim
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                getattr(part, name).copy_(parameter[units]).requires_grad_(parameter.requires_grad)
        return part

    def _like(self, units: int, like: Tensor) -> EideticLayerNorm:
        affine, bias, factory = self.elementwise_affine, self.bias is not None, (like.device, like.dtype)
        return EideticLayerNorm(units, self.eps, affine, bias, *factory, channels_first=self.channels_first)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class EideticRMSNorm(EideticLayerNorm):
    """Drop-in for :class:`torch.nn.RMSNorm` over the units of the last dimension: :class:`EideticLayerNorm` without the
    mean and the shift.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as in torch.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__(normalized_shape, 0.0 if eps is None else eps, elementwise_affine, False, device, dtype)
        self._own_eps = eps is not None

    def normalise(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.eps if self._own_eps else None)

    def _like(self, units: int, like: Tensor) -> EideticLayerNorm:
        eps = self.eps if self._own_eps else None
        return EideticRMSNorm(units, eps, self.elementwise_affine, like.device, like.dtype)


class LayerNormParts(Parts):
    """LayerNorm over concatenated groups: scale and shift belong to each group's part, the statistics run over all.

    A segment reads disjoint where ``forward_transfer`` of any part says so.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(x, cast("list[EideticLayerNorm]", list(self)))  # torch does not say what a ModuleList holds


def _normalised(x: Tensor, parts: Sequence[EideticLayerNorm]) -> Tensor:
    """``x`` [*, C] (or [N, C, *]), the concatenation of the parts' units, normalised segment by segment."""
    first = parts[0]
    task = first.scope.task
    sources = tuple(Source(part.segments) for part in parts)
    widths = [source.columns(task) for source in sources]
    check_tensor(first, x, first.weight)
    if first.weight is not None:
        check_dtype(first, x, first.weight)
    x = x.movedim(first.unit_dim, -1) if x.dim() else x
    if x.dim() < 2 or x.shape[-1] != sum(widths):
        form = f"[N, {sum(widths)}, *]" if first.unit_dim == 1 else f"[*, {sum(widths)}]"
        raise InputError(f"{first} expects an input of shape {form}, got {list(x.movedim(-1, first.unit_dim).shape)}.")
    full_input_grad = first.scope.full_input_grad or (not first.owned and x.requires_grad)

    tasks = first.segments.tasks
    pieces: list[list[Tensor]] = [[] for _ in parts]
    for segment in range((tasks if task is None else task) + 1):
        sizes = [part.segments.size(segment) for part in parts]
        if not sum(sizes):
            continue
        own = _own(parts, widths, segment)
        seen = reads(sources, segment, all(part.forward_transfer[segment] for part in parts), task)
        scales, shifts = zip(*(part.affine_of(segment) for part in parts))
        values = _seen(x, seen, own, segment == tasks, full_input_grad)
        y = _segment(values, positions(seen, own), _joined(scales), _joined(shifts), first)
        for piece, of_part in zip(pieces, y.split(sizes, -1)):
            piece.append(of_part)

    # Each part's segments lie side by side, in order.
    columns = [values for piece in pieces for values in piece]
    y = torch.cat(columns, -1) if len(columns) > 1 else columns[0] if columns else x.narrow(-1, 0, 0)
    return y.movedim(-1, first.unit_dim)


def seen_by_segment(
    x: Tensor, span: tuple[Span, ...], segments: Segments, segment: int, live: bool, full_input_grad: bool
) -> Tensor:
    """The units of ``x`` [*, C] in ``span``, which ``segment`` of ``segments`` sees; see :func:`_seen`."""
    own = (Span(segments.start(segment), segments.stop(segment)),)
    return _seen(x, span, own, live, full_input_grad)


def seen_by_spans(x: Tensor, seen: tuple[Span, ...], own: tuple[Span, ...], full_input_grad: bool) -> Tensor:
    """The columns ``seen`` of ``x`` [*, C] as a live segment sees them: with gradient for those in ``own``."""
    return _seen(x, seen, own, True, full_input_grad)


def _own(parts: Sequence[EideticLayerNorm], widths: Sequence[int], segment: int) -> tuple[Span, ...]:
    """The columns of a segment's own units, in the concatenation of the parts' units."""
    own, offset = [], 0
    for part, width in zip(parts, widths):
        own.append(Span(offset + part.segments.start(segment), offset + part.segments.stop(segment)))
        offset += width
    return tuple(span for span in own if span.start < span.stop)


def _seen(x: Tensor, seen: tuple[Span, ...], own: tuple[Span, ...], live: bool, full_input_grad: bool) -> Tensor:
    """What a segment sees of ``x``.

    A frozen segment sees it in memory of its own, without gradient unless ``full_input_grad``. A live one sees it with
    gradient for the live units only.
    """
    if not live:
        return canonical(read(x if full_input_grad else x.detach(), seen, -1).flatten(0, -2)).view(*x.shape[:-1], -1)
    if full_input_grad or positions(seen, own) == (Span(0, sum(stop - start for start, stop in seen)),):
        return read(x, seen, -1)
    parts = []
    for start, stop in seen:
        for a, b, learning in _cut_by(start, stop, own):
            part = x.narrow(-1, a, b - a)
            parts.append(part if learning else part.detach())
    if len(parts) == 1:  # as it lies: bits of a product depend on that
        return parts[0]
    return torch.cat(parts, -1) if parts else x.narrow(-1, 0, 0)


def _cut_by(start: int, stop: int, own: tuple[Span, ...]) -> Iterator[tuple[int, int, bool]]:
    """The pieces (from, to, inside ``own``) of [start, stop)."""
    for a, b in own:
        if start <= a and b <= stop:
            if start < a:
                yield start, a, False
            yield a, b, True
            start = b
    if start < stop:
        yield start, stop, False


def _segment(
    x: Tensor, own: tuple[Span, ...], weight: Tensor | None, bias: Tensor | None, layer: EideticLayerNorm
) -> Tensor:
    """The columns ``own`` of ``x`` [*, K], normalised over all K."""
    if sum(stop - start for start, stop in own) == x.shape[-1]:
        return layer.normalise(x, weight, bias)
    y = read(layer.normalise(x, None, None), own, -1)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of several parts' scales or shifts; None where the parts have none."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return None
    return given[0] if len(given) == 1 else torch.cat(given)
