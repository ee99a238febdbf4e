"""Training steps as a CUDA graph, for steps whose kernels take longer to launch than to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError
from eidetic_kernels.tasks.base import device_of

from .cuda_graphs import CudaGraph, CudaGraphs
from .settings import TaskSettings

Step = Callable[..., None]  # of (rows or None, x, y)
Shape = tuple[torch.Size, tuple[int, ...], torch.dtype]  # with strides
Shapes = tuple[Shape | None, ...]  # of a batch

# Ordinary steps of an epoch before its capture, as torch's documentation advises: by then the optimizer has its state,
# kernels are compiled and chosen, and libraries have their workspaces.
WARM_UPS = 3


class CapturedSteps:
    """Runs the steps of an epoch: the first ones as usual, then one is captured and replayed for batches of its shape.

    A replay copies the batch to where the captured one was, and runs the same kernels. A batch of another shape is an
    ordinary step. A graph lives no longer than its epoch: between epochs, parameters change their shape (pruning) and
    learning rates their value, so the next epoch captures anew.

    A step must do the same for every batch. One that makes the host read the device cannot be captured: ``off`` then
    says why, and all later steps are ordinary ones. What a step decides on the host without reading the device (a
    counter, Python's random numbers) is decided once an epoch.

    Args:
        graphs: of the network's device.
        optimizer: the one that a step steps.
        required: raise InputError if a step cannot be captured.
    """

    def __init__(self, graphs: CudaGraphs, optimizer: Optimizer, required: bool = False):
        self.graphs, self.optimizer, self.required = graphs, optimizer, required
        self.off: str | None = None
        self._seen: Counter[Shapes] = Counter()
        self._graph: CudaGraph | None = None
        self._shapes: Shapes | None = None
        self._inputs: tuple[Tensor | None, ...] = ()

    @contextmanager
    def epoch(self, step: Step) -> Iterator[Step]:
        """What to call in place of ``step`` during an epoch. The graph and its memory are freed after the block."""
        self._seen.clear()
        try:
            yield partial(self._run, step)
            if self._graph is None and self.off is None and self._seen:
                alike, steps = max(self._seen.values()), self._seen.total()
                self._give_up(
                    f"at most {alike} of an epoch's {steps} batches have the same shape, and {WARM_UPS} ordinary steps "
                    "of a shape come before it is captured"
                )
        finally:
            if self._graph is not None:
                self._graph.release()
            self._graph, self._inputs = None, ()

    def _run(self, step: Step, *batch: Tensor | None) -> None:
        shapes = _shapes(batch)
        if self._graph is not None and shapes == self._shapes:
            self._fill(batch)
            self._graph.replay()
        elif self._graph is not None or self.off is not None:
            step(*batch)
        else:
            self._seen[shapes] += 1
            if self._seen[shapes] > WARM_UPS:
                self._capture(step, batch)
            elif self._seen[shapes] == WARM_UPS:
                self._try(step, batch)
            else:
                with self.graphs.aside():
                    step(*batch)

    def _try(self, step: Step, batch: tuple[Tensor | None, ...]) -> None:
        """The last ordinary step, with inputs that are on the device already, watched for waits."""
        self._fill(batch, anew=True)
        with self.graphs.aside(), self.graphs.watch() as waits:
            step(*self._inputs)
        if waits:
            self._give_up(f"a step waits for the GPU ({', '.join(dict.fromkeys(waits))})")

    def _capture(self, step: Step, batch: tuple[Tensor | None, ...]) -> None:
        """Capture the step of ``batch`` and run it; if it cannot be captured, run it as usual."""
        self._fill(batch, anew=True)
        state = {parameter: dict(values) for parameter, values in self.optimizer.state.items()}
        try:
            with _capturable(self.optimizer):
                graph = self.graphs.capture(partial(step, *self._inputs))
            if not _same(state, self.optimizer.state):
                graph.release()
                raise RuntimeError("the optimizer began new state in it, which every replay would begin anew")
        except (
            Exception
        ) as error:  # of whatever a loss or a network does; the ordinary step raises what is wrong anyway
            self.optimizer.state.clear()
            self.optimizer.state.update(state)
            self.optimizer.zero_grad(set_to_none=True)
            self._give_up(f"a step could not be captured: {type(error).__name__}: {error}")
            step(*batch)
        else:
            self._graph, self._shapes = graph, _shapes(batch)
            self._graph.replay()  # capturing computes nothing

    def _fill(self, batch: tuple[Tensor | None, ...], anew: bool = False) -> None:
        """Copy ``batch`` to the memory that a graph reads; ``anew`` allocates that first."""
        if anew:
            device = self.graphs.device
            self._inputs = tuple(None if one is None else torch.empty_like(one, device=device) for one in batch)
        for static, one in zip(self._inputs, batch):
            if static is not None and one is not None:
                static.copy_(one, non_blocking=True)

    def _give_up(self, reason: str) -> None:
        self.off, self._inputs = reason, ()
        if self.required:
            raise refusal(reason)


def captured_steps(
    network: EideticNetwork, optimizer: Optimizer, settings: TaskSettings
) -> tuple[CapturedSteps | None, str | None]:
    """(what captures the steps of the task in training, None), or (None, why they cannot be captured).

    (None, None) if the settings do not want it, or "auto" finds no GPU. Raises InputError if the settings require it
    and it cannot be.
    """
    required, device = settings.cuda_graphs is True, device_of(network)
    if settings.cuda_graphs is False:
        return None, None
    graphs = graphs_on(device)
    if graphs is None:
        if required:
            raise refusal(f"the network is on {device}, not on a CUDA device")
        return None, None

    reason = why_not(network, optimizer)
    if reason is None:
        return CapturedSteps(graphs, optimizer, required), None
    if required:
        raise refusal(reason)
    return None, reason


def graphs_on(device: torch.device) -> CudaGraphs | None:
    """CUDA graphs on ``device``; None if it is no CUDA device."""
    return CudaGraphs(device) if device.type == "cuda" else None


def why_not(network: EideticNetwork, optimizer: Optimizer) -> str | None:
    """Why the steps of ``network`` cannot be captured; None if nothing is known against it."""
    if any(module._compiled_call_impl is not None for module in network.modules()):
        return "the network is compiled (mode='reduce-overhead' has CUDA graphs of its own)"
    if torch.is_autocast_enabled(device_of(network).type) and torch.is_autocast_cache_enabled():
        return "autocast is on around the whole training and keeps casts of weights: use cache_enabled=False there"
    if type(optimizer) is torch.optim.SGD:  # keeps nothing on the host, and has no argument "capturable"
        return None
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        if "capturable" not in group:
            return f"{name} is not known to keep all that a step changes on the GPU: use Adam, AdamW or SGD"
        if not (group["capturable"] or group.get("fused")):
            return f"{name} counts its steps on the host: create it with fused=True (or capturable=True)"
    return None


def refusal(reason: str) -> InputError:
    """The error for settings that require a graph which cannot be."""
    return InputError(f"steps cannot be captured as a CUDA graph: {reason}. Set cuda_graphs to false or 'auto'.")


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Let the groups of a fused optimizer say ``capturable`` inside the block.

    Without it, torch refuses to capture a step. It changes nothing else for fused kernels, so users need not create
    them with it; outside a capture, torch warns about it.
    """
    lent = [group for group in optimizer.param_groups if group.get("fused") and group.get("capturable") is False]
    for group in lent:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in lent:
            group["capturable"] = False


def _shapes(batch: tuple[Tensor | None, ...]) -> Shapes:
    return tuple(None if one is None else (one.shape, one.stride(), one.dtype) for one in batch)


def _same(before: Mapping[Tensor, Mapping[str, Any]], after: Mapping[Tensor, Mapping[str, Any]]) -> bool:
    """Whether two states of an optimizer hold the same tensors, and equal values beside them."""
    if before.keys() != after.keys() or any(before[one].keys() != after[one].keys() for one in after):
        return False
    pairs = [(before[one][name], value) for one, values in after.items() for name, value in values.items()]
    return all(old is new if isinstance(old, Tensor) or isinstance(new, Tensor) else old == new for old, new in pairs)
