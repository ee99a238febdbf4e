"""What EideticLinear and EideticConv2d share: live weight rows as parameters, frozen blocks as one flat buffer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from .. import ops
from ..checking import flag, placed, shown
from ..errors import InputError, TaskError
from ..layout import Fixed, Segments, Source, Stair, Staircase, staircase
from ..ops.registration import encoded
from ..ops.staircase import frozen_blocks
from .batch_norm import EideticBatchNorm
from .computed_weight import ComputedWeight
from .inputs import check_dtype
from .scope import Scope
from .succession import cut, empty_like, fresh, replace


class StaircaseLayer(ComputedWeight):
    """Abstract. ``weight`` [L, K_l, *kernel] and ``bias`` [L] are the live rows over the columns they read.

    ``frozen_weight`` holds the frozen segments' blocks [rows, columns, *kernel] end to end, ``frozen_bias`` [F]
    their biases. ``forward_transfer`` says for each frozen segment, and lastly for the live one, whether it reads
    nested (every earlier unit) or disjoint (its own task's units only). ``norm`` normalises and activates the units, as
    a part of this layer; None: it does not.
    """

    frozen_names = ("frozen_weight", "frozen_bias")
    norms: type[EideticBatchNorm] = EideticBatchNorm

    def __init__(
        self,
        columns: int,
        width: int,
        kernel: tuple[int, ...],
        bias: bool,
        device,
        dtype,
        norm: EideticBatchNorm | None,
    ):
        super().__init__(width)
        self._staircases: dict[int | None, Staircase] = {}
        self.built = width, columns
        self.order: Tensor | None = None
        self.sources = (Source(Fixed(columns)),)
        self.forward_transfer = (True,)
        factory = placed(device, dtype)
        self.weight = fresh(width, columns, *kernel, **factory)
        self.bias = fresh(width, **factory) if flag("bias", bias) else None
        self.register_buffer("frozen_weight", torch.empty(0, **factory), persistent=False)
        self.register_buffer("frozen_bias", torch.empty(0, **factory) if bias else None, persistent=False)
        self.norm = norm
        if norm is not None:
            self._attach_norm(norm)
        self.reset_parameters()

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the layer reads: its input's groups, side by side."""
        return self._sources

    @sources.setter
    def sources(self, sources: tuple[Source, ...]) -> None:
        self._sources, self._known = sources, None

    @property
    def forward_transfer(self) -> tuple[bool, ...]:
        """By segment, whether it reads nested."""
        return self._forward_transfer

    @forward_transfer.setter
    def forward_transfer(self, choices: tuple[bool, ...]) -> None:
        self._forward_transfer, self._known = choices, None

    def wire(self, segments: Segments, sources: tuple[Source, ...], scope: Scope) -> None:
        """Join a network: fill ``segments``, read ``sources``. The network joins the norm by itself."""
        columns = sum(source.columns(None) for source in sources)
        if columns != self.weight.shape[1]:
            raise InputError(f"{self} reads {self.weight.shape[1]} columns, but its inputs have {columns}.")
        self.join(segments, scope)
        self.sources = sources

    @property
    def untouched(self) -> bool:
        """Whether nothing was pruned or frozen yet."""
        return not self.segments.tasks and tuple(self.weight.shape[:2]) == self.built

    def reorder(self, order: Sequence[int]) -> None:
        """Column ``order[j]`` of the input holds what the fresh layer's column j reads.

        Sums depend on their order in the last bits: as long as the layer is untouched, it adds in the order it was
        given, and in that of its input afterwards.
        """
        self.order = torch.as_tensor(order)
        with torch.no_grad():
            self.weight.copy_(self.weight[:, self.order.argsort().to(self.weight.device)])

    def whole(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What torch's layer makes of ``x``, by ``weight`` over all columns, added up in the original's order."""
        if self.order is not None:
            order = self.order.to(x.device)
            x, weight = x.index_select(self.unit_dim, order), weight.index_select(1, order)
        return self._dense(x, weight, bias)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def part(self, units: slice) -> StaircaseLayer:
        """A fresh layer for some of this fresh layer's units, with their parameters."""
        part = copy.deepcopy(self)
        part.segments = Segments(units.stop - units.start)
        part.built = part.segments.width, self.built[1]
        for name in {"out_features", "out_channels"} & vars(self).keys():
            setattr(part, name, part.segments.width)
        for name, parameter in self.named_parameters():
            setattr(part, name, nn.Parameter(parameter.detach()[units].clone(), parameter.requires_grad))
        return part

    def staircase(self, task: int | None = None) -> Staircase:
        """The layer's structure in training (None) or in the recall of a finished task.

        Raises TaskError for a task that is not finished.
        """
        if task is not None and (type(task) is not int or not 0 <= task < self.segments.tasks):
            self._refuse(task)
        return self.derived(task)

    def _refuse(self, task: object) -> NoReturn:
        raise TaskError(f"task {shown(task)} is not one of the {self.segments.tasks} finished tasks of {self}.")

    def derive(self, task: int | None) -> Staircase:
        stairs = staircase(self.segments, self.sources, self.forward_transfer, task)
        # A finished task's never changes: it stays the same object, with what backends keep on a device for it,
        # whatever is learned or recalled in between.
        if self._staircases.get(task) != stairs:
            self._staircases[task] = stairs
            encoded(stairs)
        return self._staircases[task]

    def version(self) -> int:
        # Each change of any group raises the sum. One number, since torch.compile can follow a number that changes.
        version = self.segments.version
        for source in self._sources:
            version += source.group.version
        return version

    def mask(self, task: int | None = None) -> Tensor:
        """The paper's mask [rows, columns], bool: a view for people and tests."""
        stairs = self.staircase(task)
        return torch.tensor(stairs.mask(), dtype=torch.bool).view(stairs.rows, stairs.columns)

    def dense_weight(self, task: int | None = None) -> Tensor:
        """The weight as one dense tensor [rows, columns, *kernel], zero where the mask is false."""
        return ops.dense_weight(self.live_weight().detach(), self.frozen_weight, self.staircase(task))

    def frozen_rows_of(self, task: int) -> tuple[Tensor, Tensor | None]:
        """Weight [rows, columns, *kernel] and bias [rows] of finished task ``task``'s segment. Raises TaskError."""
        if type(task) is not int or not 0 <= task < self.segments.tasks:
            self._refuse(task)
        block = frozen_blocks(self.frozen_weight, self.staircase().frozen, self.weight.shape[2:])[task]
        rows = slice(self.segments.start(task), self.segments.stop(task))
        return block, None if self.frozen_bias is None else self.frozen_bias[rows]

    def reset_parameters(self) -> None:
        """Initialise the live rows as torch does: uniform in +-1/sqrt(fan in), the fan being what they read."""
        if self.weight.numel():
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None and self.bias.numel():
            fan_in = math.prod(self.weight.shape[1:])
            bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
            nn.init.uniform_(self.bias, -bound, bound)

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep)
        if self.bias is not None:
            self.bias = cut(self.bias, keep)
        self.cut_extras(keep)

    def cut_columns(self, keep: dict[Segments, Tensor]) -> None:
        """Drop the columns of live units that their groups are about to lose; ``keep`` names those that stay."""
        if any(source.group in keep for source in self.sources):
            self.weight = cut(self.weight, None, self._columns_kept(keep))

    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.live_weight().detach().flatten()])
        if self.bias is not None:
            self.frozen_bias = torch.cat([self.frozen_bias, self.bias.detach()])
        self.forward_transfer = (*self.forward_transfer, True)

    def allocate_frozen(self) -> None:
        stairs = self.staircase().frozen
        size = sum(stair.rows * stair.columns for stair in stairs) * math.prod(self.weight.shape[2:])
        self.frozen_weight = empty_like(self.weight, size)
        if self.bias is not None:
            self.frozen_bias = empty_like(self.bias, sum(stair.rows for stair in stairs))

    def renew_live(self, forward_transfer: bool = True) -> None:
        self.forward_transfer = (*self.forward_transfer[:-1], forward_transfer)
        live = self._live_stair()
        self.weight = replace(self.weight, empty_like(self.weight, live.rows, live.columns, *self.weight.shape[2:]))
        if self.bias is not None:
            self.bias = replace(self.bias, empty_like(self.bias, live.rows))
        self.renew_extras(live.rows)
        self.reset_parameters()

    def close_live(self) -> None:
        """After the layer's last task: no live row will come again."""
        self.weight = replace(self.weight, empty_like(self.weight, 0, 0, *self.weight.shape[2:]))
        if self.bias is not None:
            self.bias = replace(self.bias, empty_like(self.bias, 0))
        self.renew_extras(0)

    def check_input(self, x: Tensor, columns: int, dims: int) -> None:
        if x.dim() != dims or x.shape[1] != columns:
            shape = ["N", str(columns), *["H", "W"][: dims - 2]]
            raise InputError(f"{self} expects an input of shape [{', '.join(shape)}], got {list(x.shape)}.")
        check_dtype(self, x, self.weight)

    def _attach_norm(self, norm: EideticBatchNorm) -> None:
        if not isinstance(norm, self.norms):
            raise InputError(f"norm must be a fresh {self.norms.__name__}; got {shown(norm)}.")
        if norm.segments.width != self.segments.width:
            raise InputError(
                f"norm has {norm.segments.width} channels and the layer {self.segments.width} units: give it "
                f"{self.norms.__name__}({self.segments.width})."
            )
        if norm.owned or norm.attached or norm.segments.tasks or norm.segments.live != norm.segments.width:
            raise InputError(
                f"norm must be a fresh {self.norms.__name__}; this one was already pruned, frozen or added to a "
                "network."
            )
        self.attach(norm)

    def _arguments(self, x: Tensor) -> tuple[Tensor, ops.Weights, bool]:
        """The op's input and weights, in the dtype that autocast asks for, and ``full_input_grad``."""
        full_input_grad = self.scope.full_input_grad or (
            x.requires_grad and any(isinstance(source.group, Fixed) for source in self.sources)
        )
        weight = self.live_weight()
        weights = ops.Weights(weight, self.bias, self.frozen_weight, self.frozen_bias)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            bias, frozen_bias = (None if t is None else t.to(dtype) for t in (self.bias, self.frozen_bias))
            weights = ops.Weights(weight.to(dtype), bias, self.frozen_weight.to(dtype), frozen_bias)
            x = x.to(dtype)
        return x, weights, full_input_grad

    def _live_stair(self) -> Stair:
        live = self.staircase().live
        assert live is not None, "in training there is a live segment, of no rows perhaps"
        return live

    def _columns_kept(self, keep: dict[Segments, Tensor]) -> Tensor:
        """Indices into the live weight's columns: all of the frozen units', and the kept live units' blocks."""
        spans = self._live_stair().spans
        kept, offset = [], 0
        for source in self.sources:
            present = source.columns(None)
            columns = torch.arange(offset, offset + present)
            if source.group in keep:
                first = source.trainable().start
                units = keep[source.group][:: source.shared] // source.shared
                blocks = units.view(-1, 1) * source.block + torch.arange(source.block)
                columns = torch.cat([columns[:first], offset + first + blocks.flatten()])
            kept.append(columns)
            offset += present
        wanted = torch.zeros(offset, dtype=torch.bool)
        wanted[torch.cat(kept)] = True
        read = torch.cat([wanted[start:stop] for start, stop in spans]) if spans else wanted[:0]
        return read.nonzero().flatten()
