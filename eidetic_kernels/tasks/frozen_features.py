"""Frozen features of a data set, computed once for each task: a training step then costs what the live units cost.

While a task is in training, what finished tasks' units compute for a sample never changes: frozen units read no live
ones (P3), and no dropout touches them (P5). So the first pass over the samples caches what live units read of frozen
ones, and later passes run live units alone, beside the cache. A sample must be the same in every pass: augmentation, or
noise in the network's own forward, changes it. Therefore the first batch whose samples are all cached is computed once
more, and if it differs by then, nothing is cached.

What is cached is what a layer read, once for each sample. So every layer that reads units must run exactly once in a
pass, and every layer as often in one pass as in another. Recurrent layers, layers shared between two places and layers
that run in some passes only do not: calls are counted in every pass, and nothing is cached then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checking import instance, shown, whole_number
from ..errors import InputError, TaskError
from ..layers import CONVOLUTIONS, EideticBatchNorm, EideticLinear, SegmentedLayer, StaircaseLayer
from ..layout import LIVE, Fixed, Span, without
from ..memory import memory_format
from ..modes import compiled_modules
from ..ops.staircase import read
from .base import BaseNetwork
from .frozen_inputs import JoinedInputs

# Layers whose live units need nothing of the frozen units beside them but what they read.
_COVERED = (EideticLinear, *CONVOLUTIONS, EideticBatchNorm)

_Inputs = dict[StaircaseLayer, Tensor]
_Calls = Counter[SegmentedLayer]
_Hook = Callable[[StaircaseLayer, tuple[Tensor, ...]], tuple[Tensor, ...] | None]


class PassDiffers(InputError):
    """A pass beside cached features called other layers than those by which they were cached. It may be repeated."""


class FrozenFeatures:
    """What the task in training reads of frozen units, by sample: [samples, columns, *] for every layer that reads.

    Args:
        network: in training on a task that has a head. The features belong to this task and hold no gradient.
        samples: how many samples the data set has.
        limit: how many bytes the cache may take; None for as many as it needs. Bytes are counted before any is
            allocated.

    Raises:
        InputError: ``samples`` is no positive whole number.
        TaskError: no task with a head is in training.

    Give every pass the samples' indices::

        features = ek.FrozenFeatures(net, len(x))
        for rows in torch.randperm(len(x)).split(256):
            with features.batch(rows):
                loss = F.cross_entropy(net(x[rows]), y[rows])
            loss.backward()

    A pass inside ``batch`` runs live units alone once all its samples are cached (but for the first such pass), so
    modules between layers see live units only. Any other pass is an ordinary one, and fills the cache. Finished tasks
    are recalled as ever (P1).

    ``forward`` must compute the same in every pass. How often it calls each layer is counted. Nothing is cached where
    one that reads units runs more or less than once. Where a pass beside cached features calls another layer than those
    before it, it raises InputError and features are off: make the pass again.

    Loss and gradients have the same bits either way, if an operation's bits depend on a unit's own values alone, and a
    product's bits not on where in its batch a sample lies. Most libraries work so, but for products of few units (under
    20 on a CPU) and for the ends of vectors in exp and tanh. Elsewhere they agree up to rounding.

    Attributes:
        off: why nothing is cached and every pass is an ordinary one; None while something may be cached.
        bytes: how much is cached.
        reads: whether live units read any frozen one. If not, live units always run alone, whatever the data.
    """

    def __init__(self, network: BaseNetwork, samples: int, limit: int | None = None):
        instance("network", network, BaseNetwork, "an EideticNetwork")
        self.samples = whole_number("samples", samples, 1, unit="samples of the data set")
        if limit is not None:
            limit = whole_number("limit", limit, unit="bytes")
        head = network.live_head  # raises while no task with a head is in training
        self.network, self.task, self.limit = network, network.current_task, limit
        self.off = why_not(network)
        self.bytes = 0

        heads = set(network.heads)
        layers = [layer for layer in network.modules() if isinstance(layer, StaircaseLayer) and layer not in heads]
        self.readers = [*filter(_reads_units, layers), head]
        self._paths = {layer: path for path, layer in network.segmented_layers() if not layer.attached}
        self._paths[head] = "the head"
        self.reads = any(map(_frozen_columns, self.readers))
        self._cache: _Inputs = {}
        self._cached: Tensor | None = None  # bool [samples]
        self._missing = samples if self.reads else 0
        self._verified = not self.reads
        self._calls: _Calls | None = None  # of every layer, in the first pass
        self._inputs = JoinedInputs()

    @property
    def settled(self) -> bool:
        """Whether all passes are of one kind from here on, and read nothing on the host.

        They run live units alone, every sample being cached and verified, or (``off``) are ordinary ones.
        """
        return self.off is not None or (self._verified and not self._missing)

    @contextmanager
    def batch(self, rows: Tensor | None) -> Generator[None, None, None]:
        """For a pass over the samples ``rows``, in the order of the batch.

        Args:
            rows: int64 [N], indices into the data set, on any device. None will do where nothing frozen is read.

        Raises:
            InputError: the batch has another length than ``rows``, ``rows`` are no indices of samples, or None and
                frozen units are read.
            TaskError: another task is in training by now.
        """
        if self.network.current_task != self.task:
            raise TaskError(
                f"these are task {self.task}'s frozen features, which is no longer in training: make new ones."
            )
        if self.off is not None or self.network.unchecked:  # the first pass makes another one, of a few samples
            yield
            return
        if rows is None and not self.reads:
            with ExitStack() as stack:
                yield from self._pass(stack, None)
            return

        if not isinstance(rows, Tensor) or rows.dtype != torch.long or rows.dim() != 1:
            raise InputError(f"rows must hold the index of each sample in the batch, int64 [N]; got {shown(rows)}.")
        try:
            with ExitStack() as stack:
                yield from self._pass(stack, rows.to(self.readers[-1].weight.device))
        except (IndexError, RuntimeError) as error:
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.samples):
                raise InputError(
                    f"rows must be indices of the {self.samples} samples, 0..{self.samples - 1}; got "
                    f"{int(rows.min())}..{int(rows.max())}."
                ) from error
            raise

    def _pass(self, stack: ExitStack, rows: Tensor | None) -> Generator[None, None, None]:
        """An ordinary pass that fills or verifies the cache, or a pass of live units beside it."""
        if rows is not None and (not self._verified or (self._missing and not self._holds(rows))):
            inputs: _Inputs = {}
            self._count(stack, rows)
            self._hook(stack, partial(self._note, rows, inputs))
            yield
            self._keep(rows, inputs)
            return

        if self._can_run_live():
            if rows is not None and self.reads:
                self._count(stack, rows)
            self._hook(stack, partial(self._join, rows))
            for layer in self._cache:
                stack.callback(layer.register_forward_hook(self._inputs.lead_back).remove)
            stack.enter_context(self.network.running_live())
        yield

    def _hook(self, stack: ExitStack, hook: _Hook) -> None:
        """Let ``hook`` see, and change, the arguments of every reader: its input first, also where it is named."""

        def call(
            layer: StaircaseLayer, given: tuple[Tensor, ...], named: Mapping[str, Any]
        ) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
            rest = dict(named)
            arguments = hook(layer, (rest.pop("x"), *given) if "x" in rest else given)
            return None if arguments is None else (arguments, rest)

        for layer in self.readers:
            stack.callback(layer.register_forward_pre_hook(call, with_kwargs=True).remove)

    def _count(self, stack: ExitStack, rows: Tensor) -> None:
        """Count each layer's calls in every pass of the task in training, up to the head, which comes last."""
        head, calls = self.readers[-1], _Calls()

        def begin(network: BaseNetwork, given: tuple[Tensor, ...]) -> None:
            if head.scope.task in (None, LIVE):
                calls.clear()
                if len(given[0]) != len(rows):
                    raise InputError(
                        f"the batch has {len(given[0])} samples and rows {len(rows)}: give each sample's index."
                    )

        def count(layer: SegmentedLayer, given: tuple[Any, ...]) -> None:
            if layer.scope.task in (None, LIVE):
                calls[layer] += 1
                if layer is head:
                    self._compare(calls)

        stack.callback(self.network.register_forward_pre_hook(begin).remove)
        for layer in self._paths:
            stack.callback(layer.register_forward_pre_hook(count).remove)

    def _compare(self, calls: _Calls) -> None:
        """Turn off where a reader ran more or less than once, or a layer more or less often than in the first pass.

        Raises PassDiffers in a pass of live units, whose cached features belong to other calls.
        """
        if calls == self._calls:
            return
        if self._calls is None:
            self._calls = calls.copy()
            wrong = next((layer for layer in self.readers if calls[layer] != 1), None)
            if wrong is not None:
                self._turn_off(f"{self._paths[wrong]} runs {_times(calls[wrong])} in a pass, in place of once")
            return
        layer = next(layer for layer in self._paths if calls[layer] != self._calls[layer])
        self._differ(layer, f"runs {_times(calls[layer])} in one pass and {_times(self._calls[layer])} in another")

    def _differ(self, layer: SegmentedLayer, how: str) -> None:
        """Turn off since ``layer`` is not called as before. Raises PassDiffers in a pass of live units."""
        self._turn_off(f"{self._paths[layer]} {how}")
        if layer.scope.task == LIVE:
            raise PassDiffers(f"frozen features are off from here on, since {self.off}. Make the pass again.")

    def _turn_off(self, reason: str) -> None:
        self.off, self._cache, self.bytes = reason, {}, 0

    def _holds(self, rows: Tensor) -> bool:
        """Whether every one of these samples is cached."""
        return self._cached is not None and bool(self._cached[rows].all())

    def _can_run_live(self) -> bool:
        """Pooling refuses images of no channels, which a convolution without live units would make."""
        layers = [layer for group in self.network.groups for layer in group.layers]
        return not any(isinstance(layer, CONVOLUTIONS) and not layer.segments.live for layer in layers)

    def _keep(self, rows: Tensor, inputs: _Inputs) -> None:
        """Cache what the pass read of frozen units or, where the cache holds it, verify that it is the same."""
        if self.off is not None or len(inputs) < len(self.readers):
            return  # no whole pass was made
        columns = {layer: _frozen_columns(layer) for layer in self.readers}
        cached = self._allocate(inputs, columns) if self._cached is None else self._cached
        if cached is None:
            return

        found = {id(cache): (cache, read(inputs[layer], columns[layer])) for layer, cache in self._cache.items()}
        if self._holds(rows):
            self._verify(rows, found.values())
            return
        for cache, values in found.values():
            cache.index_copy_(0, rows, values)
        cached[rows] = True
        self._missing = self.samples - int(cached.sum())

    def _verify(self, rows: Tensor, found: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Turn off where the features ``found`` of these samples are not those in the cache, up to rounding."""
        for cache, values in found:
            expected = cache.index_select(0, rows)
            if not (values - expected).abs().max() <= 0.01 * expected.abs().max():
                self._turn_off("a sample is another from pass to pass (augmentation, noise)")
                return
        self._verified = True

    def _allocate(self, inputs: _Inputs, columns: Mapping[StaircaseLayer, tuple[Span, ...]]) -> Tensor | None:
        """Allocate the cache, once for layers that read the same. Turn off where it would be over the limit.

        Returns which samples are cached, bool [samples]; None where the cache is over the limit.
        """
        same = {
            layer: (inputs[layer].data_ptr(), inputs[layer].shape, columns[layer])
            for layer in self.readers
            if columns[layer]
        }
        needed = {key: read(inputs[layer], columns[layer])[:1] for layer, key in same.items()}
        size = sum(self.samples * one.numel() * one.element_size() for one in needed.values())
        if self.limit is not None and size > self.limit:
            wanted, allowed = (f"{count / 2**20:,.0f} MiB" for count in (size, self.limit))
            self.off = f"those of {self.samples:,} samples would take {wanted}, and {allowed} are allowed"
            return None

        buffers = {
            key: one.new_empty(self.samples, *one.shape[1:]).contiguous(memory_format=memory_format(one))
            for key, one in needed.items()
        }
        self._cache, self.bytes = {layer: buffers[key] for layer, key in same.items()}, size
        device = next(iter(needed.values())).device
        self._cached = torch.zeros(self.samples, dtype=torch.bool, device=device)
        return self._cached

    def _note(self, rows: Tensor, inputs: _Inputs, layer: StaircaseLayer, given: tuple[Tensor, ...]) -> None:
        """Remember the input of ``layer`` in a pass of the task in training."""
        if layer.scope.task is None and self._one_row_each(rows, layer, given[0]):
            inputs[layer] = given[0].detach()

    def _join(self, rows: Tensor | None, layer: StaircaseLayer, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The arguments of ``layer`` with cached columns joined in; None where it reads none, or a task is recalled."""
        if rows is None or layer.scope.task != LIVE or layer not in self._cache:
            return None
        self._one_row_each(rows, layer, given[0])
        return self._inputs.join(layer, given, self._cache[layer], rows)

    def _one_row_each(self, rows: Tensor, layer: StaircaseLayer, x: Tensor) -> bool:
        """Whether ``layer`` is given one row for each sample; turn off where it is not."""
        if len(x) == len(rows):
            return True
        self._differ(layer, f"is given {len(x)} rows for {len(rows)} samples")
        return False


def why_not(network: BaseNetwork) -> str | None:
    """Why live units of ``network`` cannot run alone; None if they can."""
    for path, layer in network.segmented_layers():
        if not isinstance(layer, _COVERED):
            return f"{path} ({type(layer).__name__}) needs frozen units beside live ones"
        if layer.unit_dim != 1:
            return f"the units of {path} lie in the last dimension"
    if compiled_modules(network):
        return "the network is compiled"
    return None


def _reads_units(layer: StaircaseLayer) -> bool:
    return not any(isinstance(source.group, Fixed) for source in layer.sources)


def _frozen_columns(layer: StaircaseLayer) -> tuple[Span, ...]:
    """The columns of frozen units that the live units of ``layer`` read, in an input that holds all units."""
    stairs = layer.staircase()
    live = stairs.live
    return without(live.spans, stairs.trainable) if live is not None else ()


def _times(count: int) -> str:
    return "never" if not count else "once" if count == 1 else f"{count} times"
