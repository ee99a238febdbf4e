"""Frozen features of a data set, computed once a task: a training step then costs what the live units cost.

While a task is in training, what finished tasks' units make of a sample never changes: frozen units read no live ones
(P3), and no dropout touches them (P5). So the first pass over the samples keeps what live units read of frozen ones,
and later passes run live units alone, beside what is kept. A sample must not change from pass to pass (augmentation,
noise in the network's own forward): the first batch that is known is computed once more, and if it is another by then,
nothing is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InputError, TaskError
from ..layers import CONVOLUTIONS, EideticBatchNorm, EideticLinear, StaircaseLayer
from ..layout import LIVE, Fixed, Span, Staircase, without
from ..memory import canonical, memory_format
from ..ops.linear import Linear
from ..ops.staircase import read
from .base import BaseNetwork

# Layers whose live units need nothing of the frozen ones beside them but what they read.
_COVERED = (EideticLinear, *CONVOLUTIONS, EideticBatchNorm)


class FrozenFeatures:
    """What the task in training reads of frozen units, by sample: [samples, columns, *] for every layer that reads.

    Args:
        network: in training on a task that has a head. The features are of this task, and hold no gradient.
        samples: how many samples the data set has.
        limit: how many bytes may be kept; None: as many as it takes. They are counted before any is allocated.

    Give every pass the samples' indices::

        features = ek.FrozenFeatures(net, len(x))
        for rows in torch.randperm(len(x)).split(256):
            with features.batch(rows):
                loss = F.cross_entropy(net(x[rows]), y[rows])
            loss.backward()

    Inside ``batch`` a pass whose samples are all known (but for the first such) runs live units alone, so modules
    between layers see live units only; any other pass is an ordinary one, and is kept. Loss and gradients are the same
    bits either way, where an operation's bits depend on a unit's own values and a product's not on where in its batch a
    sample lies. Most libraries' are such, but for products of few units (on a CPU: under 20) and ends of vectors in exp
    and tanh; else they are the same up to rounding. Finished tasks are recalled as ever (P1).

    ``off`` says why nothing is kept (every pass is then an ordinary one), None while something may be; ``bytes`` how
    much is; ``reads`` whether live units read any frozen one: if not, live units always run alone, whatever the data.
    """

    def __init__(self, network: BaseNetwork, samples: int, limit: int | None = None):
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise InputError(f"samples must be how many samples the data set has, 1 or more; got {samples!r}.")
        head = network.live_head  # raises while no task with a head is in training
        self.network, self.task, self.samples, self.limit = network, network.current_task, samples, limit
        self.bytes = 0
        self.readers = [layer for layer in network.modules() if _reads_units(layer) and layer not in network.heads]
        self.readers.append(head)
        self.off = why_not(network)
        self._kept: dict[StaircaseLayer, Tensor] = {}
        self._inputs = _Inputs()
        self._known: Tensor | None = None
        self.reads = any(map(_columns, self.readers))
        self._unknown = samples if self.reads else 0
        self._proven = not self.reads

    @property
    def settled(self) -> bool:
        """Whether passes are of one kind from here on, and read nothing on the host: live units alone, as every sample
        is known and proven, or (``off``) ordinary ones."""
        return self.off is not None or (self._proven and not self._unknown)

    @contextmanager
    def batch(self, rows: Tensor | None) -> Iterator[None]:
        """For a pass over the samples ``rows`` (int64 [N]: indices into the data set, on any device), in the order of
        the batch; None will do where nothing frozen is read.

        Raises InputError for a batch of another length, TaskError when another task is in training by now.
        """
        if self.network.current_task != self.task:
            raise TaskError(
                f"these are task {self.task}'s frozen features, which is no longer in training: make new ones."
            )
        with ExitStack() as stack:
            if rows is not None:
                rows = rows.to(self.readers[-1].weight.device)
            if self.off is not None:
                pass
            elif not self._proven or (self._unknown and not self._holds(rows)):
                inputs: dict[StaircaseLayer, Tensor] = {}
                self._hook(stack, partial(_note, rows, inputs))
                yield
                self._keep(rows, inputs)
                return
            elif self._runs_live():
                self._hook(stack, partial(self._join, rows))
                for layer in self._kept:
                    stack.callback(layer.register_forward_hook(self._inputs.lead_back).remove)
                stack.enter_context(self.network.running_live())
            yield

    def _hook(self, stack: ExitStack, hook) -> None:
        """Let ``hook`` see, and change, what every reader is given: by position, also where ``forward`` names it."""

        def call(layer: StaircaseLayer, given: tuple[Tensor, ...], named: dict) -> tuple[tuple, dict] | None:
            named = dict(named)
            given = hook(layer, (named.pop("x"), *given) if "x" in named else given)
            return None if given is None else (given, named)

        for layer in self.readers:
            stack.callback(layer.register_forward_pre_hook(call, with_kwargs=True).remove)

    def _holds(self, rows: Tensor) -> bool:
        return self._known is not None and bool(self._known[rows].all())

    def _runs_live(self) -> bool:
        """Pooling refuses images of no channels, which a layer without live units would make."""
        layers = [layer for group in self.network.groups for layer in group.layers]
        return not any(isinstance(layer, CONVOLUTIONS) and not layer.segments.live for layer in layers)

    def _keep(self, rows: Tensor, inputs: dict[StaircaseLayer, Tensor]) -> None:
        if len(inputs) < len(self.readers):
            return  # no whole pass was made
        columns = {layer: _columns(layer) for layer in self.readers}
        if self._known is None:
            self._allocate(inputs, columns)
        if self.off is not None:
            return
        found = {id(kept): (kept, read(inputs[layer], columns[layer])) for layer, kept in self._kept.items()}
        if self._holds(rows):
            self._prove(rows, found.values())
            return
        for kept, values in found.values():
            kept.index_copy_(0, rows, values)
        self._known[rows] = True
        self._unknown = self.samples - int(self._known.sum())

    def _prove(self, rows: Tensor, found: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Samples must have been given the features that are kept of them; rounding does not count."""
        for kept, values in found:
            expected = kept.index_select(0, rows)
            if not (values - expected).abs().max() <= 0.01 * expected.abs().max():
                self.off, self._kept, self.bytes = "a sample is another from pass to pass (augmentation, noise)", {}, 0
                return
        self._proven = True

    def _allocate(self, inputs: dict[StaircaseLayer, Tensor], columns: dict) -> None:
        """Room for every sample; once for layers that read the same."""
        same = {
            layer: (inputs[layer].data_ptr(), inputs[layer].shape, columns[layer])
            for layer in self.readers
            if columns[layer]
        }
        needed = {key: read(inputs[layer], columns[layer])[:1] for layer, key in same.items()}
        size = sum(self.samples * one.numel() * one.element_size() for one in needed.values())
        if self.limit is not None and size > self.limit:
            needed, allowed = (f"{count / 2**20:,.0f} MiB" for count in (size, self.limit))
            self.off = f"those of {self.samples:,} samples would take {needed}, and {allowed} are allowed"
            return
        buffers = {
            key: one.new_empty(self.samples, *one.shape[1:]).contiguous(memory_format=memory_format(one))
            for key, one in needed.items()
        }
        self._kept, self.bytes = {layer: buffers[key] for layer, key in same.items()}, size
        self._known = torch.zeros(self.samples, dtype=torch.bool, device=next(iter(needed.values())).device)

    def _join(self, rows: Tensor, layer: StaircaseLayer, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """What ``layer`` reads: live columns, which it is given, between those that are kept."""
        if layer.scope.task != LIVE or layer not in self._kept:
            return None
        x, kept = given[0], self._kept[layer]
        _check_rows(rows, x)
        if isinstance(layer, EideticLinear):
            values = self._inputs.join(layer, x, kept, rows)
            if layer.norm is None:
                return values, *given[1:]
            # The gradient is led back from the product, before the norm: the layer is given what it computes.
            return values, layer.norm(self._inputs.lead_back(layer, (values,), layer.product(values)))
        kept = kept.index_select(0, rows)
        pieces, known, own = [], 0, 0
        for before, size in _runs(layer.staircase(LIVE)):
            pieces += [kept.narrow(1, known, before), x.narrow(1, own, size)]
            known, own = known + before, own + size
        return torch.cat(pieces, 1).contiguous(memory_format=memory_format(self._kept[layer])), *given[1:]


class _Inputs:
    """Inputs of linear layers, of live columns and kept ones, in memory that is used again: fresh memory for every
    step, and zeros for the gradient of columns that have none, would cost as much as the products of few units. There
    is one for every size of batch that was met, which ``FrozenFeatures.bytes`` does not count."""

    def __init__(self):
        self.buffers: dict[StaircaseLayer, list[_Buffer]] = {}
        self.given: dict[StaircaseLayer, tuple[Tensor, _Buffer]] = {}

    def join(self, layer: StaircaseLayer, x: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
        """``x`` and the ``rows`` of ``kept``, side by side as ``layer`` reads them; without a gradient."""
        stairs = layer.staircase(LIVE)
        buffer = self._buffer(layer, x, kept, stairs.columns)
        known, own, at = 0, 0, 0
        with torch.no_grad():
            for before, size in _runs(stairs):
                if before:
                    torch.index_select(kept.narrow(1, known, before), 0, rows, out=buffer.values.narrow(1, at, before))
                buffer.values.narrow(1, at + before, size).copy_(x.narrow(1, own, size))
                known, own, at = known + before, own + size, at + before + size
        self.given[layer] = x, buffer
        return buffer.values

    def lead_back(self, layer: StaircaseLayer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        """``y``, whose gradient reaches what :meth:`join` was given for it."""
        if layer not in self.given:
            return None
        x, buffer = self.given.pop(layer)
        y = _LeadBack.apply(y, x, layer.weight, layer.staircase(LIVE).trainable)
        buffer.user = None if y.grad_fn is None else weakref.ref(y.grad_fn)
        return y

    def _buffer(self, layer: StaircaseLayer, x: Tensor, kept: Tensor, columns: int) -> _Buffer:
        """One that no backward pass will read any more."""
        like = len(x), columns, torch.promote_types(x.dtype, kept.dtype)
        # Those of other batch sizes too: a last, smaller batch must not take memory that a captured graph writes to.
        buffers = [buffer for buffer in self.buffers.get(layer, ()) if buffer.like[1:] == like[1:]]
        for buffer in buffers:
            if buffer.like == like and (buffer.user is None or buffer.user() is None):
                break
        else:
            buffer = _Buffer(like, kept.new_empty(like[:2], dtype=like[2]))
            buffers.append(buffer)
        self.buffers[layer] = buffers
        return buffer


class _Buffer:
    """``values`` [N, columns], and the node of the graph that will read them."""

    def __init__(self, like: tuple, values: Tensor):
        self.like, self.values = like, values
        self.user: weakref.ref | None = None


class _LeadBack(torch.autograd.Function):
    """A linear layer's output y, with the gradient of the part ``x`` of its input that lies at ``spans``."""

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, weight: Tensor, spans: tuple[Span, ...]):
        ctx.save_for_backward(x, weight)
        ctx.spans, ctx.dtype = spans, x.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        if not ctx.needs_input_grad[1]:
            return dy, None, None, None
        x, weight = ctx.saved_tensors
        columns = read(weight, ctx.spans).to(dy.dtype)
        return dy, Linear.input_gradient(canonical(dy), x, columns).to(ctx.dtype), None, None


def why_not(network: BaseNetwork) -> str | None:
    """Why live units of ``network`` cannot run alone; None: they can."""
    for path, layer in network.segmented_layers():
        if not isinstance(layer, _COVERED):
            return f"{path} ({type(layer).__name__}) needs frozen units beside live ones"
        if layer.unit_dim != 1:
            return f"the units of {path} lie in the last dimension"
    if any(module._compiled_call_impl is not None for module in network.modules()):
        return "the network is compiled"
    return None


def _reads_units(layer: nn.Module) -> bool:
    return isinstance(layer, StaircaseLayer) and not any(isinstance(source.group, Fixed) for source in layer.sources)


def _columns(layer: StaircaseLayer) -> tuple:
    """The columns of frozen units that the live units of ``layer`` read, in an input that holds everything."""
    stairs = layer.staircase()
    return without(stairs.live.spans, stairs.trainable)


def _runs(stairs: Staircase) -> list[tuple[int, int]]:
    """(kept columns, live columns after them), run after run, of what the live rows read."""
    ends = [0, *(stop for _, stop in stairs.trainable)]
    runs = [(start - end, stop - start) for end, (start, stop) in zip(ends, stairs.trainable)]
    return runs if ends[-1] == stairs.columns else [*runs, (stairs.columns - ends[-1], 0)]


def _note(rows: Tensor, inputs: dict[StaircaseLayer, Tensor], layer: StaircaseLayer, given: tuple[Tensor, ...]) -> None:
    if layer.scope.task is None:
        _check_rows(rows, given[0])
        inputs[layer] = given[0].detach()


def _check_rows(rows: Tensor, x: Tensor) -> None:
    if len(x) != len(rows):
        raise InputError(f"the batch has {len(x)} samples and rows {len(rows)}: give each sample's index.")
