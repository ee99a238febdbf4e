"""Copies of everything live, by which pruning is undone and training goes back to the last good state."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checking import instance
from ..errors import TaskError
from ..layers import SegmentedLayer, StaircaseLayer
from ..layers.succession import replace
from .base import BaseNetwork
from .checks import an_optimizer
from .optimizer_state import adopt, check_current


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything live: what pruning and training can change, and what ``net.restore`` brings back.

    Args:
        task: the task in training.
        live: how many live units each unit group has, in the order of ``net.groups``.
        tensors: live parameters and statistics, by path.
        optimizer: the optimizer's state for each parameter, by the parameter's path; None if no optimizer was given.
    """

    task: int
    live: tuple[int, ...]
    tensors: dict[str, Tensor]
    optimizer: dict[str, dict[str, Any]] | None


def take(network: BaseNetwork, optimizer: Optimizer | None) -> Snapshot:
    """See :meth:`EideticNetwork.snapshot`."""
    if network.current_task is None:
        raise TaskError("no task is in training, so nothing is live: call prepare_for_task first.")
    state = None
    if optimizer is not None:
        optimizer = an_optimizer(optimizer)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        state = {
            names[id(parameter)]: {key: _copy(value) for key, value in entry.items()}
            for parameter, entry in optimizer.state.items()
            if id(parameter) in names
        }
    tensors = {f"{path}.{name}": tensor.detach().clone() for path, name, _, tensor in all_live(network)}
    live = tuple(group.segments.live for group in network.groups)
    return Snapshot(network.current_task, live, tensors, state)


def restore(network: BaseNetwork, snapshot: Snapshot, optimizer: Optimizer | None) -> None:
    """See :meth:`EideticNetwork.restore`."""
    instance("snapshot", snapshot, Snapshot, "a Snapshot, made by net.snapshot()")
    current = network.current_task
    if current is None or snapshot.task != current:
        now = "no task" if current is None else f"task {current}"
        raise TaskError(f"the snapshot was taken of task {snapshot.task}, but {now} is in training.")
    if (f"heads.{current}.weight" in snapshot.tensors) != (len(network.heads) > current):
        raise TaskError("the snapshot was taken before the task's head was added; take snapshots after it.")
    if snapshot.tensors.keys() != {f"{path}.{name}" for path, name, _, _ in all_live(network)}:
        raise TaskError("the snapshot was taken of another network: it holds tensors of other layers.")
    if optimizer is not None:
        check_current(optimizer, network.parameters())

    for group, live in zip(network.groups, snapshot.live, strict=True):
        group.segments.recycle(live)
    for path, name, layer, tensor in all_live(network):
        saved = snapshot.tensors[f"{path}.{name}"]
        if tensor.shape == saved.shape:
            with torch.no_grad():
                tensor.copy_(saved)
        elif isinstance(tensor, nn.Parameter):
            setattr(layer, name, replace(tensor, saved.clone()))
        else:
            setattr(layer, name, saved.clone())
    for path, layer in network.segmented_layers():
        _check_fits(path, layer)

    if optimizer is not None:
        if snapshot.optimizer is not None:  # what there is need not be cut
            for parameter in network.parameters():
                optimizer.state.pop(parameter, None)
        adopt(network, optimizer)
        if snapshot.optimizer is not None:
            for name, parameter in network.named_parameters():
                optimizer.state.pop(parameter, None)
                if name in snapshot.optimizer:
                    optimizer.state[parameter] = {k: _copy(v) for k, v in snapshot.optimizer[name].items()}


def _check_fits(path: str, layer: SegmentedLayer) -> None:
    """Raise TaskError where a layer's live weight is not of the size that the unit groups now have."""
    if not isinstance(layer, StaircaseLayer):
        return
    live, held = layer.staircase().live, layer.weight.shape[:2]
    if live is not None and held != (live.rows, live.columns):
        raise TaskError(
            f"the snapshot was taken of another network: {path}.weight is [{live.rows}, {live.columns}] here, and "
            f"{list(held)} in the snapshot."
        )


def live_tensors(layer: SegmentedLayer) -> list[tuple[str, Tensor]]:
    """(name, tensor) of a layer's live parameters and statistics."""
    named = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [(name, tensor) for name, tensor in named if name in layer.live_names]


def all_live(network: BaseNetwork) -> list[tuple[str, str, SegmentedLayer, Tensor]]:
    """(layer's path, tensor's name, layer, tensor) of everything live, including the head in training."""
    layers, current = network.segmented_layers(), network.current_task
    if current is not None and len(network.heads) > current:
        layers.append((f"heads.{current}", network.live_head))
    return [(path, name, layer, tensor) for path, layer in layers for name, tensor in live_tensors(layer)]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)  # LBFGS keeps lists of tensors
